//! With a real engine: the old wrapper's tests, its four of whole loops, and an engine that is stopped in between.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nsbox::event::{Event, EventType};
use nsbox::outcome::{Backend, Ended, Outcome, Value, Verdict};
use nsbox::sandbox::Script;
use serde_json::{Value as Json, json};

use crate::engine::{BASE, Engine};
use crate::harness::{alone_with, is_alone, nsbox, until};
use crate::{Desk, expect, run};

/// Never ends in Docker, where a device covers this file, and elsewhere at once. This machine may be a container itself.
const HANGS_IN_DOCKER: &str = "\
import os, stat
while os.path.exists('/proc/meminfo') and stat.S_ISCHR(os.stat('/proc/meminfo').st_mode): pass
metrics = {'a': 1}";
const DOCKER: [(&str, &str); 4] =
    [("backend", "docker"), ("docker.image", BASE), ("check", "false"), ("limits.timeout", "60s")];

/// As [`alone_with`], beside the suite's engine; `false` too where there can be none, which is said.
#[track_caller]
fn beside_engine(test: &str) -> bool {
    if is_alone() {
        return true;
    }
    let Some(engine) = Engine::shared().filter(|engine| engine.has_base()) else { return false };
    alone_with(&[("DOCKER_HOST", &format!("unix://{}", engine.socket().display()))], test)
}

fn metrics(value: i128) -> Option<Value> {
    Some(Value::Dict(vec![("a".to_owned(), Value::Int(value))]))
}

#[test]
fn enabled_sandbox_routes_to_docker() {
    if !beside_engine("docker::enabled_sandbox_routes_to_docker") {
        return;
    }
    let desk = Desk::new();
    let router = desk.router(&DOCKER);
    assert_eq!(router.prepare().unwrap(), Backend::Docker);
    let outcome = run(&router, Script::from("print('hello')\nmetrics = {'a': 1}").iteration(0));
    expect(&outcome, Verdict::Ok, Backend::Docker);
    assert_eq!((outcome.metrics.clone(), outcome.stdout.as_slice()), (metrics(1), &b"hello\n"[..]));
    assert!(outcome.attempts.is_empty());
    let events = desk.events();
    let success = events.iter().find(|event| event.event_type == EventType::DockerExecutionSuccess).unwrap();
    // The figures that a dashboard reads.
    assert_eq!((success.mode, success.iteration_num), (Some(Backend::Docker), Some(0)));
    assert_eq!((success.id.as_ref(), success.verdict), (Some(&outcome.id), Some(Verdict::Ok)));
    assert_eq!(success.facts["wall_ms"], json!(outcome.usage.wall_ms));
    assert_eq!(success.facts["timings"], json!(outcome.timings));
    assert_eq!(desk.story().iter().filter(|kind| **kind == EventType::DockerCleanup).count(), 1, "{events:#?}");
}

#[test]
fn timeout_in_docker_falls_back_where_the_list_says_so() {
    if !beside_engine("docker::timeout_in_docker_falls_back_where_the_list_says_so") {
        return;
    }
    for (verdicts, falls_back) in [("unavailable", false), ("unavailable,timeout", true)] {
        let desk = Desk::new();
        let keys = [("fallback", "namespace"), ("fallback_on", verdicts), ("limits.timeout", "2s")];
        let router = desk.router(&[&DOCKER[..], &keys].concat());
        let outcome = run(&router, HANGS_IN_DOCKER);
        if falls_back {
            expect(&outcome, Verdict::Ok, Backend::Namespace);
            assert_eq!((outcome.metrics, outcome.attempts.len()), (metrics(1), 1));
            let attempt = &outcome.attempts[0];
            assert_eq!((attempt.backend, attempt.verdict), (Backend::Docker, Verdict::Timeout));
            assert!(attempt.why.contains("longer than 2s"), "{}", attempt.why);
            assert!(desk.story().contains(&EventType::DirectFallbackSuccess));
        } else {
            expect(&outcome, Verdict::Timeout, Backend::Docker);
            assert!(outcome.attempts.is_empty());
            assert!(!desk.story().contains(&EventType::FallbackToDirect));
        }
    }
}

#[test]
fn error_in_docker_is_the_scripts_own() {
    if !beside_engine("docker::error_in_docker_is_the_scripts_own") {
        return;
    }
    let desk = Desk::new();
    let keys = [("fallback", "namespace"), ("fallback_on", "unavailable,timeout,lost"), ("limits.memory", "64m")];
    let router = desk.router(&[&DOCKER[..], &keys].concat());
    for (source, verdict) in [("raise ValueError('why')", Verdict::Error), ("x = bytearray(1 << 30)", Verdict::Oom)] {
        let outcome = run(&router, source);
        expect(&outcome, verdict, Backend::Docker);
        assert!(outcome.attempts.is_empty());
    }
}

#[test]
fn several_backends_are_tried_in_their_order() {
    if !beside_engine("docker::several_backends_are_tried_in_their_order") {
        return;
    }
    let desk = Desk::new();
    let keys = [
        ("fallback", "namespace,ast-only"),
        ("docker.image", "no-such-image"),
        // For ast-only: an interpreter that every user can execute, and nothing unchecked.
        ("python", "/usr/bin/python3"),
        ("check", "true"),
        ("preload", "no_such_module"),
        ("allow_degraded", "true"),
    ];
    let router = desk.router(&[&DOCKER[..], &keys].concat());
    for _ in 0..2 {
        let outcome = run(&router, "metrics = {'a': 1}");
        expect(&outcome, Verdict::Ok, Backend::AstOnly);
        let story: Vec<_> = outcome.attempts.iter().map(|attempt| (attempt.backend, attempt.verdict)).collect();
        assert_eq!(story, [(Backend::Docker, Verdict::Unavailable), (Backend::Namespace, Verdict::Unavailable)]);
        assert!(outcome.attempts[0].why.contains("no-such-image"), "{:?}", outcome.attempts);
        assert!(outcome.attempts[1].why.contains("no_such_module"), "{:?}", outcome.attempts);
    }
    let report = router.statistics().report(&Default::default());
    assert_eq!((report.runs, report.fallbacks, report.backends["ast-only"]), (2, 2, 2));
}

/// Where the engine is said to be, for a test that runs alone in a process of its own; whether it is there, is for it to say.
fn socket_of(test: &str) -> Option<String> {
    let place = tempfile::tempdir().unwrap();
    let host = format!("unix://{}", place.path().join("socket").display());
    if !is_alone() && Engine::shared().is_none_or(|engine| !engine.has_base()) {
        return None;
    }
    alone_with(&[("DOCKER_HOST", &host)], test)
        .then(|| std::env::var("DOCKER_HOST").unwrap().strip_prefix("unix://").unwrap().to_owned())
}

#[test]
fn engine_that_stops_is_fallen_back_from_and_taken_again() {
    let test = "docker::engine_that_stops_is_fallen_back_from_and_taken_again";
    let Some(socket) = socket_of(test) else { return };
    let start = || -> Arc<Engine> {
        fs::remove_file(&socket).ok();
        let engine = Engine::shared().unwrap();
        assert!(engine.has_base());
        symlink(engine.socket(), &socket).unwrap();
        engine
    };
    let engine = start();
    let desk = Desk::new();
    let breaker = nsbox::router::Breaker { failures: 2, pause: std::time::Duration::from_secs(3600) };
    let keys = [&DOCKER[..], &[("fallback", "namespace")]].concat();
    let router = desk.router(&keys).breaker(breaker);
    let strict = desk.router(&DOCKER);
    expect(&run(&router, "metrics = {'a': 0}"), Verdict::Ok, Backend::Docker);
    expect(&run(&strict, "metrics = {'a': 0}"), Verdict::Ok, Backend::Docker);
    drop(engine);
    for i in 1..6 {
        let outcome = run(&router, format!("metrics = {{'a': {i}}}"));
        expect(&outcome, Verdict::Ok, Backend::Namespace);
        assert_eq!((outcome.metrics.clone(), outcome.attempts.len()), (metrics(i), 1));
        let attempt = &outcome.attempts[0];
        assert_eq!((attempt.backend, attempt.verdict), (Backend::Docker, Verdict::Unavailable));
        assert_eq!(attempt.why.starts_with("not tried: "), i > 3, "run {i}: {}", attempt.why);
    }
    let report = router.statistics().report(&Default::default());
    assert_eq!((report.runs, report.fallbacks), (6, 5));
    // Without a fallback it fails closed, and is well again with its engine.
    expect(&run(&strict, "pass"), Verdict::Unavailable, None);
    let _engine = start();
    expect(&run(&strict, "pass"), Verdict::Ok, Backend::Docker);
    assert!(run(&router, "pass").attempts[0].why.starts_with("not tried: "), "its pause is not over");
}

/// How many threads share a router.
const THREADS: usize = 16;

#[test]
fn threads_share_a_router_while_the_engine_dies_and_comes_back() {
    let test = "docker::threads_share_a_router_while_the_engine_dies_and_comes_back";
    let Some(socket) = socket_of(test) else { return };
    let engine = Engine::start();
    assert!(engine.has_base());
    symlink(engine.socket(), socket).unwrap();
    let desk = Desk::new();
    let breaker = nsbox::router::Breaker { failures: 3, pause: Duration::from_millis(200) };
    let keys = [&DOCKER[..], &[("fallback", "namespace"), ("limits.setup_timeout", "60s")]].concat();
    let router = desk.router(&keys).jobs(THREADS).breaker(breaker);
    let (done, ended) = (AtomicBool::new(false), AtomicU64::new(0));
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let work = || {
            let mut outcomes = Vec::new();
            while !done.load(Ordering::Relaxed) {
                outcomes.push(run(&router, "metrics = {'a': 1}"));
                ended.fetch_add(1, Ordering::Relaxed);
            }
            outcomes
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        for _ in 0..2 {
            let before = ended.load(Ordering::Relaxed);
            until("runs end", || ended.load(Ordering::Relaxed) >= before + THREADS as u64);
            engine.kill_and_restart();
        }
        let served = || router.statistics().report(&Default::default()).backends.get("docker").copied().unwrap_or(0);
        let before = served();
        until("the engine serves again", || served() > before);
        let before = ended.load(Ordering::Relaxed);
        until("runs end", || ended.load(Ordering::Relaxed) >= before + 2 * THREADS as u64);
        done.store(true, Ordering::Relaxed);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut counts = [0_u64; 3];
    for outcome in &outcomes {
        let attempts: Vec<_> = outcome.attempts.iter().map(|attempt| (attempt.backend, attempt.verdict)).collect();
        let kind = match (outcome.verdict, outcome.backend) {
            (Verdict::Ok, Some(Backend::Docker)) => 0,
            (Verdict::Ok, Some(Backend::Namespace)) => 1,
            // It may have run, so it is not run again.
            (Verdict::Lost, Some(Backend::Docker)) => 2,
            _ => panic!("{outcome:#?}"),
        };
        let expected = if kind == 1 { vec![(Backend::Docker, Verdict::Unavailable)] } else { vec![] };
        assert_eq!(attempts, expected, "{outcome:#?}");
        counts[kind] += 1;
    }
    println!("{counts:?} ran in Docker, fell back, were lost");
    let (docker, fell_back, lost) = (counts[0], counts[1], counts[2]);
    assert!(docker > 0 && fell_back > 0, "{counts:?}");
    let report = router.statistics().report(&Default::default());
    assert_eq!((report.runs, report.fallbacks), (outcomes.len() as u64, fell_back));
    assert_eq!(report.verdicts.get("lost").copied().unwrap_or(0), lost);
    // Each run is closed once, and none is made up.
    let mut closed: Vec<String> = desk
        .events()
        .into_iter()
        .filter(|event| event.event_type.closes_run() && event.facts.contains_key("timings"))
        .filter_map(|event| event.id)
        .collect();
    closed.sort();
    let mut ids: Vec<String> = outcomes.iter().map(|outcome| outcome.id.clone()).collect();
    ids.sort();
    assert_eq!(closed, ids);
    expect(&run(&desk.router(&DOCKER), "pass"), Verdict::Ok, Backend::Docker);
    assert!(engine.docker(["ps", "--all", "--quiet"]).output().unwrap().stdout.is_empty(), "a container is left");
}

/// `nsbox loop` over five strategies, of which some hang in a container: its process, report and records.
fn looped(desk: &Desk, socket: &str, hang: &[usize], args: &[&str]) -> (u32, Json, Vec<Json>) {
    fs::create_dir(desk.path("strategies")).unwrap();
    for i in 0..5 {
        let source = if hang.contains(&i) { HANGS_IN_DOCKER.to_owned() } else { format!("metrics = {{'a': {i}}}") };
        fs::write(desk.path(&format!("strategies/{i}.py")), source).unwrap();
    }
    let config = format!("docker: {{image: {BASE}}}\npreload: [json]\nfallback_on: [unavailable, timeout]\n");
    fs::write(desk.path("nsbox.yaml"), config).unwrap();
    let mut command = nsbox(["loop", "--config", "nsbox.yaml", "--no-check", "--results", "results.jsonl", "--json"]);
    command.args(args).arg("strategies").current_dir(desk.folder.path());
    command.env("NSBOX_EVENT_LOG", desk.path("events.log")).env("DOCKER_HOST", format!("unix://{socket}"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let process = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let records = fs::read_to_string(desk.path("results.jsonl")).unwrap();
    let mut records: Vec<Json> = records.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    records.sort_by_key(|record| record["iteration"].as_u64());
    (process, serde_json::from_slice(&output.stdout).unwrap(), records)
}

fn engine() -> Option<(Arc<Engine>, String)> {
    let engine = Engine::shared().filter(|engine| engine.has_base())?;
    let socket = engine.socket().display().to_string();
    Some((engine, socket))
}

#[test]
fn five_iterations_in_docker() {
    let Some((engine, socket)) = engine() else { return };
    let desk = Desk::new();
    let (process, report, records) = looped(&desk, &socket, &[], &["--backend", "docker", "--jobs", "2"]);
    assert_eq!((&report["backends"], &report["fallback_rate"]), (&json!({"docker": 5}), &json!(0.0)));
    for (i, record) in records.iter().enumerate() {
        assert_eq!(record["outcome"]["metrics"], json!({"a": i}));
    }
    // Other tests have containers of their own there.
    let filter = format!("label=nsbox.supervisor.pid={process}");
    let output = engine.docker(["ps", "--all", "--quiet", "--filter", &filter]).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "a container is left: {output:?}");
}

#[test]
fn five_iterations_of_which_two_are_forced_to_fall_back() {
    let Some((_engine, socket)) = engine() else { return };
    let desk = Desk::new();
    let args = ["--backend", "docker", "--fallback", "namespace", "--timeout", "3s", "--jobs", "1"];
    let (_, report, records) = looped(&desk, &socket, &[2, 4], &args);
    assert_eq!((&report["runs"], &report["fallbacks"]), (&json!(5), &json!(2)));
    assert_eq!(report["backends"], json!({"docker": 3, "namespace": 2}));
    assert_eq!(report["alerts"][0]["alert"], "fallback_rate");
    for (i, record) in records.iter().enumerate() {
        let outcome = &record["outcome"];
        let falls_back = [2, 4].contains(&i);
        assert_eq!((&outcome["verdict"], outcome["attempts"] == json!([])), (&json!("ok"), !falls_back), "{outcome:#}");
        if falls_back {
            assert_eq!(outcome["ended"], json!(Ended::Answered), "the pool takes over");
        }
    }
    let fallbacks: Vec<Event> =
        desk.events().into_iter().filter(|event| event.event_type == EventType::FallbackToDirect).collect();
    assert_eq!(fallbacks.iter().map(|event| event.iteration_num).collect::<Vec<_>>(), [Some(2), Some(4)]);

    // Monitoring: the log says what the loop said.
    let output = nsbox(["stats", "--json"]).arg(desk.path("events.log")).output().unwrap();
    let log: Json = serde_json::from_slice(&output.stdout).unwrap();
    for field in ["runs", "backends", "verdicts", "fallbacks", "fallback_rate", "alerts"] {
        assert_eq!(report[field], log[field], "{field}");
    }
}
