//! Sources made to make the check fall over: depth, size, bytes.

use std::thread;
use std::time::{Duration, Instant};

use nsbox::check::{Policy, Report, check};
use proptest::prelude::*;

/// Levels of each construct.
const LEVELS: usize = 100_000;

/// Longer than any source may take in a debug build on a busy machine.
const BOUND: Duration = Duration::from_secs(20);

/// Checks on a stack of 2 MiB, which is what Rust gives a thread.
fn check_on_small_stack(source: Vec<u8>) -> Report {
    let started = Instant::now();
    let report = thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(move || check(&source, "deep.py", Policy::builtin()))
        .unwrap()
        .join()
        .unwrap();
    assert!(started.elapsed() < BOUND, "took {:?}", started.elapsed());
    report
}

/// Every construct whose repetition nests: a prefix repeated, a core, a suffix repeated.
fn constructs() -> Vec<(&'static str, String, &'static str, String)> {
    let plain = |name, open: &str, core, close: &str| (name, open.to_owned(), core, close.to_owned());
    vec![
        plain("parenthesis", "(", "1", ")"),
        plain("list", "[", "1", "]"),
        plain("dict", "{1:", "1", "}"),
        plain("set", "{", "1", "}"),
        plain("call", "f(", "1", ")"),
        plain("subscript", "x[", "1", "]"),
        plain("unclosed parenthesis", "(", "", ""),
        plain("mismatched bracket", "(]", "", ""),
        plain("mismatched bracket and comma", "(],", "", ""),
        plain("mismatched brace in f-string", "f'{(}',", "", ""),
        plain("keyword call", "f(a=", "1", ")"),
        plain("starred", "*", "x", ""),
        plain("starred list", "[*", "x", "]"),
        plain("not", "not ", "x", ""),
        plain("minus", "-", "1", ""),
        plain("tilde", "~", "1", ""),
        plain("await", "await ", "x", ""),
        plain("attribute", "", "x", ".a"),
        plain("call chain", "", "x", "()"),
        plain("subscript chain", "", "x", "[0]"),
        plain("addition", "", "a", "+a"),
        plain("text addition", "", "'a'", "+'a'"),
        plain("power", "", "a", "**a"),
        plain("and", "", "a", " and a"),
        plain("comparison", "", "a", "<a"),
        plain("ternary", "", "a", " if a else a"),
        plain("nested ternary", "a if a else ", "a", ""),
        plain("lambda", "lambda:", "1", ""),
        plain("lambda with parameters", "lambda a,b=", "1", ":0"),
        plain("lambda default", "lambda a, b=lambda c:", "1", ""),
        plain("walrus", "(a:=", "1", ")"),
        plain("comprehension", "[", "1", " for x in y]"),
        plain("comprehension clauses", "[1", " for x in y", " for x in y"),
        plain("generator argument", "f(", "x", " for x in y)"),
        plain("f-string", "f'{", "1", "}'"),
        plain("f-string alternating", "f'{f\"{", "1", "}\"}'"),
        plain("format specification", "f'{x:{", "1", "}}'"),
        plain("t-string", "t'{", "1", "}'"),
        plain("implicit concatenation", "", "'a'", " 'a'"),
        plain("assignment", "a=", "1", ""),
        plain("tuple target", "(a,", "b", ")"),
        plain("yield", "(yield ", "1", ")"),
        plain("decorator", "@a\n", "def f(): pass\n", ""),
        plain("annotation", "a:", "int", ""),
        plain("colon", "if x:", "pass", ""),
        plain("while colon", "while x: ", "pass", ""),
        plain("with", "with (", "a", "): pass"),
        plain("match sequence", "match x:\n case ", "1", ": pass"),
        plain("type parameters", "type X[T: ", "int", "] = int"),
        plain("statements", "a\n", "a", ""),
        plain("semicolons", "a;", "a", ""),
        plain("line continuation", "\\\n", "a", ""),
        plain("dots import", "from .", "", " import a"),
        plain("import chain", "import a", "", ".a"),
        plain("global", "global a", "", ",a"),
        plain("dict unpacking", "{**", "x", "}"),
        plain("slice", "x[", "1", ":]"),
        plain("string prefix", "rb", "''", ""),
        plain("backtick", "`", "", ""),
        plain("indent error", " ", "x\n", ""),
    ]
}

fn nested(open: &str, core: &str, close: &str, levels: usize) -> String {
    format!("x\n{}{core}{}\n", open.repeat(levels), close.repeat(levels))
}

#[test]
fn nesting_of_every_construct_never_overflows() {
    for levels in [150, 1_000, LEVELS] {
        for (name, open, core, close) in constructs() {
            let report = check_on_small_stack(nested(&open, core, &close, levels).into_bytes());
            let deep = report.findings.iter().all(|finding| finding.rule.code().starts_with("NSB00"));
            assert!(deep || levels < LEVELS, "{name}: {:?}", report.findings.first());
        }
    }
}

#[test]
fn indentation_elif_and_case_never_overflow() {
    for levels in [90, 200, 1_000] {
        let mut blocks: String = (0..levels).map(|level| format!("{}if x:\n", " ".repeat(level))).collect();
        blocks += &format!("{}pass\n", " ".repeat(levels));
        check_on_small_stack(blocks.clone().into_bytes());
        check_on_small_stack(blocks.replace("if x:", "def f():").into_bytes());
        check_on_small_stack(blocks.replace("if x:", "class C:").into_bytes());
    }
    check_on_small_stack(format!("if x: pass\n{}", "elif x: pass\n".repeat(LEVELS / 4)).into_bytes());
    check_on_small_stack(format!("match x:\n{}", " case 1: pass\n".repeat(LEVELS / 4)).into_bytes());
    check_on_small_stack(format!("match x:\n case {}1{}: pass\n", "[".repeat(1_000), "]".repeat(1_000)).into_bytes());
    check_on_small_stack(format!("match x:\n case {}1: pass\n", "1|".repeat(LEVELS)).into_bytes());
}

#[test]
fn nesting_beyond_the_limit_is_one_clear_finding() {
    let report = check_on_small_stack(nested("(", "1", ")", LEVELS).into_bytes());
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].rule.code(), "NSB005");
    assert!(report.findings[0].hint.is_some());
}

#[test]
fn nesting_within_the_limit_is_checked_through() {
    // Deep enough for a stack of its own, and judged at the bottom.
    let report = check_on_small_stack(nested("(", "eval", ")", 900).into_bytes());
    let codes: Vec<&str> = report.findings.iter().map(|finding| finding.rule.code()).collect();
    assert_eq!(codes, ["NSB201"]);
    assert!(check_on_small_stack(nested("", "a", "+a", 900).into_bytes()).is_clean());
}

#[test]
fn huge_sources_are_bounded() {
    let million = 1_000_000;
    let sources = [
        "x".repeat(million),
        "1".repeat(million),
        format!("x = {}", "9".repeat(5_000)),
        format!("'''{}", "a\n".repeat(million / 2)),
        format!("f'''{{{}", "a\n".repeat(million / 2)),
        "x = 1\n".repeat(100_000),
        format!("x = [{}]", "1,".repeat(100_000)),
        format!("def f[{}](): pass", (0..50_000).map(|n| format!("T{n},")).collect::<String>()),
        format!("def f({}): pass", (0..50_000).map(|n| format!("a{n},")).collect::<String>()),
        format!("def f():\n global {}\n x", (0..50_000).map(|n| format!("a{n}")).collect::<Vec<_>>().join(",")),
        format!("import os\n{}", "a = os\n".repeat(60_000)),
        (0..20_000).map(|n| format!("import a{n} as x\n")).collect::<String>(),
        (0..20_000).map(|n| format!("x{n} = x{}\n", n + 1)).collect::<String>(),
        format!("a = 'x'\n{}", "a = a + a\n".repeat(40_000)),
        format!(
            "a = 'x'\n{}",
            (0..40).map(|n| format!("a{n} = a{0} + a{0} if a{0} else a{0}\n", n - 1)).collect::<String>()
        ),
        format!("eval = 1\n{}", "eval\n".repeat(100_000)),
        "eval(1)\n".repeat(60_000),
        format!("def f():\n{}", " nonlocal x\n".repeat(60_000)),
        "lambda:0\n".repeat(80_000),
        "f'{x}'\n".repeat(40_000),
        "(\n".repeat(1_500),
        "f'{'\n".repeat(30_000),
        "'\n".repeat(100_000),
        "\u{ff41}\n".repeat(100_000),
        "# coding".repeat(100_000),
        "{".repeat(1_900),
        "@".repeat(100_000),
        "class A:\n def f(self): eval = 1\n".repeat(20_000),
    ];
    for source in sources {
        let head: String = source.chars().take(40).collect();
        let started = Instant::now();
        check_on_small_stack(source.into_bytes());
        assert!(started.elapsed() < BOUND, "{head}: {:?}", started.elapsed());
    }
}

#[test]
fn sources_over_the_limits_are_refused() {
    let code = |source: &[u8]| check(source, "x.py", Policy::builtin()).findings[0].rule.code();
    assert_eq!(code(&vec![b'#'; 2 << 20]), "NSB001");
    assert_eq!(code("a ".repeat(300_000).as_bytes()), "NSB005");
    assert_eq!(code("a\n".repeat(200_000).as_bytes()), "NSB007");
}

#[test]
fn bytes_that_are_not_python_text_are_refused() {
    let code = |source: &[u8]| check(source, "x.py", Policy::builtin()).findings[0].rule.code();
    assert_eq!(code(b"x = 1 # \0"), "NSB003");
    assert_eq!(code(b"x = '\xff'"), "NSB002");
    assert_eq!(code(b"\xff\xfex\0"), "NSB002");
    for cookie in ["utf-7", "utf_7", "unicode_escape", "raw_unicode_escape", "latin-1", "cp1252", "UTF-16", "utf-8x"] {
        assert_eq!(code(format!("# -*- coding: {cookie} -*-\n").as_bytes()), "NSB002", "{cookie}");
        assert_eq!(
            code(format!("#!/usr/bin/python\n# vim: set fileencoding={cookie} :\n").as_bytes()),
            "NSB002",
            "{cookie}"
        );
        assert_eq!(code(format!("\n \t\x0c#coding:{cookie}\n").as_bytes()), "NSB002", "{cookie}");
        assert_eq!(code(format!("\r#coding:{cookie}\r").as_bytes()), "NSB002", "{cookie}");
    }
    for cookie in ["utf-8", "UTF-8", "utf8", "utf_8", "utf-8-sig"] {
        assert!(check(format!("# coding: {cookie}\n").as_bytes(), "x.py", Policy::builtin()).is_clean(), "{cookie}");
    }
    assert!(check(b"\n\n# coding: latin-1\n", "x.py", Policy::builtin()).is_clean());
}

/// Pieces of which broken and whole Python is made.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        ";",
        "\n",
        "\n ",
        "\n  ",
        "\n\t",
        "\\\n",
        "\r",
        " ",
        ".",
        "=",
        ":=",
        "+",
        "-",
        "*",
        "**",
        "@",
        "->",
        "'",
        "\"",
        "'''",
        "\"\"\"",
        "f'",
        "f\"",
        "f'''{",
        "t'",
        "rb'",
        "}'",
        "{x:",
        "!r",
        "#",
        "x",
        "eval",
        "os",
        "self",
        "1",
        "0x",
        "1e",
        "...",
        "if ",
        "else ",
        "elif ",
        "for ",
        "in ",
        "while ",
        "def f",
        "class A",
        "lambda ",
        "return ",
        "yield ",
        "await ",
        "async ",
        "import ",
        "from ",
        "as ",
        "with ",
        "try:",
        "except ",
        "finally:",
        "match ",
        "case ",
        "type X",
        "global x",
        "nonlocal x",
        "not ",
        "and ",
        "or ",
        "is ",
        "del ",
        "raise ",
        "assert ",
        "pass",
        "break",
        "__class__",
        "\u{feff}",
        "\u{ff41}",
        "\u{b5}",
        "é",
        "\0",
        "\x0c",
    ]);
    prop::collection::vec(piece, 0..120).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(source in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let report = check(&source, "x.py", Policy::builtin());
        prop_assert_eq!(report.is_clean(), report.source().is_some());
    }

    #[test]
    fn python_like_text_never_fails_the_parser(source in pieces()) {
        let started = Instant::now();
        let report = check(source.as_bytes(), "x.py", Policy::builtin());
        prop_assert!(report.findings.iter().all(|finding| finding.rule.code() != "NSB008"), "{:?}", source);
        prop_assert!(started.elapsed() < Duration::from_secs(5));
        for finding in &report.findings {
            prop_assert!(finding.line >= 1 && finding.column >= 1);
            prop_assert!((finding.end_line, finding.end_column) >= (finding.line, finding.column));
        }
    }

    #[test]
    fn repeated_pieces_never_overflow(piece in pieces(), levels in 1usize..400) {
        let source = piece.chars().take(12).collect::<String>().repeat(levels);
        let report = check_on_small_stack(source.clone().into_bytes());
        prop_assert!(report.findings.iter().all(|finding| finding.rule.code() != "NSB008"), "{:?}", source);
    }
}
