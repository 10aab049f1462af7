//! A forbidden name and a forbidden attribute in every expression field of every kind of node.

use nsbox::check::{Policy, check};

/// Sources with a hole `$` for an expression that is read: one for each expression field of each node of CPython's `ast`
/// (3.8 to 3.14).
const READ: &[&str] = &[
    "@$\ndef f(): pass",
    "def f(a=$): pass",
    "def f(a=$, /): pass",
    "def f(*, a=$): pass",
    "def f(a: $): pass",
    "def f(a: $, /): pass",
    "def f(*a: $): pass",
    "def f(**a: $): pass",
    "def f(*, a: $): pass",
    "def f() -> $: pass",
    "def f[T: $](): pass",
    "def f[T = $](): pass",
    "def f[*T = $](): pass",
    "def f[**T = $](): pass",
    "def f():\n $",
    "@$\nasync def f(): pass",
    "async def f(a=$): pass",
    "async def f() -> $: pass",
    "async def f():\n $",
    "@$\nclass A: pass",
    "class A($): pass",
    "class A(b=$): pass",
    "class A(*$): pass",
    "class A[T: $]: pass",
    "class A:\n $",
    "def f(): return $",
    "del x[$]",
    "del ($).x",
    "x = $",
    "x = y = $",
    "x[$] = 1",
    "($).x = 1",
    "type X = $",
    "type X[T: $] = 1",
    "x += $",
    "x[$] += 1",
    "x: $ = 1",
    "x: $",
    "x: int = $",
    "x[$]: int = 1",
    "for x in $: pass",
    "for x[$] in y: pass",
    "for x in y: $",
    "for x in y: pass\nelse: $",
    "async def f():\n async for x in $: pass",
    "async def f():\n async for x in y: $",
    "while $: pass",
    "while x: $",
    "while x: pass\nelse: $",
    "if $: pass",
    "if x: $",
    "if x: pass\nelif $: pass",
    "if x: pass\nelif y: $",
    "if x: pass\nelse: $",
    "with $: pass",
    "with x as y[$]: pass",
    "with x: $",
    "async def f():\n async with $: pass",
    "async def f():\n async with x: $",
    "match $:\n case 1: pass",
    "match x:\n case 1 if $: pass",
    "match x:\n case 1: $",
    "raise $",
    "raise x from $",
    "try: $\nexcept x: pass",
    "try: pass\nexcept $: pass",
    "try: pass\nexcept x: $",
    "try: pass\nexcept x: pass\nelse: $",
    "try: pass\nfinally: $",
    "try: pass\nexcept* $: pass",
    "try: pass\nexcept* x: $",
    "assert $",
    "assert x, $",
    "$",
    "x and $",
    "$ or x",
    "(x := $)",
    "$ + x",
    "x + $",
    "'a' + $",
    "not $",
    "-$",
    "lambda: $",
    "lambda a=$: 1",
    "lambda *, a=$: 1",
    "$ if x else y",
    "x if $ else y",
    "x if y else $",
    "{$: 1}",
    "{1: $}",
    "{**$}",
    "{$}",
    "[$ for x in y]",
    "[x for x in $]",
    "[x for x in y if $]",
    "[x for x[$] in y]",
    "[x for x in y for z in $]",
    "[x for x in y for z in w if $]",
    "{$ for x in y}",
    "{x for x in y if $}",
    "{$: 1 for x in y}",
    "{1: $ for x in y}",
    "{1: x for x in $}",
    "($ for x in y)",
    "(x for x in $)",
    "async def f(): await $",
    "def f(): yield $",
    "def f(): yield from $",
    "$ < x",
    "x < $",
    "x is $",
    "($)()",
    "f($)",
    "f(x, *$)",
    "f(a=$)",
    "f(**$)",
    "f'{$}'",
    "f'{$!r}'",
    "f'{$=}'",
    "f'{x:{$}}'",
    "f'{x:a{y:{$}}}'",
    "'a' f'{$}'",
    "t'{$}'",
    "($).y",
    "($)[0]",
    "x[$]",
    "x[$:]",
    "x[:$]",
    "x[::$]",
    "x[1, $]",
    "[*$]",
    "[$]",
    "($,)",
    "print($)",
    "getattr($, 'a')",
    "getattr(x, 'a', $)",
    "x.format($)",
    "df.agg($)",
    "df.agg('sum', axis=$)",
    "df.query('a > 1', inplace=$)",
    "df.to_csv('/work/x', sep=$)",
    "isinstance(x, $)",
];

/// Sources with a hole for an attribute alone: patterns and targets.
const ATTRIBUTE: &[&str] = &[
    "match x:\n case ($): pass",
    "match x:\n case [$]: pass",
    "match x:\n case {$: y}: pass",
    "match x:\n case {1: $}: pass",
    "match x:\n case 1 | $: pass",
    "match x:\n case $ as y: pass",
    "match x:\n case $(): pass",
    "match x:\n case A($): pass",
    "match x:\n case A(b=$): pass",
    "del $",
    "del (x, $)",
    "$ = 1",
    "x, $ = 1, 2",
    "x, *$ = 1, 2",
    "[$] = 1",
    "$ += 1",
    "$: int",
    "$: int = 1",
    "for $ in x: pass",
    "for x, $ in y: pass",
    "with x as $: pass",
    "[x for $ in y]",
    "[x for x, $ in y]",
];

fn codes(source: &str) -> Vec<&'static str> {
    check(source.as_bytes(), "x.py", Policy::builtin()).findings.iter().map(|finding| finding.rule.code()).collect()
}

#[test]
fn forbidden_name_is_found_in_every_position() {
    for template in READ {
        let source = template.replace('$', "eval");
        assert!(codes(&source).contains(&"NSB201"), "{source}\n{:?}", codes(&source));
        let source = template.replace('$', "__builtins__");
        assert!(codes(&source).contains(&"NSB202"), "{source}\n{:?}", codes(&source));
    }
}

#[test]
fn forbidden_attribute_is_found_in_every_position() {
    for template in READ.iter().chain(ATTRIBUTE) {
        let source = template.replace('$', "x.__globals__");
        assert!(codes(&source).contains(&"NSB203"), "{source}\n{:?}", codes(&source));
        let source = template.replace('$', "x.f_back");
        assert!(codes(&source).contains(&"NSB203"), "{source}\n{:?}", codes(&source));
    }
}

#[test]
fn forbidden_member_of_a_module_is_found_in_every_position() {
    for template in READ.iter().chain(ATTRIBUTE) {
        let source = format!("import random as r\n{}", template.replace('$', "r._inst"));
        assert!(codes(&source).contains(&"NSB102"), "{source}\n{:?}", codes(&source));
    }
}

#[test]
fn harmless_expression_gives_nothing_in_every_position() {
    for template in READ {
        let source = template.replace('$', "name");
        let unseen = source.contains(".format(") || source.contains("**name") && source.starts_with("class");
        assert!(codes(&source).is_empty() || unseen, "{source}\n{:?}", codes(&source));
    }
}

#[test]
fn name_is_found_in_match_value_only_as_a_class_or_an_attribute() {
    // A bare name in a pattern binds; it reads nothing.
    assert_eq!(codes("match x:\n case eval: pass"), Vec::<&str>::new());
    assert!(codes("match x:\n case eval(): pass").contains(&"NSB201"));
    assert!(codes("match x:\n case A(__class__=c): pass").contains(&"NSB203"));
}
