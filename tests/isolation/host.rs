//! The library in a host of many threads: children, descriptors and memory of the host stay as they were.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use nsbox::config::Config;
use nsbox::outcome::Verdict;
use nsbox::sandbox::Sandbox;

use crate::harness::{PYTHON, folder, is_root};

const INSIDE: &str = "NSBOX_ISOLATION_HOST";

/// Runs the test of this name again in a process of its own, whose children and descriptors no other test changes, and
/// whose store is not the machine's. `true` in that process.
fn alone(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .env("NSBOX_STORE", folder().join("store"))
        .output()
        .expect("this program starts");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn sandbox() -> Sandbox {
    let mut config =
        Config { check: false, python: Some(PathBuf::from(PYTHON)), allow_degraded: !is_root(), ..Config::default() };
    config.limits.cpus = 2.0;
    config.limits.timeout = Duration::from_secs(60);
    Sandbox::new(config).expect("a sandbox")
}

fn descriptors() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
    let mut targets: Vec<String> =
        entries.filter_map(|entry| Some(std::fs::read_link(entry.path()).ok()?.display().to_string())).collect();
    // Pipes and sockets are numbered anew.
    for target in &mut targets {
        target.truncate(target.find(':').map_or(target.len(), |end| end));
    }
    targets.sort();
    targets
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

/// Eight threads, `each` runs in each.
fn run_all(sandbox: &Sandbox, each: usize) {
    thread::scope(|scope| {
        for worker in 0..8 {
            scope.spawn(move || {
                for round in 0..each {
                    let expected = worker * 1000 + round;
                    let outcome = sandbox.run(format!("result = {expected}").as_str());
                    assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
                    assert_eq!(serde_json::to_value(&outcome).expect("JSON")["result"], expected);
                }
            });
        }
    });
}

#[test]
fn threaded_host_loses_nothing_and_keeps_nothing() {
    if !alone("host::threaded_host_loses_nothing_and_keeps_nothing") {
        return;
    }
    let sandbox = sandbox();
    run_all(&sandbox, 2);
    let (descriptors_before, memory_before) = (descriptors(), resident_kib());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // A host that reaps whatever it finds, as many do. execve(2) gives init the exit signal SIGCHLD whatever its clone
        // asked for, so such a host can reap an init first; no run may be lost by it.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)).ok();
                thread::sleep(Duration::from_micros(200));
            }
        });
        let ran = catch_unwind(AssertUnwindSafe(|| run_all(&sandbox, 10)));
        // Before a failure is passed on, or the scope would wait for the reaper for ever.
        stop.store(true, Ordering::Relaxed);
        ran.unwrap_or_else(|panic| resume_unwind(panic));
    });
    assert_eq!(descriptors(), descriptors_before);
    let grown = resident_kib().saturating_sub(memory_before);
    assert!(grown < 4096, "{grown} KiB more after 80 runs");
    let all = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
    assert_eq!(waitpid(Pid::from_raw(-1), Some(all)), Err(nix::errno::Errno::ECHILD), "a zombie is left");
}

#[test]
fn hosts_own_children_are_the_hosts() {
    if !alone("host::hosts_own_children_are_the_hosts") {
        return;
    }
    let sandbox = sandbox();
    let mut own = Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().expect("a child");
    let outcome = sandbox.run("import os, time\nos.kill(-1, 9) if os.fork() == 0 else time.sleep(0.2)\n");
    assert!(matches!(outcome.verdict, Verdict::Ok | Verdict::Signal), "{outcome:#?}");
    assert_eq!(own.wait().expect("it is still to be waited for").code(), Some(7));
}

#[test]
fn thread_that_started_a_run_may_end_before_others_run() {
    // A parent-death signal would follow the thread, not the process.
    if !alone("host::thread_that_started_a_run_may_end_before_others_run") {
        return;
    }
    let sandbox = sandbox();
    thread::scope(|scope| {
        let long = scope.spawn(|| sandbox.run("import time\ntime.sleep(0.4)\nresult = 1\n"));
        for _ in 0..3 {
            let outcome = scope.spawn(|| sandbox.run("result = 2\n")).join().expect("the thread ends");
            assert_eq!(outcome.verdict, Verdict::Ok);
        }
        assert_eq!(long.join().expect("the thread ends").verdict, Verdict::Ok);
    });
}
