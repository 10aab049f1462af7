//! Landlock, on top of the mounts: reading and executing under `/`, writing where a tmpfs is, no TCP, no signals or
//! abstract sockets out of the sandbox.
//!
//! Best effort: a kernel without it (or with an older ABI) runs the guest with what it has, and the outcome says which.
//! See landlock(7) and the kernel's userspace-api/landlock.rst.

use std::ffi::CStr;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::plan::{Arg, Plan, literal};
use crate::sys::mount::{landlock_abi, landlock_allow, landlock_ruleset};

/// Reading files and listing folders.
pub(crate) const READ: u64 = 1 << 2 | 1 << 3;
/// Listing folders alone.
const LIST: u64 = 1 << 3;
/// Executing files.
pub(crate) const EXECUTE: u64 = 1;
/// All that a private folder is for.
pub(crate) const WRITE: u64 = READ | WRITE_FILE | TRUNCATE | CHANGE;
/// What a folder is for whose content is counted: nothing is removed from it, and a new name would be a removal.
pub(crate) const FILL: u64 = WRITE & !(1 << 4 | 1 << 5 | 1 << 13);
/// What /dev/null is for.
pub(crate) const DEVICE: u64 = 1 << 2 | WRITE_FILE | TRUNCATE;
/// What a rule may say of a file: the others are about folders.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | 1 << 2 | TRUNCATE | 1 << 15;
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

/// `struct landlock_ruleset_attr` as `abi` has it: file system rights, TCP, scopes.
fn attributes(abi: i32) -> Vec<u64> {
    match abi {
        1..=3 => vec![handled(abi)],
        4 | 5 => vec![handled(abi), 0b11],
        _ => vec![handled(abi), 0b11, 0b11],
    }
}

/// Plans the rules and their enforcement on init and all that comes after it. The new root is in place by now.
pub(crate) fn plan_restrict(plan: &mut Plan, abi: i32, output: bool) {
    let (handled, attr) = (handled(abi), attributes(abi));
    let bytes: Vec<u8> = attr.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let ruleset = plan.open(
        "make the Landlock ruleset",
        libc::SYS_landlock_create_ruleset,
        &[Arg::Bytes(&bytes), Arg::Value(bytes.len() as u64), Arg::Value(0)],
    );
    let mut rules: Vec<(&'static CStr, u64)> = vec![
        (c"/", READ | EXECUTE),
        (c"/tmp", WRITE),
        (c"/work", WRITE),
        (c"/dev/shm", WRITE),
        (c"/dev", READ | WRITE_FILE | TRUNCATE),
        (c"/proc", READ | WRITE_FILE),
    ];
    if output {
        rules.push((c"/output", WRITE));
    }
    for (path, rights) in rules {
        plan_rule(plan, Arg::Register(ruleset), path, rights & handled);
    }
    plan_enforce(plan, Arg::Register(ruleset));
    plan.close(ruleset);
}

/// Plans that the process may read what is its own in its folder of /proc: also the host's mounts, sockets and cgroups are
/// there.
pub(crate) fn plan_own_process(plan: &mut Plan, abi: i32, ruleset: RawFd) {
    for path in [c"/proc/self/fd", c"/proc/self/fdinfo", c"/proc/self/task"] {
        plan_rule(plan, Arg::Fd(ruleset), path, LIST & handled(abi));
    }
    for path in [
        c"/proc/self/cmdline",
        c"/proc/self/limits",
        c"/proc/self/maps",
        c"/proc/self/smaps",
        c"/proc/self/stat",
        c"/proc/self/statm",
        c"/proc/self/status",
    ] {
        plan_rule(plan, Arg::Fd(ruleset), path, READ & OF_FILES);
    }
}

/// Plans that the rules hold, for this process and all that come from it. no_new_privs is set by then.
pub(crate) fn plan_enforce(plan: &mut Plan, ruleset: Arg<'_>) {
    plan.call("enforce Landlock", libc::SYS_landlock_restrict_self, &[ruleset, Arg::Value(0)]);
}

fn plan_rule(plan: &mut Plan, ruleset: Arg<'_>, path: &'static CStr, rights: u64) {
    let flags = Arg::Value((libc::O_PATH | libc::O_CLOEXEC) as u64);
    let parent = plan.open("open a Landlock path", libc::SYS_openat, &[Arg::Fd(libc::AT_FDCWD), literal(path), flags]);
    // struct landlock_path_beneath_attr, packed: u64 allowed_access, s32 parent_fd.
    let mut rule = [0; 12];
    rule[..8].copy_from_slice(&rights.to_ne_bytes());
    let rule = plan.data(&rule);
    plan.store(rule, 8, parent);
    let args = [ruleset, Arg::Value(1), Arg::Data(rule), Arg::Value(0)];
    plan.call("add a Landlock rule", libc::SYS_landlock_add_rule, &args);
    plan.close(parent);
}

/// Rules that this process makes and another enforces.
#[derive(Debug)]
pub(crate) struct Rules {
    ruleset: OwnedFd,
    handled: u64,
}

impl Rules {
    /// Nothing is allowed.
    pub(crate) fn new(abi: i32) -> io::Result<Self> {
        Ok(Self { ruleset: landlock_ruleset(&attributes(abi))?, handled: handled(abi) })
    }

    /// Allows `rights` at `path` and below.
    pub(crate) fn allow(&self, path: &Path, rights: u64) -> io::Result<()> {
        let place = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
        let rights = if place.metadata()?.is_dir() { rights } else { rights & OF_FILES };
        landlock_allow(&self.ruleset, rights & self.handled, &place)
    }
}

impl From<Rules> for OwnedFd {
    fn from(rules: Rules) -> Self {
        rules.ruleset
    }
}
