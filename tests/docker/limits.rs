//! Limits, seen to bite, and just under them not to.

use std::time::{Duration, Instant};

use nsbox::outcome::Verdict;

use crate::harness::patiently;
use crate::{engine, expect, run, says, text};

#[test]
fn timeout_of_5_s_ends_within_5_500_ms() {
    let Some(engine) = engine() else { return };
    // Out of the measure: what the engine does once.
    expect(&run(&engine, &[], "pass"), Verdict::Ok);
    let outcome = run(&engine, &[("limits.timeout", "5s")], "print('begun')\nwhile True: pass");
    expect(&outcome, Verdict::Timeout);
    says(&outcome, "longer than 5s (--timeout)");
    assert_eq!(outcome.stdout, b"begun\n");
    let wall = outcome.usage.wall_ms;
    assert!((5000.0..5500.0).contains(&wall), "{wall}");
    assert!(outcome.usage.cpu_user_ms.unwrap() > 100.0, "{:?}", outcome.usage);
}

#[test]
fn timeout_ends_a_script_that_ignores_every_signal_and_has_children() {
    let Some(engine) = engine() else { return };
    let source = "import os, signal, time\nfor number in signal.valid_signals() - {9, 19}:\n    try: signal.signal(number, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nfor _ in range(5): os.fork()\nwhile True: time.sleep(1)";
    let begun = Instant::now();
    let outcome = run(&engine, &[("limits.timeout", "500ms")], source);
    expect(&outcome, Verdict::Timeout);
    assert!(begun.elapsed().as_secs() < 20);
}

#[test]
fn memory_over_its_limit_is_oom_and_not_timeout() {
    let Some(engine) = engine() else { return };
    let keys = [("limits.memory", "96m"), ("limits.timeout", "30s")];
    let outcome = run(&engine, &keys, "x = bytearray(512 << 20)");
    expect(&outcome, Verdict::Oom);
    says(&outcome, "more than 96m of memory (--memory)");
    expect(&run(&engine, &keys, "x = bytearray(32 << 20)"), Verdict::Ok);
}

#[test]
fn memory_of_a_grandchild_counts() {
    let Some(engine) = engine() else { return };
    let source = "import os\npid = os.fork()\nif pid == 0:\n    if os.fork() == 0:\n        x = bytearray(512 << 20)\n    os.wait()\n    os._exit(0)\nos.wait()\nresult = 1";
    expect(&run(&engine, &[("limits.memory", "96m")], source), Verdict::Oom);
}

#[test]
fn memory_that_a_child_ran_out_of_is_oom_in_a_run_over_its_time() {
    let Some(engine) = engine() else { return };
    // Its parent waits for word from the child that the kernel killed.
    let source = "import os\nr, w = os.pipe()\nif os.fork() == 0:\n    if os.fork() == 0: x = bytearray(512 << 20)\n    os.wait()\n    while True: os.read(r, 1)\nwhile True: os.read(r, 1)";
    let keys = [("limits.memory", "96m"), ("limits.timeout", "3s")];
    expect(&run(&engine, &keys, source), Verdict::Oom);
    let within = source.replace("512 << 20", "16 << 20");
    expect(&run(&engine, &keys, within), Verdict::Timeout);
}

#[test]
fn memory_files_count_as_memory_and_swap_is_off() {
    let Some(engine) = engine() else { return };
    let source = "for i in range(200):\n    with open(f'/tmp/{i}', 'wb') as file: file.write(bytes(1 << 20))";
    let keys = [("limits.memory", "96m"), ("limits.disk", "512m")];
    expect(&run(&engine, &keys, source), Verdict::Oom);
}

#[test]
fn processes_over_their_limit_are_refused() {
    let Some(engine) = engine() else { return };
    let source = "import os, time\ncount = 0\ntry:\n    while count < 100:\n        if os.fork() == 0:\n            time.sleep(30)\n        count += 1\nexcept BlockingIOError: pass\nresult = count";
    let outcome = run(&engine, &[("limits.pids", "10")], source);
    expect(&outcome, Verdict::Ok);
    assert_eq!(outcome.result, Some(nsbox::outcome::Value::Int(9)), "itself and nine more");
    assert_eq!(outcome.usage.processes_peak, Some(10));
}

#[test]
fn disk_inodes_files_and_descriptors_have_limits() {
    let Some(engine) = engine() else { return };
    let source = "\
import errno, os, resource
def refused(step):
    try: step()
    except OSError as error: return errno.errorcode[error.errno]
def fill(folder):
    with open(f'{folder}/x', 'wb') as file:
        for _ in range(64): file.write(bytes(1 << 20)), file.flush()
def litter(folder):
    for i in range(1000): open(f'{folder}/{i}', 'w').close()
def hoard():
    return [open('/dev/null') for _ in range(100)]
result = [refused(lambda: fill(folder)) for folder in ('/tmp', '/work', '/dev/shm')]
for folder in ('/tmp', '/work', '/dev/shm'): os.path.exists(f'{folder}/x') and os.unlink(f'{folder}/x')
result += [refused(lambda: litter('/tmp')), refused(hoard)]
result += [resource.getrlimit(resource.RLIMIT_CORE)[1], resource.getrlimit(resource.RLIMIT_FSIZE)[1]]
print(*result)
";
    let keys =
        [("limits.disk", "8m"), ("limits.inodes", "500"), ("limits.open_files", "64"), ("limits.file_size", "32m")];
    let outcome = run(&engine, &keys, source);
    expect(&outcome, Verdict::Ok);
    assert_eq!(text(&outcome.stdout), "ENOSPC ENOSPC ENOSPC ENOSPC EMFILE 0 33554432\n");
}

#[test]
fn writable_folders_together_hold_no_more_than_the_disk_limit() {
    let Some(engine) = engine() else { return };
    let source = "\
import os
total = count = 0
for folder in ('/tmp', '/work', '/dev/shm'):
    try:
        with open(f'{folder}/x', 'wb', 0) as file:
            while True: total += file.write(bytes(1 << 16))
    except OSError: os.unlink(f'{folder}/x')
    try:
        while True: open(f'{folder}/{count}', 'w').close(); count += 1
    except OSError: pass
result = [total, count]
";
    let keys = [("limits.disk", "16m"), ("limits.inodes", "400")];
    let outcome = run(&engine, &keys, source);
    expect(&outcome, Verdict::Ok);
    let Some(nsbox::outcome::Value::List(found)) = &outcome.result else { panic!("{outcome:#?}") };
    // Each folder is an inode itself, and the script is a file of one page.
    assert_eq!(*found, [(16 << 20) - 4096, 400 - 4].map(nsbox::outcome::Value::Int));
}

#[test]
fn cpu_share_is_held() {
    let Some(engine) = engine() else { return };
    let source =
        "import time\nbegun = time.monotonic()\nwhile time.monotonic() - begun < 2: pass\nresult = time.process_time()";
    let outcome = run(&engine, &[("limits.cpus", "0.25")], source);
    expect(&outcome, Verdict::Ok);
    let Some(nsbox::outcome::Value::Float(used)) = outcome.result else { panic!("{outcome:#?}") };
    assert!(used < 0.9, "{used} s of CPU time in 2 s");
}

#[test]
fn cpu_time_over_its_limit_is_timeout() {
    let Some(engine) = engine() else { return };
    let source = "import os\nos.fork()\nwhile True: pass";
    let outcome =
        run(&engine, &[("limits.cpus", "2"), ("limits.cpu_time", "600ms"), ("limits.timeout", "60s")], source);
    expect(&outcome, Verdict::Timeout);
    says(&outcome, "more than 600ms of CPU time (--cpu-time)");
    // What the container's start took does not count.
    let outcome = run(&engine, &[("limits.cpu_time", "20ms")], "pass");
    expect(&outcome, Verdict::Ok);
    let used = outcome.usage.cpu_user_ms.unwrap() + outcome.usage.cpu_system_ms.unwrap();
    assert!(used < 20.0, "{:?}", outcome.usage);
}

#[test]
fn output_over_its_limit_is_cut_or_ends_the_run() {
    let Some(engine) = engine() else { return };
    let source = "import sys\nsys.stdout.write('x' * 100_000)\nsys.stderr.write('y' * 10)";
    let outcome = run(&engine, &[("limits.output", "64k")], source);
    expect(&outcome, Verdict::Ok);
    assert_eq!((outcome.stdout.len(), outcome.stdout_truncated, outcome.stderr_truncated), (64 << 10, true, false));
    let endless = "while True: print('x' * 10_000)";
    let outcome = run(&engine, &[("limits.output", "64k"), ("limits.output_kill", "true")], endless);
    expect(&outcome, Verdict::OutputLimit);
    says(&outcome, "to stdout (--output-limit)");
    let outcome = run(&engine, &[("limits.output", "64k"), ("limits.timeout", "1s")], endless);
    expect(&outcome, Verdict::Timeout);
    let patience = patiently(Duration::from_millis(2500));
    assert!(outcome.usage.wall_ms < patience.as_secs_f64() * 1e3, "a flood does not stop the clock: {outcome:?}");
}

#[test]
fn result_over_its_limit_is_output_limit() {
    let Some(engine) = engine() else { return };
    let keys = [("limits.result", "1m")];
    expect(&run(&engine, &keys, "result = 'x' * (2 << 20)"), Verdict::OutputLimit);
    let outcome = run(&engine, &keys, "result = 'x' * (1 << 19)");
    expect(&outcome, Verdict::Ok);
}
