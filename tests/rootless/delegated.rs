//! With a cgroup that root has delegated: every limit holds, and nothing is degraded.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use crate::harness::{Ran, is_root, require, skipped};
use crate::user::User;

/// A child of this process's cgroup in each hierarchy of version 1, owned by a user; removed when dropped.
struct Delegation(Vec<PathBuf>);

impl Delegation {
    fn to(user: u32) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("delegated-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut folders = Vec::new();
        for controller in ["memory", "pids", "cpu", "cpuacct"] {
            let folder = own_cgroup(controller)?.join(&name);
            // cpu and cpuacct are often one hierarchy.
            if folders.contains(&folder) {
                continue;
            }
            fs::create_dir(&folder).ok()?;
            for file in ["", "tasks", "cgroup.procs"] {
                chown(folder.join(file), Some(user), Some(user)).unwrap();
            }
            folders.push(folder);
        }
        Some(Self(folders))
    }
}

impl Drop for Delegation {
    fn drop(&mut self) {
        for folder in &self.0 {
            fs::remove_dir(folder).unwrap();
        }
    }
}

/// Where this process is in the hierarchy of a controller of version 1.
fn own_cgroup(controller: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| {
        let options = line.rsplit(' ').next().unwrap_or_default();
        line.contains(" - cgroup ") && options.split(',').any(|option| option == controller)
    })?;
    let (root, point) = (mount.split(' ').nth(3)?, mount.split(' ').nth(4)?);
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        fields.next()?.split(',').any(|name| name == controller).then(|| fields.next()).flatten()
    })?;
    let inside = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(path);
    Some(PathBuf::from(point).join(inside.trim_start_matches('/')))
}

/// The user and what was delegated to it.
fn delegated() -> Option<(User, Delegation)> {
    if !is_root() {
        // The run of this suite as root is the one that must show it.
        skipped("only root can delegate a cgroup");
        return None;
    }
    let user = User::find()?;
    let delegation = Delegation::to(user.id);
    require(delegation.is_some(), "cgroup hierarchy of version 1 to delegate").then(|| (user, delegation.unwrap()))
}

#[test]
fn delegated_cgroup_makes_a_run_whole() {
    let Some((user, delegation)) = delegated() else { return };
    let ran = user.run(&delegation.0, &["--memory", "100m", "--pids", "9", "--cpus", "1"], "print('ran')").expect("ok");
    assert!(!ran.outcome.degraded, "{:#}", ran.json["enforced"]);
    let cgroup = &ran.json["enforced"]["cgroup"];
    assert_eq!(
        (&cgroup["version"], &cgroup["memory"]["applied"]),
        (&json!(1), &json!("memory.limit_in_bytes=104857600"))
    );
    assert_eq!(
        (&cgroup["pids"]["applied"], &cgroup["cpu"]["applied"]),
        (&json!("pids.max=10"), &json!("cpu.cfs_quota_us=100000"))
    );
    for folder in &delegation.0 {
        let left: Vec<_> = fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.path().is_dir()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn delegated_limits_hold() {
    let Some((user, delegation)) = delegated() else { return };
    let run = |flags: &[&str], source: &str| -> Ran { user.run(&delegation.0, flags, source) };
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
end = time.perf_counter() + 1
while time.perf_counter() < end:
    pass
metrics = {"share": time.process_time()}
"#;
    let share = run(&["--cpus", "0.1"], source).expect("ok").json["metrics"]["share"].as_f64().unwrap();
    assert!(share < 0.3, "{share}");
}
