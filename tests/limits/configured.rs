//! Limits as they are documented, as they are shown, and as the kernel holds them while a guest runs.

use std::time::Duration;

use nsbox::config::DEFAULT_YAML;
use serde_json::Value;

use crate::harness::{READY, Running, cgroup_file, nsbox, patiently, run_with};

fn shown(flags: &[&str]) -> Value {
    let output = nsbox(["config", "show", "--json"]).args(flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn defaults_are_documented_shown_and_held_by_the_kernel() {
    let shown = shown(&[]).to_string();
    for (key, value) in [("memory", "2g"), ("cpus", "0.5"), ("pids", "64"), ("disk", "64m"), ("timeout", "300s")] {
        assert!(DEFAULT_YAML.contains(&format!("\n  {key}: {value}\n")), "{key}: {value} is documented");
        assert!(shown.contains(value), "{key}: {value} is in {shown}");
    }
    held(&[], 2 << 30, 64, 0.5);
}

#[test]
fn flags_are_held_by_the_kernel() {
    held(&["--memory", "96m", "--pids", "10", "--cpus", "1.5"], 96 << 20, 10, 1.5);
}

/// Looks at the run's cgroup from outside; its init is one process more.
fn held(flags: &[&str], memory: u64, pids: u64, cpus: f64) {
    let mut running = Running::start(flags, &format!("{READY}time.sleep(60)"));
    let cgroups = running.cgroups();
    let number = |names: &[&str]| cgroup_file(&cgroups, names).parse::<u64>().unwrap();
    assert_eq!(number(&["memory.max", "memory.limit_in_bytes"]), memory);
    assert_eq!(number(&["pids.max"]), pids + 1);
    assert_eq!(number(&["pids.current"]), 2);
    // Version 2 has `QUOTA PERIOD` in one file.
    let quota = cgroup_file(&cgroups, &["cpu.max", "cpu.cfs_quota_us"]);
    let quota: f64 = quota.split(' ').next().unwrap().parse().unwrap();
    assert!((quota / 100_000.0 - cpus).abs() < 1e-9, "{quota}");
    let guest = running.guest().unwrap().to_string();
    for folder in &cgroups {
        let processes = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        assert!(processes.lines().any(|pid| pid == guest), "{} has {processes:?}", folder.display());
    }
    running.child.kill().unwrap();
    running.finish();
}

#[test]
fn limits_of_each_process_are_those_shown() {
    let source = r#"
import resource
metrics = {name: list(resource.getrlimit(getattr(resource, "RLIMIT_" + name))) for name in ["NOFILE", "FSIZE", "CORE"]}
"#;
    let ran = run_with(&[("NSBOX_LIMITS_OPEN_FILES", "77")], &["--disk", "3m"], source).expect("ok");
    let expected = serde_json::json!({"NOFILE": [77, 77], "FSIZE": [3 << 20, 3 << 20], "CORE": [0, 0]});
    assert_eq!(ran.json["metrics"], expected);
    let layer = ran.outcome.enforced.rlimits.applied.unwrap();
    assert!(layer.contains("NOFILE=77") && layer.contains("FSIZE=3145728"), "{layer}");
}

#[test]
fn tight_limits_do_not_stand_in_the_way_of_a_new_store() {
    // Whatever nsbox itself does the first time is not the script's to pay for.
    let (timeout, cpu_time) = (patiently(Duration::from_millis(20)), patiently(Duration::from_millis(300)));
    let [timeout, cpu_time] = [timeout, cpu_time].map(|time| format!("{}ms", time.as_millis()));
    let tight = [
        ("NSBOX_LIMITS_RESULT", "1k"),
        ("NSBOX_LIMITS_INODES", "16"),
        ("NSBOX_LIMITS_TIMEOUT", timeout.as_str()),
        ("NSBOX_LIMITS_DISK", "64k"),
        ("NSBOX_LIMITS_OUTPUT", "1b"),
        ("NSBOX_LIMITS_CPU_TIME", cpu_time.as_str()),
    ];
    for limit in tight {
        let store = tempfile::tempdir().unwrap();
        let ran = run_with(&[("NSBOX_STORE", store.path().to_str().unwrap()), limit], &[], "pass");
        assert_eq!(ran.verdict(), "ok", "{limit:?}: {}", ran.outcome.message);
    }
}
