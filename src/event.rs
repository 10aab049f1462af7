//! The event log: one JSON line for each decision, whole and in order, from however many processes.
//!
//! Last stage of a run; the router, the pool and the command write to it, `nsbox stats` reads it.

mod log;
mod rotate;

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::outcome::{Backend, Verdict};

pub use log::{Error, Log};
pub(crate) use rotate::{is_at, open_all};

/// How grave an event is; the names are those of Python's `logging`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// For whoever looks for a fault.
    Debug,
    /// As it should be.
    Info,
    /// It went on, but not as asked for.
    Warning,
    /// It did not go on.
    Error,
}

/// What happened. The first nine are the old system's, for the dashboards that read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventType {
    /// The sandbox is on.
    SandboxModeEnabled,
    /// The sandbox is off (`enabled: false`).
    SandboxModeDisabled,
    /// The sandbox is on but cannot be had.
    SandboxModeFailed,
    /// A backend was chosen for a run.
    ExecutionModeSelected,
    /// A run in Docker ended well.
    DockerExecutionSuccess,
    /// A run in Docker did not.
    DockerExecutionFailed,
    /// A weaker backend takes over.
    FallbackToDirect,
    /// The run on it ended well.
    DirectFallbackSuccess,
    /// What a Docker run left was removed.
    DockerCleanup,
    /// A run in namespaces ended well.
    NamespaceExecutionSuccess,
    /// A run in namespaces did not.
    NamespaceExecutionFailed,
    /// A run of the `ast-only` backend ended well.
    AstOnlyExecutionSuccess,
    /// A run of it did not.
    AstOnlyExecutionFailed,
    /// A run without isolation (`enabled: false`) ended well.
    DirectExecutionSuccess,
    /// A run without isolation did not.
    DirectExecutionFailed,
    /// The check refused a script.
    CheckRejected,
    /// A limit ended a run.
    LimitExceeded,
    /// Seccomp refused or killed.
    Violation,
    /// A pool came up.
    PoolStarted,
    /// A pool went down.
    PoolStopped,
    /// A pool replaced an interpreter.
    PoolRecycled,
    /// A pool could not do what it was asked.
    PoolFailed,
}

impl EventType {
    /// The grade that an event of this type has, if nothing else is known of it.
    #[must_use]
    pub fn level(self) -> Level {
        match self {
            Self::SandboxModeFailed | Self::PoolFailed => Level::Error,
            Self::SandboxModeDisabled
            | Self::DockerExecutionFailed
            | Self::NamespaceExecutionFailed
            | Self::AstOnlyExecutionFailed
            | Self::DirectExecutionFailed
            | Self::FallbackToDirect
            | Self::CheckRejected
            | Self::LimitExceeded
            | Self::Violation => Level::Warning,
            Self::DockerCleanup | Self::PoolRecycled => Level::Debug,
            _ => Level::Info,
        }
    }

    /// Whether it can be the one event that closes a run, which has the outcome's id, verdict and `timings`. What else is
    /// said of a run never is; an attempt that another backend takes over from has no `timings`.
    #[must_use]
    pub fn closes_run(self) -> bool {
        !matches!(self, Self::LimitExceeded | Self::Violation | Self::FallbackToDirect)
    }
}

/// One line of the log.
///
/// ```
/// use nsbox::event::{Event, EventType};
/// use nsbox::outcome::Backend;
///
/// let event = Event::new(EventType::NamespaceExecutionSuccess, "strategy_7.py ran to its end")
///     .iteration(7)
///     .mode(Backend::Namespace)
///     .fact("wall_ms", 12.5);
/// assert!(serde_json::to_string(&event)?.contains(r#""event_type":"namespace_execution_success""#));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, in UTC to the microsecond: `2026-01-31T12:00:00.000001Z`.
    #[serde(serialize_with = "microseconds")]
    pub timestamp: Timestamp,
    /// How grave.
    pub level: Level,
    /// Who says so: `nsbox`, or a part of it such as `nsbox.pool`.
    pub logger: Cow<'static, str>,
    /// What happened, for people.
    pub message: String,
    /// What happened, for programs.
    pub event_type: EventType,
    /// The loop's iteration; none outside a loop.
    pub iteration_num: Option<u64>,
    /// The backend that it is about.
    pub mode: Option<Backend>,
    /// The outcome's `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The outcome's `verdict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Further facts and figures, under the outcome's own names (`wall_ms`, `peak_memory_bytes`). One that bears the name of a
    /// field above is not written: a line never has a key twice.
    #[serde(flatten, serialize_with = "without_fields")]
    pub facts: Map<String, Value>,
}

impl Event {
    /// An event of now, by `nsbox`, of its type's own grade.
    #[must_use]
    pub fn new(event_type: EventType, message: impl Into<String>) -> Self {
        Self {
            timestamp: Timestamp::now(),
            level: event_type.level(),
            logger: Cow::Borrowed("nsbox"),
            message: message.into(),
            event_type,
            iteration_num: None,
            mode: None,
            id: None,
            verdict: None,
            facts: Map::new(),
        }
    }

    /// In this iteration of a loop.
    #[must_use]
    pub fn iteration(mut self, number: u64) -> Self {
        self.iteration_num = Some(number);
        self
    }

    /// On this backend.
    #[must_use]
    pub fn mode(mut self, backend: Backend) -> Self {
        self.mode = Some(backend);
        self
    }

    /// About the outcome with this id.
    #[must_use]
    pub fn outcome(mut self, id: impl Into<String>, verdict: Verdict) -> Self {
        self.id = Some(id.into());
        self.verdict = Some(verdict);
        self
    }

    /// With this fact.
    #[must_use]
    pub fn fact(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.facts.insert(name.into(), value.into());
        self
    }
}

/// Names that facts cannot take.
const FIELDS: [&str; 9] =
    ["timestamp", "level", "logger", "message", "event_type", "iteration_num", "mode", "id", "verdict"];

fn microseconds<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

fn without_fields<S: serde::Serializer>(facts: &Map<String, Value>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(facts.iter().filter(|(name, _)| !FIELDS.contains(&name.as_str())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn event_is_one_object_with_the_old_fields() {
        let mut event = Event::new(EventType::FallbackToDirect, "docker is gone\n\"really\"")
            .iteration(3)
            .mode(Backend::AstOnly)
            .outcome("01J", Verdict::Unavailable)
            .fact("wall_ms", 1.5);
        event.timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"timestamp":"2026-01-31T12:00:00.000000Z","level":"WARNING","logger":"nsbox","#.to_owned()
                + r#""message":"docker is gone\n\"really\"","event_type":"fallback_to_direct","iteration_num":3,"#
                + r#""mode":"ast-only","id":"01J","verdict":"unavailable","wall_ms":1.5}"#,
        );
    }

    #[test]
    fn event_type_keeps_the_old_names() {
        for (event_type, name) in [
            (EventType::SandboxModeEnabled, "sandbox_mode_enabled"),
            (EventType::SandboxModeDisabled, "sandbox_mode_disabled"),
            (EventType::SandboxModeFailed, "sandbox_mode_failed"),
            (EventType::ExecutionModeSelected, "execution_mode_selected"),
            (EventType::DockerExecutionSuccess, "docker_execution_success"),
            (EventType::DockerExecutionFailed, "docker_execution_failed"),
            (EventType::FallbackToDirect, "fallback_to_direct"),
            (EventType::DirectFallbackSuccess, "direct_fallback_success"),
            (EventType::DockerCleanup, "docker_cleanup"),
        ] {
            assert_eq!(serde_json::to_value(event_type).unwrap(), name);
        }
    }

    #[test]
    fn fact_never_shadows_a_field() {
        let event = Event::new(EventType::DockerCleanup, "m").fact("message", "forged").fact("id", "forged");
        let line = serde_json::to_string(&event).unwrap();
        assert!(!line.contains("forged"), "{line}");
    }

    #[test]
    fn event_reads_back() {
        let mut event = Event::new(EventType::PoolStarted, "m").fact("slots", 4);
        // The line holds microseconds, the clock gives nanoseconds.
        event.timestamp = "2026-01-31T12:00:00.123456Z".parse().unwrap();
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }
}
