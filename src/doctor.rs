//! What this machine allows: each layer of a run tried for real, with the knob that mends what is refused.
//!
//! Beside the way of a run, for `nsbox doctor`. No version number is believed: a whole run is tried first, by the same
//! code as any other, then each layer alone in a throw-away child, so that the one to blame is named. Nothing is left
//! but what any run leaves in the store.

mod cgroup;
mod image;
mod namespace;

use serde::Serialize;

use crate::config::Config;
use crate::outcome::{Outcome, Verdict};
use crate::sandbox::Sandbox;
use crate::sandbox::host::Host;
use crate::sandbox::probe::Prober;

/// What was found, layer by layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of this format: 1.
    pub schema: u32,
    /// The version of nsbox.
    pub nsbox: &'static str,
    /// The kernel's release, for the reader; nothing was concluded from it.
    pub kernel: String,
    /// `allowed`: a run has all its required layers. `degraded`: a run takes `allow_degraded`. `refused`: none works.
    pub run: Status,
    /// That in one line, with the reason.
    pub summary: String,
    /// The layers, in the order in which a run needs them.
    pub layers: Vec<Layer>,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Its name, such as `user_namespace`; stable.
    pub layer: &'static str,
    /// Whether it can be had.
    pub status: Status,
    /// Whether a run without it is degraded.
    pub required: bool,
    /// How that was found out.
    pub tried: String,
    /// What came of it.
    pub found: String,
    /// What mends it, each a way of its own; the first is the narrowest.
    pub knobs: Vec<String>,
}

/// Whether a layer can be had here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As a run wants it.
    Allowed,
    /// In a weaker form.
    Degraded,
    /// Not at all.
    Refused,
    /// Nobody can say: what it stands on is refused.
    Untried,
}

impl Status {
    /// The word for it, as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Degraded => "degraded",
            Self::Refused => "refused",
            Self::Untried => "untried",
        }
    }
}

impl Layer {
    fn allowed(layer: &'static str, tried: impl Into<String>, found: impl Into<String>) -> Self {
        let (tried, found) = (tried.into(), found.into());
        Self { layer, status: Status::Allowed, required: true, tried, found, knobs: Vec::new() }
    }

    fn refused(layer: &'static str, tried: impl Into<String>, found: impl Into<String>, knobs: Vec<String>) -> Self {
        Self { status: Status::Refused, knobs, ..Self::allowed(layer, tried, found) }
    }

    fn untried(layer: &'static str, why: &str) -> Self {
        Self { status: Status::Untried, ..Self::allowed(layer, "not tried", why) }
    }

    fn optional(self) -> Self {
        Self { required: false, ..self }
    }
}

/// Tries everything that a run by `config` needs.
///
/// Takes less than a second, and never fails: what cannot be had is a finding.
#[must_use]
pub fn examine(config: &Config) -> Report {
    let host = Host::read();
    let (run, summary, trial) = try_run(config);
    let (image, image_layers) = image::examine(config, &host);
    let mut layers = Vec::new();
    match Prober::new(&config.limits, &config.seccomp) {
        Ok(prober) => {
            layers.extend(namespace::examine(&prober, image.as_ref(), &host));
            let starts = layers.iter().all(|layer| layer.layer != "user_map" || layer.status == Status::Allowed);
            layers.extend(cgroup::examine(starts.then_some(&prober)));
        }
        Err(error) => {
            layers.push(namespace::unprepared(&error));
            layers.extend(cgroup::examine(None));
        }
    }
    layers.extend(image_layers);
    layers.push(image::docker());
    layers.push(trial);
    Report { schema: 1, nsbox: env!("CARGO_PKG_VERSION"), kernel: host.kernel, run, summary, layers }
}

/// A whole run, first as promised, then with `allow_degraded`.
fn try_run(config: &Config) -> (Status, String, Layer) {
    let tried = "running a script of one line in every layer";
    let why = match trial(config, false) {
        Ok(_) => {
            let summary = "nsbox run works here".to_owned();
            return (
                Status::Allowed,
                summary,
                Layer::allowed("run", tried, "it ran, with every required layer in force"),
            );
        }
        Err(why) => why,
    };
    match trial(config, true) {
        Ok(outcome) => {
            let summary = format!("nsbox run works here, degraded: {}", missing(&outcome));
            let found = format!("without allow_degraded: {why}; with it: the script ran");
            let knobs = vec![
                "mend the layers above".to_owned(),
                "nsbox run --allow-degraded, or allow_degraded: true in the configuration".to_owned(),
            ];
            (
                Status::Degraded,
                summary,
                Layer { status: Status::Degraded, ..Layer::refused("run", tried, found, knobs) },
            )
        }
        // What even a degraded run stumbles over is the obstacle; a missing cgroup comes after it.
        Err(why) => {
            let knobs = vec!["mend the layers above".to_owned()];
            (Status::Refused, format!("nsbox run does not work here: {why}"), Layer::refused("run", tried, why, knobs))
        }
    }
}

/// One run of a script that does nothing.
fn trial(config: &Config, allow_degraded: bool) -> Result<Outcome, String> {
    let config = Config { allow_degraded, ..config.clone() };
    let outcome = Sandbox::new(config).map_err(|error| error.explain())?.run("pass");
    match outcome.verdict {
        Verdict::Ok if allow_degraded || !outcome.degraded => Ok(outcome),
        Verdict::Ok => Err(missing(&outcome)),
        _ => Err(format!("{}{}", outcome.message, String::from_utf8_lossy(&outcome.stderr))),
    }
}

/// The required layers that a run was without.
fn missing(outcome: &Outcome) -> String {
    use crate::outcome::LayerStatus;
    let enforced = &outcome.enforced;
    let layers = [
        ("the memory limit", &enforced.cgroup.memory),
        ("the process limit", &enforced.cgroup.pids),
        ("the CPU limit", &enforced.cgroup.cpu),
        ("rlimits", &enforced.rlimits),
        ("namespaces", &enforced.namespaces),
        ("the user map", &enforced.user_map),
        ("the root", &enforced.root),
        ("capabilities", &enforced.capabilities),
        ("no_new_privs", &enforced.no_new_privs),
        ("seccomp", &enforced.seccomp),
    ];
    let missing = layers.iter().filter(|(_, layer)| layer.status == LayerStatus::Missing);
    let texts: Vec<String> = missing
        .map(|(name, layer)| match &layer.applied {
            Some(weaker) => format!("{name} ({weaker})"),
            None => format!("{name} (nothing in its place)"),
        })
        .collect();
    texts.join(", ")
}
