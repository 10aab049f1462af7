//! `enabled: false`: the check, then the script with nothing around it, and said so.

use std::fs;
use std::io::Cursor;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nsbox::event::EventType;
use nsbox::outcome::{Backend, Ended, Outcome, Value, Verdict};
use nsbox::sandbox::{Cancel, Script, Stdin, Watch};
use serde_json::{Value as Json, json};

use crate::harness::{alone, children, nsbox, until};
use crate::{Desk, expect, run};

const OFF: [(&str, &str); 2] = [("enabled", "false"), ("check", "false")];

fn stdout(outcome: &Outcome) -> String {
    String::from_utf8(outcome.stdout.clone()).unwrap()
}

/// Whether a process is there, and no zombie.
fn lives(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap_or_default();
    status.contains("State:") && !status.contains("State:\tZ")
}

#[test]
fn disabled_sandbox_runs_direct_and_says_what_is_missing() {
    if !alone("direct::disabled_sandbox_runs_direct_and_says_what_is_missing") {
        return;
    }
    let desk = Desk::new();
    let router = desk.router(&[("enabled", "false"), ("fallback", "ast-only")]);
    let outcome = run(&router, Script::from("metrics = {'sharpe_ratio': 1.5}\nprint('hello')").iteration(3));
    expect(&outcome, Verdict::Ok, Backend::Direct);
    assert_eq!(
        (outcome.ended, outcome.exit_code, outcome.stdout.as_slice()),
        (Ended::Exited, Some(0), &b"hello\n"[..])
    );
    assert_eq!(outcome.metrics, Some(Value::Dict(vec![("sharpe_ratio".to_owned(), Value::Float(1.5))])));
    assert!(outcome.degraded && outcome.attempts.is_empty());
    let enforced = serde_json::to_value(&outcome.enforced).unwrap();
    let layers = enforced.as_object().unwrap().iter().filter(|(name, _)| *name != "cgroup");
    let layers = layers.chain(enforced["cgroup"].as_object().unwrap().iter().filter(|(name, _)| *name != "version"));
    for (name, layer) in layers {
        assert_eq!((&layer["status"], layer["why"].is_string()), (&json!("missing"), true), "{name}: {layer}");
    }
    drop(router);
    use EventType::{DirectExecutionSuccess, ExecutionModeSelected, SandboxModeDisabled};
    assert_eq!(desk.story(), [SandboxModeDisabled, ExecutionModeSelected, DirectExecutionSuccess]);
    for event in desk.events() {
        assert_eq!((event.mode, event.iteration_num), (Some(Backend::Direct), Some(3)), "{event:?}");
    }
    assert_eq!(desk.events()[2].id.as_ref(), Some(&outcome.id));
}

#[test]
fn direct_script_is_checked_first() {
    if !alone("direct::direct_script_is_checked_first") {
        return;
    }
    let desk = Desk::new();
    let outcome = run(&desk.router(&[("enabled", "false")]), "import os\nos.remove('/etc/passwd')");
    expect(&outcome, Verdict::Rejected, None);
    assert!(outcome.message.contains("NSB101"), "{}", outcome.message);
    assert_eq!(desk.story().last(), Some(&EventType::CheckRejected));
}

#[test]
fn direct_script_has_what_its_caller_has() {
    if !alone("direct::direct_script_has_what_its_caller_has") {
        return;
    }
    let desk = Desk::new();
    fs::write(desk.path("data"), "some data").unwrap();
    let keys = [&OFF[..], &[("env", "GIVEN=by key")]].concat();
    let source = "
import os, sys, socket
read = open(inputs['data']).read()
result = [os.getcwd(), os.getuid(), os.environ['NSBOX_STORE'], os.environ['GIVEN'], sys.argv[1:], read,
          __name__, os.path.basename(__file__), open(__file__).read().startswith('\\nimport'), sys.stdin.read()]
listener = socket.create_server(('127.0.0.1', 0))
socket.create_connection(listener.getsockname()).close()
";
    let script = Script::from(source).name("some/strategy.py").arg("one").input("data", desk.path("data"));
    let outcome = run(&desk.router(&keys), script.stdin(Stdin::Stream(Box::new(Cursor::new("typed")))));
    expect(&outcome, Verdict::Ok, Backend::Direct);
    let text = |text: &str| Value::Str(text.to_owned());
    let here = std::env::current_dir().unwrap();
    let expected = vec![
        text(here.to_str().unwrap()),
        Value::Int(nix::unistd::getuid().as_raw().into()),
        text(&std::env::var("NSBOX_STORE").unwrap()),
        text("by key"),
        Value::List(vec![text("one")]),
        text("some data"),
        text("__main__"),
        text("strategy.py"),
        Value::Bool(true),
        text("typed"),
    ];
    assert_eq!(outcome.result, Some(Value::List(expected)));
    let left = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let left = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("nsbox-"));
    let left: Vec<_> = left.filter(|entry| entry.path().join("strategy.py").exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn direct_ends_are_told_apart() {
    if !alone("direct::direct_ends_are_told_apart") {
        return;
    }
    let desk = Desk::new();
    let keys = [&OFF[..], &[("limits.timeout", "1s"), ("limits.output", "1k"), ("limits.result", "1k")]].concat();
    let router = desk.router(&keys);
    for (source, verdict, exit_code, signal, said) in [
        ("import sys; sys.exit(3)", Verdict::Error, Some(3), None, ""),
        ("raise ValueError('why')", Verdict::Error, Some(1), None, "ValueError: why"),
        ("import os; os.kill(os.getpid(), 11)", Verdict::Signal, None, Some(11), "SIGSEGV"),
        ("while True: pass", Verdict::Timeout, None, None, "longer than 1s"),
        ("result = 'x' * 5000", Verdict::OutputLimit, Some(0), None, "larger than 1k"),
        ("print('x' * 5000)", Verdict::Ok, Some(0), None, "stdout was cut at 1k"),
        ("raise SystemExit('over')", Verdict::Error, Some(1), None, ""),
    ] {
        let outcome = run(&router, source);
        expect(&outcome, verdict, Backend::Direct);
        assert_eq!((outcome.exit_code, outcome.signal), (exit_code, signal), "{source}");
        assert!(outcome.message.contains(said), "{source}: {}", outcome.message);
    }
    let counts = router.statistics().report(&Default::default()).verdicts;
    assert_eq!(json!(counts), json!({"error": 3, "ok": 1, "output-limit": 1, "signal": 1, "timeout": 1}));
}

#[test]
fn direct_timeout_kills_the_whole_process_group() {
    if !alone("direct::direct_timeout_kills_the_whole_process_group") {
        return;
    }
    let desk = Desk::new();
    let source = "
import subprocess, time
print(subprocess.Popen(['sleep', '600']).pid, flush=True)
time.sleep(600 if TIME else 0)
";
    for (wait, verdict) in [("True", Verdict::Timeout), ("False", Verdict::Ok)] {
        let router = desk.router(&[&OFF[..], &[("limits.timeout", "2s")]].concat());
        let begun = Instant::now();
        let outcome = run(&router, source.replace("TIME", wait));
        expect(&outcome, verdict, Backend::Direct);
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        let pid = stdout(&outcome);
        until("what the script left is gone", || !lives(&pid));
    }
}

#[test]
fn direct_run_is_cancelled_and_ends_with_its_host() {
    if !alone("direct::direct_run_is_cancelled_and_ends_with_its_host") {
        return;
    }
    let desk = Desk::new();
    let cancel = Cancel::new().unwrap();
    let router = desk.router(&OFF);
    let outcome = thread::scope(|scope| {
        let watch = Watch { sink: None, cancel: Some(cancel.clone()) };
        let running = scope.spawn(|| router.run("import time\ntime.sleep(600)", watch));
        until("it runs", || children(std::process::id()).iter().any(|init| !children(*init).is_empty()));
        cancel.cancel();
        running.join().unwrap()
    });
    expect(&outcome, Verdict::Cancelled, Backend::Direct);

    fs::write(desk.path("off.yaml"), "sandbox:\n  enabled: false\n").unwrap();
    fs::write(desk.path("long.py"), "import time\ntime.sleep(600)").unwrap();
    fs::write(desk.path("short.py"), "pass").unwrap();
    fs::create_dir(desk.path("tmp")).unwrap();
    let command = |script: &str| {
        let mut command = nsbox(["run", "--no-check", "--config"]);
        command.args([desk.path("off.yaml"), desk.path(script)]).env("TMPDIR", desk.path("tmp"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let folders = || fs::read_dir(desk.path("tmp")).unwrap().count();
    let mut child = command("long.py").spawn().unwrap();
    let guest = || children(child.id()).first().and_then(|init| children(*init).first().copied());
    until("it runs", || guest().is_some());
    let guest = guest().unwrap().to_string();
    child.kill().unwrap();
    child.wait().unwrap();
    until("the script is gone", || !lives(&guest));
    // What it could not remove, the next run does.
    assert_eq!(folders(), 1);
    assert!(command("short.py").status().unwrap().success());
    assert_eq!(folders(), 0);
}

#[test]
fn direct_many_at_once_do_not_disturb_each_other() {
    if !alone("direct::direct_many_at_once_do_not_disturb_each_other") {
        return;
    }
    let desk = Desk::new();
    let router = desk.router(&OFF);
    thread::scope(|scope| {
        let run_all = |worker: i128| {
            for i in 0..5 {
                let number = worker * 100 + i;
                let outcome = run(&router, format!("print({number})\nresult = {number}"));
                expect(&outcome, Verdict::Ok, Backend::Direct);
                assert_eq!((stdout(&outcome), &outcome.result), (format!("{number}\n"), &Some(Value::Int(number))));
            }
        };
        (0..4).for_each(|worker| drop(scope.spawn(move || run_all(worker))));
    });
    assert_eq!(router.statistics().report(&Default::default()).backends["direct"], 20);
}

#[test]
fn command_without_a_sandbox_warns_of_it() {
    let desk = Desk::new();
    fs::write(desk.path("off.yaml"), "sandbox:\n  enabled: false\n").unwrap();
    fs::write(desk.path("a.py"), "print('hello')\nraise SystemExit(7)").unwrap();
    let mut command = nsbox(["run", "--config"]);
    let output = command.args([desk.path("off.yaml"), desk.path("a.py")]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), &b"hello\n"[..]), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("warning: the script ran without any isolation (enabled: false)"), "{said}");
}

#[test]
fn five_iterations_without_a_sandbox() {
    let desk = Desk::new();
    fs::create_dir(desk.path("strategies")).unwrap();
    for i in 0..5 {
        fs::write(desk.path(&format!("strategies/{i}.py")), format!("metrics = {{'a': {i}}}")).unwrap();
    }
    fs::write(desk.path("nsbox.yaml"), "sandbox: {enabled: false}\n").unwrap();
    let mut command = nsbox(["loop", "--config", "nsbox.yaml", "--json", "strategies"]);
    let output = command.current_dir(desk.folder.path()).env("NSBOX_EVENT_LOG", desk.path("events.log")).output();
    let report: Json = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    assert_eq!((&report["backends"], &report["verdicts"]), (&json!({"direct": 5}), &json!({"ok": 5})));
    let count = |kind| desk.story().iter().filter(|other| **other == kind).count();
    assert_eq!((count(EventType::SandboxModeDisabled), count(EventType::DirectExecutionSuccess)), (1, 5));
    assert_eq!((count(EventType::ExecutionModeSelected), count(EventType::FallbackToDirect)), (5, 0));
}
