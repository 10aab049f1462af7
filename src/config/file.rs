//! Reads one configuration file into a [`Config`], key by key, with the place of everything that is wrong.
//!
//! `serde_yaml` knows where it stands only while it reads, and tells it only in errors. So every key and value is judged as it
//! is read: what is wrong is put aside as a [`Problem`], and the error that stops the reading brings its line and column.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::Config;
use super::error::Error;
use super::expand::{ExpandError, expand};
use super::key::{Input, KEYS, Key, Raw, Refusal, SECTIONS, find, nearest};
use super::resolve::Origin;

/// A configuration file under reading.
pub(super) struct File<'a> {
    path: &'a Path,
    vars: &'a BTreeMap<OsString, OsString>,
    config: &'a mut Config,
    /// What was set, by the key that it sets: the key's path as the file wrote it.
    set: BTreeMap<&'static str, String>,
    /// The key whose place is wanted; reading stops there.
    wanted: Option<&'static str>,
    /// What stopped the reading, until its place is known.
    problem: Option<Problem>,
}

enum Problem {
    Found,
    Shape(String),
    Unknown { key: String, hint: String },
    Duplicate { key: String, first: String },
    Value { key: String, reason: Refusal, expected: &'static str },
    Expand { key: String, source: ExpandError },
}

/// Reads `text` into `config`; what it set, by the key set and as the file wrote it.
pub(super) fn read(
    text: &str,
    path: &Path,
    vars: &BTreeMap<OsString, OsString>,
    config: &mut Config,
) -> Result<BTreeMap<&'static str, String>, Error> {
    let mut file = File { path, vars, config, set: BTreeMap::new(), wanted: None, problem: None };
    match file.run(text) {
        Ok(()) => Ok(file.set),
        Err((at, message)) => Err(file.error(at, message)),
    }
}

/// The line and column of the value that a file, which [`read`] has accepted, gives to `key`.
pub(super) fn locate(
    text: &str,
    path: &Path,
    vars: &BTreeMap<OsString, OsString>,
    key: &'static str,
) -> Option<(usize, usize)> {
    let mut unused = Config::default();
    let mut file = File { path, vars, config: &mut unused, set: BTreeMap::new(), wanted: Some(key), problem: None };
    let stopped = file.run(text).err();
    stopped.filter(|_| matches!(file.problem, Some(Problem::Found))).map(|(at, _)| at)
}

impl File<'_> {
    fn run(&mut self, text: &str) -> Result<(), ((usize, usize), String)> {
        // A file of comments holds no document at all, which to serde_yaml is an error; it sets nothing.
        let text = if text.trim_start_matches('\u{feff}').lines().all(is_blank) { "{}" } else { text };
        let section = Section { file: self, written: String::new(), prefix: "" };
        section.deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|error| {
            let at = error.location().map_or((1, 1), |at| (at.line(), at.column()));
            let message = error.to_string();
            let place = format!(" at line {} column {}", at.0, at.1);
            (at, message.strip_suffix(&place).unwrap_or(&message).to_owned())
        })
    }

    fn error(self, (line, column): (usize, usize), message: String) -> Error {
        let at = Origin::File { path: self.path.to_path_buf(), line, column };
        match self.problem {
            Some(Problem::Unknown { key, hint }) => Error::UnknownKey { at, key, hint },
            Some(Problem::Duplicate { key, first }) => Error::DuplicateKey { at, key, first },
            Some(Problem::Value { key, reason, expected }) => Error::Value { at, key, reason, expected },
            Some(Problem::Expand { key, source }) => Error::Expand { at, key, source },
            Some(Problem::Shape(message)) => Error::Syntax { at, message },
            Some(Problem::Found) | None => Error::Syntax { at, message },
        }
    }

    fn stop<E: de::Error>(&mut self, problem: Problem) -> E {
        self.problem.get_or_insert(problem);
        E::custom("refused")
    }
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

/// A mapping of keys: the file itself, `sandbox`, or one of [`SECTIONS`].
struct Section<'f, 'a> {
    file: &'f mut File<'a>,
    /// The path up to here as the file writes it, with a dot at its end.
    written: String,
    /// The path up to here without the old system's `sandbox.`.
    prefix: &'static str,
}

/// What a key turns out to be.
enum Entry {
    /// A mapping of further keys, with its prefix.
    Section(&'static str),
    Key(&'static Key),
}

impl<'de> DeserializeSeed<'de> for Section<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Section<'_, '_> {
    fn refuse<E: de::Error>(self, found: &str) -> E {
        let place = self.written.trim_end_matches('.');
        let place = if place.is_empty() { "the file".to_owned() } else { format!("`{place}`") };
        self.file.stop(Problem::Shape(format!("found {found}; expected {place} to hold keys, such as `image: host`")))
    }
}

impl<'de> Visitor<'de> for Section<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("keys with values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = Vec::new();
        while let Some((written, entry)) =
            map.next_key_seed(Name { file: self.file, written: &self.written, prefix: self.prefix, seen: &mut seen })?
        {
            match entry {
                Entry::Section(prefix) => {
                    map.next_value_seed(Section { file: self.file, written: written + ".", prefix })?;
                }
                Entry::Key(key) => map.next_value_seed(Setting { file: self.file, written, key })?,
            }
        }
        Ok(())
    }

    // A section whose keys are all commented out.
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<(), E> {
        Err(self.refuse(&format!("`{on}`")))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<(), E> {
        Err(self.refuse(&format!("`{number}`")))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<(), E> {
        Err(self.refuse(&format!("`{number}`")))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<(), E> {
        Err(self.refuse(&format!("`{number}`")))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        Err(self.refuse(&format!("the text `{}`", text.escape_debug())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(self.refuse("a list"))
    }
}

/// A key of a section, before it is known which.
struct Name<'f, 'a> {
    file: &'f mut File<'a>,
    written: &'f str,
    prefix: &'static str,
    seen: &'f mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Name<'_, '_> {
    type Value = (String, Entry);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        // Not `deserialize_any`, which would take `on`, `1` and the like for something other than a name.
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name<'_, '_> {
    type Value = (String, Entry);

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the name of a key")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        let written = format!("{}{name}", self.written);
        if self.seen.iter().any(|seen| seen == name) {
            return Err(self.file.stop(Problem::Duplicate { key: written.clone(), first: written }));
        }
        self.seen.push(name.to_owned());
        if self.written.is_empty() && name == "sandbox" {
            return Ok((written, Entry::Section("")));
        }
        let path = format!("{}{name}", self.prefix);
        if let Some(prefix) = SECTIONS.iter().find(|section| section.trim_end_matches('.') == path) {
            return Ok((written, Entry::Section(prefix)));
        }
        let Some(key) = find(&path, true) else {
            let hint = hint(&path);
            return Err(self.file.stop(Problem::Unknown { key: written, hint }));
        };
        if self.file.wanted == Some(key.sets) {
            return Err(self.file.stop(Problem::Found));
        }
        if let Some(first) = self.file.set.insert(key.sets, written.clone()) {
            return Err(self.file.stop(Problem::Duplicate { key: written, first }));
        }
        Ok((written, Entry::Key(key)))
    }
}

/// What to write instead of a key that does not exist.
pub(super) fn hint(path: &str) -> String {
    match near(path) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`nsbox config show` lists every key".to_owned(),
    }
}

/// The key that was meant: the one most like it, or the one of that name in another section.
pub(super) fn near(path: &str) -> Option<&'static str> {
    let name = path.rsplit('.').next().unwrap_or(path);
    let sections = || SECTIONS.iter().map(|section| section.trim_end_matches('.'));
    let paths = || KEYS.iter().map(|key| key.path).chain(sections());
    let named = || paths().map(|path| path.rsplit('.').next().unwrap_or(path));
    let same = |near: &str| paths().find(|path| path.rsplit('.').next() == Some(near));
    nearest(path, paths()).or_else(|| nearest(name, named()).and_then(same))
}

/// A key's value.
struct Setting<'f, 'a> {
    file: &'f mut File<'a>,
    written: String,
    key: &'static Key,
}

impl Setting<'_, '_> {
    fn take<E: de::Error>(self, raw: Raw) -> Result<(), E> {
        let Self { file, written: key, key: to } = self;
        let raw = match expand_in(raw, file.vars) {
            Ok(raw) => raw,
            Err(source) => return Err(file.stop(Problem::Expand { key, source })),
        };
        // The file `nsbox.yaml` has the parent "", which is where paths count from anyway.
        let input = Input { raw, folder: file.path.parent() };
        (to.read)(file.config, &input)
            .map_err(|reason| file.stop(Problem::Value { key, reason, expected: to.expected }))
    }
}

fn expand_in(raw: Raw, vars: &BTreeMap<OsString, OsString>) -> Result<Raw, ExpandError> {
    Ok(match raw {
        // What was put in has no type of its own: the key gives it one.
        Raw::Str(text) => expand(&text, vars)?.map_or(Raw::Str(text), Raw::Text),
        Raw::List(items) => Raw::List(items.into_iter().map(|item| expand_in(item, vars)).collect::<Result<_, _>>()?),
        Raw::Map(pairs) => {
            Raw::Map(pairs.into_iter().map(|(name, raw)| Ok((name, expand_in(raw, vars)?))).collect::<Result<_, _>>()?)
        }
        other => other,
    })
}

impl<'de> DeserializeSeed<'de> for Setting<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Values come as they are, wherever they stand; `$take` says what becomes of one.
macro_rules! visit_raw {
    ($value:ty, $take:expr) => {
        type Value = $value;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a value without a YAML tag")
        }

        fn visit_unit<E: de::Error>(self) -> Result<$value, E> {
            $take(self, Raw::Null)
        }

        fn visit_bool<E: de::Error>(self, on: bool) -> Result<$value, E> {
            $take(self, Raw::Bool(on))
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<$value, E> {
            $take(self, Raw::Int(number.into()))
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<$value, E> {
            $take(self, Raw::Int(number.into()))
        }

        fn visit_i128<E: de::Error>(self, number: i128) -> Result<$value, E> {
            $take(self, Raw::Int(number))
        }

        fn visit_u128<E: de::Error>(self, number: u128) -> Result<$value, E> {
            // Above every range, as it was.
            $take(self, Raw::Int(i128::try_from(number).unwrap_or(i128::MAX)))
        }

        fn visit_f64<E: de::Error>(self, number: f64) -> Result<$value, E> {
            $take(self, Raw::Float(number))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<$value, E> {
            $take(self, Raw::Str(text.to_owned()))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<$value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element_seed(Item)? {
                items.push(item);
            }
            $take(self, Raw::List(items))
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(name) = map.next_key::<String>()? {
                pairs.push((name, map.next_value_seed(Item)?));
            }
            $take(self, Raw::Map(pairs))
        }
    };
}

impl<'de> Visitor<'de> for Setting<'_, '_> {
    visit_raw!((), Setting::take);
}

/// A value within a value.
struct Item;

impl<'de> DeserializeSeed<'de> for Item {
    type Value = Raw;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Item {
    visit_raw!(Raw, |_, raw| Ok(raw));
}
