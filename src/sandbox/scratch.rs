//! A folder of one run among the temporary files, where a run without a file system of its own has what it needs.
//!
//! Its name tells whose it is: the next run removes what a killed supervisor left.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::cgroup::Owner;

/// Removed with what is in it.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes one of this mode for a run of `owner`'s; those that dead supervisors left are removed first.
    pub(crate) fn make(owner: &Owner, mode: u32) -> io::Result<Self> {
        let place = std::env::temp_dir();
        sweep(&place, owner);
        let path = place.join(owner.next_name());
        DirBuilder::new().mode(mode).create(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// What is in the way of that is tried again by the next run's sweep.
fn remove(folder: &Path) {
    fs::remove_dir_all(folder).ok();
}

/// Removes what dead supervisors of this user left.
fn sweep(place: &Path, owner: &Owner) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries.flatten() {
        let is_ours = entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == geteuid().as_raw());
        if is_ours && entry.file_name().to_str().is_some_and(|name| owner.is_stale(name)) {
            remove(&entry.path());
        }
    }
}
