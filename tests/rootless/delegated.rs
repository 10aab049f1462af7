//! With a cgroup that root has delegated: every limit holds, and nothing is degraded.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::harness::{Ran, is_root, patiently, require, skipped};
use crate::scope::Delegation;
use crate::user::User;

/// The user, and what was delegated to it for one run: version 2 lets no second process into a scope whose first has enabled
/// the controllers for its children.
fn delegated() -> Option<(User, Delegation)> {
    if !is_root() {
        // The run of this suite as root is the one that must show it.
        skipped("only root can delegate a cgroup");
        return None;
    }
    let user = User::find()?;
    let delegation = Delegation::to(user.id);
    require(delegation.is_some(), "cgroup hierarchy to delegate").then(|| (user, delegation.unwrap()))
}

#[test]
fn delegated_cgroup_makes_a_run_whole() {
    let Some((user, delegation)) = delegated() else { return };
    let folders = delegation.folders();
    let ran = user.run(&folders, &["--memory", "100m", "--pids", "9", "--cpus", "1"], "print('ran')").expect("ok");
    assert!(!ran.outcome.degraded, "{:#}", ran.json["enforced"]);
    let cgroup = &ran.json["enforced"]["cgroup"];
    let (version, memory, cpu) = match &delegation {
        Delegation::V1(_) => (1, "memory.limit_in_bytes=104857600", "cpu.cfs_quota_us=100000"),
        Delegation::V2(_) => {
            (2, "memory.max=104857600, memory.swap.max=0, memory.oom.group=1", "cpu.max=100000 100000")
        }
    };
    assert_eq!((&cgroup["version"], &cgroup["memory"]["applied"]), (&json!(version), &json!(memory)));
    assert_eq!((&cgroup["pids"]["applied"], &cgroup["cpu"]["applied"]), (&json!("pids.max=10"), &json!(cpu)));
    let mut left: Vec<_> = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap().flatten()).collect();
    left.retain(|entry| entry.path().is_dir());
    // Of version 2 the leaf that nsbox moved into, which goes with the scope.
    let leaves = usize::from(version == 2);
    assert_eq!(left.len(), leaves, "{left:?}");
}

#[test]
fn delegated_limits_hold() {
    let Some((user, _)) = delegated() else { return };
    let run = |flags: &[&str], source: &str| -> Ran {
        let delegation = Delegation::to(user.id).unwrap();
        user.run(&delegation.folders(), flags, source)
    };
    assert_eq!(run(&["--memory", "64m"], "block = bytearray(100 << 20)").expect("oom").status, 137);
    run(&["--memory", "64m"], "block = bytearray(30 << 20)").expect("ok");
    run(&["--cpu-time", "300ms", "--cpus", "2"], "while True: pass").expect("timeout").says("--cpu-time");
    run(&["--timeout", "300ms"], "import time\ntime.sleep(20)").expect("timeout").says("--timeout");
    let source = r#"
import os, signal
count = 1
try:
    while count < 30:
        if os.fork() == 0:
            signal.pause()
        count += 1
except OSError:
    pass
metrics = {"processes": count}
"#;
    assert_eq!(run(&["--pids", "8"], source).expect("ok").json["metrics"], json!({"processes": 8}));
    let source = r#"
import time
begun, used = time.perf_counter(), time.process_time()
while time.perf_counter() < begun + SECONDS:
    pass
metrics = {"share": (time.process_time() - used) / SECONDS}
"#;
    let source = source.replace("SECONDS", &patiently(Duration::from_secs(1)).as_secs().to_string());
    let share = run(&["--cpus", "0.1"], &source).expect("ok").json["metrics"]["share"].as_f64().unwrap();
    assert!(share < 0.3, "{share}");
}
