//! The threads that end used slots and make new ones, off the path of any run.

use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Error, Shared};
use crate::sandbox::slot::Order;

/// How long a maker leaves a machine alone that refused a slot.
const PAUSE: Duration = Duration::from_millis(200);

/// Starts one.
pub(super) fn start(shared: &Arc<Shared>) -> Result<JoinHandle<()>, Error> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("nsbox-maker".to_owned()).spawn(move || shared.make()).map_err(Error::Thread)
}

impl Shared {
    /// Ends and makes slots until the pool closes, and those that are left then.
    fn make(&self) {
        let mut state = self.lock();
        loop {
            if let Some(slot) = state.used.pop() {
                state.ending += 1;
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
            let wanted = state.slots.len() + state.making < self.settings.slots && state.alive() < self.settings.most;
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
            let order = Order { warm: state.waiting == 0, ..Order::default() };
            drop(state);
            let made = self.sandbox.slot(&zygote, order);
            drop(zygote);
            if made.is_err() {
                thread::sleep(PAUSE);
            }
            state = self.lock();
            state.making -= 1;
            match made {
                Ok(slot) if !state.closing => {
                    state.counts.slots += 1;
                    state.slots.push_back(slot);
                    self.ready.notify_one();
                }
                Ok(slot) => state.used.push(slot),
                Err(error) => state.refused = Some(crate::sandbox::chain(&error)),
            }
        }
    }
}
