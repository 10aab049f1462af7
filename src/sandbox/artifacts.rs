//! Copies what a guest left in /output to a folder of the host.
//!
//! Done when every process of the run is gone, so nothing changes underfoot. Only regular files are taken, and folders
//! that hold some; nothing is followed, nothing is opened that could block. See openat2(2), symlink(7).

use std::ffi::{CStr, OsStr};
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::outcome::Artifact;

/// Folders in folders; deeper ones are left, and noted.
const MAX_DEPTH: usize = 32;
/// Notes on what was left; the rest is counted.
const MAX_NOTES: usize = 20;

/// What was copied, and what was not.
#[derive(Debug, Default)]
pub(crate) struct Artifacts {
    /// The files, in the order of their paths.
    pub files: Vec<Artifact>,
    /// What was left behind, and why.
    pub notes: Vec<String>,
    /// Whether the files together are over the limit: then some are missing.
    pub over_limit: bool,
}

/// Copies the tree under `output` into `folder`, at most `limit` bytes.
///
/// # Errors
/// A file or folder of the host cannot be written; what was copied before stays.
pub(crate) fn collect(output: OwnedFd, folder: &Path, limit: u64) -> io::Result<Artifacts> {
    fs::create_dir_all(folder)?;
    let mut collector = Collector { folder, left: limit, found: Artifacts::default(), unsaid: 0 };
    collector.walk(output, Path::new(""))?;
    let Collector { mut found, unsaid, .. } = collector;
    if unsaid > 0 {
        found.notes.push(format!("{unsaid} more artifacts left"));
    }
    found.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

struct Collector<'a> {
    folder: &'a Path,
    left: u64,
    found: Artifacts,
    /// Notes beyond [`MAX_NOTES`].
    unsaid: usize,
}

impl Collector<'_> {
    /// One folder, and those in it one after the other: never more descriptors than the depth.
    fn walk(&mut self, fd: OwnedFd, inside: &Path) -> io::Result<()> {
        for (name, kind) in entries(&fd)? {
            let path = inside.join(OsStr::from_bytes(name.to_bytes()));
            match kind {
                Some(Type::Directory) if inside.components().count() < MAX_DEPTH => {
                    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    match openat(&fd, name.as_c_str(), flags, Mode::empty()) {
                        Ok(child) => self.walk(child, &path)?,
                        Err(errno) => self.leave(&path, errno),
                    }
                }
                Some(Type::Directory) => self.leave(&path, "too deep"),
                Some(Type::File) => match open_file(fd.as_fd(), &name) {
                    Ok((file, size)) if size <= self.left => {
                        self.left -= size;
                        copy(file, size, &self.folder.join(&path))?;
                        self.found.files.push(Artifact { path: path.to_string_lossy().into_owned(), size });
                    }
                    Ok((_, size)) => {
                        self.found.over_limit = true;
                        self.leave(&path, format_args!("its {size} bytes are over limits.artifacts"));
                    }
                    Err(error) => self.leave(&path, error),
                },
                _ => self.leave(&path, "neither a file nor a folder"),
            }
        }
        Ok(())
    }

    /// Notes what is not copied. The name is the guest's: no control character of it reaches the message.
    fn leave(&mut self, path: &Path, why: impl Display) {
        if self.found.notes.len() < MAX_NOTES {
            self.found.notes.push(format!("artifact {} left: {why}", path.to_string_lossy().escape_debug()));
        } else {
            self.unsaid += 1;
        }
    }
}

fn entries(fd: &OwnedFd) -> io::Result<Vec<(std::ffi::CString, Option<Type>)>> {
    let mut found = Vec::new();
    for entry in Dir::from_fd(fd.try_clone()?)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            found.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    found.sort_by(|a: &(std::ffi::CString, _), b| a.0.cmp(&b.0));
    Ok(found)
}

/// Opens a regular file and tells its size. A file may be readable by nobody but its owner, who the supervisor is or outranks.
fn open_file(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<(File, u64)> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let fd = openat(folder, name, flags, Mode::empty())?;
    let stat = fstat(&fd)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(io::Error::other("not a regular file"));
    }
    Ok((fd.into(), u64::try_from(stat.st_size).unwrap_or(u64::MAX)))
}

/// Writes a new file; a link of the caller's in its place is not followed.
fn copy(file: File, size: u64, target: &Path) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o644).custom_flags(libc::O_NOFOLLOW);
    io::copy(&mut io::Read::take(file, size), &mut options.open(target)?)?;
    Ok(())
}
