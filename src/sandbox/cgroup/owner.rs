//! Whose a run's cgroup or container is, told by its name.

use std::fs;
use std::io;
use std::time::Duration;

/// What a name of ours begins with.
const PREFIX: &str = "nsbox-";

/// Whose it is: a pid namespace, a pid in it, and when that process started, for pids are used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pid_namespace: u64,
    pub(crate) pid: u32,
    pub(crate) started: u64,
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
    pub(crate) fn next_name(&self) -> String {
        // Unique among the runs of one process, with no state: two threads never stand at one address at one time, and
        // the clock tells one thread's runs apart.
        let now =
            nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |t| Duration::from(t).as_nanos());
        let thread = nix::unistd::gettid();
        format!("{PREFIX}{}-{}-{}-{thread}-{now}", self.pid_namespace, self.pid, self.started)
    }

    /// Whether `name` is that of a run whose owner, in this pid namespace, is dead.
    pub(crate) fn is_stale(&self, name: &str) -> bool {
        let Some([namespace, pid, start, _]) = numbers(name) else { return false };
        let Ok(pid) = u32::try_from(pid) else { return false };
        namespace == self.pid_namespace && started(pid) != Some(start)
    }

    /// Whether `name` is that of a run of this process, whose thread is gone.
    pub(crate) fn has_left(&self, name: &str) -> bool {
        let Some([namespace, pid, start, thread]) = numbers(name) else { return false };
        (namespace, pid, start) == (self.pid_namespace, self.pid.into(), self.started)
            && !fs::exists(format!("/proc/self/task/{thread}")).unwrap_or(true)
    }
}

/// Pid namespace, pid, start and thread in a name of ours.
fn numbers(name: &str) -> Option<[u64; 4]> {
    let mut fields = name.strip_prefix(PREFIX)?.split('-').map(str::parse::<u64>);
    let mut next = || fields.next()?.ok();
    Some([next()?, next()?, next()?, next()?])
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

    #[test]
    fn run_of_this_process_is_left_once_its_thread_is_gone() {
        let owner = Owner::current().unwrap();
        assert!(!owner.has_left(&owner.next_name()), "this thread's");
        let name = std::thread::scope(|scope| scope.spawn(|| owner.next_name()).join().unwrap());
        // The kernel may not be done with a thread that was joined.
        while !owner.has_left(&name) {
            std::thread::yield_now();
        }
        assert!(!owner.is_stale(&name));
        let other = Owner { pid: owner.pid + 1, ..owner.clone() };
        assert!(!other.has_left(&name) && !owner.has_left("nsbox-"));
    }
}
