//! Accounts for a run in a container: from pid 1's word and the engine's to the outcome.

use std::path::Path;
use std::time::{Duration, Instant};

use bollard::models::ContainerState;

use super::Error;
use super::channel::Facts;
use super::engine::Engine;
use super::request::ulimits;
use super::watch::Held;
use crate::config::{Config, size_text};
use crate::outcome::{Backend, Cgroup, Enforced, Layer, Outcome, Timings, Usage};
use crate::sandbox::account::{milliseconds, settle};
use crate::sandbox::evidence::{End, Kill};
use crate::sandbox::idmap::GUEST_ID;

/// A run under way.
pub(super) struct Run {
    pub outcome: Outcome,
    pub begun: Instant,
    pub check: Duration,
}

impl Run {
    /// The run is over, and its container gone.
    pub(super) fn close(
        self,
        config: &Config,
        engine: &Engine,
        mut held: Held,
        folder: Option<&Path>,
    ) -> Result<Outcome, Error> {
        let oom = judge(config, engine, &mut held)?;
        let Held { mut evidence, layers, end, staging, .. } = held;
        if let Some(staging) = &staging {
            let opened = staging.open();
            evidence.output = Some(opened.map_err(|source| Error::Step { step: "open the artifacts", source })?);
        }
        let (started, ended) = (evidence.started, evidence.ended);
        let mut outcome = settle(self.outcome, Backend::Docker, config, evidence, oom, folder);
        outcome.image = Some(engine.image.clone());
        outcome.enforced = enforced(config, engine, &layers);
        outcome.degraded = outcome.enforced.degraded();
        let since = |from: Option<Instant>, to: Option<Instant>| {
            milliseconds(to.zip(from).map_or(Duration::ZERO, |(to, from)| to.saturating_duration_since(from)))
        };
        outcome.usage = usage(end.as_ref(), since(started, ended));
        outcome.timings = Timings {
            check_ms: milliseconds(self.check),
            queue_ms: 0.0,
            setup_ms: since(Some(self.begun + self.check), started.or(ended)),
            run_ms: since(started, ended),
            teardown_ms: since(ended, Some(Instant::now())),
        };
        Ok(outcome)
    }
}

/// Puts together how the script ended, by pid 1 and by the engine; whether the kernel killed for want of memory.
fn judge(config: &Config, engine: &Engine, held: &mut Held) -> Result<bool, Error> {
    let status = held.state.exit_code.unwrap_or(-1);
    let oom = held.state.oom_killed == Some(true);
    let evidence = &mut held.evidence;
    if held.garbled {
        return Err(Error::Unknown("the container's stream held what its pid 1 does not write".to_owned()));
    }
    if held.late {
        if evidence.started.is_some() {
            return Err(Error::Unknown("the script began when the set-up was over its time already".to_owned()));
        }
        return Err(Error::SetupTimeout { socket: engine.socket.clone(), limit: config.limits.setup_timeout });
    }
    let Some(facts) = &held.end else {
        // The engine killed it at our word, or the kernel for want of memory.
        if evidence.kill.is_some() || oom {
            return Ok(oom);
        }
        if evidence.started.is_none() {
            return Err(Error::Died { status, said: String::from_utf8_lossy(&held.said).trim().to_owned() });
        }
        return Err(Error::Unknown(format!("the container ended with status {status} before it could tell")));
    };
    let (end, expected) = match (facts.number("exit"), facts.number("signal")) {
        (Some(code), None) => (End::Exited(small(code)), small(code)),
        (None, Some(signal)) => (End::Signalled(small(signal)), 128 + small(signal)),
        _ => return Err(Error::Unknown("the container's pid 1 did not say".to_owned())),
    };
    if ended_otherwise(&held.state, expected) {
        return Err(Error::Unknown(format!(
            "the engine says that the container exited with {status}, its pid 1 that it would with {expected}"
        )));
    }
    evidence.end = Some(end);
    match facts.text("why") {
        "cpu" => drop(evidence.kill.get_or_insert(Kill::CpuTime)),
        "timeout" => drop(evidence.kill.get_or_insert(Kill::Timeout)),
        "gone" if evidence.kill.is_none() => {
            return Err(Error::Unknown("the engine closed the container's standard input".to_owned()));
        }
        _ => {}
    }
    let oom = oom || facts.number("oom_kills").is_some_and(|kills| kills > 0);
    // Whose child the kernel killed may wait for it until the time is over.
    if oom && matches!(evidence.kill, Some(Kill::Timeout | Kill::CpuTime)) {
        evidence.kill = Some(Kill::Memory);
    }
    Ok(oom)
}

fn ended_otherwise(state: &ContainerState, expected: i32) -> bool {
    state.exit_code != Some(i64::from(expected))
}

/// An exit status or a signal's number.
fn small(number: u64) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX).min(255)
}

fn usage(end: Option<&Facts>, wall_ms: f64) -> Usage {
    let number = |name: &str| end.and_then(|facts| facts.number(name));
    let time = |name: &str| number(name).map(|micros| milliseconds(Duration::from_micros(micros)));
    Usage {
        wall_ms,
        cpu_user_ms: time("user_us"),
        cpu_system_ms: time("system_us"),
        peak_memory_bytes: number("memory_peak"),
        // Pid 1 is not the script's.
        processes_peak: number("processes_peak").map(|peak| peak.saturating_sub(1)),
    }
}

/// The layers, as the kernel showed them to pid 1 before the script began; the limits, as the engine took them.
fn enforced(config: &Config, engine: &Engine, seen: &Facts) -> Enforced {
    let layer = |holds: bool, configured: &str, why: &str| {
        if holds { Layer::applied(configured) } else { Layer::missing(configured, why) }
    };
    let limits = &config.limits;
    let [memory, pids, cpu] = engine.limits;
    let limit = |can: bool, value: String| {
        layer(can, &value, "the engine's kernel cannot limit it: docker info says what it lacks")
    };
    let rlimits: Vec<String> = ulimits(limits)
        .into_iter()
        .map(|ulimit| format!("{}={}", ulimit.name.unwrap_or_default().to_uppercase(), ulimit.hard.unwrap_or_default()))
        .collect();
    Enforced {
        namespaces: namespaces(seen),
        user_map: user_map(seen),
        root: layer(
            seen.text("root") == "ro",
            &format!("{}, read-only", engine.image),
            "the kernel says that / can be written to",
        ),
        capabilities: layer(
            ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
                .iter()
                .all(|set| u64::from_str_radix(seen.text(set), 16) == Ok(0)),
            "none in any set, bounding set empty",
            "the kernel shows some",
        ),
        no_new_privs: layer(seen.text("NoNewPrivs") == "1", "set", "the kernel says that it is not"),
        seccomp: Layer {
            why: Some("Docker's engine does not tell which calls were refused: violations stays empty".to_owned()),
            ..layer(seen.text("Seccomp") == "2", &config.seccomp, "the kernel says that there is no filter")
        },
        landlock: Layer::missing("newest ABI", "Docker has none"),
        cgroup: Cgroup {
            version: engine.cgroup,
            memory: limit(memory, size_text(limits.memory)),
            pids: limit(pids, limits.pids.to_string()),
            cpu: limit(cpu, limits.cpus.to_string()),
        },
        rlimits: Layer {
            why: Some("NPROC is left out: without a user namespace it counts over all containers".to_owned()),
            ..Layer::applied(rlimits.join(" "))
        },
        memfd_noexec: layer(
            seen.text("Seccomp") == "2",
            "memfd_create without MFD_NOEXEC_SEAL refused by seccomp",
            "the kernel says that there is no filter",
        ),
    }
}

/// Those that are others than this process's.
fn namespaces(seen: &Facts) -> Layer {
    let is_own = |name: &str| {
        let here = std::fs::read_link(format!("/proc/self/ns/{name}")).ok();
        let there = seen.text(&format!("ns:{name}"));
        !there.is_empty() && here.is_some_and(|here| here.as_os_str() != there)
    };
    let wanted =
        [("mnt", "mount"), ("pid", "pid"), ("net", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")];
    let own = |(name, _): &&(&str, &str)| is_own(name);
    let named: Vec<&str> = wanted.iter().filter(own).map(|(_, shown)| *shown).collect();
    let all: Vec<&str> = wanted.iter().map(|(_, shown)| *shown).collect();
    if named.len() == all.len() {
        return Layer::applied(all.join(", "));
    }
    let applied = Some(named.join(", ")).filter(|list| !list.is_empty());
    Layer { applied, ..Layer::missing(all.join(", "), "the engine shares the others with this process") }
}

fn user_map(seen: &Facts) -> Layer {
    let configured = format!("uid {GUEST_ID} is an id outside that owns nothing");
    let words: Vec<u64> = seen.text("uid_map").split(' ').filter_map(|word| word.parse().ok()).collect();
    let guest = u64::from(GUEST_ID);
    for range in words.chunks_exact(3) {
        let outside = guest.checked_sub(range[0]).filter(|offset| *offset < range[2]).map(|offset| range[1] + offset);
        if let Some(outside) = outside.filter(|outside| *outside != guest) {
            let applied = Some(format!("uid {GUEST_ID} is {outside} outside"));
            return Layer { applied, ..Layer::applied(configured) };
        }
    }
    let why = format!("the engine maps no ids (userns-remap in its daemon.json): uid {GUEST_ID} is {GUEST_ID} outside");
    Layer { applied: Some(format!("uid and gid {GUEST_ID}, no user namespace")), ..Layer::missing(configured, why) }
}
