//! Chooses the backend of a run, runs it, and writes down what was decided and how it ended.
//!
//! Fails closed: a backend that was asked for and cannot be had makes the run `unavailable`; nothing weaker takes over.

use crate::config::{BackendChoice, Config};
use crate::event::{Event, EventType, Log};
use crate::outcome::{Backend, Outcome, Verdict};
use crate::sandbox::{Sandbox, Script, Watch, unavailable};

/// Serves any number of runs, from any number of threads; each decision is a line of its log.
#[derive(Debug)]
pub struct Router {
    config: Config,
    log: Log,
}

impl Router {
    /// A router by `config`. Nothing is tried before the first run.
    #[must_use]
    pub fn new(config: Config, log: Log) -> Self {
        Self { config, log }
    }

    /// Runs one script to its end.
    ///
    /// Never fails: a run that could not begin is an outcome of verdict `unavailable`, whose message says why.
    pub fn run(&self, script: Script, watch: Watch<'_>) -> Outcome {
        let backend = match choose(&self.config) {
            Ok(backend) => backend,
            Err(why) => return record(unavailable(&self.config.image, &why), &self.log),
        };
        let event = Event::new(EventType::ExecutionModeSelected, format!("{} runs on namespaces", script.shown()))
            .mode(backend);
        self.log.write(&event);
        record(Sandbox::run_once(self.config.clone(), script, watch), &self.log)
    }
}

/// The backend that the configuration asks for, if this version has it.
fn choose(config: &Config) -> Result<Backend, String> {
    if !config.enabled {
        return Err(
            "enabled is false, which asks for a run without isolation: this version has none; set enabled: true"
                .to_owned(),
        );
    }
    match config.backend {
        BackendChoice::Auto | BackendChoice::Only(Backend::Namespace) => Ok(Backend::Namespace),
        BackendChoice::Only(other) => {
            let name = serde_json::to_string(&other).unwrap_or_default();
            Err(format!("this version has no backend {name}: set backend: namespace"))
        }
    }
}

/// Writes the outcome's events: how the run ended, and each thing that a dashboard counts.
fn record(outcome: Outcome, log: &Log) -> Outcome {
    let event = |kind: EventType, message: &str| {
        let mut event = Event::new(kind, message).outcome(outcome.id.clone(), outcome.verdict);
        event.mode = outcome.backend;
        event
            .fact("exit_code", outcome.exit_code)
            .fact("signal", outcome.signal)
            .fact("degraded", outcome.degraded)
            .fact("wall_ms", outcome.usage.wall_ms)
            .fact("peak_memory_bytes", outcome.usage.peak_memory_bytes)
            .fact("timings", serde_json::to_value(outcome.timings).unwrap_or_default())
    };
    match outcome.verdict {
        Verdict::Rejected => log.write(&event(EventType::CheckRejected, &outcome.message)),
        Verdict::Unavailable => log.write(&event(EventType::SandboxModeFailed, &outcome.message)),
        Verdict::Ok => log.write(&event(EventType::NamespaceExecutionSuccess, "the script ran to its end")),
        _ => log.write(&event(EventType::NamespaceExecutionFailed, &outcome.message)),
    }
    if matches!(outcome.verdict, Verdict::Timeout | Verdict::Oom | Verdict::OutputLimit) {
        log.write(&event(EventType::LimitExceeded, &outcome.message));
    }
    if !outcome.violations.is_empty() {
        let calls = serde_json::to_value(&outcome.violations).unwrap_or_default();
        log.write(&event(EventType::Violation, "seccomp refused system calls").fact("violations", calls));
    }
    outcome
}
