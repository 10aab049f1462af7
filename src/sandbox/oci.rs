//! A run as the `config.json` of an OCI runtime: the same command line, environment, mounts, limits and filter, from the
//! same data, for those who read that format or want to compare.
//!
//! What the format cannot say: `/tmp`, `/work` and `/dev/shm` are one tmpfs under one limit in a run and three here; a
//! run's Landlock rules, its CPU affinity and init are not here. The runner takes three descriptors, as the annotation
//! tells: `crun run --preserve-fds 3`. See <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md>.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxIdMapping, LinuxIdMappingBuilder,
    LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimit, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    UserBuilder, get_default_maskedpaths, get_default_readonly_paths,
};
use serde_json::json;

use super::cgroup::CPU_PERIOD_US;
use super::idmap::GUEST_ID;
use super::mounts::{self, Bind, View};
use super::script::Script;
use super::seccomp::Profile;
use super::{Error, Sandbox, guest, rlimits};
use crate::config::Limits;
use crate::image::HOSTNAME;
use crate::sys::mount::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};

/// The oldest version of the format that has all of it; old runtimes refuse newer ones.
const VERSION: &str = "1.0.2";
/// What a tmpfs of the guest's is mounted with; it belongs to the guest's user.
const WRITABLE: [&str; 3] = ["nosuid", "nodev", "noexec"];
const NAMESPACES: [LinuxNamespaceType; 7] = [
    LinuxNamespaceType::User,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Cgroup,
];
/// Tells who starts it what the runner needs.
const DESCRIPTORS: (&str, &str) = (
    "io.github.nsbox.descriptors",
    "3: the script, a memfd; 4: an empty memfd for the result; 5: a pipe that tells the script's start",
);

impl Sandbox {
    /// What [`Sandbox::run`] would do with `script`, as an OCI runtime's `config.json`. Nothing is run.
    ///
    /// # Errors
    /// An input that cannot be opened, a profile that cannot be read, or a path or argument that is not UTF-8.
    pub fn spec(&self, script: &Script) -> Result<Spec, Error> {
        let ids = self.ids.of_this_thread();
        let view = self.view(&script.inputs, script.artifacts.is_some(), ids)?;
        let file = guest::script_path(&script.name);
        if !script.values.is_empty() {
            let why =
                "a config.json has no place for inputs that are values: describe the run with files in their place";
            return Err(Error::Unsupported(why.to_owned()));
        }
        let command = self.command(&file, &script.args, &script.inputs, false);
        let profile = Profile::named(&self.config.seccomp)?;
        let linux = LinuxBuilder::default()
            .uid_mappings([mapping(ids.0)?])
            .gid_mappings([mapping(ids.1)?])
            .resources(resources(&self.config.limits)?)
            .namespaces(namespaces()?)
            .seccomp(profile.oci()?)
            .masked_paths(get_default_maskedpaths())
            .readonly_paths(get_default_readonly_paths())
            .build()?;
        let spec = SpecBuilder::default()
            .version(VERSION)
            .hostname(HOSTNAME)
            .root(RootBuilder::default().path(view.root.source()).readonly(true).build()?)
            .process(self.process(&command)?)
            .mounts(view_mounts(&view)?)
            .linux(linux)
            .annotations(HashMap::from([(DESCRIPTORS.0.to_owned(), DESCRIPTORS.1.to_owned())]))
            .build()?;
        Ok(spec)
    }

    fn process(&self, command: &guest::Command<'_>) -> Result<Process, Error> {
        let limits = rlimits::of(&self.config.limits);
        let limits = limits.iter().map(|limit| {
            let name = format!("RLIMIT_{}", limit.name);
            serde_json::from_value::<PosixRlimit>(json!({"type": name, "hard": limit.applied, "soft": limit.applied}))
        });
        let none = Capabilities::new;
        let capabilities = LinuxCapabilitiesBuilder::default()
            .bounding(none())
            .effective(none())
            .inheritable(none())
            .permitted(none())
            .ambient(none())
            .build()?;
        let process = ProcessBuilder::default()
            .terminal(false)
            .user(UserBuilder::default().uid(GUEST_ID).gid(GUEST_ID).umask(guest::UMASK).build()?)
            .args(texts(command.argv(&self.config))?)
            .env(texts(command.environment(&self.config))?)
            .cwd("/work")
            .capabilities(capabilities)
            .rlimits(limits.collect::<Result<Vec<_>, _>>().map_err(OciSpecError::SerDe)?)
            .no_new_privileges(true)
            .oom_score_adj(1000)
            .build()?;
        Ok(process)
    }
}

/// The guest's id, and the host's that stands for it.
fn mapping(host_id: u32) -> Result<LinuxIdMapping, OciSpecError> {
    LinuxIdMappingBuilder::default().container_id(GUEST_ID).host_id(host_id).size(1_u32).build()
}

fn namespaces() -> Result<Vec<oci_spec::runtime::LinuxNamespace>, OciSpecError> {
    NAMESPACES.into_iter().map(|kind| LinuxNamespaceBuilder::default().typ(kind).build()).collect()
}

fn resources(limits: &Limits) -> Result<LinuxResources, OciSpecError> {
    let memory = i64::try_from(limits.memory).unwrap_or(i64::MAX);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the config bounds cpus")]
    let (quota, period) = ((limits.cpus * CPU_PERIOD_US) as i64, CPU_PERIOD_US as u64);
    LinuxResourcesBuilder::default()
        // Memory and swap together: there is no swap.
        .memory(LinuxMemoryBuilder::default().limit(memory).swap(memory).build()?)
        .cpu(LinuxCpuBuilder::default().quota(quota).period(period).build()?)
        .pids(LinuxPidsBuilder::default().limit(i64::from(limits.pids)).build()?)
        .build()
}

/// The mounts in the order of a run.
fn view_mounts(view: &View) -> Result<Vec<Mount>, OciSpecError> {
    // A bind of /dev keeps runtimes from putting devices of their own into the skeleton.
    let dev = view.root.source().join("dev");
    let mut all = vec![bind_mount(&dev, Path::new("/dev"), view.root.attributes())?];
    for bind in &view.binds {
        all.push(bound(bind)?);
    }
    let (bytes, inodes) = view.private.disk;
    for (_, target, mode) in mounts::SHARED {
        all.push(tmpfs(target, bytes, inodes, mode)?);
    }
    if let Some(bytes) = view.private.output {
        all.push(tmpfs("output", bytes, inodes, 0o755)?);
    }
    for (bind, _) in &view.private.late_binds {
        all.push(bound(bind)?);
    }
    if !view.private.inputs.is_empty() {
        all.push(tmpfs("input", mounts::INPUT_BYTES, mounts::input_inodes(view.private.inputs.len()), 0o755)?);
    }
    for (bind, _) in &view.private.inputs {
        all.push(bound(bind)?);
    }
    let options = WRITABLE.into_iter().chain(["subset=pid"]).map(str::to_owned).collect::<Vec<_>>();
    all.push(MountBuilder::default().destination("/proc").typ("proc").source("proc").options(options).build()?);
    Ok(all)
}

fn bound(bind: &Bind) -> Result<Mount, OciSpecError> {
    bind_mount(bind.source(), &Path::new("/").join(bind.target()), bind.attributes())
}

fn bind_mount(source: &Path, target: &Path, attributes: u64) -> Result<Mount, OciSpecError> {
    let words = [
        (MOUNT_ATTR_RDONLY, "ro"),
        (MOUNT_ATTR_NOSUID, "nosuid"),
        (MOUNT_ATTR_NODEV, "nodev"),
        (MOUNT_ATTR_NOEXEC, "noexec"),
    ];
    let set = words.into_iter().filter(|(bit, _)| attributes & bit != 0).map(|(_, word)| word);
    let options = ["rbind", "rprivate"].into_iter().chain(set).map(str::to_owned).collect::<Vec<_>>();
    MountBuilder::default().destination(target).typ("bind").source(source).options(options).build()
}

fn tmpfs(target: &str, bytes: u64, inodes: u64, mode: u64) -> Result<Mount, OciSpecError> {
    let mut options = WRITABLE.map(str::to_owned).to_vec();
    options.extend([
        format!("size={bytes}"),
        format!("nr_inodes={inodes}"),
        format!("mode={mode:o}"),
        format!("uid={GUEST_ID}"),
        format!("gid={GUEST_ID}"),
    ]);
    MountBuilder::default()
        .destination(Path::new("/").join(target))
        .typ("tmpfs")
        .source("tmpfs")
        .options(options)
        .build()
}

/// JSON holds text alone.
fn texts(strings: Vec<OsString>) -> Result<Vec<String>, Error> {
    let text = |string: OsString| {
        string
            .into_string()
            .map_err(|string| Error::Unsupported(format!("{string:?} is not UTF-8, which JSON cannot hold")))
    };
    strings.into_iter().map(text).collect()
}
