//! Wall time, of the script and of the set-up, and CPU time.

use crate::harness::{run, run_with};

#[test]
fn timeout_counts_milliseconds() {
    let ran = run(&["--timeout", "250ms"], "import time\nprint('begun')\ntime.sleep(20)").expect("timeout");
    let ran = ran.says("longer than 250ms (--timeout)");
    assert_eq!(ran.status, 124);
    assert_eq!(ran.stdout(), "begun\n", "what was printed before is there");
    let wall = ran.outcome.usage.wall_ms;
    assert!((250.0..900.0).contains(&wall), "{wall}");
}

#[test]
fn timeout_does_not_count_the_set_up() {
    // Longer than the rest of the second that the limit leaves, were the interpreter's start and the check in it.
    let ran = run(&["--timeout", "1500ms"], "import time\ntime.sleep(0.9)").expect("ok");
    let wall = ran.outcome.usage.wall_ms;
    assert!((800.0..1500.0).contains(&wall), "{wall}");
}

#[test]
fn timeout_ends_a_script_that_ignores_every_signal() {
    let source = r#"
import signal, time
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    time.sleep(1)
"#;
    run(&["--timeout", "300ms"], source).expect("timeout");
}

#[test]
fn setup_timeout_ends_what_has_not_begun() {
    let ran = run_with(&[("NSBOX_LIMITS_SETUP_TIMEOUT", "1ms")], &[], "print('begun')").expect("unavailable");
    let ran = ran.says("longer than 1ms (limits.setup_timeout)");
    assert_eq!((ran.status, ran.stdout().as_str()), (125, ""));
    run_with(&[("NSBOX_LIMITS_SETUP_TIMEOUT", "20s")], &[], "print('begun')").expect("ok");
}

const BURN: &str = r#"
import time
while time.process_time() < SECONDS:
    pass
print("done")
"#;

#[test]
fn cpu_time_over_its_limit_is_timeout() {
    let ran = run(&["--cpus", "2", "--cpu-time", "300ms"], &BURN.replace("SECONDS", "20")).expect("timeout");
    let ran = ran.says("more than 300ms of CPU time (--cpu-time)");
    assert_eq!(ran.status, 124);
    let usage = ran.outcome.usage;
    let used = usage.cpu_user_ms.unwrap() + usage.cpu_system_ms.unwrap();
    assert!((250.0..1000.0).contains(&used), "{usage:?}");
}

#[test]
fn cpu_time_under_its_limit_is_free_and_sleep_does_not_count() {
    let source = BURN.replace("SECONDS", "0.2") + "time.sleep(1)\n";
    let ran = run(&["--cpus", "2", "--cpu-time", "900ms"], &source).expect("ok");
    assert!(ran.outcome.usage.wall_ms >= 900.0);
}

#[test]
fn cpu_time_counts_all_processes_together() {
    let source = format!(
        r#"
import os
for _ in range(3):
    if os.fork() == 0:
        {}
        os._exit(0)
for _ in range(3):
    os.wait()
"#,
        BURN.replace("SECONDS", "0.4").trim().replace('\n', "\n        "),
    );
    run(&["--cpus", "2", "--cpu-time", "700ms"], &source).expect("timeout");
    run(&["--cpus", "2", "--cpu-time", "5s"], &source).expect("ok");
}
