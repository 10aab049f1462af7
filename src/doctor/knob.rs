//! What mends a refusal: from the errno of the probe and the facts of the machine to a command or a line of a file.

use std::io;

use super::host::Host;

/// Why a call was refused: the system's errno at the end of an error's chain.
pub(super) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut error = Some(error);
    let mut found = None;
    while let Some(cause) = error {
        found = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).or(found);
        error = cause.source();
    }
    found
}

/// Of a namespace that could not be made. `kind` as in `user.max_KIND_namespaces`: `user`, `mnt`, `pid`, ...
pub(super) fn namespace(kind: &str, errno: Option<i32>, host: &Host) -> Vec<String> {
    match errno {
        Some(libc::ENOSPC | libc::EUSERS) => vec![format!(
            "sysctl -w user.max_{kind}_namespaces=15000 (as root; in /etc/sysctl.d/60-nsbox.conf it lasts)"
        )],
        Some(libc::EINVAL) => {
            vec![format!("a kernel built with {kind} namespaces (CONFIG_NAMESPACES, CONFIG_USER_NS)")]
        }
        _ => confinement(host),
    }
}

/// Of a call that is refused inside a user namespace, where the kernel itself allows it.
pub(super) fn confinement(host: &Host) -> Vec<String> {
    let mut knobs = Vec::new();
    if host.apparmor_restricts {
        knobs.push(apparmor_profile(host));
        knobs.push("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (as root, for every program)".to_owned());
    }
    if host.userns_clone_off {
        knobs.push("sysctl -w kernel.unprivileged_userns_clone=1 (as root)".to_owned());
    }
    if host.container || host.filtered {
        knobs.push(
            "in a container: docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
             --security-opt systempaths=unconfined, or podman run --security-opt seccomp=unconfined --security-opt \
             unmask=ALL; in a systemd unit: RestrictNamespaces=no and no SystemCallFilter="
                .to_owned(),
        );
    }
    if knobs.is_empty() {
        knobs.push(
            "journalctl -k (or dmesg) names the security module that refused it; outside a chroot it may work"
                .to_owned(),
        );
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

/// Of a mount that failed in `step`.
pub(super) fn mount(step: &str, errno: Option<i32>, host: &Host) -> Vec<String> {
    match errno {
        Some(libc::ENOSYS) => vec![
            "Linux 5.12 or newer, and no filter that hides its mount calls (fsopen, open_tree, mount_setattr)"
                .to_owned(),
        ],
        Some(libc::EINVAL) if step.contains("/proc") => vec!["Linux 5.8 or newer, for proc's subset=pid".to_owned()],
        // The kernel allows a new proc only where one without masks is in view.
        Some(libc::EPERM) if step.contains("proc") && !host.apparmor_restricts => vec![
            "unmask /proc: docker run --security-opt systempaths=unconfined, podman run --security-opt unmask=ALL, \
             procMount: Unmasked in Kubernetes"
                .to_owned(),
        ],
        _ => confinement(host),
    }
}

/// Of a cgroup of version 2.
pub(super) fn cgroup_v2() -> Vec<String> {
    vec![
        "systemd-run --user --scope -p Delegate=yes nsbox run ...".to_owned(),
        "write /etc/systemd/system/user@.service.d/delegate.conf: [Service] Delegate=cpu cpuset io memory pids, then \
         systemctl daemon-reload, and log in anew"
            .to_owned(),
        DEGRADE.to_owned(),
    ]
}

/// Of a cgroup of version 1, `folder` being where this process is.
pub(super) fn cgroup_v1(folders: &[String]) -> Vec<String> {
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
pub(super) fn rlimit(name: &str, wanted: u64) -> String {
    format!(
        "Limit{name}={wanted} in the systemd unit, or in /etc/security/limits.d/nsbox.conf: * hard {} {wanted}, or a \
         lower limit in the configuration",
        name.to_lowercase()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apparmor_restriction_is_named_first_with_a_profile_for_this_program() {
        let host = Host { apparmor_restricts: true, program: "/opt/nsbox".into(), ..Host::default() };
        let knobs = confinement(&host);
        assert!(knobs[0].contains("profile nsbox /opt/nsbox") && knobs[0].contains("userns,"), "{knobs:?}");
        assert!(knobs[1].contains("kernel.apparmor_restrict_unprivileged_userns=0"), "{knobs:?}");
        assert_eq!(mount("make the mounts private", Some(libc::EACCES), &host), knobs);
        assert_eq!(mount("make the guest's /proc", Some(libc::EPERM), &host), knobs);
    }

    #[test]
    fn masked_proc_is_told_from_confinement() {
        let host = Host { container: true, ..Host::default() };
        assert!(mount("make the guest's /proc", Some(libc::EPERM), &host)[0].contains("systempaths=unconfined"));
        assert!(mount("make the tmpfs", Some(libc::EPERM), &host)[0].contains("apparmor=unconfined"));
    }

    #[test]
    fn limits_of_namespaces_are_named_by_kind() {
        let host = Host::default();
        assert!(namespace("net", Some(libc::ENOSPC), &host)[0].contains("user.max_net_namespaces=15000"));
        assert!(namespace("user", Some(libc::EUSERS), &host)[0].contains("user.max_user_namespaces=15000"));
    }

    #[test]
    fn debians_switch_is_named() {
        let host = Host { userns_clone_off: true, ..Host::default() };
        let knobs = namespace("user", Some(libc::EPERM), &host);
        assert_eq!(knobs, ["sysctl -w kernel.unprivileged_userns_clone=1 (as root)"]);
    }

    #[test]
    fn errno_is_found_at_the_end_of_a_chain() {
        let inner = io::Error::from_raw_os_error(libc::ENOSPC);
        let error = crate::sandbox::Error::Spawn { step: "make the namespaces", source: inner };
        assert_eq!(errno(&error), Some(libc::ENOSPC));
        assert_eq!(errno(&std::fmt::Error), None);
    }
}
