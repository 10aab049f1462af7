//! The kernel's surface: each call raw, outside and inside; inside from the main thread, a second thread and after exec.

use std::fs;

use nsbox::outcome::Verdict;
use serde_json::Value;

use crate::harness::{attack_inside, attack_outside, is_root, refused};

/// An attack of `guest/kernel.py` that inside is refused with an errno.
struct Refused {
    name: &'static str,
    /// What inside it must say.
    errno: &'static str,
    /// The call that `violations` must name; empty where another layer refuses, or where it is a harmless probe.
    reported: &'static str,
    /// Whether outside it takes root.
    privileged: bool,
}

const fn refuses(name: &'static str, errno: &'static str, reported: &'static str) -> Refused {
    Refused { name, errno, reported, privileged: false }
}

const fn refuses_root(name: &'static str, errno: &'static str, reported: &'static str) -> Refused {
    Refused { name, errno, reported, privileged: true }
}

const REFUSED: [Refused; 58] = [
    refuses("io_uring_setup", "EPERM", "io_uring_setup"),
    refuses_root("perf_event_open", "EPERM", "perf_event_open"),
    refuses("keyctl", "EPERM", "keyctl"),
    refuses("add_key", "EPERM", "add_key"),
    refuses_root("fanotify_init", "EPERM", "fanotify_init"),
    refuses("modify_ldt", "EPERM", "modify_ldt"),
    refuses("seccomp", "EPERM", "seccomp"),
    refuses("ptrace", "EPERM", "ptrace"),
    refuses("process_vm_readv", "EPERM", "process_vm_readv"),
    refuses("process_vm_writev", "EPERM", "process_vm_writev"),
    refuses("pidfd_getfd", "EPERM", "pidfd_getfd"),
    refuses("kcmp", "EPERM", "kcmp"),
    refuses("move_pages", "EPERM", "move_pages"),
    refuses_root("clock_settime", "EPERM", "clock_settime"),
    refuses_root("settimeofday", "EPERM", "settimeofday"),
    refuses("adjtimex", "EPERM", "adjtimex"),
    refuses("clock_adjtime", "EPERM", "clock_adjtime"),
    refuses_root("quotactl", "EPERM", "quotactl"),
    refuses_root("syslog", "EPERM", "syslog"),
    refuses_root("sethostname", "EPERM", "sethostname"),
    refuses("personality", "EPERM", "personality"),
    refuses("sched_setattr", "EPERM", "sched_setattr"),
    refuses("unshare", "EPERM", "unshare"),
    refuses("clone_newuser", "ENOSYS", "clone"),
    // Its flags lie behind a pointer; libraries try it first, so it is not reported.
    refuses("clone3_newuser", "ENOSYS", ""),
    refuses_root("setns", "EPERM", "setns"),
    refuses("vsock", "EAFNOSUPPORT", "socket"),
    refuses("alg", "EAFNOSUPPORT", "socket"),
    refuses_root("packet", "EAFNOSUPPORT", "socket"),
    refuses("netlink_netfilter", "EAFNOSUPPORT", ""),
    refuses("netlink_route", "EAFNOSUPPORT", ""),
    refuses_root("raw_icmp", "EPERM", ""),
    // vm.memfd_noexec makes the memfd; what is not executable is execve's to refuse.
    refuses("memfd_exec", "EACCES", ""),
    refuses("memfd_exec_flag", "EACCES", "memfd_create"),
    refuses("vmsplice", "ENOSYS", "vmsplice"),
    refuses("splice", "ENOSYS", "splice"),
    refuses("tee", "ENOSYS", "tee"),
    refuses("name_to_handle_at", "EPERM", "name_to_handle_at"),
    refuses_root("mknod_char", "EPERM", "mknodat"),
    refuses_root("mknod_block", "EPERM", "mknodat"),
    refuses_root("bind_mount", "EPERM", "mount"),
    refuses_root("remount", "EPERM", "mount"),
    refuses_root("umount2", "EPERM", "umount2"),
    refuses_root("chroot", "EPERM", "chroot"),
    refuses_root("fsopen", "EPERM", "fsopen"),
    refuses_root("open_tree", "EPERM", "open_tree"),
    // The mounts are noexec.
    refuses("exec_from_tmp", "EACCES", ""),
    refuses("exec_from_work", "EACCES", ""),
    refuses("exec_from_shm", "EACCES", ""),
    // Ids that the user map does not hold.
    refuses_root("setuid_root_file", "EINVAL", ""),
    refuses_root("setresuid_root", "EINVAL", ""),
    refuses_root("setresuid_other", "EINVAL", ""),
    refuses_root("setgroups", "EPERM", ""),
    refuses_root("capset", "EPERM", ""),
    refuses("tiocsti", "EPERM", "ioctl"),
    refuses("tiocsti_high_bits", "EPERM", "ioctl"),
    refuses_root("tioclinux", "EPERM", "ioctl"),
    refuses_root("mount_setattr", "EPERM", "mount_setattr"),
];

/// Attacks for which the whole run is killed. Outside they reach the kernel, which finds fault with their arguments:
/// done in earnest they would end the machine, not the test.
const KILLED: [(&str, &str, bool); 16] = [
    ("userfaultfd", "ok", true),
    ("bpf", "ok", true),
    ("kexec_load", "ok", true),
    ("kexec_file_load", "EBADF", true),
    ("init_module", "EFAULT or ENOEXEC", true),
    ("finit_module", "EBADF", true),
    ("delete_module", "ENOENT", true),
    ("reboot", "EINVAL", true),
    ("swapon", "ENOENT", true),
    ("swapoff", "ENOENT", true),
    ("acct", "ENOENT", true),
    ("iopl", "ok", true),
    ("ioperm", "ok", true),
    ("open_by_handle_at", "EINVAL", true),
    ("pivot_root", "ENOENT", true),
    ("x32_getpid", "ok", false),
];

fn names(privileged: bool) -> String {
    let chosen = REFUSED.iter().filter(|attack| privileged || !attack.privileged);
    chosen.map(|attack| attack.name).collect::<Vec<_>>().join(",")
}

/// Whether this is the root of a container that lacks the very capability (capabilities(7)) that the attack takes.
fn lacks_capability(name: &str) -> bool {
    let capability = match name {
        "open_by_handle_at" => 2,                               // CAP_DAC_READ_SEARCH
        "init_module" | "finit_module" | "delete_module" => 16, // CAP_SYS_MODULE
        "iopl" | "ioperm" => 17,                                // CAP_SYS_RAWIO
        "acct" => 20,                                           // CAP_SYS_PACCT
        "reboot" | "kexec_load" | "kexec_file_load" => 22,      // CAP_SYS_BOOT
        "clock_settime" | "settimeofday" => 25,                 // CAP_SYS_TIME
        "syslog" => 34,                                         // CAP_SYSLOG
        // CAP_SYS_ADMIN, without which there are no runs as root, or what every container's root has.
        _ => return false,
    };
    let status = fs::read_to_string("/proc/self/status").expect("a status");
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a line").trim();
    u64::from_str_radix(set, 16).expect("a set") & (1 << capability) == 0
}

/// Whether this kernel was built without what the attack needs, or root lacks it: then there is nothing to attack, here.
fn absent(name: &str, said: &Value) -> bool {
    // MFD_EXEC is a flag of Linux 6.3; overlayfs may have no handles.
    let absent = said == "ENOSYS"
        || said == "EAFNOSUPPORT"
        || said == "EPROTONOSUPPORT"
        || (name == "memfd_exec_flag" && said == "EINVAL")
        || (name == "name_to_handle_at" && said == "ENOTSUP")
        || (said == "EPERM" && is_root() && lacks_capability(name));
    if absent {
        eprintln!("ABSENT: this machine has no {name} ({said} outside)");
    }
    absent
}

#[test]
fn forbidden_calls_succeed_outside() {
    let said = attack_outside("kernel.py", &[&names(is_root()), "main"]);
    for attack in REFUSED.iter().filter(|attack| is_root() || !attack.privileged) {
        let how = &said[attack.name];
        // TIOCLINUX and TIOCSTI want a console or a terminal, and the kernel may have legacy TIOCSTI off.
        let terminal = attack.name.starts_with("tioc") && (how == "ENOTTY" || how == "EIO");
        assert!(how == "ok" || terminal || absent(attack.name, how), "{}: {how}", attack.name);
    }
    if !is_root() {
        eprintln!("SKIPPED: the outside half of what takes root");
    }
}

fn refuse_all(mode: &str) {
    let outcome = attack_inside("kernel.py", &[&names(true), mode], &[]);
    assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
    let said = crate::harness::said(&outcome);
    let mut wrong = Vec::new();
    for attack in &REFUSED {
        let how = &said[attack.name];
        if how != attack.errno {
            wrong.push(format!("{}: {how} instead of {}", attack.name, attack.errno));
        }
        if !attack.reported.is_empty() && refused(&outcome, attack.reported) == 0 {
            wrong.push(format!("{}: {} is not among the violations", attack.name, attack.reported));
        }
    }
    assert!(wrong.is_empty(), "from {mode}: {wrong:#?}");
    assert_eq!(refused(&outcome, "clone3"), 0, "a harmless probe is not a violation");
}

#[test]
fn forbidden_calls_fail_inside_from_the_main_thread() {
    refuse_all("main");
}

#[test]
fn forbidden_calls_fail_inside_from_a_second_thread() {
    refuse_all("thread");
}

#[test]
fn forbidden_calls_fail_inside_after_exec() {
    refuse_all("exec");
}

#[test]
fn fatal_calls_reach_the_kernel_outside() {
    let chosen = KILLED.iter().filter(|(_, _, privileged)| is_root() || !privileged);
    let names: Vec<&str> = chosen.clone().map(|(name, ..)| *name).collect();
    let said = attack_outside("kernel.py", &[&names.join(","), "main"]);
    for (name, outside, _) in chosen {
        let how = &said[*name];
        // Kernels find different faults first.
        let as_told = outside.split(" or ").any(|outside| how == outside);
        assert!(as_told || absent(name, how), "{name}: {how} instead of {outside}");
    }
}

#[test]
fn fatal_calls_kill_the_run_and_are_named() {
    for (index, (name, ..)) in KILLED.iter().enumerate() {
        // Every way of calling is seen without running each attack in each.
        let mode = ["main", "thread", "exec"][index % 3];
        let outcome = attack_inside("kernel.py", &[name, mode], &[]);
        assert_eq!(outcome.verdict, Verdict::Violation, "{name} from {mode}: {outcome:#?}");
        assert_eq!(outcome.exit_status(), 159);
        assert_eq!(refused(&outcome, name), 1, "{name}: {:?}", outcome.violations);
        assert!(outcome.message.contains(name), "{}", outcome.message);
        assert!(outcome.stdout.is_empty(), "{name}: the script went on");
    }
}

#[test]
fn calls_of_another_architecture_die_of_sigsys() {
    let outside = attack_outside("kernel.py", &["int80_getpid", "main"]);
    let emulated = &outside["int80_getpid"];
    assert!(emulated == "ok" || emulated == "SIGSEGV", "{emulated}");
    for mode in ["main", "thread", "exec"] {
        let outcome = attack_inside("kernel.py", &["int80_getpid", mode], &[]);
        assert_eq!(crate::harness::said(&outcome)["int80_getpid"], "SIGSYS", "from {mode}: {outcome:#?}");
    }
}

#[test]
fn a_call_of_another_architecture_by_the_script_itself_is_a_violation() {
    let source = r"
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(b'\x53\xb8\x14\x00\x00\x00\xcd\x80\x5b\xc3')
print('alive', ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
";
    let outcome = crate::harness::inside("int80_main", source, &[]);
    assert_eq!(outcome.verdict, Verdict::Violation, "{outcome:#?}");
    assert!(outcome.stdout.is_empty());
}
