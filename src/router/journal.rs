//! What a router writes down: the events of one run, each with its iteration.

use serde_json::Value as Json;

use super::route::{Breaker, Change};
use crate::config::duration_text;
use crate::event::{Event, EventType, Log};
use crate::outcome::{Attempt, Backend, Outcome, Verdict};
use crate::stats::word;

/// The events of one run, or of none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Journal<'a> {
    pub log: &'a Log,
    pub iteration: Option<u64>,
}

impl Journal<'_> {
    fn event(self, kind: EventType, backend: impl Into<Option<Backend>>, message: impl Into<String>) -> Event {
        let mut event = Event::new(kind, message);
        (event.iteration_num, event.mode) = (self.iteration, backend.into());
        event
    }

    /// Writes an event of this run, about a backend.
    pub(super) fn say(self, kind: EventType, backend: Backend, message: impl Into<String>) {
        self.log.write(&self.event(kind, backend, message));
    }

    /// The same, with a figure.
    pub(super) fn tell(self, kind: EventType, backend: Backend, message: &str, (name, value): (&str, u64)) {
        self.log.write(&self.event(kind, backend, message).fact(name, value));
    }

    /// The breaker of a backend has changed.
    pub(super) fn breaker(self, backend: Backend, change: &Change, breaker: Breaker, why: &str) {
        let name = word(&backend);
        match change {
            Change::Opened(failures) => {
                let pause = duration_text(breaker.pause);
                let message =
                    format!("{name} has failed {failures} times in a row and is left alone for {pause}: {why}");
                let event = self.event(EventType::SandboxModeFailed, backend, message);
                self.log.write(&event.fact("failures", *failures).fact("pause_ms", milliseconds(breaker)));
            }
            Change::Closed => self.say(EventType::SandboxModeEnabled, backend, format!("{name} can be had again")),
        }
    }

    /// An attempt on one backend was left for another.
    pub(super) fn left(self, id: &str, attempt: &Attempt, next: Backend) {
        let Attempt { backend, verdict, why } = attempt;
        self.log.write(&self.event(failed(*backend, *verdict), *backend, why.as_str()).outcome(id, *verdict));
        let message = format!("{} takes over from {}: {why}", word(&next), word(backend));
        let event = self.event(EventType::FallbackToDirect, next, message).outcome(id, *verdict);
        self.log.write(&event.fact("from", word(backend)));
    }

    /// How the run ended, which was last on `backend`, and each thing that a dashboard counts.
    pub(super) fn close(self, backend: Option<Backend>, outcome: &Outcome) {
        let event = |kind: EventType, message: &str| {
            let event = self.event(kind, outcome.backend, message).outcome(outcome.id.clone(), outcome.verdict);
            event
                .fact("exit_code", outcome.exit_code)
                .fact("signal", outcome.signal)
                .fact("degraded", outcome.degraded)
                .fact("wall_ms", outcome.usage.wall_ms)
                .fact("peak_memory_bytes", outcome.usage.peak_memory_bytes)
                .fact("timings", json(&outcome.timings))
        };
        let (kind, message) = match (outcome.verdict, backend) {
            (Verdict::Rejected, _) => (EventType::CheckRejected, &*outcome.message),
            (Verdict::Ok, _) if !outcome.attempts.is_empty() => {
                (EventType::DirectFallbackSuccess, "the script ran to its end on the backend that took over")
            }
            (Verdict::Ok, Some(backend)) => (succeeded(backend), "the script ran to its end"),
            (verdict, Some(backend)) => (failed(backend, verdict), &*outcome.message),
            (_, None) => (EventType::SandboxModeFailed, &*outcome.message),
        };
        let mut closing = event(kind, message);
        if !outcome.attempts.is_empty() {
            closing = closing.fact("attempts", json(&outcome.attempts));
        }
        self.log.write(&closing);
        if matches!(outcome.verdict, Verdict::Timeout | Verdict::Oom | Verdict::OutputLimit) {
            self.log.write(&event(EventType::LimitExceeded, &outcome.message));
        }
        if !outcome.violations.is_empty() {
            let event = event(EventType::Violation, "seccomp refused system calls");
            self.log.write(&event.fact("violations", json(&outcome.violations)));
        }
    }
}

fn succeeded(backend: Backend) -> EventType {
    match backend {
        Backend::Namespace => EventType::NamespaceExecutionSuccess,
        Backend::Docker => EventType::DockerExecutionSuccess,
        Backend::AstOnly => EventType::AstOnlyExecutionSuccess,
        Backend::Direct => EventType::DirectExecutionSuccess,
    }
}

/// A run that did not end well. Docker's failures are all of one type, as in the old system.
fn failed(backend: Backend, verdict: Verdict) -> EventType {
    match backend {
        Backend::Docker => EventType::DockerExecutionFailed,
        _ if verdict == Verdict::Unavailable => EventType::SandboxModeFailed,
        Backend::Namespace => EventType::NamespaceExecutionFailed,
        Backend::AstOnly => EventType::AstOnlyExecutionFailed,
        Backend::Direct => EventType::DirectExecutionFailed,
    }
}

fn milliseconds(breaker: Breaker) -> u64 {
    u64::try_from(breaker.pause.as_millis()).unwrap_or(u64::MAX)
}

fn json(value: &impl serde::Serialize) -> Json {
    // Everything that is given here has a form in JSON.
    serde_json::to_value(value).unwrap_or_default()
}
