//! `${NAME:default}` in the scalars of a configuration file.
//!
//! A name that is set, even to nothing, replaces the whole of it; one that is not leaves the default, which may hold further
//! `${..}`. `$${` is a literal `${`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// Defaults within defaults go no deeper: the text is read by recursion.
const MAX_DEPTH: u8 = 16;

/// Why a scalar could not be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpandError {
    /// A variable that is not set and has no default.
    #[error("the variable `{name}` is not set and has no default; set it, or write `${{{name}:default}}`")]
    Unset {
        /// The variable.
        name: String,
    },
    /// A variable whose value is not text.
    #[error("the variable `{name}` is not UTF-8")]
    NotText {
        /// The variable.
        name: String,
    },
    /// `${` with no `}` of its own.
    #[error("`${{` is never closed; write `${{NAME:default}}`, or `$${{` for a literal `${{`")]
    Open,
    /// `${..}` around something that is no variable name.
    #[error("`{name}` is no variable name; write `${{NAME:default}}`, or `$${{` for a literal `${{`")]
    Name {
        /// What stands where the name should.
        name: String,
    },
    /// Defaults within defaults, too many levels of them.
    #[error("defaults are nested over {MAX_DEPTH} levels deep")]
    Depth,
}

/// Expands every `${..}` of `text`; `None` when there is none.
pub(super) fn expand(text: &str, vars: &BTreeMap<OsString, OsString>) -> Result<Option<String>, ExpandError> {
    if text.contains("${") { expand_at(text, vars, 0).map(Some) } else { Ok(None) }
}

/// Writes a text so that [`expand`] gives it back.
pub(super) fn escape(text: &str) -> String {
    text.replace("${", "$${")
}

fn expand_at(text: &str, vars: &BTreeMap<OsString, OsString>, depth: u8) -> Result<String, ExpandError> {
    if depth > MAX_DEPTH {
        return Err(ExpandError::Depth);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let body = &rest[at + 2..];
        let end = closing(body).ok_or(ExpandError::Open)?;
        let (name, default) = match body[..end].split_once(':') {
            Some((name, default)) => (name, Some(default)),
            None => (&body[..end], None),
        };
        if !is_name(name) {
            return Err(ExpandError::Name { name: name.to_owned() });
        }
        match (vars.get(OsStr::new(name)), default) {
            // A value is taken as it is: what the environment holds is never expanded again.
            (Some(value), _) => {
                out.push_str(value.to_str().ok_or_else(|| ExpandError::NotText { name: name.to_owned() })?);
            }
            (None, Some(default)) => out.push_str(&expand_at(default, vars, depth + 1)?),
            (None, None) => return Err(ExpandError::Unset { name: name.to_owned() }),
        }
        rest = &body[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the `}` stands that closes what `body` is the inside of.
fn closing(body: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut previous = '\0';
    for (at, c) in body.char_indices() {
        match c {
            '{' if previous == '$' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
        previous = c;
    }
    None
}

/// Whether `name` can be the name of an environment variable.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vars() -> BTreeMap<OsString, OsString> {
        [("A", "1"), ("EMPTY", ""), ("LOOP", "${LOOP}")].into_iter().map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn expand_puts_in_values_and_defaults() {
        for (text, expected) in [
            ("${A}", "1"),
            ("${A:2}", "1"),
            ("${B:2}", "2"),
            ("${B:}", ""),
            ("${EMPTY:2}", ""),
            ("x-${A}-${B:y}-z", "x-1-y-z"),
            ("${B:repo:tag}", "repo:tag"),
            ("${B:${C:${A}}}", "1"),
            ("$${A}", "${A}"),
            ("$$${A}", "$${A}"),
            ("${LOOP}", "${LOOP}"),
            ("${B:$x}", "$x"),
        ] {
            assert_eq!(expand(text, &vars()), Ok(Some(expected.to_owned())), "{text}");
        }
        assert_eq!(expand("$A $ {} plain", &vars()), Ok(None));
    }

    #[test]
    fn expand_refuses_unset_open_and_nameless() {
        for (text, error) in [
            ("${B}", ExpandError::Unset { name: "B".into() }),
            ("${B:${C}}", ExpandError::Unset { name: "C".into() }),
            ("${A", ExpandError::Open),
            ("${B:${A}", ExpandError::Open),
            ("${}", ExpandError::Name { name: String::new() }),
            ("${1A}", ExpandError::Name { name: "1A".into() }),
            ("${A-2}", ExpandError::Name { name: "A-2".into() }),
        ] {
            assert_eq!(expand(text, &vars()), Err(error), "{text}");
        }
    }

    #[test]
    fn expand_stops_at_deep_nesting() {
        let deep = format!("{}x{}", "${B:".repeat(100_000), "}".repeat(100_000));
        assert_eq!(expand(&deep, &vars()), Err(ExpandError::Depth));
    }

    proptest! {
        #[test]
        fn expand_gives_back_what_was_escaped(text in r"[$ {}A-C:x]{0,24}|\PC*") {
            let escaped = escape(&text);
            let back = expand(&escaped, &vars());
            prop_assert_eq!(back.map(|b| b.unwrap_or(escaped)), Ok(text));
        }
    }
}
