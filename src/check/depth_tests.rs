//! The quick bound against the one by tokens.

use proptest::prelude::*;

use super::*;
use crate::check::Policy;

const STRATEGY: &str = include_str!("../../tests/check/benign/strategy_200_lines.py");

#[rustfmt::skip]
const PIECES: &[&str] = &[
    "x", "f", "rb", "T", "_f", "é", "0", "1_0j", "1.e5", ".5", "0x1f", "$", "?", "!", ":", ":=", ",", ";", ".", "=", "-",
    "lambda", "if", "else", "for", "(", ")", "[", "]", "{", "}", "{{", "}}", "\"", "'", "\"\"\"", "'''", "\\", "\\\n", "#",
    "\n", "\n ", "\n  ", "\n    ", "\n\t", "\r", "\r\n", "\x0c", " ", "f\"", "f'", "rf\"", "f\"\"\"", "t'", "f\"{x}\"",
    "f'{x[0]:>{w}}'", "def g():", "while x:", "pass", "\"a\"", "'b'", "f(x)", "[0]", "{x}",
];

fn measured(text: &str) -> usize {
    measure(text, &Limits { nesting: usize::MAX, tokens: usize::MAX, ..Policy::builtin().limits }).depth
}

fn holds(text: &str) -> Result<(), TestCaseError> {
    if let Some(bound) = bound(text.as_bytes()) {
        let measured = measured(text);
        prop_assert!(bound >= measured, "{} < {} of {:?}", bound, measured, text);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn bound_holds_for_pieces_of_python(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40)) {
        holds(&pieces.concat())?;
    }

    #[test]
    fn bound_holds_for_spoilt_strategies(at in any::<prop::sample::Index>(), piece in prop::sample::select(PIECES)) {
        let mut at = at.index(STRATEGY.len());
        while !STRATEGY.is_char_boundary(at) {
            at -= 1;
        }
        holds(&[&STRATEGY[..at], piece, &STRATEGY[at..]].concat())?;
    }
}

#[test]
fn strategies_are_shallow() {
    assert!(shallow(STRATEGY, 128));
    assert!(!shallow(STRATEGY, measured(STRATEGY) - 1));
}

#[test]
fn what_hides_its_end_is_passed_on() {
    for text in [
        "f\"{x[\"a\"]}\"",
        "f'{{x}}'",
        "1_0jf\"{\"",
        "x = \\\n1",
        "if x:\n\ty",
        "f(]",
        "(",
        "f\"{x[}\"",
        "\"",
        "if x:\n    a\n  b",
        "f'''{\n'''",
    ] {
        assert_eq!(bound(text.as_bytes()), None, "{text:?}");
    }
}
