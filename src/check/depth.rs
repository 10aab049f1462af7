//! How deep a tree the parser could make of a source, known before anything recursive sees it.
//!
//! The parser, the visitors and the tree's own drop recurse, and a stack overflow aborts the process. [`measure`] bounds the
//! depth of any source by its tokens; [`shallow`] does so for most sources at a tenth of the cost, and passes on the rest.

use rustpython_ast::token::TokenKind;
use rustpython_parser::{Mode, lexer};

use super::policy::Limits;

/// How large a tree the parser could make of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// An upper bound of the tree's depth.
    pub(super) depth: usize,
    /// Tokens.
    pub(super) tokens: usize,
}

/// Bounds the tree of any source.
///
/// The bound is simple, so that it holds for broken source too: a tree cannot be deeper than the tokens of the statement
/// at hand, less those of siblings that a comma, a semicolon, a new line or a closed bracket has finished.
pub(super) fn measure(text: &str, limits: &Limits) -> Shape {
    let mut lexer = lexer::lex(text, Mode::Module);
    let mut shape = Shape { depth: 0, tokens: 0 };
    // All brackets around the innermost, and the tokens of them.
    let mut around: Vec<Bracket> = Vec::with_capacity(16);
    let mut outer = 0;
    let mut bracket = Bracket::default();
    let mut blocks = 0;
    let mut last = TokenKind::EndOfFile;
    loop {
        let kind = lexer.next_token();
        shape.tokens += 1;
        if matches!(kind, TokenKind::NonLogicalNewline | TokenKind::Comment) {
            continue;
        }
        bracket.tokens += 1;
        match kind {
            TokenKind::Name | TokenKind::Dot | TokenKind::Equal => {}
            TokenKind::EndOfFile => break,
            TokenKind::Indent => blocks += 1,
            TokenKind::Dedent => blocks = usize::saturating_sub(blocks, 1),
            TokenKind::Newline | TokenKind::Semi if around.is_empty() => bracket = Bracket::default(),
            // Strings written side by side are one.
            TokenKind::String if last == TokenKind::String => bracket.tokens -= 1,
            TokenKind::Lambda => bracket.lambdas += 1,
            TokenKind::Colon => bracket.lambdas = bracket.lambdas.saturating_sub(1),
            // The commas between a lambda's parameters finish nothing.
            TokenKind::Comma if bracket.lambdas == 0 => bracket.tokens = 0,
            TokenKind::Lpar
            | TokenKind::Lsqb
            | TokenKind::Lbrace
            | TokenKind::FStringStart
            | TokenKind::TStringStart => {
                outer += bracket.tokens;
                around.push(std::mem::replace(
                    &mut bracket,
                    Bracket { closes_with: closing(kind), ..Bracket::default() },
                ));
            }
            // A bracket closed by another kind stays open: the parser may still be inside.
            _ if kind == bracket.closes_with => {
                if let Some(parent) = around.pop() {
                    bracket = parent;
                    outer -= bracket.tokens;
                }
            }
            _ => {}
        }
        last = kind;
        shape.depth = shape.depth.max(outer + bracket.tokens + blocks);
        if shape.depth > limits.nesting || shape.tokens > limits.tokens {
            break;
        }
    }
    shape
}

/// One open bracket or f-string, or the statement itself.
struct Bracket {
    tokens: usize,
    /// Lambdas whose colon has not come yet.
    lambdas: usize,
    closes_with: TokenKind,
}

impl Default for Bracket {
    fn default() -> Self {
        Self { tokens: 0, lambdas: 0, closes_with: TokenKind::EndOfFile }
    }
}

fn closing(open: TokenKind) -> TokenKind {
    match open {
        TokenKind::Lpar => TokenKind::Rpar,
        TokenKind::Lsqb => TokenKind::Rsqb,
        TokenKind::Lbrace => TokenKind::Rbrace,
        TokenKind::FStringStart => TokenKind::FStringEnd,
        _ => TokenKind::TStringEnd,
    }
}

/// Whether [`measure`] would find a depth of `most` at most, told from the bytes alone.
///
/// Each token of a statement is taken to nest. What would need more than a look at the bytes is not shallow: escaped line
/// ends, tabs, carriage returns, blocks and brackets that do not match, and f-strings with a string, an escape, a doubled
/// brace or a line end within.
pub(super) fn shallow(text: &str, most: usize) -> bool {
    bound(text.as_bytes()).is_some_and(|depth| depth <= most)
}

/// At least what [`measure`] finds, or nothing.
fn bound(bytes: &[u8]) -> Option<usize> {
    let mut brackets = Stack::default();
    let mut blocks = Stack::default();
    let (mut deepest, mut tokens, mut at) = (0, 0, 0);
    let mut is_line_start = true;
    while let Some(&byte) = bytes.get(at) {
        if is_line_start {
            is_line_start = false;
            let columns = run(&bytes[at..], |b| b == b' ');
            at += columns;
            if !matches!(bytes.get(at), None | Some(b'\n' | b'#')) {
                tokens = blocks.indent(columns)?;
            }
            continue;
        }
        match byte {
            b' ' => at += 1,
            b'#' => at += run(&bytes[at..], |b| b != b'\n' && b != b'\r'),
            b'\n' => {
                at += 1;
                is_line_start = brackets.depth == 0;
                deepest = deepest.max(tokens + 1 + blocks.depth);
            }
            b'"' | b'\'' => {
                at = string_end(bytes, at)?;
                tokens += 1;
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                let word = run(&bytes[at..], is_of_name);
                let prefix = &bytes[at..at + word];
                at += word;
                tokens += 1;
                let is_template = prefix.len() <= 2 && prefix.iter().any(|b| b"fFtT".contains(b));
                if is_template && matches!(bytes.get(at), Some(b'"' | b'\'')) {
                    let end = string_end(bytes, at)?;
                    tokens += template_tokens(&bytes[at..end])?;
                    at = end;
                }
            }
            b'0'..=b'9' => {
                let number = run(&bytes[at..], |b| is_of_name(b) || b == b'.');
                at += number;
                tokens += number;
                // What is a prefix, and what a suffix of the number?
                if matches!(bytes.get(at), Some(b'"' | b'\'')) {
                    return None;
                }
            }
            b'\t' | b'\r' | b'\\' | b'\x0c' => return None,
            // Operators, brackets, and each byte of what is not ASCII.
            _ => {
                brackets.bracket(byte)?;
                tokens += 1;
                at += 1;
            }
        }
    }
    // The end of the file ends its line and all blocks.
    (brackets.depth == 0).then_some(deepest.max(tokens + 1 + blocks.depth) + 1)
}

/// How many bytes `belongs` holds for in a row.
fn run(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|&byte| !belongs(byte)).unwrap_or(bytes.len())
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Just past the string whose opening quote is at `at`; nothing where it has no end.
fn string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let quote = bytes[at];
    let is_triple = bytes[at..].starts_with(&[quote; 3]);
    let mut next = at + if is_triple { 3 } else { 1 };
    loop {
        match *bytes.get(next)? {
            b'\\' => next += 2,
            b'\n' | b'\r' if !is_triple => return None,
            byte if byte != quote => next += 1,
            _ if !is_triple => return Some(next + 1),
            _ if bytes[next..].starts_with(&[quote; 3]) => return Some(next + 3),
            _ => next += 1,
        }
    }
}

/// A bound of the tokens of an f-string or template string, quotes included; nothing where its end is not plain to see.
fn template_tokens(string: &[u8]) -> Option<usize> {
    let quotes = if string.len() >= 6 && string.starts_with(&[string[0]; 3]) { 3 } else { 1 };
    let mut brackets = Stack::default();
    let mut last = 0;
    for &byte in &string[quotes..string.len() - quotes] {
        match byte {
            b'"' | b'\'' | b'\\' | b'\n' | b'\r' | b'#' => return None,
            b'{' | b'}' if byte == last => return None,
            _ => brackets.bracket(byte)?,
        }
        last = byte;
    }
    (brackets.depth == 0).then_some(string.len())
}

/// What is open around a byte, outermost first: brackets, or the columns of blocks.
#[derive(Default)]
struct Stack {
    open: [usize; 16],
    depth: usize,
}

impl Stack {
    fn push(&mut self, item: usize) -> Option<()> {
        *self.open.get_mut(self.depth)? = item;
        self.depth += 1;
        Some(())
    }

    fn top(&self) -> usize {
        self.depth.checked_sub(1).map_or(0, |top| self.open[top])
    }

    /// Follows one byte of code; nothing where a bracket does not match.
    fn bracket(&mut self, byte: u8) -> Option<()> {
        let opening = match byte {
            b'(' | b'[' | b'{' => return self.push(byte.into()),
            b')' => b'(',
            b']' => b'[',
            b'}' => b'{',
            _ => return Some(()),
        };
        if self.top() != usize::from(opening) {
            return None;
        }
        self.depth -= 1;
        Some(())
    }

    /// Begins a line at `column`: how many blocks begin or end before it; nothing where it is at none's column.
    fn indent(&mut self, column: usize) -> Option<usize> {
        if column > self.top() {
            self.push(column)?;
            return Some(1);
        }
        let before = self.depth;
        while column < self.top() {
            self.depth -= 1;
        }
        (column == self.top()).then_some(before - self.depth)
    }
}

#[cfg(test)]
#[path = "depth_tests.rs"]
mod tests;
