//! Resource limits of each process: a second line behind the cgroup, and the only one for files and core dumps.
//!
//! See getrlimit(2).

use nix::sys::resource::{Resource, getrlimit};

use super::plan::{Arg, Plan};
use crate::config::Limits;

/// A limit as it will be set, soft and hard alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rlimit {
    /// Its name, as in getrlimit(2) without the prefix.
    pub name: &'static str,
    resource: Resource,
    /// What the configuration asks for.
    pub configured: u64,
    /// What can be set: an unprivileged process cannot go over its own hard limit.
    pub applied: u64,
}

/// Addresses that an interpreter, its libraries and their threads reserve beyond the memory that they use.
const RESERVED: u64 = 1 << 30;

/// The limits of a run.
pub(crate) fn of(limits: &Limits) -> Vec<Rlimit> {
    let mut wanted = vec![
        ("CORE", Resource::RLIMIT_CORE, 0),
        ("NOFILE", Resource::RLIMIT_NOFILE, limits.open_files),
        ("FSIZE", Resource::RLIMIT_FSIZE, limits.file_size.unwrap_or(limits.disk)),
        // Counted in the sandbox's own user namespace; init counts too.
        ("NPROC", Resource::RLIMIT_NPROC, u64::from(limits.pids) + 1),
        ("MEMLOCK", Resource::RLIMIT_MEMLOCK, 64 << 10),
        ("MSGQUEUE", Resource::RLIMIT_MSGQUEUE, 800 << 10),
        ("SIGPENDING", Resource::RLIMIT_SIGPENDING, 1024),
        ("STACK", Resource::RLIMIT_STACK, 8 << 20),
        ("NICE", Resource::RLIMIT_NICE, 0),
        ("RTPRIO", Resource::RLIMIT_RTPRIO, 0),
    ];
    if let Some(time) = limits.cpu_time {
        // Whole seconds for one process; the supervisor enforces the exact limit for all of them together.
        wanted.push(("CPU", Resource::RLIMIT_CPU, time.as_secs() + 2));
    }
    wanted
        .into_iter()
        .map(|(name, resource, configured)| {
            let hard = getrlimit(resource).map_or(configured, |(_, hard)| hard);
            Rlimit { name, resource, configured, applied: configured.min(hard) }
        })
        .collect()
}

/// Bounds the addresses of each process: where memory is only measured, the most that one can take between two looks.
pub(crate) fn bound_addresses(all: &mut Vec<Rlimit>, memory: u64) {
    let (resource, configured) = (Resource::RLIMIT_AS, memory.saturating_add(RESERVED));
    let hard = getrlimit(resource).map_or(u64::MAX, |(_, hard)| hard);
    all.push(Rlimit { name: "AS", resource, configured, applied: configured.min(hard) });
}

/// Where a user's processes are counted together, `others` are there already.
pub(crate) fn allow_more_processes(limits: &mut [Rlimit], others: u64) {
    for limit in limits.iter_mut().filter(|limit| limit.resource == Resource::RLIMIT_NPROC) {
        let hard = getrlimit(limit.resource).map_or(u64::MAX, |(_, hard)| hard);
        limit.applied = limit.configured.saturating_add(others).min(hard);
    }
}

/// Plans them for init, whose children inherit them; but for that of open files, of which init still holds many.
pub(crate) fn plan(plan: &mut Plan, limits: &[Rlimit]) {
    limits.iter().filter(|limit| limit.resource != Resource::RLIMIT_NOFILE).for_each(|limit| set(plan, limit));
}

/// Plans the limit of open files, for the guest's process: the descriptors above it are closed by its `execve`.
pub(crate) fn plan_open_files(plan: &mut Plan, limits: &[Rlimit]) {
    limits.iter().filter(|limit| limit.resource == Resource::RLIMIT_NOFILE).for_each(|limit| set(plan, limit));
}

/// Plans the limit of CPU time again, for a process forked from one that has used some.
pub(crate) fn plan_cpu_time(plan: &mut Plan, limits: &[Rlimit]) {
    limits.iter().filter(|limit| limit.resource == Resource::RLIMIT_CPU).for_each(|limit| set(plan, limit));
}

fn set(plan: &mut Plan, limit: &Rlimit) {
    let pair: Vec<u8> = [limit.applied; 2].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let args = [Arg::Value(0), Arg::Value(limit.resource as u64), Arg::Bytes(&pair), Arg::Value(0)];
    plan.call(format!("set RLIMIT_{}", limit.name), libc::SYS_prlimit64, &args);
}
