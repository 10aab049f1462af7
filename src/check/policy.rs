//! The policy of the check: data read from YAML, no mechanism.
//!
//! The built-in policy is `config/policy.yaml`, embedded. The build script turns it into JSON, which parses within the few
//! microseconds that a cold run can spare; the same types read both.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

/// What the check allows. Load one with [`Policy::builtin`] or [`Policy::load`]; the keys are documented in
/// `config/policy.yaml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    pub(super) limits: Limits,
    pub(super) imports: Imports,
    pub(super) modules: Words,
    pub(super) builtins: Words,
    pub(super) dunders: Dunders,
    pub(super) attributes: Words,
    pub(super) metaclasses: Words,
    pub(super) strings: Words,
    pub(super) io: Io,
    pub(super) dispatch: Words,
    pub(super) expressions: Paths,
}

/// Bounds of what is parsed at all.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) source_bytes: usize,
    pub(super) tokens: usize,
    pub(super) nesting: usize,
    pub(super) findings: usize,
}

/// What may be imported, and what of it may be reached.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Imports {
    pub(super) allow: Words,
    pub(super) deny: Paths,
    pub(super) only: Map<String, Words>,
    pub(super) members: Words,
    pub(super) star: Words,
    pub(super) hints: Map<String, String>,
}

/// Double-underscore names.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dunders {
    pub(super) attributes: Words,
    pub(super) names: Words,
    pub(super) definitions: Words,
}

/// Readers and writers, and where they may go.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Io {
    pub(super) readers: Paths,
    pub(super) writers: Paths,
    pub(super) path_second: Words,
    pub(super) read_roots: Vec<String>,
    pub(super) write_roots: Vec<String>,
    pub(super) path_arguments: Words,
    pub(super) buffers: Words,
    pub(super) code_suffixes: Vec<String>,
}

/// A set whose hashes are cheap, and seeded, so that a source cannot choose names that collide.
pub(super) type Set<T> = HashSet<T, foldhash::fast::RandomState>;

/// The same, with values.
pub(super) type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A set of names. Nearly every name of a source is asked for in several sets and is in none of them, so that most are told
/// by their shape alone, which costs less than a hash.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "Set<Box<str>>")]
pub(super) struct Words {
    names: Set<Box<str>>,
    shapes: [u64; 8],
}

impl From<Set<Box<str>>> for Words {
    fn from(names: Set<Box<str>>) -> Self {
        let mut words = Self { names, shapes: [0; 8] };
        words.names.iter().for_each(|name| mark(&mut words.shapes, name));
        words
    }
}

/// A word and a bit of it, the same for equal names: of the ends and the length.
fn shape(name: &str) -> (usize, u64) {
    let bytes = name.as_bytes();
    let (first, last) = bytes.first().zip(bytes.last()).map_or((0, 0), |(first, last)| (*first, *last));
    (usize::from(first) % 8, 1 << ((usize::from(last) * 5 + bytes.len()) % 64))
}

fn mark(shapes: &mut [u64; 8], name: &str) {
    let (word, bit) = shape(name);
    shapes[word] |= bit;
}

impl Words {
    #[inline]
    pub(super) fn contains(&self, name: &str) -> bool {
        let (word, bit) = shape(name);
        self.shapes[word] & bit != 0 && self.names.contains(name)
    }

    fn insert(&mut self, name: Box<str>) {
        mark(&mut self.shapes, &name);
        self.names.insert(name);
    }

    /// Whether a path in the set ends in `name`; for small sets.
    pub(super) fn has_member(&self, name: &str) -> bool {
        self.names.iter().any(|path| path.rsplit('.').next() == Some(name))
    }
}

/// A set of names: dotted ones are paths from a module and cover what lies below, bare ones are the method of anything;
/// a trailing `*` stands for any ending.
#[derive(Debug, Clone, Default)]
pub(super) struct Paths {
    exact: Words,
    prefixes: Vec<Box<str>>,
}

impl Paths {
    /// Whether `path`, or what it lies below, is in the set.
    pub(super) fn covers(&self, path: &str) -> bool {
        let mut dots = path.bytes().enumerate().filter(|(_, byte)| *byte == b'.');
        let below = dots.any(|(dot, _)| self.exact.contains(&path[..dot]));
        below || self.exact.contains(path) || self.prefixes.iter().any(|prefix| path.starts_with(&**prefix))
    }

    /// Whether `path` is in the set, or ends in a method that is.
    pub(super) fn names(&self, path: &str) -> bool {
        self.covers(path) || path.rsplit('.').next().is_some_and(|name| self.exact.contains(name))
    }

    /// Whether the method `name` is in the set, whatever its object.
    pub(super) fn has_method(&self, name: &str) -> bool {
        self.exact.contains(name)
    }
}

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathsVisitor;
        impl<'de> Visitor<'de> for PathsVisitor {
            type Value = Paths;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a list of names")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Paths, A::Error> {
                let mut paths = Paths::default();
                while let Some(name) = names.next_element::<Box<str>>()? {
                    match name.strip_suffix('*') {
                        Some(prefix) => paths.prefixes.push(prefix.into()),
                        None => paths.exact.insert(name),
                    }
                }
                Ok(paths)
            }
        }
        deserializer.deserialize_seq(PathsVisitor)
    }
}

/// Why a policy could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read.
    #[error("failed to read the policy {}", path.display())]
    Read {
        /// The policy file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a policy.
    #[error("{}:{line}:{column}: {message}{}", path.display(), suggestion.as_ref().map_or(String::new(), |key| format!(", did you mean `{key}`?")))]
    Parse {
        /// The policy file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        message: String,
        /// The valid key nearest to an unknown one.
        suggestion: Option<String>,
    },
}

impl Error {
    /// The stable code of this error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Error::Read { .. } => "check.policy-read",
            Error::Parse { .. } => "check.policy-parse",
        }
    }
}

impl Policy {
    /// The policy built in, `config/policy.yaml`; parsed at the first call.
    ///
    /// # Panics
    ///
    /// Never: the tests parse the embedded file.
    #[must_use]
    pub fn builtin() -> &'static Policy {
        static BUILTIN: OnceLock<Policy> = OnceLock::new();
        BUILTIN.get_or_init(|| {
            #[expect(clippy::expect_used, reason = "the embedded policy is checked by the build script and the tests")]
            serde_json::from_str(include_str!(concat!(env!("OUT_DIR"), "/policy.json")))
                .expect("the built-in policy parses")
        })
    }

    /// Loads a policy file. Every key must be there: start from a copy of the built-in policy.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is not YAML, lacks a key, or has an unknown key or a value of the wrong type.
    pub fn load(path: impl AsRef<Path>) -> Result<Policy, Error> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        serde_yaml::from_str(&text).map_err(|error| {
            let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
            // serde_yaml ends its message with the location, which is told apart here.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
            let suggestion = nearest_key(&message);
            Error::Parse { path: path.to_owned(), line, column, message, suggestion }
        })
    }
}

/// The valid key nearest to the unknown one, from serde's ``unknown field `a`, expected one of `b`, `c` ``.
fn nearest_key(message: &str) -> Option<String> {
    let mut quoted = message.split_once("unknown field ")?.1.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    quoted.min_by_key(|key| strsim::damerau_levenshtein(unknown, key)).map(str::to_owned)
}
