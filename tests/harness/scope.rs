//! A cgroup that a test makes. Of version 2 as systemd makes a scope: under the nearest one above this process whose
//! children have the controllers.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Removed when dropped, with all that is in it.
pub struct Scope(PathBuf);

impl Scope {
    /// `None` where this machine has no version 2 with the controllers, or this process may not make cgroups in it.
    pub fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let top = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let own = Path::new(top).join(own);
        let has_all = |folder: &&Path| {
            let enabled = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
            ["memory", "pids", "cpu"].iter().all(|name| enabled.split_whitespace().any(|have| have == *name))
        };
        let parent = own.ancestors().take_while(|folder| folder.starts_with(top)).find(has_all)?;
        Self::under(parent).ok()
    }

    /// Under a cgroup that the test chooses.
    pub fn under(parent: &Path) -> io::Result<Self> {
        let folder = parent.join(name("test") + ".scope");
        fs::create_dir(&folder).map(|()| Self(folder))
    }

    /// Hands it over to a user, as `Delegate=yes` does.
    #[must_use]
    pub fn delegated_to(self, user: u32) -> Self {
        chown(&self.0, Some(user), Some(user)).unwrap();
        let files = fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap();
        for file in files.lines().map(|name| self.0.join(name)).filter(|file| file.exists()) {
            chown(file, Some(user), Some(user)).unwrap();
        }
        self
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes one of its files.
    #[track_caller]
    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap_or_else(|error| panic!("{}/{file}: {error}", self.0.display()));
    }

    /// The cgroups in it.
    pub fn children(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).unwrap().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        fs::write(self.0.join("cgroup.kill"), "1").ok();
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = remove(&self.0) {
            // A test that fails says why by itself.
            assert!(std::thread::panicking() || Instant::now() < deadline, "{}: {error}", self.0.display());
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove(&entry.path())?;
    }
    fs::remove_dir(folder)
}

fn name(kind: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{kind}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// What root has delegated to a user: a scope of version 2, or a child of this process's cgroup in each hierarchy of version
/// 1. Removed when dropped.
pub enum Delegation {
    V1(Vec<PathBuf>),
    V2(Scope),
}

impl Delegation {
    /// `None` where this process can make no cgroup.
    pub fn to(user: u32) -> Option<Self> {
        if let Some(scope) = Scope::new() {
            return Some(Self::V2(scope.delegated_to(user)));
        }
        let name = name("delegated");
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
    pub fn folders(&self) -> Vec<PathBuf> {
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
            let removed = fs::remove_dir(&folder);
            // A test that fails says why by itself.
            assert!(removed.is_ok() || std::thread::panicking(), "{}: {removed:?}", folder.display());
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
