//! Inputs that are values: plain ones, arrays and tables, which a script finds ready under a name of its own.
//!
//! The content goes once into a sealed memfd, which any number of scripts and runs share. Each run maps it private and
//! writable (`rootfs/guest/inputs.py`): what a script writes is its own copy of a page, and nothing of it comes back. How the
//! content lies there is in `input/write.rs`. See memfd_create(2), fcntl(2) F_ADD_SEALS, mmap(2) MAP_PRIVATE.

mod write;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Error, channels};
use crate::config::Limits;
use crate::outcome::Value;
use write::Writer;

/// The most inputs of one run that are values. They come with one message, which can carry 253 descriptors (SCM_MAX_FD).
pub(crate) const MOST: usize = 128;
/// The longest name.
const LONGEST_NAME: usize = 64;
/// Words that Python keeps for itself.
const KEYWORDS: [&str; 35] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del",
    "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal",
    "not", "or", "pass", "raise", "return", "try", "while", "with", "yield",
];
/// Names that mean something else to a run: the dict of all inputs, and what a script hands back.
const TAKEN: [&str; 5] = ["inputs", "metrics", "report", "result", "signal"];

/// Why a value cannot be given to a script.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// An object that has no value outside Python.
    #[error("value{place} is an object of the class {kind}, of which there is no value: give what it holds instead")]
    Opaque {
        /// Where in the value, as Python writes it: `['a'][0]`; empty for the value itself.
        place: String,
        /// Its class.
        kind: String,
    },
    /// A `BigInt` that is none.
    #[error("value{place} is no integer: decimal digits are expected, with a '-' before them or not")]
    NotAnInteger {
        /// Where in the value.
        place: String,
    },
    /// Too many levels of lists and dicts.
    #[error("value{place} is nested more than {most} deep: give it as several inputs", most = write::MOST_LEVELS)]
    TooDeep {
        /// Where in the value.
        place: String,
    },
    /// Too much that is neither an array nor a table.
    #[error(
        "the value's texts, lists and dicts take more than {most} bytes: give the numbers of lists as arrays or tables, whose \
         size has no limit",
        most = write::MOST_PLAIN
    )]
    TooLong,
    /// The memory for it.
    #[error("failed to keep the value in a memfd")]
    Memory(#[source] io::Error),
}

impl InputError {
    /// A stable name of the failure, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Opaque { .. } => "input-opaque",
            Self::NotAnInteger { .. } => "input-not-an-integer",
            Self::TooDeep { .. } => "input-too-deep",
            Self::TooLong => "input-too-long",
            Self::Memory(_) => "input-memory",
        }
    }

    /// The same error, of a value that is at `outer` of another.
    fn at(mut self, outer: &str) -> Self {
        match &mut self {
            Self::Opaque { place, .. } | Self::NotAnInteger { place } | Self::TooDeep { place } => {
                place.insert_str(0, outer);
            }
            Self::TooLong | Self::Memory(_) => {}
        }
        self
    }
}

/// A value for scripts, in memory that nobody can change: copied there once, shared by its clones and by all the scripts and
/// runs that are given it.
///
/// In the script plain values are plain Python, an [`Array`](crate::outcome::Array) is a numpy array and a
/// [`Table`](crate::outcome::Table) the pandas object that it was, or a `DataFrame`. Arrays, and columns of numbers or times
/// without nulls, are not copied, and can be written to; other columns are made by pyarrow for each run.
///
/// ```
/// use nsbox::outcome::Array;
/// use nsbox::sandbox::{Input, Script};
///
/// let prices = Input::new(Array::from(&[101.5, 102.25][..]))?;
/// let scripts = ["result = prices.mean()", "prices *= 2; result = prices.max()"];
/// let scripts = scripts.map(|source| Script::from(source).give("prices", &prices));
/// # Ok::<(), nsbox::sandbox::InputError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Input(Arc<Content>);

#[derive(Debug)]
struct Content {
    file: File,
    size: u64,
}

/// The inputs of a script that are values, by name.
pub(crate) type Values = Vec<(String, Input)>;

impl Input {
    /// Copies a value into memory of its own. The memory is the caller's, and is free once no script and no run has it; to a
    /// run counts what it writes to, a page of 4 KiB at a time. Arrays and tables may be as large as that memory, all else of
    /// a value takes at most 1 GiB.
    ///
    /// # Errors
    /// A value that has no form in Python or is too large, or memory that cannot be had.
    pub fn new(value: impl Into<Value>) -> Result<Self, InputError> {
        let file = channels::memory(c"nsbox-input").map_err(InputError::Memory)?;
        let mut file = Writer::write(file, &value.into())?;
        channels::write_sealed(&mut file, &[]).map_err(InputError::Memory)?;
        let size = file.metadata().map_err(InputError::Memory)?.len();
        Ok(Self(Arc::new(Content { file, size })))
    }

    /// The bytes of memory that it takes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// The memfd.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.0.file.as_raw_fd()
    }

    /// Copies the content to a place that a memfd cannot be handed to.
    pub(crate) fn copy_to(&self, target: &mut impl Write) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        loop {
            match self.0.file.read_at(&mut buffer, at)? {
                0 => return Ok(()),
                count => {
                    target.write_all(&buffer[..count])?;
                    at += count as u64;
                }
            }
        }
    }
}

/// The limits by which a run is measured where no cgroup counts: the pages of values that it reads are the caller's own, and
/// seen in it all the same.
pub(crate) fn room<'a>(limits: &'a Limits, values: &Values) -> Cow<'a, Limits> {
    if values.is_empty() {
        return Cow::Borrowed(limits);
    }
    let size: u64 = values.iter().map(|(_, value)| value.size()).sum();
    Cow::Owned(Limits { memory: limits.memory.saturating_add(size), ..limits.clone() })
}

/// Whether these values can be given, beside these files.
pub(crate) fn check(values: &Values, files: &[(String, PathBuf)]) -> Result<(), Error> {
    if values.len() > MOST {
        return Err(Error::TooManyValues { count: values.len() });
    }
    for (i, (name, _)) in values.iter().enumerate() {
        if let Some(why) = refusal(name) {
            return Err(Error::ValueName { name: name.clone(), why });
        }
        let is_known = values[..i].iter().any(|(earlier, _)| earlier == name);
        if is_known || files.iter().any(|(file, _)| file == name) {
            return Err(Error::InputTwice { name: name.clone() });
        }
    }
    Ok(())
}

/// Why a value cannot have this name.
fn refusal(name: &str) -> Option<&'static str> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(is_word) {
        return Some("use letters, digits and '_', at most 64 of them");
    }
    if name.starts_with(|first: char| first.is_ascii_digit()) {
        return Some("a name of Python's begins with a letter or '_'");
    }
    if KEYWORDS.contains(&name) {
        return Some("it is a keyword of Python");
    }
    if name.starts_with("__") {
        return Some("names that begin with '__' are Python's own");
    }
    TAKEN.contains(&name).then_some("the dict of all inputs and what a script hands back have names of their own")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};

    use super::*;

    fn values(names: &[&str]) -> Values {
        let input = Input::new(1_i64).unwrap();
        names.iter().map(|name| ((*name).to_owned(), input.clone())).collect()
    }

    #[test]
    fn names_are_those_of_globals_and_each_once() {
        check(&values(&["prices", "_x", "A1", "match", "df_2"]), &[]).unwrap();
        for name in [
            "", "1a", "a-b", "a b", "a.b", "é", "for", "None", "inputs", "result", "metrics", "signal", "report",
            "__x", "__file__", "a\n",
        ] {
            let error = check(&values(&[name]), &[]).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{name:?} cannot name a value: ")), "{error}");
        }
        check(&values(&["a".repeat(LONGEST_NAME).as_str()]), &[]).unwrap();
        check(&values(&["a".repeat(LONGEST_NAME + 1).as_str()]), &[]).unwrap_err();
        let twice = check(&values(&["x", "y", "x"]), &[]).unwrap_err().to_string();
        assert_eq!(twice, "two inputs are named \"x\": give each a name of its own");
        check(&values(&["x"]), &[("x".to_owned(), "/etc/passwd".into())]).unwrap_err();
        let many: Vec<String> = (0..=MOST).map(|number| format!("x{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        check(&values(&many[1..]), &[]).unwrap();
        let error = check(&values(&many), &[]).unwrap_err().to_string();
        assert!(error.starts_with("129 inputs that are values, the most is 128: "), "{error}");
    }

    #[test]
    fn content_is_sealed_and_shared() {
        let input = Input::new("text").unwrap();
        let copy = input.clone();
        assert_eq!(input.descriptor(), copy.descriptor());
        let seals = SealFlag::from_bits_retain(fcntl(&copy.0.file, FcntlArg::F_GET_SEALS).unwrap());
        let all = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        assert!(seals.contains(all), "{seals:?}");
        let refused = (&copy.0.file).write(b"x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::EPERM as i32));
        let mut content = Vec::new();
        copy.copy_to(&mut content).unwrap();
        assert_eq!(content.len() as u64, input.size());
    }
}
