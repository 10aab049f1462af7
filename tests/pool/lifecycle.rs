//! What a pool leaves, and what becomes of it when something dies.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsbox::outcome::{Value, Verdict};

use crate::harness::{alone, cgroups_of, children, comm, until};
use crate::{builder, pool, run};

/// Every process below this one.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = children(pid);
    let mut at = 0;
    while at < found.len() {
        found.extend(children(found[at]));
        at += 1;
    }
    found
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn thousand_runs_leave_nothing() {
    /// Slots at once.
    const MOST: usize = 8;
    if !alone("lifecycle::thousand_runs_leave_nothing") {
        return;
    }
    let own = std::process::id();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let before = (descriptors(), threads(), mounts());
    let pool = builder(&[("limits.timeout", "500ms"), ("limits.memory", "24m"), ("limits.cpus", "2")])
        .slots(3)
        .most(MOST)
        .build()
        .unwrap();
    let settled = || until("three slots are ready", || pool.ready() == 3 && cgroups_of(own).len().is_multiple_of(4));
    settled();
    let full = (descriptors(), descendants(own).len(), cgroups_of(own).len());
    for i in 0..1000_i128 {
        let (source, verdict) = match i % 50 {
            7 => ("import os; os._exit(3)".to_owned(), Verdict::Error),
            17 => ("while True: pass".to_owned(), Verdict::Timeout),
            27 => ("x = bytes(1) * (64 << 20)".to_owned(), Verdict::Oom),
            37 => ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)".to_owned(), Verdict::Signal),
            47 => ("import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass".to_owned(), Verdict::Ok),
            _ => (format!("result = {i}"), Verdict::Ok),
        };
        let outcome = run(&pool, &source);
        assert_eq!(outcome.verdict, verdict, "run {i}: {outcome:#?}");
        if source.starts_with("result") {
            assert_eq!(outcome.result, Some(Value::Int(i)));
        }
    }
    settled();
    until("as much is there as before", || {
        // Network namespaces are kept for later slots: never more than there were slots at once.
        (full.0..full.0 + MOST).contains(&descriptors())
            && (full.1, full.2) == (descendants(own).len(), cgroups_of(own).len())
    });
    assert_eq!(pool.counts().crashes, 0);
    drop(pool);
    assert_eq!((descriptors(), threads(), mounts()), before);
    assert_eq!((descendants(own), cgroups_of(own)), (Vec::new(), Vec::new()));
}

#[test]
fn dead_zygote_is_replaced_and_only_what_ran_is_lost() {
    if !alone("lifecycle::dead_zygote_is_replaced_and_only_what_ran_is_lost") {
        return;
    }
    let pool = pool(&[]);
    let zygote = || children(std::process::id()).into_iter().find(|pid| comm(*pid) == "nsbox-init");
    let first = zygote().unwrap();
    let running = pool.submit("import time; time.sleep(60)");
    std::thread::sleep(Duration::from_millis(300));
    kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL).unwrap();
    let lost = running.wait();
    assert_eq!(lost.verdict, Verdict::Lost, "{lost:#?}");
    for i in 0..5 {
        let outcome = run(&pool, &format!("result = {i}"));
        assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
    }
    assert!(zygote().is_some_and(|next| next != first));
    assert_eq!(pool.counts().crashes, 1, "{:?}", pool.counts());
}

#[test]
fn zygote_is_rotated() {
    if !alone("lifecycle::zygote_is_rotated") {
        return;
    }
    let pool = builder(&[]).slots(2).rotate_after(5).build().unwrap();
    for i in 0..30 {
        let outcome = run(&pool, &format!("result = {i}"));
        assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let counts = pool.counts();
    assert!(counts.zygotes > 1 && counts.crashes == 0, "{counts:?}");
    // The old ones are gone once their last slot is.
    until("one zygote is left", || children(std::process::id()).len() == 1);
}

#[test]
fn everything_dies_with_the_host() {
    /// Set in the host that is killed.
    const HOST: &str = "NSBOX_TEST_HOST";
    if std::env::var_os(HOST).is_some() {
        let pool = pool(&[]);
        let handle = pool.submit("import time; time.sleep(60)");
        std::thread::sleep(Duration::from_millis(300));
        eprintln!("ready");
        drop(handle.wait());
        return;
    }
    if !alone("lifecycle::everything_dies_with_the_host") {
        return;
    }
    let mut host = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lifecycle::everything_dies_with_the_host", "--nocapture"])
        .env(HOST, "1")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(host.stderr.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "ready"));
    let all = descendants(host.id());
    assert!(all.len() >= 4, "{all:?}");
    host.kill().unwrap();
    host.wait().unwrap();
    until("all its processes are gone", || all.iter().all(|pid| comm(*pid).is_empty()));
}
