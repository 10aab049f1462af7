//! With a cgroup that root has delegated: every limit holds, and nothing is degraded.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use crate::harness::{Ran, is_root, require, skipped};
use crate::scope::Scope;
use crate::user::User;

/// What root has delegated to a user: a scope of version 2, or a child of this process's cgroup in each hierarchy of version
/// 1. Removed when dropped.
enum Delegation {
    V1(Vec<PathBuf>),
    V2(Scope),
}

impl Delegation {
    fn to(user: u32) -> Option<Self> {
        if let Some(scope) = Scope::new() {
            return Some(Self::V2(scope.delegated_to(user)));
        }
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
        Some(Self::V1(folders))
    }

    /// What the user's processes are put into.
    fn folders(&self) -> Vec<PathBuf> {
        match self {
            Self::V1(folders) => folders.clone(),
            Self::V2(scope) => vec![scope.path().to_path_buf()],
        }
    }
}

impl Drop for Delegation {
    fn drop(&mut self) {
        let Self::V1(folders) = self else { return };
        for folder in folders {
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
end = time.perf_counter() + 1
while time.perf_counter() < end:
    pass
metrics = {"share": time.process_time()}
"#;
    let share = run(&["--cpus", "0.1"], source).expect("ok").json["metrics"]["share"].as_f64().unwrap();
    assert!(share < 0.3, "{share}");
}
