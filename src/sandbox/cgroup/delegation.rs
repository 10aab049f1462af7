//! Where cgroups of runs can be made on version 2, whose rules are: a child has only the controllers that its parent
//! enables for its children, and a cgroup that enables any has no processes of its own, but for the root.
//!
//! See the kernel's cgroup-v2.rst, "No Internal Process Constraint" and "Delegation".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
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
///
/// None where `own` does not have the controllers to give, nor is there one above it: they may be those of version 1.
pub(super) fn parent_of_runs(own: &Path, top: &Path, owner: &Owner, may_move: bool) -> Result<Option<PathBuf>, Error> {
    let above = || {
        let mut above = own.ancestors().skip(1).take_while(|folder| folder.starts_with(top));
        above.find(|folder| is_enabled(folder) && is_writable(folder).is_ok()).map(Path::to_path_buf)
    };
    if !has_all(&offered(own)) {
        return Ok(above());
    }
    let refused = |source| Error::refused("enable the controllers in", own.join("cgroup.subtree_control"), source);
    match enable(own) {
        Ok(()) => {
            let refused = |errno: Errno| Error::refused("make cgroups in", own.to_path_buf(), errno.into());
            is_writable(own).map_err(refused)?;
            Ok(Some(own.to_path_buf()))
        }
        Err(error) if error.raw_os_error() != Some(libc::EBUSY) => above().ok_or_else(|| refused(error)).map(Some),
        Err(_) if may_move && is_alone(own, owner.pid) => {
            move_to_leaf(own, owner)?;
            enable(own).map_err(refused)?;
            Ok(Some(own.to_path_buf()))
        }
        Err(_) => above().ok_or_else(|| Error::Occupied { path: own.to_path_buf() }).map(Some),
    }
}

/// The controllers that a cgroup may enable for its children.
pub(super) fn offered(folder: &Path) -> Vec<String> {
    words(&folder.join("cgroup.controllers"))
}

fn enable(folder: &Path) -> io::Result<()> {
    if is_enabled(folder) { Ok(()) } else { fs::write(folder.join("cgroup.subtree_control"), "+memory +pids +cpu") }
}

fn is_enabled(folder: &Path) -> bool {
    has_all(&words(&folder.join("cgroup.subtree_control")))
}

fn is_writable(folder: &Path) -> nix::Result<()> {
    access(folder, AccessFlags::W_OK)
}

fn has_all(controllers: &[String]) -> bool {
    REQUIRED.iter().all(|name| controllers.iter().any(|have| have == name))
}

fn words(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn is_alone(folder: &Path, pid: u32) -> bool {
    fs::read_to_string(folder.join("cgroup.procs")).is_ok_and(|pids| pids.split_whitespace().eq([pid.to_string()]))
}

/// The leaf has a name like a run's, so that a later sweep removes it when this process is gone.
fn move_to_leaf(own: &Path, owner: &Owner) -> Result<(), Error> {
    let leaf = own.join(owner.next_name());
    fs::create_dir(&leaf).map_err(|source| Error::refused("make a leaf", leaf.clone(), source))?;
    let path = leaf.join("cgroup.procs");
    fs::write(&path, "0").map_err(|source| Error::refused("move this process into", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the files of a cgroup; the kernel's own rules are tested on a real version 2 hierarchy.
    fn folder(path: &Path, enabled: &str) -> PathBuf {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
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

    fn parent(own: &Path, top: &Path) -> Result<Option<PathBuf>, Error> {
        parent_of_runs(own, top, &Owner::current().unwrap(), false)
    }

    #[test]
    fn own_cgroup_is_taken_where_its_children_have_the_controllers() {
        let top = tempfile::tempdir().unwrap();
        let own = folder(&top.path().join("a"), "cpuset cpu io memory pids\n");
        assert_eq!(parent(&own, top.path()).unwrap(), Some(own));
    }

    #[test]
    fn own_cgroup_is_taken_where_they_can_be_enabled() {
        let top = tempfile::tempdir().unwrap();
        let own = folder(&top.path().join("a"), "memory\n");
        assert_eq!(parent(&own, top.path()).unwrap().as_ref(), Some(&own));
        assert_eq!(fs::read_to_string(own.join("cgroup.subtree_control")).unwrap(), "+memory +pids +cpu");
    }

    #[test]
    fn nearest_enabled_cgroup_above_is_taken_where_the_own_one_lacks_a_controller() {
        let top = tempfile::tempdir().unwrap();
        folder(top.path(), "cpu memory pids\n");
        let slice = folder(&top.path().join("slice"), "cpu memory pids\n");
        let own = folder(&slice.join("unit/scope"), "");
        fs::write(own.join("cgroup.controllers"), "memory pids\n").unwrap();
        assert_eq!(parent(&own, top.path()).unwrap(), Some(slice.clone()));
        assert_eq!(parent(&own, &slice.join("unit")).unwrap(), None, "what is above the mount is not there");
    }

    #[test]
    fn refusal_names_the_file() {
        let top = tempfile::tempdir().unwrap();
        let own = folder(&top.path().join("own"), "");
        fs::remove_file(own.join("cgroup.subtree_control")).unwrap();
        fs::create_dir(own.join("cgroup.subtree_control")).unwrap();
        let error = parent(&own, top.path()).unwrap_err();
        assert!(error.to_string().contains("own/cgroup.subtree_control"), "{error}");
    }
}
