//! What a run uses, by looking at its processes: for hosts that give this user no cgroup.
//!
//! Weaker than a cgroup, and said so in the outcome: what rises and falls between two looks is not seen. See
//! proc_pid_status(5), proc_pid_smaps_rollup(5), proc_pid_stat(5), proc_pid_task(5).

use std::fs;
use std::time::Duration;

/// Totals over the processes of one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Measure {
    /// Bytes that are of no file, swapped or not: what processes share counts for each of them, as long as the total is
    /// within the limit; over it, the proportional set size decides.
    pub memory: u64,
    /// Processes and threads, init not counted.
    pub processes: u64,
    /// CPU time of the living and of those they have reaped.
    pub cpu: Duration,
}

impl Measure {
    /// Looks at init's whole tree. All of a run's processes are in it: orphans become children of init. `most` is the limit
    /// of memory in bytes.
    pub(crate) fn of(init: libc::pid_t, most: u64) -> Self {
        let mut total = Self::default();
        let mut pids = vec![init];
        let mut at = 0;
        while let Some(pid) = pids.get(at).copied() {
            at += 1;
            let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for thread in threads.flatten() {
                total.processes += u64::from(pid != init);
                let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
                pids.extend(children.split_whitespace().filter_map(|child| child.parse::<libc::pid_t>().ok()));
            }
            total.memory += memory(pid);
            total.cpu += cpu(pid);
        }
        if total.memory > most {
            total.memory = pids.into_iter().map(|pid| share(pid).unwrap_or_else(|| memory(pid))).sum();
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

/// The kernel keeps these counts.
fn memory(pid: libc::pid_t) -> u64 {
    kib(pid, "status", &["RssAnon:", "RssShmem:", "VmSwap:"]).unwrap_or(0)
}

/// The kernel counts these page by page: in a process of gigabytes for longer than there is between two looks. None where
/// the file may not be read.
fn share(pid: libc::pid_t) -> Option<u64> {
    kib(pid, "smaps_rollup", &["Pss:", "SwapPss:"])
}

/// The sum of these fields of a file of the process's, in bytes.
fn kib(pid: libc::pid_t, file: &str, keys: &[&str]) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let value = |line: &str| {
        let rest = keys.iter().find_map(|key| line.strip_prefix(key))?;
        rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    Some(text.lines().filter_map(value).sum::<u64>() << 10)
}

fn cpu(pid: libc::pid_t) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    // utime, stime, cutime, cstime: fields 14 to 17, in ticks of 1/100 s (USER_HZ).
    let ticks: u64 = fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
