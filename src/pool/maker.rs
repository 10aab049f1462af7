//! The threads that end used slots and make new ones, off the path of any run.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::state::{Ending, State, Step};
use super::{Error, Shared};
use crate::sandbox::slot::Order;
use crate::sys::sched::be_patient;

/// How long a maker leaves a machine alone that refused a slot.
const PAUSE: Duration = Duration::from_millis(200);

/// Starts one.
pub(super) fn start(shared: &Arc<Shared>) -> Result<JoinHandle<()>, Error> {
    let shared = Arc::clone(shared);
    let make = move || {
        // Where a filter forbids it, they are in the way a little.
        be_patient().ok();
        shared.make();
    };
    thread::Builder::new().name("nsbox-maker".to_owned()).spawn(make).map_err(Error::Thread)
}

impl Shared {
    /// Ends and makes slots until the pool closes, and those that are left then.
    fn make(&self) {
        let mut state = self.lock();
        loop {
            let Some(step) = state.next_step(self.settings.slots, self.settings.most) else {
                if state.closing && state.running == 0 {
                    return;
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if let Some(rest) = state.rest(self.settings.slots) {
                state.resting += 1;
                (state, _) = self.work.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner);
                state.resting -= 1;
                continue;
            }
            state = match step {
                Step::End(which) => self.end(state, which),
                Step::Restore => self.restore(state),
                Step::Warm(at) => self.warm(state, at),
                Step::Make => self.make_one(state),
            };
        }
    }

    /// Ends a slot.
    fn end<'s>(&'s self, mut state: MutexGuard<'s, State>, which: Ending) -> MutexGuard<'s, State> {
        let slot = match which {
            Ending::Used => state.used.pop(),
            Ending::Ready(at) => state.slots.remove(at),
        };
        state.ending += 1;
        // Whoever is woken wakes another: a run wakes one alone.
        if !state.used.is_empty() || !state.worn.is_empty() || state.slots.len() < self.settings.slots {
            self.work.notify_one();
        }
        drop(state);
        drop(slot);
        state = self.lock();
        state.ending -= 1;
        self.ready.notify_one();
        state
    }

    /// Makes a slot.
    fn make_one<'s>(&'s self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.count_one(&mut state);
        let Some(zygote) = state.zygote.as_ref().map(|current| Arc::clone(&current.zygote)) else { return state };
        state.making += 1;
        let inputs = state.inputs.clone();
        if state.slots.len() + state.making < self.settings.slots {
            self.work.notify_one();
        }
        let order = Order { inputs: inputs.clone(), ..Order::default() };
        drop(state);
        let made = self.sandbox.slot(&zygote, order);
        drop(zygote);
        if made.is_err() && inputs.is_empty() {
            thread::sleep(PAUSE);
        }
        state = self.lock();
        state.making -= 1;
        match made {
            Ok(slot) if !state.closing && state.inputs == inputs => {
                state.counts.slots += 1;
                state.slots.push_back(slot);
                self.ready.notify_one();
            }
            Ok(slot) => state.used.push(slot),
            // Likely one of them is gone. Whoever wants them will be told.
            Err(_) if !inputs.is_empty() => {
                if state.inputs == inputs {
                    (state.inputs, state.wished) = Default::default();
                }
                self.ready.notify_all();
            }
            Err(error) => state.refused = Some(crate::sandbox::chain(&error)),
        }
        state
    }

    /// Another slot of the zygote, which has its successor when it has made enough.
    fn count_one(&self, state: &mut State) {
        let Some(current) = &mut state.zygote else { return };
        current.made += 1;
        if current.made >= self.settings.rotate_after {
            state.rotate = true;
            self.succession.notify_one();
        }
    }

    /// Puts a slot back that has served.
    fn restore<'s>(&'s self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let Some(mut slot) = state.worn.pop() else { return state };
        state.making += 1;
        if !state.worn.is_empty() {
            self.work.notify_one();
        }
        drop(state);
        let restored = self.sandbox.restore(&mut slot);
        state = self.lock();
        state.making -= 1;
        let is_current = state.zygote.as_ref().is_some_and(|current| slot.is_of(&current.zygote));
        if restored.is_ok() && !state.closing && is_current && slot.inputs() == &state.inputs {
            self.count_one(&mut state);
            state.counts.restored += 1;
            // Its pages are in the caches still.
            state.slots.push_front(slot);
            self.ready.notify_one();
        } else {
            state.used.push(slot);
        }
        state
    }

    /// Warms up a slot that was ready, and that nobody asked for yet.
    fn warm<'s>(&'s self, mut state: MutexGuard<'s, State>, at: usize) -> MutexGuard<'s, State> {
        let Some(mut slot) = state.slots.remove(at) else { return state };
        state.making += 1;
        drop(state);
        let warmed = self.sandbox.warm(&mut slot);
        if warmed.is_err() {
            thread::sleep(PAUSE);
        }
        state = self.lock();
        state.making -= 1;
        match warmed {
            Ok(()) if !state.closing && slot.inputs() == &state.inputs => {
                // It is the first to be taken.
                state.slots.push_front(slot);
                self.ready.notify_one();
            }
            Ok(()) => state.used.push(slot),
            Err(error) => {
                state.refused = Some(crate::sandbox::chain(&error));
                state.used.push(slot);
            }
        }
        state
    }
}
