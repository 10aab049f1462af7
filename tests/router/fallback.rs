//! When another backend takes over, and when none ever does.

use std::fs;
use std::io::Cursor;
use std::thread;
use std::time::{Duration, Instant};

use nsbox::config::Config;
use nsbox::event::{EventType, Level};
use nsbox::outcome::{Backend, Verdict};
use nsbox::router::{Breaker, Router};
use nsbox::sandbox::{Cancel, Script, Stdin, Watch};
use serde_json::json;

use crate::harness::{alone_with, nsbox};
use crate::{Desk, NO_ENGINE, config, expect, run};

/// As [`alone_with`], where Docker has no engine.
#[track_caller]
fn without_engine(test: &str) -> bool {
    alone_with(&[NO_ENGINE], test)
}

/// Docker without an engine, else namespaces.
const DOCKER_ELSE: [(&str, &str); 2] = [("backend", "docker"), ("fallback", "namespace")];

#[test]
fn backend_that_is_asked_for_fails_closed() {
    if !without_engine("fallback::backend_that_is_asked_for_fails_closed") {
        return;
    }
    let desk = Desk::new();
    let router = desk.router(&[("backend", "docker")]);
    let outcome = run(&router, Script::from("metrics = {'a': 1}").iteration(1));
    expect(&outcome, Verdict::Unavailable, None);
    assert!(outcome.attempts.is_empty() && !outcome.message.is_empty(), "{outcome:#?}");
    assert_eq!(desk.story(), [EventType::SandboxModeEnabled, EventType::DockerExecutionFailed]);
    let error = router.prepare().unwrap_err();
    assert_eq!(error.code(), "router.no-backend");
    assert!(error.to_string().contains("docker: "), "{error}");
}

#[test]
fn fallback_is_an_event_a_warning_and_an_attempt() {
    if !without_engine("fallback::fallback_is_an_event_a_warning_and_an_attempt") {
        return;
    }
    let desk = Desk::new();
    let router = desk.router(&DOCKER_ELSE);
    let outcome = run(&router, Script::from("metrics = {'a': 1}").iteration(7));
    expect(&outcome, Verdict::Ok, Backend::Namespace);
    assert_eq!(outcome.attempts.len(), 1);
    let attempt = &outcome.attempts[0];
    assert_eq!((attempt.backend, attempt.verdict), (Backend::Docker, Verdict::Unavailable));
    assert!(!attempt.why.is_empty());
    use EventType::{
        DirectFallbackSuccess, DockerExecutionFailed, ExecutionModeSelected, FallbackToDirect, SandboxModeEnabled,
    };
    let story =
        [SandboxModeEnabled, DockerExecutionFailed, FallbackToDirect, ExecutionModeSelected, DirectFallbackSuccess];
    assert_eq!(desk.story(), story);
    let events = desk.events();
    for event in events.iter().filter(|event| event.event_type != EventType::PoolStarted) {
        assert_eq!(event.iteration_num, Some(7), "{event:?}");
    }
    let of_type = |kind| events.iter().find(|event| event.event_type == kind).unwrap();
    let fallback = of_type(FallbackToDirect);
    assert_eq!((fallback.level, fallback.mode), (Level::Warning, Some(Backend::Namespace)));
    assert_eq!((&fallback.facts["from"], fallback.message.contains(&attempt.why)), (&json!("docker"), true));
    for kind in [DockerExecutionFailed, FallbackToDirect, DirectFallbackSuccess] {
        assert_eq!(of_type(kind).id.as_ref(), Some(&outcome.id), "one run has one id");
    }
    let failed = of_type(DockerExecutionFailed);
    assert!(failed.mode == Some(Backend::Docker) && !failed.facts.contains_key("timings"), "it closes no run");
    assert_eq!(of_type(DirectFallbackSuccess).facts["attempts"], json!(outcome.attempts));
    // Live figures are those of the log.
    drop(router.statistics());
    let live = router.statistics().report(&Default::default());
    let (log, _) = nsbox::stats::Statistics::of_log(&desk.path("events.log")).unwrap();
    let log = log.report(&Default::default());
    assert_eq!((live.runs, live.fallbacks, &live.backends), (1, 1, &log.backends));
    assert_eq!((log.runs, log.fallbacks, &live.verdicts), (1, 1, &log.verdicts));
    assert_eq!(live.alerts.len(), 1, "over 10 % fell back");
}

#[test]
fn auto_chooses_docker_for_an_image_of_its_own_alone() {
    if !without_engine("fallback::auto_chooses_docker_for_an_image_of_its_own_alone") {
        return;
    }
    // Namespaces cannot be had; the root of this host, as a path, is an image that Docker could have too.
    let keys = [("preload", "no_such_module"), ("python", "/usr/bin/python3")];
    for (image, attempts) in [("host", 0), ("/", 1)] {
        let desk = Desk::new();
        let router = desk.router(&[&keys[..], &[("image", image)]].concat());
        let outcome = run(&router, "pass");
        expect(&outcome, Verdict::Unavailable, None);
        assert_eq!(outcome.attempts.len(), attempts, "{outcome:#?}");
        let said = router.prepare().unwrap_err().to_string();
        assert!(said.contains("namespace: ") && said.contains("no_such_module"), "{said}");
        assert_eq!((said.contains("docker: "), said.contains("ast-only")), (attempts == 1, false), "{said}");
    }
}

#[test]
fn command_warns_of_a_fallback() {
    let desk = Desk::new();
    fs::write(desk.path("a.py"), "print('hello')").unwrap();
    let mut command = nsbox(["run", "--backend", "docker", "--fallback", "namespace"]);
    let output = command.env(NO_ENGINE.0, NO_ENGINE.1).arg(desk.path("a.py")).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"hello\n"[..]), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("nsbox: warning: docker was left for another backend (unavailable): "), "{said}");
}

#[test]
fn nothing_of_the_scripts_own_is_run_again() {
    if !without_engine("fallback::nothing_of_the_scripts_own_is_run_again") {
        return;
    }
    let desk = Desk::new();
    let keys = [
        ("fallback", "ast-only"),
        ("fallback_on", "unavailable,timeout,lost"),
        ("check", "false"),
        ("limits.memory", "64m"),
        ("warm", "false"),
    ];
    let router = desk.router(&keys);
    for (source, verdict) in [
        ("raise ValueError", Verdict::Error),
        ("x = bytearray(1 << 30)", Verdict::Oom),
        ("import os; os.kill(os.getpid(), 9)", Verdict::Signal),
        ("pass", Verdict::Ok),
    ] {
        let outcome = run(&router, source);
        expect(&outcome, verdict, Backend::Namespace);
        assert!(outcome.attempts.is_empty(), "{outcome:#?}");
    }
    assert!(!desk.story().contains(&EventType::FallbackToDirect));
}

#[test]
fn rejected_script_is_shown_to_no_other_backend() {
    if !without_engine("fallback::rejected_script_is_shown_to_no_other_backend") {
        return;
    }
    let desk = Desk::new();
    let outcome = run(&desk.router(&[("fallback", "ast-only")]), "import os");
    expect(&outcome, Verdict::Rejected, None);
    assert!(outcome.attempts.is_empty() && !desk.story().contains(&EventType::FallbackToDirect));
}

#[test]
fn timeout_is_left_only_where_the_list_says_so_and_stays_what_came_of_the_run() {
    if !without_engine("fallback::timeout_is_left_only_where_the_list_says_so_and_stays_what_came_of_the_run") {
        return;
    }
    for (verdicts, attempts) in [("unavailable", 0), ("unavailable,timeout", 1)] {
        let desk = Desk::new();
        // Docker takes over from an image that both can run: here it is the root of this host, as a path.
        let keys = [("backend", "namespace"), ("image", "/"), ("fallback", "docker"), ("fallback_on", verdicts)];
        let router = desk.router(&[&keys[..], &[("limits.timeout", "300ms"), ("python", "/usr/bin/python3")]].concat());
        let outcome = run(&router, "print('begun', flush=True)\nwhile True: pass");
        expect(&outcome, Verdict::Timeout, Backend::Namespace);
        assert_eq!(outcome.stdout, b"begun\n");
        assert_eq!(outcome.attempts.len(), attempts, "{:?}", outcome.attempts);
        assert!(outcome.attempts.iter().all(|a| (a.backend, a.verdict) == (Backend::Docker, Verdict::Unavailable)));
        assert_eq!(desk.story().contains(&EventType::FallbackToDirect), attempts == 1);
        let report = router.statistics().report(&Default::default());
        assert_eq!((report.runs, report.verdicts["timeout"]), (1, 1));
    }
}

#[test]
fn standard_input_is_read_by_one_backend_alone() {
    if !without_engine("fallback::standard_input_is_read_by_one_backend_alone") {
        return;
    }
    let desk = Desk::new();
    let typed = || Stdin::Stream(Box::new(Cursor::new("typed")));
    let source = "import sys\nresult = sys.stdin.read()";
    let script = || Script::from(source).stdin(typed());
    let outcome = run(&desk.router(&[&DOCKER_ELSE[..], &[("check", "false")]].concat()), script());
    expect(&outcome, Verdict::Ok, Backend::Namespace);
    assert_eq!(serde_json::to_value(&outcome.result).unwrap(), "typed", "nobody had read it before");

    let keys = [("check", "false"), ("fallback", "ast-only"), ("fallback_on", "timeout"), ("limits.timeout", "300ms")];
    let outcome = run(&desk.router(&keys), Script::from(format!("{source}\nwhile True: pass")).stdin(typed()));
    expect(&outcome, Verdict::Timeout, Backend::Namespace);
    assert!(outcome.attempts.is_empty());
    let said = "ast-only does not take over, for namespace has read from the script's standard input";
    assert!(outcome.message.contains(said), "{}", outcome.message);
}

#[test]
fn cancelled_run_is_taken_over_by_nobody() {
    if !without_engine("fallback::cancelled_run_is_taken_over_by_nobody") {
        return;
    }
    let desk = Desk::new();
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    let watch = Watch { sink: None, cancel: Some(cancel) };
    let outcome = desk.router(&DOCKER_ELSE).run("pass", watch);
    assert_ne!(outcome.backend, Some(Backend::Namespace), "{outcome:#?}");
    assert!(!desk.story().contains(&EventType::FallbackToDirect));
}

#[test]
fn dead_backend_is_left_alone_for_a_while() {
    if !without_engine("fallback::dead_backend_is_left_alone_for_a_while") {
        return;
    }
    let desk = Desk::new();
    let pause = Duration::from_secs(2);
    let router = desk.router(&DOCKER_ELSE).breaker(Breaker { failures: 2, pause });
    let why = |i: u64| {
        let outcome = run(&router, Script::from("pass").iteration(i));
        expect(&outcome, Verdict::Ok, Backend::Namespace);
        outcome.attempts[0].why.clone()
    };
    let tried = |why: &str| !why.starts_with("not tried: it has failed ");
    assert!(tried(&why(0)));
    let opened = Instant::now();
    assert!(tried(&why(1)));
    let third = why(2);
    let (before, after) = (opened.elapsed() < pause, third.contains("2 times in a row and is tried again in"));
    assert!(!before || after, "{third}");
    let left_alone = |desk: &Desk| {
        let events = desk.events().into_iter();
        events.filter(|event| event.facts.get("failures") == Some(&json!(2))).collect::<Vec<_>>()
    };
    let events = left_alone(&desk);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((events[0].event_type, events[0].mode), (EventType::SandboxModeFailed, Some(Backend::Docker)));
    assert!(events[0].message.contains("is left alone for 2s") && events[0].iteration_num == Some(1), "{events:?}");
    thread::sleep(pause);
    assert!(tried(&why(3)), "after the pause it is tried again");
    assert!(!tried(&why(4)), "and, as it failed, once only");
}

#[test]
fn configuration_that_contradicts_itself_serves_nothing() {
    if !without_engine("fallback::configuration_that_contradicts_itself_serves_nothing") {
        return;
    }
    let with = |change: fn(&mut Config)| {
        let mut config = config(&[]);
        change(&mut config);
        config
    };
    for (config, said) in [
        (with(|c| c.fallback = vec![Backend::Docker]), "`docker` cannot take over from `image: host`"),
        (with(|c| c.fallback = vec![Backend::Direct]), "`enabled: false` alone"),
        (with(|c| c.fallback = vec![Backend::Namespace]), "`backend: auto` tries anyway"),
        (with(|c| c.fallback_on = vec![Verdict::Error]), "`error` is the script's own"),
        (with(|c| c.fallback_on = vec![Verdict::Oom]), "`oom` is the script's own"),
    ] {
        let desk = Desk::new();
        let router = Router::new(config, desk.log());
        let outcome = run(&router, "pass");
        expect(&outcome, Verdict::Unavailable, None);
        assert!(outcome.message.contains(said), "{}", outcome.message);
        let error = router.prepare().unwrap_err();
        assert!(error.code() == "router.conflict" && error.to_string().contains(said), "{error}");
    }
}
