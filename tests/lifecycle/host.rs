//! The library in its host process: many runs, threads, and nothing left of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nsbox::outcome::Verdict;
use nsbox::sandbox::Sandbox;

use crate::harness::{alone, sandbox, store};
use crate::traces::{Traces, resident};

/// Ends of every kind, each with what it should be.
const ENDS: [(&str, Verdict); 6] = [
    ("print('well')", Verdict::Ok),
    ("raise ValueError", Verdict::Error),
    ("import os; os.kill(os.getpid(), 9)", Verdict::Signal),
    ("import os; [os.fork() for _ in range(3)]; open('/tmp/left', 'w').write('x')", Verdict::Ok),
    ("import time; time.sleep(60)", Verdict::Timeout),
    ("block = bytearray(100 << 20)", Verdict::Oom),
];

fn expect(sandbox: &Sandbox, source: &str, verdict: Verdict) {
    let outcome = sandbox.run(source);
    assert_eq!(outcome.verdict, verdict, "{source}: {} {}", outcome.message, String::from_utf8_lossy(&outcome.stderr));
}

#[test]
fn two_hundred_runs_leave_nothing_and_the_host_as_small() {
    if !alone("host::two_hundred_runs_leave_nothing_and_the_host_as_small") {
        return;
    }
    let patient = sandbox(&[("limits.memory", "64m"), ("limits.timeout", "60s")]);
    let hasty = sandbox(&[("limits.timeout", "150ms")]);
    let mut settled = 0;
    let mut before = None;
    for i in 0..200 {
        // One in twenty ends in each of the slow ways.
        let (source, verdict) = ENDS[if i % 20 < 18 { i % 4 } else { 4 + i % 2 }];
        expect(if verdict == Verdict::Timeout { &hasty } else { &patient }, source, verdict);
        if i == 39 {
            settled = resident();
            before = Some(Traces::of_this_process());
        }
    }
    before.unwrap().assert_now();
    let grown = resident().saturating_sub(settled);
    // The allocator keeps a little; 200 runs would show what leaks from each.
    assert!(grown < 512 << 10, "{grown} bytes more after 160 runs");
}

#[test]
fn eight_at_once_leave_nothing() {
    if !alone("host::eight_at_once_leave_nothing") {
        return;
    }
    let sandbox = sandbox(&[("limits.memory", "64m"), ("limits.timeout", "3s")]);
    expect(&sandbox, "pass", Verdict::Ok);
    let before = Traces::of_this_process();
    thread::scope(|scope| {
        for worker in 0..8 {
            let sandbox = &sandbox;
            scope.spawn(move || {
                for i in 0..4 {
                    let (source, verdict) = ENDS[(worker + i) % 4];
                    expect(sandbox, source, verdict);
                }
                let (source, verdict) = ENDS[4 + worker % 2];
                expect(sandbox, source, verdict);
            });
        }
    });
    before.assert_now();
}

#[test]
fn host_that_waits_for_any_child_loses_no_run() {
    if !alone("host::host_that_waits_for_any_child_loses_no_run") {
        return;
    }
    let sandbox = sandbox(&[]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // Hosts that reap whatever there is: shells, job runners, Python's `os.wait`.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                waitpid(None, Some(WaitPidFlag::WNOHANG)).ok();
            }
        });
        let outcomes: Vec<_> = (0..20).map(|_| sandbox.run("raise SystemExit(3)")).collect();
        done.store(true, Ordering::Relaxed);
        for outcome in outcomes {
            assert_eq!((outcome.verdict, outcome.exit_code), (Verdict::Error, Some(3)), "{}", outcome.message);
        }
    });
}

#[test]
fn host_threads_that_allocate_and_lock_do_not_disturb_runs() {
    if !alone("host::host_threads_that_allocate_and_lock_do_not_disturb_runs") {
        return;
    }
    let sandbox = sandbox(&[]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let blocks: Vec<Vec<u8>> = (1..64).map(|i| vec![1; i * 997]).collect();
                    assert_eq!(blocks.len(), 63);
                    thread::yield_now();
                }
            });
        }
        let outcomes: Vec<_> = (0..20).map(|_| sandbox.run("print('well')")).collect();
        done.store(true, Ordering::Relaxed);
        assert!(outcomes.iter().all(|outcome| outcome.verdict == Verdict::Ok), "{outcomes:#?}");
    });
}

#[test]
fn sandbox_outlives_the_thread_that_made_it() {
    if !alone("host::sandbox_outlives_the_thread_that_made_it") {
        return;
    }
    assert!(store().is_absolute());
    let sandbox = thread::spawn(|| sandbox(&[])).join().unwrap();
    expect(&sandbox, "print('well')", Verdict::Ok);
}
