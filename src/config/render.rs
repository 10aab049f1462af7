//! The resolved configuration as a YAML file that loads again, and as JSON.

use std::fmt::Write as _;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use serde_json::{Map, Value as Json};

use super::expand::escape;
use super::key::KEYS;
use super::resolve::Resolved;

/// The name of a backend or a verdict, as it is written everywhere.
pub(super) fn word(word: &impl Serialize) -> String {
    match serde_json::to_value(word) {
        Ok(Json::String(word)) => word,
        _ => String::new(),
    }
}

impl Resolved {
    /// The configuration as YAML that loads again, each value with a comment on where it came from.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        let mut section = "";
        for (path, value) in self.values() {
            let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
            if parent != section {
                section = parent;
                if !parent.is_empty() {
                    out += &format!("{parent}:\n");
                }
            }
            let indent = if parent.is_empty() { "" } else { "  " };
            let origin = self.origin(path).to_string();
            // A path may hold anything; a comment ends with its line.
            let origin: String = origin.escape_debug().collect();
            // Writing into a string cannot fail.
            _ = writeln!(out, "{indent}{name}: {}  # {origin}", yaml(&value));
        }
        out
    }

    /// Every key with its value, as both are written in a file.
    fn values(&self) -> impl Iterator<Item = (&'static str, Json)> {
        KEYS.iter().filter_map(|key| key.show.map(|show| (key.path, show(&self.config))))
    }
}

/// `{"config": {..}, "origins": {..}, "warnings": [..]}`; `config` holds what a file would, so it loads again as one.
impl Serialize for Resolved {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tree = Map::new();
        for (path, value) in self.values() {
            let (section, name) = match path.rsplit_once('.') {
                None => (&mut tree, path),
                Some((section, name)) => match tree.entry(section).or_insert_with(|| Json::Object(Map::new())) {
                    Json::Object(section) => (section, name),
                    _ => continue,
                },
            };
            section.insert(name.to_owned(), escaped(value));
        }
        let mut all = serializer.serialize_struct("Resolved", 3)?;
        all.serialize_field("config", &tree)?;
        all.serialize_field("origins", &self.origins())?;
        all.serialize_field("warnings", &self.warnings)?;
        all.end()
    }
}

/// A value whose texts load as they are, with nothing put in.
fn escaped(value: Json) -> Json {
    match value {
        Json::String(text) => Json::String(escape(&text)),
        Json::Array(items) => items.into_iter().map(escaped).collect(),
        Json::Object(pairs) => pairs.into_iter().map(|(name, value)| (name, escaped(value))).collect(),
        other => other,
    }
}

/// A value on one line of YAML.
fn yaml(value: &Json) -> String {
    match value {
        Json::Null => "none".to_owned(),
        Json::Bool(_) | Json::Number(_) => value.to_string(),
        Json::String(text) => scalar(&escape(text)),
        Json::Array(items) => format!("[{}]", items.iter().map(yaml).collect::<Vec<_>>().join(", ")),
        Json::Object(pairs) => {
            let pair = |(name, value): (&String, &Json)| format!("{}: {}", scalar(name), yaml(value));
            format!("{{{}}}", pairs.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
    }
}

/// A text: bare where YAML can take it for nothing else, quoted and in ASCII otherwise.
fn scalar(text: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_' | '-');
    // A parser that holds it for text is the judge of what may stand bare: not `true`, `0.5`, `1e3`, `.nan`, `null`.
    let stays = || matches!(serde_yaml::from_str(text), Ok(serde_yaml::Value::String(same)) if same == text);
    if text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/') && text.chars().all(bare) && stays() {
        return text.to_owned();
    }
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => _ = write!(out, "\\U{:08X}", u32::from(c)),
        }
    }
    out.push('"');
    out
}
