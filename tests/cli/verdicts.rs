//! Every verdict, with its exit status and its one-line outcome of the published schema.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsbox::outcome::{Backend, Ended, Outcome, Verdict};

use crate::harness::{READY, Running, judge, nsbox, outcome_of, run, run_with};

fn pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}

#[test]
fn ok_is_status_0() {
    let ran = run(&[], "print('well')\nmetrics = {'sharpe': 1.5, 'trades': [1, None]}\nsignal = 'LONG'").expect("ok");
    assert_eq!((ran.status, ran.outcome.exit_code, ran.outcome.signal), (0, Some(0), None));
    assert_eq!((ran.outcome.backend, ran.outcome.ended), (Some(Backend::Namespace), Ended::Exited));
    assert_eq!(ran.json["metrics"], serde_json::json!({"sharpe": 1.5, "trades": [1, null]}));
    assert_eq!((&ran.json["signals"], ran.stderr.as_str()), (&"LONG".into(), ""));
    run(&[], "raise SystemExit(0)").expect("ok");
}

#[test]
fn error_has_the_scripts_own_status() {
    let ran = run(&[], "def f():\n    raise ValueError('its own')\nf()").expect("error").says("ValueError: its own");
    assert_eq!((ran.status, ran.outcome.exit_code), (1, Some(1)));
    let traceback = String::from_utf8(ran.outcome.stderr).unwrap();
    assert!(traceback.contains("stdin.py\", line 2, in f"), "{traceback}");
    assert!(!traceback.contains("runner"), "{traceback}");
    for status in [1, 3, 121, 124, 137, 255] {
        let ran = run(&[], &format!("raise SystemExit({status})")).expect("error");
        assert_eq!((ran.status, ran.outcome.exit_code), (status, Some(status)));
    }
    assert_eq!(run(&[], "import os\nos._exit(9)").expect("error").status, 9);
}

#[test]
fn timeout_is_status_124() {
    assert_eq!(run(&["--timeout", "200ms"], "while True: pass").expect("timeout").status, 124);
}

#[test]
fn oom_is_status_137() {
    assert_eq!(run(&["--memory", "64m"], "x = bytearray(99 << 20)").expect("oom").status, 137);
}

#[test]
fn signal_is_status_128_and_its_number() {
    for (number, name) in [(6, "SIGABRT"), (9, "SIGKILL"), (11, "SIGSEGV"), (15, "SIGTERM")] {
        let ran = run(&[], &format!("import os\nos.kill(os.getpid(), {number})")).expect("signal").says(name);
        assert_eq!((ran.status, ran.outcome.signal, ran.outcome.exit_code), (128 + number, Some(number), None));
    }
    let ran = run(&[], "import ctypes\nctypes.string_at(0)").expect("signal").says("SIGSEGV");
    assert_eq!(ran.status, 139);
}

#[test]
fn violation_is_status_159() {
    // The kernel module loader: no library probes for it.
    let source = "import ctypes\nctypes.CDLL(None).syscall(175, 0, 0, 0)\nprint('still there')";
    let ran = run(&[], source).expect("violation").says("init_module");
    assert_eq!((ran.status, ran.stdout().as_str()), (159, ""));
    assert_eq!(ran.json["violations"], serde_json::json!([{"syscall": "init_module", "count": 1}]));
}

#[test]
fn output_limit_is_status_122() {
    let flags = ["--output-limit", "1k", "--output-limit-kill"];
    assert_eq!(run(&flags, "print('x' * 5000)").expect("output-limit").status, 122);
}

#[test]
fn rejected_is_status_126_and_nothing_ran() {
    let ran = outcome_of(nsbox(["run", "--json", "-"]), b"print('ran')\nimport os\n").expect("rejected");
    assert_eq!((ran.status, ran.outcome.ended, ran.outcome.backend), (126, Ended::NotStarted, None));
    assert_eq!((ran.stdout().as_str(), ran.outcome.degraded), ("", false));
    ran.says("stdin.py:2:8").says("'os'");
}

#[test]
fn unavailable_is_status_125_and_nothing_ran() {
    let ran = run(&["--backend", "docker"], "print('ran')").expect("unavailable");
    assert_eq!((ran.status, ran.outcome.ended, ran.stdout().as_str()), (125, Ended::NotStarted, ""));
    let ran = run(&["--python", "/nowhere/python3"], "print('ran')").expect("unavailable").says("/nowhere/python3");
    assert_eq!(ran.status, 125);
    run_with(&[("NSBOX_STORE", "/proc/nowhere")], &[], "print('ran')").expect("unavailable").says("/proc/nowhere");
}

#[test]
fn cancelled_is_status_130() {
    let running = Running::start(&["--json"], &format!("print('begun')\n{READY}time.sleep(60)"));
    kill(pid(running.child.id()), Signal::SIGINT).unwrap();
    let ran = judge(&running.finish()).expect("cancelled");
    assert_eq!((ran.status, ran.outcome.ended, ran.stdout().as_str()), (130, Ended::Killed, "begun\n"));
}

#[test]
fn lost_is_status_121() {
    let running = Running::start(&["--json"], &format!("print('begun')\n{READY}time.sleep(60)"));
    kill(pid(running.init().unwrap()), Signal::SIGKILL).unwrap();
    let ran = judge(&running.finish()).expect("lost");
    assert_eq!((ran.status, ran.outcome.ended, ran.stdout().as_str()), (121, Ended::Lost, "begun\n"));
}

#[test]
fn guest_killed_from_outside_is_a_signal() {
    let running = Running::start(&["--json"], &format!("{READY}time.sleep(60)"));
    kill(pid(running.guest().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(judge(&running.finish()).expect("signal").status, 137);
}

#[test]
fn schema_that_is_published_is_that_of_the_type() {
    let published: serde_json::Value = serde_json::from_str(include_str!("../../config/outcome.schema.json")).unwrap();
    assert_eq!(published, Outcome::json_schema());
}

#[test]
fn schema_refuses_what_is_no_outcome() {
    // What every other test leans on.
    let schema = jsonschema::validator_for(&Outcome::json_schema()).unwrap();
    let whole = run(&[], "pass").expect("ok").json;
    assert!(schema.is_valid(&whole));
    for (field, value) in [("verdict", "fine".into()), ("usage", 3.into()), ("further", true.into())] {
        let mut wrong = whole.clone();
        wrong[field] = value;
        assert!(!schema.is_valid(&wrong), "{field}");
        assert!(serde_json::from_value::<Outcome>(wrong).is_err(), "{field}");
    }
}

#[test]
fn profile_that_starts_nothing_is_told_from_a_machine_that_refuses() {
    let ran = run(&["--seccomp", "strict"], "print(1)");
    assert_eq!(ran.outcome.verdict, Verdict::Unavailable, "{:#?}", ran.outcome);
    assert!(ran.outcome.message.contains("`strict` lets no program be started"), "{}", ran.outcome.message);
    let ran = run(&["--seccomp", "strict", "--warm", "--preload", "json"], "print(1)");
    assert_eq!(
        (ran.outcome.verdict, ran.outcome.stdout.as_slice()),
        (Verdict::Ok, b"1\n".as_slice()),
        "{:#?}",
        ran.outcome
    );
}
