//! What a limit leaves in the event log, and that the next run knows nothing of it.

use std::path::Path;
use std::time::Duration;

use nsbox::outcome::Verdict;
use serde_json::Value;

use crate::harness::{alone, patiently, run_with, sandbox};

fn events(log: &Path) -> Vec<Value> {
    std::fs::read_to_string(log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of_type<'a>(events: &'a [Value], name: &str) -> &'a Value {
    events.iter().find(|event| event["event_type"] == name).unwrap_or_else(|| panic!("no {name} in {events:#?}"))
}

#[test]
fn limit_exceeded_is_logged_with_its_facts() {
    let folder = tempfile::tempdir().unwrap();
    for (flags, source, verdict) in [
        (["--timeout", "200ms"], "import time\ntime.sleep(20)", "timeout"),
        (["--memory", "64m"], "block = bytearray(100 << 20)", "oom"),
    ] {
        let log = folder.path().join(verdict);
        let ran = run_with(&[("NSBOX_EVENT_LOG", log.to_str().unwrap())], &flags, source).expect(verdict);
        let events = events(&log);
        for name in ["limit_exceeded", "namespace_execution_failed"] {
            let event = of_type(&events, name);
            assert_eq!(event["id"], ran.json["id"]);
            assert_eq!((&event["verdict"], &event["level"]), (&verdict.into(), &"WARNING".into()));
            assert_eq!((&event["mode"], &event["message"]), (&"namespace".into(), &ran.json["message"]));
            assert_eq!(event["wall_ms"], ran.json["usage"]["wall_ms"]);
            assert_eq!(event["peak_memory_bytes"], ran.json["usage"]["peak_memory_bytes"]);
        }
    }
}

#[test]
fn violation_is_logged_with_its_facts() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    // 165 is mount on x86_64; the profile's own word for it is asked for in the suite of the filter.
    let source = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.mount(None, None, None, 0, None)\nprint(ctypes.get_errno())";
    let ran = run_with(&[("NSBOX_EVENT_LOG", log.to_str().unwrap())], &[], source);
    let violations = ran.json["violations"].as_array().unwrap();
    assert!(violations.iter().any(|violation| violation["syscall"] == "mount"), "{:#}", ran.json);
    let events = events(&log);
    let event = of_type(&events, "violation");
    assert_eq!((&event["violations"], &event["id"]), (&ran.json["violations"], &ran.json["id"]));
    assert_eq!(event["level"], "WARNING");
}

#[test]
fn run_within_its_limits_logs_none() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    run_with(&[("NSBOX_EVENT_LOG", log.to_str().unwrap())], &[], "pass").expect("ok");
    let types: Vec<Value> = events(&log).iter().map(|event| event["event_type"].clone()).collect();
    assert_eq!(types, ["sandbox_mode_enabled", "execution_mode_selected", "namespace_execution_success"]);
}

#[test]
fn loop_goes_on_after_every_failure() {
    if !alone("events::loop_goes_on_after_every_failure") {
        return;
    }
    let timeout = format!("{}ms", patiently(Duration::from_millis(500)).as_millis());
    let sandbox = sandbox(&[
        ("limits.memory", "64m"),
        ("limits.timeout", &timeout),
        ("limits.output", "4k"),
        ("limits.output_kill", "true"),
    ]);
    let failures = [
        ("raise ValueError(1)", Verdict::Error),
        ("import time; time.sleep(20)", Verdict::Timeout),
        ("block = bytearray(100 << 20)", Verdict::Oom),
        ("import os; os.kill(os.getpid(), 11)", Verdict::Signal),
        ("print('x' * 5000)", Verdict::OutputLimit),
        ("this is no Python", Verdict::Error),
    ];
    for (source, verdict) in failures {
        assert_eq!(sandbox.run(source).verdict, verdict, "{source}");
        let next = sandbox.run("metrics = {'answer': 42}");
        assert_eq!(next.verdict, Verdict::Ok, "after {source}: {}", next.message);
    }
}
