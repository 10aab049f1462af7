//! Keeps the log's file below its size: `LOG` becomes `LOG.1`, `LOG.1` becomes `LOG.2`, and the oldest goes.
//!
//! Whoever finds the file full rotates, one process at a time: under flock(2) on the file that is about to be renamed, so
//! the lock is gone with a process that dies, and a stopped one that holds it keeps nobody from writing. No line is lost:
//! a line that is on its way into a file that is being renamed is in `LOG.1`; [`Log`](super::Log) writes a line again where its
//! file was removed as the oldest meanwhile. Some lines may go beyond the size: those of processes that write at that moment.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::log::open;
use crate::config::MOST_LOGS_KEPT;

/// When a log is rotated, and how much of it is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotation {
    /// The size of a file, in bytes.
    pub max: u64,
    /// How many rotated files are kept: 1 to [`MOST_LOGS_KEPT`].
    pub keep: u32,
}

impl Rotation {
    /// Whether a file has no room for this line. An empty one takes any.
    pub(super) fn is_due(self, file: &Metadata, line: usize) -> bool {
        file.is_file() && file.len() > 0 && file.len().saturating_add(line as u64) > self.max
    }

    /// Rotates the log unless somebody else has done or does so.
    pub(super) fn rotate(self, path: &Path, line: usize) -> io::Result<()> {
        // Of a log that is a symbolic link the file is renamed, not the link.
        let path = match path.canonicalize() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        // Opened anew: flock(2) belongs to what open(2) gives, so this excludes the threads of this process as well.
        let file = open(&path)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => {}
        }
        let locked = file.metadata()?;
        if !is_at(&locked, &path)? || !self.is_due(&locked, line) {
            return Ok(());
        }
        // From here on, until the last rename, whoever would rotate too needs the lock that is held.
        let kept = |number: u32| numbered(&path, number);
        for number in (self.keep + 1..=MOST_LOGS_KEPT).take_while(|number| kept(*number).exists()) {
            fs::remove_file(kept(number))?;
        }
        // A rotation that was killed has left a gap: files move up to it, and none is removed.
        let gap = (1..self.keep).find(|number| !kept(*number).exists()).unwrap_or(self.keep);
        for number in (1..gap).rev() {
            fs::rename(kept(number), kept(number + 1))?;
        }
        fs::rename(&path, kept(1))
    }
}

/// Whether this path still leads to that file.
pub(crate) fn is_at(file: &Metadata, path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(now) => Ok((now.dev(), now.ino()) == (file.dev(), file.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The name of a rotated file.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

/// A log and its rotated files, open for reading, oldest first.
///
/// # Errors
/// When there is none of them, or one that cannot be read.
pub(crate) fn open_all(path: &Path) -> io::Result<Vec<(PathBuf, File)>> {
    // The log itself may have been put aside this moment, with no line written since.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let mut files: Vec<(PathBuf, File)> = Vec::new();
    // From the newest on: a file that is renamed meanwhile is met twice and taken once, but never missed.
    for number in 0..=MOST_LOGS_KEPT {
        let name = if number == 0 { real.clone() } else { numbered(&real, number) };
        let file = match File::open(&name) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        let about = file.metadata()?;
        let same = |other: &File| other.metadata().is_ok_and(|o| (o.dev(), o.ino()) == (about.dev(), about.ino()));
        if !files.iter().any(|(_, other)| same(other)) {
            files.push((name, file));
        }
    }
    if files.is_empty() {
        return Err(ErrorKind::NotFound.into());
    }
    files.reverse();
    Ok(files)
}
