//! Interpreters that have imported everything already: an isolated run at the price of a function call.
//!
//! A pool keeps slots ready, each a fork of one zygote behind every layer of a cold run (see `sandbox/slot.rs`). A run takes
//! one, uses it once, and leaves its killing and the making of the next to the pool's own threads. What differs from a cold
//! run is said in [`Outcome::ended`]: `answered`, where the script's good end was taken from its answer and the kernel's
//! counters, before its process was gone.
//!
//! With `slots: restored` a slot whose run left nothing but memory behind is put back, and serves again (see
//! `sandbox/restore.rs`); all others end with their run all the same.
//!
//! A run with artifacts or a standard input has a slot made for it, by a fork at that moment. So has the first run with other
//! inputs than the one before; from the second on, slots are made ahead with these inputs.

mod builder;
mod keeper;
mod maker;
mod state;
mod submit;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use builder::{Builder, Drained};
use state::State;
pub use submit::Handle;

use crate::config::Config;
use crate::outcome::{Outcome, Verdict};
use crate::sandbox::lane::Lanes;
use crate::sandbox::slot::{Inputs, Order, Slot};
use crate::sandbox::{self, Cancel, Sandbox, Script, Watch};

/// How often a run that waits looks whether it was cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Slots that may die under a run's hands, before it is said that none can be had.
const ATTEMPTS: usize = 10;

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the configuration asks of the slots cannot be had of any.
    #[error("{0}")]
    Slots(&'static str),
    /// The sandbox, or the interpreter that slots are forked from; a module of `preload` that cannot be imported is named.
    #[error("failed to start the warm pool")]
    Start(#[source] sandbox::Error),
    /// A thread of the pool's own.
    #[error("failed to start a thread of the warm pool")]
    Thread(#[source] std::io::Error),
    /// A size that makes no sense.
    #[error("a pool cannot have {asked}: {allowed}")]
    Size {
        /// What was asked for.
        asked: String,
        /// What there can be.
        allowed: &'static str,
    },
}

impl Error {
    /// A stable name of the failure, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Slots(_) => "pool-slots",
            Self::Start(_) => "pool-start",
            Self::Thread(_) => "pool-thread",
            Self::Size { .. } => "pool-size",
        }
    }
}

/// Serves any number of runs, from any number of threads. Dropped, it waits for its runs and leaves nothing.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the pool's threads share with its callers.
#[derive(Debug)]
struct Shared {
    sandbox: Sandbox,
    settings: Builder,
    /// What its first zygote finds out for the next ones.
    layout: OwnedFd,
    state: Mutex<State>,
    /// For makers: a slot is to be made or ended.
    work: Condvar,
    /// For the keeper: a zygote is to be started, or none ever again.
    succession: Condvar,
    /// For runs: a slot is ready, or never will be.
    ready: Condvar,
    jobs: submit::Jobs,
    lanes: Lanes,
}

/// What a pool has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Slots made.
    pub slots: u64,
    /// Of these, slots made for one run, at its request.
    pub forked: u64,
    /// How often a slot was put back for another run (`slots: restored`).
    pub restored: u64,
    /// Zygotes started.
    pub zygotes: u64,
    /// Zygotes that died by themselves, or did not start where one had died.
    pub crashes: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot in a run's hands: counted, and given back for its end.
struct Taken<'p> {
    shared: &'p Shared,
    slot: Option<Slot>,
    lane: Option<usize>,
    /// Whether it is counted among those that serve again.
    is_lent: bool,
    /// Whether it is counted among those that were taken a moment ago.
    is_young: Cell<bool>,
}

impl Taken<'_> {
    /// The run takes its time: the next slot is made beside it.
    fn is_long(&self) {
        self.grow_old(&mut self.shared.lock());
        self.shared.work.notify_one();
    }

    fn grow_old(&self, state: &mut State) {
        if self.is_young.take() {
            state.young -= 1;
            state.returning -= usize::from(self.is_lent);
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.running -= 1;
        if let Some(lane) = self.lane {
            state.busy[lane] -= 1;
        }
        state.lent -= usize::from(self.is_lent);
        self.grow_old(&mut state);
        let worn = self.slot.take_if(|slot| slot.is_restorable() && !state.closing);
        state.worn.extend(worn);
        state.used.extend(self.slot.take());
        state.stirred = Some(Instant::now());
        // One that rests will look by itself, which is too late where others wait or slots run short.
        let calls = state.resting == 0 || state.rest(self.shared.settings.slots).is_none();
        drop(state);
        if calls {
            self.shared.work.notify_one();
        }
    }
}

impl Pool {
    /// A pool by `config`, of the size that suits this machine.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new(config: Config) -> Result<Self, Error> {
        Self::builder(config).build()
    }

    /// A pool by `config`, to be sized.
    #[must_use]
    pub fn builder(config: Config) -> Builder {
        Builder::new(config)
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts
    }

    /// How many slots are ready for a run at this moment.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.shared.lock().slots.len()
    }

    /// How many of these have copied the pages that the warm-up script touched, or have none to copy. It takes as long as a
    /// run, so a slot does it once all the others are there.
    #[must_use]
    pub fn warmed(&self) -> usize {
        self.shared.lock().slots.iter().filter(|slot| slot.is_warm()).count()
    }

    /// Runs one script to its end, watched.
    ///
    /// Never fails: a run that could not begin is an outcome of verdict `unavailable`, whose message says why.
    pub fn run(&self, script: impl Into<Script>, watch: Watch<'_>) -> Outcome {
        self.shared.run(script.into(), watch)
    }
}

impl Shared {
    fn run(&self, script: Script, watch: Watch<'_>) -> Outcome {
        let (task, order) = match self.sandbox.admit(script) {
            Ok(admitted) => admitted,
            Err(rejected) => return *rejected,
        };
        let begun = Instant::now();
        let (is_special, inputs) = (order.is_special(), order.inputs.clone());
        let mut order = is_special.then_some(order);
        for _ in 0..ATTEMPTS {
            let taken = match order.take() {
                Some(order) => self.fork(order, watch.cancel.as_ref()),
                // What a stream has been read of is gone.
                None if is_special => break,
                None => self.take(&inputs, watch.cancel.as_ref()),
            };
            let mut taken = match taken {
                Ok(taken) => taken,
                Err(refused) => return *refused,
            };
            let Some(mut slot) = taken.slot.take() else {
                thread::sleep(LOOK_EVERY);
                continue;
            };
            let got = Instant::now();
            // Nothing of the script has run where its slot was dead already.
            let asked = slot.ask(&task);
            if asked.is_err() {
                taken.slot = Some(slot);
                continue;
            }
            let mut outcome = self.sandbox.watch_slot(&mut slot, &task, watch, &|| taken.is_long());
            taken.slot = Some(slot);
            drop(taken);
            outcome.timings.queue_ms = (got - begun).as_secs_f64() * 1e3;
            if outcome.verdict == Verdict::Violation {
                self.suspect();
            }
            return outcome;
        }
        *self.unavailable("the slots that were to serve it died before it began")
    }

    /// A slot with these inputs that is ready, as soon as there is one.
    fn take(&self, inputs: &Inputs, cancel: Option<&Cancel>) -> Result<Taken<'_>, Box<Outcome>> {
        let deadline = Instant::now() + self.settings.patience;
        let here = self.lanes.here();
        let mut state = self.lock();
        let mut waits = false;
        loop {
            let forks = if state.inputs == *inputs {
                state.slots.is_empty()
                    && self.settings.drained == Drained::Fork
                    && state.alive() < self.settings.most
                    && state.zygote.is_some()
            } else {
                state.wish(inputs);
                true
            };
            if forks && state.broken.is_none() && !state.closing {
                if waits {
                    state.waiting -= 1;
                }
                drop(state);
                self.work.notify_all();
                return self.fork(Order { inputs: inputs.clone(), ..Order::default() }, cancel);
            }
            let next = state.next(here).and_then(|at| state.slots.remove(at));
            let found = if let Some(slot) = next {
                if slot.is_alive() && slot.shows(inputs) {
                    let (lane, is_lent) = (slot.lane(), slot.serves_again());
                    state.running += 1;
                    state.occupy(lane);
                    state.begin(Instant::now());
                    state.lent += usize::from(is_lent);
                    state.returning += usize::from(is_lent);
                    state.wished = None;
                    Some(Ok(Taken {
                        shared: self,
                        slot: Some(slot),
                        lane: Some(lane),
                        is_lent,
                        is_young: Cell::new(true),
                    }))
                } else {
                    state.used.push(slot);
                    self.work.notify_one();
                    continue;
                }
            } else if let Some(why) = state.broken.clone() {
                Some(Err(self.unavailable(&why)))
            } else if state.closing {
                Some(Err(self.unavailable("the pool is closing")))
            } else if !waits && state.waiting + state.forking >= self.settings.queue {
                Some(Err(self.full_queue(&state)))
            } else if self.settings.drained == Drained::Reject {
                Some(Err(self.unavailable("no slot of the pool is ready")))
            } else if Instant::now() >= deadline {
                let why = state.refused.as_deref().unwrap_or("too many runs want one");
                Some(Err(self.unavailable(&format!("no slot of the pool became ready in time: {why}"))))
            } else if cancel.is_some_and(Cancel::is_cancelled) {
                Some(Err(Box::new(self.cancelled())))
            } else {
                None
            };
            if let Some(found) = found {
                if waits {
                    state.waiting -= 1;
                }
                // The next one is made when this run is over, or takes long: on a machine of few CPUs it is in the way.
                let is_last = state.slots.is_empty();
                drop(state);
                if is_last {
                    self.work.notify_one();
                }
                return found;
            }
            if !waits {
                waits = true;
                state.waiting += 1;
                self.work.notify_one();
            }
            let nap = if cancel.is_some() { LOOK_EVERY } else { deadline.saturating_duration_since(Instant::now()) };
            (state, _) = self.ready.wait_timeout(state, nap).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A slot made to order, at this moment; none where the zygote has died meanwhile.
    fn fork(&self, order: Order, cancel: Option<&Cancel>) -> Result<Taken<'_>, Box<Outcome>> {
        let deadline = Instant::now() + self.settings.patience;
        let mut state = self.lock();
        if state.waiting + state.forking >= self.settings.queue {
            return Err(self.full_queue(&state));
        }
        state.forking += 1;
        let found = loop {
            if let Some(why) = &state.broken {
                break Err(self.unavailable(why));
            }
            if cancel.is_some_and(Cancel::is_cancelled) {
                break Err(Box::new(self.cancelled()));
            }
            let has_room = state.alive() < self.settings.most;
            if !has_room && state.used.is_empty() && state.ending == 0 {
                // One that is ready makes room.
                let slot = state.slots.pop_back();
                state.used.extend(slot);
                self.work.notify_one();
            }
            match &mut state.zygote {
                Some(current) if has_room => {
                    current.made += 1;
                    break Ok(Arc::clone(&current.zygote));
                }
                _ if Instant::now() >= deadline => break Err(self.unavailable("the pool is full")),
                _ => (state, _) = self.ready.wait_timeout(state, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner),
            }
        };
        state.forking -= 1;
        let zygote = found?;
        state.running += 1;
        state.counts.slots += 1;
        state.counts.forked += 1;
        drop(state);
        let mut taken = Taken { shared: self, slot: None, lane: None, is_lent: false, is_young: Cell::new(false) };
        match self.sandbox.slot(&zygote, order) {
            Ok(slot) => {
                self.lock().occupy(slot.lane());
                taken.lane = Some(slot.lane());
                taken.slot = Some(slot);
                Ok(taken)
            }
            // The keeper will hear of it soon, and there will be another.
            Err(_) if zygote.is_dead() => Ok(taken),
            Err(error) => Err(self.unavailable(&sandbox::chain(&error))),
        }
    }

    /// A slot did what strategies do not do: the next ones come of another zygote, unless this one is young.
    fn suspect(&self) {
        let mut state = self.lock();
        if state.zygote.as_ref().is_some_and(|current| current.since.elapsed() > self.settings.suspicion) {
            state.rotate = true;
            self.succession.notify_one();
        }
    }

    fn full_queue(&self, state: &State) -> Box<Outcome> {
        self.unavailable(&format!("{} runs are waiting for the pool already", state.waiting + state.forking))
    }

    fn unavailable(&self, why: &str) -> Box<Outcome> {
        Box::new(sandbox::unavailable(&self.settings.config.image, why))
    }

    fn cancelled(&self) -> Outcome {
        let config = &self.settings.config;
        sandbox::failed_run(config, &config.image, &sandbox::Error::cancelled())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.close_jobs();
        let mut state = self.shared.lock();
        state.closing = true;
        let slots = std::mem::take(&mut state.slots);
        state.used.extend(slots);
        let worn = std::mem::take(&mut state.worn);
        state.used.extend(worn);
        state.zygote = None;
        drop(state);
        self.shared.work.notify_all();
        self.shared.succession.notify_one();
        self.shared.ready.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to end.
            thread.join().ok();
        }
    }
}
