//! Facts of this machine that tell which of several knobs is the one, once something has been refused.

use std::fs;
use std::path::{Path, PathBuf};

/// The kinds of namespaces that a run has, as in `user.max_KIND_namespaces`; a tie goes to the first.
const NAMESPACES: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];

/// The facts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Host {
    /// The kernel's release.
    pub kernel: String,
    /// Ubuntu's `kernel.apparmor_restrict_unprivileged_userns` is set.
    pub apparmor_restricts: bool,
    /// Debian's `kernel.unprivileged_userns_clone` is 0.
    pub userns_clone_off: bool,
    /// A seccomp filter is around this process.
    pub filtered: bool,
    /// A container is around this process.
    pub container: bool,
    /// `user.max_KIND_namespaces`, by kind as in its name.
    pub max_namespaces: Vec<(&'static str, u64)>,
    /// The user is root, in its namespace.
    pub root: bool,
    /// The program's own path.
    pub program: PathBuf,
}

impl Host {
    pub(crate) fn read() -> Self {
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let seccomp = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(str::trim);
        let containers = ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"];
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1),
            userns_clone_off: number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0),
            filtered: seccomp == Some("2"),
            container: containers.iter().any(|path| Path::new(path).exists()),
            max_namespaces: NAMESPACES
                .into_iter()
                .filter_map(|kind| Some((kind, number(&format!("/proc/sys/user/max_{kind}_namespaces"))?)))
                .collect(),
            root: nix::unistd::geteuid().is_root(),
            program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/local/bin/nsbox")),
        }
    }

    /// The kind of namespace with the lowest limit, which is the first to be reached.
    pub(crate) fn scarcest_namespace(&self) -> &'static str {
        self.max_namespaces.iter().min_by_key(|(_, most)| most).map_or("user", |(kind, _)| kind)
    }

    /// `user.max_user_namespaces`.
    pub(crate) fn max_user_namespaces(&self) -> Option<u64> {
        self.max_namespaces.iter().find(|(kind, _)| *kind == "user").map(|(_, most)| *most)
    }
}
