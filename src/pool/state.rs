//! What a pool's threads and callers know of its slots, under one lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::Counts;
use crate::sandbox::slot::{Inputs, Slot};
use crate::sandbox::zygote::Zygote;

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
    /// Slots in use that are likely to serve again; of these, those that are likely to be back soon.
    pub lent: usize,
    pub returning: usize,
    /// Runs that are on each set of CPUs: see [`Slot::lane`].
    pub busy: Vec<usize>,
    /// Runs that wait for a slot to become ready, and for room to fork one.
    pub waiting: usize,
    pub forking: usize,
    pub closing: bool,
    pub counts: Counts,
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

    /// A slot that is ready, of a zygote that has a successor; one at a time, while the others serve.
    pub fn outdated(&mut self) -> Option<Slot> {
        let current = Arc::clone(&self.zygote.as_ref()?.zygote);
        let old = self.slots.iter().position(|slot| !slot.is_of(&current)).filter(|_| self.making == 0)?;
        self.slots.remove(old)
    }

    /// A slot that is to be warmed up, now that there are as many as there should be; one at a time. Before, and while runs
    /// wait, it would take longer than it saves.
    pub fn coldest(&mut self) -> Option<Slot> {
        let cold = self.slots.iter().position(|slot| !slot.is_warm()).filter(|_| self.making == 0)?;
        self.slots.remove(cold)
    }
}
