//! The threads that keep zygotes: one for each, from its start to its death, and one that sees to successors.
//!
//! A zygote's thread outlives it because the host ids of its slots are the thread's: nobody else has them meanwhile.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::state::Current;
use super::{Error, Shared};
use crate::sandbox::slot::{Order, Slot};
use crate::sandbox::{self, zygote::Zygote};

/// Zygotes that may fail one after the other before the pool gives up.
const MOST_FAILURES: u32 = 3;
/// How long a machine is left alone that refused one.
const PAUSE: Duration = Duration::from_millis(100);
/// A zygote that lives so long is none of them.
const GOOD_AGE: Duration = Duration::from_secs(10);

/// Starts the first zygote and a slot of it, then the thread that sees to the next ones.
pub(super) fn start(shared: &Arc<Shared>, threads: &mut Vec<JoinHandle<()>>) -> Result<(), Error> {
    let (zygote, thread) = hatch(shared)?;
    threads.push(thread);
    let mut slot = shared.sandbox.slot(&zygote, Order::default()).map_err(Error::Start)?;
    shared.sandbox.warm(&mut slot).map_err(Error::Start)?;
    drop(zygote);
    let mut state = shared.lock();
    state.slots.push_back(slot);
    state.counts.slots += 1;
    drop(state);
    let owner = Arc::clone(shared);
    let successor = thread::Builder::new().name("nsbox-successor".to_owned()).spawn(move || owner.succeed());
    threads.push(successor.map_err(Error::Thread)?);
    Ok(())
}

/// Starts a zygote in a thread of its own, and makes it the one that slots are made of.
fn hatch(shared: &Arc<Shared>) -> Result<(Arc<Zygote>, JoinHandle<()>), Error> {
    let (sender, receiver) = sync_channel(1);
    let owner = Arc::clone(shared);
    let thread = thread::Builder::new().name("nsbox-keeper".to_owned()).spawn(move || owner.keep(&sender));
    let thread = thread.map_err(Error::Thread)?;
    let lost = || Err(sandbox::Error::Unsupported("the zygote's thread ended".to_owned()));
    let zygote = receiver.recv().unwrap_or_else(|_| lost()).map_err(Error::Start)?;
    Ok((zygote, thread))
}

impl Shared {
    /// A zygote's whole life.
    fn keep(&self, born: &SyncSender<Result<Arc<Zygote>, sandbox::Error>>) {
        let most = u32::try_from(self.settings.most).unwrap_or(u32::MAX);
        let hatched = self.sandbox.zygote(most, self.layout.as_fd()).and_then(|zygote| {
            let end = zygote.end().try_clone();
            let end = end.map_err(|source| sandbox::Error::Step { step: "watch the zygote".to_owned(), source })?;
            Ok((Arc::new(zygote), end))
        });
        let (zygote, end) = match hatched {
            Ok(hatched) => hatched,
            Err(error) => {
                // Nobody waits for it where the pool has been dropped meanwhile.
                born.send(Err(error)).ok();
                return;
            }
        };
        let mut state = self.lock();
        state.counts.zygotes += 1;
        let generation = state.counts.zygotes;
        state.zygote = (!state.closing).then(|| Current {
            zygote: Arc::clone(&zygote),
            generation,
            since: Instant::now(),
            made: 0,
        });
        drop(state);
        self.work.notify_all();
        let witness = Arc::downgrade(&zygote);
        born.send(Ok(zygote)).ok();
        wait(&end);
        // Whoever lets go of it may have ended it.
        let last_word = witness.upgrade().and_then(|zygote| zygote.last_word());
        let mut state = self.lock();
        if state.zygote.as_ref().is_some_and(|current| current.generation == generation) {
            state.counts.crashes += 1;
            state.last_word = last_word.map(|error| sandbox::chain(&error));
            let dead = state.zygote.take();
            let (alive, dead_slots): (Vec<_>, Vec<_>) = state.slots.drain(..).partition(Slot::is_alive);
            state.slots = alive.into();
            state.used.extend(dead_slots);
            drop((state, dead));
            self.work.notify_all();
            self.succession.notify_one();
        }
    }

    /// Starts the next zygote where one has died, or has served its time.
    fn succeed(self: &Arc<Self>) {
        let mut threads = Vec::new();
        let mut failures = 0;
        let mut begun = Instant::now();
        let mut state = self.lock();
        loop {
            if state.closing {
                break;
            }
            let died = state.zygote.is_none();
            let last_word = state.last_word.take();
            if !died && !state.rotate {
                state = self.succession.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.rotate = false;
            drop(state);
            failures = match &last_word {
                _ if !died => 0,
                // It knows why it cannot go on, and the next one will find the same.
                Some(_) => failures + 2,
                None if begun.elapsed() > GOOD_AGE => 0,
                None => failures + 1,
            };
            begun = Instant::now();
            let hatched =
                if failures <= MOST_FAILURES { hatch(self).map(|(_, thread)| thread) } else { break_off(last_word) };
            state = self.lock();
            match hatched {
                Ok(thread) => threads.push(thread),
                Err(error) if died && failures >= MOST_FAILURES => {
                    state.broken = Some(sandbox::chain(&error));
                    self.ready.notify_all();
                    break;
                }
                // It may have been killed on its way, or have met a machine that was full.
                Err(_) if died => {
                    state.counts.crashes += 1;
                    (state, _) = self.succession.wait_timeout(state, PAUSE).unwrap_or_else(PoisonError::into_inner);
                }
                // The old one goes on for as many slots again.
                Err(_) => state.zygote.iter_mut().for_each(|current| current.made = 0),
            }
            threads.retain(|thread| !thread.is_finished());
        }
        drop(state);
        for thread in threads {
            // A thread that panicked has nothing left to end.
            thread.join().ok();
        }
    }
}

fn break_off(last_word: Option<String>) -> Result<JoinHandle<()>, Error> {
    let mut why = "the pool's interpreter died again and again, soon after its start".to_owned();
    if let Some(last_word) = last_word {
        why.push_str(": ");
        why.push_str(&last_word);
    }
    Err(Error::Start(sandbox::Error::Unsupported(why)))
}

/// Sleeps until the process behind a pidfd is dead.
fn wait(pidfd: &OwnedFd) {
    loop {
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            _ => return,
        }
    }
}
