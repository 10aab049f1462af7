//! What mends a refusal: from the errno of the probe and the facts of the machine to a command or a line of a file.

use std::io;
use std::path::Path;

use super::host::Host;
use super::{Error, cgroup, supervise};

/// Why a call was refused: the system's errno at the end of an error's chain.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut error = Some(error);
    let mut found = None;
    while let Some(cause) = error {
        found = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).or(found);
        error = cause.source();
    }
    found
}

/// Of a run that did not begin; none where the error itself says what to do, or nothing is known.
pub(crate) fn of(error: &Error, host: &Host) -> Vec<String> {
    let step = match error {
        Error::Spawn { step, .. } => step,
        Error::Step { step, .. } => step.as_str(),
        Error::Run(supervise::Error::Step { step, .. }) => step,
        Error::Input { path, .. } if errno(error) == Some(libc::EINVAL) => return vec![no_idmapped_mounts(path)],
        _ => return Vec::new(),
    };
    of_step(step, errno(error), host)
}

/// Of one step of the set-up. Steps are told by their names, as they are in the plan.
fn of_step(step: &str, errno: Option<i32>, host: &Host) -> Vec<String> {
    match (errno, step) {
        (Some(libc::EAGAIN), MAKE_NAMESPACES | START_GUEST) => processes(),
        (Some(libc::ENOSPC | libc::EUSERS), MAKE_NAMESPACES) => namespaces(host.scarcest_namespace()),
        (Some(libc::ENOSPC | libc::EUSERS), "make the cgroup namespace") => namespaces("cgroup"),
        (Some(libc::EINVAL), MAKE_NAMESPACES) => {
            vec![
                "a kernel built with all namespaces (CONFIG_NAMESPACES, CONFIG_USER_NS and those of each kind)"
                    .to_owned(),
            ]
        }
        (Some(libc::EINVAL), "limit /proc to processes") => {
            vec!["Linux 5.8 or newer, for proc's subset=pid".to_owned()]
        }
        (Some(libc::EINVAL), "limit the tmpfs's size" | "limit the tmpfs's inodes") => {
            vec!["a kernel whose tmpfs takes size and nr_inodes (CONFIG_TMPFS, CONFIG_SHMEM)".to_owned()]
        }
        (Some(libc::EINVAL | libc::EBUSY), "pivot into the new root") => {
            vec!["a root that pivot_root(2) can leave: not the initial ramfs, and no chroot".to_owned()]
        }
        (Some(libc::EBUSY), "install the seccomp filter") => vec![LISTENER.to_owned()],
        (Some(libc::EINVAL), "install the seccomp filter") => {
            vec!["Linux 5.0 or newer with CONFIG_SECCOMP_FILTER".to_owned()]
        }
        (Some(libc::EACCES), step) if step.starts_with(EXECUTE) => vec![format!(
            "mount -o remount,exec of the file system that {} is on, or chmod a+rx of it, or --python PATH of another",
            &step[EXECUTE.len()..]
        )],
        (Some(libc::ENOSYS), step) if !host.filtered => {
            vec![format!("Linux 5.12 or newer: this one has no call to {step}")]
        }
        // The kernel allows a new proc only where one without masks is in view.
        (Some(libc::EPERM), "make the guest's /proc") if !host.apparmor_restricts => vec![UNMASK.to_owned()],
        (Some(libc::EPERM | libc::EACCES | libc::ENOSYS), _) => confinement(host),
        _ => Vec::new(),
    }
}

const MAKE_NAMESPACES: &str = "make the namespaces";
const START_GUEST: &str = "start the guest's process";
const EXECUTE: &str = "execute ";
const UNMASK: &str = "unmask /proc: docker run --security-opt systempaths=unconfined, podman run --security-opt \
                      unmask=ALL, procMount: Unmasked in Kubernetes";
/// Of cgroups that are mounted read-only, as containers have them.
pub(crate) const CGROUP_RW: &str = "in a container, docker run --security-opt writable-cgroups=true (since 28; before, \
                                    --cgroupns=host --volume=/sys/fs/cgroup:/sys/fs/cgroup:rw), podman run --security-opt \
                                    unmask=/sys/fs/cgroup; elsewhere mount -o remount,bind,rw";
/// Where nothing is known of the cause.
pub(crate) const JOURNAL: &str =
    "journalctl -k (or dmesg) names the security module that refused it; outside a chroot it may work";
const LISTENER: &str = "a supervisor around this process listens already, and the kernel allows one: start nsbox outside \
                        that container";

/// Of a limit of namespaces; `kind` as in `user.max_KIND_namespaces`.
fn namespaces(kind: &str) -> Vec<String> {
    vec![format!("sysctl -w user.max_{kind}_namespaces=15000 (as root; in /etc/sysctl.d/60-nsbox.conf it lasts)")]
}

/// Of an input that the guest's user may not read, and that cannot be shown to it as its own.
fn no_idmapped_mounts(path: &Path) -> String {
    let path = path.display();
    format!(
        "its file system has no idmapped mounts (as overlayfs and network file systems): chmod -R o+rX {path}, or move it \
         to another file system"
    )
}

/// Of a limit of processes, this user's or this cgroup's.
fn processes() -> Vec<String> {
    vec![
        "raise the limit of this user's processes: ulimit -u, LimitNPROC= in the systemd unit, or in \
         /etc/security/limits.d/nsbox.conf: * hard nproc 4096"
            .to_owned(),
        "raise pids.max of the cgroup: TasksMax= in the systemd unit, docker run --pids-limit".to_owned(),
    ]
}

/// Of a call that is refused inside a user namespace, where the kernel itself allows it.
fn confinement(host: &Host) -> Vec<String> {
    let mut knobs = Vec::new();
    if host.apparmor_restricts {
        knobs.push(apparmor_profile(host));
        knobs.push("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (as root, for every program)".to_owned());
    }
    if host.userns_clone_off {
        knobs.push("sysctl -w kernel.unprivileged_userns_clone=1 (as root)".to_owned());
    }
    if host.container || host.filtered {
        let filter = if host.filtered { "a seccomp filter is around this process; " } else { "" };
        knobs.push(format!(
            "{filter}in a container: docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
             --security-opt systempaths=unconfined, or podman run --security-opt seccomp=unconfined --security-opt \
             unmask=ALL; in a systemd unit: RestrictNamespaces=no and no SystemCallFilter="
        ));
    }
    if knobs.is_empty() {
        knobs.push(JOURNAL.to_owned());
    }
    knobs
}

/// Lets this program alone use user namespaces, under Ubuntu's restriction.
fn apparmor_profile(host: &Host) -> String {
    let program = host.program.display();
    format!(
        "write /etc/apparmor.d/nsbox: abi <abi/4.0>, include <tunables/global> profile nsbox {program} \
         flags=(unconfined) {{ userns, }} and load it: apparmor_parser -r /etc/apparmor.d/nsbox"
    )
}

/// Of a cgroup namespace without a mount of its own.
pub(crate) fn mount_cgroups(mount: &Path) -> String {
    format!("mount it anew inside (mount -t cgroup2 cgroup2 {})", mount.display())
}

/// Of a cgroup that cannot be had: what says so decides, and version 2 is what it is about.
pub(crate) fn no_cgroup(error: &cgroup::Error) -> Vec<String> {
    match error {
        cgroup::Error::ReadOnly { .. } => vec![CGROUP_RW.to_owned(), DEGRADE.to_owned()],
        cgroup::Error::OtherNamespace { mount } => vec![mount_cgroups(mount), DEGRADE.to_owned()],
        cgroup::Error::Occupied { path } => {
            let leaf = path.join("leaf");
            let leaf = leaf.display();
            [format!("in the shell that starts nsbox: mkdir {leaf} && echo $$ > {leaf}/cgroup.procs")]
                .into_iter()
                .chain(cgroup_v2())
                .collect()
        }
        _ => cgroup_v2(),
    }
}

/// Of a cgroup of version 2.
pub(crate) fn cgroup_v2() -> Vec<String> {
    vec![
        "systemd-run --user --scope -p Delegate=yes nsbox run ...".to_owned(),
        "write /etc/systemd/system/user@.service.d/delegate.conf: [Service] Delegate=cpu cpuset io memory pids, then \
         systemctl daemon-reload, and log in anew"
            .to_owned(),
        DEGRADE.to_owned(),
    ]
}

/// Of a cgroup of version 1, `folder` being where this process is.
pub(crate) fn cgroup_v1(folders: &[String]) -> Vec<String> {
    let list = folders.join(" ");
    vec![
        format!(
            "as root: for d in {list}; do mkdir -p $d/nsbox; chown -R USER $d/nsbox; echo PID > $d/nsbox/tasks; done, \
             PID being the shell that starts nsbox"
        ),
        "boot with systemd.unified_cgroup_hierarchy=1, then: systemd-run --user --scope -p Delegate=yes nsbox run ..."
            .to_owned(),
        DEGRADE.to_owned(),
    ]
}

const DEGRADE: &str = "allow_degraded: true (--allow-degraded): rlimits and a measuring supervisor instead";

/// Of a hard limit that is lower than the configuration: `name` as in getrlimit(2), without the prefix.
pub(crate) fn rlimit(name: &str, wanted: u64) -> String {
    format!(
        "Limit{name}={wanted} in the systemd unit, or in /etc/security/limits.d/nsbox.conf: * hard {} {wanted}, or a \
         lower limit in the configuration",
        name.to_lowercase()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knobs(step: &str, errno: i32, host: &Host) -> Vec<String> {
        let source = io::Error::from_raw_os_error(errno);
        of(&Error::Run(supervise::Error::Step { step: step.to_owned(), source }), host)
    }

    #[test]
    fn apparmor_restriction_is_named_first_with_a_profile_for_this_program() {
        let host = Host { apparmor_restricts: true, program: "/opt/nsbox".into(), ..Host::default() };
        let found = knobs("make the mounts private", libc::EACCES, &host);
        assert!(found[0].contains("profile nsbox /opt/nsbox") && found[0].contains("userns,"), "{found:?}");
        assert!(found[1].contains("kernel.apparmor_restrict_unprivileged_userns=0"), "{found:?}");
        assert_eq!(knobs("make the guest's /proc", libc::EPERM, &host), found);
    }

    #[test]
    fn masked_proc_is_told_from_confinement() {
        let host = Host { container: true, ..Host::default() };
        assert!(knobs("make the guest's /proc", libc::EPERM, &host)[0].starts_with("unmask /proc: "));
        assert!(knobs("make the tmpfs", libc::EPERM, &host)[0].contains("apparmor=unconfined"));
    }

    #[test]
    fn missing_call_is_told_from_a_filtered_one() {
        let kernel = Host::default();
        assert!(knobs("open a tmpfs", libc::ENOSYS, &kernel)[0].starts_with("Linux 5.12 or newer"));
        let filtered = Host { filtered: true, ..Host::default() };
        assert!(knobs("open a tmpfs", libc::ENOSYS, &filtered)[0].starts_with("a seccomp filter"));
    }

    #[test]
    fn limits_of_namespaces_are_named_by_kind() {
        let source = || io::Error::from_raw_os_error(libc::ENOSPC);
        let full = |host: &Host| of(&Error::Spawn { step: MAKE_NAMESPACES, source: source() }, host);
        assert!(full(&Host::default())[0].contains("user.max_user_namespaces=15000"));
        let host = Host { max_namespaces: vec![("user", 9), ("net", 0)], ..Host::default() };
        assert!(full(&host)[0].contains("user.max_net_namespaces=15000"));
        assert!(
            knobs("make the cgroup namespace", libc::ENOSPC, &host)[0].contains("user.max_cgroup_namespaces=15000")
        );
    }

    #[test]
    fn debians_switch_is_named() {
        let host = Host { userns_clone_off: true, ..Host::default() };
        let found = knobs(MAKE_NAMESPACES, libc::EPERM, &host);
        assert_eq!(found, ["sysctl -w kernel.unprivileged_userns_clone=1 (as root)"]);
    }

    #[test]
    fn errno_is_found_at_the_end_of_a_chain() {
        let inner = io::Error::from_raw_os_error(libc::ENOSPC);
        let error = Error::Spawn { step: MAKE_NAMESPACES, source: inner };
        assert_eq!(errno(&error), Some(libc::ENOSPC));
        assert_eq!(errno(&std::fmt::Error), None);
    }
}
