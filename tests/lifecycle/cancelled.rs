//! Runs that their caller ends.

use std::thread;
use std::time::{Duration, Instant};

use nsbox::outcome::{Ended, Verdict};
use nsbox::sandbox::{Cancel, Stream, Watch};

use crate::harness::{alone, sandbox};
use crate::traces::Traces;

#[test]
fn cancel_from_another_thread_ends_the_run() {
    if !alone("cancelled::cancel_from_another_thread_ends_the_run") {
        return;
    }
    let sandbox = sandbox(&[]);
    let before = Traces::of_this_process();
    let cancel = Cancel::new().unwrap();
    let (said, hears) = std::sync::mpsc::channel();
    let mut sink = move |stream: Stream, bytes: &[u8]| {
        assert_eq!(stream, Stream::Stdout);
        // Whoever reads the other end may have seen enough.
        bytes.iter().for_each(|byte| said.send(*byte).unwrap_or_default());
    };
    let outcome = thread::scope(|scope| {
        let watch = Watch { sink: Some(&mut sink), cancel: Some(cancel.clone()) };
        let run = scope.spawn(|| sandbox.run_watched("print('begun')\nimport time\ntime.sleep(60)", watch));
        // Output comes while the script runs.
        let begun: Vec<u8> = hears.iter().take(6).collect();
        let cancelled = Instant::now();
        cancel.cancel();
        let outcome = run.join().unwrap();
        assert_eq!(begun, b"begun\n");
        assert!(cancelled.elapsed() < Duration::from_secs(10));
        outcome
    });
    assert_eq!((outcome.verdict, outcome.ended), (Verdict::Cancelled, Ended::Killed));
    assert_eq!(outcome.stdout, b"begun\n");
    drop((cancel, hears));
    before.assert_now();
}

#[test]
fn cancel_before_the_run_lets_nothing_begin() {
    if !alone("cancelled::cancel_before_the_run_lets_nothing_begin") {
        return;
    }
    let sandbox = sandbox(&[]);
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    for _ in 0..2 {
        let watch = Watch { sink: None, cancel: Some(cancel.clone()) };
        let outcome = sandbox.run_watched("print('begun')", watch);
        assert_eq!((outcome.verdict, outcome.stdout.as_slice()), (Verdict::Cancelled, b"".as_slice()));
    }
    assert_eq!(sandbox.run("pass").verdict, Verdict::Ok, "another run is none of its business");
}

#[test]
fn cancel_ends_every_run_that_has_it() {
    if !alone("cancelled::cancel_ends_every_run_that_has_it") {
        return;
    }
    let sandbox = sandbox(&[]);
    let cancel = Cancel::new().unwrap();
    thread::scope(|scope| {
        let runs: Vec<_> = (0..3)
            .map(|_| {
                let watch = Watch { sink: None, cancel: Some(cancel.clone()) };
                scope.spawn(|| sandbox.run_watched("import time\ntime.sleep(60)", watch).verdict)
            })
            .collect();
        thread::sleep(Duration::from_millis(300));
        cancel.cancel();
        for run in runs {
            assert_eq!(run.join().unwrap(), Verdict::Cancelled);
        }
    });
}
