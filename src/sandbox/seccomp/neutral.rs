//! The system calls that leave no trace in the kernel once the guest's memory is put back: all others that a profile allows
//! are told to the supervisor before they run, where a slot is to be used again.
//!
//! A call that is told runs as it would have; the slot serves no further run. So this list only has to be right, not long:
//! a script that computes makes no other calls, and one that imports further modules or prints makes few. What may be
//! open is known: the guest's five descriptors, which none of these calls closes, replaces or moves, and files opened for
//! reading, which the restorer finds.

use std::collections::BTreeMap;

use super::arch::Arch;
use super::compile::Chain;
use super::profile::{Action, Condition, LOW_HALF, Op};

/// Those that are neutral whatever their arguments.
#[rustfmt::skip]
const ALWAYS: &[&str] = &[
    // Looking at files, and at folders.
    "stat", "fstat", "lstat", "newfstatat", "statx", "statfs", "fstatfs", "access", "faccessat", "faccessat2",
    "readlink", "readlinkat", "getdents", "getdents64", "getcwd", "pread64", "preadv",
    // Looking at oneself, and at the machine.
    "getpid", "gettid", "getppid", "getpgrp", "getpgid", "getsid", "getuid", "geteuid", "getgid", "getegid", "getresuid",
    "getresgid", "getgroups", "getpriority", "getrlimit", "getrusage", "times", "uname", "sysinfo", "sched_getaffinity", "getcpu",
    // Clocks, chance and waiting.
    "clock_gettime", "clock_getres", "gettimeofday", "time", "getrandom", "sched_yield", "nanosleep", "clock_nanosleep",
    "restart_syscall",
    // A message to the supervisor, who drops what it did not ask for: init's own, with the listener, once the filter is there.
    "sendmsg",
    // The end.
    "exit", "exit_group",
];

/// The guest's descriptors, as in `sandbox/guest.rs`: stdin, stdout, stderr, its line, the memfd of its result.
const DESCRIPTORS: std::ops::Range<u64> = 0..5;
/// The last of them has an offset and a content, which stay.
const RESULT: u64 = 4;

const fn low(index: u8, mask: u64, value: u64) -> Condition {
    Condition { index, op: Op::MaskedEq(mask), value }
}

/// The rules of a call that is neutral with some arguments, and what becomes of it with all others.
fn rules(name: &str) -> Option<(Vec<Condition>, bool)> {
    // Either these make it neutral (true), each by itself, or each of them makes it not (false).
    let of_flags = |index| {
        let writes =
            libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY | libc::O_APPEND;
        (vec![low(index, u64::from(writes.unsigned_abs()), 0)], true)
    };
    Some(match name {
        "read" | "readv" | "write" | "writev" | "lseek" => (vec![low(0, LOW_HALF, RESULT)], false),
        "close" => (DESCRIPTORS.map(|fd| low(0, LOW_HALF, fd)).collect(), false),
        "open" => of_flags(1),
        "openat" => of_flags(2),
        // Copies pages, no more.
        "madvise" => ([22, 23].map(|advice| low(2, LOW_HALF, advice)).to_vec(), true),
        "ioctl" => (vec![low(1, LOW_HALF, libc::TCGETS)], true),
        "fcntl" => {
            let looks = [libc::F_GETFD, libc::F_GETFL];
            (looks.map(|command| low(1, LOW_HALF, u64::from(command.unsigned_abs()))).to_vec(), true)
        }
        // FUTEX_WAIT, _WAKE and their _BITSET forms, private or not, on either clock.
        "futex" => ([0, 1, 9, 10].map(|operation| low(1, LOW_HALF & !0x180, operation)).to_vec(), true),
        // Only looks where there is no new limit.
        "prlimit64" => (vec![Condition { index: 2, op: Op::Eq, value: 0 }], true),
        _ => return None,
    })
}

/// Has all others told, that `chains` allow.
pub(super) fn notice(chains: &mut BTreeMap<u32, Chain>, arch: Arch) {
    for (number, chain) in chains {
        let name = arch.name(*number).unwrap_or_default();
        if ALWAYS.contains(&name) {
            continue;
        }
        let (conditions, makes_neutral) = rules(name).unwrap_or((Vec::new(), true));
        let (then, otherwise) =
            if makes_neutral { (Action::Allow, Action::Notice) } else { (Action::Notice, Action::Allow) };
        // What the profile allows, it allows with these arguments too: their rule comes before its own.
        let with = |allowed: &[Condition]| -> Vec<_> {
            conditions.iter().map(|condition| ([allowed, &[*condition]].concat(), then)).collect()
        };
        chain.rules = std::mem::take(&mut chain.rules)
            .into_iter()
            .flat_map(|(allowed, action)| match action {
                Action::Allow => [with(&allowed), vec![(allowed, otherwise)]].concat(),
                _ => vec![(allowed, action)],
            })
            .collect();
        if chain.otherwise == Action::Allow {
            chain.rules.extend(with(&[]));
            chain.otherwise = otherwise;
        }
    }
}
