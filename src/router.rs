//! Chooses the backend of a run, runs it, and writes down what was decided and how it ended.
//!
//! Fails closed: a backend that was asked for and cannot be had makes the run `unavailable`; nothing takes over that the
//! configuration does not list in `fallback`, and for no verdict that it does not list in `fallback_on`. Each backend is
//! made when it is first needed and kept; one that keeps failing is left alone for a while ([`Breaker`]).

mod journal;
mod lent;
mod ready;
mod route;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::config::{BackendChoice, Config};
use crate::event::{EventType, Log};
use crate::outcome::{Attempt, Backend, Outcome, Verdict};
use crate::sandbox::{Cancel, Script, Watch, milliseconds, unavailable};
use crate::stats::{Statistics, word};
use journal::Journal;
use lent::Lent;
use ready::Ready;
pub use route::Breaker;
use route::Route;

/// Why a router cannot serve any run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Keys that do not go together.
    #[error("the configuration cannot be served: {0}")]
    Conflict(String),
    /// None of the backends can be had.
    #[error("no backend can be had: {0}")]
    NoBackend(String),
}

impl Error {
    /// A stable name of the failure, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Conflict(_) => "router.conflict",
            Self::NoBackend(_) => "router.no-backend",
        }
    }
}

/// Serves any number of runs, from any number of threads; each decision is a line of its log.
///
/// It is made for many runs: by default those on namespaces go through a warm [`Pool`](crate::pool::Pool), which `warm: false`
/// opts out of.
///
/// ```no_run
/// use nsbox::config::Config;
/// use nsbox::event::Log;
/// use nsbox::router::Router;
/// use nsbox::sandbox::Watch;
///
/// let router = Router::new(Config::default(), Log::off());
/// router.prepare()?;
/// let outcome = router.run("metrics = {'sharpe_ratio': 1.5}", Watch::default());
/// println!("{:?} on {:?}, after {:?}", outcome.verdict, outcome.backend, outcome.attempts);
/// println!("{:?}", router.statistics().report(&Default::default()).verdicts);
/// # Ok::<(), nsbox::router::Error>(())
/// ```
#[derive(Debug)]
pub struct Router {
    config: Config,
    log: Log,
    terms: Terms,
    breaker: Breaker,
    /// In the order in which they are tried.
    routes: Vec<Route>,
    /// Which of them `auto` has chosen.
    chosen: AtomicUsize,
    announced: AtomicBool,
    statistics: Mutex<Statistics>,
}

/// What a router is made for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Terms {
    /// A single run: nothing is kept for the next.
    pub once: bool,
    /// Runs at once, if that is known.
    pub jobs: Option<usize>,
}

impl Router {
    /// A router by `config`. Nothing is tried before the first run, or [`Router::prepare`].
    #[must_use]
    pub fn new(config: Config, log: Log) -> Self {
        let routes = routes(&config);
        Self {
            config,
            log,
            terms: Terms::default(),
            breaker: Breaker::default(),
            routes,
            chosen: AtomicUsize::new(0),
            announced: AtomicBool::new(false),
            statistics: Mutex::default(),
        }
    }

    /// For a single run: it is cold, for a pool would not be used again.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.terms.once = true;
        self
    }

    /// For so many runs at once: the size of its pool. Without it, the pool's own.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.terms.jobs = Some(jobs.max(1));
        self
    }

    /// When a backend that keeps failing is left alone; without it, for 30 s after 3 failures in a row.
    #[must_use]
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.breaker = breaker;
        self
    }

    /// Makes the first backend that can be had, so that no run has to wait for it, and says which.
    ///
    /// # Errors
    /// Where there is none that a run could begin on; the configuration, or each backend's reason, a module of `preload` that
    /// cannot be imported by its name.
    pub fn prepare(&self) -> Result<Backend, Error> {
        let journal = Journal { log: &self.log, iteration: None };
        self.announce(journal);
        if let Some(conflict) = self.conflict() {
            return Err(Error::Conflict(conflict));
        }
        let mut reasons = Vec::new();
        let mut at = Some(self.chosen.load(Ordering::Relaxed));
        while let Some((index, route)) = at.and_then(|at| Some((at, self.routes.get(at)?))) {
            match self.take(index, route, journal) {
                Ok(_) => return Ok(route.backend),
                Err(why) => {
                    journal.say(EventType::SandboxModeFailed, route.backend, why.as_str());
                    reasons.push(format!("{}: {why}", word(&route.backend)));
                }
            }
            at = self.next(index, Verdict::Unavailable, false);
        }
        Err(Error::NoBackend(reasons.join("; ")))
    }

    /// Runs one script to its end.
    ///
    /// Never fails: a run that could not begin is an outcome of verdict `unavailable`, whose message says why. Where another
    /// backend takes over, the script begins anew, and `watch` sees the output of each that ran it.
    pub fn run(&self, script: impl Into<Script>, mut watch: Watch<'_>) -> Outcome {
        let mut script = script.into();
        let journal = Journal { log: &self.log, iteration: script.iteration };
        self.announce(journal);
        if let Some(conflict) = self.conflict() {
            return self.close(None, unavailable(&self.config.image, &conflict), journal);
        }
        let stdin = Lent::take(&mut script);
        let mut at = self.chosen.load(Ordering::Relaxed);
        let mut story = Story::default();
        for passed in self.routes.iter().take(at) {
            story.attempts.push(Attempt { backend: passed.backend, verdict: Verdict::Unavailable, why: passed.why() });
        }
        while let Some(route) = self.routes.get(at) {
            let is_last = at + 1 == self.routes.len();
            let given = if is_last { std::mem::take(&mut script) } else { script.again() };
            let once = Watch { sink: watch.sink.as_mut().map(|sink| &mut **sink as _), cancel: watch.cancel.clone() };
            let (outcome, had) = self.attempt(at, route, given.stdin(stdin.lend()), once, journal);
            let outcome = story.name(outcome);
            let cancelled = watch.cancel.as_ref().is_some_and(Cancel::is_cancelled);
            let next = self.next(at, outcome.verdict, had).filter(|_| !cancelled);
            let Some((next, successor)) = next.and_then(|next| Some((next, self.routes.get(next)?))) else {
                return self.close(Some(route.backend), story.end(route.backend, outcome), journal);
            };
            if stdin.is_read() {
                let mut outcome = story.end(route.backend, outcome);
                let (next, from) = (word(&successor.backend), word(&route.backend));
                outcome
                    .say(&format!("{next} does not take over, for {from} has read from the script's standard input"));
                return self.close(Some(route.backend), outcome, journal);
            }
            let id = outcome.id.clone();
            journal.left(&id, story.leave(route.backend, outcome), successor.backend);
            at = next;
        }
        self.close(None, unavailable(&self.config.image, "there is no backend"), journal)
    }

    /// The figures of all its runs so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One run on one backend; whether that could be had.
    fn attempt(
        &self,
        at: usize,
        route: &Route,
        script: Script,
        watch: Watch<'_>,
        journal: Journal<'_>,
    ) -> (Outcome, bool) {
        let begun = Instant::now();
        let ready = match self.take(at, route, journal) {
            Ok(ready) => ready,
            Err(why) => return (unavailable(&self.config.image, &why), false),
        };
        let waited = begun.elapsed();
        let message = format!("{} runs on {}", script.shown(), word(&route.backend));
        journal.say(EventType::ExecutionModeSelected, route.backend, message);
        let mut outcome = ready.run(script, watch, journal);
        outcome.timings.queue_ms += milliseconds(waited);
        if let Some(change) = route.learn(&ready, outcome.verdict, &outcome.message, self.breaker) {
            journal.breaker(route.backend, &change, self.breaker, &outcome.message);
        }
        if matches!(outcome.verdict, Verdict::Unavailable | Verdict::Lost) {
            self.chosen.store(0, Ordering::Relaxed);
        }
        (outcome, true)
    }

    /// A backend, or why it cannot be had; `auto`'s choice is kept until it fails.
    fn take(&self, at: usize, route: &Route, journal: Journal<'_>) -> Result<Arc<Ready>, String> {
        let make = || Ready::make(route.backend, &self.config, self.terms, journal);
        let (taken, change) = route.take(self.breaker, make);
        let why = taken.as_ref().err().map_or("", String::as_str);
        if let Some(change) = &change {
            journal.breaker(route.backend, change, self.breaker, why);
        }
        if route.by_auto {
            self.chosen.store(if taken.is_ok() { at } else { 0 }, Ordering::Relaxed);
        }
        taken
    }

    /// Which backend takes over from another; `had`: whether that could be had.
    fn next(&self, at: usize, verdict: Verdict, had: bool) -> Option<usize> {
        let may_follow =
            |route: &Route| route.by_auto && !had || route.is_fallback && self.config.fallback_on.contains(&verdict);
        self.routes.iter().enumerate().skip(at + 1).find(|(_, route)| may_follow(route)).map(|(index, _)| index)
    }

    fn conflict(&self) -> Option<String> {
        let conflict = self.config.enabled.then(|| self.config.conflict("as configured"));
        conflict.flatten().map(|conflict| format!("`fallback`: {conflict}"))
    }

    /// Says once what the runs are under.
    fn announce(&self, journal: Journal<'_>) {
        if self.announced.swap(true, Ordering::Relaxed) {
            return;
        }
        let Some(first) = self.routes.first() else { return };
        if self.config.enabled {
            let names: Vec<String> = self.routes.iter().map(|route| word(&route.backend)).collect();
            let message = format!("scripts run on {}", names.join(", else on "));
            journal.say(EventType::SandboxModeEnabled, first.backend, message);
        } else {
            let message = "enabled is false: scripts run without any isolation";
            journal.say(EventType::SandboxModeDisabled, first.backend, message);
        }
    }

    fn close(&self, last: Option<Backend>, outcome: Outcome, journal: Journal<'_>) -> Outcome {
        journal.close(outcome.backend.or(last), &outcome);
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner).add_outcome(&outcome);
        outcome
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let journal = Journal { log: &self.log, iteration: None };
        for ready in self.routes.iter().filter_map(Route::close).filter_map(Arc::into_inner) {
            ready.end(journal);
        }
    }
}

/// The backends that `config` names, in the order in which they are tried.
fn routes(config: &Config) -> Vec<Route> {
    if !config.enabled {
        return vec![Route::new(Backend::Direct, false, false)];
    }
    let listed = |backend| config.fallback.contains(&backend);
    let mut routes = match config.backend {
        BackendChoice::Only(backend) => vec![Route::new(backend, false, false)],
        BackendChoice::Auto => {
            let mut routes = vec![Route::new(Backend::Namespace, true, false)];
            // Docker's image cannot be this machine's own.
            if config.image != "host" {
                routes.push(Route::new(Backend::Docker, true, listed(Backend::Docker)));
            }
            routes
        }
    };
    for backend in &config.fallback {
        if routes.iter().all(|route| route.backend != *backend) {
            routes.push(Route::new(*backend, false, true));
        }
    }
    routes
}

/// What came of a run before it ended.
#[derive(Debug, Default)]
struct Story {
    /// The id of its first outcome, which all have.
    id: Option<String>,
    attempts: Vec<Attempt>,
    /// What came of the last backend that did run it, and the place of that among the attempts.
    ran: Option<(usize, Outcome)>,
}

impl Story {
    fn name(&mut self, mut outcome: Outcome) -> Outcome {
        outcome.id.clone_from(self.id.get_or_insert_with(|| outcome.id.clone()));
        outcome
    }

    /// Another backend takes over.
    fn leave(&mut self, backend: Backend, outcome: Outcome) -> &Attempt {
        let attempt = Attempt { backend, verdict: outcome.verdict, why: outcome.message.clone() };
        if outcome.verdict != Verdict::Unavailable {
            self.ran = Some((self.attempts.len(), outcome));
        }
        self.attempts.push(attempt);
        &self.attempts[self.attempts.len() - 1]
    }

    /// None does: the outcome is the last one that something ran for.
    fn end(self, backend: Backend, mut outcome: Outcome) -> Outcome {
        let mut attempts = self.attempts;
        if let (Verdict::Unavailable, Some((place, ran))) = (outcome.verdict, self.ran) {
            attempts.remove(place);
            attempts.push(Attempt { backend, verdict: outcome.verdict, why: outcome.message });
            outcome = ran;
        }
        outcome.attempts = attempts;
        outcome
    }
}
