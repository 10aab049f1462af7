//! The store: where images live, by their digests.
//!
//! ```text
//! blobs/sha256/DIGEST         layers, configurations and manifests, as they came; hard links of those in images
//! images/DIGEST/rootfs        the tree, mounted read-only by any number of runs
//!              /tree.mtree    what is in it: verify compares
//!              /image.json    a Record
//!              /layout        an OCI layout of the image alone, which docker load, podman and skopeo take
//! names/NAME                  `sha256:DIGEST`
//! partial/DIGEST              what a registry has given of a layer so far
//! staging/                    what is being made: a folder and its lock for each import
//! skeletons/                  see skeleton.rs
//! ```
//!
//! An image appears by one rename and goes by one. Locks are flock(2)'s, which the kernel drops with their holder, so that
//! nothing is left locked by the dead: an import holds its staging folder's, a run shares that of the image's folder,
//! and whoever changes names or images holds the store's for that moment. What has no lock in `staging/` is a remainder.

mod contents;
mod error;
mod place;
mod sweep;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::digest::Digest;
use super::layout;
pub use contents::{Entry, Inspection, Record};
pub(crate) use contents::{RECORD, SCHEMA, TREE};
pub use error::Error;
use error::failed;
pub(crate) use place::shelf;
pub use place::store_dir;

/// How many names are suggested for one that is not there.
const SUGGESTED: usize = 3;

/// The images of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    root: PathBuf,
}

/// A hold on an image: while it lives, the image is not removed.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Shared, flock(2).
    _lock: Arc<File>,
}

/// A hold is no part of what an image is.
impl PartialEq for Lease {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Lease {}

/// An image found in the store, and held there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// Its digest.
    pub digest: Digest,
    /// Its tree.
    pub rootfs: PathBuf,
    /// The hold.
    pub lease: Lease,
}

/// A folder in which an image is made. It goes with its owner, unless it became an image.
pub(crate) struct Staging {
    path: PathBuf,
    lock_path: PathBuf,
    lock: File,
}

impl Staging {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its lock, for a process to share: what it works on stays until it has ended too.
    pub(crate) fn share_lock(&self) -> io::Result<File> {
        self.lock.try_clone()
    }

    /// A folder in it, with its parents.
    pub(crate) fn make_dir(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(failed("make", &path))?;
        Ok(path)
    }

    /// Turns the failure of a file in it into an error.
    pub(crate) fn failed(&self, name: &str) -> impl Fn(io::Error) -> Error + use<> {
        failed("write", &self.path.join(name))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now, the next sweep removes.
        fs::remove_dir_all(&self.path).ok();
        fs::remove_file(&self.lock_path).ok();
    }
}

/// Checks what is to name an image.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':');
    let is_fine = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 128
        && name.chars().all(plain)
        && name != "host"
        && !name.starts_with("sha256:");
    if is_fine { Ok(()) } else { Err(Error::Name { name: name.to_owned() }) }
}

impl Store {
    /// The caller's store: see [`store_dir`].
    ///
    /// # Errors
    /// Where no place for it can be told.
    pub fn open() -> Result<Self, Error> {
        Ok(Self::at(store_dir().map_err(Box::new)?))
    }

    /// The store in a folder; it is made when it is first needed.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn shelf(&self, name: &str) -> Result<PathBuf, Error> {
        Ok(shelf(&self.root, name).map_err(Box::new)?)
    }

    pub(crate) fn staging_dir(&self) -> Result<PathBuf, Error> {
        self.shelf("staging")
    }

    /// The folder of an image, there or not.
    fn image_dir(&self, digest: &Digest) -> PathBuf {
        self.root.join("images").join(digest.hex())
    }

    /// The OCI layout of an image alone, for `docker load`, podman and skopeo.
    #[must_use]
    pub fn layout_dir(&self, digest: &Digest) -> PathBuf {
        self.image_dir(digest).join("layout")
    }

    /// Holds the lock under which names and images change; each time for a moment alone.
    fn lock(&self) -> Result<File, Error> {
        lock_file(&self.staging_dir()?.join(".lock"))
    }

    /// A folder to make an image in. Of one digest there is one at a time: the others wait, and find the image made.
    pub(crate) fn stage(&self, digest: Option<&Digest>) -> Result<Staging, Error> {
        let shelf = self.staging_dir()?;
        let name = digest.map_or_else(|| uuid::Uuid::now_v7().to_string(), Digest::hex);
        let lock_path = shelf.join(format!("{name}.lock"));
        loop {
            let lock = lock_file(&lock_path)?;
            // Its last holder may have removed the file between our opening and our lock.
            if !is_at(&lock, &lock_path) {
                continue;
            }
            let path = shelf.join(name);
            let staging = Staging { path, lock_path, lock };
            remove_all(&staging.path)?;
            DirBuilder::new().mode(0o755).create(&staging.path).map_err(failed("make", &staging.path))?;
            return Ok(staging);
        }
    }

    /// Whether the store has an image.
    pub(crate) fn has(&self, digest: &Digest) -> Result<bool, Error> {
        self.shelf("images")?;
        Ok(self.image_dir(digest).is_dir())
    }

    /// Takes a blob out of those that are shared: images that have it keep it.
    pub(crate) fn forget_blob(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.root.join(layout::blob_path(digest));
        fs::remove_file(&path).or_else(missing_is_fine).map_err(failed("remove", &path))
    }

    /// Where a layer lies that is being fetched.
    pub(crate) fn partial(&self, digest: &Digest) -> Result<PathBuf, Error> {
        Ok(self.shelf("partial")?.join(digest.hex()))
    }

    /// Makes a file that has the digest a blob, in the layout of an image and then for all: what no image has may be swept.
    pub(crate) fn adopt_blob(&self, path: &Path, digest: &Digest, layout: &Path) -> Result<(), Error> {
        self.shelf("blobs")?;
        let shared = self.shelf("blobs/sha256")?.join(digest.hex());
        let own = layout.join(digest.hex());
        fs::hard_link(path, &own).or_else(exists_is_fine).map_err(failed("link", &own))?;
        fs::rename(path, &shared).map_err(failed("make", &shared))
    }

    /// Gives a blob of the store another name, in the layout of an image.
    pub(crate) fn link_blob(&self, digest: &Digest, layout: &Path) -> Result<(), Error> {
        let to = layout.join(digest.hex());
        fs::hard_link(self.root.join(layout::blob_path(digest)), &to)
            .or_else(exists_is_fine)
            .map_err(failed("link", &to))
    }

    /// Makes what was staged an image, and gives it its name; `false` where the image was there already.
    pub(crate) fn commit(&self, staging: Staging, record: &Record, name: Option<&str>) -> Result<bool, Error> {
        let images = self.shelf("images")?;
        self.shelf("blobs")?;
        let shared = self.shelf("blobs/sha256")?;
        let folder = File::open(staging.path()).map_err(failed("open", staging.path()))?;
        // A power cut must not leave empty files under the digest of full ones.
        nix::unistd::syncfs(&folder).map_err(|error| failed("write", staging.path())(error.into()))?;
        let _lock = self.lock()?;
        let blobs = staging.path().join("layout/blobs/sha256");
        for entry in fs::read_dir(&blobs).map_err(failed("read", &blobs))? {
            let entry = entry.map_err(failed("read", &blobs))?;
            let to = shared.join(entry.file_name());
            fs::hard_link(entry.path(), &to).or_else(exists_is_fine).map_err(failed("link", &to))?;
        }
        let place = self.image_dir(&record.digest);
        let is_new = match fs::rename(staging.path(), &place) {
            Ok(()) => true,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) => false,
            Err(error) => return Err(failed("make", &place)(error)),
        };
        sync(&images)?;
        if let Some(name) = name {
            self.write_name(name, &record.digest)?;
        }
        Ok(is_new)
    }

    /// Gives an image a name; one that another image had is moved.
    ///
    /// # Errors
    /// [`Error::Unknown`] where there is no such image; where the name cannot be one, or cannot be written.
    pub fn set_name(&self, name: &str, digest: &Digest) -> Result<(), Error> {
        check_name(name)?;
        let _lock = self.lock()?;
        if !self.has(digest)? {
            return Err(self.unknown(&digest.to_string()));
        }
        self.write_name(name, digest)
    }

    fn write_name(&self, name: &str, digest: &Digest) -> Result<(), Error> {
        let names = self.shelf("names")?;
        // No name begins so. Written under the store's lock, so that one file serves all.
        let aside = names.join(".new");
        fs::write(&aside, format!("{digest}\n")).map_err(failed("write", &aside))?;
        sync(&aside)?;
        let path = names.join(name);
        fs::rename(&aside, &path).map_err(failed("write", &path))?;
        sync(&names)
    }

    /// The image of a name, of a digest, or of the start of one (6 digits or more), held so that it stays.
    ///
    /// # Errors
    /// [`Error::Unknown`] with names that look like it, [`Error::Ambiguous`], or what cannot be read.
    pub fn find(&self, name: &str) -> Result<Held, Error> {
        loop {
            let digest = self.digest_of(name)?;
            let path = self.image_dir(&digest);
            let folder = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.unknown(name)),
                folder => folder.map_err(failed("open", &path))?,
            };
            wait(|| folder.lock_shared()).map_err(failed("lock", &path))?;
            // Removed between our opening and our lock: there may be another by now.
            if is_at(&folder, &path) {
                return Ok(Held { digest, rootfs: path.join("rootfs"), lease: Lease { _lock: Arc::new(folder) } });
            }
        }
    }

    /// Whether an image has this very name.
    pub(crate) fn has_name(&self, name: &str) -> Result<bool, Error> {
        check_name(name)?;
        match self.digest_of(name) {
            Ok(digest) => self.has(&digest),
            Err(Error::Unknown { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The digest that a name or the start of a digest means.
    fn digest_of(&self, name: &str) -> Result<Digest, Error> {
        if check_name(name).is_ok() {
            let path = self.root.join("names").join(name);
            match fs::read_to_string(&path) {
                Ok(text) => {
                    return text.trim_end().parse().map_err(|error| failed("read", &path)(io::Error::other(error)));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("read", &path)(error)),
            }
        }
        let start = name.strip_prefix("sha256:").unwrap_or(name);
        if start.len() < 6 || !start.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(self.unknown(name));
        }
        let mut found: Vec<Digest> =
            self.digests()?.into_iter().filter(|digest| digest.hex().starts_with(start)).collect();
        match found.len() {
            0 => Err(self.unknown(name)),
            1 => Ok(found.remove(0)),
            _ => {
                let found = found.iter().map(ToString::to_string).collect();
                Err(Error::Ambiguous { prefix: name.to_owned(), found })
            }
        }
    }

    fn unknown(&self, name: &str) -> Error {
        let mut near: Vec<(f64, String)> = self
            .names()
            .unwrap_or_default()
            .into_iter()
            .map(|(known, _)| known)
            .map(|known| (strsim::jaro_winkler(name, &known), known))
            .filter(|(likeness, _)| *likeness > 0.7)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        near.truncate(SUGGESTED);
        Error::Unknown { name: name.to_owned(), near: near.into_iter().map(|(_, known)| known).collect() }
    }

    /// All digests, sorted.
    fn digests(&self) -> Result<Vec<Digest>, Error> {
        let names = listing(&self.root.join("images"))?;
        let mut digests: Vec<Digest> = names.iter().filter_map(|name| Digest::from_hex(name.to_str()?).ok()).collect();
        digests.sort_unstable();
        Ok(digests)
    }

    /// All names with their digests, sorted; those of images that are gone too.
    fn names(&self) -> Result<Vec<(String, Digest)>, Error> {
        let folder = self.root.join("names");
        let mut names = Vec::new();
        for name in listing(&folder)? {
            let Some(name) = name.to_str().filter(|name| check_name(name).is_ok()) else { continue };
            let text = match fs::read_to_string(folder.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text.map_err(failed("read", &folder.join(name)))?,
            };
            names.extend(text.trim_end().parse().ok().map(|digest| (name.to_owned(), digest)));
        }
        names.sort();
        Ok(names)
    }
}

/// Whether an open file is still the one at its path.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata(), fs::symlink_metadata(path)), (Ok(open), Ok(there)) if id(&open) == id(&there))
}

/// Opens a lock file, made where it is not there, and waits for its lock.
fn lock_file(path: &Path) -> Result<File, Error> {
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed("open", path))?;
    wait(|| file.lock()).map_err(failed("lock", path))?;
    Ok(file)
}

/// Waits on, whatever signals come.
pub(crate) fn wait(lock: impl Fn() -> io::Result<()>) -> io::Result<()> {
    loop {
        match lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(failed("write", path))
}

/// The names in a folder; none where there is no folder.
fn listing(folder: &Path) -> Result<Vec<OsString>, Error> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("read", folder))?,
    };
    entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(failed("read", folder))).collect()
}

fn remove_all(path: &Path) -> Result<(), Error> {
    fs::remove_dir_all(path).or_else(missing_is_fine).map_err(failed("remove", path))
}

fn missing_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn exists_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}
