//! `nsbox loop` with real runs: order, records, tables, what is shown, and interruptions of every kind.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/engine.rs"]
mod engine;
#[path = "../harness/mod.rs"]
mod harness;

mod engines;
mod interrupted;
mod shown;
mod table;
mod validation;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nsbox::outcome::Outcome;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use harness::{children, nsbox, until};

/// A line of the results, as a reader may expect it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    iteration: u64,
    strategy: String,
    outcome: Outcome,
}

/// What the interpreter that runs these tests is sure to have.
const PRELOAD: &str = "json";

/// A folder of strategies, and room for what a loop writes.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new(scripts: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("strategies")).unwrap();
        for (name, source) in scripts {
            fs::write(folder.path().join("strategies").join(name), source).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `nsbox loop ARGS... strategies`, in the desk's folder.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = nsbox(["loop"]);
        command.args(args).arg("strategies").current_dir(self.folder.path());
        command.env("NSBOX_EVENT_LOG", self.path("events.log")).env("NSBOX_PRELOAD", PRELOAD);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    fn status(&self, args: &[&str], expected: i32) -> Output {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(expected), "{output:?}");
        output
    }

    /// The records by iteration; each stands there once.
    fn records(&self) -> BTreeMap<u64, Record> {
        let text = fs::read_to_string(self.path("results.jsonl")).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        let mut records = BTreeMap::new();
        for line in text.lines() {
            let record: Record = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let iteration = record.iteration;
            assert!(records.insert(iteration, record).is_none(), "iteration {iteration} stands there twice");
        }
        records
    }
}

/// How many whole records there are.
fn recorded(desk: &Desk) -> usize {
    fs::read(desk.path("results.jsonl")).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
}

fn verdict(record: &Record) -> String {
    serde_json::to_value(record.outcome.verdict).unwrap().as_str().unwrap().to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

const THREE: [(&str, &str); 3] = [
    ("b.py", "metrics = {'sharpe_ratio': 2.5}"),
    ("a.py", "metrics = {'sharpe_ratio': 1.5}\nprint('hello')"),
    ("c.py", "metrics = {'sharpe_ratio': float('nan'), 'trades': 3}"),
];

#[test]
fn iterations_go_round_the_list_by_name() {
    let desk = Desk::new(&THREE);
    for other in ["notes.txt", ".hidden.py", "__init__.py"] {
        fs::write(desk.path("strategies").join(other), "no strategy").unwrap();
    }
    fs::create_dir(desk.path("strategies/folder.py")).unwrap();
    let output = desk.status(&["--iterations", "8", "--jobs", "3", "--results", "results.jsonl", "--json"], 0);
    let records = desk.records();
    assert_eq!(records.keys().copied().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    for (iteration, record) in &records {
        let name = ["a.py", "b.py", "c.py"][usize::try_from(iteration % 3).unwrap()];
        assert_eq!((record.strategy.as_str(), verdict(record).as_str()), (&*format!("strategies/{name}"), "ok"));
    }
    assert_eq!(records[&0].outcome.stdout, b"hello\n");
    let report = json_of(&output);
    assert_eq!((&report["runs"], &report["verdicts"]), (&json!(8), &json!({"ok": 8})));
    assert_eq!(report["stages"]["run"]["count"], 8);
}

#[test]
fn files_run_in_the_order_given_and_once_by_default() {
    let desk = Desk::new(&THREE);
    let mut command =
        nsbox(["loop", "--results", "results.jsonl", "--jobs", "1", "strategies/c.py", "strategies/a.py"]);
    let output = command.env("NSBOX_PRELOAD", PRELOAD).current_dir(desk.folder.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let strategies: Vec<String> = desk.records().into_values().map(|record| record.strategy).collect();
    assert_eq!(strategies, ["strategies/c.py", "strategies/a.py"]);
}

#[test]
fn options_of_run_are_options_of_the_loop() {
    let desk = Desk::new(&[(
        "a.py",
        "import sys, random\nopen('/output/x', 'w').write(open('/input/data').read())\nmetrics = {'seeded': random.random(), 'arg': float(sys.argv[1])}",
    )]);
    fs::write(desk.path("data"), "some data").unwrap();
    let args =
        ["--iterations", "2", "--no-check", "--seed", "7", "--arg", "4.5", "--input", "data=data", "--output", "out"];
    desk.status(&[&args[..], &["--results", "results.jsonl", "--backend", "namespace"]].concat(), 0);
    for iteration in 0..2 {
        assert_eq!(fs::read_to_string(desk.path(&format!("out/{iteration}/x"))).unwrap(), "some data");
    }
    let metrics: Vec<Value> =
        desk.records().values().map(|record| serde_json::to_value(&record.outcome.metrics).unwrap()).collect();
    assert_eq!((&metrics[0], &metrics[0]["arg"]), (&metrics[1], &json!(4.5)));
}

#[test]
fn exit_status_says_whether_every_iteration_was_ok() {
    let desk = Desk::new(&[("a.py", "pass"), ("b.py", "raise ValueError('no')"), ("c.py", "import os")]);
    let output = desk.status(&["--results", "results.jsonl", "--json"], 1);
    assert_eq!(json_of(&output)["verdicts"], json!({"error": 1, "ok": 1, "rejected": 1}));
    let verdicts: Vec<String> = desk.records().values().map(verdict).collect();
    assert_eq!(verdicts, ["ok", "error", "rejected"]);
    fs::write(desk.path("strategies/b.py"), "pass").unwrap();
    fs::write(desk.path("strategies/c.py"), "pass").unwrap();
    desk.status(&[], 0);
    assert_eq!(json_of(&desk.status(&["--iterations", "0", "--json"], 0))["runs"], 0);
}

#[test]
fn strategy_that_goes_away_is_its_iterations_matter() {
    let desk = Desk::new(&[("a.py", "import time\ntime.sleep(1)"), ("b.py", "pass"), ("c.py", "pass")]);
    let mut command = desk.command(&["--no-check", "--jobs", "1", "--results", "results.jsonl"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the first runs", || !children(child.id()).is_empty());
    fs::remove_file(desk.path("strategies/b.py")).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let records = desk.records();
    assert_eq!(records.values().map(verdict).collect::<Vec<_>>(), ["ok", "unavailable", "ok"]);
    let message = &records[&1].outcome.message;
    assert!(message.contains("strategies/b.py") && message.contains("No such file"), "{message}");
    fs::write(desk.path("strategies/b.py"), "pass").unwrap();
    desk.status(&["--no-check", "--results", "results.jsonl", "--resume"], 0);
    assert_eq!(desk.records().values().map(verdict).collect::<Vec<_>>(), ["ok", "ok", "ok"], "nothing had run for it");
}

#[test]
fn wrong_usage_is_said_before_anything_runs() {
    let desk = Desk::new(&THREE);
    fs::create_dir(desk.path("empty")).unwrap();
    fs::write(desk.path("results.jsonl"), "{}\n").unwrap();
    for (args, said) in [
        (vec!["--resume"], "--results"),
        (vec!["--jobs", "0"], "--jobs"),
        (vec!["--iterations=-1"], "--iterations"),
        (vec!["--input", "data"], "NAME=PATH"),
        (vec!["--memory", "512"], "512m"),
        (vec!["--results", "results.jsonl"], "--resume"),
        (vec!["--results", "results.jsonl", "--resume"], "line 1 of the results"),
        (vec!["--results", "strategies"], "failed to open the results"),
        (vec!["empty"], "*.py"),
        (vec!["nowhere.py"], "nowhere.py: No such file"),
    ] {
        let output = desk.status(&args, 125);
        assert!(text(&output.stderr).contains(said), "{args:?}: {output:?}");
    }
    assert_eq!(fs::read(desk.path("results.jsonl")).unwrap(), b"{}\n");
    assert!(!desk.path("events.log").exists());
}

#[test]
fn results_that_cannot_be_written_end_the_loop() {
    let desk = Desk::new(&THREE);
    let output = desk.status(&["--iterations", "500", "--results", "/dev/full"], 125);
    let said = text(&output.stderr);
    assert!(said.contains("failed to write to the results /dev/full") && said.contains("No space"), "{said}");
    let runs = fs::read_to_string(desk.path("events.log")).unwrap().lines().count();
    assert!(runs < 40, "{runs} events are more than those of the runs under way");
}

/// Whether a file has gone, or never came.
fn is_absent(path: &Path) -> bool {
    !path.exists()
}
