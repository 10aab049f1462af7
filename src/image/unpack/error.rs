//! What is wrong with a layer, its entries and their headers.

use std::io;
use std::path::PathBuf;

use super::super::root::{MAX_DEPTH, MAX_PATH};

/// A symbolic link longer than this is no link that Linux can follow.
pub(super) const MAX_LINK: usize = 4095;

/// Why a layer is refused. Which layer it is, the caller says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An entry that nsbox does not unpack.
    #[error("refused the entry {entry:?}: {problem}")]
    Entry {
        /// Its path, as far as it is known.
        entry: PathBuf,
        /// What is wrong.
        problem: Problem,
    },
    /// More entries than allowed.
    #[error("at {entry:?} it exceeds the limit of {limit} entries in all layers: --max-entries raises the limit")]
    TooMany {
        /// The first one too many.
        entry: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// Larger files than allowed.
    #[error("at {entry:?} its files exceed {limit} bytes in all layers: --max-size raises the limit")]
    TooLarge {
        /// The first one too many.
        entry: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// The tar is broken.
    #[error("failed to read the entry after {after:?}: it is damaged or no tar archive")]
    Tar {
        /// The last entry that was whole.
        after: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The tar ends without its end marker.
    #[error("it ends after {after:?} without an end marker: it was cut off")]
    Unfinished {
        /// The last entry.
        after: PathBuf,
    },
    /// Something follows the tar's end, which other programs may take for entries.
    #[error("it goes on after its end marker (after {after:?}): repack it as one archive")]
    Trailing {
        /// The last entry.
        after: PathBuf,
    },
    /// The tree cannot be written.
    #[error("failed to unpack {entry:?} in the store (NSBOX_STORE names another)")]
    Write {
        /// The entry.
        entry: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Its path starts at the root.
    #[error("its path is absolute: entries are relative to the image's root, repack without -P")]
    Absolute,
    /// Its path has a `..`.
    #[error("its path leads out of its folder by '..'")]
    Parent,
    /// Its path names the root, and it is no folder.
    #[error("it names the image's root itself")]
    TheRoot,
    /// Its path has a NUL.
    #[error("its path holds a NUL character")]
    Nul,
    /// Its path is too long or too deep.
    #[error("its path is longer than {MAX_PATH} bytes or deeper than {MAX_DEPTH} folders (fixed limits)")]
    TooLong,
    /// A link without a target, or with an impossible one.
    #[error("its link target is missing, longer than {MAX_LINK} bytes, or holds a NUL character")]
    Target,
    /// A hard link that leads out.
    #[error("it is a hard link to a path outside the image")]
    HardLinkOut,
    /// A hard link to nothing.
    #[error("it is a hard link to something that is not in the image, or is no file")]
    HardLinkTo,
    /// A parent that is no folder.
    #[error("a folder on its path is a file, or a link that leads nowhere in the image")]
    NoFolder,
    /// A whiteout of the root, of `.` or of `..`.
    #[error("it is a whiteout of no name")]
    Whiteout,
    /// A kind of entry that tar does not define.
    #[error("it is of a kind that nsbox does not unpack")]
    Kind,
    /// Extended headers that cannot be read, or say two things.
    #[error("its extended headers are damaged or contradict each other")]
    Headers,
    /// More header than an entry can need.
    #[error("its headers are larger than 1 MiB (a fixed limit)")]
    LargeHeaders,
    /// A sparse file of an old form.
    #[error("it is a sparse file of GNU's pax format 0.x: repack with tar --format=gnu, or --sparse-version=1.0")]
    Sparse,
}

impl Error {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Entry { .. } => "unpack-entry",
            Self::TooMany { .. } => "unpack-too-many",
            Self::TooLarge { .. } => "unpack-too-large",
            Self::Tar { .. } => "unpack-tar",
            Self::Unfinished { .. } => "unpack-unfinished",
            Self::Trailing { .. } => "unpack-trailing",
            Self::Write { .. } => "unpack-write",
        }
    }
}
