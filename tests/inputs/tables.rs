//! Tables: real prices, and whatever pandas can hold, as a run hands it back.

use std::fs::File;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampSecondArray};
use nsbox::outcome::{Table, TableKind, Value, Verdict};
use nsbox::sandbox::{Input, Script};

use crate::harness::{alone, require};
use crate::python::{environment, libraries};
use crate::{Way, list, text};

/// The prices of a CSV file: a column of days and others of numbers.
fn read_prices(path: &std::path::Path) -> RecordBatch {
    let mut reader = csv::Reader::from_reader(File::open(path).unwrap());
    let names: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let numbers = |column: usize| rows.iter().map(move |row| row[column].parse::<f64>().unwrap());
    let columns = names.iter().enumerate().map(|(i, name)| -> (&str, ArrayRef) {
        match name.as_str() {
            "" => {
                let day = |row: &csv::StringRecord| {
                    row[0].parse::<jiff::civil::Date>().unwrap().to_zoned(jiff::tz::TimeZone::UTC)
                };
                let seconds = rows.iter().map(|row| day(row).unwrap().timestamp().as_second());
                ("day", Arc::new(TimestampSecondArray::from_iter_values(seconds)))
            }
            #[expect(clippy::cast_possible_truncation, reason = "volumes are whole")]
            "Volume" => ("Volume", Arc::new(Int64Array::from_iter_values(numbers(i).map(|volume| volume as i64)))),
            other => (other, Arc::new(Float64Array::from_iter_values(numbers(i)))),
        }
    });
    RecordBatch::try_from_iter(columns.collect::<Vec<_>>()).unwrap()
}

#[test]
fn real_prices_are_those_that_pandas_reads_inside() {
    if !alone("tables::real_prices_are_those_that_pandas_reads_inside") {
        return;
    }
    let Some((python, packages)) = libraries() else { return };
    let csv = packages.join("backtesting/test/GOOG.csv");
    if !require(csv.is_file(), "backtesting's prices in the environment") {
        return;
    }
    let prices = Input::new(Table::from_batch(&read_prices(&csv)).unwrap()).unwrap();
    let source = "
import pandas as pd
expected = pd.read_csv('/input/csv', parse_dates=[0]).rename(columns={'Unnamed: 0': 'day'})
expected['day'] = expected['day'].astype('datetime64[s]')
assert prices.dtypes.tolist() == expected.dtypes.tolist(), (prices.dtypes, expected.dtypes)
assert prices.equals(expected) and isinstance(prices.index, pd.RangeIndex)
data = prices.set_index('day')
crossed = (data['Close'].rolling(10).mean() > data['Close'].rolling(30).mean()).astype(int)
prices['Close'] = prices['Close'] * 2
prices.loc[0, 'day'] = pd.Timestamp('1999-01-01')
assert prices['Close'].sum() == expected['Close'].sum() * 2 and prices['day'].iloc[0].year == 1999
result = [len(prices), int(crossed.sum())]
";
    let mut found = Vec::new();
    for way in [Way::cold(&python, &[]), Way::warm(&python, "pandas,numpy", &[])] {
        for _ in 0..2 {
            found.push(way.result(Script::from(source).input("csv", &csv).give("prices", &prices)));
        }
    }
    let Value::List(first) = &found[0] else { panic!("{found:?}") };
    assert!(first[0] == Value::from(2148) && found.iter().all(|other| *other == found[0]), "{found:?}");
}

/// Frames of every kind that a run can hand back, by name.
const FRAMES: &str = "
import datetime, decimal
import numpy as np, pandas as pd

n = 20
every = pd.DataFrame({
    'i': np.arange(n), 'f': np.linspace(0, 1, n), 'f32': np.arange(n, dtype='f4'), 'u8': np.arange(n, dtype='u1'),
    'b': np.arange(n) % 2 == 0, 's': [f'x{i}' for i in range(n)], 't': pd.date_range('2020', periods=n),
    'ts': pd.date_range('2020', periods=n).as_unit('s'), 'tz': pd.date_range('2020', periods=n, tz='Asia/Taipei'),
    'td': pd.to_timedelta(np.arange(n), unit='s'), 'c': pd.Categorical(['a', 'b'] * (n // 2)),
    'I': pd.array([1, None] * (n // 2), dtype='Int64'), 'nan': [1.0, np.nan] * (n // 2), 'o': [None, 'y'] * (n // 2),
    'd': [datetime.date(2020, 1, 1)] * n, 'dec': [decimal.Decimal('1.10')] * n,
})
numbers = every[['i', 'f']]
frames = {
    'every': every, 'dates': every.set_index(pd.DatetimeIndex(every['t'].values, name='date')),
    'text index': numbers.set_index(every['s']), 'levels': every.set_index(['s', 'i']), 'step': every.iloc[::2],
    'integer columns': pd.DataFrame(np.eye(3)), 'named columns': numbers.rename_axis(columns='field'),
    'column levels': pd.DataFrame(np.eye(4), columns=pd.MultiIndex.from_product([['a', 'b'], [1, 2]], names=['x', 'y'])),
    'date columns': pd.DataFrame(np.eye(2), columns=pd.date_range('2020', periods=2)),
    'empty': pd.DataFrame(), 'no rows': numbers.iloc[:0], 'no columns': pd.DataFrame(index=list('abc')),
}
";

#[test]
fn every_frame_comes_back_equal_and_writable() {
    if !alone("tables::every_frame_comes_back_equal_and_writable") {
        return;
    }
    let Some((python, _)) = libraries() else { return };
    // pandas 3, and the last that a Python 3.10 has: pandas 2.
    let older = environment("3.10").map(|folder| folder.join("bin/python3"));
    for python in older.into_iter().chain([python]) {
        every_frame(&Way::warm(&python, "pandas,numpy", &[("check", "false")]));
    }
}

fn every_frame(pool: &Way) {
    let made = pool.result(Script::from(format!("{FRAMES}\nresult = frames")));
    let source = format!(
        "{FRAMES}
for name, frame in given.items():
    pd.testing.assert_frame_equal(frames[name], frame, check_freq=False, obj=name)
    for column in range(frame.shape[1]) if len(frame) > 1 else ():
        frame.iloc[0, column] = frame.iloc[1, column]
    if len(frame):
        assert frame.iloc[0].equals(frame.iloc[1]) or frame.isna().any(axis=None), name
every = given['every']
if pd.__version__ < '3':
    every['f'].values[3] = 9
    assert every['f'].iloc[3] == 9
result = [len(given), every['i'].tolist()[:3]]
"
    );
    let found = pool.result(Script::from(source).value("given", made).unwrap());
    assert_eq!(found, list([12.into(), list([1, 1, 2].map(Value::from))]));
}

#[test]
fn frame_of_many_rows_comes_back_as_arrow_on_several_cpus() {
    if !alone("tables::frame_of_many_rows_comes_back_as_arrow_on_several_cpus") {
        return;
    }
    let Some((python, _)) = libraries() else { return };
    // pyarrow would have threads make it, when all threads have been joined.
    let cold = Way::cold(&python, &[("limits.cpus", "2")]);
    let source = "import pandas as pd\nresult = pd.DataFrame({'a': range(5000), 'b': 1.5, 'c': 'x'})";
    let made = cold.result(Script::from(source));
    let Value::Table(table) = &made else { panic!("{made:?}") };
    let batches = table.batches().unwrap();
    assert_eq!((batches[0].num_rows(), batches[0].num_columns()), (5000, 3));
}

#[test]
fn series_and_indexes_come_back_equal() {
    if !alone("tables::series_and_indexes_come_back_equal") {
        return;
    }
    let Some((python, _)) = libraries() else { return };
    let pool = Way::warm(&python, "pandas,numpy", &[("check", "false")]);
    let source = "
import pandas as pd
dates = pd.date_range('2020', periods=3, name='date')
series = {'named': pd.Series([1.5, 2.5], name='a'), 'nameless': pd.Series([1, 2]), 'number': pd.Series([1, 2], name=5),
          'text': pd.Series(['a', None], name='t'), 'dates': pd.Series([1, 2, 3], index=dates, name='v')}
indexes = {'dates': dates, 'text': pd.Index(list('ab')), 'levels': pd.MultiIndex.from_product([[1, 2], ['a']]),
           'zone': pd.date_range('2020', periods=2, tz='UTC'), 'named levels': pd.MultiIndex.from_product([[1], ['a']], names=['x', 'y'])}
";
    let made = pool.result(Script::from(format!("{source}\nresult = [series, indexes]")));
    let source = format!(
        "{source}
for name, one in given[0].items():
    pd.testing.assert_series_equal(series[name], one, check_freq=False, obj=name)
    one.iloc[0] = one.iloc[1]
for name, one in given[1].items():
    assert one.equals(indexes[name]) and one.names == indexes[name].names, name
result = [len(given[0]), len(given[1])]
"
    );
    let found = pool.result(Script::from(source).value("given", made).unwrap());
    assert_eq!(found, list([5.into(), 5.into()]));
}

#[test]
fn tables_of_runs_without_pyarrow_are_given_without_it() {
    if !alone("tables::tables_of_runs_without_pyarrow_are_given_without_it") {
        return;
    }
    let Some((python, _)) = libraries() else { return };
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::write(folder.path().join("pyarrow.py"), "raise ModuleNotFoundError('none', name='pyarrow')").unwrap();
    let cold = Way::cold(&python, &[("env", "PYTHONPATH=/input/libs"), ("check", "false")]);
    let source = "
import numpy as np, pandas as pd
frame = pd.DataFrame({'a': [1.5, 2.5], 'b': ['x', None], 't': pd.date_range('2020', periods=2)}, index=[3, 4])
levels = pd.DataFrame({'a': [1, 2]}, index=pd.MultiIndex.from_tuples([(1, 'x'), (2, 'y')]))
";
    let run = |source: String| Script::from(source).input("libs", folder.path());
    let made = cold.result(run(format!("{source}\nresult = [frame, levels, frame['a'], frame.index]")));
    let Value::List(tables) = &made else { panic!("{made:?}") };
    for table in tables {
        assert!(matches!(table, Value::Table(table) if table.split().is_some()), "{table:?}");
    }
    let source = format!(
        "{source}
assert given[0].equals(frame) and given[1].equals(levels) and given[2].equals(frame['a']) and given[3].equals(frame.index)
given[0].loc[3, 'a'] = 9
result = [given[2].name, given[0]['a'].sum()]
"
    );
    let found = cold.result(run(source).value("given", made.clone()).unwrap());
    assert_eq!(found, list([text("a"), 11.5.into()]));
}

#[test]
fn stream_that_is_none_is_refused_outside() {
    Table::from_ipc(TableKind::Frame, b"no stream".to_vec()).unwrap_err();
    let batch = RecordBatch::try_from_iter([("x", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
    let table = Table::from_batch(&batch).unwrap();
    assert_eq!(table.batches().unwrap(), &[batch]);
    let again = Table::from_ipc(TableKind::Frame, table.ipc().unwrap().to_vec()).unwrap();
    assert_eq!(again.batches(), table.batches());
}

#[test]
fn globals_that_only_the_caller_names_pass_the_check() {
    if !alone("tables::globals_that_only_the_caller_names_pass_the_check") {
        return;
    }
    let Some((python, _)) = libraries() else { return };
    let pool = Way::warm(&python, "pandas,numpy", &[]);
    let source = "def mean(): return prices.mean()\nresult = [mean(), inputs['prices'] is prices, [p for p in prices]]";
    let prices = Input::new(nsbox::outcome::Array::from(&[1.0, 3.0][..])).unwrap();
    let expected = list([2.0.into(), true.into(), list([1.0.into(), 3.0.into()])]);
    assert_eq!(pool.result(Script::from(source).give("prices", &prices)), expected);
    let outcome = pool.run(Script::from("import os\nresult = os.listdir(prices)").give("prices", &prices));
    assert_eq!(outcome.verdict, Verdict::Rejected);
}
