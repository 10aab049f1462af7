//! numpy and pandas: the numbers in Rust and in JSON equal the ones in Python.

use nsbox::outcome::{DType, Document, TableKind, TimeUnit, Value};
use serde_json::{Value as Json, json};

use super::{Ran, Run, libraries};

/// Runs a script with numpy as `np` and pandas as `pd`; `None` where they are not there.
fn run(source: &str) -> Option<Ran> {
    let (python, packages) = libraries()?;
    // What hides pyarrow must come before pandas looks for it.
    let (before, source) = source.strip_prefix(NO_ARROW).map_or(("", source), |rest| (NO_ARROW, rest));
    let source = format!("{before}import json\nimport numpy as np\nimport pandas as pd\n{source}");
    Some(Run::new(&python, source).key(format!("path={}", packages.display())).key("seed=7").go())
}

fn collect(source: &str) -> Option<Document> {
    run(source).map(|ran| ran.well())
}

/// The script's `result` in JSON, which must be what it printed.
fn equals_what_is_printed(source: &str) {
    let Some(ran) = run(source) else { return };
    let result = ran.result().to_json(&mut Vec::new());
    let printed: Json = serde_json::from_str(&ran.stdout()).unwrap();
    assert_eq!(result, printed);
}

/// Without pyarrow in the guest.
const NO_ARROW: &str = "import sys\nsys.modules['pyarrow'] = None\n";

/// A frame of many kinds of columns, and what JSON is to say of it.
const FRAME: &str = "n = 1000\n\
    rng = np.random.default_rng(1)\n\
    df = pd.DataFrame({'f': rng.normal(size=n) * 10.0 ** rng.integers(-300, 300, n), 'i': rng.integers(-2**62, 2**62, n),\n\
    \x20 'b': rng.integers(0, 2, n).astype(bool), 's': [None if i % 7 == 0 else f'x{i}é' for i in range(n)], 'u': np.arange(n, dtype='u8') + 2**63,\n\
    \x20 'f4': rng.normal(size=n).astype('f4'), 'i1': rng.integers(-128, 128, n).astype('i1')})\n\
    df.loc[3, 'f'] = np.nan\n";
const SPLIT: &str = "def plain(v): return None if v is None or v != v else v.item() if hasattr(v, 'item') else v\n\
    def split(df): return json.dumps({'columns': list(df.columns), 'index': [plain(v) for v in df.index],\n\
    \x20 'data': [list(row) for row in zip(*[[plain(v) for v in df[c]] for c in df.columns])]})\n";

#[test]
fn frame_in_json_equals_pandas() {
    for arrow in ["", NO_ARROW] {
        equals_what_is_printed(&format!("{arrow}{FRAME}{SPLIT}print(split(df))\nresult = df"));
        equals_what_is_printed(&format!("{arrow}{FRAME}{SPLIT}df = df.iloc[5:50:3]\nprint(split(df))\nresult = df"));
        equals_what_is_printed(&format!(
            "{arrow}{FRAME}{SPLIT}df.index = [f'k{{i}}' for i in range(n)]\nprint(split(df))\nresult = df"
        ));
        equals_what_is_printed(&format!("{arrow}{SPLIT}df = pd.DataFrame({{'a': []}})\nprint(split(df))\nresult = df"));
    }
}

#[test]
fn series_and_indexes_equal_pandas() {
    for arrow in ["", NO_ARROW] {
        let source = format!(
            "{arrow}s = pd.Series([1.5, 2.5], index=['a', 'b'], name='close')\n\
             m = pd.Series([1, 2], index=pd.MultiIndex.from_tuples([('x', 1), ('y', 2)]))\n\
             result = [s, m, pd.Index([3, 4]), pd.RangeIndex(2, 8, 3)]"
        );
        let Some(document) = collect(&source) else { return };
        let expected = json!([
            {"name": "close", "index": ["a", "b"], "data": [1.5, 2.5]},
            {"name": null, "index": [["x", 1], ["y", 2]], "data": [1, 2]}, [3, 4], [2, 5]
        ]);
        let json = document.result.unwrap().to_json(&mut Vec::new());
        assert_eq!(json, expected, "{arrow}");
    }
}

#[test]
fn frame_is_arrow_where_pyarrow_is() {
    let Some(document) = collect("result = pd.DataFrame({'a': [1, 2]})") else { return };
    let Some(Value::Table(table)) = document.result else { panic!("not a table") };
    assert_eq!(table.kind(), TableKind::Frame);
    assert_eq!(table.batches().unwrap().iter().map(|batch| batch.num_rows()).sum::<usize>(), 2);
    assert!(table.ipc().is_some() && table.split().is_none());
}

#[test]
fn dates_in_tables_are_iso() {
    let source = "t = pd.date_range('2024-01-01', periods=2, freq='D')\n\
        result = pd.DataFrame({'v': [1, 2], 'z': t.tz_localize('Europe/Berlin'), 'c': pd.Categorical(['p', None]), 'l': [[1], []]}, index=t)";
    let Some(document) = collect(source) else { return };
    let expected = json!({
        "columns": ["v", "z", "c", "l"], "index": ["2024-01-01T00:00:00", "2024-01-02T00:00:00"],
        "data": [[1, "2023-12-31T23:00:00Z", "p", [1]], [2, "2024-01-01T23:00:00Z", null, []]]
    });
    assert_eq!(document.result.unwrap().to_json(&mut Vec::new()), expected);
}

#[test]
fn frame_that_arrow_refuses_is_plain_columns() {
    let source = "result = [pd.DataFrame({'a': [1, 'x', None]}), pd.DataFrame([[1, 2]], columns=['a', 'a']), pd.DataFrame({'c': [1 + 2j]})]";
    let Some(document) = collect(source) else { return };
    let expected = json!([
        {"columns": ["a"], "index": [0, 1, 2], "data": [[1], ["x"], [null]]},
        {"columns": ["a", "a"], "index": [0], "data": [[1, 2]]},
        {"columns": ["c"], "index": [0], "data": [[[1.0, 2.0]]]}
    ]);
    assert_eq!(document.result.unwrap().to_json(&mut Vec::new()), expected);
}

#[test]
fn arrays_of_every_number_equal_numpy() {
    let source = "rng = np.random.default_rng(2)\nresult, expected = [], []\n\
        for t in 'bool i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 >i4 >f8'.split():\n\
        \x20   for shape in [(7,), (2, 3), (2, 1, 4), (0,), (3, 0), (0, 3)]:\n\
        \x20       a = (rng.normal(size=shape) * 50).astype('i8').astype(t)\n\
        \x20       result += [a, np.asfortranarray(a), a[::-1]]\n\
        \x20       expected += [a.tolist(), a.tolist(), a[::-1].tolist()]\n\
        print(json.dumps(expected))";
    equals_what_is_printed(source);
}

#[test]
fn array_bytes_are_the_same_as_in_numpy() {
    let source = "result = np.array([[0.1, np.nan], [np.inf, -0.0]])\nprint(json.dumps(list(result.tobytes())))";
    let Some(ran) = run(source) else { return };
    let Value::Array(array) = ran.result() else { panic!("not an array") };
    assert_eq!((array.dtype(), array.shape()), (DType::Float(8), &[2, 2][..]));
    assert_eq!(serde_json::from_str::<Vec<u8>>(&ran.stdout()).unwrap(), array.data());
}

#[test]
fn arrays_of_time_and_complex_numbers_keep_their_type() {
    let units =
        "Y M W D h m s ms us ns".split(' ').map(|unit| format!("np.array(['2024-02-29', 'NaT'], 'M8[{unit}]')"));
    let source = format!(
        "a = [{}]\nresult = a\nprint(json.dumps([[None if np.isnat(v) else str(v) for v in x] for x in a]))",
        units.collect::<Vec<_>>().join(", ")
    );
    equals_what_is_printed(&source);
    let source =
        "result = [np.array([1 + 2j]), np.array([90061, -1], 'm8[s]'), np.array([5], 'M8[15m]'), np.datetime64('NaT')]";
    let Some(document) = collect(source) else { return };
    let Some(Value::List(items)) = &document.result else { panic!("not a list") };
    let dtypes: Vec<_> = items
        .iter()
        .filter_map(|item| if let Value::Array(array) = item { Some(array.dtype()) } else { None })
        .collect();
    assert_eq!(
        dtypes,
        [DType::Complex(16), DType::Timedelta(TimeUnit::Second, 1), DType::Datetime(TimeUnit::Minute, 15)]
    );
    let expected = json!([[[1.0, 2.0]], ["P1DT3661S", "-P0DT1S"], ["1970-01-01T01:15"], null]);
    assert_eq!(document.result.unwrap().to_json(&mut Vec::new()), expected);
}

#[test]
fn scalars_equal_their_python_values() {
    let source = "result = {'f8': np.float64(0.1), 'f4': np.float32(0.1), 'i': np.int64(-2**63), 'u': np.uint64(2**64 - 1), 'b': np.bool_(True),\n\
        \x20 's': np.str_('x'), 'd': np.datetime64('2024-01-02'), 't': np.timedelta64(1500, 'ms'), 'c': np.complex128(1j), 'z': np.array(3),\n\
        \x20 'ts': pd.Timestamp('2024-01-02 03:04:05.123456789', tz='UTC'), 'nat': pd.NaT, 'na': pd.NA, 'td': pd.Timedelta('1D'),\n\
        \x20 'o': np.array(['a', None, 1.5], dtype=object), 'txt': np.array(['ab', 'c'])}";
    let Some(document) = collect(source) else { return };
    let expected = json!({
        "f8": 0.1, "f4": f64::from(0.1_f32), "i": i64::MIN, "u": u64::MAX, "b": true, "s": "x", "d": "2024-01-02",
        "t": "P0DT1.5S", "c": [0.0, 1.0], "z": 3, "ts": "2024-01-02T03:04:05.123456789+00:00", "nat": null, "na": null,
        "td": "P1DT0H0M0S", "o": ["a", null, 1.5], "txt": ["ab", "c"]
    });
    assert_eq!(document.result.unwrap().to_json(&mut Vec::new()), expected);
    assert_eq!(document.notes, Vec::<String>::new());
}

#[test]
fn table_over_the_limit_says_so() {
    let Some((python, packages)) = libraries() else { return };
    for source in ["pd.DataFrame({'a': range(10000)})", "np.zeros(10000)", "pd.Series(np.zeros(10 ** 7))"] {
        let source = format!("import numpy as np, pandas as pd\nresult = {source}");
        let run = Run::new(&python, source).key(format!("path={}", packages.display())).key("result_limit=5000");
        assert_eq!(run.go().well().over_limit, Some(5000));
    }
}

#[test]
fn seed_makes_numpy_repeatable() {
    let source = "import random\nresult = [np.random.rand(3), random.random()]";
    let Some((python, packages)) = libraries() else { return };
    let ask = |seed: u64| {
        let source = format!("import numpy as np\n{source}");
        let run = Run::new(&python, source).key(format!("path={}", packages.display()));
        run.key(format!("seed={seed}")).go().result()
    };
    assert_eq!(ask(7), ask(7));
    assert_ne!(ask(7), ask(u64::MAX));
    assert_eq!(ask(u64::MAX), ask(u64::MAX));
}
