//! What a run may use: the resolved configuration, its defaults, and where each value came from.
//!
//! First stage of a run. `config/default.yaml` < the user's file < the environment < command-line flags. The file is the
//! one named by `--config` or `NSBOX_CONFIG`: nothing is ever read because it lies in the current folder.

mod error;
mod expand;
mod file;
mod key;
mod render;
mod resolve;
mod unit;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::outcome::{Backend, Verdict};

pub use error::Error;
pub use expand::ExpandError;
pub use resolve::{Origin, Resolved, Resolver};
pub use unit::{UnitError, parse_count, parse_duration, parse_size};
pub(crate) use unit::{duration_text, size_text};

/// The most rotated files of the event log that are ever kept, so the most that are looked for.
pub(crate) const MOST_LOGS_KEPT: u32 = 999;

/// The verdicts that may fall back at all: those of a run that never began, or whose end is not the script's own.
pub(crate) const MAY_FALL_BACK: [Verdict; 3] = [Verdict::Unavailable, Verdict::Timeout, Verdict::Lost];

/// The built-in configuration as a file with a comment on every key; [`Config::default`] is what it says.
pub const DEFAULT_YAML: &str = include_str!("../config/default.yaml");

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
    /// `default`, `none`, or the path of a script that a warm interpreter runs before a request comes.
    pub warm_up: String,
    /// How often a slot of the pool serves.
    pub slots: Slots,
    /// The event log; `None` writes none.
    pub event_log: Option<PathBuf>,
    /// The size of the event log's file, in bytes, at which it is rotated; `None` never is.
    pub event_log_max: Option<u64>,
    /// How many rotated files of the event log are kept.
    pub event_log_keep: u32,
    /// The old system's Docker block.
    pub docker: Docker,
    /// When statistics over runs raise an alert.
    pub alerts: Alerts,
}

/// What `sandbox.backend` may say: one backend by name, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendChoice {
    /// `namespace` where this machine allows it; else `docker`, where the image is none of this machine's own (`host`). Never
    /// `ast-only`.
    Auto,
    /// This backend and, but for `fallback`, no other.
    Only(Backend),
}

/// How often a slot of the pool serves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slots {
    /// Once: each run is a fresh fork in fresh namespaces.
    #[default]
    OneShot,
    /// Again and again, as long as its runs leave nothing but memory behind, which is put back to what it was. Far less CPU
    /// time for each run; the namespaces, the cgroup and the process are the same for all of a slot's runs.
    Restored,
}

/// The old system's `sandbox.docker` block: only the image is Docker's alone, its limits are [`Limits`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Docker {
    /// The image that the Docker backend runs.
    pub image: String,
}

/// The thresholds over which statistics raise an alert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alerts {
    /// Share of runs that fell back to another backend, from 0 to 1.
    pub fallback_rate: f64,
    /// 95th percentile of a run's whole time.
    pub p95: Duration,
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

impl Config {
    /// Why `fallback` and `fallback_on` do not go together with the other keys, which are each valid alone; `origin` says
    /// where the image was named.
    pub(crate) fn conflict(&self, origin: &str) -> Option<String> {
        if self.fallback.contains(&Backend::Docker) && self.image == "host" {
            return Some(format!(
                "`docker` cannot take over from `image: host` ({origin}), whose Python and libraries are not in \
                 `docker.image`; name an image that both can run, or leave `docker` out",
            ));
        }
        if self.fallback.contains(&Backend::Direct) {
            return Some("`direct` has no isolation and is chosen by `enabled: false` alone".to_owned());
        }
        if let Some(verdict) = self.fallback_on.iter().find(|verdict| !MAY_FALL_BACK.contains(verdict)) {
            let verdict = render::word(verdict);
            return Some(format!("`{verdict}` is the script's own, so no other backend may run it again"));
        }
        match self.backend {
            BackendChoice::Only(backend) if self.fallback.contains(&backend) => {
                Some("the backend itself is in the list of those that take over from it; leave it out".to_owned())
            }
            BackendChoice::Auto if self.fallback.contains(&Backend::Namespace) => {
                Some("`namespace` is what `backend: auto` tries anyway; leave it out".to_owned())
            }
            _ => None,
        }
    }
}

// Written out, not parsed from `DEFAULT_YAML`: a cold run resolves its configuration in microseconds. A test holds both equal.
impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            backend: BackendChoice::Auto,
            fallback: Vec::new(),
            fallback_on: vec![Verdict::Unavailable],
            image: "host".to_owned(),
            python: None,
            check: true,
            policy: None,
            seccomp: "default".to_owned(),
            allow_degraded: false,
            limits: Limits::default(),
            env: BTreeMap::new(),
            seed: None,
            warm: true,
            preload: vec!["pandas".to_owned(), "numpy".to_owned()],
            warm_up: "default".to_owned(),
            slots: Slots::OneShot,
            event_log: Some(PathBuf::from("logs/sandbox_execution.json.log")),
            event_log_max: Some(64 << 20),
            event_log_keep: 8,
            docker: Docker::default(),
            alerts: Alerts::default(),
        }
    }
}

impl Default for Docker {
    fn default() -> Self {
        Self { image: "nsbox-sandbox:latest".to_owned() }
    }
}

impl Default for Alerts {
    fn default() -> Self {
        Self { fallback_rate: 0.1, p95: Duration::from_secs(10) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 2 << 30,
            cpus: 0.5,
            pids: 64,
            disk: 64 << 20,
            inodes: 16 << 10,
            timeout: Duration::from_secs(300),
            setup_timeout: Duration::from_secs(30),
            cpu_time: None,
            open_files: 1024,
            file_size: None,
            output: 1 << 20,
            output_kill: false,
            result: 16 << 20,
            artifacts: 64 << 20,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn default_yaml_says_what_default_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("default.yaml");
        std::fs::write(&path, DEFAULT_YAML).unwrap();
        let mut resolved = Resolver::new().file(&path).resolve().unwrap();
        // Paths in a file count from its folder; the built-in one counts from the current folder.
        let log = resolved.config.event_log.take().unwrap();
        resolved.config.event_log = Some(log.strip_prefix(folder.path()).unwrap().to_path_buf());
        assert_eq!(resolved.config, Config::default());
        assert!(resolved.warnings.is_empty());
    }

    #[test]
    fn default_yaml_sets_every_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("default.yaml");
        std::fs::write(&path, DEFAULT_YAML).unwrap();
        for (key, origin) in Resolver::new().file(&path).resolve().unwrap().origins() {
            let Origin::File { line, .. } = origin else { panic!("{key} is not in default.yaml") };
            let text = DEFAULT_YAML.lines().nth(line - 1).unwrap().trim();
            let name = key.rsplit('.').next().unwrap();
            assert!(text.starts_with(&format!("{name}:")), "{key} is said to be at `{text}`");
        }
    }
}
