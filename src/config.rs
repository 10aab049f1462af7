//! What a run may use: the resolved configuration, its defaults, and where each value came from.
//!
//! First stage of a run. `config/default.yaml` < the user's file < the environment < command-line flags.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::outcome::{Backend, Verdict};

/// The resolved configuration of one run: every field has a value, nothing is left to guess.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `false` runs the script without any isolation (the old system's `sandbox.enabled: false`).
    pub enabled: bool,
    /// Which backend is asked for.
    pub backend: BackendChoice,
    /// The backends that may take over, in order; empty by default (fail closed).
    pub fallback: Vec<Backend>,
    /// The verdicts that may fall back; `[unavailable]` by default.
    pub fallback_on: Vec<Verdict>,
    /// `host`, the name of an image in the store, or the path of an unpacked root file system.
    pub image: String,
    /// The interpreter of the host image; `None` is the first `python3` on `PATH`.
    pub python: Option<PathBuf>,
    /// Whether the AST check runs before the sandbox.
    pub check: bool,
    /// The check's policy file; `None` is the one built in (`config/policy.yaml`).
    pub policy: Option<PathBuf>,
    /// `default`, `strict`, or the path of a seccomp profile in the OCI format.
    pub seccomp: String,
    /// Whether a run may go on with a required layer replaced by a weaker one.
    pub allow_degraded: bool,
    /// Every limit of a run.
    pub limits: Limits,
    /// Further variables of the guest's environment.
    pub env: BTreeMap<String, String>,
    /// Seed of `random` and `numpy.random`, and of `PYTHONHASHSEED` in a fresh interpreter.
    pub seed: Option<u64>,
    /// Whether a warm interpreter may serve the run.
    pub warm: bool,
    /// The modules that a warm interpreter has imported already.
    pub preload: Vec<String>,
    /// The event log; `None` writes none.
    pub event_log: Option<PathBuf>,
    /// The old system's Docker block.
    pub docker: Docker,
}

/// What `sandbox.backend` may say: one backend by name, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendChoice {
    /// The strongest backend that this machine allows, never a weaker one than `namespace`.
    Auto,
    /// This backend and, but for `fallback`, no other.
    Only(Backend),
}

/// The old system's `sandbox.docker` block: only the image is Docker's alone, its limits are [`Limits`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Docker {
    /// The image that the Docker backend runs.
    pub image: String,
}

/// The limits of a run, each enforced by the kernel or the supervisor. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Memory of all processes together, swap off.
    pub memory: u64,
    /// CPUs, as a share of one: 0.5 is half of one CPU's time.
    pub cpus: f64,
    /// Processes and threads together.
    pub pids: u32,
    /// The private tmpfs behind `/tmp`, `/work` and `/dev/shm`.
    pub disk: u64,
    /// Inodes of that tmpfs.
    pub inodes: u64,
    /// Wall time, from the script's first line.
    pub timeout: Duration,
    /// Wall time of the set-up, before the script's first line.
    pub setup_timeout: Duration,
    /// CPU time of all processes together; `None` is without limit.
    pub cpu_time: Option<Duration>,
    /// Open files of each process.
    pub open_files: u64,
    /// Size of one file; `None` is the disk limit.
    pub file_size: Option<u64>,
    /// Bytes kept of stdout, and of stderr.
    pub output: u64,
    /// Whether a run that passes `output` is killed instead of truncated.
    pub output_kill: bool,
    /// The collected result.
    pub result: u64,
    /// All artifacts together.
    pub artifacts: u64,
}
