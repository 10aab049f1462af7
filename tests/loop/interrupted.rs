//! Loops that are killed, interrupted and resumed: each iteration has one record, and nothing is left behind.

use std::fs;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsbox::event::Event;
use serde_json::json;

use crate::harness::{cgroups_of, children, until};
use crate::{Desk, THREE, is_absent, json_of, recorded, text, verdict};

fn start(desk: &Desk, args: &[&str]) -> Child {
    desk.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn loop_that_is_killed_again_and_again_loses_and_repeats_nothing() {
    const ITERATIONS: u64 = 120;
    let desk = Desk::new(&THREE);
    let total = ITERATIONS.to_string();
    let args = ["--iterations", &total, "--jobs", "2", "--results", "results.jsonl", "--resume", "--quiet"];
    let mut killed = Vec::new();
    let mut before = 0;
    for _ in 0..12 {
        let mut child = start(&desk, &args);
        // A moment that nobody chose, in the first tenth of a second after a few records.
        let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
        until("there are records", || recorded(&desk) > before || child.try_wait().unwrap().is_some());
        thread::sleep(Duration::from_nanos(u64::from(nanos) % 100_000_000));
        let init: Vec<u32> = children(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        killed.push((child.id(), init));
        let now = recorded(&desk);
        assert!(now >= before, "{before} records became {now}");
        before = now;
    }
    let output = desk.status(&[&args[..], &["--json", "--csv", "table.csv"]].concat(), 0);
    let records = desk.records();
    assert_eq!(records.keys().copied().collect::<Vec<_>>(), (0..ITERATIONS).collect::<Vec<_>>());
    assert!(records.values().all(|record| verdict(record) == "ok"));
    assert_eq!(json_of(&output)["runs"], json!(ITERATIONS), "earlier records are in the statistics");
    assert_eq!(fs::read_to_string(desk.path("table.csv")).unwrap().lines().count() as u64, 1 + ITERATIONS);

    // The killed may have done all of them, and a run removes what others have left.
    desk.status(&["--iterations", "1", "--results", "after.jsonl", "--quiet"], 0);
    // Nothing is left of what was killed, now that a run has come after it; the event log has their lines.
    for (supervisor, inits) in killed {
        assert_eq!(cgroups_of(supervisor), Vec::<std::path::PathBuf>::new());
        until("the guests are gone", || inits.iter().all(|init| is_absent(format!("/proc/{init}").as_ref())));
    }
    let events = fs::read_to_string(desk.path("events.log")).unwrap();
    let cut = events.lines().filter(|line| serde_json::from_str::<Event>(line).is_err()).count();
    assert!(cut <= 12, "of the killed, each can have cut the line that it was writing, not {cut}");
    desk.status(&args, 0);
    assert_eq!(recorded(&desk) as u64, ITERATIONS, "a loop that is complete runs nothing");
}

#[test]
fn interrupt_ends_the_runs_and_keeps_their_records() {
    let quick = ("a.py", "metrics = {'quick': 1}");
    let desk = Desk::new(&[quick, ("b.py", "import sys, time\ntime.sleep(float(sys.argv[1]))")]);
    let args = ["--no-check", "--fresh", "--iterations", "8", "--jobs", "2", "--results", "results.jsonl", "--resume"];
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        fs::remove_file(desk.path("results.jsonl")).ok();
        let child = start(&desk, &[&args[..], &["--arg", "60", "--json"]].concat());
        // Both jobs come to hang on the second strategy.
        until("the quick ones are recorded", || recorded(&desk) >= 2);
        until("two guests run", || children(child.id()).len() == 2);
        thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        assert_eq!(output.status.code(), Some(130), "{output:?}");
        let records = desk.records();
        let cancelled: Vec<u64> =
            records.values().filter(|record| verdict(record) == "cancelled").map(|r| r.iteration).collect();
        assert_eq!(cancelled, [1, 3], "the runs under way have records");
        assert_eq!(records.len(), 4, "and no further one began");
        assert_eq!(json_of(&output)["verdicts"], json!({"cancelled": 2, "ok": 2}), "the statistics come too");
        assert_eq!(text(&output.stderr).lines().filter(|line| line.contains("cancelled")).count(), 2, "{output:?}");
    }
    desk.status(&[&args[..], &["--arg", "0"]].concat(), 0);
    let records = desk.records();
    assert_eq!(records.len(), 8);
    assert!(records.values().all(|record| verdict(record) == "ok"), "the cancelled ones were run again");
}

#[test]
fn interrupt_stops_a_loop_whose_runs_never_begin() {
    // The check refuses without ever looking at the signal.
    let desk = Desk::new(&[("a.py", "import os")]);
    let child = start(&desk, &["--iterations", "1000000", "--results", "results.jsonl", "--quiet"]);
    until("the loop is under way", || recorded(&desk) >= 5);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
}

#[test]
fn results_have_one_writer() {
    let desk = Desk::new(&[("a.py", "import time\ntime.sleep(60)")]);
    let args = ["--no-check", "--results", "results.jsonl", "--resume"];
    let child = start(&desk, &args);
    until("the loop is under way", || !children(child.id()).is_empty());
    let refused = desk.status(&args, 125);
    assert!(text(&refused.stderr).contains("another loop is writing"), "{refused:?}");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGHUP).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
}
