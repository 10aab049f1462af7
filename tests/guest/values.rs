//! Plain Python values: what the collector writes is what Rust reads.

use nsbox::outcome::{Document, Value};
use serde_json::{Value as Json, json};

use super::{Run, interpreters};

/// The document of a script under each interpreter, all the same.
fn collect(source: &str) -> Document {
    let mut documents = interpreters().into_iter().map(|python| Run::new(&python, source).go().well());
    let first = documents.next().unwrap();
    for document in documents {
        // NaN is not equal to itself.
        assert_eq!(format!("{document:?}"), format!("{first:?}"));
    }
    first
}

fn json_of(source: &str) -> Json {
    collect(source).result.unwrap().to_json(&mut Vec::new())
}

#[test]
fn names_are_collected_each_for_itself() {
    let document = collect("result, metrics, signal, report, other = 1, {'sharpe': 1.5}, [-1, 0, 1], 'text', 5");
    assert_eq!(document.result, Some(Value::Int(1)));
    assert_eq!(document.metrics, Some(Value::Dict(vec![("sharpe".into(), Value::Float(1.5))])));
    assert_eq!(document.signals, Some(Value::List(vec![Value::Int(-1), Value::Int(0), Value::Int(1)])));
    assert_eq!(document.report, Some(Value::Str("text".into())));
    assert_eq!(document.notes, Vec::<String>::new());
    assert_eq!(collect("print(1)"), Document::default());
}

#[test]
fn integers_keep_every_digit() {
    let edges = [0, 23, 24, 255, 256, 65_535, 65_536, u32::MAX as i128, 1 << 32, u64::MAX as i128, 1 << 64, i128::MAX];
    let all: Vec<i128> = edges.iter().flat_map(|&edge| [edge, -edge - 1]).collect();
    let expected = all.iter().map(|&number| Value::Int(number)).collect();
    assert_eq!(collect(&format!("result = {all:?}")).result, Some(Value::List(expected)));
    let long = format!("1{}", "0".repeat(4_000));
    assert_eq!(collect("result = 10 ** 4000").result, Some(Value::BigInt(long)));
    let document = collect("result = 10 ** 5000");
    assert!(matches!(document.result, Some(Value::Opaque { .. })) && document.notes.len() == 1);
}

#[test]
fn floats_are_exact_and_null_in_json_where_not_finite() {
    let document =
        collect("result = [0.1, -0.0, 5e-324, 1.7976931348623157e308, float('nan'), float('inf'), -float('inf')]");
    let Some(Value::List(items)) = &document.result else { panic!("not a list") };
    let bits = |value: &Value| if let Value::Float(number) = value { number.to_bits() } else { panic!("not a float") };
    let numbers = [0.1, -0.0, 5e-324, f64::MAX];
    assert_eq!(items[..4].iter().map(bits).collect::<Vec<_>>(), numbers.map(f64::to_bits));
    assert!(matches!(items[4], Value::Float(number) if number.is_nan()));
    assert_eq!(items[5..], [Value::Float(f64::INFINITY), Value::Float(f64::NEG_INFINITY)]);
    let mut notes = Vec::new();
    let json = document.result.unwrap().to_json(&mut notes);
    assert_eq!(json, json!([0.1, -0.0, 5e-324, f64::MAX, null, null, null]));
    assert_eq!(notes, ["3 numbers that JSON cannot hold (NaN, infinities) are null"]);
}

#[test]
fn containers_and_text_come_through() {
    let source = "import collections\nP = collections.namedtuple('P', 'x y')\n\
        result = {'t': (1, [2, {3}]), 'e': [[], {}, (), ''], 'b': [b'\\x00\\xff', bytearray(b'a'), memoryview(b'b')], 'u': 'é\\U0001f600\\0',\n\
        \x20 'p': P(1, 2), 'd': collections.deque([1, 2], 2), 'c': collections.Counter('aab'), 'r': range(3, 0, -1),\n\
        \x20 'o': collections.OrderedDict(b=1, a=2), 'n': [None, True, False]}";
    let expected = json!({
        "t": [1, [2, [3]]], "e": [[], {}, [], ""], "b": ["AP8=", "YQ==", "Yg=="], "u": "é\u{1f600}\0",
        "p": [1, 2], "d": [1, 2], "c": {"a": 2, "b": 1}, "r": [3, 2, 1], "o": {"b": 1, "a": 2}, "n": [null, true, false]
    });
    assert_eq!(json_of(source), expected);
    let document = collect("result = 'a\\ud800b'");
    assert_eq!((document.result, document.notes.len()), (Some(Value::Str("a?b".into())), 1));
}

#[test]
fn library_types_become_their_text_or_value() {
    let source = "import dataclasses, datetime as d, decimal, enum, fractions, pathlib, uuid\n\
        class C(enum.Enum): A = 'a'\nclass I(enum.IntEnum): B = 7\nclass F(enum.Flag): X = 4\n\
        @dataclasses.dataclass\nclass D:\n    x: int\n    y: list\n\
        @dataclasses.dataclass(frozen=True)\nclass S:\n    __slots__ = ('z',)\n    z: object\n\
        utc = d.timezone.utc\n\
        result = [C.A, I.B, F.X, D(1, [2]), S(D(3, [])), d.date(2020, 1, 2), d.datetime(2020, 1, 2, 3, 4, 5, 6, utc), d.time(1, 2),\n\
        \x20 d.timedelta(days=1, seconds=2, microseconds=30), -d.timedelta(seconds=1), decimal.Decimal('1.10'),\n\
        \x20 fractions.Fraction(1, 3), uuid.UUID(int=3), pathlib.PurePosixPath('/x/y')]";
    let expected = json!([
        "a", 7, 4, {"x": 1, "y": [2]}, {"z": {"x": 3, "y": []}}, "2020-01-02", "2020-01-02T03:04:05.000006+00:00", "01:02:00",
        "P1DT2.00003S", "-P0DT1S", "1.10", "1/3", "00000000-0000-0000-0000-000000000003", "/x/y"
    ]);
    assert_eq!(json_of(source), expected);
}

#[test]
fn keys_become_text_and_each_is_kept_once() {
    let source = "import datetime, enum\nclass C(enum.Enum): A = 'a'\n\
        result = {1: 1, None: 2, 1.5: 3, (1, 'x'): 4, datetime.date(2020, 1, 1): 5, C.A: 6, b'k': 7}";
    let expected = json!({"1": 1, "None": 2, "1.5": 3, "(1, x)": 4, "2020-01-01": 5, "a": 6, "<bytes>": 7});
    assert_eq!(json_of(source), expected);
    let document = collect("result = {1: 'int', '1': 'text'}");
    assert_eq!(document.result, Some(Value::Dict(vec![("1".into(), Value::Str("text".into()))])));
    assert_eq!(document.notes, ["result: two keys read '1': the later value is kept"]);
}

#[test]
fn objects_without_a_value_become_notes() {
    let document = collect("class Model: pass\nresult = {'m': Model(), 'f': (x for x in ()), 'ok': 1}");
    let Some(Value::Dict(entries)) = document.result else { panic!("not a dict") };
    assert!(matches!(&entries[0].1, Value::Opaque { kind, .. } if kind == "__main__.Model"), "{entries:?}");
    assert_eq!(entries[2], ("ok".into(), Value::Int(1)));
    let expected = [
        "result['m']: __main__.Model has no form outside Python",
        "result['f']: builtins.generator has no form outside Python",
    ];
    assert_eq!(document.notes, expected);
}

#[test]
fn cycles_and_depth_become_notes() {
    let document = collect(
        "a = [1]; a.append(a)\nd = {}; d['d'] = d\nx = []\nfor _ in range(5000): x = [x]\nshared = [1]\nresult = [a, d, x, shared, shared]",
    );
    assert_eq!(document.notes.len(), 3, "{:?}", document.notes);
    assert_eq!(document.notes[0], "result[0][1]: builtins.list contains itself");
    assert!(document.notes[2].ends_with("is nested more than 64 deep"));
    let Some(Value::List(items)) = document.result else { panic!("not a list") };
    assert_eq!(items[3..], [Value::List(vec![Value::Int(1)]), Value::List(vec![Value::Int(1)])]);
}

#[test]
fn hostile_objects_do_not_fail_the_run() {
    let source = "class Exits:\n    def __getattribute__(self, name): raise SystemExit(9)\n    def __repr__(self): raise SystemExit(9)\n\
        class L(list):\n    def __iter__(self): raise SystemExit(9)\n    def __len__(self): return -1\n\
        class D(dict):\n    def items(self): raise SystemExit(9)\n\
        class S(str):\n    def encode(self, *a): raise SystemExit(9)\n    def __len__(self): raise SystemExit(9)\n\
        class I(int):\n    def __int__(self): raise SystemExit(9)\n    def bit_length(self): raise SystemExit(9)\n    def __lt__(self, other): raise SystemExit(9)\n\
        class M(type):\n    def __getattribute__(cls, name): raise SystemExit(9)\n\
        class T(metaclass=M): pass\n\
        result = [Exits(), L([1]), D(a=1), S('s'), I(5), T(), T, 'end']";
    let document = collect(source);
    let Some(Value::List(items)) = document.result else { panic!("not a list") };
    let expected = json!([[1], {"a": 1}, "s", 5]);
    assert_eq!(Value::List(items[1..5].to_vec()).to_json(&mut Vec::new()), expected);
    assert_eq!(items.last(), Some(&Value::Str("end".into())));
}
