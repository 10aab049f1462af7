//! Which CPUs a run is on: each has as many as its limit, so that libraries which count them start as many threads as can run.
//!
//! Sets of CPUs that have none in common are lanes. A pool keeps its slots on all of them alike, and gives a run one where no
//! other run is. See sched_setaffinity(2).

use std::sync::{Arc, Mutex, PoisonError};

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu};
use nix::unistd::Pid;

use super::plan::{Arg, Plan};

/// The CPUs of this process, as lanes of so many as one run may have.
#[derive(Debug, Clone)]
pub(crate) struct Lanes {
    cpus: Vec<usize>,
    width: usize,
}

impl Lanes {
    /// Those for runs that may have `cpus` CPUs.
    pub(crate) fn of(cpus: f64) -> Self {
        let allowed = sched_getaffinity(Pid::from_raw(0)).ok();
        let is_allowed = |cpu: &usize| allowed.is_some_and(|allowed| allowed.is_set(*cpu).unwrap_or(false));
        Self { cpus: (0..CpuSet::count()).filter(is_allowed).collect(), width: processors(cpus) }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        (self.cpus.len() / self.width).max(1)
    }

    /// Whether a run is kept from some of the CPUs.
    fn divides(&self) -> bool {
        self.width < self.cpus.len()
    }

    /// The lane of the CPU that the calling thread is on; none where runs are on any.
    pub(crate) fn here(&self) -> Option<usize> {
        let cpu = sched_getcpu().ok().filter(|_| self.divides())?;
        Some(self.cpus.iter().position(|other| *other == cpu)? / self.width)
    }

    /// Plans that all that follows is on the CPUs of one lane. Numbers beyond the last begin anew.
    pub(crate) fn plan(&self, plan: &mut Plan, number: usize) {
        if !self.divides() {
            return;
        }
        let mut mask = [0_u8; 128];
        for i in 0..self.width {
            let cpu = self.cpus[number.wrapping_mul(self.width).wrapping_add(i) % self.cpus.len()];
            mask[cpu / 8] |= 1 << (cpu % 8);
        }
        let args = [Arg::Value(0), Arg::Value(mask.len() as u64), Arg::Bytes(&mask)];
        plan.call("set the CPU affinity", libc::SYS_sched_setaffinity, &args);
    }
}

/// How many CPUs the guest's libraries should count on.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the config bounds cpus")]
pub(crate) fn processors(cpus: f64) -> usize {
    cpus.ceil().max(1.0) as usize
}

/// A slot's place on a lane; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    /// Which lane.
    pub lane: usize,
    taken: Arc<Mutex<Vec<usize>>>,
}

/// How many slots are on each lane.
#[derive(Debug)]
pub(crate) struct Places(Arc<Mutex<Vec<usize>>>);

impl Places {
    pub(crate) fn on(lanes: &Lanes) -> Self {
        Self(Arc::new(Mutex::new(vec![0; lanes.count()])))
    }

    /// A place where the fewest slots are.
    pub(crate) fn take(&self) -> Place {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = (0..taken.len()).min_by_key(|lane| taken[*lane]).unwrap_or(0);
        taken.get_mut(lane).into_iter().for_each(|slots| *slots += 1);
        Place { lane, taken: Arc::clone(&self.0) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.get_mut(self.lane).into_iter().for_each(|slots| *slots -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_spread_and_given_back() {
        let places = Places::on(&Lanes { cpus: vec![0, 2, 3, 5, 7], width: 2 });
        let [first, second, third] = std::array::from_fn(|_| places.take());
        assert_eq!([first.lane, second.lane, third.lane], [0, 1, 0]);
        drop(second);
        assert_eq!(places.take().lane, 1);
        drop((first, third));
        assert_eq!(places.take().lane, 0);
    }

    #[test]
    fn run_of_all_cpus_is_on_any() {
        let lanes = Lanes { cpus: vec![0, 1], width: 2 };
        assert_eq!((lanes.count(), lanes.here()), (1, None));
        assert_eq!(Lanes { cpus: Vec::new(), width: 1 }.count(), 1);
    }
}
