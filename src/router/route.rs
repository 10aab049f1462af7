//! One backend of a router: made when it is first needed, kept while it serves, left alone for a while when it is dead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ready::Ready;
use crate::config::duration_text;
use crate::outcome::{Backend, Verdict};

/// When a backend that keeps failing is left alone: tried no more, it costs the runs that another takes over no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// Failures in a row after which it is left alone: it could not be had, or a run on it was lost.
    pub failures: u32,
    /// For how long; then one run tries it again.
    pub pause: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 3, pause: Duration::from_secs(30) }
    }
}

/// A backend and its state.
#[derive(Debug)]
pub(super) struct Route {
    pub backend: Backend,
    /// Whether `auto` may choose it where those before it cannot be had.
    pub by_auto: bool,
    /// Whether the configuration lists it to take over.
    pub is_fallback: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ready: Option<Arc<Ready>>,
    /// Runs in a row that it could not serve since it was made.
    troubles: u32,
    /// Failures in a row, for the breaker.
    failures: u32,
    /// When it may be tried again.
    closed_until: Option<Instant>,
    /// Why it could not be had.
    why: String,
}

/// What has changed with the breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// The backend is left alone from now on, after so many failures.
    Opened(u32),
    /// It is back.
    Closed,
}

impl Route {
    pub(super) fn new(backend: Backend, by_auto: bool, is_fallback: bool) -> Self {
        Self { backend, by_auto, is_fallback, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What can panic under the lock, `make`, leaves the state as it was.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backend, made by `make` where there is none; others that want it wait meanwhile.
    pub(super) fn take(
        &self,
        breaker: Breaker,
        make: impl FnOnce() -> Result<Ready, String>,
    ) -> (Result<Arc<Ready>, String>, Option<Change>) {
        let mut state = self.lock();
        if let Some(ready) = &state.ready {
            return (Ok(Arc::clone(ready)), None);
        }
        if let Some(left) = state.closed_until.and_then(|until| until.checked_duration_since(Instant::now())) {
            let (failures, why) = (state.failures, &state.why);
            let left = duration_text(Duration::from_millis(u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)));
            let why = format!("not tried: it has failed {failures} times in a row and is tried again in {left}: {why}");
            return (Err(why), None);
        }
        match make() {
            Ok(ready) => {
                let ready = Arc::new(ready);
                state.ready = Some(Arc::clone(&ready));
                state.troubles = 0;
                (Ok(ready), state.closed_until.take().map(|_| Change::Closed))
            }
            Err(why) => {
                state.why.clone_from(&why);
                (Err(why), state.fail(breaker))
            }
        }
    }

    /// Learns how a run on it ended. One that fails is made anew for the next run; a pool, which mends itself and may only have
    /// been given a script that nobody can serve, when it goes on failing. Of those that were made before it learns no more: many
    /// runs that one engine took with it are one failure.
    pub(super) fn learn(&self, ready: &Arc<Ready>, verdict: Verdict, why: &str, breaker: Breaker) -> Option<Change> {
        let mut state = self.lock();
        if !state.ready.as_ref().is_some_and(|current| Arc::ptr_eq(current, ready)) {
            return None;
        }
        match verdict {
            Verdict::Unavailable | Verdict::Lost => {}
            // Nothing ran, and not for its fault.
            Verdict::Rejected | Verdict::Cancelled => return None,
            _ => {
                (state.troubles, state.failures) = (0, 0);
                return None;
            }
        }
        why.clone_into(&mut state.why);
        state.troubles += 1;
        let change = (verdict == Verdict::Lost).then(|| state.fail(breaker)).flatten();
        let is_spent = state.troubles >= ready.patience() || change.is_some();
        let spent = state.ready.take_if(|_| is_spent);
        drop(state);
        // Its end may take a while.
        drop(spent);
        change
    }

    /// Why it was left, where a choice made before passes it over.
    pub(super) fn why(&self) -> String {
        self.lock().why.clone()
    }

    /// Takes the backend away, for good.
    pub(super) fn close(&self) -> Option<Arc<Ready>> {
        self.lock().ready.take()
    }
}

impl State {
    fn fail(&mut self, breaker: Breaker) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        if self.failures < breaker.failures {
            return None;
        }
        self.closed_until = Some(Instant::now() + breaker.pause);
        Some(Change::Opened(self.failures))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const BREAKER: Breaker = Breaker { failures: 2, pause: Duration::from_secs(3600) };

    fn made(route: &Route) -> Arc<Ready> {
        route.take(BREAKER, || Ok(Ready::Once(Box::default()))).0.unwrap()
    }

    #[test]
    fn runs_that_were_lost_together_are_one_failure() {
        let route = Route::new(Backend::Docker, false, false);
        let (first, same) = (made(&route), made(&route));
        assert!(Arc::ptr_eq(&first, &same), "it is kept");
        assert_eq!(route.learn(&first, Verdict::Lost, "why", BREAKER), None);
        assert_eq!(route.learn(&same, Verdict::Lost, "why", BREAKER), None, "the same engine");
        let second = made(&route);
        assert!(!Arc::ptr_eq(&first, &second), "it is made anew");
        // One that ran on the first and ends well says nothing of the second.
        assert_eq!(route.learn(&same, Verdict::Ok, "", BREAKER), None);
        assert_eq!(route.learn(&second, Verdict::Lost, "why", BREAKER), Some(Change::Opened(2)));
        let (refused, change) = route.take(BREAKER, || unreachable!());
        assert!(refused.unwrap_err().starts_with("not tried: it has failed 2 times in a row") && change.is_none());
    }

    #[test]
    fn run_that_ends_well_closes_the_account() {
        let route = Route::new(Backend::Docker, false, false);
        for _ in 0..5 {
            assert_eq!(route.learn(&made(&route), Verdict::Lost, "why", BREAKER), None);
            assert_eq!(route.learn(&made(&route), Verdict::Error, "", BREAKER), None, "the script's own");
        }
        let rejected = made(&route);
        assert_eq!(route.learn(&rejected, Verdict::Rejected, "", BREAKER), None);
        assert!(Arc::ptr_eq(&rejected, &made(&route)));
    }

    #[test]
    fn one_run_alone_tries_a_backend_again_after_its_pause() {
        let breaker = Breaker { pause: Duration::ZERO, ..BREAKER };
        let route = Route::new(Backend::Docker, false, false);
        let fail = || route.take(breaker, || Err("why".to_owned())).1;
        assert_eq!([fail(), fail(), fail()], [None, Some(Change::Opened(2)), Some(Change::Opened(3))]);
        let (ready, change) = route.take(breaker, || Ok(Ready::Once(Box::default())));
        assert!(ready.is_ok() && change == Some(Change::Closed));
    }
}
