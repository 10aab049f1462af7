//! The tree that an image is unpacked into, walked by descriptors alone: no path of an archive ever leaves it.
//!
//! Folders on the way to an entry are opened with `RESOLVE_IN_ROOT`, openat2(2): links among them lead where they will
//! lead in the guest, and a `..` or an absolute target stops at the tree's own root. What the entry itself names is made
//! or removed by its last component in the folder found so, and no link is followed there.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::BuildHasher;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

/// How deep folders may lie: no image comes near, and every level holds a descriptor while the tree is walked.
pub(crate) const MAX_DEPTH: usize = 128;
/// How long a path in the tree may be: below PATH_MAX with the store's own path before it.
pub(crate) const MAX_PATH: usize = 3072;
/// How often a lookup that raced with a rename elsewhere is tried again.
const RETRIES: usize = 100;

/// A tree of an image, open.
pub(crate) struct Root {
    fd: OwnedFd,
    /// The last folder asked for: entries come folder by folder.
    last: Option<(PathBuf, Rc<Folder>)>,
    /// Times of the folders by inode, to be set when all is in them; a folder that no layer names has none.
    pub times: HashMap<u64, TimeSpec>,
    /// How many folders were made since something was to be in them.
    pub made: u64,
    seed: RandomState,
}

/// A folder of the tree.
pub(crate) struct Folder {
    fd: OwnedFd,
    ino: u64,
}

/// A place in the tree for as long as nothing above it is removed: a hash of folder and name.
pub(crate) type Place = u64;

impl Root {
    /// The tree at a folder of nsbox's own.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = File::open(path)?.into();
        Ok(Self { fd, last: None, times: HashMap::new(), made: 0, seed: RandomState::new() })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The folder at a path without `..`, made with its parents where it is not there.
    pub(crate) fn folder(&mut self, path: &Path) -> io::Result<Rc<Folder>> {
        if let Some((last, folder)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(folder));
        }
        let folder = match self.find(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.as_os_str().is_empty() => {
                let parent = self.folder(path.parent().unwrap_or(Path::new("")))?;
                match mkdirat(&parent.fd, path.file_name().unwrap_or_default(), Mode::from_bits_truncate(0o755)) {
                    // A link is there that leads nowhere.
                    Err(Errno::EEXIST) => return Err(Errno::ENOENT.into()),
                    made => made?,
                }
                self.made += 1;
                let made = self.find(path)?;
                // A folder that is gone may have had the inode.
                self.times.remove(&made.ino);
                made
            }
            found => found?,
        };
        let folder = Rc::new(folder);
        self.last = Some((path.to_owned(), Rc::clone(&folder)));
        Ok(folder)
    }

    /// The folder at a path, links on the way followed inside the tree.
    pub(crate) fn find(&self, path: &Path) -> io::Result<Folder> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = match open_in(&self.fd, path, flags, ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS) {
            Err(Errno::ELOOP) => {
                let fd = open_in(&self.fd, path, flags, ResolveFlag::RESOLVE_IN_ROOT)?;
                self.refuse_depth(&fd)?;
                fd
            }
            opened => opened?,
        };
        let ino = fstat(&fd)?.st_ino;
        Ok(Folder { fd, ino })
    }

    /// Links could pile folders up deeper than the path of any entry is: nothing could walk or remove them afterwards.
    fn refuse_depth(&self, folder: &OwnedFd) -> io::Result<()> {
        let path = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let (found, root) = (path(folder)?, path(&self.fd)?);
        let inside = found.strip_prefix(&root).map_err(|_| Errno::EXDEV)?;
        let is_deep = inside.components().count() >= MAX_DEPTH || inside.as_os_str().len() > MAX_PATH;
        if is_deep { Err(Errno::ENAMETOOLONG.into()) } else { Ok(()) }
    }

    /// Identifies a name in a folder.
    pub(crate) fn place(&self, folder: &Folder, name: &OsStr) -> Place {
        self.seed.hash_one((folder.ino, name))
    }

    /// Removes what has a name in a folder, whatever it is; `keep` says of each place below, and of this, whether it
    /// stays. A folder stays while something is in it. Nothing there is fine.
    pub(crate) fn remove(&mut self, folder: &Folder, name: &OsStr, keep: &dyn Fn(Place) -> bool) -> io::Result<()> {
        self.last = None;
        let stat = match fstatat(&folder.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(()),
            stat => stat?,
        };
        let stays = keep(self.place(folder, name));
        if is_dir(&stat) {
            let inside = folder.enter(name)?;
            self.remove_inside(&inside, keep)?;
            match stays {
                true => {}
                false => match unlinkat(&folder.fd, name, UnlinkatFlags::RemoveDir) {
                    Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
                    removed => removed?,
                },
            }
        } else if !stays {
            unlinkat(&folder.fd, name, UnlinkatFlags::NoRemoveDir)?;
        }
        Ok(())
    }

    /// The same for everything in a folder.
    pub(crate) fn remove_inside(&mut self, folder: &Folder, keep: &dyn Fn(Place) -> bool) -> io::Result<()> {
        for name in folder.names()? {
            self.remove(folder, &name, keep)?;
        }
        Ok(())
    }
}

impl Folder {
    /// A new, empty file, not yet readable by anybody else.
    pub(crate) fn create(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.fd, name, flags, Mode::from_bits_truncate(0o600))?.into())
    }

    /// A new folder.
    pub(crate) fn make_dir(&self, name: &OsStr) -> io::Result<()> {
        Ok(mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755))?)
    }

    /// A new symbolic link.
    pub(crate) fn symlink(&self, name: &OsStr, target: &OsStr) -> io::Result<()> {
        Ok(symlinkat(target, &self.fd, name)?)
    }

    /// A new name for a file that another folder holds.
    pub(crate) fn link(&self, name: &OsStr, other: &Self, other_name: &OsStr) -> io::Result<()> {
        // Without AT_SYMLINK_FOLLOW, a link is linked itself.
        Ok(linkat(&other.fd, other_name, &self.fd, name, AtFlags::empty())?)
    }

    /// What has a name, links not followed.
    pub(crate) fn stat(&self, name: &OsStr) -> io::Result<FileStat> {
        Ok(fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Sets the time of the last change of what has a name, also of a link.
    pub(crate) fn set_time(&self, name: &OsStr, time: TimeSpec) -> io::Result<()> {
        Ok(utimensat(&self.fd, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
    }

    /// The folder of a name in this one; a link is refused.
    pub(crate) fn enter(&self, name: &OsStr) -> io::Result<Self> {
        enter(self.fd.as_fd(), name)
    }

    /// The names in it.
    fn names(&self) -> io::Result<Vec<OsString>> {
        names(self.fd.as_fd())
    }
}

/// The folder of a name in another; a link is refused.
pub(crate) fn enter(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Folder> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(parent, name, flags, Mode::empty())?;
    let ino = fstat(&fd)?.st_ino;
    Ok(Folder { fd, ino })
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The names in a folder, unsorted, without `.` and `..`.
pub(crate) fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = Dir::openat(folder, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Opens a path below a folder, and nothing else.
pub(crate) fn open_in(root: impl AsFd, path: &Path, flags: OFlag, resolve: ResolveFlag) -> Result<OwnedFd, Errno> {
    let resolve = resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    let mut result = openat2(root.as_fd(), path, how);
    for _ in 0..RETRIES {
        // A rename anywhere on the machine may have come between.
        if !matches!(result, Err(Errno::EAGAIN | Errno::EINTR)) {
            break;
        }
        result = openat2(root.as_fd(), path, how);
    }
    result
}

/// Gives a file or folder its final mode and time.
pub(crate) fn finish(fd: BorrowedFd<'_>, mode: u32, time: TimeSpec) -> io::Result<()> {
    fchmod(fd, Mode::from_bits_truncate(mode))?;
    Ok(futimens(fd, &time, &time)?)
}

/// The kind of file that a stat tells of.
pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

pub(crate) fn is_dir(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFDIR
}
