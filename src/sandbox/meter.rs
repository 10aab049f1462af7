//! What a cgroup counted: read at the end of a run and, by files kept open, at the answer of a warm one.
//!
//! See the kernel's cgroup-v2.rst, cgroup-v1/memory.rst and cgroup-v1/cpuacct.rst.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// What the cgroup counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Highest memory use in bytes.
    pub memory_peak: Option<u64>,
    /// Highest number of processes and threads, init included.
    pub processes_peak: Option<u64>,
    /// CPU time in user mode.
    pub cpu_user: Duration,
    /// CPU time in the kernel.
    pub cpu_system: Duration,
    /// Processes that the out-of-memory killer ended.
    pub oom_kills: u64,
}

/// The files of the counters; one that the kernel does not have is none.
#[derive(Debug)]
pub(crate) struct Meter {
    memory_peak: Option<File>,
    processes_peak: Option<File>,
    cpu: Cpu,
    events: Option<File>,
}

#[derive(Debug)]
enum Cpu {
    V1 { user: Option<File>, system: Option<File> },
    V2(Option<File>),
}

impl Meter {
    pub(super) fn v1(memory: &Path, pids: &Path, cpuacct: &Path) -> Self {
        let open = |folder: &Path, name: &str| File::open(folder.join(name)).ok();
        Self {
            memory_peak: resettable(&memory.join("memory.max_usage_in_bytes")),
            processes_peak: open(pids, "pids.peak"),
            cpu: Cpu::V1 { user: open(cpuacct, "cpuacct.usage_user"), system: open(cpuacct, "cpuacct.usage_sys") },
            events: open(memory, "memory.oom_control"),
        }
    }

    pub(super) fn v2(folder: &Path) -> Self {
        let open = |name: &str| File::open(folder.join(name)).ok();
        Self {
            memory_peak: resettable(&folder.join("memory.peak")),
            processes_peak: open("pids.peak"),
            cpu: Cpu::V2(open("cpu.stat")),
            events: open("memory.events"),
        }
    }

    /// Begins to measure the highest memory use anew; `false` where the kernel cannot. Version 1, and version 2 from Linux 6.12
    /// on, where it holds for this very descriptor.
    pub(crate) fn reset_peak(&self) -> bool {
        self.memory_peak.as_ref().is_some_and(|mut file| file.write(b"0").is_ok())
    }

    /// CPU time used so far by all processes.
    pub(crate) fn cpu_time(&self) -> Duration {
        let counters = self.read();
        counters.cpu_user + counters.cpu_system
    }

    /// What the kernel has counted by now.
    pub(crate) fn read(&self) -> Counters {
        let number = |file: &Option<File>| text(file.as_ref()?)?.trim().parse::<u64>().ok();
        let (cpu_user, cpu_system) = match &self.cpu {
            Cpu::V1 { user, system } => {
                (Duration::from_nanos(number(user).unwrap_or(0)), Duration::from_nanos(number(system).unwrap_or(0)))
            }
            Cpu::V2(stat) => {
                let stat = stat.as_ref().and_then(text).unwrap_or_default();
                let us = |key| Duration::from_micros(value(&stat, key).unwrap_or(0));
                (us("user_usec"), us("system_usec"))
            }
        };
        Counters {
            memory_peak: number(&self.memory_peak),
            processes_peak: number(&self.processes_peak),
            cpu_user,
            cpu_system,
            oom_kills: self.events.as_ref().and_then(text).and_then(|text| value(&text, "oom_kill ")).unwrap_or(0),
        }
    }
}

/// A file that may be reset by writing to it, or else only read.
fn resettable(path: &Path) -> Option<File> {
    File::options().read(true).write(true).open(path).or_else(|_| File::open(path)).ok()
}

/// The whole of a counter's file, which is short.
pub(super) fn text(file: &File) -> Option<String> {
    let mut bytes = [0; 2048];
    let length = file.read_at(&mut bytes, 0).ok()?;
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// The number behind a key, in a file of one key to a line.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}
