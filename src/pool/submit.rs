//! Runs in the background: a queue of jobs, and threads that take them, started as they are needed.

use std::collections::VecDeque;
use std::fmt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::{Pool, Shared};
use crate::outcome::Outcome;
use crate::sandbox::{Cancel, Script, Watch};

/// What was submitted and has not begun, and who runs it.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Job>,
    threads: Vec<JoinHandle<()>>,
    idle: usize,
    closing: bool,
}

struct Job {
    script: Script,
    cancel: Cancel,
    outcome: SyncSender<Outcome>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("script", &self.script).finish_non_exhaustive()
    }
}

/// A run that was submitted; dropped, it is cancelled.
#[derive(Debug)]
pub struct Handle {
    cancel: Option<Cancel>,
    outcome: Receiver<Outcome>,
    refused: Option<Box<Outcome>>,
}

impl Handle {
    /// Waits for its end.
    #[must_use]
    pub fn wait(mut self) -> Outcome {
        if let Some(refused) = self.refused.take() {
            return *refused;
        }
        let outcome = self.outcome.recv();
        self.cancel = None;
        outcome.unwrap_or_else(|_| crate::sandbox::unavailable("", "the pool was closed before the run began"))
    }

    /// Ends the run; [`Handle::wait`] tells how.
    pub fn cancel(&self) {
        if let Some(cancel) = &self.cancel {
            cancel.cancel();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Pool {
    /// Runs one script in the background.
    ///
    /// As many runs go on at once as there are slots; the others wait, in the order of their submission. Where more than
    /// [`super::Builder::queue`] wait already, the outcome is `unavailable` at once.
    #[must_use]
    pub fn submit(&self, script: impl Into<Script>) -> Handle {
        let (sender, outcome) = sync_channel(1);
        let refuse = |why: &str, outcome| Handle { cancel: None, outcome, refused: Some(self.shared.unavailable(why)) };
        let cancel = match Cancel::new() {
            Ok(cancel) => cancel,
            Err(error) => return refuse(&format!("failed to make the run's handle: {error}"), outcome),
        };
        let job = Job { script: script.into(), cancel: cancel.clone(), outcome: sender };
        let jobs = &self.shared.jobs;
        let mut queue = jobs.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.waiting.len() >= self.shared.settings.queue {
            return refuse(&format!("{} runs are waiting for the pool already", queue.waiting.len()), outcome);
        }
        queue.waiting.push_back(job);
        if queue.idle < queue.waiting.len() && queue.threads.len() < self.shared.settings.slots {
            let shared = Arc::clone(&self.shared);
            match thread::Builder::new().name("nsbox-run".to_owned()).spawn(move || shared.serve()) {
                Ok(thread) => queue.threads.push(thread),
                Err(error) if queue.threads.is_empty() => {
                    queue.waiting.pop_back();
                    return refuse(&format!("failed to start a thread for the run: {error}"), outcome);
                }
                // Those that there are will come to it.
                Err(_) => {}
            }
        }
        drop(queue);
        jobs.more.notify_one();
        Handle { cancel: Some(cancel), outcome, refused: None }
    }
}

impl Shared {
    /// Runs what is submitted until the pool closes.
    fn serve(&self) {
        let mut queue = self.jobs.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Some(Job { script, cancel, outcome }) = queue.waiting.pop_front() else {
                if queue.closing {
                    return;
                }
                queue.idle += 1;
                queue = self.jobs.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
                continue;
            };
            drop(queue);
            // A handle that was dropped takes no outcome.
            outcome.send(self.run(script, Watch { sink: None, cancel: Some(cancel) })).ok();
            queue = self.jobs.queue.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the threads: what has not begun never will.
    pub(super) fn close_jobs(&self) {
        let mut queue = self.jobs.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.closing = true;
        queue.waiting.clear();
        let threads = std::mem::take(&mut queue.threads);
        drop(queue);
        self.jobs.more.notify_all();
        for thread in threads {
            // A thread that panicked has nothing left to end.
            thread.join().ok();
        }
    }
}
