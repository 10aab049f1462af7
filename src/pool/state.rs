//! What a pool's threads and callers know of its slots, under one lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Counts;
use crate::sandbox::slot::{Inputs, Slot};
use crate::sandbox::zygote::Zygote;

/// How long no run has been young, or has ended, when a burst of runs is over.
const QUIET: Duration = Duration::from_millis(1);
/// How long a burst has the machine for itself: while it goes on, half of the slots serve it.
const BURST: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(super) struct State {
    pub zygote: Option<Current>,
    /// Why the last zygote ended by itself, if it said so.
    pub last_word: Option<String>,
    /// Why there is no zygote, once the keeper has given up.
    pub broken: Option<String>,
    /// Why the last slot could not be made.
    pub refused: Option<String>,
    /// Whether the keeper is to start the next zygote.
    pub rotate: bool,
    pub slots: VecDeque<Slot>,
    /// What slots are made ahead with.
    pub inputs: Inputs,
    /// What the last run had, where it had others.
    pub wished: Option<Inputs>,
    pub used: Vec<Slot>,
    /// Slots that have served and may serve again, once they have been put back.
    pub worn: Vec<Slot>,
    /// Slots that are being made, in use, or being ended.
    pub making: usize,
    pub running: usize,
    pub ending: usize,
    /// Of the slots in use, those that were taken a moment ago.
    pub young: usize,
    /// Slots in use that are likely to serve again; of these, those that are likely to be back soon.
    pub lent: usize,
    pub returning: usize,
    /// Runs that are on each set of CPUs: see [`Slot::lane`].
    pub busy: Vec<usize>,
    /// Runs that wait for a slot to become ready, and for room to fork one.
    pub waiting: usize,
    pub forking: usize,
    /// When a run gave its slot back last, and when the burst began that it was of.
    pub stirred: Option<Instant>,
    pub burst: Option<Instant>,
    /// Makers that will look by themselves what there is to do, in a moment.
    pub resting: usize,
    pub closing: bool,
    pub counts: Counts,
}

/// What a maker can do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    End(Ending),
    /// Put a slot back.
    Restore,
    /// Warm up the slot that is ready at this index.
    Warm(usize),
    /// Make another.
    Make,
}

/// A slot that is to end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ending {
    /// One that has served.
    Used,
    /// The one that is ready at this index.
    Ready(usize),
}

/// The zygote that slots are made of.
#[derive(Debug)]
pub(super) struct Current {
    pub zygote: Arc<Zygote>,
    pub generation: u64,
    pub since: Instant,
    /// Slots made of it.
    pub made: u64,
}

impl State {
    /// Slots that take memory and processes, of whatever state.
    pub fn alive(&self) -> usize {
        self.slots.len() + self.used.len() + self.worn.len() + self.making + self.running + self.ending
    }

    /// Whether slots are to be made until there are `wanted`. Those that will be back are counted, unless runs have to wait for
    /// ones that take their time.
    pub fn is_short(&self, wanted: usize) -> bool {
        let coming = self.making + self.worn.len();
        let waits = self.slots.is_empty() && self.waiting > 0;
        self.slots.len() + coming + self.lent < wanted || waits && coming + self.returning < wanted
    }

    /// The slot that serves the next run best: one that is warm, where the fewest runs are, and on the lane `here`, whose CPU
    /// is the caller's, which need not be woken; of these the most recent.
    pub fn next(&self, here: Option<usize>) -> Option<usize> {
        let busy = |slot: &Slot| self.busy.get(slot.lane()).copied().unwrap_or(0);
        let rank = |slot: &Slot| (!slot.is_warm(), busy(slot), Some(slot.lane()) != here);
        (0..self.slots.len()).min_by_key(|at| rank(&self.slots[*at]))
    }

    /// A run has taken a slot.
    pub fn begin(&mut self, now: Instant) {
        if self.young == 0 && self.stirred.is_none_or(|at| now.saturating_duration_since(at) >= QUIET) {
            self.burst = Some(now);
        }
        self.young += 1;
    }

    /// A run is on these CPUs from now on.
    pub fn occupy(&mut self, lane: usize) {
        self.busy.resize(self.busy.len().max(lane + 1), 0);
        self.busy[lane] += 1;
    }

    /// A run was not served for its inputs. Slots are made with these from the second time in a row on.
    pub fn wish(&mut self, inputs: &Inputs) {
        if self.wished.as_ref() == Some(inputs) {
            self.inputs.clone_from(inputs);
            self.used.extend(self.slots.drain(..));
        } else {
            self.wished = Some(inputs.clone());
        }
    }

    /// What a maker is to do next, with `wanted` slots ready and `most` in all; nothing is taken for it yet.
    pub fn next_step(&self, wanted: usize, most: usize) -> Option<Step> {
        if !self.worn.is_empty() {
            return Some(Step::Restore);
        }
        if !self.used.is_empty() {
            return Some(Step::End(Ending::Used));
        }
        let is_short = self.is_short(wanted);
        let makes = is_short && self.alive() + self.forking < most;
        if self.slots.len() > wanted {
            return Some(Step::End(Ending::Ready(self.slots.len() - 1)));
        }
        // Both one at a time, while the others serve.
        let first = |is_it: &dyn Fn(&Slot) -> bool| self.slots.iter().position(is_it).filter(|_| self.making == 0);
        if let Some(current) = self.zygote.as_ref().filter(|_| !makes)
            && let Some(old) = first(&|slot| !slot.is_of(&current.zygote))
        {
            return Some(Step::End(Ending::Ready(old)));
        }
        // Before there are as many as there should be, and while runs wait, a warm-up would take longer than it saves.
        if !is_short && let Some(cold) = first(&|slot| !slot.is_warm()) {
            return Some(Step::Warm(cold));
        }
        (makes && self.zygote.is_some()).then_some(Step::Make)
    }

    /// How long makers are to leave the machine to the runs, if at all, where `wanted` slots are to be ready: a fork or an exit
    /// takes longer than many a run, and is in its way.
    pub fn rest(&self, wanted: usize) -> Option<Duration> {
        let has_enough = 2 * self.slots.len() >= wanted && self.waiting + self.forking == 0;
        let goes_on = self.burst.is_some_and(|begun| begun.elapsed() < BURST);
        if self.closing || !has_enough || !goes_on {
            return None;
        }
        if self.young > 0 { Some(QUIET) } else { QUIET.checked_sub(self.stirred?.elapsed()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A moment that does not pass while a test runs.
    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    /// A burst that has just begun, with one run.
    fn burst() -> State {
        let mut state = State::default();
        state.begin(soon());
        state
    }

    #[test]
    fn makers_rest_in_a_burst_while_there_are_slots() {
        assert!(State::default().rest(0).is_none());
        assert!(burst().rest(0).is_some());
        assert!(burst().rest(1).is_none(), "there are too few slots");
        assert!(State { waiting: 1, ..burst() }.rest(0).is_none(), "a run waits");
        assert!(State { forking: 1, ..burst() }.rest(0).is_none(), "a run waits for room");
        assert!(State { closing: true, ..burst() }.rest(0).is_none());
    }

    #[test]
    fn burst_is_over_when_runs_stop_and_has_its_time() {
        let ago = |time| Instant::now().checked_sub(time);
        let ended = State { young: 0, stirred: Some(soon()), ..burst() };
        assert!(ended.rest(0).is_some(), "the next run may come at once");
        assert!(State { stirred: ago(QUIET), ..ended }.rest(0).is_none());
        assert!(State { burst: ago(BURST), ..burst() }.rest(0).is_none(), "runs that never stop are no burst");
    }

    #[test]
    fn run_after_a_pause_begins_a_burst_and_others_are_of_the_same() {
        let begun = Instant::now();
        let mut state = burst();
        let first = state.burst;
        state.begin(begun + 2 * QUIET);
        assert_eq!((state.young, state.burst), (2, first), "one goes on");
        (state.young, state.stirred) = (0, Some(begun));
        state.begin(begun + QUIET / 2);
        assert_eq!(state.burst, first);
        state.young = 0;
        state.begin(begun + QUIET);
        assert_eq!((state.young, state.burst), (1, Some(begun + QUIET)));
    }
}
