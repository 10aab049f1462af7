//! Landlock, on top of the mounts: reading and executing under `/`, writing where a tmpfs is, no TCP, no signals or
//! abstract sockets out of the sandbox.
//!
//! Best effort: a kernel without it (or with an older ABI) runs the guest with what it has, and the outcome says which.
//! See landlock(7) and the kernel's userspace-api/landlock.rst.

use std::ffi::CStr;

use super::plan::{Arg, Plan, literal};
use crate::sys::mount::landlock_abi;

const READ: u64 = 1 << 2 | 1 << 3;
const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const TRUNCATE: u64 = 1 << 14;
/// Remove and make folders, files, sockets, FIFOs and links, but no devices.
const CHANGE: u64 = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13;

/// The highest ABI whose rights are known here.
const NEWEST: i32 = 7;

/// The first ABI with scopes: no signals and no abstract sockets out of the sandbox.
pub(crate) const SCOPED: i32 = 6;

/// The Landlock ABI that will be enforced; `None` where the kernel has none.
pub(crate) fn abi() -> Option<i32> {
    landlock_abi().ok().filter(|abi| *abi > 0).map(|abi| abi.min(NEWEST))
}

/// File system rights that `abi` handles: 13 at first, then REFER (2), TRUNCATE (3) and IOCTL_DEV (5).
fn handled(abi: i32) -> u64 {
    match abi {
        1 => (1 << 13) - 1,
        2 => (1 << 14) - 1,
        3 | 4 => (1 << 15) - 1,
        _ => (1 << 16) - 1,
    }
}

/// Plans the rules and their enforcement on init and all that comes after it. The new root is in place by now.
pub(crate) fn plan_restrict(plan: &mut Plan, abi: i32, output: bool) {
    let handled = handled(abi);
    let (network, scoped) = (if abi >= 4 { 0b11 } else { 0 }, if abi >= SCOPED { 0b11 } else { 0 });
    let size = match abi {
        1..=3 => 8,
        4 | 5 => 16,
        _ => 24,
    };
    let attr: Vec<u8> = [handled, network, scoped].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let ruleset = plan.open(
        "make the Landlock ruleset",
        libc::SYS_landlock_create_ruleset,
        &[Arg::Bytes(&attr), Arg::Value(size), Arg::Value(0)],
    );
    let write = READ | WRITE_FILE | TRUNCATE | CHANGE;
    let mut rules: Vec<(&'static CStr, u64)> = vec![
        (c"/", READ | EXECUTE),
        (c"/tmp", write),
        (c"/work", write),
        (c"/dev/shm", write),
        (c"/dev", READ | WRITE_FILE | TRUNCATE),
        (c"/proc", READ | WRITE_FILE),
    ];
    if output {
        rules.push((c"/output", write));
    }
    for (path, rights) in rules {
        let flags = Arg::Value((libc::O_PATH | libc::O_CLOEXEC) as u64);
        let parent =
            plan.open("open a Landlock path", libc::SYS_openat, &[Arg::Fd(libc::AT_FDCWD), literal(path), flags]);
        // struct landlock_path_beneath_attr, packed: u64 allowed_access, s32 parent_fd.
        let mut rule = [0; 12];
        rule[..8].copy_from_slice(&(rights & handled).to_ne_bytes());
        let rule = plan.data(&rule);
        plan.store(rule, 8, parent);
        let args = [Arg::Register(ruleset), Arg::Value(1), Arg::Data(rule), Arg::Value(0)];
        plan.call("add a Landlock rule", libc::SYS_landlock_add_rule, &args);
        plan.close(parent);
    }
    let args = [Arg::Register(ruleset), Arg::Value(0)];
    plan.call("enforce Landlock", libc::SYS_landlock_restrict_self, &args);
    plan.close(ruleset);
}
