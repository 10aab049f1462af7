//! Plain values and arrays: what goes in is what a script hands back.

use nsbox::outcome::{Array, DType, TimeUnit, Value};
use nsbox::sandbox::Script;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::harness::alone;
use crate::python::{VERSIONS, libraries, pyenv};
use crate::{BARE, Way, list, text};

/// One of each, as Python's own literals must be read.
fn every_kind() -> (Value, &'static str) {
    let floats = [0.1, -0.0, 5e-324, f64::MAX, f64::INFINITY, f64::NEG_INFINITY];
    let integers =
        [0, 1, -1, i128::from(i32::MAX), i128::from(i32::MIN) - 1, 1 << 64, -(1 << 64), i128::MAX, i128::MIN];
    let value = list([
        Value::Null,
        true.into(),
        false.into(),
        list(floats.map(Value::from)),
        list(integers.map(Value::Int)),
        Value::BigInt(format!("-1{}", "0".repeat(100))),
        list([text(""), text("é\u{1f600}\0")]),
        Value::Bytes(vec![0, 255]),
        Value::from(vec![(String::new(), list([])), ("k".to_owned(), Value::from(Vec::<(String, Value)>::new()))]),
    ]);
    let literal = "[None, True, False, [0.1, -0.0, 5e-324, 1.7976931348623157e308, float('inf'), -float('inf')], [0, 1, -1, \
                   2**31 - 1, -2**31 - 1, 2**64, -2**64, 2**127 - 1, -2**127], -10**100, ['', 'é\\U0001f600\\0'], \
                   b'\\x00\\xff', {'': [], 'k': {}}]";
    (value, literal)
}

#[test]
fn plain_values_are_pythons_own_in_every_version() {
    if !alone("plain::plain_values_are_pythons_own_in_every_version") {
        return;
    }
    let (value, literal) = every_kind();
    let source = format!("expected = {literal}\nresult = [repr(x) == repr(expected), type(n) is float and n != n]");
    let pythons = VERSIONS.into_iter().filter_map(pyenv).chain([BARE.into()]);
    for python in pythons {
        let script = || Script::from(source.as_str()).value("x", value.clone()).unwrap().value("n", f64::NAN).unwrap();
        for way in [Way::cold(&python, &[]), Way::warm(&python, "json", &[])] {
            assert_eq!(way.result(script()), list([true.into(), true.into()]), "{}", python.display());
        }
    }
}

fn dtype() -> impl Strategy<Value = DType> {
    let size = prop::sample::select(vec![1, 2, 4, 8]);
    let unit = prop::sample::select(vec![TimeUnit::Day, TimeUnit::Second, TimeUnit::Nanosecond]);
    let step = prop::sample::select(vec![1, 25]);
    prop_oneof![
        Just(DType::Bool),
        size.clone().prop_map(DType::Int),
        size.prop_map(DType::UInt),
        prop::sample::select(vec![2, 4, 8]).prop_map(DType::Float),
        prop::sample::select(vec![8, 16]).prop_map(DType::Complex),
        (unit.clone(), step.clone()).prop_map(|(unit, step)| DType::Datetime(unit, step)),
        (unit, step).prop_map(|(unit, step)| DType::Timedelta(unit, step)),
    ]
}

/// Arrays of one axis at least: a single number comes back as a number.
fn array() -> impl Strategy<Value = Value> {
    (dtype(), prop::collection::vec(0..4_usize, 1..4)).prop_flat_map(|(dtype, shape)| {
        let size = shape.iter().product::<usize>() * dtype.size();
        let most = if dtype == DType::Bool { 1 } else { u8::MAX };
        let data = prop::collection::vec(0..=most, size);
        data.prop_map(move |data| Value::from(Array::new(dtype, shape.clone(), data).unwrap()))
    })
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i128>().prop_map(Value::Int),
        any::<i64>().prop_map(Value::from),
        "-?[1-9][0-9]{40,300}".prop_map(Value::BigInt),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
        array(),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(any::<String>(), inner, 0..6)
                .prop_map(|entries| Value::from(entries.into_iter().collect::<Vec<_>>())),
        ]
    })
}

#[test]
fn any_value_comes_back_as_it_went_in() {
    if !alone("plain::any_value_comes_back_as_it_went_in") {
        return;
    }
    let Some((python, _)) = libraries() else { return };
    let pool = Way::warm(&python, "pandas,numpy", &[]);
    let mut runner = TestRunner::new(Config { cases: 100, failure_persistence: None, ..Config::default() });
    let strategy = prop::collection::vec(value(), 1..20).prop_map(Value::from);
    let tested = runner.run(&strategy, |value| {
        let found = pool.result(Script::from("result = x").value("x", value.clone()).unwrap());
        // NaN is not equal to itself.
        prop_assert_eq!(format!("{found:?}"), format!("{value:?}"));
        Ok(())
    });
    tested.unwrap();
}

#[test]
fn arrays_are_numpys_and_writable() {
    if !alone("plain::arrays_are_numpys_and_writable") {
        return;
    }
    let Some((python, _)) = libraries() else { return };
    let days = [0_i64, 1].iter().flat_map(|day| day.to_le_bytes()).collect();
    let arrays = list([
        Array::new(DType::Int(4), vec![2, 3], (0..6_i32).flat_map(i32::to_le_bytes).collect()).unwrap().into(),
        Array::new(DType::Datetime(TimeUnit::Day, 1), vec![2], days).unwrap().into(),
        Array::new(DType::Float(8), vec![], 2.5_f64.to_le_bytes().to_vec()).unwrap().into(),
        Array::new(DType::UInt(2), vec![0, 3], Vec::new()).unwrap().into(),
    ]);
    let source = "
result = [[str(a.dtype), list(a.shape), bool(a.flags.writeable and a.flags.c_contiguous and a.flags.aligned)] for a in x]
result.append([x[0].tolist(), str(x[1][1]), float(x[2])])
x[0][1, 2] = 9
x[1][0] = '2020-01-01'
result.append([x[0].tolist(), str(x[1][0])])
";
    let kind = |name: &str, shape: &[i64]| list([text(name), list(shape.iter().map(|&axis| axis.into())), true.into()]);
    let rows = |last: i32| list([list([0, 1, 2].map(Value::from)), list([3, 4, last].map(Value::from))]);
    let expected = list([
        kind("int32", &[2, 3]),
        kind("datetime64[D]", &[2]),
        kind("float64", &[]),
        kind("uint16", &[0, 3]),
        list([rows(5), text("1970-01-02"), 2.5.into()]),
        list([rows(9), text("2020-01-01")]),
    ]);
    let cold = Way::cold(&python, &[]);
    assert_eq!(cold.result(Script::from(source).value("x", arrays).unwrap()), expected);
}
