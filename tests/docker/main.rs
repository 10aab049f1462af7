//! The Docker backend, with a real engine: every verdict, every limit, what a container is held by, what comes and goes, and
//! engines that are absent, lack the image, or die.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/engine.rs"]
mod engine;
#[path = "../harness/mod.rs"]
mod harness;

mod channel;
mod engines;
mod files;
mod isolation;
mod limits;
mod many;

use std::sync::Arc;

use nsbox::config::{Config, Resolver};
use nsbox::docker::Docker;
use nsbox::outcome::{Backend, Ended, LayerStatus, Outcome, Value, Verdict};
use nsbox::sandbox::{Cancel, Script, Stream, Watch};

use engine::{BASE, Engine};
use harness::{alone_with, is_alone};

/// The suite's engine, with the image of its tests.
fn engine() -> Option<Arc<Engine>> {
    Engine::shared().filter(|engine| engine.has_base())
}

/// A configuration for that image, without the check, with these keys set.
fn config(keys: &[(&str, &str)]) -> Config {
    let resolver = Resolver::new().flag("check", "false", "--no-check").flag("docker.image", BASE, "docker.image");
    let resolver = keys.iter().fold(resolver, |resolver, (key, value)| resolver.flag(*key, *value, *key));
    resolver.resolve().unwrap().config
}

fn docker(engine: &Engine, keys: &[(&str, &str)]) -> Docker {
    Docker::new(config(keys)).unwrap().socket(engine.socket())
}

fn run(engine: &Engine, keys: &[(&str, &str)], script: impl Into<Script>) -> Outcome {
    docker(engine, keys).run(script, Watch::default())
}

/// Fails unless a run in a container ended so, and shows all of it then.
#[track_caller]
fn expect(outcome: &Outcome, verdict: Verdict) {
    assert_eq!((outcome.verdict, outcome.backend), (verdict, Some(Backend::Docker)), "{outcome:#?}");
}

#[track_caller]
fn says(outcome: &Outcome, text: &str) {
    assert!(outcome.message.contains(text), "{:?} says nothing of {text:?}", outcome.message);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The backend in a process of its own, which has the suite's store; `None` outside, when the test has passed.
#[track_caller]
fn beside_engine(test: &str, keys: &[(&str, &str)]) -> Option<Docker> {
    if is_alone() {
        return Some(Docker::new(config(keys)).unwrap());
    }
    let engine = engine()?;
    let inside = alone_with(&[("DOCKER_HOST", &format!("unix://{}", engine.socket().display()))], test);
    assert!(!inside);
    None
}

#[test]
fn ok_has_output_values_usage_and_timings() {
    let Some(engine) = engine() else { return };
    let source = "import sys\nprint('out')\nprint('err', file=sys.stderr)\nresult = [1, 2.5, 'x', None]\n\
                  metrics = {'sharpe_ratio': 1.5}\nsignal = {'a': 1}\nreport = 'fine'";
    let outcome = run(&engine, &[], source);
    expect(&outcome, Verdict::Ok);
    assert_eq!((outcome.stdout.as_slice(), outcome.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let result = vec![Value::Int(1), Value::Float(2.5), Value::Str("x".to_owned()), Value::Null];
    assert_eq!(outcome.result, Some(Value::List(result)));
    assert_eq!(outcome.metrics, Some(Value::Dict(vec![("sharpe_ratio".to_owned(), Value::Float(1.5))])));
    assert_eq!(outcome.signals, Some(Value::Dict(vec![("a".to_owned(), Value::Int(1))])));
    assert_eq!(outcome.report, Some(Value::Str("fine".to_owned())));
    assert_eq!((outcome.exit_code, outcome.signal, outcome.ended), (Some(0), None, Ended::Exited));
    assert!(outcome.image.as_ref().unwrap().starts_with("sha256:"), "{:?}", outcome.image);
    let (usage, timings) = (outcome.usage, outcome.timings);
    // Of version 1, what is whose is told by ticks.
    assert!(usage.wall_ms > 0.0 && usage.cpu_user_ms.unwrap() + usage.cpu_system_ms.unwrap() > 0.0, "{usage:?}");
    assert!((1 << 20..1 << 30).contains(&usage.peak_memory_bytes.unwrap()), "{usage:?}");
    assert_eq!(usage.processes_peak, Some(1), "what the engine started the container with is not the script's");
    assert!(timings.setup_ms > 0.0 && timings.run_ms > 0.0 && timings.teardown_ms > 0.0, "{timings:?}");
}

#[test]
fn layers_are_told_as_they_are() {
    let Some(engine) = engine() else { return };
    let outcome = run(&engine, &[], "pass");
    let enforced = &outcome.enforced;
    let walls = [
        &enforced.namespaces,
        &enforced.root,
        &enforced.capabilities,
        &enforced.no_new_privs,
        &enforced.seccomp,
        &enforced.memfd_noexec,
        &enforced.rlimits,
        &enforced.cgroup.memory,
        &enforced.cgroup.pids,
        &enforced.cgroup.cpu,
    ];
    for layer in walls {
        assert_eq!(layer.status, LayerStatus::Applied, "{enforced:#?}");
    }
    // This engine maps no ids.
    assert_eq!((enforced.user_map.status, outcome.degraded), (LayerStatus::Missing, true));
    assert!(enforced.user_map.why.as_ref().unwrap().contains("userns-remap"));
    assert!(enforced.seccomp.why.as_ref().unwrap().contains("violations stays empty"));
    assert!(enforced.cgroup.version.is_some());
}

#[test]
fn error_is_the_scripts_own_with_its_status() {
    let Some(engine) = engine() else { return };
    let raised = run(&engine, &[], "print('before')\nraise ValueError('why')");
    expect(&raised, Verdict::Error);
    assert_eq!((raised.exit_code, raised.stdout.as_slice()), (Some(1), &b"before\n"[..]));
    assert!(text(&raised.stderr).ends_with("ValueError: why\n"), "{raised:#?}");
    says(&raised, "ValueError: why");
    for (status, source) in
        [(3, "raise SystemExit(3)"), (137, "import os\nos._exit(137)"), (139, "import sys\nsys.exit(139)")]
    {
        let outcome = run(&engine, &[], source);
        expect(&outcome, Verdict::Error);
        assert_eq!((outcome.exit_code, outcome.signal), (Some(status), None), "a status is no signal");
    }
    expect(&run(&engine, &[], "def broken(:"), Verdict::Error);
}

#[test]
fn signal_is_of_the_scripts_making() {
    let Some(engine) = engine() else { return };
    for (signal, name) in [(9, "SIGKILL"), (11, "SIGSEGV"), (6, "SIGABRT"), (15, "SIGTERM")] {
        let outcome = run(&engine, &[], format!("import os\nos.kill(os.getpid(), {signal})"));
        expect(&outcome, Verdict::Signal);
        assert_eq!((outcome.signal, outcome.exit_code), (Some(signal), None));
        says(&outcome, name);
    }
}

#[test]
fn violation_is_a_call_that_the_profile_kills_for() {
    let Some(engine) = engine() else { return };
    // add_key, or whatever the profile kills for first.
    let profile: serde_json::Value =
        serde_json::from_str(nsbox::sandbox::seccomp::Profile::builtin_text("default").unwrap()).unwrap();
    let entries = profile["syscalls"].as_array().unwrap();
    let killing = entries.iter().find(|entry| entry["action"] == "SCMP_ACT_KILL_PROCESS" && entry["args"].is_null());
    let name = killing.unwrap()["names"][0].as_str().unwrap();
    let number: u32 = name.parse::<syscalls::Sysno>().unwrap().id().try_into().unwrap();
    let outcome = run(&engine, &[], format!("import ctypes\nctypes.CDLL(None).syscall({number}, 0, 0, 0, 0, 0)"));
    expect(&outcome, Verdict::Violation);
    says(&outcome, "Docker cannot say which");
    assert!(outcome.violations.is_empty());
}

#[test]
fn rejected_source_never_reaches_the_engine() {
    let Some(engine) = engine() else { return };
    let outcome = run(&engine, &[("check", "true")], "import os\nprint(os.getcwd())");
    assert_eq!((outcome.verdict, outcome.backend), (Verdict::Rejected, None));
    says(&outcome, "NSB101");
    expect(&run(&engine, &[("check", "true")], "import math\nresult = math.pi"), Verdict::Ok);
}

#[test]
fn cancelled_run_ends_at_once() {
    let Some(engine) = engine() else { return };
    let cancel = Cancel::new().unwrap();
    let other = cancel.clone();
    let mut seen = Vec::new();
    let mut sink = |_: Stream, bytes: &[u8]| {
        seen.extend_from_slice(bytes);
        other.cancel();
    };
    let watch = Watch { sink: Some(&mut sink), cancel: Some(cancel) };
    let outcome = docker(&engine, &[]).run("import time\nprint('begun')\ntime.sleep(60)", watch);
    expect(&outcome, Verdict::Cancelled);
    assert_eq!(seen, b"begun\n");
    assert!(outcome.usage.wall_ms < 5000.0);
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    let outcome = docker(&engine, &[]).run("pass", Watch { cancel: Some(cancel), ..Watch::default() });
    assert_eq!((outcome.verdict, outcome.ended), (Verdict::Cancelled, Ended::NotStarted));
}

/// How long the script `pass` takes, to be seen with `--nocapture`.
#[test]
fn pass_takes_its_time() {
    let Some(engine) = engine() else { return };
    let docker = docker(&engine, &[]);
    let mut walls = Vec::new();
    for _ in 0..10 {
        let begun = std::time::Instant::now();
        let outcome = docker.run("pass", Watch::default());
        expect(&outcome, Verdict::Ok);
        walls.push(begun.elapsed().as_secs_f64() * 1e3);
        println!("{:7.1} ms in all: {:?}", walls[walls.len() - 1], outcome.timings);
    }
    println!("mean {:.1} ms", walls[1..].iter().sum::<f64>() / (walls.len() - 1) as f64);
}
