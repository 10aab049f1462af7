//! Where cgroups of runs can be made on version 2, whose rules are: a child has only the controllers that its parent
//! enables for its children, and a cgroup that enables any has no processes of its own, but for the root.
//!
//! See the kernel's cgroup-v2.rst, "No Internal Process Constraint" and "Delegation".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::{Error, Owner, REQUIRED};

/// The root and the mount point of the version 2 hierarchy; proc_pid_mountinfo(5). cgroups-rs reads those of version 1 alone.
pub(super) fn mount() -> Option<(PathBuf, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        file_system.starts_with("cgroup2 ").then_some(())?;
        Some((fields.next()?.into(), fields.next()?.into()))
    })
}

/// Chooses the cgroup under which runs get theirs, for a process in the cgroup `own` of a hierarchy mounted at `top`:
///
/// 1. its own, where the controllers are enabled for children or can be;
/// 2. its own again, after this process has moved into a leaf of it: only if `may_move`, and nobody else is in it;
/// 3. the nearest one above it that has them enabled and lets this process write.
pub(super) fn parent_of_runs(own: PathBuf, top: &Path, owner: &Owner, may_move: bool) -> Result<PathBuf, Error> {
    let refused = match enable(&own) {
        Ok(()) => return Ok(own),
        Err(error) => error,
    };
    let busy = refused.raw_os_error() == Some(libc::EBUSY);
    if busy && may_move && is_alone(&own, owner.pid) {
        move_to_leaf(&own, owner)?;
        let path = own.join("cgroup.subtree_control");
        enable(&own).map_err(|source| Error::Refused { step: "enable the controllers in", path, source })?;
        return Ok(own);
    }
    let above = own.ancestors().skip(1).take_while(|folder| folder.starts_with(top));
    match above.into_iter().find(|folder| is_enabled(folder) && access(*folder, AccessFlags::W_OK).is_ok()) {
        Some(folder) => Ok(folder.to_path_buf()),
        None if busy => Err(Error::Occupied { path: own }),
        None => {
            let path = own.join("cgroup.subtree_control");
            Err(Error::Refused { step: "enable the controllers in", path, source: refused })
        }
    }
}

fn enable(folder: &Path) -> io::Result<()> {
    if is_enabled(folder) { Ok(()) } else { fs::write(folder.join("cgroup.subtree_control"), "+memory +pids +cpu") }
}

fn is_enabled(folder: &Path) -> bool {
    let enabled = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
    REQUIRED.iter().all(|name| enabled.split_whitespace().any(|have| have == *name))
}

fn is_alone(folder: &Path, pid: u32) -> bool {
    fs::read_to_string(folder.join("cgroup.procs")).is_ok_and(|pids| pids.split_whitespace().eq([pid.to_string()]))
}

/// The leaf has a name like a run's, so that a later sweep removes it when this process is gone.
fn move_to_leaf(own: &Path, owner: &Owner) -> Result<(), Error> {
    let leaf = own.join(owner.next_name());
    fs::create_dir(&leaf).map_err(|source| Error::Refused { step: "make a leaf", path: leaf.clone(), source })?;
    let path = leaf.join("cgroup.procs");
    fs::write(&path, "0").map_err(|source| Error::Refused { step: "move this process into", path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the files of a cgroup; the kernel's own rules are tested on a real version 2 hierarchy.
    fn folder(path: &Path, enabled: &str) -> PathBuf {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("cgroup.subtree_control"), enabled).unwrap();
        fs::write(path.join("cgroup.procs"), "").unwrap();
        path.to_path_buf()
    }

    #[test]
    fn version_2_hierarchy_is_found_by_its_mount() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let found = mount();
        assert_eq!(found.is_some(), mounts.contains(" - cgroup2 "), "{mounts}");
        if let Some((_, point)) = found {
            assert!(point.join("cgroup.controllers").exists(), "{}", point.display());
        }
    }

    #[test]
    fn own_cgroup_is_taken_where_its_children_have_the_controllers() {
        let top = tempfile::tempdir().unwrap();
        let own = folder(&top.path().join("a"), "cpuset cpu io memory pids\n");
        let owner = Owner::current().unwrap();
        assert_eq!(parent_of_runs(own.clone(), top.path(), &owner, false).unwrap(), own);
    }

    #[test]
    fn own_cgroup_is_taken_where_they_can_be_enabled() {
        let top = tempfile::tempdir().unwrap();
        let own = folder(&top.path().join("a"), "memory\n");
        let owner = Owner::current().unwrap();
        assert_eq!(parent_of_runs(own.clone(), top.path(), &owner, false).unwrap(), own);
        assert_eq!(fs::read_to_string(own.join("cgroup.subtree_control")).unwrap(), "+memory +pids +cpu");
    }

    #[test]
    fn nearest_enabled_cgroup_above_is_taken_where_the_own_one_refuses() {
        let top = tempfile::tempdir().unwrap();
        folder(top.path(), "cpu memory pids\n");
        let slice = folder(&top.path().join("slice"), "cpu memory pids\n");
        let own = slice.join("unit/scope");
        let owner = Owner::current().unwrap();
        // No such folder: enabling fails.
        assert_eq!(parent_of_runs(own, top.path(), &owner, true).unwrap(), slice);
    }

    #[test]
    fn refusal_names_the_file() {
        let top = tempfile::tempdir().unwrap();
        folder(top.path(), "memory\n");
        let owner = Owner::current().unwrap();
        let error = parent_of_runs(top.path().join("none"), top.path(), &owner, true).unwrap_err();
        assert!(error.to_string().contains("none/cgroup.subtree_control"), "{error}");
    }
}
