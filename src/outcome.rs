//! How a run ended: one record, the same in JSON, Rust and Python.
//!
//! Filled by the backend from kernel evidence (waitid, cgroup counters, seccomp notifications), never from what the guest
//! says of its own end. Its JSON form is described by `config/outcome.schema.json`.

mod array;
mod decode;
mod enforced;
mod table;
mod value;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use array::{Array, DType, TimeUnit};
pub use decode::{Document, Error, Limits, ScriptError, decode};
pub use enforced::{Cgroup, Enforced, Layer, LayerStatus};
pub use table::{Table, TableError, TableKind};
pub use value::Value;

/// Version of the outcome's schema, its field `schema`.
pub const SCHEMA_VERSION: u32 = 1;

/// How a run ended.
///
/// In JSON `stdout` and `stderr` are text, in which bytes that are not UTF-8 are replaced, and the values are as
/// [`Value::to_json`] writes them; in Rust both are as the guest left them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// [`SCHEMA_VERSION`].
    pub schema: u32,
    /// The run's id, the same in the event log.
    pub id: String,
    /// How it ended.
    pub verdict: Verdict,
    /// The script's exit status; null where it was killed or never ran.
    pub exit_code: Option<i32>,
    /// The number of the signal that killed it.
    pub signal: Option<i32>,
    /// Why it ended so and what can be done, and what JSON could not hold of the values; empty where there is nothing to say.
    pub message: String,
    /// What the script printed.
    #[serde(with = "lossy_text")]
    #[schemars(with = "String")]
    pub stdout: Vec<u8>,
    /// What the script printed to stderr, tracebacks among it.
    #[serde(with = "lossy_text")]
    #[schemars(with = "String")]
    pub stderr: Vec<u8>,
    /// Whether `stdout` was cut at its limit.
    pub stdout_truncated: bool,
    /// Whether `stderr` was cut at its limit.
    pub stderr_truncated: bool,
    /// The script's top-level name `result`.
    pub result: Option<Value>,
    /// The script's top-level name `metrics`.
    pub metrics: Option<Value>,
    /// The script's top-level name `signal`.
    pub signals: Option<Value>,
    /// The script's top-level name `report`.
    pub report: Option<Value>,
    /// The files left in `/output`.
    pub artifacts: Vec<Artifact>,
    /// What ran it; null where nothing ran.
    pub backend: Option<Backend>,
    /// `host`, or the digest of the image.
    pub image: Option<String>,
    /// Every layer of the sandbox.
    pub enforced: Enforced,
    /// Whether it ran with less around it than promised: [`Enforced::degraded`]; false where nothing ran.
    pub degraded: bool,
    /// The system calls that seccomp refused or killed for, harmless probes left out.
    pub violations: Vec<Violation>,
    /// What it used.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// Each backend that was tried before, and why it was left.
    pub attempts: Vec<Attempt>,
    /// What the end was seen by.
    pub ended: Ended,
}

/// A file that a script left in `/output`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Its path below `/output`.
    pub path: String,
    /// Its bytes.
    pub size: u64,
}

/// A system call that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Violation {
    /// Its name.
    pub syscall: String,
    /// How often it was refused.
    pub count: u64,
}

/// What a run used. Null where the backend cannot know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Wall time from the script's first line, in milliseconds.
    pub wall_ms: f64,
    /// CPU time in user mode of all its processes, in milliseconds.
    pub cpu_user_ms: Option<f64>,
    /// CPU time in the kernel of all its processes, in milliseconds.
    pub cpu_system_ms: Option<f64>,
    /// The most memory held at once, in bytes.
    pub peak_memory_bytes: Option<u64>,
    /// The most processes and threads at once.
    pub processes_peak: Option<u64>,
}

/// Where the time of a run went, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Timings {
    /// The check.
    pub check_ms: f64,
    /// Waiting for a free slot.
    pub queue_ms: f64,
    /// From the first namespace to the script's first line.
    pub setup_ms: f64,
    /// The script.
    pub run_ms: f64,
    /// From its end to the outcome.
    pub teardown_ms: f64,
}

/// A backend that was tried and left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// Which.
    pub backend: Backend,
    /// How its attempt ended.
    pub verdict: Verdict,
    /// Why it was left.
    pub why: String,
}

/// What the end of a run was seen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Nothing ran.
    NotStarted,
    /// The main process exited, and the sandbox was seen to be empty.
    Exited,
    /// A signal ended the main process, or the supervisor did, and the sandbox was seen to be empty.
    Killed,
    /// A warm run's answer; its process was killed afterwards and not waited for.
    Answered,
    /// The supervisor lost sight of it.
    Lost,
}

impl Outcome {
    /// An outcome with nothing in it but how it ended; the backend fills in the rest.
    #[must_use]
    pub fn new(id: impl Into<String>, verdict: Verdict) -> Self {
        Self {
            schema: SCHEMA_VERSION,
            id: id.into(),
            verdict,
            exit_code: None,
            signal: None,
            message: String::new(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            stdout_truncated: false,
            stderr_truncated: false,
            result: None,
            metrics: None,
            signals: None,
            report: None,
            artifacts: Vec::new(),
            backend: None,
            image: None,
            enforced: Enforced::default(),
            degraded: false,
            violations: Vec::new(),
            usage: Usage::default(),
            timings: Timings::default(),
            attempts: Vec::new(),
            ended: Ended::NotStarted,
        }
    }

    /// Takes over what the guest handed back, and says in `message` what JSON will not hold of it.
    ///
    /// A document that was over its limit is left to the caller, whose verdict it decides.
    pub fn attach(&mut self, document: Document) {
        let Document { result, metrics, signals, report, notes, error, over_limit: _ } = document;
        if let Some(error) = error {
            self.say(&match error.message.as_str() {
                "" => error.kind,
                message => format!("{}: {message}", error.kind),
            });
        }
        for note in &notes {
            self.say(note);
        }
        for (name, value) in [("result", &result), ("metrics", &metrics), ("signal", &signals), ("report", &report)] {
            match value.as_ref().map_or(0, Value::count_not_finite) {
                0 => {}
                1 => self.say(&format!("{name}: 1 number that is NaN or infinite is null in JSON")),
                count => self.say(&format!("{name}: {count} numbers that are NaN or infinite are null in JSON")),
            }
        }
        (self.result, self.metrics, self.signals, self.report) = (result, metrics, signals, report);
    }

    /// Adds a sentence to `message`.
    pub fn say(&mut self, sentence: &str) {
        if !self.message.is_empty() {
            self.message.push_str("; ");
        }
        self.message.push_str(sentence);
    }

    /// The exit status of `nsbox run`.
    #[must_use]
    pub fn exit_status(&self) -> i32 {
        self.verdict.exit_status(self.exit_code, self.signal)
    }

    /// The JSON Schema of an outcome, as published in `config/outcome.schema.json`.
    #[must_use]
    pub fn json_schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

/// Output as text in JSON, with U+FFFD for what is not UTF-8.
mod lossy_text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        String::deserialize(deserializer).map(String::into_bytes)
    }
}

/// What runs a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Linux namespaces, cgroups and seccomp: full isolation, no daemon.
    Namespace,
    /// A Docker container.
    Docker,
    /// Check, seccomp, Landlock and rlimits on the host's interpreter: weak isolation.
    AstOnly,
    /// No isolation at all; only with `sandbox.enabled: false`.
    Direct,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The script ran to its end and exited with 0.
    Ok,
    /// The script raised, or exited with another status.
    Error,
    /// The wall-time or CPU-time limit ended it.
    Timeout,
    /// The memory limit ended it, or one of its children.
    Oom,
    /// A signal of its own making killed it.
    Signal,
    /// Seccomp killed it.
    Violation,
    /// Output, result or artifacts passed their limit.
    OutputLimit,
    /// The check refused it; nothing ran.
    Rejected,
    /// The sandbox could not start; nothing ran.
    Unavailable,
    /// The caller ended it.
    Cancelled,
    /// The supervisor cannot say whether it ran to its end.
    Lost,
}

impl Verdict {
    /// The exit status of `nsbox run`, from how the script's main process ended.
    #[must_use]
    pub fn exit_status(self, exit_code: Option<i32>, signal: Option<i32>) -> i32 {
        match self {
            Self::Ok => exit_code.unwrap_or(0),
            Self::Error => exit_code.unwrap_or(1),
            Self::Timeout => 124,
            Self::Oom => 137,
            Self::Signal => 128 + signal.unwrap_or(0),
            Self::Violation => 159,
            Self::OutputLimit => 122,
            Self::Rejected => 126,
            Self::Unavailable => 125,
            Self::Cancelled => 130,
            Self::Lost => 121,
        }
    }
}

#[cfg(test)]
#[path = "outcome/outcome_tests.rs"]
mod tests;
