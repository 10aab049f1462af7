//! A seccomp filter around nsbox, which refuses one call that a run needs: each of them in turn, as filters do it.

use std::thread;

use nsbox::outcome::Ended;

use crate::host::{PYTHON, everyone};

/// Each call of the set-up, with what the step that fails is called.
const CALLS: [(libc::c_long, &str); 19] = [
    (libc::SYS_memfd_create, "keep init in a memfd"),
    (libc::SYS_pidfd_open, "open a pidfd of this process"),
    (libc::SYS_clone, "make the namespaces"),
    (libc::SYS_capset, "keep the capabilities for the set-up"),
    (libc::SYS_execveat, "execute init"),
    (libc::SYS_setsid, "lead a session"),
    (libc::SYS_unshare, "make the cgroup namespace"),
    (libc::SYS_sethostname, "set the host name"),
    (libc::SYS_mount, "make the mounts private"),
    (libc::SYS_fsopen, "open a proc file system"),
    (libc::SYS_fsconfig, "limit /proc to processes"),
    (libc::SYS_open_tree, "open "),
    (libc::SYS_mount_setattr, "/skeletons/"),
    (libc::SYS_move_mount, "attach "),
    (libc::SYS_setresgid, "become the guest's group"),
    (libc::SYS_pivot_root, "pivot into the new root"),
    (libc::SYS_umount2, "leave the host's root"),
    (libc::SYS_sched_setaffinity, "set the CPU affinity"),
    (libc::SYS_seccomp, "install the seccomp filter"),
];

#[test]
fn refused_call_of_the_set_up_is_named_and_nothing_runs() {
    // Where there is one CPU, a run has no other to be kept from.
    let chooses = thread::available_parallelism().unwrap().get() > 1;
    let calls = || CALLS.into_iter().filter(|(call, _)| chooses || *call != libc::SYS_sched_setaffinity);
    for host in everyone() {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let why = std::io::Error::from_raw_os_error(errno).to_string();
            for (call, step) in calls() {
                // Where clone3 is there, nobody needs clone.
                let calls = if call == libc::SYS_clone { vec![call, libc::SYS_clone3] } else { vec![call] };
                let ran = host.plain().refusing(&calls, errno).run(&[]).expect("unavailable");
                let ran = ran.says("failed to ").says(step).says(&why);
                let ran = ran.says("a seccomp filter is around this process").says("seccomp=unconfined");
                assert_eq!((ran.stdout().as_str(), ran.outcome.ended), ("", Ended::NotStarted));
                host.assert_nothing_left();
            }
        }
        host.works();
    }
}

#[test]
fn refused_clone3_is_replaced() {
    for host in everyone() {
        let host = host.refusing(&[libc::SYS_clone3], libc::ENOSYS);
        let clone3 = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); libc.syscall(435, 0, 0); \
                      raise SystemExit('Function not implemented' if ctypes.get_errno() == 38 else 0)";
        host.refuses(&[PYTHON, "-c", clone3], "Function not implemented");
        host.works();
        let clone3 = host.layer("clone3");
        assert_eq!((&clone3["status"], &clone3["required"]), (&"degraded".into(), &false.into()), "{clone3:#}");
    }
}

#[test]
fn listener_of_somebody_else_is_named() {
    for host in everyone() {
        let host = host.listened_to();
        let another: Vec<String> = host.listener().into_iter().chain(["true".to_owned()]).collect();
        let another: Vec<&str> = another.iter().map(String::as_str).collect();
        host.refuses(&another, "Device or resource busy");
        host.is_unavailable(
            "seccomp",
            "failed to install the seccomp filter: Device or resource busy",
            "a supervisor around this process listens already",
        );
    }
}
