//! What the engine is asked for: a container, with every limit and layer that it can have.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount,
    ResourcesUlimits,
};

use super::engine::{Engine, LABEL};
use crate::config::{Config, Limits};
use crate::image::{HOSTNAME, UID};
use crate::sandbox::{guest, rlimits};

/// What no script needs to see of the kernel and the machine: all that `subset=pid` hides in a sandbox's /proc as far as it
/// tells of the machine, and /sys but for the container's own cgroup, from which its pid 1 reads the counters.
const MASKED: [&str; 51] = [
    "/dev/mqueue",
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/cpuinfo",
    "/proc/crypto",
    "/proc/devices",
    "/proc/diskstats",
    "/proc/driver",
    "/proc/filesystems",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/irq",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/loadavg",
    "/proc/locks",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/partitions",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/schedstat",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/uptime",
    "/proc/version",
    "/proc/vmstat",
    "/proc/zoneinfo",
    "/sys/block",
    "/sys/bus",
    "/sys/class",
    "/sys/dev",
    "/sys/devices",
    "/sys/firmware",
    "/sys/kernel",
    "/sys/module",
    "/sys/power",
];
const READ_ONLY: [&str; 1] = ["/proc/sys"];

/// The body of a request for a container.
pub(super) fn body(
    engine: &Engine,
    config: &Config,
    seccomp: &str,
    name: &str,
    inputs: Vec<Mount>,
    output: bool,
) -> ContainerCreateBody {
    let python = config.python.as_ref().map_or_else(|| "python3".to_owned(), |path| path.display().to_string());
    let (pid, started) = (engine.owner.pid, engine.owner.started);
    let labels = [
        (LABEL, name.to_owned()),
        ("nsbox.supervisor.pid", pid.to_string()),
        ("nsbox.supervisor.started", started.to_string()),
    ];
    let user = format!("{UID}:{UID}");
    ContainerCreateBody {
        hostname: Some(HOSTNAME.to_owned()),
        user: Some(user),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        open_stdin: Some(true),
        // A supervisor that dies closes it, and its container ends.
        stdin_once: Some(true),
        env: Some(environment(engine, config)),
        entrypoint: Some(vec![python]),
        cmd: Some(["-sBu", "-c", guest::CONTAINER].map(str::to_owned).to_vec()),
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        image: Some(engine.image.clone()),
        working_dir: Some("/work".to_owned()),
        network_disabled: Some(true),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
        host_config: Some(host_config(engine, config, seccomp, inputs, output)),
        ..Default::default()
    }
}

fn host_config(engine: &Engine, config: &Config, seccomp: &str, inputs: Vec<Mount>, output: bool) -> HostConfig {
    let limits = &config.limits;
    let memory = i64::try_from(limits.memory).unwrap_or(i64::MAX);
    let list = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    HostConfig {
        memory: Some(memory),
        // Memory and swap together: there is no swap.
        memory_swap: Some(memory),
        nano_cpus: Some(nano_cpus(limits.cpus, engine.cpus)),
        // The container's pid 1 is not the script's.
        pids_limit: Some(i64::from(limits.pids) + 1),
        ulimits: Some(ulimits(limits)),
        // An init of the engine's own would take the place of ours.
        init: Some(false),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        network_mode: Some("none".to_owned()),
        // Private, but without a /dev/shm of the engine's own size.
        ipc_mode: Some("none".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        mounts: Some(inputs),
        tmpfs: Some(tmpfs(limits, output)),
        readonly_rootfs: Some(true),
        privileged: Some(false),
        cap_drop: list(&["ALL"]),
        security_opt: Some(vec!["no-new-privileges".to_owned(), format!("seccomp={seccomp}")]),
        masked_paths: list(&MASKED),
        readonly_paths: list(&READ_ONLY),
        ..Default::default()
    }
}

/// The guest's variables; of the image's own, a name alone takes one away.
fn environment(engine: &Engine, config: &Config) -> Vec<String> {
    let mut variables: HashMap<String, String> = guest::fixed_environment(config)
        .into_iter()
        .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
        .collect();
    variables.extend(config.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    // HOSTNAME is the engine's.
    let foreign = engine.variables.iter().map(String::as_str).chain(["HOSTNAME"]);
    let foreign = foreign.filter(|name| !variables.contains_key(*name)).map(str::to_owned).collect::<Vec<_>>();
    foreign.into_iter().chain(variables.iter().map(|(name, value)| format!("{name}={value}"))).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "the config bounds cpus")]
fn nano_cpus(cpus: f64, available: Option<f64>) -> i64 {
    (cpus.min(available.unwrap_or(cpus)) * 1e9) as i64
}

/// Those of a sandbox but for that of processes, which is counted over all containers of one user.
pub(super) fn ulimits(limits: &Limits) -> Vec<ResourcesUlimits> {
    let limits = rlimits::of(limits).into_iter().filter(|limit| limit.name != "NPROC");
    let ulimit = |limit: rlimits::Rlimit| {
        let value = i64::try_from(limit.configured).unwrap_or(i64::MAX);
        ResourcesUlimits { name: Some(limit.name.to_lowercase()), soft: Some(value), hard: Some(value) }
    };
    limits.map(ulimit).collect()
}

/// The writable folders. An engine cannot bind one tmpfs in three places, as a sandbox does: each has a part of the disk limit
/// and its inodes, and all together no more than that.
fn tmpfs(limits: &Limits, output: bool) -> HashMap<String, String> {
    let options = |bytes: u64, inodes: u64, mode: &str| {
        format!("rw,noexec,nosuid,nodev,size={bytes},nr_inodes={inodes},mode={mode},uid={UID},gid={UID}")
    };
    // Of 0 the kernel makes no limit at all.
    let part = |whole: u64, parts: u64| (whole / parts).max(1);
    let mut folders: HashMap<String, String> = [("/tmp", "1777", 2), ("/work", "0755", 4), ("/dev/shm", "1777", 4)]
        .map(|(folder, mode, parts)| {
            (folder.to_owned(), options(part(limits.disk, parts), part(limits.inodes, parts), mode))
        })
        .into();
    if output {
        folders.insert("/output".to_owned(), options(limits.artifacts, limits.inodes, "0755"));
    }
    folders
}
