//! The check: reads a strategy's source in Rust, runs none of it, and reports every breach of the policy.
//!
//! Second stage of a run: fast feedback to the loop that writes strategies, and defence in depth. It promises no
//! containment; the sandbox does. What passes is handed out as text ([`Report::into_source`]), and that text is what the
//! guest executes, so that nothing can come between the check and the run.
//!
//! `source` decodes and bounds, the parser parses, `syntax` refuses what CPython would not compile, `scope` knows what
//! names stand for, `visit` applies the rules.

mod depth;
mod policy;
mod render;
mod rule;
mod scope;
mod source;
mod syntax;
mod visit;

use std::panic::{AssertUnwindSafe, catch_unwind};

use rustpython_parser::{ParseOptions, Parsed, parse_unchecked};
use rustpython_text_size::{TextRange, TextSize};
use serde::Serialize;

pub use policy::{Error, Policy};
pub use render::{render_json, render_sarif, render_text};
pub use rule::Rule;

use source::RawFinding;

/// Trees up to this bound of depth are handled on the caller's stack: a debug build takes less than 768 KiB for them, of the
/// 2 MiB that Rust gives a thread.
const SHALLOW: usize = 128;

/// Stack for deeper trees, by level of depth: more than twice the 6 KiB that a debug build takes.
const STACK_PER_LEVEL: usize = 16 << 10;

/// What the check says of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The name of the source, as given.
    pub filename: String,
    /// Every breach, in the order of the source; empty for a clean source.
    pub findings: Vec<Finding>,
    /// Whether there were more findings than the policy's `limits.findings`.
    pub truncated: bool,
    #[serde(skip)]
    source: Option<String>,
}

impl Report {
    /// Whether the source may run.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// The validated text, without a byte order mark; `None` unless the source is clean.
    #[must_use]
    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// The validated text, the very one to execute; `None` unless the source is clean.
    #[must_use]
    pub fn into_source(self) -> Option<String> {
        self.source
    }
}

/// One breach of the policy. Lines and columns count from 1, columns in characters; the end is exclusive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule, serialised as its code.
    pub rule: Rule,
    /// Line of the first character.
    pub line: usize,
    /// Column of the first character.
    pub column: usize,
    /// Line of the end.
    pub end_line: usize,
    /// Column just past the last character.
    pub end_column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do instead.
    pub hint: Option<String>,
}

/// Checks `source` against `policy`. `filename` is for the report alone.
///
/// Runs none of the source and never panics: a failure of the parser is a finding. Size, tokens and depth are bounded before
/// anything is parsed. A source that nests deeper than usual is handled on a thread of its own, with the stack that it needs.
#[must_use]
pub fn check(source: &[u8], filename: &str, policy: &Policy) -> Report {
    match source::decode(source, &policy.limits) {
        Ok(text) => {
            let findings = findings(&text, policy);
            report(text, filename, findings, policy)
        }
        Err((text, finding)) => report(text, filename, vec![finding], policy),
    }
}

fn findings(text: &str, policy: &Policy) -> Vec<RawFinding> {
    let limits = &policy.limits;
    if text.len() < limits.tokens && depth::shallow(text, SHALLOW.min(limits.nesting)) {
        return guarded(text, policy);
    }
    let shape = depth::measure(text, limits);
    if shape.depth > limits.nesting {
        let message = format!("the source nests deeper than {} levels", limits.nesting);
        return vec![
            RawFinding::new(Rule::Nesting, TextRange::default(), message)
                .hint("split the expression into several statements, or use a loop"),
        ];
    }
    if shape.tokens > limits.tokens {
        let message = format!("the source has more than {} tokens", limits.tokens);
        return vec![
            RawFinding::new(Rule::Complexity, TextRange::default(), message)
                .hint("pass data as an input instead of writing it into the script"),
        ];
    }
    if shape.depth <= SHALLOW {
        return guarded(text, policy);
    }
    // The tree must be parsed, walked and dropped on this stack.
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(STACK_PER_LEVEL * shape.depth.max(SHALLOW))
            .spawn_scoped(scope, || guarded(text, policy))
            .map_err(|error| format!("no thread for a deep source: {error}"))
            .and_then(|thread| thread.join().map_err(|_| "the parser failed".to_owned()))
            .unwrap_or_else(|message| vec![RawFinding::new(Rule::Parser, TextRange::default(), message)])
    })
}

/// Parses and applies the rules; a panic of the parser is a finding.
fn guarded(text: &str, policy: &Policy) -> Vec<RawFinding> {
    catch_unwind(AssertUnwindSafe(|| inspect(text, policy))).unwrap_or_else(|_| {
        vec![RawFinding::new(Rule::Parser, TextRange::default(), "the parser failed on the source")]
    })
}

fn inspect(text: &str, policy: &Policy) -> Vec<RawFinding> {
    let parsed = parse_unchecked(text, ParseOptions::from(rustpython_parser::Mode::Module));
    let Some(parsed) = Parsed::try_into_module(parsed) else {
        return vec![RawFinding::new(Rule::Parser, TextRange::default(), "the source is not a module")];
    };
    let errors = syntax::errors(text, &parsed);
    if !errors.is_empty() {
        return errors;
    }
    visit::findings(parsed.suite(), policy)
}

/// Gives findings their lines and columns, in the order of the source, each once.
fn report(text: String, filename: &str, mut raw: Vec<RawFinding>, policy: &Policy) -> Report {
    raw.sort_by_key(|finding| (finding.range.start(), finding.range.end(), finding.rule));
    raw.dedup_by(|a, b| a.rule == b.rule && a.range == b.range);
    let truncated = raw.len() > policy.limits.findings;
    raw.truncate(policy.limits.findings.max(1));
    let mut place = Place { text: &text, line: 1, line_start: 0, at: 0 };
    let findings: Vec<Finding> = raw
        .into_iter()
        .map(|finding| {
            let (line, column) = place.of(finding.range.start());
            let (end_line, end_column) = place.clone().of(finding.range.end());
            let RawFinding { rule, message, hint, .. } = finding;
            Finding { rule, line, column, end_line, end_column, message, hint }
        })
        .collect();
    let source = findings.is_empty().then_some(text);
    Report { filename: filename.to_owned(), findings, truncated, source }
}

/// Turns offsets, in rising order, into lines and columns.
#[derive(Clone)]
struct Place<'a> {
    text: &'a str,
    line: usize,
    line_start: usize,
    at: usize,
}

impl Place<'_> {
    fn of(&mut self, offset: TextSize) -> (usize, usize) {
        let offset = offset.to_usize().min(self.text.len());
        let bytes = self.text.as_bytes();
        for at in self.at..offset {
            // A carriage return alone ends a line too, as in CPython.
            if bytes[at] == b'\n' || (bytes[at] == b'\r' && bytes.get(at + 1) != Some(&b'\n')) {
                self.line += 1;
                self.line_start = at + 1;
            }
        }
        self.at = self.at.max(offset);
        let column = self.text.get(self.line_start..offset).map_or(0, |line| line.chars().count());
        (self.line, column + 1)
    }
}
