//! The sizes of a pool, and its start.

use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use super::{Error, Pool, Shared, State, keeper, maker, submit};
use crate::config::{Config, Slots};
use crate::sandbox::lane::Lanes;
use crate::sandbox::{Sandbox, zygote};

/// What an idle slot takes, warmed up, with room to spare.
const SLOT_BYTES: u64 = 32 << 20;
/// Slots of one pool at most: the zygote's own table has as many places.
const MOST: usize = 1000;

/// What a run gets that finds no slot ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Drained {
    /// The next slot that becomes ready, in the order of asking.
    #[default]
    Wait,
    /// A slot made at that moment, without a warm-up, as long as there may be more.
    Fork,
    /// The verdict `unavailable`.
    Reject,
}

/// A pool to be: sizes that are not set suit the machine.
#[derive(Debug, Clone)]
pub struct Builder {
    pub(super) config: Config,
    pub(super) slots: usize,
    pub(super) most: usize,
    pub(super) queue: usize,
    pub(super) patience: Duration,
    pub(super) drained: Drained,
    pub(super) rotate_after: u64,
    pub(super) suspicion: Duration,
    pub(super) makers: usize,
}

impl Builder {
    pub(super) fn new(config: Config) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let slots = (2 * cores).min(fitting()).max(1);
        Self {
            config,
            slots,
            most: slots + 4 * cores,
            queue: 1024,
            patience: Duration::from_secs(300),
            drained: Drained::default(),
            rotate_after: 10_000,
            suspicion: Duration::from_secs(60),
            // Half of the time that a slot takes is waiting.
            makers: 2 * cores,
        }
    }

    /// How many slots are kept ready; without it, two for each CPU, as far as a quarter of the free memory goes. Slots that serve
    /// again count while they are in use, unless runs have to wait for them. A burst of runs has the CPUs for itself: while it
    /// goes on, for 50 ms at most, others are made only once less than half are ready.
    #[must_use]
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = slots;
        self.most = self.most.max(slots + 1);
        self
    }

    /// How many slots there may be in all, those in use and those on their way out included; without it, four for each CPU
    /// more than are kept ready.
    #[must_use]
    pub fn most(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// How many runs may wait for a slot; without it, 1,024.
    #[must_use]
    pub fn queue(mut self, queue: usize) -> Self {
        self.queue = queue;
        self
    }

    /// How long a run may wait for one; without it, five minutes.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// What a run gets that finds no slot ready; without it, it waits.
    #[must_use]
    pub fn drained(mut self, drained: Drained) -> Self {
        self.drained = drained;
        self
    }

    /// After how many slots the next ones come of a new zygote; without it, 10,000. One that was put back counts as another.
    /// Slots of one zygote share the layout of their memory (ASLR, canaries) and their hash seed.
    #[must_use]
    pub fn rotate_after(mut self, slots: u64) -> Self {
        self.rotate_after = slots;
        self
    }

    /// How old a zygote may get after a run of which seccomp has killed one; without it, a minute: no script can keep the
    /// pool busy with new ones.
    #[must_use]
    pub fn suspicion(mut self, age: Duration) -> Self {
        self.suspicion = age;
        self
    }

    /// Starts the pool: its sandbox, its zygote, and a first slot to prove that there can be any.
    ///
    /// # Errors
    /// Whatever of that cannot be had, a module of `preload` by its name; nothing runs cold in silence.
    pub fn build(self) -> Result<Pool, Error> {
        let size = |asked: String, allowed| Err(Error::Size { asked, allowed });
        if self.slots == 0 || self.slots >= MOST {
            return size(format!("{} slots ready", self.slots), "1 to 999 are possible");
        }
        if self.most <= self.slots || self.most > MOST {
            return size(format!("{} slots in all", self.most), "more than are kept ready are needed, 1,000 at most");
        }
        if self.rotate_after == 0 {
            return size("a new zygote after 0 slots".to_owned(), "1 is the least");
        }
        if self.config.slots == Slots::Restored && self.config.limits.cpu_time.is_some() {
            return Err(Error::Slots(
                "`slots: restored` does not go with `limits.cpu_time`: the kernel counts the CPU time of a process from its \
                 start, over all its runs; leave one of them out",
            ));
        }
        let sandbox = Sandbox::new(self.config.clone()).map_err(Error::Start)?;
        let layout = zygote::layout().map_err(Error::Start)?;
        let (makers, lanes) = (self.makers, Lanes::of(self.config.limits.cpus));
        let shared = Arc::new(Shared {
            sandbox,
            settings: self,
            layout,
            state: Mutex::new(State::default()),
            work: Condvar::new(),
            succession: Condvar::new(),
            ready: Condvar::new(),
            jobs: submit::Jobs::default(),
            lanes,
        });
        // From here on, what fails is undone by the pool's own end.
        let mut pool = Pool { shared: Arc::clone(&shared), threads: Vec::new() };
        keeper::start(&shared, &mut pool.threads)?;
        for _ in 0..makers {
            pool.threads.push(maker::start(&shared)?);
        }
        Ok(pool)
    }
}

/// How many slots a quarter of the free memory holds.
fn fitting() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or(1 << 20);
    usize::try_from((kib << 10) / 4 / SLOT_BYTES).unwrap_or(MOST).min(MOST / 2)
}
