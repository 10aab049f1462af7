//! The table of a loop, as pandas and pyarrow read it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::require;
use crate::{Desk, is_absent, text};

/// Prints both files as JSON: rows, and the types of Parquet's columns.
const READ: &str = r#"
import json, sys
import pandas as pd, pyarrow.parquet as pq
csv, parquet = pd.read_csv(sys.argv[1]), pq.read_table(sys.argv[2])
assert parquet.schema.names == list(csv.columns)
frame = parquet.to_pandas()
for name in csv.columns:
    assert [a == b or (a != a or a is None) and (b != b or b is None) for a, b in zip(csv[name], frame[name])].count(False) == 0, name
types = {field.name: str(field.type) for field in parquet.schema}
print(json.dumps({"types": types, "rows": parquet.to_pylist(), "compression": pq.ParquetFile(sys.argv[2]).metadata.row_group(0).column(0).compression}))
"#;

/// The environment with pandas and pyarrow: `NSBOX_TEST_VENV`, or `target/test-venv`.
pub fn venv() -> Option<PathBuf> {
    let venv = std::env::var_os("NSBOX_TEST_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv"), PathBuf::from);
    let present = Command::new(venv.join("bin/python")).args(["-c", "import pandas, pyarrow"]).output();
    require(
        present.is_ok_and(|output| output.status.success()),
        "environment with pandas and pyarrow (NSBOX_TEST_VENV)",
    )
    .then_some(venv)
}

const STRATEGIES: [(&str, &str); 5] = [
    ("best.py", "metrics = {'sharpe_ratio': 2.5, 'trades': 12, 'by': {'year': 0.1}}"),
    ("fails.py", "raise ValueError('=cmd()')"),
    ("low.py", "metrics = {'sharpe_ratio': -1.0, 'trades': 90, 'name': 'text', 'flag': True}"),
    ("middle, \"quoted\".py", "metrics = {'sharpe_ratio': 0.1 + 0.2, 'by': {'year': 0.2}}"),
    ("undefined.py", "metrics = {'sharpe_ratio': float('nan'), 'trades': 1}"),
];

#[test]
fn table_is_ranked_and_reads_back() {
    let desk = Desk::new(&STRATEGIES);
    desk.status(&["--csv", "table.csv", "--parquet", "table.parquet"], 1);
    let Some(venv) = venv() else { return };
    let read = |csv: &str, parquet: &str| -> Value {
        let mut command = Command::new(venv.join("bin/python"));
        let output = command.args(["-c", READ]).args([desk.path(csv), desk.path(parquet)]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let table = read("table.csv", "table.parquet");
    let column = |table: &Value, name: &str| -> Vec<Value> {
        table["rows"].as_array().unwrap().iter().map(|row| row[name].clone()).collect()
    };
    assert_eq!(column(&table, "rank"), [1, 2, 3, 4, 5]);
    assert_eq!(column(&table, "iteration"), [0, 3, 2, 1, 4]);
    assert_eq!(column(&table, "strategy")[1], "strategies/middle, \"quoted\".py");
    assert_eq!(column(&table, "verdict"), ["ok", "ok", "ok", "error", "ok"]);
    let sharpe = [json!(2.5), json!(0.1 + 0.2), json!(-1.0), Value::Null, Value::Null];
    assert_eq!(column(&table, "metrics.sharpe_ratio"), sharpe, "to the last digit");
    let trades = [json!(12.0), Value::Null, json!(90.0), Value::Null, json!(1.0)];
    assert_eq!(column(&table, "metrics.trades"), trades);
    assert_eq!(column(&table, "metrics.by.year")[..2], [json!(0.1), json!(0.2)]);
    let expected = json!({
        "rank": "uint64", "iteration": "uint64", "strategy": "string", "verdict": "string", "backend": "string",
        "degraded": "bool", "id": "string", "wall_ms": "double", "setup_ms": "double", "peak_memory_bytes": "uint64",
        "metrics.sharpe_ratio": "double", "metrics.trades": "double", "metrics.by.year": "double",
    });
    assert_eq!((&table["types"], &table["compression"]), (&expected, &json!("SNAPPY")));

    desk.status(&["--csv", "other.csv", "--parquet", "other.parquet", "--rank", "trades"], 1);
    assert_eq!(column(&read("other.csv", "other.parquet"), "iteration"), [2, 0, 4, 1, 3]);
    assert!(is_absent(&desk.path("table.csv.new")) && is_absent(&desk.path("table.parquet.new")));
}

#[test]
fn table_of_a_resumed_loop_is_the_same() {
    let desk = Desk::new(&STRATEGIES);
    let columns = |name: &str| -> Vec<String> {
        // Without the id and the times, which differ from run to run.
        let mut reader = csv::Reader::from_path(desk.path(name)).unwrap();
        let names: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
        let differs = |name: &str| ["id", "wall_ms", "setup_ms", "peak_memory_bytes"].contains(&name);
        let rows = reader.records().map(|row| {
            let row = row.unwrap();
            let cells = names.iter().zip(&row).filter(|(name, _)| !differs(name)).map(|(_, cell)| cell.to_owned());
            cells.collect::<Vec<_>>().join(";")
        });
        rows.collect()
    };
    let args = ["--iterations", "9", "--results", "results.jsonl", "--resume"];
    desk.status(&[&args[..], &["--csv", "whole.csv"]].concat(), 1);
    let results = fs::read_to_string(desk.path("results.jsonl")).unwrap();
    let half: Vec<&str> = results.lines().take(4).collect();
    fs::write(desk.path("results.jsonl"), half.join("\n") + "\n{\"iteration\":5,\"strat").unwrap();
    desk.status(&[&args[..], &["--csv", "resumed.csv"]].concat(), 1);
    assert_eq!(columns("whole.csv"), columns("resumed.csv"));
    assert_eq!(desk.records().len(), 9);
}

#[test]
fn metric_that_nobody_has_is_said() {
    let desk = Desk::new(&STRATEGIES[..1]);
    let output = desk.status(&["--csv", "table.csv", "--rank", "sortino"], 0);
    assert!(text(&output.stderr).contains("no record has sortino"), "{output:?}");
    let output = desk.status(&["--csv", "nowhere/table.csv"], 125);
    assert!(text(&output.stderr).contains("failed to write the table nowhere/table.csv"), "{output:?}");
    assert!(text(&output.stdout).contains("1 runs"), "the statistics come all the same: {output:?}");
    let output = desk.status(&["--csv", "/dev/stdout", "--quiet"], 0);
    assert!(text(&output.stdout).starts_with("rank,iteration,strategy,"), "{output:?}");
}
