//! Every kind of value on every backend, under the check.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use nsbox::batch::{Batch, Record, strategies};
use nsbox::event::Log;
use nsbox::outcome::{Array, Backend, Ended, Table, Value, Verdict};
use nsbox::router::Router;
use nsbox::sandbox::{Cancel, Input, Script, Stdin, Watch};

use crate::harness::alone;
use crate::python::libraries;
use crate::{BARE, Way, config, list, text};

/// What the scripts of this module and of `docker` are given: a dict, an array, and a table.
pub fn inputs() -> [(&'static str, Input); 3] {
    let plain = Value::from(vec![("fast".to_owned(), 10.into()), ("slow".to_owned(), list([30.into(), Value::Null]))]);
    let columns: [(&str, ArrayRef); 3] = [
        ("price", Arc::new(Float64Array::from(vec![1.5, 2.5, 3.5]))),
        ("volume", Arc::new(Int64Array::from(vec![10, 20, 30]))),
        ("name", Arc::new(StringArray::from(vec![Some("a"), None, Some("c")]))),
    ];
    let table = Table::from_batch(&RecordBatch::try_from_iter(columns).unwrap()).unwrap();
    let array = Array::from(&[1.0, 2.0, 4.0][..]);
    [("plain", plain), ("array", array.into()), ("table", Value::from(table))]
        .map(|(name, value)| (name, Input::new(value).unwrap()))
}

/// Writes to all that it was given, after it has told what that was.
pub const WRITES: &str = "
import numpy as np
import pandas as pd

result = [plain, array.tolist(), str(array.dtype), table['price'].tolist(), table['volume'].sum(), list(table.columns),
          table['name'].isna().tolist(), sorted(set(inputs) - {'libs'}), inputs['plain'] is plain, isinstance(table, pd.DataFrame)]
result[0] = dict(plain)
array[:] = 0
table['price'] = table['price'] * 2
table.loc[0, 'volume'] = -1
table['new'] = np.arange(3)
table.iloc[1, 2] = 'b'
plain['fast'] = 0
result.append([array.sum(), table['price'].sum(), table['volume'].sum(), table['new'].sum(), table['name'].tolist(), plain['fast']])
";

/// What comes of it.
pub fn written() -> Value {
    let floats = |numbers: &[f64]| list(numbers.iter().map(|&number| number.into()));
    let plain = Value::from(vec![("fast".to_owned(), 10.into()), ("slow".to_owned(), list([30.into(), Value::Null]))]);
    list([
        plain,
        floats(&[1.0, 2.0, 4.0]),
        text("float64"),
        floats(&[1.5, 2.5, 3.5]),
        60.into(),
        list(["price", "volume", "name"].map(text)),
        list([false, true, false].map(Value::from)),
        list(["array", "plain", "table"].map(text)),
        true.into(),
        true.into(),
        list([0.0.into(), 15.0.into(), 49.into(), 3.into(), list(["a", "b", "c"].map(text)), 0.into()]),
    ])
}

pub fn give(source: &str) -> Script {
    inputs().iter().fold(Script::from(source), |script, (name, input)| script.give(*name, input))
}

#[test]
fn every_kind_is_there_and_writable_and_the_next_run_sees_nothing_of_it() {
    if !alone("backends::every_kind_is_there_and_writable_and_the_next_run_sees_nothing_of_it") {
        return;
    }
    let Some((python, packages)) = libraries() else { return };
    let inputs = inputs();
    let give = || inputs.iter().fold(Script::from(WRITES), |script, (name, input)| script.give(*name, input));
    for way in Way::all(&python, Some(&packages), &[]) {
        for _ in 0..3 {
            assert_eq!(way.result(give()), written(), "{:?}", way.backend());
        }
    }
}

#[test]
fn pool_serves_one_run_after_another_with_values_of_their_own() {
    if !alone("backends::pool_serves_one_run_after_another_with_values_of_their_own") {
        return;
    }
    let pool = Way::warm(BARE.as_ref(), "json", &[]);
    for number in 0..6_i64 {
        let script = Script::from("result = [number, inputs]").value("number", number).unwrap();
        let inputs = Value::from(vec![("number".to_owned(), number.into())]);
        assert_eq!(pool.result(script), list([number.into(), inputs]));
        let nothing = Script::from("try: result = [number, inputs]\nexcept NameError as error: result = str(error)");
        assert_eq!(pool.result(nothing), text("name 'number' is not defined"));
    }
    let Way::Warm(pool) = pool else { unreachable!() };
    assert_eq!(pool.counts().forked, 0, "none needs a slot made for it");
}

#[test]
fn files_and_values_stand_side_by_side() {
    if !alone("backends::files_and_values_stand_side_by_side") {
        return;
    }
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let path = folder.path().join("data");
    std::fs::write(&path, "content").unwrap();
    for way in Way::all(BARE.as_ref(), None, &[("check", "false")]) {
        if way.backend() == Backend::AstOnly {
            continue;
        }
        let source = "with open(inputs['data']) as file: result = [file.read(), x, sorted(inputs), argument()]";
        let source = format!("import sys\ndef argument(): return sys.argv[1]\n{source}");
        let script = Script::from(source).input("data", &path).value("x", 2.5).unwrap().arg("arg");
        let expected = list([text("content"), 2.5.into(), list(["data", "x"].map(text)), text("arg")]);
        assert_eq!(way.result(script), expected, "{:?}", way.backend());
    }
}

#[test]
fn slots_made_to_order_have_values() {
    if !alone("backends::slots_made_to_order_have_values") {
        return;
    }
    let keys = [("check", "false")];
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    for way in [Way::cold(BARE.as_ref(), &keys), Way::warm(BARE.as_ref(), "json", &keys)] {
        let source = "import sys\nopen('/output/x', 'w').write(x)\nresult = [x, sys.stdin.read()]";
        let script = Script::from(source).value("x", "value").unwrap().stdin(Stdin::Stream(Box::new(&b"stream"[..])));
        let result = way.result(script.artifacts(folder.path().join("out")));
        assert_eq!(result, list(["value", "stream"].map(text)));
        assert_eq!(std::fs::read_to_string(folder.path().join("out/x")).unwrap(), "value");
    }
}

#[test]
fn backend_that_takes_over_has_the_values_too() {
    if !alone("backends::backend_that_takes_over_has_the_values_too") {
        return;
    }
    let keys = [("backend", "docker"), ("fallback", "ast-only"), ("docker.image", "nsbox-no-such-image")];
    let router = Router::new(config(BARE.as_ref(), &keys), Log::off());
    let outcome = router.run(Script::from("result = x + 1").value("x", 41).unwrap(), Watch::default());
    assert_eq!((outcome.verdict, outcome.backend), (Verdict::Ok, Some(Backend::AstOnly)), "{outcome:#?}");
    assert_eq!((outcome.result, outcome.attempts.len()), (Some(42.into()), 1));
}

#[test]
fn loop_gives_one_table_to_all_its_strategies() {
    if !alone("backends::loop_gives_one_table_to_all_its_strategies") {
        return;
    }
    let Some((python, _)) = libraries() else { return };
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    for factor in 1..=3 {
        let source = format!("table['price'] = table['price'] * {factor}\nmetrics = {{'sum': table['price'].sum()}}\n");
        std::fs::write(folder.path().join(format!("strategy{factor}.py")), source).unwrap();
    }
    let table = &inputs()[2].1;
    let router = Router::new(config(&python, &[]), Log::off()).jobs(2);
    let batch = Batch::new(strategies(&[folder.path().to_owned()]).unwrap()).iterations(12).jobs(2);
    let mut records = Vec::new();
    let given = |script: Script, _| script.give("table", table);
    let ran = batch.run(&router, &HashSet::new(), &Cancel::new().unwrap(), given, |record| {
        records.push(record);
        Ok::<(), ()>(())
    });
    ran.unwrap();
    assert_eq!(records.len(), 12);
    for Record { iteration, outcome, .. } in records {
        assert_eq!((outcome.verdict, outcome.ended), (Verdict::Ok, Ended::Answered), "{outcome:#?}");
        let sum = [7.5, 15.0, 22.5][usize::try_from(iteration).unwrap() % 3];
        assert_eq!(outcome.metrics, Some(vec![("sum".to_owned(), Value::from(sum))].into()));
    }
}

#[test]
fn result_of_one_run_is_an_input_of_the_next() {
    if !alone("backends::result_of_one_run_is_an_input_of_the_next") {
        return;
    }
    let Some((python, _)) = libraries() else { return };
    let pool = Way::warm(&python, "pandas,numpy", &[]);
    let first = "
import numpy as np, pandas as pd
frame = pd.DataFrame({'a': [1.5, 2.5], 'b': ['x', None]}, index=pd.date_range('2020', periods=2, name='date'))
result = {'frame': frame, 'series': frame['a'], 'index': frame.index, 'array': np.eye(2), 'more': [{'deep': frame}, (1, b'x')]}
";
    let made = pool.result(Script::from(first));
    let second = format!(
        "{first}
made, again = given, result
for key in ('frame', 'series', 'index'):
    assert made[key].equals(again[key]), key
assert made['more'][0]['deep'].equals(frame) and made['more'][1] == [1, b'x']
assert made['array'].tolist() == again['array'].tolist()
assert made['series'].name == 'a' and made['index'].name == made['frame'].index.name == 'date'
result = given
"
    );
    let given = pool.result(Script::from(second).value("given", made.clone()).unwrap());
    assert_eq!(given, made);
}
