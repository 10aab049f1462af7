//! Lays the sources over each other: built-in < file < environment < flags, and judges what they say together.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Config;
use super::error::Error;
use super::file;
use super::key::{FALLBACK_TO_DIRECT, Input, KEYS, Raw, find};
use crate::outcome::Verdict;

/// The variable that names the configuration file where no flag does.
const FILE_VARIABLE: &str = "NSBOX_CONFIG";

/// Variables that are no key's: of this module, and of the image store.
const NO_KEYS: [&str; 4] = [FILE_VARIABLE, "NSBOX_STORE", "NSBOX_DEBIAN_MIRROR", "NSBOX_OFFLINE"];

/// What the variables of keys start with: `limits.memory` is `NSBOX_LIMITS_MEMORY`.
const PREFIX: &str = "NSBOX_";

/// No configuration is longer; `--config /dev/zero` must end.
const MAX_FILE: u64 = 1 << 20;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Origin {
    /// The built-in configuration.
    BuiltIn,
    /// A file.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// A variable of the environment.
    Env {
        /// Its name.
        name: String,
    },
    /// A flag of the command line.
    Flag {
        /// Its name, as in `--memory`.
        name: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Env { name } | Self::Flag { name } => f.write_str(name),
        }
    }
}

/// Collects the sources of a configuration, then resolves them.
///
/// ```
/// use nsbox::config::{Origin, Resolver};
///
/// let resolved = Resolver::new()
///     .env([("NSBOX_LIMITS_MEMORY", "1g"), ("NSBOX_LIMITS_PIDS", "32")])
///     .flag("limits.memory", "512m", "--memory")
///     .resolve()?;
/// assert_eq!(resolved.config.limits.memory, 512 << 20);
/// assert_eq!(resolved.config.limits.pids, 32);
/// assert_eq!(resolved.origin("limits.memory"), Origin::Flag { name: "--memory".into() });
/// # Ok::<(), nsbox::config::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Resolver {
    file: Option<PathBuf>,
    env: BTreeMap<OsString, OsString>,
    flags: Vec<(String, String, String)>,
}

impl Resolver {
    /// No sources but the built-in one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads this file, whatever `NSBOX_CONFIG` says.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Takes an environment, such as [`std::env::vars_os`]: for `NSBOX_CONFIG` (empty is unset), for the keys
    /// (`NSBOX_LIMITS_MEMORY` is `limits.memory`), and for `${NAME:default}` in the file. Further names that start with
    /// `NSBOX_` are refused, so that a misspelt limit is not a missing one, but for `NSBOX_STORE`, the image store's, and
    /// `NSBOX_TEST_`, the test suites'.
    #[must_use]
    pub fn env<N: Into<OsString>, V: Into<OsString>>(mut self, vars: impl IntoIterator<Item = (N, V)>) -> Self {
        self.env.extend(vars.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Sets a key (`limits.memory`) to a text (`512m`) on behalf of a flag (`--memory`). The last one wins; those of `env`
    /// (`NAME=value`) add up. Lists are separated by commas.
    #[must_use]
    pub fn flag(mut self, key: impl Into<String>, value: impl Into<String>, flag: impl Into<String>) -> Self {
        self.flags.push((key.into(), value.into(), flag.into()));
        self
    }

    /// Resolves all sources.
    ///
    /// # Errors
    /// [`Error`] at the first thing that is wrong in a source, or between two; nothing is ever left out or guessed.
    pub fn resolve(self) -> Result<Resolved, Error> {
        let mut config = Config::default();
        let mut set = BTreeMap::new();
        let mut from_file = BTreeMap::new();
        let named = self.env.get(OsStr::new(FILE_VARIABLE)).filter(|name| !name.is_empty());
        let path = self.file.or_else(|| named.map(PathBuf::from));
        let file = match path {
            None => None,
            Some(path) => {
                let text = load(&path)?;
                from_file = file::read(&text, &path, &self.env, &mut config)?;
                set.extend(from_file.keys().map(|key| (*key, Source::File)));
                Some((path, text))
            }
        };
        for (variable, value) in &self.env {
            let Some(name) = variable.to_str().filter(|name| is_ours(name)) else { continue };
            let origin = Origin::Env { name: name.to_owned() };
            let key = KEYS.iter().find(|key| key.show.is_some() && variable_of(key.path) == name);
            let path = key.map_or_else(|| name[PREFIX.len()..].to_ascii_lowercase(), |key| key.path.to_owned());
            set.insert(apply(&mut config, &path, value, &origin)?, Source::Given(origin));
        }
        for (key, value, name) in self.flags {
            let origin = Origin::Flag { name };
            set.insert(apply(&mut config, &key, OsStr::new(&value), &origin)?, Source::Given(origin));
        }
        let mut resolved = Resolved { config, warnings: Vec::new(), set, file, vars: self.env };
        let old_fallback = from_file.get("fallback").is_some_and(|written| written.ends_with(FALLBACK_TO_DIRECT));
        resolved.widen_old_fallback(old_fallback);
        resolved.judge()?;
        Ok(resolved)
    }
}

/// A resolved configuration, and where its values came from.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The configuration.
    pub config: Config,
    /// What the user should know about it, a sentence each.
    pub warnings: Vec<String>,
    set: BTreeMap<&'static str, Source>,
    file: Option<(PathBuf, String)>,
    vars: BTreeMap<OsString, OsString>,
}

/// An [`Origin`] whose line is not looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    File,
    /// The same as that of another key, which implies this one.
    As(&'static str),
    Given(Origin),
}

impl Resolved {
    /// Where the value of a key (`limits.memory`) came from. A file is read once more to find the line, so that a run, which
    /// does not ask, does not pay for it.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        match self.set.get_key_value(key) {
            None => Origin::BuiltIn,
            Some((_, Source::As(other))) => self.origin(other),
            Some((_, Source::Given(origin))) => origin.clone(),
            Some((key, Source::File)) => self.file.as_ref().map_or(Origin::BuiltIn, |(path, text)| {
                let (line, column) = file::locate(text, path, &self.vars, key).unwrap_or((1, 1));
                Origin::File { path: path.clone(), line, column }
            }),
        }
    }

    /// Where every value came from, by key.
    #[must_use]
    pub fn origins(&self) -> BTreeMap<&'static str, Origin> {
        KEYS.iter().filter(|key| key.show.is_some()).map(|key| (key.path, self.origin(key.path))).collect()
    }

    /// The old system ran a script again, with less around it, also after a timeout: where the list of backends is still that of
    /// its key, and nobody says on what to fall back, so it stays.
    fn widen_old_fallback(&mut self, old: bool) {
        let still = self.set.get("fallback") == Some(&Source::File) && !self.config.fallback.is_empty();
        if old && still && !self.set.contains_key("fallback_on") {
            self.config.fallback_on = vec![Verdict::Unavailable, Verdict::Timeout, Verdict::Lost];
            self.set.insert("fallback_on", Source::As("fallback"));
            self.warnings.push(format!(
                "{}: `{FALLBACK_TO_DIRECT}: true` means `fallback: [ast-only]` and `fallback_on: [unavailable, timeout, lost]`: \
                 a script that may have run already is run again with less around it; write these two keys to choose otherwise",
                self.origin("fallback"),
            ));
        }
    }

    /// Refuses what is valid alone but not together.
    fn judge(&self) -> Result<(), Error> {
        match self.config.conflict(&self.origin("image").to_string()) {
            Some(reason) => Err(Error::Conflict { at: self.origin("fallback"), key: "fallback", reason }),
            None => Ok(()),
        }
    }
}

/// Reads a file, up to [`MAX_FILE`].
fn load(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::Read { path: path.to_path_buf(), source };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "it is over 1 MiB; is it a configuration?")));
    }
    Ok(text)
}

/// Sets a key from a text; gives back the key's own path.
fn apply(config: &mut Config, path: &str, text: &OsStr, at: &Origin) -> Result<&'static str, Error> {
    let Some(key) = find(path, false) else {
        let hint = match (at, file::near(path)) {
            (Origin::Env { .. }, Some(near)) => format!("did you mean `{}`?", variable_of(near)),
            _ => file::hint(path),
        };
        let key = if let Origin::Env { name } = at { name.clone() } else { path.to_owned() };
        return Err(Error::UnknownKey { at: at.clone(), key, hint });
    };
    let text = text.to_str().ok_or_else(|| "the value is not UTF-8".to_owned());
    text.and_then(|text| (key.read)(config, &Input { raw: Raw::Text(text.to_owned()), folder: None }))
        .map(|()| key.path)
        .map_err(|reason| Error::Value { at: at.clone(), key: key.path.to_owned(), reason, expected: key.expected })
}

/// Whether a variable is one that sets a key, or was meant to.
fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) && !NO_KEYS.contains(&name) && !name.starts_with("NSBOX_TEST_")
}

/// The variable that sets a key: `NSBOX_LIMITS_MEMORY` for `limits.memory`.
fn variable_of(path: &str) -> String {
    PREFIX.to_owned() + &path.replace('.', "_").to_ascii_uppercase()
}
