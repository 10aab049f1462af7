//! CPUs: a share of time that the kernel holds a run to, and the number of CPUs that it sees.

use std::time::Duration;

use crate::harness::{READY, Running, cgroup_file, patiently, run};

const BUSY: &str = r#"
import time
begun, used = time.perf_counter(), time.process_time()
while time.perf_counter() < begun + SECONDS:
    pass
metrics = {"share": (time.process_time() - used) / SECONDS}
"#;

#[test]
fn cpus_hold_a_busy_script_to_its_share() {
    let source = BUSY.replace("SECONDS", &patiently(Duration::from_millis(1500)).as_secs_f64().to_string());
    let share = |cpus: &str| run(&["--cpus", cpus], &source).expect("ok").json["metrics"]["share"].as_f64().unwrap();
    let low = share("0.1");
    // One period of the scheduler is 100 ms, so that the last may be in full view.
    assert!(low < 0.2, "{low}");
    // Two CPUs are more than one thread can use; others may be using them as well.
    let high = share("2");
    assert!(high > low * 1.5, "{high} after {low}");
}

#[test]
fn cpus_throttle_only_what_goes_over() {
    let throttled = |cpus: &str, source: &str| {
        let mut running = Running::start(&["--cpus", cpus], source);
        assert_eq!(running.line(), "looked\n");
        let stat = cgroup_file(&running.cgroups(), &["cpu.stat"]);
        running.child.kill().unwrap();
        running.finish();
        let line = stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).unwrap();
        line.parse::<u64>().unwrap()
    };
    let source = READY.to_owned()
        + r#"
end = time.perf_counter() + 0.6
while time.perf_counter() < end:
    PAUSE
print("looked")
time.sleep(60)
"#;
    assert!(throttled("0.1", &source.replace("PAUSE", "pass")) > 0);
    assert_eq!(throttled("2", &source.replace("PAUSE", "pass")), 0, "one thread cannot use two CPUs");
}

#[test]
fn cpus_are_as_many_as_the_script_may_use() {
    if !crate::harness::require(std::thread::available_parallelism().unwrap().get() >= 2, "second CPU") {
        return;
    }
    let source =
        "import os\nmetrics = {'cpus': len(os.sched_getaffinity(0)), 'threads': os.environ['OMP_NUM_THREADS']}";
    for (cpus, seen) in [("0.5", 1), ("1", 1), ("2", 2)] {
        let ran = run(&["--cpus", cpus], source).expect("ok");
        assert_eq!(ran.json["metrics"]["cpus"], seen, "--cpus {cpus}");
        assert_eq!(ran.json["metrics"]["threads"], seen.to_string(), "--cpus {cpus}");
    }
}
