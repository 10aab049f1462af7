//! The guest's user: 1000 inside, outside an id that owns nothing, or the caller's own where there is no other.
//!
//! See user_namespaces(7), "Defining user and group ID mappings".

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use caps::{CapSet, Capability};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{getegid, geteuid};

use super::plan::{Arg, Plan};
use crate::sys::clone::{Spawn, spawn};

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
    "the caller is root of the host, and may map no other id (for want of CAP_SETUID and CAP_SETGID, or in a user namespace of root alone), so the guest could only be root of the host too: run nsbox as an ordinary user, or grant both capabilities outside a user namespace"
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
        // Root of a user namespace is mostly somebody else outside, and may then stand for the guest.
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        if uid == 0 && outside(&map, uid) == Some(0) { Err(OnlyRoot) } else { Ok(Self::Caller { uid, gid }) }
    }

    /// The ids of a run by this thread, in the caller's user namespace. No other run has them at the same time: a thread
    /// watches one run at once, and no two threads of a machine have the same id.
    pub(crate) fn of_this_thread(self) -> (u32, u32) {
        match self {
            Self::Free { first, count } => {
                let id = first + nix::unistd::gettid().as_raw().unsigned_abs() % count;
                (id, id)
            }
            Self::Caller { uid, gid } => (uid, gid),
        }
    }

    /// Whether to give up the supplementary groups: they would follow the guest, and with them what they may read.
    pub(crate) fn drops_groups(self) -> bool {
        matches!(self, Self::Free { .. }) && nix::unistd::getgroups().is_ok_and(|groups| !groups.is_empty())
    }
}

/// Writes the maps of the user namespace of `pid`: one id each, inside and outside; setgroups(2) is denied for good.
pub(crate) fn write_maps(pid: libc::pid_t, inside: (u32, u32), outside: (u32, u32)) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    fs::write(format!("/proc/{pid}/gid_map"), format!("{} {} 1", inside.1, outside.1))?;
    fs::write(format!("/proc/{pid}/uid_map"), format!("{} {} 1", inside.0, outside.0))
}

/// A user namespace for an idmapped mount: what `owner` owns on disk belongs to `guest` (host ids) through the mount, so
/// that the guest can read a file that only its owner may. mount_setattr(2), "ID-mapped mounts".
pub(crate) fn mount_namespace(init: BorrowedFd<'_>, owner: (u32, u32), guest: (u32, u32)) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (control, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let holder = spawn(Spawn {
        init,
        control: theirs.as_fd(),
        namespaces: libc::CLONE_NEWUSER as u64,
        cgroup: None,
        drop_groups: false,
    })
    .map_err(|error| error.source)?;
    let namespace = write_maps(holder.pid, owner, guest)
        .and_then(|()| Ok(fs::File::open(format!("/proc/{}/ns/user", holder.pid))?.into()));
    // The descriptor keeps the namespace.
    drop((holder, control));
    namespace
}

/// Whether everybody may read a file, or a folder with all that is in it.
pub(crate) fn is_everybodys(path: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        return Ok(true);
    }
    let needed = if metadata.is_dir() { 0o005 } else { 0o004 };
    if metadata.mode() & needed != needed {
        return Ok(false);
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            if !is_everybodys(&entry?.path())? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Init becomes the guest's user in all its ids; the capabilities in its namespace stay, for it was never root there.
pub(crate) fn plan_become_guest(plan: &mut Plan) {
    let id = Arg::Value(u64::from(GUEST_ID));
    plan.call("become the guest's group", libc::SYS_setresgid, &[id, id, id]);
    plan.call("become the guest's user", libc::SYS_setresuid, &[id, id, id]);
}

/// A range of ids that own nothing, out of those that `uid_map` has.
fn free_range(uid_map: &str) -> Option<(u32, u32)> {
    let extents = extents(uid_map);
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

/// What `id` is in the user namespace around this one, by `uid_map`; on the host, itself.
fn outside(uid_map: &str, id: u32) -> Option<u64> {
    let id = u64::from(id);
    let extents = extents(uid_map);
    extents
        .iter()
        .find(|(first, _, count)| (*first..first + count).contains(&id))
        .map(|(first, out, _)| out + id - first)
}

/// The lines of a `uid_map`: first id inside, first id outside, count.
fn extents(uid_map: &str) -> Vec<(u64, u64, u64)> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace().map(|field| field.parse().ok());
        Some((fields.next()??, fields.next()??, fields.next()??))
    };
    uid_map.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_everybodys_only_with_all_that_is_in_it() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(folder.path(), 0o755);
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        set(&inner, 0o755);
        let file = inner.join("file");
        fs::write(&file, "").unwrap();
        set(&file, 0o604);
        symlink("/nowhere", inner.join("link")).unwrap();
        assert!(is_everybodys(folder.path()).unwrap());
        set(&file, 0o640);
        assert!(!is_everybodys(folder.path()).unwrap());
        set(&file, 0o604);
        set(&inner, 0o754);
        assert!(!is_everybodys(folder.path()).unwrap());
    }

    #[test]
    fn root_of_a_namespace_is_told_from_root_of_the_host() {
        assert_eq!(outside("         0          0 4294967295\n", 0), Some(0));
        assert_eq!(outside("0 0 1", 0), Some(0), "unshare -U -r by root");
        assert_eq!(outside("0 1000 1\n1 100000 65536", 0), Some(1000));
        assert_eq!(outside("0 1000 1\n1 100000 65536", 5), Some(100_004));
        assert_eq!(outside("1000 1000 1", 0), None);
    }
}
