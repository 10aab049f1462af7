//! How a run ended: one record, the same in JSON, Rust and Python.
//!
//! Filled by the backend from kernel evidence (waitid, cgroup counters, seccomp notifications), never from what the guest says of its own end.

mod value;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use value::{Table, Value};

/// Version of the outcome's schema, its field `schema`.
pub const SCHEMA_VERSION: u32 = 1;

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
