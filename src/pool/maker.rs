//! The threads that end used slots and make new ones, off the path of any run.

use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

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
            if let Some(slot) = state.used.pop() {
                state.ending += 1;
                // Whoever is woken wakes another: a run wakes one alone.
                if !state.used.is_empty() || state.slots.len() < self.settings.slots {
                    self.work.notify_one();
                }
                drop(state);
                drop(slot);
                state = self.lock();
                state.ending -= 1;
                self.ready.notify_one();
                continue;
            }
            if state.closing && state.running == 0 {
                return;
            }
            let has_room = state.alive() + state.forking < self.settings.most;
            let wanted = has_room && state.slots.len() + state.making < self.settings.slots;
            if !wanted && let Some(old) = state.outdated() {
                state.used.push(old);
                continue;
            }
            match &mut state.zygote {
                Some(current) if wanted => {
                    current.made += 1;
                    if current.made >= self.settings.rotate_after {
                        state.rotate = true;
                        self.succession.notify_one();
                    }
                }
                _ => {
                    state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            }
            let Some(zygote) = state.zygote.as_ref().map(|current| Arc::clone(&current.zygote)) else { continue };
            state.making += 1;
            // A run that waits is served sooner by a slot as it is.
            let inputs = state.inputs.clone();
            if state.slots.len() + state.making < self.settings.slots {
                self.work.notify_one();
            }
            let order = Order { warm: state.waiting == 0, inputs: inputs.clone(), ..Order::default() };
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
        }
    }
}
