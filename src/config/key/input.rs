//! A value as it was given, and the ways in which a key may read it.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::names;
use crate::config::expand::is_name;
use crate::config::unit::{parse_count, parse_duration, parse_size};

/// Why a key does not take a value; read as "`limits.memory`: {refusal}; expected ...".
pub(in crate::config) type Refusal = String;

/// A year: longer than any run, and far from where clocks overflow.
const LONGEST: Duration = Duration::from_secs(8760 * 3600);

/// A value before its key has read it.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::config) enum Raw {
    /// Nothing.
    Null,
    /// A boolean of YAML.
    Bool(bool),
    /// A whole number of YAML.
    Int(i128),
    /// Another number of YAML.
    Float(f64),
    /// A string of YAML.
    Str(String),
    /// Text without a type: a flag, a variable, or a scalar after `${..}` was put in.
    Text(String),
    /// A list of YAML.
    List(Vec<Raw>),
    /// A mapping of YAML, in its order.
    Map(Vec<(String, Raw)>),
}

/// A value, and what it takes to read it.
pub(in crate::config) struct Input<'a> {
    /// The value.
    pub raw: Raw,
    /// The folder that relative paths count from: that of the file, else none (the current one).
    pub folder: Option<&'a Path>,
}

impl Input<'_> {
    /// `true` or `false`.
    pub fn flag(&self) -> Result<bool, Refusal> {
        match &self.raw {
            Raw::Bool(on) => Ok(*on),
            Raw::Text(text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Raw::Text(text) if text.eq_ignore_ascii_case("false") => Ok(false),
            _ => Err(self.found()),
        }
    }

    /// Any text; the kernel's texts hold no NUL.
    pub fn text(&self) -> Result<String, Refusal> {
        match &self.raw {
            Raw::Str(text) | Raw::Text(text) if text.contains('\0') => Err("the text holds a NUL".to_owned()),
            Raw::Str(text) | Raw::Text(text) => Ok(text.clone()),
            Raw::Bool(_) | Raw::Int(_) | Raw::Float(_) => Err(format!("{}, not a text (quote it)", self.found())),
            _ => Err(self.found()),
        }
    }

    /// A text that is not empty.
    pub fn string(&self) -> Result<String, Refusal> {
        match self.text()? {
            text if text.is_empty() => Err("the text is empty".to_owned()),
            text => Ok(text),
        }
    }

    /// A path; a relative one in a file counts from the file's folder.
    pub fn path(&self) -> Result<PathBuf, Refusal> {
        let path = PathBuf::from(self.string()?);
        Ok(self.folder.map_or_else(|| path.clone(), |folder| folder.join(&path)))
    }

    /// A name as it is, or a path (anything with a `/`).
    pub fn name_or_path(&self) -> Result<String, Refusal> {
        match self.string()? {
            name if !name.contains('/') => Ok(name),
            _ => self.path()?.into_os_string().into_string().map_err(|path| not_utf8(&path)),
        }
    }

    /// Nothing (`null`, `none`), or what `read` reads.
    pub fn or_none<T>(&self, read: impl Fn(&Self) -> Result<T, Refusal>) -> Result<Option<T>, Refusal> {
        match &self.raw {
            Raw::Null => Ok(None),
            Raw::Str(text) | Raw::Text(text) if text == "none" => Ok(None),
            _ => read(self).map(Some),
        }
    }

    /// A number with a range.
    pub fn number(&self, range: RangeInclusive<f64>) -> Result<f64, Refusal> {
        let number = match &self.raw {
            Raw::Float(number) => *number,
            // Far below where a double stops to hold whole numbers, or out of every range anyway.
            Raw::Int(number) => *number as f64,
            Raw::Text(text) => text.parse().map_err(|_| self.found())?,
            _ => return Err(self.found()),
        };
        // A NaN lies in no range.
        if range.contains(&number) { Ok(number) } else { Err(self.out_of_range()) }
    }

    /// A whole number with a range.
    pub fn integer(&self, range: RangeInclusive<u64>) -> Result<u64, Refusal> {
        let number = match &self.raw {
            Raw::Int(number) => *number,
            Raw::Text(text) => text.parse().map_err(|_| self.found())?,
            _ => return Err(self.found()),
        };
        u64::try_from(number).ok().filter(|number| range.contains(number)).ok_or_else(|| self.out_of_range())
    }

    /// A count with a range: `64`, `16k`.
    pub fn count<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Result<T, Refusal> {
        let count = match &self.raw {
            Raw::Int(_) => self.integer(0..=u64::MAX)?,
            Raw::Str(text) | Raw::Text(text) => parse_count(text).map_err(|e| e.to_string())?,
            _ => return Err(self.found()),
        };
        let held = T::try_from(count).ok().filter(|_| range.contains(&count));
        held.ok_or_else(|| self.out_of_range())
    }

    /// A size in bytes with a range: `512m`.
    pub fn size(&self, range: RangeInclusive<u64>) -> Result<u64, Refusal> {
        let size = parse_size(&self.with_unit()?).map_err(|e| e.to_string())?;
        if range.contains(&size) { Ok(size) } else { Err(self.out_of_range()) }
    }

    /// A duration: `300s`.
    pub fn time(&self) -> Result<Duration, Refusal> {
        let time = parse_duration(&self.with_unit()?).map_err(|e| e.to_string())?;
        if time > Duration::ZERO && time <= LONGEST { Ok(time) } else { Err(self.out_of_range()) }
    }

    /// The old system's bare seconds, to the nearest millisecond.
    pub fn seconds(&self) -> Result<Duration, Refusal> {
        let millis = (self.number(0.001..=LONGEST.as_secs_f64())? * 1000.0).round();
        Ok(Duration::from_secs_f64(millis / 1000.0))
    }

    /// One of some words.
    pub fn choice<T: Copy + Serialize>(&self, choices: &[T]) -> Result<T, Refusal> {
        let text = self.text()?;
        let names = names(choices);
        if let Some(at) = names.iter().position(|name| *name == text) {
            return Ok(choices[at]);
        }
        let near = nearest(&text, names.iter().map(String::as_str));
        Err(match near {
            Some(near) => format!("`{}` is none of its words, did you mean `{near}`?", text.escape_debug()),
            None => format!("`{}` is none of its words", text.escape_debug()),
        })
    }

    /// A list of some words, none of them twice: a list in a file, separated by commas elsewhere.
    pub fn choices<T: Copy + PartialEq + Serialize>(&self, choices: &[T]) -> Result<Vec<T>, Refusal> {
        let mut chosen = Vec::new();
        for item in self.items()? {
            let choice = item.choice(choices)?;
            if chosen.contains(&choice) {
                return Err(format!("`{}` is there twice", item.text()?));
            }
            chosen.push(choice);
        }
        Ok(chosen)
    }

    /// A list of Python modules. They end up in an `import`, so nothing but dotted names passes.
    pub fn modules(&self) -> Result<Vec<String>, Refusal> {
        let module = |item: Input| {
            let name = item.text()?;
            let parts = name.split('.').all(is_name);
            if parts { Ok(name) } else { Err(format!("`{}` is no name of a Python module", name.escape_debug())) }
        };
        self.items()?.into_iter().map(module).collect()
    }

    /// Variables: a mapping in a file, one `NAME=value` elsewhere.
    pub fn variables(&self) -> Result<Vec<(String, String)>, Refusal> {
        let pairs = match &self.raw {
            Raw::Map(pairs) => pairs.clone(),
            Raw::Text(text) => match text.split_once('=') {
                Some((name, value)) => vec![(name.to_owned(), Raw::Text(value.to_owned()))],
                None => return Err(self.found()),
            },
            _ => return Err(self.found()),
        };
        let mut variables: Vec<(String, String)> = Vec::new();
        for (name, raw) in pairs {
            if !is_name(&name) {
                return Err(format!("`{}` is no name of a variable", name.escape_debug()));
            }
            if variables.iter().any(|(other, _)| *other == name) {
                return Err(format!("`{name}` is there twice"));
            }
            let value = Input { raw, folder: self.folder }.text().map_err(|refusal| format!("{name}: {refusal}"))?;
            variables.push((name, value));
        }
        Ok(variables)
    }

    fn items(&self) -> Result<Vec<Input<'_>>, Refusal> {
        let raws = match &self.raw {
            Raw::List(items) => items.clone(),
            Raw::Text(text) if text.trim().is_empty() => Vec::new(),
            Raw::Text(text) => text.split(',').map(|item| Raw::Text(item.trim().to_owned())).collect(),
            _ => return Err(self.found()),
        };
        Ok(raws.into_iter().map(|raw| Input { raw, folder: self.folder }).collect())
    }

    /// The text of something with a unit; a bare number is handed on, so that its refusal speaks of the unit.
    fn with_unit(&self) -> Result<String, Refusal> {
        match &self.raw {
            Raw::Int(number) => Ok(number.to_string()),
            Raw::Str(text) | Raw::Text(text) => Ok(text.clone()),
            _ => Err(self.found()),
        }
    }

    fn out_of_range(&self) -> Refusal {
        format!("{} is out of range", self.words())
    }

    fn found(&self) -> Refusal {
        format!("found {}", self.words())
    }

    fn words(&self) -> String {
        match &self.raw {
            Raw::Null => "nothing".to_owned(),
            Raw::Bool(on) => format!("the boolean `{on}`"),
            Raw::Int(number) => format!("the number `{number}`"),
            Raw::Float(number) => format!("the number `{number}`"),
            Raw::Str(text) | Raw::Text(text) => format!("the text `{}`", text.escape_debug()),
            Raw::List(_) => "a list".to_owned(),
            Raw::Map(_) => "a mapping".to_owned(),
        }
    }
}

fn not_utf8(path: &OsString) -> Refusal {
    format!("the path `{}` is not UTF-8", path.as_bytes().escape_ascii())
}

/// The word nearest to `text`, if one is near enough to have been meant.
pub(in crate::config) fn nearest<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let reach = (text.chars().count() / 3).max(1);
    let distance = |word: &&str| strsim::damerau_levenshtein(text, word);
    words.map(|word| (distance(&word), word)).filter(|(d, _)| *d <= reach).min_by_key(|(d, _)| *d).map(|(_, w)| w)
}
