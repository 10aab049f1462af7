//! What a pool's threads and callers know of its slots, under one lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Counts;
use crate::sandbox::slot::{Inputs, Slot};
use crate::sandbox::zygote::Zygote;

/// How long no run has been young, or has ended, when slots are ended and made, unless these run short.
const QUIET: Duration = Duration::from_millis(1);

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
    /// When a run gave its slot back last.
    pub stirred: Option<Instant>,
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

    /// How long a maker is to leave the machine to the runs before this step, if at all, where `wanted` slots are to be ready: a
    /// fork or an exit takes longer than many a run, and is in its way. What is put back is not.
    pub fn rest(&self, step: Step, wanted: usize) -> Option<Duration> {
        let has_enough = 2 * self.slots.len() >= wanted && self.waiting + self.forking == 0;
        if self.closing || !has_enough || matches!(step, Step::Restore) {
            return None;
        }
        if self.young > 0 { Some(QUIET) } else { QUIET.checked_sub(self.stirred?.elapsed()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_rest_while_runs_are_young_and_slots_enough() {
        let rest = |state: &State, wanted| state.rest(Step::Make, wanted).is_some();
        let mut state = State { young: 1, ..State::default() };
        assert!(rest(&state, 0));
        assert!(!rest(&state, 1), "there are too few slots");
        assert_eq!(state.rest(Step::Restore, 0), None);
        assert!(!rest(&State { young: 1, waiting: 1, ..State::default() }, 0), "a run waits");
        assert!(!rest(&State { young: 1, forking: 1, ..State::default() }, 0), "a run waits for room");
        assert!(!rest(&State { young: 1, closing: true, ..State::default() }, 0));
        // The last one was a moment ago, or longer.
        state = State { stirred: Some(Instant::now() + QUIET), ..State::default() };
        assert!(rest(&state, 0));
        state.stirred = Instant::now().checked_sub(QUIET);
        assert!(!rest(&state, 0));
        assert!(!rest(&State::default(), 0));
    }
}
