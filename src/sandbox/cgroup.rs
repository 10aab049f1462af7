//! The cgroup of one run: limits that hold for all its processes together, and the counters that say how it ended.
//!
//! Version 2 where it has the controllers, else version 1 (also beside an empty version 2, the hybrid layout). A cgroup
//! is a child of the supervisor's own; its name says whose it is, so that the next run removes what a dead supervisor
//! left. See cgroups(7), the kernel's cgroup-v2.rst and cgroup-v1/memory.rst.

mod delegation;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cgroups_rs::fs::cgroup::get_cgroups_relative_paths;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::hierarchies::mountinfo_self;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use nix::sys::eventfd::{EfdFlags, EventFd};

pub(crate) use super::meter::Counters;
use super::meter::Meter;
use crate::config::Limits;

/// What a name of ours begins with.
const PREFIX: &str = "nsbox-";
/// Scheduling period of the CPU limit; the kernel's default.
pub(crate) const CPU_PERIOD_US: f64 = 100_000.0;
/// How long an empty cgroup may refuse to go: its last process may still be on its way out.
const REMOVE_PATIENCE: Duration = Duration::from_millis(500);
/// The controllers without which a run is degraded.
const REQUIRED: [&str; 3] = ["memory", "pids", "cpu"];

/// Why there is no cgroup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No hierarchy with all the controllers.
    #[error(
        "no cgroup hierarchy offers {missing} to this process; a user's processes get one from: systemd-run --user --scope -p Delegate=yes nsbox run ..., or set allow_degraded: true"
    )]
    NoController {
        /// The controllers that are missing.
        missing: String,
    },
    /// A cgroup cannot be made or written.
    #[error(
        "failed to {step} {}; give this user a delegated cgroup (systemd-run --user --scope -p Delegate=yes nsbox run ...), or set allow_degraded: true",
        path.display()
    )]
    Refused {
        /// What was tried.
        step: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The cgroup has other processes, so its children can have no controllers (version 2).
    #[error(
        "the cgroup {} has processes of its own, so runs can have no limits under it: start nsbox in a cgroup of its own (systemd-run --user --scope -p Delegate=yes nsbox run ...), move this process into a leaf of it, or set allow_degraded: true",
        path.display()
    )]
    Occupied {
        /// The cgroup.
        path: PathBuf,
    },
    /// The crate that writes the limits failed.
    #[error("failed to set the {limit} limit in {}", path.display())]
    Limit {
        /// Which limit.
        limit: &'static str,
        /// In which cgroup.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: cgroups_rs::fs::error::Error,
    },
}

/// How init gets into a cgroup.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// The folder that it may be cloned into (version 2).
    pub folder: Option<OwnedFd>,
    /// The files into which it writes `0` where it could not be.
    pub files: Vec<OwnedFd>,
}

/// Where runs' cgroups are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hierarchy {
    /// One folder for all controllers.
    V2 {
        /// The folder under which a run's cgroup is made.
        parent: PathBuf,
    },
    /// A folder for each controller.
    V1 {
        /// Of `memory`.
        memory: PathBuf,
        /// Of `pids`.
        pids: PathBuf,
        /// Of `cpu`.
        cpu: PathBuf,
        /// Of `cpuacct`, often the same mount as `cpu`.
        cpuacct: Option<PathBuf>,
    },
}

/// The cgroup of one run; removed when dropped.
#[derive(Debug)]
pub(crate) struct Cgroup {
    /// `memory` first: it is made first and removed last, so that a sweep that finds none of it has finished.
    folders: Vec<PathBuf>,
    version: u8,
    cpuacct: Option<PathBuf>,
}

impl fmt::Display for Hierarchy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folders: Vec<_> = self.parents().into_iter().map(|folder| folder.display().to_string()).collect();
        write!(f, "version {} in {}", self.version(), folders.join(", "))
    }
}

impl Hierarchy {
    /// Finds where `owner`, this process, may make cgroups, by the mounts and its own membership. `may_move`: it may move
    /// itself into a leaf of its cgroup, where version 2 asks for that.
    pub(crate) fn discover(owner: &Owner, may_move: bool) -> Result<Self, Error> {
        let (mounts, own) = (mountinfo_self(), get_cgroups_relative_paths().unwrap_or_default());
        let place = |root: &Path, point: &Path, path: &str| {
            // In a container the mount shows a subtree; the membership is still told from the hierarchy's root.
            let inside = Path::new(path).strip_prefix(root).unwrap_or(Path::new(path));
            point.join(inside.strip_prefix("/").unwrap_or(inside))
        };
        if let Some((root, point)) = delegation::mount() {
            let parent = place(&root, &point, own.get("").map_or("/", String::as_str));
            let offered = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
            if REQUIRED.iter().all(|name| offered.split_whitespace().any(|offer| offer == *name)) {
                let parent = delegation::parent_of_runs(parent, &point, owner, may_move)?;
                return Ok(Self::V2 { parent });
            }
        }
        let v1 = |name: &str| {
            let mount = mounts
                .iter()
                .find(|mount| mount.fs_type.0 == "cgroup" && mount.super_opts.iter().any(|option| option == name))?;
            Some(place(&mount.mount_root, &mount.mount_point, own.get(name)?))
        };
        match (v1("memory"), v1("pids"), v1("cpu")) {
            (Some(memory), Some(pids), Some(cpu)) => {
                let cpuacct = v1("cpuacct").filter(|folder| *folder != cpu);
                Ok(Self::V1 { memory, pids, cpu, cpuacct })
            }
            _ => {
                let missing: Vec<_> = REQUIRED.into_iter().filter(|name| v1(name).is_none()).collect();
                Err(Error::NoController { missing: missing.join(", ") })
            }
        }
    }

    /// Every folder in which a run's cgroup is made.
    pub(crate) fn parents(&self) -> Vec<&Path> {
        match self {
            Self::V2 { parent } => vec![parent],
            Self::V1 { memory, pids, cpu, cpuacct } => [Some(memory), Some(pids), Some(cpu), cpuacct.as_ref()]
                .into_iter()
                .flatten()
                .map(PathBuf::as_path)
                .collect(),
        }
    }

    /// Makes a cgroup with every limit set, for `owner` (see [`Owner`]).
    pub(crate) fn create(&self, owner: &Owner, limits: &Limits) -> Result<Cgroup, Error> {
        let name = owner.next_name();
        let mut cgroup = Cgroup { folders: Vec::new(), version: self.version(), cpuacct: None };
        for parent in self.parents() {
            let folder = parent.join(&name);
            fs::create_dir(&folder).map_err(|source| Error::Refused {
                step: "make the cgroup",
                path: folder.clone(),
                source,
            })?;
            cgroup.folders.push(folder);
        }
        if matches!(self, Self::V1 { cpuacct: Some(_), .. }) {
            cgroup.cpuacct = cgroup.folders.last().cloned();
        }
        cgroup.limit(limits)?;
        Ok(cgroup)
    }

    /// 1 or 2.
    pub(crate) fn version(&self) -> u8 {
        if matches!(self, Self::V2 { .. }) { 2 } else { 1 }
    }

    /// Makes and removes an empty cgroup where each required controller is: which of them is refused, and where.
    pub(crate) fn try_each(&self, owner: &Owner) -> Vec<(&'static str, PathBuf, io::Result<()>)> {
        let folders = match self {
            Self::V2 { parent } => [parent; 3],
            Self::V1 { memory, pids, cpu, .. } => [memory, pids, cpu],
        };
        let attempt = |(name, parent): (&'static str, &PathBuf)| {
            let folder = parent.join(owner.next_name());
            (name, parent.clone(), fs::create_dir(&folder).and_then(|()| fs::remove_dir(&folder)))
        };
        REQUIRED.into_iter().zip(folders).map(attempt).collect()
    }

    /// Removes the cgroups of supervisors that are dead.
    pub(crate) fn sweep(&self, owner: &Owner) {
        let parents = self.parents();
        let Some(entries) = parents.first().and_then(|memory| fs::read_dir(memory).ok()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| owner.is_stale(name)) {
                let folders = parents.iter().map(|parent| parent.join(&name)).collect();
                drop(Cgroup { folders, version: self.version(), cpuacct: None });
            }
        }
    }
}

impl Cgroup {
    fn limit(&self, limits: &Limits) -> Result<(), Error> {
        let v2 = self.version == 2;
        let folder = |index: usize| self.folders[if v2 { 0 } else { index }].clone();
        let failed = |limit, index| move |source| Error::Limit { limit, path: folder(index), source };
        let bytes = i64::try_from(limits.memory).unwrap_or(i64::MAX);
        let memory = MemController::new(folder(0), folder(0), v2);
        memory.set_limit(bytes).map_err(failed("memory", 0))?;
        if v2 {
            memory.set_memswap_limit(0).map_err(failed("swap", 0))?;
            self.write(0, "memory.oom.group", "1")?;
        } else if self.folders[0].join("memory.memsw.limit_in_bytes").exists() {
            memory.set_memswap_limit(bytes).map_err(failed("swap", 0))?;
        } else {
            memory.set_swappiness(0).map_err(failed("swap", 0))?;
        }
        let pids = PidController::new(folder(1), folder(1), v2);
        // Init counts too.
        let max = cgroups_rs::fs::MaxValue::Value(i64::from(limits.pids) + 1);
        pids.set_pid_max(max).map_err(failed("pids", 1))?;
        let cpu = CpuController::new(folder(2), folder(2), v2);
        #[expect(clippy::cast_possible_truncation, reason = "the config bounds cpus")]
        let quota = (limits.cpus * CPU_PERIOD_US) as i64;
        cpu.set_cfs_quota_and_period(Some(quota), None).map_err(failed("cpu", 2))
    }

    fn write(&self, index: usize, file: &str, text: &str) -> Result<(), Error> {
        let path = self.folders[index].join(file);
        fs::write(&path, text).map_err(|source| Error::Refused { step: "write", path, source })
    }

    /// 1 or 2.
    pub(crate) fn version(&self) -> u8 {
        self.version
    }

    /// The memory, process and CPU limits, each as the file that holds it and what that file says now.
    pub(crate) fn limit_files(&self) -> [String; 3] {
        let files = match self.version {
            2 => [(0, "memory.max"), (0, "pids.max"), (0, "cpu.max")],
            _ => [(0, "memory.limit_in_bytes"), (1, "pids.max"), (2, "cpu.cfs_quota_us")],
        };
        files.map(|(index, file)| format!("{file}={}", read(&self.folders[index], file).unwrap_or_default().trim()))
    }

    /// The ways in.
    ///
    /// On version 1 `tasks`, never `cgroup.procs`: that waits for a grace period of 11 ms where `0` into `tasks` takes 15 us.
    pub(crate) fn entry(&self) -> io::Result<Entry> {
        let v1 = self.version == 1;
        let name = if v1 { "tasks" } else { "cgroup.procs" };
        let open = |folder: &PathBuf| Ok(OpenOptions::new().write(true).open(folder.join(name))?.into());
        Ok(Entry {
            folder: if v1 { None } else { Some(File::open(&self.folders[0])?.into()) },
            files: self.folders.iter().map(open).collect::<io::Result<_>>()?,
        })
    }

    /// Readable once the kernel runs out of memory for this cgroup. Version 2 kills the whole cgroup by itself.
    pub(crate) fn oom_event(&self) -> io::Result<Option<OwnedFd>> {
        if self.version == 2 {
            return Ok(None);
        }
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let control = File::open(self.folders[0].join("memory.oom_control"))?;
        let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
        OpenOptions::new()
            .write(true)
            .open(self.folders[0].join("cgroup.event_control"))?
            .write_all(line.as_bytes())?;
        Ok(Some(event.into()))
    }

    /// CPU time used so far by all its processes.
    pub(crate) fn cpu_time(&self) -> Duration {
        let counters = self.counters();
        counters.cpu_user + counters.cpu_system
    }

    /// What the kernel counted.
    pub(crate) fn counters(&self) -> Counters {
        self.meter().read()
    }

    /// The files of the counters, kept open.
    pub(crate) fn meter(&self) -> Meter {
        if self.version == 2 {
            return Meter::v2(&self.folders[0]);
        }
        let cpuacct = self.cpuacct.as_ref().unwrap_or(&self.folders[2]);
        Meter::v1(&self.folders[0], &self.folders[1], cpuacct)
    }

    /// Ends every process in it, those that fork at this moment too (version 2, Linux 5.14).
    pub(crate) fn kill(&self) {
        if let (2, Some(folder)) = (self.version, self.folders.first()) {
            // Where the file is missing, the end of the pid namespace's init does the same.
            fs::write(folder.join("cgroup.kill"), "1").ok();
        }
    }

    /// Removes the cgroup. The kernel may be a few milliseconds behind the end of the last process.
    pub(crate) fn remove(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + REMOVE_PATIENCE;
        while let Some(folder) = self.folders.last() {
            match fs::remove_dir(folder) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Err(source) => {
                    return Err(Error::Refused { step: "remove the cgroup", path: folder.clone(), source });
                }
            }
            self.folders.pop();
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A run removes its cgroup and reports a failure; this is for the paths that have no outcome to report it in.
        self.kill();
        self.remove().ok();
    }
}

fn read(folder: &Path, file: &str) -> Option<String> {
    fs::read_to_string(folder.join(file)).ok()
}

/// Whose a cgroup is: a pid namespace, a pid in it, and when that process started, for pids are used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pid_namespace: u64,
    pid: u32,
    started: u64,
}

impl Owner {
    /// This process.
    pub(crate) fn current() -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let pid = std::process::id();
        let started = started(pid).ok_or_else(|| io::Error::other("failed to read /proc/self/stat"))?;
        Ok(Self { pid_namespace: fs::metadata("/proc/self/ns/pid")?.ino(), pid, started })
    }

    /// A name that no other run has, now or later.
    fn next_name(&self) -> String {
        // Unique among the runs of one process, with no state: two threads never stand at one address at one time, and
        // the clock tells one thread's runs apart.
        let now =
            nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |t| Duration::from(t).as_nanos());
        let thread = nix::unistd::gettid();
        format!("{PREFIX}{}-{}-{}-{thread}-{now}", self.pid_namespace, self.pid, self.started)
    }

    /// Whether `name` is that of a cgroup whose owner, in this pid namespace, is dead.
    fn is_stale(&self, name: &str) -> bool {
        let mut fields = name.strip_prefix(PREFIX).unwrap_or_default().split('-').map(str::parse::<u64>);
        let (Some(Ok(namespace)), Some(Ok(pid)), Some(Ok(start))) = (fields.next(), fields.next(), fields.next())
        else {
            return false;
        };
        let Ok(pid) = u32::try_from(pid) else { return false };
        namespace == self.pid_namespace && started(pid) != Some(start)
    }
}

/// When `pid` started, in clock ticks since boot: the 22nd field of proc_pid_stat(5).
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_cgroup_of_either_version_can_be_dropped() {
        for version in [1, 2] {
            let top = tempfile::tempdir().unwrap();
            let folder = top.path().join("nsbox-test");
            fs::create_dir(&folder).unwrap();
            let mut cgroup = Cgroup { folders: vec![folder.clone()], version, cpuacct: None };
            cgroup.remove().unwrap();
            assert!(!folder.exists());
            drop(cgroup);
        }
    }

    #[test]
    fn cgroup_is_stale_once_its_owner_is_gone() {
        let owner = Owner::current().unwrap();
        assert!(!owner.is_stale(&owner.next_name()));
        let earlier = Owner { started: owner.started - 1, ..owner.clone() };
        assert!(owner.is_stale(&earlier.next_name()), "the pid is used again");
        let elsewhere = Owner { pid_namespace: owner.pid_namespace + 1, ..earlier };
        assert!(!owner.is_stale(&elsewhere.next_name()), "another pid namespace's processes cannot be seen");
        assert!(!owner.is_stale("nsbox-"), "not a name of a run");
        assert!(!owner.is_stale("somebody-1-2-3"), "not one of ours");
    }
}
