//! The descriptors between a run and its supervisor: output, script, result, start.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::guest::Descriptors;
use super::input::Values;
use super::line;
use super::script::Stdin;

/// MFD_NOEXEC_SEAL and MFD_EXEC, Linux 6.3.
const NOEXEC_SEAL: u32 = 0x8;
const EXEC: u32 = 0x10;

/// Both ends of everything.
pub(crate) struct Channels {
    stdout: (PipeReader, OwnedFd),
    stderr: (PipeReader, OwnedFd),
    result: File,
    stdin: Option<(OwnedFd, PipeWriter, Box<dyn Read + Send>)>,
    way: Way,
}

/// How the script gets there, and how its beginning is known.
enum Way {
    /// A memfd of its text, and a pipe; and a socket with the values that it is given, if there are some.
    Memfd { code: File, start: (PipeReader, OwnedFd), values: Option<OwnedFd> },
    /// A slot's end of its line: it has begun when it was sent.
    Line(OwnedFd),
}

impl Channels {
    pub(crate) fn open(stdin: Stdin, values: &Values) -> io::Result<Self> {
        let values = (!values.is_empty()).then(|| line::of_values(values)).transpose()?;
        Self::with(stdin, Way::Memfd { code: memory(c"nsbox-script")?, start: output()?, values })
    }

    /// Those of a slot, whose end of its line this is.
    pub(crate) fn of_slot(stdin: Stdin, line: OwnedFd) -> io::Result<Self> {
        Self::with(stdin, Way::Line(line))
    }

    fn with(stdin: Stdin, way: Way) -> io::Result<Self> {
        let stdin = match stdin {
            Stdin::Empty => None,
            Stdin::Stream(stream) => {
                let (reader, writer) = io::pipe()?;
                Some((reader.into(), writer, stream))
            }
        };
        let result = unsealable(memory_file(c"nsbox-result", NOEXEC_SEAL)?)?;
        Ok(Self { stdout: output()?, stderr: output()?, result, stdin, way })
    }

    /// Whether something is fed to the guest's stdin.
    pub(crate) fn has_stdin(&self) -> bool {
        self.stdin.is_some()
    }

    /// The guest's descriptors, by number.
    pub(crate) fn guest(&self) -> Descriptors {
        let result = self.result.as_raw_fd();
        Descriptors {
            stdin: self.stdin.as_ref().map(|(end, _, _)| end.as_raw_fd()),
            output: Some([self.stdout.1.as_raw_fd(), self.stderr.1.as_raw_fd()]),
            further: match &self.way {
                Way::Memfd { code, start, values } => [code.as_raw_fd(), result, start.1.as_raw_fd()]
                    .into_iter()
                    .chain(values.as_ref().map(AsRawFd::as_raw_fd))
                    .collect(),
                Way::Line(line) => vec![line.as_raw_fd(), result],
            },
        }
    }

    /// Closes the guest's ends, now that init has its own copies, and lets what is fed to stdin flow.
    ///
    /// Fails where no thread can be had for that.
    pub(crate) fn detach(self) -> io::Result<Supervised> {
        if let Some((end, writer, stream)) = self.stdin {
            drop(end);
            feed(stream, writer)?;
        }
        let (code, start) = match self.way {
            Way::Memfd { code, start, .. } => (Some(code), Some(start.0)),
            Way::Line(_) => (None, None),
        };
        Ok(Supervised { stdout: self.stdout.0, stderr: self.stderr.0, start, code, result: Some(self.result) })
    }
}

/// The supervisor's ends.
pub(crate) struct Supervised {
    pub stdout: PipeReader,
    pub stderr: PipeReader,
    /// Of a guest that has yet to begin.
    pub start: Option<PipeReader>,
    /// The script's memfd, until it has been filled.
    pub code: Option<File>,
    /// Taken once the run is over.
    pub result: Option<File>,
}

/// A pipe whose reader does not block.
fn output() -> io::Result<(PipeReader, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader, writer.into()))
}

/// Copies a stream into the guest's stdin. The thread ends with the stream, or with its first write after the guest.
fn feed(mut stream: Box<dyn Read + Send>, mut pipe: PipeWriter) -> io::Result<()> {
    std::thread::Builder::new().spawn(move || io::copy(&mut stream, &mut pipe).ok()).map(drop)
}

/// An empty memfd that can be sealed; `mode` is dropped on kernels that do not know it.
fn memory_file(name: &std::ffi::CStr, mode: u32) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    match memfd_create(name, flags | MFdFlags::from_bits_retain(mode)) {
        Err(Errno::EINVAL) => Ok(memfd_create(name, flags)?),
        created => Ok(created?),
    }
}

/// A memfd that nobody can seal: the guest must not take from its own runner what the result is written to.
fn unsealable(fd: OwnedFd) -> io::Result<File> {
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL))?;
    Ok(fd.into())
}

/// A memfd that holds a program and can never change.
pub(crate) fn executable(name: &std::ffi::CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let fd = memory_file(name, EXEC)?;
    let mut file = File::from(fd);
    write_sealed(&mut file, content)?;
    Ok(file.into())
}

/// Adds the last of a memfd's content and forbids any change of it.
pub(crate) fn write_sealed(file: &mut File, content: &[u8]) -> io::Result<()> {
    file.write_all(content)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}

/// A memfd to be filled and sealed.
pub(crate) fn memory(name: &std::ffi::CStr) -> io::Result<File> {
    Ok(memory_file(name, NOEXEC_SEAL)?.into())
}

/// A memfd that holds `content` and can never change.
pub(crate) fn sealed(name: &std::ffi::CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let mut file = memory(name)?;
    write_sealed(&mut file, content)?;
    Ok(file.into())
}
