//! The layers of a sandbox, each with what was configured and what the kernel was seen to hold.
//!
//! Part of the [`Outcome`](super::Outcome), filled by the backend.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How one layer stood during a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Whether it was there.
    pub status: LayerStatus,
    /// What the configuration asks for, as the configuration would write it.
    pub configured: Option<String>,
    /// What was in force, as read back from the kernel where it can be.
    pub applied: Option<String>,
    /// Why the two differ, and what mends it.
    pub why: Option<String>,
}

/// Whether a layer was there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayerStatus {
    /// In force.
    Applied,
    /// Wanted, and not in force, or only replaced by something weaker.
    Missing,
    /// Not wanted of this backend, or by this configuration.
    #[default]
    NotAsked,
}

impl Layer {
    /// A layer in force as it was configured.
    #[must_use]
    pub fn applied(configured: impl Into<String>) -> Self {
        let configured = configured.into();
        Self {
            status: LayerStatus::Applied,
            applied: Some(configured.clone()),
            configured: Some(configured),
            why: None,
        }
    }

    /// A layer that was wanted and is not in force.
    #[must_use]
    pub fn missing(configured: impl Into<String>, why: impl Into<String>) -> Self {
        Self { status: LayerStatus::Missing, configured: Some(configured.into()), applied: None, why: Some(why.into()) }
    }
}

/// Every layer of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Enforced {
    /// The namespaces, by name.
    pub namespaces: Layer,
    /// The map of user and group ids.
    pub user_map: Layer,
    /// The read-only root, pivoted into.
    pub root: Layer,
    /// The capability sets, all empty.
    pub capabilities: Layer,
    /// `no_new_privs`.
    pub no_new_privs: Layer,
    /// The seccomp filter, by profile.
    pub seccomp: Layer,
    /// Landlock, with its ABI. Best effort.
    pub landlock: Layer,
    /// The control group and its limits.
    pub cgroup: Cgroup,
    /// The limits of each process.
    pub rlimits: Layer,
    /// `vm.memfd_noexec` of the sandbox's pid namespace. Best effort.
    pub memfd_noexec: Layer,
}

/// The control group of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cgroup {
    /// 1 or 2; null without a control group.
    pub version: Option<u8>,
    /// The memory limit, swap off.
    pub memory: Layer,
    /// The limit of processes and threads.
    pub pids: Layer,
    /// The limit of CPU time per wall time.
    pub cpu: Layer,
}

impl Enforced {
    /// Turns every layer into one that is missing.
    pub(crate) fn miss_all(&mut self, why: &str) {
        let Self { namespaces, user_map, root, capabilities, no_new_privs, seccomp, landlock, .. } = self;
        let Self { cgroup: Cgroup { memory, pids, cpu, .. }, rlimits, memfd_noexec, .. } = self;
        let walls = [namespaces, user_map, root, capabilities, no_new_privs, seccomp, landlock, memfd_noexec];
        for layer in walls.into_iter().chain([memory, pids, cpu, rlimits]) {
            *layer = Layer::missing(layer.configured.take().unwrap_or_default(), why);
        }
    }

    /// Whether a run with these layers was weaker than promised: a required layer is not in force, or a limit that was asked
    /// for is missing. Landlock and `vm.memfd_noexec` are best effort and do not count.
    #[must_use]
    pub fn degraded(&self) -> bool {
        let walls =
            [&self.namespaces, &self.user_map, &self.root, &self.capabilities, &self.no_new_privs, &self.seccomp];
        let limits = [&self.cgroup.memory, &self.cgroup.pids, &self.cgroup.cpu, &self.rlimits];
        walls.iter().any(|layer| layer.status != LayerStatus::Applied)
            || limits.iter().any(|layer| layer.status == LayerStatus::Missing)
    }
}
