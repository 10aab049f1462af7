//! How slots share a CPU with others.

use std::process::Command;
use std::thread;

use nix::unistd::gettid;
use nsbox::outcome::Value;
use nsbox::pool::Drained;

use crate::harness::{alone, until};
use crate::{builder, run};

/// The script's own sched_getattr(2).
const SCHEDULED: &str = "
import ctypes, os, struct
place = ctypes.create_string_buffer(48)
assert ctypes.CDLL(None).syscall(315, 0, place, 48, 0) == 0
size, policy, flags, nice, priority, runtime, deadline, period = struct.unpack('IIQiIQQQ', place.raw)
has_slices = tuple(int(part) for part in os.uname().release.split('.')[:2]) >= (6, 12)
result = [policy, nice, runtime if has_slices else 100_000]
";

/// The nice value of this thread becomes `nice`, whatever that of the process is.
fn be_nice(nice: i64) {
    let thread = gettid().to_string();
    assert!(Command::new("renice").args(["-n", &nice.to_string(), "-p", &thread]).status().unwrap().success());
}

#[test]
fn slots_have_the_shortest_slice_and_the_nice_value_of_whoever_built_the_pool() {
    if !alone("scheduling::slots_have_the_shortest_slice_and_the_nice_value_of_whoever_built_the_pool") {
        return;
    }
    let build = || {
        be_nice(7);
        builder(&[]).slots(1).most(2).drained(Drained::Fork).build().unwrap()
    };
    let pool = thread::scope(|scope| scope.spawn(build).join().unwrap());
    let scheduled = |nice| Some(Value::List([0, nice, 100_000].map(Value::Int).to_vec()));
    // The second run's slot is forked by its caller's thread, which is less nice than the pool.
    thread::scope(|scope| {
        let long = scope.spawn(|| run(&pool, "import time\ntime.sleep(1)"));
        until("the first one has the slot", || pool.ready() == 0);
        let outcome = run(&pool, SCHEDULED);
        assert_eq!(outcome.result, scheduled(7), "{outcome:#?}");
        long.join().unwrap();
    });
    for _ in 0..3 {
        let outcome = run(&pool, SCHEDULED);
        assert_eq!(outcome.result, scheduled(7), "{outcome:#?}");
    }
}
