//! What a large input costs: nothing of a run's memory until it writes, and no copy.

use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch};
use nsbox::outcome::{Array, DType, Table, Verdict};
use nsbox::sandbox::{Input, Script};

use crate::Way;
use crate::harness::alone;
use crate::python::libraries;

/// 100 MB of float64, in one array and in a table of ten columns.
const ROWS: usize = 1_310_720;
const COLUMNS: usize = 10;
const SIZE: u64 = 100 << 20;

fn array() -> Input {
    let data = (0..ROWS * COLUMNS).flat_map(|number| (number as f64).to_le_bytes()).collect();
    Input::new(Array::new(DType::Float(8), vec![ROWS, COLUMNS], data).unwrap()).unwrap()
}

fn table() -> Input {
    let column = |i: usize| Arc::new(Float64Array::from_iter_values((0..ROWS).map(|row| (row + i) as f64))) as ArrayRef;
    let columns = (0..COLUMNS).map(|i| (format!("c{i}"), column(i)));
    Input::new(Table::from_batch(&RecordBatch::try_from_iter(columns).unwrap()).unwrap()).unwrap()
}

/// The peak of a run's memory.
#[track_caller]
fn run(way: &Way, source: &str, inputs: &[(&str, &Input)]) -> u64 {
    let script = inputs.iter().fold(Script::from(source), |script, (name, input)| script.give(*name, input));
    let outcome = way.run(script);
    assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
    outcome.usage.peak_memory_bytes.unwrap()
}

#[test]
fn pages_are_charged_when_they_are_written_to() {
    if !alone("cost::pages_are_charged_when_they_are_written_to") {
        return;
    }
    let Some((python, _)) = libraries() else { return };
    let (array, table) = (array(), table());
    assert!(
        (SIZE..SIZE + (1 << 20)).contains(&array.size()) && table.size() >= SIZE,
        "{} {}",
        array.size(),
        table.size()
    );
    let keys = [("limits.memory", "1g")];
    for way in [Way::cold(&python, &keys), Way::warm(&python, "pandas,numpy", &keys)] {
        let alone = run(&way, "import numpy, pandas, pyarrow, pyarrow.ipc\npandas.DataFrame({'a': [1]})", &[]);
        for (input, read, written) in [
            (&array, "assert x[:, 0].sum() > 0 and x.max() > 1e7", "x += 1"),
            (&table, "assert x['c0'].sum() > 0 and x['c9'].max() > 1e6", "for c in x: x.loc[:, c] += 1"),
        ] {
            let (reading, writing) = (run(&way, read, &[("x", input)]), run(&way, written, &[("x", input)]));
            assert!(reading < alone + SIZE / 6, "{reading} bytes to read, {alone} without");
            assert!(writing > reading + SIZE / 2, "{writing} bytes to write, {reading} to read");
        }
    }
}

#[test]
fn input_larger_than_the_limit_of_memory_can_be_read() {
    if !alone("cost::input_larger_than_the_limit_of_memory_can_be_read") {
        return;
    }
    let Some((python, packages)) = libraries() else { return };
    let array = array();
    for way in Way::all(&python, Some(&packages), &[("limits.memory", "96m")]) {
        let outcome = way.run(Script::from("result = x.shape[0] if x.max() > 1e7 else 0").give("x", &array));
        assert_eq!(outcome.verdict, Verdict::Ok, "{:?} {outcome:#?}", way.backend());
    }
    let cold = Way::cold(&python, &[("limits.memory", "96m")]);
    let outcome = cold.run(Script::from("x += 1").give("x", &array));
    assert_eq!(outcome.verdict, Verdict::Oom, "{outcome:#?}");
}
