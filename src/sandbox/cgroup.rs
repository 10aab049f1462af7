//! The cgroup of one run: limits that hold for all its processes together, and the counters that say how it ended.
//!
//! Version 2 where it has the controllers, else version 1 (also beside an empty version 2, the hybrid layout). A cgroup
//! is a child of the supervisor's own; its name says whose it is, so that the next run removes what a dead supervisor
//! left. See cgroups(7), the kernel's cgroup-v2.rst and cgroup-v1/memory.rst.

mod delegation;
mod owner;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cgroups_rs::fs::cgroup::get_cgroups_relative_paths;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::hierarchies::mountinfo_self;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::knob;
pub(crate) use super::meter::Counters;
use super::meter::{Meter, text};
use crate::config::Limits;
pub(crate) use owner::Owner;

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
    /// The cgroup file system takes no writes.
    #[error(
        "the cgroup file system at {} is mounted read-only: {}; or set allow_degraded: true",
        path.display(), knob::CGROUP_RW
    )]
    ReadOnly {
        /// Where this process is in it.
        path: PathBuf,
    },
    /// This process is in a cgroup namespace whose hierarchy is not mounted.
    #[error(
        "the cgroup file system at {} is that of another cgroup namespace, so this process's own cgroup is not known: {}; or set allow_degraded: true",
        mount.display(), knob::mount_cgroups(mount)
    )]
    OtherNamespace {
        /// Where it is mounted.
        mount: PathBuf,
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

impl Error {
    fn refused(step: &'static str, path: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path: path.parent().unwrap_or(&path).to_path_buf() },
            _ => Self::Refused { step, path, source },
        }
    }
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
    /// Files that have been read, each with the index of its folder and its name: those of a room are read for each run in it.
    read: Mutex<Vec<(usize, &'static str, File)>>,
}

impl fmt::Display for Hierarchy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folders: Vec<_> = self.parents().into_iter().map(|folder| folder.display().to_string()).collect();
        write!(f, "version {} in {}", self.version(), folders.join(", "))
    }
}

/// The folder of the cgroup `path` of proc_pid_cgroup(5), where `root` of its hierarchy is mounted at `point`. None where
/// the mount is of a cgroup namespace above this process's, which hides the way from its root to ours; cgroup_namespaces(7).
fn place(root: &Path, point: &Path, path: &str) -> Option<PathBuf> {
    if root.starts_with("/..") || path.starts_with("/..") {
        return None;
    }
    // In a container the mount may show a subtree; the membership is still told from the hierarchy's root.
    let inside = Path::new(path).strip_prefix(root).unwrap_or(Path::new(path));
    Some(point.join(inside.strip_prefix("/").unwrap_or(inside)))
}

impl Hierarchy {
    /// Finds where `owner`, this process, may make cgroups, by the mounts and its own membership. `may_move`: it may move
    /// itself into a leaf of its cgroup, where version 2 asks for that.
    pub(crate) fn discover(owner: &Owner, may_move: bool) -> Result<Self, Error> {
        let (mounts, own) = (mountinfo_self(), get_cgroups_relative_paths().unwrap_or_default());
        let mount = delegation::mount();
        let v2 = mount.as_ref().and_then(|(root, point)| place(root, point, own.get("")?));
        if let (Some((_, point)), Some(own)) = (&mount, &v2)
            && let Some(parent) = delegation::parent_of_runs(own, point, owner, may_move)?
        {
            return Ok(Self::V2 { parent });
        }
        let v1 = |name: &str| {
            let mount = mounts
                .iter()
                .find(|mount| mount.fs_type.0 == "cgroup" && mount.super_opts.iter().any(|option| option == name))?;
            place(&mount.mount_root, &mount.mount_point, own.get(name)?)
        };
        match (v1("memory"), v1("pids"), v1("cpu")) {
            (Some(memory), Some(pids), Some(cpu)) => {
                let cpuacct = v1("cpuacct").filter(|folder| *folder != cpu);
                Ok(Self::V1 { memory, pids, cpu, cpuacct })
            }
            _ => match (mount, v2) {
                (Some((_, mount)), None) => Err(Error::OtherNamespace { mount }),
                (_, v2) => {
                    let offered = v2.map(|own| delegation::offered(&own)).unwrap_or_default();
                    let is_missing = |name: &&str| !offered.iter().any(|offer| offer == name) && v1(name).is_none();
                    let missing: Vec<_> = REQUIRED.into_iter().filter(is_missing).collect();
                    Err(Error::NoController { missing: missing.join(", ") })
                }
            },
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
        let mut cgroup = Cgroup::of(Vec::new(), self.version());
        for parent in self.parents() {
            let folder = parent.join(&name);
            fs::create_dir(&folder).map_err(|source| Error::refused("make the cgroup", folder.clone(), source))?;
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
                drop(Cgroup::of(folders, self.version()));
            }
        }
    }
}

impl Cgroup {
    fn of(folders: Vec<PathBuf>, version: u8) -> Self {
        Self { folders, version, cpuacct: None, read: Mutex::default() }
    }

    fn limit(&self, limits: &Limits) -> Result<(), Error> {
        let v2 = self.version == 2;
        let folder = |index: usize| self.folders[if v2 { 0 } else { index }].clone();
        let failed = |limit, index| move |source| Error::Limit { limit, path: folder(index), source };
        let bytes = i64::try_from(limits.memory).unwrap_or(i64::MAX);
        let memory = MemController::new(folder(0), folder(0), v2);
        memory.set_limit(bytes).map_err(failed("memory", 0))?;
        if v2 {
            // The file is missing where swap is not accounted for, which is no matter where there is none.
            if self.folders[0].join("memory.swap.max").exists() || has_swap() {
                memory.set_memswap_limit(0).map_err(failed("swap", 0))?;
            }
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
        fs::write(&path, text).map_err(|source| Error::refused("write", path, source))
    }

    /// 1 or 2.
    pub(crate) fn version(&self) -> u8 {
        self.version
    }

    /// The memory, process and CPU limits, each as the files that hold it and what they say now.
    pub(crate) fn limit_files(&self) -> [String; 3] {
        let files: [(usize, &[&'static str]); 3] = match self.version {
            2 => [(0, &["memory.max", "memory.swap.max", "memory.oom.group"]), (0, &["pids.max"]), (0, &["cpu.max"])],
            _ => [(0, &["memory.limit_in_bytes"]), (1, &["pids.max"]), (2, &["cpu.cfs_quota_us"])],
        };
        files.map(|(index, files)| {
            let said = |file: &&'static str| Some(format!("{file}={}", self.read(index, file)?.trim()));
            files.iter().filter_map(said).collect::<Vec<_>>().join(", ")
        })
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

    /// Bytes that are charged to it.
    pub(crate) fn memory_in_use(&self) -> Option<u64> {
        let name = if self.version == 2 { "memory.current" } else { "memory.usage_in_bytes" };
        self.read(0, name)?.trim().parse().ok()
    }

    /// Whether its CPU limit ever held it back.
    pub(crate) fn was_throttled(&self) -> bool {
        let stat = self.read(if self.version == 2 { 0 } else { 2 }, "cpu.stat");
        !stat.is_some_and(|stat| stat.lines().any(|line| line == "nr_throttled 0"))
    }

    /// What the file `name` in the folder at `index` says.
    fn read(&self, index: usize, name: &'static str) -> Option<String> {
        let mut files = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match files.iter().position(|file| (file.0, file.1) == (index, name)) {
            Some(at) => &files[at].2,
            None => {
                files.push((index, name, File::open(self.folders[index].join(name)).ok()?));
                &files.last()?.2
            }
        };
        text(file)
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

    /// Removes the cgroup, once the run is over; what is in it still is none of the run's, and is ended (version 2). The
    /// kernel may be a few milliseconds behind the end of the last process.
    pub(crate) fn remove(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + REMOVE_PATIENCE;
        while let Some(folder) = self.folders.last() {
            match fs::remove_dir(folder) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    self.kill();
                    self.wait_until_empty(deadline);
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

impl Cgroup {
    /// Sleeps until the last process is gone, as `cgroup.events` announces it (version 2), or else for a moment.
    fn wait_until_empty(&self, deadline: Instant) {
        let moment = Duration::from_millis(1);
        let Some(Ok(mut events)) = self.folders.first().map(|folder| File::open(folder.join("cgroup.events"))) else {
            return std::thread::sleep(moment);
        };
        let mut text = String::new();
        if events.read_to_string(&mut text).is_err() || !text.contains("populated 1") {
            return std::thread::sleep(moment);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let mut set = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        // Whatever it says, the cgroup is tried again.
        poll(&mut set, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)).ok();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A run removes its cgroup and reports a failure; this is for the paths that have no outcome to report it in.
        self.remove().ok();
    }
}

/// Whether this machine has swap that memory could go to; proc_swaps(5).
fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
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
            let mut cgroup = Cgroup::of(vec![folder.clone()], version);
            cgroup.remove().unwrap();
            assert!(!folder.exists());
            drop(cgroup);
        }
    }

    #[test]
    fn place_is_told_from_the_mount_and_the_membership() {
        let at = |root: &str, path: &str| place(Path::new(root), Path::new("/sys/fs/cgroup"), path);
        assert_eq!(at("/", "/user.slice/a.scope"), Some("/sys/fs/cgroup/user.slice/a.scope".into()));
        assert_eq!(at("/", "/"), Some("/sys/fs/cgroup/".into()));
        assert_eq!(
            at("/docker/1", "/docker/1"),
            Some("/sys/fs/cgroup/".into()),
            "a container, in the host's namespace"
        );
        assert_eq!(at("/docker/1", "/docker/1/leaf"), Some("/sys/fs/cgroup/leaf".into()));
        assert_eq!(at("/../..", "/"), None, "a namespace of its own, the host's mount");
        assert_eq!(at("/", "/../beside"), None, "moved out of its namespace's root");
    }
}
