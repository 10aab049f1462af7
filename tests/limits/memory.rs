//! Memory: of all processes together, files of the tmpfs included, without swap.

use crate::harness::run;

#[test]
fn memory_over_its_limit_is_oom() {
    let ran = run(&["--memory", "64m"], "block = bytearray(100 << 20)")
        .expect("oom")
        .says("more than 64m of memory (--memory)");
    assert_eq!(ran.status, 137);
    assert!(ran.outcome.usage.peak_memory_bytes.unwrap() <= 64 << 20);
}

#[test]
fn memory_under_its_limit_is_free() {
    let ran = run(&["--memory", "64m"], "block = bytearray(40 << 20)").expect("ok");
    let peak = ran.outcome.usage.peak_memory_bytes.unwrap();
    assert!((40 << 20..=64 << 20).contains(&peak), "{peak}");
}

/// Each of three children touches MIB mebibytes, and all hold them at once.
const FAMILY: &str = r#"
import os
ready, done = os.pipe(), os.pipe()
for _ in range(3):
    if os.fork() == 0:
        block = bytearray(MIB << 20)
        os.write(ready[1], b"x")
        os.close(done[1])
        os.read(done[0], 1)
        os._exit(0)
os.close(ready[1])
count = 0
while count < 3 and os.read(ready[0], 1):
    count += 1
print(count)
"#;

#[test]
fn memory_counts_all_processes_together() {
    run(&["--memory", "96m"], &FAMILY.replace("MIB", "40")).expect("oom");
    let ran = run(&["--memory", "96m"], &FAMILY.replace("MIB", "15")).expect("ok");
    assert_eq!(ran.stdout(), "3\n");
}

#[test]
fn memory_of_a_grandchild_is_oom_though_the_script_ends_well() {
    let source = r#"
import os
if os.fork() == 0:
    if os.fork() == 0:
        block = bytearray(100 << 20)
    os.wait()
    os._exit(0)
os.wait()
"#;
    run(&["--memory", "64m"], source).expect("oom");
}

#[test]
fn memory_counts_files_of_the_tmpfs() {
    let source = r#"
with open("/dev/shm/block", "wb", buffering=0) as file:
    for _ in range(MIB):
        file.write(bytes(1 << 20))
"#;
    run(&["--memory", "64m", "--disk", "256m"], &source.replace("MIB", "100")).expect("oom");
    run(&["--memory", "64m", "--disk", "256m"], &source.replace("MIB", "30")).expect("ok");
}

#[test]
fn memory_error_that_the_script_raises_itself_is_no_oom() {
    let ran = run(&[], "raise MemoryError('its own')").expect("error").says("MemoryError: its own");
    assert_eq!(ran.status, 1);
}
