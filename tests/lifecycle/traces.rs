//! What a process that makes runs can leave behind: processes, cgroups, mounts, descriptors, folders, memory.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::{cgroups_of, children, store};

/// All of it, of one supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    children: Vec<u32>,
    cgroups: Vec<PathBuf>,
    mounts: BTreeSet<String>,
    descriptors: Vec<String>,
    threads: usize,
    store: BTreeSet<PathBuf>,
}

impl Traces {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        // The one that this list is read through is none of them.
        let mut descriptors: Vec<_> = targets
            .map(|target| target.to_string_lossy().into_owned())
            .filter(|target| !target.ends_with("/fd"))
            .collect();
        descriptors.sort();
        let this = std::process::id();
        Self {
            children: children(this),
            cgroups: cgroups_of(this),
            mounts: mounts.lines().map(str::to_owned).collect(),
            descriptors,
            threads: fs::read_dir("/proc/self/task").unwrap().count(),
            store: tree(store()),
        }
    }
}

impl Traces {
    /// Fails unless this process has these and no others. A thread is joined a little before the kernel forgets it; and what
    /// another process of the suite was putting into the store, under a name for the time being, may be gone.
    #[track_caller]
    pub fn assert_now(&self) {
        let expected = |now: &Self| Self { store: &self.store & &now.store, ..self.clone() };
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut now = Self::of_this_process();
        while now != expected(&now) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            now = Self::of_this_process();
        }
        assert_eq!(now, expected(&now));
    }
}

/// Everything below a folder.
pub fn tree(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut pending = vec![folder.to_path_buf()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// Memory of this process that is its own and in use, in bytes. proc_pid_statm(5).
pub fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}
