//! The folder that is the guest's `/`: empty mount points, links, and the few synthetic files.
//!
//! Built once into the store under the digest of what is in it, then reused by every run: mounting it costs one bind,
//! making the same in a fresh tmpfs some thirty calls. What is copied from the host enters the digest by the identity
//! of its source (device, inode, size, time of change), so that a reuse reads nothing.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::store::{shelf, wait};
use super::{Error, HOME, HOSTNAME, MACHINE_ID, UID, USER};

/// In the digest, so that a change of the rules below makes new skeletons.
const FORMAT: u8 = 1;

/// Folders of every skeleton, with their parents: the sandbox mounts over them.
const DIRS: [&str; 11] = ["dev", "dev/shm", "etc", "input", "output", "proc", "run", "run/nsbox", "tmp", "usr", "work"];

/// Devices, bound from the host's by the sandbox.
const DEVICES: [&str; 5] = ["dev/full", "dev/null", "dev/random", "dev/urandom", "dev/zero"];

/// Links of every skeleton.
const LINKS: [(&str, &str); 4] = [
    ("dev/fd", "/proc/self/fd"),
    ("dev/stderr", "/proc/self/fd/2"),
    ("dev/stdin", "/proc/self/fd/0"),
    ("dev/stdout", "/proc/self/fd/1"),
];

/// UTC as a TZif file of version 2, `tzfile(5)`: an empty version 1 block, one type without offset, the rule `UTC0`.
const UTC: &[u8] =
    b"TZif2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x04\0\0\0\0\0\0UTC\0\
TZif2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x04\0\0\0\0\0\0UTC\0\nUTC0\n";

/// The synthetic files of `/etc`, by name.
pub(crate) fn synthetic() -> [(&'static str, Vec<u8>); 7] {
    let passwd = format!(
        "root:x:0:0:root:/:/usr/sbin/nologin\n{USER}:x:{UID}:{UID}:{USER}:{HOME}:/bin/sh\n\
         nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
    );
    let group = format!("root:x:0:\n{USER}:x:{UID}:\nnogroup:x:65534:\n");
    [
        ("group", group.into_bytes()),
        ("hostname", format!("{HOSTNAME}\n").into_bytes()),
        ("hosts", format!("127.0.0.1\tlocalhost {HOSTNAME}\n::1\tlocalhost\n").into_bytes()),
        ("localtime", UTC.to_vec()),
        ("machine-id", format!("{MACHINE_ID}\n").into_bytes()),
        ("nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files\n".to_vec()),
        ("passwd", passwd.into_bytes()),
    ]
}

/// What stands at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Dir,
    File(Vec<u8>),
    Link(PathBuf),
    /// A copy of a file of the host.
    Copy(Origin),
    /// A folder with copies of the links of a folder of the host, its other entries left out.
    Links(Origin),
}

/// Something of the host, and which state of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    path: PathBuf,
    stamp: Stamp,
}

/// Device, inode, size, and time of the last change in seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec()))
}

/// A skeleton to be. Paths are relative to the guest's `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skeleton {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Skeleton {
    /// What every image has.
    pub fn new() -> Self {
        let dirs = DIRS.iter().map(|path| (PathBuf::from(path), Entry::Dir));
        let devices = DEVICES.iter().map(|path| (PathBuf::from(path), Entry::File(Vec::new())));
        let links = LINKS.iter().map(|(path, target)| (PathBuf::from(path), Entry::Link(target.into())));
        let files = synthetic().into_iter().map(|(name, content)| (Path::new("etc").join(name), Entry::File(content)));
        Self { entries: dirs.chain(devices).chain(links).chain(files).collect() }
    }

    /// An empty folder, with its parents.
    pub fn dir(&mut self, path: &Path) {
        self.put(path, Entry::Dir);
    }

    /// An empty file to be mounted over.
    pub fn file(&mut self, path: &Path) {
        self.put(path, Entry::File(Vec::new()));
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &Path, target: &Path) {
        self.put(path, Entry::Link(target.to_owned()));
    }

    /// A copy of a file of the host, at the same path; nothing where the host has none.
    pub fn copy(&mut self, path: &Path) {
        if let Ok(stamp) = stamp(path) {
            self.put(path, Entry::Copy(Origin { path: path.to_owned(), stamp }));
        }
    }

    /// A copy of the links in a folder of the host, at the same path; nothing where the host has none.
    pub fn copy_links(&mut self, path: &Path) {
        if let Ok(stamp) = stamp(path) {
            self.put(path, Entry::Links(Origin { path: path.to_owned(), stamp }));
        }
    }

    /// The first entry of a path wins, except that an empty folder gives way. Nothing is put below what is no plain
    /// folder: it would be written through a link.
    fn put(&mut self, path: &Path, entry: Entry) {
        let path = path.strip_prefix("/").unwrap_or(path);
        let parents = path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
        if parents.clone().any(|parent| self.entries.get(parent).is_some_and(|entry| *entry != Entry::Dir)) {
            return;
        }
        for parent in parents {
            self.entries.entry(parent.to_owned()).or_insert(Entry::Dir);
        }
        // What lies in a folder comes right after it.
        let next = self.entries.range(path.to_owned()..).map(|(next, _)| next).find(|next| *next != path);
        let is_empty = next.is_none_or(|next| !next.starts_with(path));
        let slot = self.entries.entry(path.to_owned()).or_insert(Entry::Dir);
        if *slot == Entry::Dir && is_empty {
            *slot = entry;
        }
    }

    /// The folder in the store, built if it is not there yet. Any number of processes may do so at once, and any may be
    /// killed: one builds at a time, aside, and the finished folder is renamed into place.
    pub fn build(&self, store: &Path) -> Result<PathBuf, Error> {
        let shelf = shelf(store, "skeletons")?;
        let done = shelf.join(self.digest());
        if fs::symlink_metadata(&done).is_ok_and(|metadata| metadata.is_dir()) {
            return Ok(done);
        }
        self.build_locked(&shelf, &done).map_err(|(path, source)| Error::Skeleton { path, source })?;
        Ok(done)
    }

    /// Builds under the shelf's lock, which the kernel drops with its holder: what stands in the way of a new build is
    /// the remains of a dead one.
    fn build_locked(&self, shelf: &Path, done: &Path) -> Result<(), (PathBuf, io::Error)> {
        let lock_path = shelf.join(".lock");
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| (path, error)
        };
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(at(&lock_path))?;
        wait(|| lock.lock()).map_err(at(&lock_path))?;
        if done.is_dir() {
            return Ok(());
        }
        let aside = shelf.join(".building");
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err((aside, error)),
            _ => {}
        }
        make_dir(&aside).map_err(at(&aside))?;
        for (path, entry) in &self.entries {
            let path = aside.join(path);
            entry.make(&path).map_err(at(&path))?;
        }
        fs::rename(&aside, done).map_err(at(done))
    }

    /// Digest of everything in the skeleton, in hexadecimal.
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update([FORMAT]);
        // Each field with its length before it: no two skeletons give the same bytes.
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for (path, entry) in &self.entries {
            field(path.as_os_str().as_bytes());
            match entry {
                Entry::Dir => field(b"dir"),
                Entry::File(content) => {
                    field(b"file");
                    field(content);
                }
                Entry::Link(target) => {
                    field(b"link");
                    field(target.as_os_str().as_bytes());
                }
                Entry::Copy(origin) | Entry::Links(origin) => {
                    field(if matches!(entry, Entry::Copy(_)) { b"copy" } else { b"links" });
                    field(origin.path.as_os_str().as_bytes());
                    let (dev, ino, size, seconds, nanoseconds) = origin.stamp;
                    for number in [dev, ino, size, seconds.cast_unsigned(), nanoseconds.cast_unsigned()] {
                        field(&number.to_le_bytes());
                    }
                }
            }
        }
        format!("{:x}", hash.finalize())
    }
}

impl Entry {
    fn make(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Dir => make_dir(path),
            Self::File(content) => make_file(path, content),
            Self::Link(target) => symlink(target, path),
            Self::Copy(origin) => {
                let content = fs::read(&origin.path)?;
                origin.unchanged()?;
                make_file(path, &content)
            }
            Self::Links(origin) => {
                make_dir(path)?;
                for entry in fs::read_dir(&origin.path)? {
                    let entry = entry?;
                    if entry.file_type()?.is_symlink() {
                        symlink(fs::read_link(entry.path())?, path.join(entry.file_name()))?;
                    }
                }
                origin.unchanged()
            }
        }
    }
}

impl Origin {
    /// Refuses what changed while it was copied: it would stand under the digest of its older state.
    fn unchanged(&self) -> io::Result<()> {
        if stamp(&self.path)? == self.stamp {
            return Ok(());
        }
        let message = format!("{} changed while it was copied: run again", self.path.display());
        Err(io::Error::new(io::ErrorKind::ResourceBusy, message))
    }
}

/// The mode is set apart: the one given at creation is cut by the umask.
fn make_dir(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Written through to the disk: a power cut must not leave an empty file under the digest of a full one.
fn make_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    if content.is_empty() {
        return Ok(());
    }
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn built(skeleton: &Skeleton, store: &Path) -> PathBuf {
        skeleton.build(store).unwrap()
    }

    #[test]
    fn skeleton_of_the_same_content_is_reused() {
        let store = tempfile::tempdir().unwrap();
        let first = built(&Skeleton::new(), store.path());
        let inode = fs::metadata(&first).unwrap().ino();
        assert_eq!(fs::metadata(built(&Skeleton::new(), store.path())).unwrap().ino(), inode);
        let mut other = Skeleton::new();
        other.link(Path::new("/bin"), Path::new("usr/bin"));
        let second = built(&other, store.path());
        assert_ne!(first, second);
        assert_eq!(fs::read_link(second.join("bin")).unwrap(), Path::new("usr/bin"));
    }

    #[test]
    fn skeleton_follows_a_change_of_what_it_copies() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        let copied = |text: &str| {
            fs::write(&source, text).unwrap();
            let mut skeleton = Skeleton::new();
            skeleton.copy(&source);
            let place = source.strip_prefix("/").unwrap();
            fs::read_to_string(built(&skeleton, folder.path()).join(place)).unwrap()
        };
        assert_eq!(copied("one"), "one");
        assert_eq!(copied("other"), "other");
    }

    #[test]
    fn skeleton_copies_links_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        symlink("/usr/lib/a", source.join("link")).unwrap();
        fs::write(source.join("secret"), "").unwrap();
        let mut skeleton = Skeleton::new();
        skeleton.copy_links(&source);
        let copy = built(&skeleton, folder.path()).join(source.strip_prefix("/").unwrap());
        assert_eq!(fs::read_dir(&copy).unwrap().count(), 1);
        assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("/usr/lib/a"));
    }

    #[test]
    fn skeleton_is_built_over_the_remains_of_a_dead_builder() {
        let store = tempfile::tempdir().unwrap();
        let remains = store.path().join("skeletons/.building/etc");
        fs::create_dir_all(&remains).unwrap();
        fs::write(remains.join("passwd"), "half").unwrap();
        let skeleton = built(&Skeleton::new(), store.path());
        assert!(fs::read_to_string(skeleton.join("etc/passwd")).unwrap().contains("nsbox:x:1000:1000"));
        assert!(!store.path().join("skeletons/.building").exists());
    }

    #[test]
    fn store_that_others_may_write_is_refused() {
        let store = tempfile::tempdir().unwrap();
        built(&Skeleton::new(), store.path());
        let shelf = store.path().join("skeletons");
        for mode in [0o775, 0o757] {
            fs::set_permissions(&shelf, Permissions::from_mode(mode)).unwrap();
            assert_eq!(Skeleton::new().build(store.path()).unwrap_err().code(), "image-store-unsafe");
        }
        fs::remove_dir_all(&shelf).unwrap();
        symlink("/tmp", &shelf).unwrap();
        assert_eq!(Skeleton::new().build(store.path()).unwrap_err().code(), "image-store-unsafe");
    }

    #[test]
    fn only_an_empty_folder_gives_way() {
        let mut skeleton = Skeleton::new();
        skeleton.link(Path::new("/usr"), Path::new("elsewhere"));
        skeleton.link(Path::new("/dev"), Path::new("elsewhere"));
        skeleton.dir(Path::new("/etc/passwd"));
        assert_eq!(skeleton.entries[Path::new("usr")], Entry::Link("elsewhere".into()));
        assert_eq!(skeleton.entries[Path::new("dev")], Entry::Dir);
        assert!(matches!(skeleton.entries[Path::new("etc/passwd")], Entry::File(_)));
    }

    #[test]
    fn nothing_is_made_through_a_link() {
        let (store, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink("target", outside.path().join("link")).unwrap();
        let mut skeleton = Skeleton::new();
        skeleton.link(Path::new("/opt"), outside.path());
        skeleton.dir(Path::new("/opt/made"));
        // The same link comes with its folder.
        skeleton.copy_links(outside.path());
        skeleton.link(&outside.path().join("link"), Path::new("target"));
        built(&skeleton, store.path());
        assert!(!outside.path().join("made").exists());
    }
}
