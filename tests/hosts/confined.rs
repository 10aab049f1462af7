//! A security module that lets user namespaces be made and then allows nothing in them, as Ubuntu's AppArmor does.

use crate::harness::is_root;
use crate::harness::skipped;
use crate::host::{Host, everyone};

/// What takes a capability in the new namespaces, of what can be refused without its arguments.
const PRIVILEGED: [libc::c_long; 8] = [
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_sethostname,
    libc::SYS_pivot_root,
    libc::SYS_fsopen,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
];
const CAUSE: &str = "failed to set the host name: Operation not permitted";

/// A host that makes user namespaces, but lets nothing be mounted in them.
#[track_caller]
fn refuses_inside(host: &Host) {
    let made = host.output(&["unshare", "--user", "--map-root-user", "true"], b"");
    assert!(made.status.success(), "a user namespace is made: {made:?}");
    host.refuses(&["unshare", "--user", "--map-root-user", "--mount", "true"], "Operation not permitted");
}

#[test]
fn namespaces_in_which_nothing_is_allowed_are_named() {
    for host in everyone() {
        let host = host.refusing(&PRIVILEGED, libc::EPERM);
        refuses_inside(&host);
        host.is_unavailable("uts_namespace", CAUSE, "docker run --security-opt seccomp=unconfined");
    }
}

#[test]
fn apparmors_restriction_is_named_with_a_profile_and_its_sysctl() {
    if !is_root() {
        skipped("only root can put AppArmor's sysctl into /proc");
        return;
    }
    // The file is all of AppArmor that nsbox looks at, and it looks only once something has been refused.
    let sysctl = "mount -t tmpfs tmpfs /proc/sys/kernel; \
                  echo 1 >/proc/sys/kernel/apparmor_restrict_unprivileged_userns; exec \"$@\"";
    for host in everyone() {
        let host = host.prepared_by(&["unshare", "--mount"], sysctl).refusing(&PRIVILEGED, libc::EPERM);
        refuses_inside(&host);
        let profile = format!("profile nsbox {} flags=(unconfined)", host.path("nsbox").display());
        host.is_unavailable("uts_namespace", CAUSE, &profile);
        let layers = host.doctor()["layers"].to_string();
        assert!(layers.contains("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"), "{layers}");
    }
}
