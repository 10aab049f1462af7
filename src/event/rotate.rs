//! Keeps the log's file below its size: `LOG` becomes `LOG.1`, `LOG.1` becomes `LOG.2`, and the oldest goes.
//!
//! Whoever finds the file full rotates, under the lock of [`Log`](super::Log) on the file that is renamed last: until then nobody else
//! can, and one that is killed on the way leaves a gap in the numbers and no lock.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

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

    /// Rotates the log, whose file is locked.
    pub(super) fn rotate(self, path: &Path) -> io::Result<()> {
        // Of a log that is a symbolic link the file is renamed, not the link.
        let path = path.canonicalize()?;
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
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    files.reverse();
    Ok(files)
}
