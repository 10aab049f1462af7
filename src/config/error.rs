//! What can be wrong with a configuration: each error names the place, the key, what was expected and the way out.

use std::io;
use std::path::PathBuf;

use super::expand::ExpandError;
use super::resolve::Origin;

/// Why a configuration could not be resolved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read.
    #[error("failed to read the configuration {}", path.display())]
    Read {
        /// The file, from `--config` or `NSBOX_CONFIG`.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file is no YAML, or of a shape that no key can have.
    #[error("{at}: {message}")]
    Syntax {
        /// Where.
        at: Origin,
        /// What is wrong there.
        message: String,
    },
    /// A key that does not exist.
    #[error("{at}: unknown key `{key}`; {hint}")]
    UnknownKey {
        /// Where.
        at: Origin,
        /// The key's path as it was written.
        key: String,
        /// The nearest valid key, or the valid ones.
        hint: String,
    },
    /// A key set twice in one file, by itself or by its older name.
    #[error("{at}: `{key}` is set a second time, first as `{first}`; keep one of the two")]
    DuplicateKey {
        /// Where the second one is.
        at: Origin,
        /// The key's path as the second wrote it.
        key: String,
        /// The key's path as the first wrote it.
        first: String,
    },
    /// A value of the wrong type, unit or range.
    #[error("{at}: `{key}`: {reason}; expected {expected}")]
    Value {
        /// Where.
        at: Origin,
        /// The key's path as it was written.
        key: String,
        /// What is wrong with the value.
        reason: String,
        /// What the key takes, with an example.
        expected: &'static str,
    },
    /// A `${NAME:default}` that does not expand.
    #[error("{at}: failed to expand the value of `{key}`")]
    Expand {
        /// Where.
        at: Origin,
        /// The key's path as it was written.
        key: String,
        /// Why.
        #[source]
        source: ExpandError,
    },
    /// Values that are each valid but not together.
    #[error("{at}: `{key}`: {reason}")]
    Conflict {
        /// Where the value comes from that has to give way.
        at: Origin,
        /// Its key.
        key: &'static str,
        /// Why the two do not go together, and what to do.
        reason: String,
    },
}

impl Error {
    /// A stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "config.read",
            Self::Syntax { .. } => "config.syntax",
            Self::UnknownKey { .. } => "config.unknown-key",
            Self::DuplicateKey { .. } => "config.duplicate-key",
            Self::Value { .. } => "config.value",
            Self::Expand { .. } => "config.expand",
            Self::Conflict { .. } => "config.conflict",
        }
    }
}
