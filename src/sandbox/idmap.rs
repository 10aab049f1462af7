//! The guest's user: 1000 inside, outside an id that owns nothing, or the caller's own where there is no other.
//!
//! See user_namespaces(7), "Defining user and group ID mappings".

use std::fs;
use std::io;
use std::ops::Range;

use caps::{CapSet, Capability};
use nix::unistd::{getegid, geteuid};

use super::plan::{Arg, Plan};

/// The guest's user and group id as it sees them.
pub(crate) const GUEST_ID: u32 = 1000;
/// Ids that systemd's table (UIDS-GIDS.md) keeps free, above those of containers. The low 22 bits are a pid's.
const FREE_IDS: Range<u32> = 0x7000_0000..0x7040_0000;

/// Which host ids stand for the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostIds {
    /// An id of the run's own, out of this range of ids that own nothing.
    Free {
        /// First id of the range.
        first: u32,
        /// How many there are.
        count: u32,
    },
    /// The caller's own: an ordinary user may map no other.
    Caller {
        /// Effective user id.
        uid: u32,
        /// Effective group id.
        gid: u32,
    },
}

/// Why no mapping will do.
#[derive(Debug, thiserror::Error)]
#[error(
    "the caller is root of the host without CAP_SETUID and CAP_SETGID, so the guest could only be root of the host too: run nsbox as an ordinary user, or grant both capabilities"
)]
pub struct OnlyRoot;

impl HostIds {
    /// Chooses by what this process may map.
    pub(crate) fn choose() -> Result<Self, OnlyRoot> {
        let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
        if has(Capability::CAP_SETUID) && has(Capability::CAP_SETGID) {
            let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
            if let Some((first, count)) = free_range(&map) {
                return Ok(Self::Free { first, count });
            }
        }
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        // Root of a user namespace is somebody else outside, and may stand for the guest; root of the host may not.
        if uid == 0 && !in_user_namespace() { Err(OnlyRoot) } else { Ok(Self::Caller { uid, gid }) }
    }

    /// The ids of the run whose init has `pid`, in the caller's user namespace.
    pub(crate) fn of(self, pid: libc::pid_t) -> (u32, u32) {
        match self {
            Self::Free { first, count } => {
                let id = first + pid.unsigned_abs() % count;
                (id, id)
            }
            Self::Caller { uid, gid } => (uid, gid),
        }
    }

    /// Whether to give up the supplementary groups: they would follow the guest, and with them what they may read.
    pub(crate) fn drops_groups(self) -> bool {
        matches!(self, Self::Free { .. }) && nix::unistd::getgroups().is_ok_and(|groups| !groups.is_empty())
    }

    /// Writes the maps of init's user namespace; setgroups(2) is denied in it for good.
    pub(crate) fn write(self, pid: libc::pid_t) -> io::Result<(u32, u32)> {
        let (uid, gid) = self.of(pid);
        fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
        fs::write(format!("/proc/{pid}/gid_map"), format!("{GUEST_ID} {gid} 1"))?;
        fs::write(format!("/proc/{pid}/uid_map"), format!("{GUEST_ID} {uid} 1"))?;
        Ok((uid, gid))
    }
}

/// Init becomes the guest's user in all its ids; the capabilities in its namespace stay, for it was never root there.
pub(crate) fn plan_become_guest(plan: &mut Plan) {
    let id = Arg::Value(u64::from(GUEST_ID));
    plan.call("become the guest's group", libc::SYS_setresgid, &[id, id, id]);
    plan.call("become the guest's user", libc::SYS_setresuid, &[id, id, id]);
}

/// A range of ids that own nothing, out of those that `uid_map` has.
fn free_range(uid_map: &str) -> Option<(u32, u32)> {
    let extents = uid_map.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().ok());
        Some((fields.next()??, fields.next()??, fields.next()??))
    });
    let extents: Vec<_> = extents.collect();
    let wanted = u64::from(FREE_IDS.start)..u64::from(FREE_IDS.end);
    if extents.iter().any(|&(first, _, count)| first <= wanted.start && wanted.end <= first + count) {
        return Some((FREE_IDS.start, FREE_IDS.end - FREE_IDS.start));
    }
    // In a container with 65,536 ids: the upper half of them, without the overflow ids at the very top.
    let &(first, _, count) = extents.iter().max_by_key(|extent| extent.2)?;
    if count < 65_536 {
        return None;
    }
    let half = count / 2;
    Some((u32::try_from(first + half).ok()?, u32::try_from(half - 16).ok()?))
}

/// Whether this process is in a user namespace other than the host's.
fn in_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().map(str::parse::<u64>).ne([Ok(0), Ok(0), Ok(4_294_967_295)]))
}
