//! A cgroup with the files to enter and to watch it by, which one slot leaves to the next.
//!
//! Making and removing one takes the kernel longer than most of what a slot is made of. What a run may have left in its
//! counters is looked at first; where they cannot start anew, the cgroup goes with its slot.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};

use super::cgroup::{Cgroup, Entry};
use super::meter::{Counters, Meter};
use super::supervise::{poll, ready};

/// Memory that may still be charged to a cgroup without processes, for the next run to have that much less: what the kernel
/// counts ahead for each CPU, and what it has yet to free.
const LEFT_OVER: u64 = 1 << 20;

/// A cgroup that a guest may enter.
#[derive(Debug)]
pub(crate) struct Room {
    pub cgroup: Cgroup,
    pub entry: Entry,
    /// Readable once it runs out of memory (version 1).
    pub oom: Option<OwnedFd>,
    pub meter: Meter,
}

impl Room {
    pub(crate) fn of(cgroup: Cgroup) -> io::Result<Self> {
        Ok(Self { entry: cgroup.entry()?, oom: cgroup.oom_event()?, meter: cgroup.meter(), cgroup })
    }

    /// Whether nothing tells it, now that its processes are gone, from one that was just made; `before` is what it had counted
    /// before the run.
    pub(crate) fn is_as_new(&self, before: Counters) -> bool {
        let now = self.meter.read();
        let heard = |oom: &OwnedFd| {
            let mut set = [PollFd::new(oom.as_fd(), PollFlags::POLLIN)];
            poll(&mut set, Some(Instant::now())).is_err() || ready(&set[0])
        };
        now.oom_kills == 0
            // No peak of processes can be reset.
            && now.processes_peak.is_some()
            && now.processes_peak == before.processes_peak
            && !self.oom.as_ref().is_some_and(heard)
            && self.cgroup.memory_in_use().is_some_and(|bytes| bytes <= LEFT_OVER)
            // Who was held back once may be so at the next one's start.
            && !self.cgroup.was_throttled()
            && self.meter.reset_peak()
    }
}
