//! The folder of a run for which nothing can be mounted: what stands for /work, /tmp, /input and /output.
//!
//! Nothing bounds it but its supervisor, who counts what is in it. So its guest may make files, and neither remove one nor
//! rename one nor hold one that has no name: names only come, and what is counted is all there is. See setfsuid(2), ptrace(2).

use std::cell::Cell;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};

use crate::config::Limits;
use crate::sandbox::cgroup::Owner;
use crate::sandbox::idmap::is_everybodys;
use crate::sandbox::scratch::Scratch;

/// How often it is counted at most.
const COUNT_EVERY: Duration = Duration::from_millis(50);
/// To count it may take one part of the supervisor's time in so many.
const SHARE: u32 = 10;

/// The folders of one run, removed with what is in them.
#[derive(Debug)]
pub(crate) struct Folder {
    pub work: PathBuf,
    pub tmp: PathBuf,
    pub input: PathBuf,
    pub output: PathBuf,
    scratch: Scratch,
    guest: (u32, u32),
    next_count: Cell<Option<Instant>>,
}

impl Folder {
    /// Makes them for the guest's user.
    pub(crate) fn make(owner: &Owner, guest: (u32, u32)) -> io::Result<Self> {
        let scratch = Scratch::make(owner, 0o711)?;
        let [work, tmp, input, output] = ["work", "tmp", "input", "output"].map(|name| scratch.path().join(name));
        let folder = Self { work, tmp, input, output, scratch, guest, next_count: Cell::new(None) };
        for path in folder.writable() {
            DirBuilder::new().mode(0o700).create(path)?;
            chown(path, Some(guest.0), Some(guest.1))?;
        }
        make_readable_folder(&folder.input)?;
        Ok(folder)
    }

    /// The one that they all are in.
    pub(crate) fn root(&self) -> &Path {
        self.scratch.path()
    }

    /// Those that the guest may fill.
    pub(crate) fn writable(&self) -> [&Path; 3] {
        [&self.work, &self.tmp, &self.output]
    }

    /// Shows a file or folder as `input/NAME`: by a link, or as a copy where the guest is another user, who may not read it.
    pub(crate) fn show(&self, name: &str, source: &Path) -> io::Result<PathBuf> {
        let real = source.canonicalize()?;
        let metadata = fs::metadata(&real)?;
        if !metadata.is_dir() && !metadata.is_file() {
            return Err(io::Error::other("an input is a regular file or a folder"));
        }
        let place = self.input.join(name);
        if self.guest.0 == geteuid().as_raw() || is_reachable(&real)? && is_everybodys(&real)? {
            symlink(real, &place)?;
        } else {
            copy(&real, &place)?;
        }
        Ok(place)
    }

    /// Whether more is in it than may be, as far as that has been counted.
    pub(crate) fn is_over(&self, limits: &Limits) -> bool {
        let begun = Instant::now();
        if self.next_count.get().is_some_and(|at| begun < at) {
            return false;
        }
        let mut left = (limits.disk, limits.inodes);
        let fits = self.as_owner(|| self.writable().into_iter().all(|place| fits(place, &mut left)));
        self.next_count.set(Some(Instant::now() + COUNT_EVERY.max(SHARE * begun.elapsed())));
        !fits
    }

    /// Looks with the guest's rights to files: without CAP_SYS_PTRACE, which containers lack, not even root may look into a
    /// process of another user. Only this thread has them, and only meanwhile.
    pub(crate) fn as_owner<T>(&self, look: impl FnOnce() -> T) -> T {
        let _back = FileIds::take(self.guest);
        look()
    }
}

/// The ids of this thread for files, which it gets back when this is dropped.
struct FileIds(Option<(Uid, Gid)>);

impl FileIds {
    fn take((uid, gid): (u32, u32)) -> Self {
        if uid == geteuid().as_raw() {
            return Self(None);
        }
        let gid = setfsgid(Gid::from_raw(gid));
        Self(Some((setfsuid(Uid::from_raw(uid)), gid)))
    }
}

impl Drop for FileIds {
    fn drop(&mut self) {
        if let Some((uid, gid)) = self.0 {
            setfsuid(uid);
            setfsgid(gid);
        }
    }
}

/// Takes what is in a folder from what may be: bytes and files.
fn fits(folder: &Path, left: &mut (u64, u64)) -> bool {
    fs::read_dir(folder).into_iter().flatten().flatten().all(|entry| {
        let Ok(metadata) = entry.metadata() else { return true };
        let Some(rest) = left.0.checked_sub(metadata.blocks() * 512).zip(left.1.checked_sub(1)) else { return false };
        *left = rest;
        !metadata.is_dir() || fits(&entry.path(), left)
    })
}

/// Whether every folder above a path lets everybody through.
fn is_reachable(path: &Path) -> io::Result<bool> {
    for folder in path.ancestors().skip(1) {
        if fs::metadata(folder)?.mode() & 0o001 == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Copies a file or folder so that everybody may read it; links stay links, and what is none of these is left out.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)
    } else if kind.is_dir() {
        make_readable_folder(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        Ok(())
    } else if kind.is_file() {
        fs::copy(from, to)?;
        fs::set_permissions(to, Permissions::from_mode(0o644))
    } else {
        Ok(())
    }
}

/// Whatever the umask is.
fn make_readable_folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}
