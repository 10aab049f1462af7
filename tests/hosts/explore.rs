use crate::host::{Host, everyone};
fn show(name: &str, host: &Host, flags: &[&str]) {
    let ran = host.run(flags);
    let report = host.doctor(flags);
    let mut text = format!(
        "\n=== {name} root={} : {} {} {}\n    doctor {} {}\n",
        host.is_roots(),
        ran.verdict(),
        ran.outcome.message,
        String::from_utf8_lossy(&ran.outcome.stderr),
        report["run"],
        report["summary"]
    );
    for layer in report["layers"].as_array().unwrap() {
        if (layer["status"] == "refused" || layer["status"] == "degraded")
            && layer["layer"] != "docker"
            && !layer["layer"].as_str().unwrap().starts_with("cgroup_")
            && layer["layer"] != "run"
        {
            text += &format!("      {} {} {:.90} {:.90}\n", layer["layer"], layer["status"], layer["found"].to_string(), layer["knobs"].to_string());
        }
    }
    eprintln!("{text}");
}
#[test]
fn plain() {
    for host in everyone() {
        host.works(&[]);
        show("plain", &host, &[]);
    }
}
const WHOLE: &str = r#"
unshare --user sh -ec 'kill -STOP $$; exec sh -ec "echo 0 >/proc/sys/user/max_user_namespaces; exec \"\$@\"" sh "$@"' sh "$@" <&0 &
child=$!
while ! grep -q '^State:.T' /proc/$child/status; do sleep 0.01; done
echo '0 0 4294967295' >/proc/$child/gid_map
echo '0 0 4294967295' >/proc/$child/uid_map
kill -CONT $child
wait $child
"#;
#[test]
fn userns() {
    for host in everyone() {
        let host = if host.is_roots() {
            host.prepared_by(&[], WHOLE)
        } else {
            host.entered_by(&["unshare", "-U", "-r"], "echo 0 >/proc/sys/user/max_user_namespaces; exec \"$@\"")
        };
        show("max_user_namespaces", &host, &[]);
    }
}
#[test]
fn procfs() {
    for host in everyone() {
        let host = if host.is_roots() {
            host.prepared_by(&["unshare", "-m"], "mount -t tmpfs tmpfs /proc/bus; exec \"$@\"")
        } else {
            host.prepared_by(&["unshare", "-m"], "mount -t tmpfs tmpfs /proc/bus; exec \"$@\"")
        };
        show("masked proc", &host, &[]);
    }
}
#[test]
fn nproc() {
    for n in ["1", "2", "5"] {
        for host in everyone() {
            let host = host.entered_by(&["prlimit", &format!("--nproc={n}")], "exec \"$@\"");
            show(&format!("nproc {n}"), &host, &[]);
        }
    }
}
#[test]
fn store() {
    for (kind, mount) in [
        ("noexec", "mount -t tmpfs -o noexec,nosuid tmpfs $NSBOX_STORE"),
        (
            "overlay",
            "mkdir -p /tmp/o; mount -t tmpfs tmpfs /tmp/o; mkdir /tmp/o/l /tmp/o/u /tmp/o/w; mount -t overlay -o lowerdir=/tmp/o/l,upperdir=/tmp/o/u,workdir=/tmp/o/w overlay $NSBOX_STORE",
        ),
    ] {
        for host in everyone() {
            let line = format!("mkdir -p $NSBOX_STORE; {mount}; chmod 777 $NSBOX_STORE; exec \"$@\"");
            let host = host.prepared_by(&["unshare", "-m"], &line);
            show(kind, &host, &[]);
        }
    }
}
#[test]
fn calls() {
    for (name, nr) in [
        ("mount", libc::SYS_mount),
        ("unshare", libc::SYS_unshare),
        ("sethostname", libc::SYS_sethostname),
        ("clone3", libc::SYS_clone3),
        ("landlock", libc::SYS_landlock_create_ruleset),
        ("seccomp", libc::SYS_seccomp),
        ("setresuid", libc::SYS_setresuid),
        ("pivot_root", libc::SYS_pivot_root),
        ("open_tree", libc::SYS_open_tree),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("memfd_create", libc::SYS_memfd_create),
        ("pidfd_open", libc::SYS_pidfd_open),
    ] {
        for errno in [libc::EPERM, libc::ENOSYS] {
            for host in everyone() {
                if name == "clone3" && errno == libc::EPERM { continue; } let host = host.refusing(&[nr], errno);
                show(&format!("{name} {errno}"), &host, &[]);
            }
        }
    }
}
