//! From bytes to the text that is parsed and later executed: encoding, NUL, size.
//!
//! CPython honours encoding cookies that make it run what a UTF-8 parser sees as a comment, so that anything but UTF-8
//! is refused here, and what runs later is the text handed out by the report, not the file.

use rustpython_text_size::{TextRange, TextSize};

use super::Rule;
use super::policy::Limits;

/// A finding before its place has been turned into lines and columns.
#[derive(Debug)]
pub(super) struct RawFinding {
    pub(super) rule: Rule,
    pub(super) range: TextRange,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl RawFinding {
    pub(super) fn new(rule: Rule, range: TextRange, message: impl Into<String>) -> Self {
        Self { rule, range, message: message.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The text of `source`, without its byte order mark, or why it is refused. On refusal, the text that positions refer
/// to comes along.
pub(super) fn decode(source: &[u8], limits: &Limits) -> Result<String, (String, RawFinding)> {
    if source.len() > limits.source_bytes {
        let message = format!("the source has {} bytes, more than the {} allowed", source.len(), limits.source_bytes);
        let finding = RawFinding::new(Rule::SourceSize, TextRange::default(), message)
            .hint("pass data as an input instead of writing it into the script");
        return Err((String::new(), finding));
    }
    let source = source.strip_prefix(b"\xef\xbb\xbf").unwrap_or(source);
    let text = match std::str::from_utf8(source) {
        Ok(text) => text.to_owned(),
        Err(error) => {
            let valid = String::from_utf8_lossy(&source[..error.valid_up_to()]).into_owned();
            let at = TextRange::empty(TextSize::of(valid.as_str()));
            return Err((valid, RawFinding::new(Rule::Encoding, at, "the source is not valid UTF-8")));
        }
    };
    if let Some(at) = text.find('\0') {
        let finding = RawFinding::new(Rule::NulByte, span(at, 1), "the source holds a NUL");
        return Err((text, finding));
    }
    if let Some((at, name)) = foreign_cookie(&text) {
        let message = format!("the source declares the encoding '{name}'");
        let finding = RawFinding::new(Rule::Encoding, span(at, name.len()), message)
            .hint("save the script as UTF-8 and remove the declaration");
        return Err((text, finding));
    }
    Ok(text)
}

/// The encoding declared in the first two lines (PEP 263), if it is not UTF-8: where, and its name.
///
/// Stricter than CPython, which looks at the second line only after a blank or comment line.
fn foreign_cookie(text: &str) -> Option<(usize, String)> {
    let mut start = 0;
    for _ in 0..2 {
        let rest = &text[start..];
        let end = rest.find(['\n', '\r']).unwrap_or(rest.len());
        if let Some((at, name)) = cookie(&rest[..end]) {
            let normal = name.to_ascii_lowercase().replace('_', "-");
            if normal != "utf-8" && normal != "utf8" && !normal.starts_with("utf-8-") {
                return Some((start + at, name.to_owned()));
            }
        }
        let newline = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
        start = (start + end + newline).min(text.len());
    }
    None
}

/// `^[ \t\f]*#.*?coding[:=][ \t]*([-_.a-zA-Z0-9]+)`
fn cookie(line: &str) -> Option<(usize, &str)> {
    let comment = line.trim_start_matches([' ', '\t', '\x0c']);
    if !comment.starts_with('#') {
        return None;
    }
    let offset = line.len() - comment.len();
    comment.match_indices("coding").find_map(|(at, word)| {
        let value = comment[at + word.len()..].strip_prefix([':', '='])?.trim_start_matches([' ', '\t']);
        let name =
            &value[..value.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).unwrap_or(value.len())];
        (!name.is_empty()).then_some((offset + comment.len() - value.len(), name))
    })
}

fn span(at: usize, len: usize) -> TextRange {
    let size = |n| TextSize::try_from(n).unwrap_or(TextSize::new(u32::MAX));
    TextRange::new(size(at), size(at + len))
}
