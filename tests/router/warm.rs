//! The pool by default where runs are many, and never in silence without it.

use std::collections::HashSet;
use std::fs;
use std::process::{Command, Output};
use std::thread;

use nsbox::event::EventType;
use nsbox::outcome::{Backend, Ended, Value, Verdict};
use nsbox::sandbox::Script;
use serde_json::{Value as Json, json};

use crate::harness::{alone, nsbox};
use crate::{Desk, expect, run};

/// `nsbox loop` over one strategy.
fn looped(desk: &Desk, args: &[&str]) -> (Output, Vec<Json>) {
    fs::write(desk.path("a.py"), "metrics = {'sharpe_ratio': 1.5}").unwrap();
    fs::remove_file(desk.path("results.jsonl")).ok();
    fs::remove_file(desk.path("events.log")).ok();
    let mut command: Command = nsbox(["loop", "--results", "results.jsonl", "--iterations", "6", "--jobs", "2"]);
    command.args(args).arg("a.py").current_dir(desk.folder.path()).env("NSBOX_EVENT_LOG", desk.path("events.log"));
    let output = command.output().unwrap();
    let records = fs::read_to_string(desk.path("results.jsonl")).unwrap_or_default();
    (output, records.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn loop_is_warm_unless_it_is_told_to_be_fresh() {
    let desk = Desk::new();
    let (output, records) = looped(&desk, &["--preload", "json"]);
    assert!(output.status.success() && records.len() == 6, "{output:?}");
    for record in &records {
        let outcome = &record["outcome"];
        assert_eq!((&outcome["verdict"], &outcome["ended"]), (&json!("ok"), &json!("answered")), "{outcome:#}");
        assert_eq!((&outcome["backend"], &outcome["timings"]["setup_ms"]), (&json!("namespace"), &json!(0.0)));
    }
    let kinds: Vec<EventType> = desk.events().into_iter().map(|event| event.event_type).collect();
    for kind in [EventType::PoolStarted, EventType::PoolStopped] {
        assert_eq!(kinds.iter().filter(|other| **other == kind).count(), 1, "{kinds:?}");
    }
    let (output, records) = looped(&desk, &["--fresh"]);
    assert!(output.status.success() && records.len() == 6, "{output:?}");
    for record in &records {
        assert_eq!(record["outcome"]["ended"], "exited");
    }
    assert!(desk.events().iter().all(|event| event.event_type != EventType::PoolStarted));
}

#[test]
fn module_that_cannot_be_preloaded_stops_the_loop_by_its_name() {
    let desk = Desk::new();
    let (output, records) = looped(&desk, &["--preload", "json,no_such_module"]);
    assert_eq!((output.status.code(), records.len()), (Some(125), 0), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("failed to import no_such_module") && said.contains("--fresh"), "{said}");
    assert_eq!(desk.story(), [EventType::SandboxModeEnabled, EventType::SandboxModeFailed]);
    assert!(desk.events().iter().any(|event| event.event_type == EventType::PoolFailed));
}

#[test]
fn one_run_is_cold_unless_it_is_told_to_be_warm() {
    let desk = Desk::new();
    fs::write(desk.path("a.py"), "import sys\nprint('json' in sys.modules)").unwrap();
    for (flags, ended, loaded) in
        [(&["--preload", "json"][..], "exited", "False"), (&["--warm", "--preload", "json"], "answered", "True")]
    {
        let output = nsbox(["run", "--json", "--no-check"]).args(flags).arg(desk.path("a.py")).output().unwrap();
        let outcome: Json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        assert_eq!((&outcome["verdict"], &outcome["ended"]), (&json!("ok"), &json!(ended)), "{outcome:#}");
        assert_eq!(outcome["stdout"], format!("{loaded}\n"));
    }
    let output =
        nsbox(["run", "--json", "--warm", "--preload", "no_such_module"]).arg(desk.path("a.py")).output().unwrap();
    let outcome: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&outcome["verdict"], output.status.code()), (&json!("unavailable"), Some(125)));
    assert!(outcome["message"].as_str().unwrap().contains("no_such_module"), "{outcome:#}");
}

#[test]
fn router_serves_many_threads_from_one_pool() {
    if !alone("warm::router_serves_many_threads_from_one_pool") {
        return;
    }
    let desk = Desk::new();
    let router = desk.router(&[]).jobs(3);
    assert_eq!(router.prepare().unwrap(), Backend::Namespace);
    thread::scope(|scope| {
        for worker in 0..4_u64 {
            let router = &router;
            scope.spawn(move || {
                for i in 0..6 {
                    let number = worker * 10 + i;
                    let outcome = run(router, Script::from(format!("result = {number}")).iteration(number));
                    expect(&outcome, Verdict::Ok, Backend::Namespace);
                    assert_eq!(outcome.ended, Ended::Answered);
                    assert_eq!(outcome.result, Some(Value::Int(number.into())));
                }
            });
        }
    });
    let report = router.statistics().report(&Default::default());
    assert_eq!((report.runs, report.fallbacks, report.verdicts["ok"]), (24, 0, 24));
    drop(router);
    let events = desk.events();
    let count = |kind| events.iter().filter(|event| event.event_type == kind).count();
    assert_eq!((count(EventType::PoolStarted), count(EventType::PoolStopped)), (1, 1));
    for kind in [EventType::ExecutionModeSelected, EventType::NamespaceExecutionSuccess] {
        let numbers = events.iter().filter(|event| event.event_type == kind).map(|event| event.iteration_num.unwrap());
        let expected: HashSet<u64> = (0..4).flat_map(|worker| (0..6).map(move |i| worker * 10 + i)).collect();
        assert_eq!(numbers.collect::<HashSet<_>>(), expected, "{kind:?} has the iteration of each run");
    }
}

#[test]
fn every_event_of_a_warm_run_has_its_iteration() {
    if !alone("warm::every_event_of_a_warm_run_has_its_iteration") {
        return;
    }
    let desk = Desk::new();
    let router = desk.router(&[("limits.timeout", "300ms"), ("check", "false")]);
    router.prepare().unwrap();
    let before = desk.events().len();
    for (i, source) in ["while True: pass", "import ctypes\nctypes.CDLL(None).mount(0, 0, 0, 0, 0)", "raise ValueError"]
        .iter()
        .enumerate()
    {
        run(&router, Script::from(*source).iteration(i as u64));
    }
    let events = &desk.events()[before..];
    for i in 0..3 {
        let of_run: Vec<EventType> =
            events.iter().filter(|event| event.iteration_num == Some(i)).map(|event| event.event_type).collect();
        assert!(of_run.contains(&EventType::ExecutionModeSelected), "{of_run:?}");
        let extra = [EventType::LimitExceeded, EventType::Violation];
        assert_eq!(of_run.iter().any(|kind| extra.contains(kind)), i < 2, "{of_run:?}");
    }
    assert!(events.iter().all(|event| event.iteration_num.is_some() || event.event_type == EventType::PoolRecycled));
}
