//! What a run uses, by looking at its processes: for hosts that give this user no cgroup.
//!
//! Weaker than a cgroup, and said so in the outcome: what rises and falls between two looks is not seen. See
//! proc_pid_smaps_rollup(5), proc_pid_stat(5), proc_pid_task(5).

use std::fs;
use std::io;
use std::time::Duration;

/// Totals over the processes of one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Measure {
    /// Proportional set size and swap, in bytes.
    pub memory: u64,
    /// Processes and threads, init not counted.
    pub processes: u64,
    /// CPU time of the living and of those they have reaped.
    pub cpu: Duration,
}

impl Measure {
    /// Looks at init's whole tree. All of a run's processes are in it: orphans become children of init.
    pub(crate) fn of(init: libc::pid_t) -> Self {
        let mut total = Self::default();
        let mut pids = vec![init];
        while let Some(pid) = pids.pop() {
            let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for thread in threads.flatten() {
                total.processes += u64::from(pid != init);
                let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
                pids.extend(children.split_whitespace().filter_map(|child| child.parse::<libc::pid_t>().ok()));
            }
            total.memory += memory(pid);
            total.cpu += cpu(pid);
        }
        total
    }

    /// Keeps the higher of each.
    pub(crate) fn raise_to(&mut self, now: Self) {
        self.memory = self.memory.max(now.memory);
        self.processes = self.processes.max(now.processes);
        self.cpu = self.cpu.max(now.cpu);
    }
}

/// How many processes and threads a user has.
pub(crate) fn tasks_of(uid: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = processes.filter(|entry| {
        let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        is_process && entry.metadata().is_ok_and(|metadata| metadata.uid() == uid)
    });
    own.map(|entry| fs::read_dir(entry.path().join("task")).map_or(0, |tasks| tasks.count() as u64)).sum()
}

fn memory(pid: libc::pid_t) -> u64 {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let sum = |text: io::Result<String>, keys: &[&str]| -> Option<u64> {
        let text = text.ok()?;
        let kib = |line: &str| {
            let rest = keys.iter().find_map(|key| line.strip_prefix(key))?;
            rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        };
        Some(text.lines().filter_map(kib).sum::<u64>() << 10)
    };
    // The second where the first may not be read: what is shared then counts for each that shares it.
    sum(read("smaps_rollup"), &["Pss:", "SwapPss:"])
        .or_else(|| sum(read("status"), &["RssAnon:", "RssShmem:", "VmSwap:"]))
        .unwrap_or(0)
}

fn cpu(pid: libc::pid_t) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    // utime, stime, cutime, cstime: fields 14 to 17, in ticks of 1/100 s (USER_HZ).
    let ticks: u64 = fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
