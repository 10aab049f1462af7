//! The line between a slot and the supervisor: one request there, one answer back. See `rootfs/guest/zygote.py`.
//!
//! The far end is the guest's: what comes from it is an answer only where it has the form of one and the nonce of the
//! request, and even then says nothing that the kernel does not (see `supervise`).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, recv, send, sendmsg, shutdown, socketpair,
};

use super::input::Values;

/// The longest message of a request; the same number is in zygote.py.
const MESSAGE: usize = 16 << 10;
/// The longest document that an answer holds itself; the same number is in zygote.py.
const INLINE: usize = 64 << 10;
/// Before the texts: the nonce, and the length of all.
const HEAD: usize = 20;

/// Tells the answer to one request from anything else.
pub(crate) type Nonce = [u8; 16];

/// A nonce that nobody can guess.
pub(crate) fn nonce() -> io::Result<Nonce> {
    let mut nonce = Nonce::default();
    File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(nonce)
}

/// Both ends of a line: the supervisor's and the slot's.
pub(crate) fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Tells a slot to warm up.
pub(crate) fn warm(socket: &OwnedFd) -> io::Result<()> {
    send(socket.as_raw_fd(), b"w", MsgFlags::MSG_NOSIGNAL)?;
    Ok(())
}

/// Takes the slot's word that it is ready, or has warmed up; `false` at its end.
pub(crate) fn is_ready(socket: &OwnedFd) -> io::Result<bool> {
    let mut byte = [0];
    Ok(recv(socket.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT)? == 1 && byte == *b"r")
}

/// What a slot is asked to run.
pub(crate) struct Request<'a> {
    /// Whether it may answer before its end.
    pub answer: bool,
    pub source: &'a [u8],
    /// `__file__` in the guest.
    pub file: &'a str,
    pub args: &'a [String],
    /// The names under /input.
    pub inputs: Vec<&'a str>,
    /// What comes with one more message, as descriptors.
    pub values: &'a Values,
}

impl Request<'_> {
    /// Sends it.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>, nonce: &Nonce) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEAD + self.source.len() + 256);
        message.extend_from_slice(nonce);
        message.extend_from_slice(&[0; 4]);
        // Python's marshal format: a tuple of byte strings, texts and lists of texts.
        let mut put = |kind: u8, length: usize, bytes: &[u8]| {
            message.push(kind);
            message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
            message.extend_from_slice(bytes);
        };
        let kinds: [&[u8]; 2] = if self.values.is_empty() { [b"x", b"a"] } else { [b"xv", b"av"] };
        let kind = kinds[usize::from(self.answer)];
        put(b'(', 5, b"");
        put(b's', kind.len(), kind);
        put(b'u', self.file.len(), self.file.as_bytes());
        put(b's', self.source.len(), self.source);
        put(b'[', self.args.len(), b"");
        self.args.iter().for_each(|arg| put(b'u', arg.len(), arg.as_bytes()));
        put(b'[', self.inputs.len(), b"");
        self.inputs.iter().for_each(|name| put(b'u', name.len(), name.as_bytes()));
        let total = u32::try_from(message.len()).map_err(io::Error::other)?;
        message[16..HEAD].copy_from_slice(&total.to_le_bytes());
        for part in message.chunks(MESSAGE) {
            send(socket.as_raw_fd(), part, MsgFlags::MSG_NOSIGNAL)?;
        }
        if self.values.is_empty() { Ok(()) } else { send_values(socket, self.values) }
    }
}

/// Sends the names of values, and their memfds with them.
fn send_values(socket: BorrowedFd<'_>, values: &Values) -> io::Result<()> {
    let names: Vec<&str> = values.iter().map(|(name, _)| name.as_str()).collect();
    let descriptors: Vec<_> = values.iter().map(|(_, value)| value.descriptor()).collect();
    let (names, rights) = (names.join("\n"), [ControlMessage::ScmRights(&descriptors)]);
    let parts = [io::IoSlice::new(names.as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// The guest's end of a line that holds nothing but the message with these values.
pub(crate) fn of_values(values: &Values) -> io::Result<OwnedFd> {
    let (socket, theirs) = open()?;
    send_values(socket.as_fd(), values)?;
    Ok(theirs)
}

/// The supervisor's end, while an answer is awaited.
pub(crate) struct Line<'a> {
    pub socket: BorrowedFd<'a>,
    pub nonce: Nonce,
    /// The longest document that is taken; of a longer one, a byte more.
    pub most: usize,
}

impl Line<'_> {
    /// Takes one message: the document of an answer, or `None` for all else. `result` is the slot's memfd.
    pub(crate) fn hear(&self, result: Option<&File>) -> Option<Vec<u8>> {
        let fd = self.socket.as_raw_fd();
        let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
        let length = recv(fd, &mut [0; 1], look).ok()?;
        if length > self.nonce.len() + 1 + INLINE {
            return None;
        }
        let mut message = vec![0; length];
        let taken = loop {
            match recv(fd, &mut message, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                taken => break taken.ok()?,
            }
        };
        message.truncate(taken);
        let rest = message.strip_prefix(&self.nonce)?;
        match rest.split_first()? {
            (b'i', document) => Some(document.to_vec()),
            (b'm', []) => {
                let file = result?;
                let size = usize::try_from(file.metadata().ok()?.len()).unwrap_or(usize::MAX);
                let mut document = vec![0; size.min(self.most.saturating_add(1))];
                file.read_exact_at(&mut document, 0).ok()?;
                Some(document)
            }
            _ => None,
        }
    }

    /// Hangs up: whatever comes later cannot be an answer, and a guest that waits at its end goes on to exit.
    pub(crate) fn cut(&self) {
        // A socket whose other end is closed says so.
        shutdown(self.socket.as_raw_fd(), Shutdown::Both).ok();
    }
}
