//! Every key of the configuration: its path, what it takes, how it is read into a [`Config`] and shown from one.
//!
//! One table serves the file, the environment, the flags and `nsbox config show`, so none of them can differ.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::render::word;
use super::unit::{duration_text, size_text};
use super::{BackendChoice, Config, MAY_FALL_BACK, MOST_LOGS_KEPT, Slots};
use crate::outcome::Backend;

mod input;

pub(super) use input::{Input, Raw, Refusal, nearest};

/// One key.
pub(super) struct Key {
    /// Its path, as in `limits.memory`.
    pub path: &'static str,
    /// The key whose value it sets: itself, but for the old system's names.
    pub sets: &'static str,
    /// What it takes, with an example.
    pub expected: &'static str,
    /// Reads a value into a configuration.
    pub read: fn(&mut Config, &Input) -> Result<(), Refusal>,
    /// Shows the value as it is written in a file; old names show nothing.
    pub show: Option<fn(&Config) -> Json>,
}

impl Key {
    const fn new(
        path: &'static str,
        expected: &'static str,
        read: fn(&mut Config, &Input) -> Result<(), Refusal>,
        show: fn(&Config) -> Json,
    ) -> Self {
        Self { path, sets: path, expected, read, show: Some(show) }
    }

    /// A name of the old system's for `sets`; valid in files alone.
    const fn old(
        path: &'static str,
        sets: &'static str,
        expected: &'static str,
        read: fn(&mut Config, &Input) -> Result<(), Refusal>,
    ) -> Self {
        Self { path, sets, expected, read, show: None }
    }
}

/// The key of this path, an old name only where `old` allows it.
pub(super) fn find(path: &str, old: bool) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path && (old || key.show.is_some()))
}

/// The path of the old system's key that means `fallback: [ast-only]`.
pub(super) const FALLBACK_TO_DIRECT: &str = "fallback_to_direct";

/// The sections that keys stand in, as prefixes of their paths.
pub(super) const SECTIONS: [&str; 3] = ["limits.", "docker.", "alerts."];

/// The backends that a run may be given, but for `direct`, which `enabled: false` alone chooses.
const BACKENDS: [Backend; 3] = [Backend::Namespace, Backend::Docker, Backend::AstOnly];

const FLAG: &str = "`true` or `false`";
const TIME: &str = "a duration from 1ms to 8760h with a unit, such as `300s`, `500ms` or `5m`";
const CPUS: &str = "a number of CPUs from 0.01 to 4096, such as `0.5`";
const MEMORY: &str = "a size of at least 16m with a unit, such as `512m` or `2g`";
const SIZE: &str = "a size with a unit, such as `512k` or `16m`, or 0";
const IMAGE: &str = "`host`, the name of an image, or the path of an unpacked root file system";

/// The largest size or count: they go to the kernel as signed numbers.
const MOST: u64 = u64::MAX >> 1;
/// The range of `MEMORY`: below it no interpreter starts.
const MEMORY_RANGE: std::ops::RangeInclusive<u64> = 16 << 20..=MOST;
/// The range of `SIZE`.
const SIZE_RANGE: std::ops::RangeInclusive<u64> = 0..=MOST;

/// All keys, in the order in which they are shown.
pub(super) static KEYS: &[Key] = &[
    Key::new("enabled", FLAG, |c, v| set(&mut c.enabled, v.flag()), |c| json!(c.enabled)),
    Key::new(
        "backend",
        "`auto`, `namespace`, `docker` or `ast-only`",
        |c, v| set(&mut c.backend, backend(v)),
        |c| match c.backend {
            BackendChoice::Auto => json!("auto"),
            BackendChoice::Only(backend) => json!(backend),
        },
    ),
    Key::new(
        "fallback",
        "a list of `namespace`, `docker` and `ast-only`, such as `[docker, ast-only]`, or `[]`",
        |c, v| set(&mut c.fallback, v.choices(&BACKENDS)),
        |c| json!(c.fallback),
    ),
    Key::new(
        "fallback_on",
        "a list of `unavailable`, `timeout` and `lost`, such as `[unavailable]`",
        |c, v| set(&mut c.fallback_on, v.choices(&MAY_FALL_BACK)),
        |c| json!(c.fallback_on),
    ),
    Key::new("image", IMAGE, |c, v| set(&mut c.image, v.name_or_path()), |c| json!(whole(&c.image))),
    Key::new(
        "python",
        "an interpreter, such as `/usr/bin/python3.12` or `python3.12`, or `none`",
        |c, v| set(&mut c.python, v.or_none(|v| v.name_or_path().map(PathBuf::from))),
        |c| json!(c.python.as_ref().map(|python| whole(&python.to_string_lossy()))),
    ),
    Key::new("check", FLAG, |c, v| set(&mut c.check, v.flag()), |c| json!(c.check)),
    Key::new(
        "policy",
        "the path of a policy file, such as `/etc/nsbox/policy.yaml`, or `none` for the one built in",
        |c, v| set(&mut c.policy, v.or_none(Input::path)),
        |c| place(c.policy.as_deref()),
    ),
    Key::new(
        "seccomp",
        "`default`, `strict`, or the path of a profile in the OCI format",
        |c, v| set(&mut c.seccomp, v.name_or_path()),
        |c| json!(whole(&c.seccomp)),
    ),
    Key::new("allow_degraded", FLAG, |c, v| set(&mut c.allow_degraded, v.flag()), |c| json!(c.allow_degraded)),
    Key::new(
        "limits.memory",
        MEMORY,
        |c, v| set(&mut c.limits.memory, v.size(MEMORY_RANGE)),
        |c| json!(size_text(c.limits.memory)),
    ),
    Key::new("limits.cpus", CPUS, |c, v| set(&mut c.limits.cpus, v.number(0.01..=4096.0)), |c| json!(c.limits.cpus)),
    Key::new(
        "limits.pids",
        "a count of processes and threads from 1 to 4194304, such as `64`",
        // The kernel's own PID_MAX_LIMIT.
        |c, v| set(&mut c.limits.pids, v.count(1..=4_194_304)),
        |c| json!(c.limits.pids),
    ),
    Key::new(
        "limits.disk",
        "a size of at least 64k with a unit, such as `64m`",
        // A tmpfs of size 0 is one without a limit; so are its 0 inodes.
        |c, v| set(&mut c.limits.disk, v.size(64 << 10..=MOST)),
        |c| json!(size_text(c.limits.disk)),
    ),
    Key::new(
        "limits.inodes",
        "a count of at least 16, such as `16k` or `20000`",
        |c, v| set(&mut c.limits.inodes, v.count(16..=MOST)),
        |c| json!(c.limits.inodes),
    ),
    Key::new("limits.timeout", TIME, |c, v| set(&mut c.limits.timeout, v.time()), |c| time(c.limits.timeout)),
    Key::new(
        "limits.setup_timeout",
        TIME,
        |c, v| set(&mut c.limits.setup_timeout, v.time()),
        |c| time(c.limits.setup_timeout),
    ),
    Key::new(
        "limits.cpu_time",
        "a duration from 1ms to 8760h with a unit, such as `60s`, or `none`",
        |c, v| set(&mut c.limits.cpu_time, v.or_none(Input::time)),
        |c| c.limits.cpu_time.map_or(Json::Null, time),
    ),
    Key::new(
        "limits.open_files",
        "a count from 16 to 1048576, such as `1024`",
        |c, v| set(&mut c.limits.open_files, v.count(16..=1 << 20)),
        |c| json!(c.limits.open_files),
    ),
    Key::new(
        "limits.file_size",
        "a size with a unit, such as `16m`, or `none` for the disk limit",
        |c, v| set(&mut c.limits.file_size, v.or_none(|v| v.size(SIZE_RANGE))),
        |c| json!(c.limits.file_size.map(size_text)),
    ),
    Key::new(
        "limits.output",
        SIZE,
        |c, v| set(&mut c.limits.output, v.size(SIZE_RANGE)),
        |c| json!(size_text(c.limits.output)),
    ),
    Key::new(
        "limits.output_kill",
        FLAG,
        |c, v| set(&mut c.limits.output_kill, v.flag()),
        |c| json!(c.limits.output_kill),
    ),
    Key::new(
        "limits.result",
        SIZE,
        |c, v| set(&mut c.limits.result, v.size(SIZE_RANGE)),
        |c| json!(size_text(c.limits.result)),
    ),
    Key::new(
        "limits.artifacts",
        SIZE,
        |c, v| set(&mut c.limits.artifacts, v.size(SIZE_RANGE)),
        |c| json!(size_text(c.limits.artifacts)),
    ),
    Key::new(
        "env",
        "names and texts, such as `{TZ: Asia/Taipei}` in a file or `TZ=Asia/Taipei` elsewhere",
        // Each `--env` adds one, so the new ones join those that are there.
        |c, v| v.variables().map(|new| c.env.extend(new)),
        |c| json!(c.env),
    ),
    Key::new(
        "seed",
        "a whole number from 0 to 4294967295, or `none`",
        // What `numpy.random.seed` and `PYTHONHASHSEED` can take.
        |c, v| set(&mut c.seed, v.or_none(|v| v.integer(0..=u64::from(u32::MAX)))),
        |c| json!(c.seed),
    ),
    Key::new("warm", FLAG, |c, v| set(&mut c.warm, v.flag()), |c| json!(c.warm)),
    Key::new(
        "preload",
        "a list of Python modules, such as `[pandas, numpy]`, or `[]`",
        |c, v| set(&mut c.preload, v.modules()),
        |c| json!(c.preload),
    ),
    Key::new(
        "warm_up",
        "`default`, `none`, or the path of a Python script",
        |c, v| set(&mut c.warm_up, v.name_or_path()),
        |c| json!(whole(&c.warm_up)),
    ),
    Key::new(
        "slots",
        "`one-shot` or `restored`",
        |c, v| set(&mut c.slots, v.choice(&[Slots::OneShot, Slots::Restored])),
        |c| json!(c.slots),
    ),
    Key::new(
        "event_log",
        "the path of a file, such as `logs/sandbox_execution.json.log`, or `none`",
        |c, v| set(&mut c.event_log, v.or_none(Input::path)),
        |c| place(c.event_log.as_deref()),
    ),
    Key::new(
        "event_log_max",
        "a size of at least 64k with a unit, such as `64m`, or `none`",
        // Below it, files would come and go with every few lines.
        |c, v| set(&mut c.event_log_max, v.or_none(|v| v.size(64 << 10..=MOST))),
        |c| c.event_log_max.map_or(Json::Null, |max| json!(size_text(max))),
    ),
    Key::new(
        "event_log_keep",
        "a count from 1 to 999, such as `8`",
        |c, v| set(&mut c.event_log_keep, v.count(1..=u64::from(MOST_LOGS_KEPT))),
        |c| json!(c.event_log_keep),
    ),
    Key::new(
        "docker.image",
        "the name of a Docker image, such as `nsbox-sandbox:latest`",
        |c, v| set(&mut c.docker.image, v.string()),
        |c| json!(c.docker.image),
    ),
    Key::new(
        "alerts.fallback_rate",
        "a share from 0 to 1, such as `0.1`",
        |c, v| set(&mut c.alerts.fallback_rate, v.number(0.0..=1.0)),
        |c| json!(c.alerts.fallback_rate),
    ),
    Key::new("alerts.p95", TIME, |c, v| set(&mut c.alerts.p95, v.time()), |c| time(c.alerts.p95)),
    Key::old(FALLBACK_TO_DIRECT, "fallback", FLAG, |c, v| {
        // The other half of what it means is `resolve`'s: it depends on what later sources say.
        set(&mut c.fallback, v.flag().map(|on| if on { vec![Backend::AstOnly] } else { Vec::new() }))
    }),
    Key::old("docker.memory_limit", "limits.memory", MEMORY, |c, v| set(&mut c.limits.memory, v.size(MEMORY_RANGE))),
    Key::old("docker.cpu_count", "limits.cpus", CPUS, |c, v| set(&mut c.limits.cpus, v.number(0.01..=4096.0))),
    Key::old("docker.timeout_seconds", "limits.timeout", "seconds from 0.001 to 31536000, such as `300`", |c, v| {
        set(&mut c.limits.timeout, v.seconds())
    }),
];

fn set<T>(slot: &mut T, value: Result<T, Refusal>) -> Result<(), Refusal> {
    *slot = value?;
    Ok(())
}

fn time(time: std::time::Duration) -> Json {
    json!(duration_text(time))
}

/// A path from the root on: it must mean the same in a file elsewhere.
fn place(path: Option<&Path>) -> Json {
    path.map_or(Json::Null, |path| json!(std::path::absolute(path).as_deref().unwrap_or(path).to_string_lossy()))
}

/// A name as it is, a path from the root on.
fn whole(name: &str) -> Json {
    if name.contains('/') { place(Some(Path::new(name))) } else { json!(name) }
}

fn backend(v: &Input) -> Result<BackendChoice, Refusal> {
    match v.text().as_deref() {
        Ok("auto") => Ok(BackendChoice::Auto),
        Ok("direct") => Err("`direct` has no isolation and is chosen by `enabled: false` alone".into()),
        _ => v.choice(&BACKENDS).map(BackendChoice::Only),
    }
}

/// The names of some choices, for a message.
fn names<T: serde::Serialize>(choices: &[T]) -> Vec<String> {
    choices.iter().map(word).collect()
}
