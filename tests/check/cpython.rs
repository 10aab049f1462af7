//! Against CPython, the first `python3` on `PATH` (or `NSBOX_TEST_PYTHON`): what it refuses to compile, the check refuses; what
//! it compiles, the check's parser takes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nsbox::check::{Policy, check};

fn python() -> Command {
    Command::new(std::env::var_os("NSBOX_TEST_PYTHON").unwrap_or_else(|| "python3".into()))
}

/// What CPython refuses from 3.10 on, and what it accepts; neither side is trusted, CPython is asked.
const CASES: &[&str] = &[
    "return",
    "yield",
    "await x",
    "break",
    "continue",
    "nonlocal x",
    "global x\nx = 1",
    "x = 1\nglobal x",
    "def f(x):\n global x",
    "def f(x):\n nonlocal x",
    "def f():\n x = 1\n nonlocal x",
    "def f():\n nonlocal x",
    "def f():\n x = 1\n def g():\n  nonlocal x",
    "def f():\n global x\n def g():\n  nonlocal x",
    "def f():\n global x\n nonlocal x",
    "def f():\n x = 1\n class A:\n  nonlocal x",
    "class A:\n x = 1\n def f():\n  nonlocal x",
    "def f():\n def g():\n  nonlocal y\n y = 1",
    "def f():\n for x in y: pass\n def g():\n  nonlocal x",
    "def f():\n print(x)\n global x",
    "def f(a, a): pass",
    "lambda a, a: 1",
    "def f(a=1, b): pass",
    "def f(*): pass",
    "def f(*, **k): pass",
    "f(a=1, 2)",
    "f(a=1, a=2)",
    "f(**k, *a)",
    "f(x for x in y, 1)",
    "f(1=2)",
    "f(True=2)",
    "class A(b=1, b=2): pass",
    "None = 1",
    "True = 1",
    "__debug__ = 1",
    "def __debug__(): pass",
    "f(__debug__=1)",
    "x.__debug__ = 1",
    "1 = x",
    "f() = 1",
    "f() += 1",
    "(a, b) += 1",
    "x, y: int",
    "(x, y): int = 1",
    "del f()",
    "del 1",
    "for 1 in x: pass",
    "with x as 1: pass",
    "(x for x in y) = 1",
    "[x for x in y] = 1",
    "x = yield",
    "*a = 1",
    "*a, = 1,",
    "*a, *b = 1",
    "print(*)",
    "del *a",
    "x = *a",
    "return *a",
    "(*a)",
    "[*a for a in b]",
    "{**a for a in b}",
    "(x := 1)",
    "x := 1",
    "(x.y := 1)",
    "[x := 1 for x in y]",
    "[(x := 1) for x in y]",
    "[y for x in (y := z)]",
    "class A:\n [(x := 1) for y in z]",
    "lambda: (yield)",
    "[(yield) for x in y]",
    "class A:\n yield",
    "async def f():\n yield from x",
    "async def f():\n return 1\n yield",
    "async def f():\n [await x for x in y]",
    "async def f():\n async with x: pass",
    "def f():\n async with x: pass",
    "def f():\n [x async for x in y]",
    "async for x in y: pass",
    "def f():\n await x",
    "def f():\n from x import *",
    "class A:\n from x import *",
    "from x import (*)",
    "from x import a,",
    "from x import ()",
    "from __future__ import nothing",
    "from __future__ import braces",
    "x = 1\nfrom __future__ import annotations",
    "'doc'\nfrom __future__ import annotations",
    "import a.b as c.d",
    "import",
    "try: pass",
    "try: pass\nexcept: pass\nexcept x: pass",
    "try: pass\nexcept* x: break",
    "while 1:\n try: pass\n except* x: break",
    "while 1:\n try: pass\n finally: continue",
    "def f():\n try: pass\n except* x: return",
    "try: pass\nexcept* x: pass\nexcept y: pass",
    "try: pass\nexcept*: pass",
    "if x:\npass",
    "if x:\n  pass\n pass",
    " x",
    "if x:\n\tpass\n        pass",
    "x = (",
    "x = )",
    "x = (]",
    "x = 'a",
    "x = '''a",
    "x = 'a' b'b'",
    "x = b'é'",
    "x = '\\x1'",
    "x = '\\N{no such name}'",
    "x = '\\N{BULLET}'",
    "x = '\\u12'",
    "x = b'\\x1'",
    "f'{'",
    "f'}'",
    "f'{}'",
    "f'{x!}'",
    "f'{x!z}'",
    "f'{x:{y:{z:{w}}}}'",
    "f'{lambda x: 1}'",
    "f'{*a}'",
    "f'{*a,}'",
    "x\u{feff}",
    "f'{a b}'",
    "f'{x = 1}'",
    "f'{yield}'",
    "0777",
    "0b2",
    "0o8",
    "0xg",
    "1_",
    "1__0",
    "1e",
    "1.e5j",
    "1if x else y",
    "0_7",
    "00",
    "1.a",
    "x = 1 2",
    "x y",
    "x ?",
    "x $ y",
    "x = !y",
    "a <> b",
    "print 1",
    "exec 'x'",
    "raise x, y",
    "except x, y",
    "x = `y`",
    "def f(a, (b, c)): pass",
    "def f(None): pass",
    "lambda None: 1",
    "class None: pass",
    "def f(): pass\n  x",
    "match x:\n case 1: pass",
    "match x:\n case y: pass\n case z: pass",
    "match x:\n case _: pass\n case 1: pass",
    "match x:\n case y | 1: pass",
    "match x:\n case [a, a]: pass",
    "match x:\n case [a] | [b]: pass",
    "match x:\n case [*a, *b]: pass",
    "match x:\n case {1: a, 1: b}: pass",
    "match x:\n case {**a, 1: b}: pass",
    "match x:\n case A(b=1, b=2): pass",
    "match x:\n case A(b=1, 2): pass",
    "match x:\n case -1: pass",
    "match x:\n case 1 + 2: pass",
    "match x:\n case 1 + 2j: pass",
    "match x:\n case x.y as z.w: pass",
    "match x:\n case 1 as _: pass",
    "match = 1\ncase = 2\ntype = 3",
    "x: int = 1",
    "def f():\n x: int\n global x",
    "def f():\n global x\n x: int",
    "def f():\n x = 1\n def g():\n  nonlocal x\n  x: int = 1",
    "a, b: int = 1",
    "(a): int = 1",
    "a.b: int",
    "a[0]: int = 1",
    "@x\ny = 1",
    "@x y\ndef f(): pass",
    "def f(x): return x if x",
    "x = [1, 2",
    "x = {1: 2, 3}",
    "x = {1, 2: 3}",
    "x = {**a, *b}",
    "x[*a]",
    "not",
    "x not y",
    "x is is y",
    "x\\\ny",
    "x \\ y",
    "x = 1 \\",
    "x\u{feff}",
    "x\u{a0}= 1",
    "x\u{200b} = 1",
    "é = 1",
    "x² = 1",
    "€ = 1",
    "async x = 1",
    "async def f(): pass\nasync = 1",
    "while 1:\n for x in y: pass\n else: break",
    "for x in y: pass\nelse: break",
    "while 1:\n class A:\n  break",
    "if x:\n break",
    "with a as b, c as d: pass",
    "with (a as b, c as d): pass",
    "with (a, b) as c: pass",
    "with (yield): pass",
    "def f():\n with (yield): pass",
    "assert",
    "assert (x, 'y')",
    "del",
    "del x, y",
    "del (x, y), [z]",
    "pass x",
    "global",
    "global x.y",
    "global x, y",
    "x = y = z = 1",
    "x = y += 1",
    "x += yield",
    "def f(): x += yield",
    "def f(*a, *b): pass",
    "def f(**k, a): pass",
    "def f(a, /, b, /): pass",
    "def f(/): pass",
    "def f(*, /): pass",
    "lambda *: 1",
    "for x in *a, b: pass",
    "for x in (yield): pass",
    "def f() -> (yield): pass",
    "class A((yield)): pass",
    "x = lambda: (await y)",
    "...",
    "x = ...",
    "x.1",
    "x..y",
    "from . import x",
    "from .. import *",
    "from x.y import z as w, v",
    "from x import y.z",
    "import x as y, z",
    ";",
    "x;",
    "x;;y",
    "if x: y; z",
    "if x: if y: z",
    "class A: x = 1; y = 2",
    "def f(): return; yield",
    "\x0cx = 1",
    "x = 1\x0c",
    "x = 1\x1a",
    "x = 1\r\ny = 2\rz = 3",
    "# comment",
    "",
    "\n\n",
    "\\",
    "\\\n",
];

/// Asks CPython about each source; `true` where it compiles.
fn compiles(sources: &[&str]) -> Vec<bool> {
    let script = "import sys, json, warnings\nwarnings.simplefilter('ignore')\nfor s in json.load(sys.stdin):\n try: compile(s, 'x', 'exec'); print(1)\n except (SyntaxError, ValueError): print(0)\n";
    let mut child = python().arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(serde_json::to_string(sources).unwrap().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line == "1").collect()
}

/// Codes of the source and syntax rules: the policy is another matter.
fn syntax_findings(source: &[u8]) -> Vec<String> {
    let report = check(source, "x.py", Policy::builtin());
    let about_syntax = report.findings.iter().filter(|finding| finding.rule.code().starts_with("NSB00"));
    about_syntax.map(|finding| format!("{}:{} {}", finding.line, finding.column, finding.message)).collect()
}

#[test]
fn sources_that_cpython_refuses_are_refused() {
    let compiled = compiles(CASES);
    assert_eq!(compiled.len(), CASES.len());
    assert!(compiled.iter().filter(|ok| !**ok).count() > 100);
    let missed: Vec<&str> = std::iter::zip(CASES, compiled)
        .filter(|(source, compiles)| !compiles && syntax_findings(source.as_bytes()).is_empty())
        .map(|(source, _)| *source)
        .collect();
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn sources_that_cpython_compiles_are_parsed() {
    let compiled = compiles(CASES);
    let refused: Vec<_> = std::iter::zip(CASES, compiled)
        .filter(|(_, compiles)| *compiles)
        .map(|(source, _)| (source, syntax_findings(source.as_bytes())))
        .filter(|(_, findings)| !findings.is_empty())
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

fn python_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir()
            && !path.is_symlink()
            && !["test", "tests", "site-packages", "dist-packages", "lib2to3"].contains(&&*name)
        {
            python_files(&path, into);
        } else if name.ends_with(".py") {
            into.push(path);
        }
    }
}

/// Whatever CPython's own library holds, the parser and the syntax check take.
#[test]
fn standard_library_is_parsed() {
    let output = python().args(["-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"]).output().unwrap();
    let folder = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let mut files = Vec::new();
    python_files(&folder, &mut files);
    assert!(files.len() > 100, "{} files in {}", files.len(), folder.display());
    let mut refused = Vec::new();
    for file in &files {
        let source = std::fs::read(file).unwrap();
        // A few files declare other encodings or are too large, which the check refuses by rule.
        let report = check(&source, "x.py", Policy::builtin());
        for finding in
            report.findings.iter().filter(|finding| ["NSB004", "NSB005", "NSB008"].contains(&finding.rule.code()))
        {
            refused.push(format!("{}:{}:{} {}", file.display(), finding.line, finding.column, finding.message));
        }
    }
    assert!(refused.is_empty(), "of {} files:\n{}", files.len(), refused.join("\n"));
}
