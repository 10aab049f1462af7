//! `nsbox stats`: its figures against exact ones, its formats against other readers, and logs that are hostile or in motion.
#![expect(clippy::unwrap_used, clippy::float_cmp, reason = "tests")]

#[path = "../harness/mod.rs"]
mod harness;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nsbox::config::Alerts;
use nsbox::event::{Event, EventType, Log};
use nsbox::outcome::{Backend, Timings, Verdict};
use nsbox::stats::{STAGES, Statistics};
use prometheus_parse::{Scrape, Value as Sample};
use serde_json::{Value, json};

use harness::nsbox;

fn stats(args: &[&str]) -> Output {
    nsbox(["stats"]).args(args).output().unwrap()
}

fn stats_json(log: &Path) -> Value {
    let output = stats(&["--json", log.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The event that closes run `number`.
fn closing(number: u64, event_type: EventType, mode: Option<Backend>, verdict: Verdict, run_ms: f64) -> Event {
    let timings = Timings { check_ms: 0.25, queue_ms: 0.0, setup_ms: 2.0, run_ms, teardown_ms: 0.75 };
    let mut event = Event::new(event_type, "a \"message\"\nwith {\"event_type\":\"check_rejected\"} in it")
        .outcome(format!("01J{number}"), verdict)
        .fact("wall_ms", run_ms)
        .fact("timings", serde_json::to_value(timings).unwrap());
    event.mode = mode;
    event
}

/// Some of everything: 1,000 runs, of which 150 fell back, with the milliseconds of those that a backend ran.
fn some_of_everything() -> (Vec<Event>, Vec<f64>) {
    let (mut events, mut times) = (Vec::new(), Vec::new());
    for number in 0..1000 {
        // From half a millisecond to minutes.
        let run_ms = 0.5 * 1.0123_f64.powi(i32::try_from((number * 7919) % 1000).unwrap());
        let say = |event_type| closing(number, event_type, Some(Backend::Namespace), Verdict::Ok, run_ms);
        events.push(Event::new(EventType::ExecutionModeSelected, "m").mode(Backend::Namespace));
        let event = match number % 20 {
            0 => closing(number, EventType::CheckRejected, None, Verdict::Rejected, 0.0),
            1 => closing(number, EventType::SandboxModeFailed, None, Verdict::Unavailable, 0.0),
            2 | 3 => {
                let mut event = say(EventType::NamespaceExecutionFailed);
                event.verdict = Some(Verdict::Timeout);
                let mut limit = event.clone();
                limit.event_type = EventType::LimitExceeded;
                events.push(limit);
                event
            }
            4 | 5 => {
                events.push(Event::new(EventType::DockerExecutionFailed, "gone").mode(Backend::Docker));
                events.push(Event::new(EventType::FallbackToDirect, "docker is gone").mode(Backend::AstOnly));
                let mut event = say(EventType::DirectFallbackSuccess);
                event.mode = Some(Backend::AstOnly);
                event
            }
            6 => {
                let tried = json!([{"backend": "docker", "verdict": "unavailable", "why": "gone"}]);
                say(EventType::NamespaceExecutionSuccess).fact("attempts", tried)
            }
            7 => say(EventType::NamespaceExecutionSuccess).fact("attempts", json!([])),
            _ => say(EventType::NamespaceExecutionSuccess),
        };
        if event.mode.is_some() {
            times.push(run_ms);
        }
        events.push(event);
    }
    times.sort_by(f64::total_cmp);
    (events, times)
}

fn write(path: &Path, events: &[Event]) {
    let log = Log::open(path).rotate(64 << 10, 900);
    events.iter().for_each(|event| log.write(event));
    assert_eq!(log.lost(), 0);
}

#[track_caller]
fn near(figure: &Value, exact: f64) {
    let figure = figure.as_f64().unwrap();
    assert!((figure - exact).abs() <= exact * 0.001, "{figure} is not {exact}");
}

#[test]
fn figures_are_those_of_the_runs() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("events.log");
    let (events, times) = some_of_everything();
    write(&log, &events);
    assert!(folder.path().join("events.log.5").exists(), "rotated files are part of it");

    let report = stats_json(&log);
    assert_eq!(report["runs"], 1000);
    assert_eq!(report["verdicts"], json!({"ok": 800, "rejected": 50, "timeout": 100, "unavailable": 50}));
    assert_eq!(report["backends"], json!({"ast-only": 100, "namespace": 800, "none": 100}));
    assert_eq!((&report["fallbacks"], &report["fallback_rate"]), (&json!(150), &json!(0.15)));
    assert_eq!((&report["log"]["lines"], &report["log"]["malformed"]), (&json!(events.len()), &json!(0)));
    let run = &report["stages"]["run"];
    assert_eq!(run["count"], 900);
    near(&run["mean_ms"], times.iter().sum::<f64>() / 900.0);
    // The smallest that at least so many of a hundred do not exceed.
    for (name, rank) in [("p50_ms", 450), ("p95_ms", 855), ("p99_ms", 891), ("max_ms", 900)] {
        near(&run[name], times[rank - 1]);
        near(&report["stages"]["whole"][name], times[rank - 1] + 3.0);
    }
    for (stage, ms) in [("check", 0.25), ("setup", 2.0), ("teardown", 0.75)] {
        near(&report["stages"][stage]["p99_ms"], ms);
        near(&report["stages"][stage]["mean_ms"], ms);
    }
    assert_eq!(report["stages"]["queue"]["max_ms"], 0.0);
    let alerts: Vec<&Value> = report["alerts"].as_array().unwrap().iter().map(|alert| &alert["alert"]).collect();
    assert_eq!(alerts, ["fallback_rate", "p95"]);
}

#[test]
fn live_statistics_are_those_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("events.log");
    let (events, _) = some_of_everything();
    write(&log, &events);
    let mut live = Statistics::default();
    events.iter().for_each(|event| live.add(event));
    let (read, _) = Statistics::of_log(&log).unwrap();
    let alerts = Alerts::default();
    let (live, mut read) = (live.report(&alerts), read.report(&alerts));
    // The log holds microseconds, the clock gives nanoseconds; sums in another order differ in the last digit.
    (read.since, read.until) = (live.since, live.until);
    for (name, stage) in &mut read.stages {
        assert!((stage.mean_ms - live.stages[name].mean_ms).abs() < 1e-6);
    }
    let figures = |report: &nsbox::stats::Report| {
        let mut json = serde_json::to_value(report).unwrap();
        STAGES.iter().for_each(|stage| json["stages"][stage]["mean_ms"] = Value::Null);
        json
    };
    assert_eq!(figures(&live), figures(&read));
}

#[test]
fn alerts_follow_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("events.log");
    write(&log, &some_of_everything().0);
    let said = |variables: &[(&str, &str)]| {
        let output = nsbox(["stats"]).arg(&log).envs(variables.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap().lines().filter(|line| line.starts_with("ALERT")).count()
    };
    assert_eq!(said(&[]), 2);
    assert_eq!(said(&[("NSBOX_ALERTS_FALLBACK_RATE", "0.15")]), 1, "at a threshold it is not passed");
    assert_eq!(said(&[("NSBOX_ALERTS_FALLBACK_RATE", "0.2"), ("NSBOX_ALERTS_P95", "1h")]), 0);
    // The configuration names the log too.
    let output = nsbox(["stats", "--json"]).env("NSBOX_EVENT_LOG", &log).output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["runs"], 1000);
}

/// What the format asks for beyond what a lenient reader checks: each family's HELP and TYPE stand once, before its samples,
/// which stand together; the text ends with a newline.
fn judge_exposition(text: &str) {
    assert!(text.ends_with('\n') && !text.contains("\n\n"));
    let (mut seen, mut family) = (HashSet::new(), String::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split(' ').next().unwrap().to_owned();
            assert!(seen.insert(family.clone()), "{family} stands twice");
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {family} ")).unwrap().to_owned();
            assert!(["counter", "gauge", "summary"].contains(&kind.as_str()));
            assert_eq!(kind == "counter", family.ends_with("_total"), "{family}");
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let suffix = name.strip_prefix(&family).unwrap();
            assert!(["", "_sum", "_count"].contains(&suffix), "{line}");
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        }
    }
}

#[test]
fn prometheus_reads_the_same_figures() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("events.log");
    write(&log, &some_of_everything().0);
    let output = stats(&["--prometheus", log.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    judge_exposition(&text);
    let report = stats_json(&log);
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
    let mut runs = HashMap::new();
    let mut quantiles = 0;
    for sample in &scrape.samples {
        match (sample.metric.as_str(), &sample.value) {
            ("nsbox_runs_total", Sample::Counter(count)) => {
                *runs.entry(sample.labels["verdict"].to_owned()).or_insert(0.0) += count;
            }
            ("nsbox_fallbacks_total", Sample::Counter(count)) => assert_eq!(*count, 150.0),
            ("nsbox_fallback_ratio", Sample::Gauge(ratio)) => assert_eq!(*ratio, 0.15),
            ("nsbox_alert", Sample::Gauge(raised)) => assert_eq!(*raised, 1.0),
            ("nsbox_stage_seconds", Sample::Summary(counts)) => {
                let stage = &report["stages"][&sample.labels["stage"]];
                for (count, name) in counts.iter().zip(["p50_ms", "p95_ms", "p99_ms"]) {
                    near(&stage[name], count.count * 1000.0);
                    quantiles += 1;
                }
            }
            ("nsbox_stage_seconds_count", Sample::Untyped(count)) => assert_eq!(*count, 900.0),
            ("nsbox_stage_seconds_sum", Sample::Untyped(sum)) => {
                let mean = &report["stages"][&sample.labels["stage"]]["mean_ms"];
                near(mean, sum * 1000.0 / 900.0);
            }
            ("nsbox_log_lines_total", Sample::Counter(lines)) => {
                assert_eq!(Some(*lines), report["log"]["lines"].as_f64());
            }
            ("nsbox_log_malformed_lines_total", Sample::Counter(lines)) => assert_eq!(*lines, 0.0),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(quantiles, 18);
    let expected = [("ok", 800.0), ("rejected", 50.0), ("timeout", 100.0), ("unavailable", 50.0)];
    assert_eq!(runs, expected.map(|(verdict, count)| (verdict.to_owned(), count)).into());
}

#[test]
fn malformed_lines_are_counted_and_the_first_named() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("events.log");
    let good = serde_json::to_string(&closing(
        1,
        EventType::NamespaceExecutionSuccess,
        Some(Backend::Namespace),
        Verdict::Ok,
        1.0,
    ))
    .unwrap();
    let old = r#"{"timestamp": "2025-10-28T12:00:00.123456Z", "level": "INFO", "event_type": "docker_execution_success", "iteration_num": 3}"#;
    let deep = "[".repeat(100_000);
    let bad = ["", "{", "null", "[]", "\u{0}", &deep, &good[..good.len() - 1], "{\"timestamp\":1}"];
    let mut text = format!("{good}\n{old}\n").into_bytes();
    for bad in bad {
        text.extend(format!("{bad}\n{good}\n").bytes());
    }
    text.extend(b"\xff\xfe\n");
    fs::write(&log, &text).unwrap();
    let output = stats(&["--json", log.to_str().unwrap()]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["runs"], &report["log"]["malformed"]), (&json!(9), &json!(9)));
    let named: Vec<&Value> =
        report["log"]["first_malformed"].as_array().unwrap().iter().map(|line| &line["line"]).collect();
    assert_eq!(named, [3, 5, 7, 9, 11]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("events.log:3 is no event: ") && said.contains("4 more lines are no events"), "{said}");

    let missing = stats(&[folder.path().join("nowhere").to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(125));
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(said.contains("nowhere") && said.contains("No such file"), "{said}");
}

#[test]
fn log_without_runs_has_no_figures() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("events.log");
    fs::write(&log, "").unwrap();
    let report = stats_json(&log);
    assert_eq!((&report["runs"], &report["stages"], &report["alerts"]), (&json!(0), &json!({}), &json!([])));
    judge_exposition(&String::from_utf8(stats(&["--prometheus", log.to_str().unwrap()]).stdout).unwrap());
    assert!(String::from_utf8(stats(&[log.to_str().unwrap()]).stdout).unwrap().starts_with("0 runs\n"));
}

#[test]
fn log_that_is_written_and_rotated_meanwhile_counts_each_run_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.log");
    let (written, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let count = |log: &Path| Statistics::of_log(log).unwrap().0.report(&Alerts::default()).runs;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let log = Log::open(&path).rotate(16 << 10, 900);
                while !over.load(Ordering::Relaxed) && written.load(Ordering::Relaxed) < 20_000 {
                    log.write(&closing(1, EventType::NamespaceExecutionSuccess, None, Verdict::Ok, 1.0));
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while !path.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..20 {
            let before = written.load(Ordering::Relaxed);
            let counted = count(&path);
            // Each of the four may have written a line that it has not counted yet.
            let after = written.load(Ordering::Relaxed) + 4;
            assert!((before..=after).contains(&counted), "{before} <= {counted} <= {after}");
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(count(&path), written.load(Ordering::Relaxed));
    assert!(folder.path().join("events.log.10").exists(), "it was rotated");
}
