//! The old system's end-to-end validation, on namespaces: five iterations, monitoring, twenty iterations of real strategies.

use std::collections::HashSet;
use std::fs;

use nsbox::event::{Event, EventType};
use nsbox::outcome::{Value, Verdict};
use serde_json::json;

use crate::harness::{nsbox, require};
use crate::table::venv;
use crate::{Desk, THREE, json_of};

#[test]
fn five_iterations_succeed_without_fallback() {
    let desk = Desk::new(&THREE);
    let output = desk.status(&["--iterations", "5", "--json"], 0);
    let report = json_of(&output);
    assert_eq!((&report["runs"], &report["backends"]), (&json!(5), &json!({"namespace": 5})));
    assert_eq!((&report["verdicts"], &report["fallbacks"]), (&json!({"ok": 5}), &json!(0)));
    assert_eq!(report["alerts"], json!([]));
}

#[test]
fn monitoring_agrees_with_the_records() {
    let desk = Desk::new(&[THREE[0], ("fails.py", "raise ValueError"), ("slow.py", "while True: pass")]);
    let args = ["--iterations", "9", "--timeout", "3s", "--results", "results.jsonl", "--json"];
    let mut report = json_of(&desk.status(&args, 1));
    let output = nsbox(["stats", "--json"]).arg(desk.path("events.log")).output().unwrap();
    let mut log = json_of(&output);
    assert_eq!(log["verdicts"], json!({"error": 3, "ok": 3, "timeout": 3}));
    for field in ["runs", "backends", "verdicts", "fallbacks", "fallback_rate", "alerts"] {
        assert_eq!(report[field].take(), log[field].take(), "{field}");
    }
    for (stage, figures) in report["stages"].as_object().unwrap() {
        for (name, figure) in figures.as_object().unwrap() {
            let same = (figure.as_f64().unwrap() - log["stages"][stage][name].as_f64().unwrap()).abs() < 1e-6;
            assert!(same, "{stage} {name}: {figure} and {}", log["stages"][stage][name]);
        }
    }
    // Each record has its events, by the id.
    let events = fs::read_to_string(desk.path("events.log")).unwrap();
    let events: Vec<Event> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_type = |kind: EventType| events.iter().filter(move |event| event.event_type == kind);
    let failed: HashSet<String> =
        of_type(EventType::NamespaceExecutionFailed).filter_map(|event| event.id.clone()).collect();
    for record in desk.records().values() {
        assert_eq!(failed.contains(&record.outcome.id), record.outcome.verdict != Verdict::Ok);
    }
    assert_eq!(of_type(EventType::LimitExceeded).count(), 3);
}

#[test]
fn twenty_iterations_of_the_examples_agree_to_the_last_digit() {
    let Some(venv) = venv() else { return };
    let lib = fs::read_dir(venv.join("lib")).unwrap().flatten();
    let prices =
        lib.map(|python| python.path().join("site-packages/backtesting/test/GOOG.csv")).find(|path| path.exists());
    if !require(prices.is_some(), "file of prices in the environment (backtesting)") {
        return;
    }
    let desk = Desk::new(&[]);
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/strategies")).unwrap().flatten() {
        // One of them shows what a failure looks like.
        if entry.file_name() != "fails.py" {
            fs::copy(entry.path(), desk.path("strategies").join(entry.file_name())).unwrap();
        }
    }
    let count = fs::read_dir(desk.path("strategies")).unwrap().count() as u64;
    let preload = ["--preload", "pandas,numpy"];
    let (python, input) = (venv.join("bin/python"), format!("prices={}", prices.unwrap().display()));
    let args = ["--iterations", "20", "--results", "results.jsonl", "--json", "--cpus", "2", "--backend", "namespace"];
    let output =
        desk.status(&[&args[..], &preload, &["--python", python.to_str().unwrap(), "--input", &input]].concat(), 0);
    let report = json_of(&output);
    assert_eq!((&report["verdicts"], &report["fallback_rate"]), (&json!({"ok": 20}), &json!(0.0)));
    let records = desk.records();
    for (iteration, record) in &records {
        let Some(Value::Dict(metrics)) = &record.outcome.metrics else { panic!("{record:?}") };
        assert!(metrics.iter().any(|(name, _)| name == "sharpe_ratio"));
        assert_eq!(record.outcome.metrics, records[&(iteration % count)].outcome.metrics, "iteration {iteration}");
    }
}
