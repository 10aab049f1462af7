//! Limits of namespaces that are reached: `user.max_*_namespaces`, set in a user namespace of the host's own.

use crate::host::{Host, everyone};

/// Executes the line `$1` and then the other words in a user namespace with every id, as its root.
const AS_ROOT: &str = r#"
line=$1; shift
exec 3<&0
unshare --user sh -ec 'kill -STOP $$; exec sh -ec "$0" sh "$@"' "$line; exec \"\$@\"" "$@" <&3 3<&- &
child=$!
until grep -q '^State:.T' /proc/$child/status; do sleep 0.01; done
echo '0 0 4294967295' >/proc/$child/gid_map
echo '0 0 4294967295' >/proc/$child/uid_map
kill -CONT $child
wait $child
"#;

/// A host where a line of sh was executed by the root of a user namespace that the user and nsbox are in.
fn inside(host: Host, line: &str) -> Host {
    if host.is_roots() {
        return host.prepared_by(&[], &format!("set -- '{line}' \"$@\"\n{AS_ROOT}"));
    }
    host.entered_by(&["unshare", "--user", "--map-root-user"], &format!("{line}; exec \"$@\""))
}

fn without(kind: &str, host: Host) -> Host {
    inside(host, &format!("echo 0 >/proc/sys/user/max_{kind}_namespaces"))
}

#[test]
fn user_namespace_of_the_hosts_own_is_no_obstacle() {
    for host in everyone() {
        inside(host, "true").works();
    }
}

#[test]
fn exhausted_user_namespaces_are_named_with_their_sysctl() {
    for host in everyone() {
        let host = without("user", host);
        host.refuses(&["unshare", "--user", "true"], "No space left on device");
        host.is_unavailable(
            "user_namespace",
            "failed to make the namespaces: No space left on device",
            "sysctl -w user.max_user_namespaces=15000",
        );
    }
}

#[test]
fn exhausted_namespaces_of_another_kind_are_named_with_theirs() {
    for host in everyone() {
        let host = without("net", host);
        host.refuses(&["unshare", "--user", "--net", "true"], "No space left on device");
        host.is_unavailable(
            "net_namespace",
            "failed to make the namespaces: No space left on device",
            "sysctl -w user.max_net_namespaces=15000",
        );
    }
    for host in everyone() {
        let host = without("cgroup", host);
        host.refuses(&["unshare", "--user", "--cgroup", "true"], "No space left on device");
        host.is_unavailable(
            "cgroup_namespace",
            "failed to make the cgroup namespace: No space left on device",
            "sysctl -w user.max_cgroup_namespaces=15000",
        );
    }
}
