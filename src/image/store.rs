//! The store: where images live, by their digests.
//!
//! ```text
//! blobs/sha256/DIGEST         layers, configurations and manifests, as they came; hard links of those in images
//! images/DIGEST/rootfs        the tree, mounted read-only by any number of runs
//!              /tree.mtree    what is in it: verify compares
//!              /image.json    a Record
//!              /layout        an OCI layout of the image alone, which docker load, podman and skopeo take
//! names/NAME                  `sha256:DIGEST`
//! staging/                    what is being made: a folder and its lock for each import
//! skeletons/                  see skeleton.rs
//! ```
//!
//! An image appears by one rename and goes by one. Locks are flock(2)'s, which the kernel drops with their holder, so that
//! nothing is left locked by the dead: an import holds its staging folder's, a run shares that of the image's folder,
//! and whoever changes names or images holds the store's for that moment. What has no lock in `staging/` is a remainder.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::import::Progress;
use super::layer::{self, Layer};
use super::mtree::{self, Totals};
use super::packages::{Package, packages};
use super::{archive, layout, registry, unpack};

/// The version of [`Record`].
pub(crate) const SCHEMA: u32 = 1;
/// The file of an image's [`Record`].
pub(crate) const RECORD: &str = "image.json";
/// The file of its tree's description.
pub(crate) const TREE: &str = "tree.mtree";
/// How long blobs of no image are kept for an import that goes on where another was cut off.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// How many names are suggested for one that is not there.
const SUGGESTED: usize = 3;

/// Why the store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no store, or not a safe one.
    #[error(transparent)]
    Place(#[from] Box<super::Error>),
    /// A file of the store.
    #[error("failed to {step} {path:?} in the store (NSBOX_STORE names another)")]
    File {
        /// What was tried.
        step: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What cannot name an image.
    #[error(
        "{name:?} cannot name an image: use letters, digits, '.', '_', '-' and ':', at most 128, beginning with a letter or digit, and not host"
    )]
    Name {
        /// The name given.
        name: String,
    },
    /// No image of that name.
    #[error("there is no image {name:?} in the store{}", suggestion(.name, .near))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that look like it.
        near: Vec<String>,
    },
    /// The start of several digests.
    #[error("{prefix:?} begins the digests of several images: {}", .found.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// The digests.
        found: Vec<String>,
    },
    /// An image that runs use.
    #[error("the image {name} is in use by a run: wait for its end, then remove it")]
    InUse {
        /// What was to be removed.
        name: String,
    },
    /// An image's record cannot be read.
    #[error("failed to understand {path:?}: import the image again")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A document for the image cannot be made.
    #[error("failed to describe the image in the OCI format")]
    Document(#[source] oci_spec::OciSpecError),
    /// A source that cannot be opened.
    #[error("failed to import {archive}")]
    Archive {
        /// The source.
        archive: String,
        /// Why.
        #[source]
        source: archive::Error,
    },
    /// A source whose documents are refused.
    #[error("failed to import {archive}")]
    Layout {
        /// The source.
        archive: String,
        /// Why.
        #[source]
        source: layout::Error,
    },
    /// An image that a registry does not give.
    #[error("failed to import {archive}")]
    Registry {
        /// The source.
        archive: String,
        /// Why.
        #[source]
        source: registry::Error,
    },
    /// A layer whose bytes are refused.
    #[error("failed to import {archive}")]
    Layer {
        /// The source and the layer.
        archive: String,
        /// Why.
        #[source]
        source: layer::Error,
    },
    /// A layer whose entries are refused.
    #[error("failed to import {archive}")]
    Unpack {
        /// The source and the layer.
        archive: String,
        /// Why.
        #[source]
        source: unpack::Error,
    },
}

impl Error {
    /// A stable name for JSON, the command line and Python.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Place(error) => error.code(),
            Self::File { .. } => "image-store-file",
            Self::Name { .. } => "image-name",
            Self::Unknown { .. } => "image-unknown",
            Self::Ambiguous { .. } => "image-ambiguous",
            Self::InUse { .. } => "image-in-use",
            Self::Record { .. } => "image-record",
            Self::Document(_) => "image-document",
            Self::Archive { source, .. } => source.code(),
            Self::Layout { source, .. } => source.code(),
            Self::Registry { source, .. } => source.code(),
            Self::Layer { source, .. } => source.code(),
            Self::Unpack { source, .. } => source.code(),
        }
    }
}

/// What to do about a name that is not there.
fn suggestion(name: &str, near: &[String]) -> String {
    let near = match near {
        [] => String::new(),
        near => format!(" (near: {})", near.join(", ")),
    };
    let build = match super::build::Profile::of_image(name) {
        Some(profile) => format!("nsbox image build --profile {} builds it, ", profile.name()),
        None => String::new(),
    };
    format!("{near}: {build}nsbox image import SOURCE --name {name} imports one, nsbox image list shows what is there")
}

fn failed(step: &'static str, path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { step, path: path.clone(), source }
}

/// What the store knows of an image, beside its documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// The version of this record: 1.
    pub schema: u32,
    /// Digest of the image: of its OCI manifest.
    pub digest: Digest,
    /// Digest of its configuration, which Docker calls the image's id.
    pub config: Digest,
    /// Where it came from.
    pub source: String,
    /// When it came.
    pub imported: jiff::Timestamp,
    /// Its layers, the base first.
    pub layers: Vec<Layer>,
    /// What its tree holds.
    pub totals: Totals,
    /// Digest of the tree's description.
    pub tree: Digest,
    /// What was left out of it.
    pub notes: Vec<String>,
}

/// An image of the store with its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// Its names, sorted.
    pub names: Vec<String>,
    /// What is known of it.
    #[serde(flatten)]
    pub record: Record,
}

/// All that is known of an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// Names and record.
    #[serde(flatten)]
    pub entry: Entry,
    /// Its tree.
    pub rootfs: PathBuf,
    /// Its OCI layout.
    pub layout: PathBuf,
    /// What is installed in it.
    pub packages: Vec<Package>,
    /// Its configuration, as it came.
    #[serde(rename = "configuration")]
    pub config: serde_json::Value,
}

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

    fn shelf(&self, name: &str) -> Result<PathBuf, Error> {
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

    /// Makes a file that has the digest a blob.
    pub(crate) fn adopt_blob(&self, path: &Path, digest: &Digest) -> Result<(), Error> {
        self.shelf("blobs")?;
        let to = self.shelf("blobs/sha256")?.join(digest.hex());
        fs::rename(path, &to).map_err(failed("make", &to))
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
    /// Where the name cannot be one, or cannot be written.
    pub fn set_name(&self, name: &str, digest: &Digest) -> Result<(), Error> {
        check_name(name)?;
        let _lock = self.lock()?;
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
        Ok(self.root.join("names").join(name).exists())
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

    /// What the store knows of an image.
    pub(crate) fn record(&self, digest: &Digest) -> Result<Record, Error> {
        let path = self.image_dir(digest).join(RECORD);
        let text = fs::read(&path).map_err(failed("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| Error::Record { path, source })
    }

    /// All images, by their first names.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let names = self.names()?;
        let entry = |digest: &Digest| {
            let names = names.iter().filter(|(_, of)| of == digest).map(|(name, _)| name.clone()).collect();
            Ok(Entry { names, record: self.record(digest)? })
        };
        let mut entries = self.digests()?.iter().map(entry).collect::<Result<Vec<_>, Error>>()?;
        entries.sort_by(|a, b| a.names.is_empty().cmp(&b.names.is_empty()).then_with(|| a.names.cmp(&b.names)));
        Ok(entries)
    }

    /// Compares an image with its digests: every blob, the description of its tree, and every file with that; what
    /// differs, in words. Nothing where all is as it was imported.
    ///
    /// # Errors
    /// What cannot be read at all.
    pub fn verify(&self, name: &str, progress: &dyn Progress) -> Result<Vec<String>, Error> {
        let held = self.find(name)?;
        let record = self.record(&held.digest)?;
        let mut told = Vec::new();
        let blobs = self.layout_dir(&held.digest).join("blobs/sha256");
        let sizes = record.layers.iter().map(|layer| layer.size).sum::<u64>();
        progress.begin("hashing its blobs and files", Some(sizes + record.totals.bytes));
        let layers = record.layers.iter().map(|layer| &layer.digest);
        for digest in layers.chain([&record.config, &record.digest]) {
            let path = blobs.join(digest.hex());
            match File::open(&path).and_then(Digest::of_reader) {
                Ok(found) if found == *digest => {}
                Ok(found) => told.push(format!("blob {digest}: has the digest {found}")),
                Err(error) => told.push(format!("blob {digest}: {error}")),
            }
        }
        progress.advance(sizes);
        if record.digest != held.digest {
            told.push(format!("{RECORD}: is of the image {}", record.digest));
        }
        let description = self.description(&held)?;
        if Digest::of(description.as_bytes()) != record.tree {
            told.push(format!("{TREE}: is not the description that was written at import"));
        }
        told.extend(mtree::verify(&held.rootfs, &description, progress).map_err(failed("read", &held.rootfs))?);
        Ok(told)
    }

    /// The image's tree in mtree(5)'s format.
    fn description(&self, held: &Held) -> Result<String, Error> {
        let path = self.image_dir(&held.digest).join(TREE);
        fs::read_to_string(&path).map_err(failed("read", &path))
    }

    /// All that is known of an image.
    ///
    /// # Errors
    /// Where there is none of that name, or what cannot be read.
    pub fn inspect(&self, name: &str) -> Result<Inspection, Error> {
        let held = self.find(name)?;
        let names = self.names()?.into_iter().filter(|(_, of)| *of == held.digest).map(|(name, _)| name).collect();
        let record = self.record(&held.digest)?;
        let path = self.layout_dir(&held.digest).join(layout::blob_path(&record.config));
        let config = fs::read(&path).map_err(failed("read", &path))?;
        let config = serde_json::from_slice(&config).map_err(|source| Error::Record { path, source })?;
        let packages = packages(&held.rootfs, &self.description(&held)?).map_err(failed("read", &held.rootfs))?;
        let layout = self.layout_dir(&held.digest);
        Ok(Inspection { entry: Entry { names, record }, rootfs: held.rootfs, layout, packages, config })
    }

    /// Removes a name, and the image with its last one; given a digest, the image with all its names. What is removed.
    ///
    /// # Errors
    /// [`Error::InUse`] while a run holds the image; then nothing is removed.
    pub fn remove(&self, name: &str) -> Result<Option<Digest>, Error> {
        let lock = self.lock()?;
        let digest = self.digest_of(name)?;
        let all = self.names()?;
        let is_name = all.iter().any(|(known, _)| known == name);
        let names: Vec<&String> = all.iter().filter(|(_, of)| *of == digest).map(|(name, _)| name).collect();
        let unlink = |name: &String| {
            let path = self.root.join("names").join(name);
            fs::remove_file(&path).map_err(failed("remove", &path))
        };
        if is_name && names.len() > 1 {
            unlink(&name.to_owned())?;
            return Ok(None);
        }
        let place = self.image_dir(&digest);
        let trash = self.staging_dir()?.join(format!("{}.trash", uuid::Uuid::now_v7()));
        match File::open(&place) {
            Ok(folder) => {
                if let Err(error) = folder.try_lock() {
                    return Err(match error {
                        fs::TryLockError::WouldBlock => Error::InUse { name: name.to_owned() },
                        fs::TryLockError::Error(error) => failed("lock", &place)(error),
                    });
                }
                names.into_iter().try_for_each(unlink)?;
                fs::rename(&place, &trash).map_err(failed("remove", &place))?;
            }
            // A name whose image is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => names.into_iter().try_for_each(unlink)?,
            Err(error) => return Err(failed("open", &place)(error)),
        }
        drop(lock);
        self.clean(Duration::ZERO)?;
        Ok(Some(digest))
    }

    /// Removes what the dead left behind, and blobs that no image has had for a day.
    ///
    /// # Errors
    /// What cannot be removed.
    pub fn sweep(&self) -> Result<(), Error> {
        self.clean(KEEP)
    }

    fn clean(&self, keep: Duration) -> Result<(), Error> {
        let staging = self.staging_dir()?;
        for name in listing(&staging)? {
            let path = staging.join(&name);
            let Some(text) = name.to_str().filter(|name| *name != ".lock") else { continue };
            if let Some(made) = text.strip_suffix(".lock") {
                self.clean_staging(&path, &staging.join(made))?;
            } else if text.ends_with(".trash") {
                remove_all(&path)?;
            } else if text.ends_with(".spool") {
                fs::remove_file(&path).or_else(missing_is_fine).map_err(failed("remove", &path))?;
            }
        }
        let _lock = self.lock()?;
        let blobs = self.root.join("blobs/sha256");
        let now = SystemTime::now();
        for name in listing(&blobs)? {
            let path = blobs.join(name);
            let metadata = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata.map_err(failed("look at", &path))?,
            };
            let age = metadata.modified().ok().and_then(|time| now.duration_since(time).ok()).unwrap_or_default();
            if metadata.nlink() == 1 && age >= keep {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Removes a staging folder whose owner is gone.
    fn clean_staging(&self, lock_path: &Path, path: &Path) -> Result<(), Error> {
        let Ok(lock) = File::open(lock_path) else { return Ok(()) };
        if lock.try_lock().is_ok() && is_at(&lock, lock_path) {
            remove_all(path)?;
            fs::remove_file(lock_path).or_else(missing_is_fine).map_err(failed("remove", lock_path))?;
        }
        Ok(())
    }
}

/// The store: `$NSBOX_STORE`; else, for root, `/var/lib/nsbox`; else `$XDG_DATA_HOME/nsbox` or `~/.local/share/nsbox`.
/// Relative values are passed over, as the XDG base directory specification asks.
///
/// # Errors
/// [`super::Error::NoStore`] where none of these is an absolute path. The folder itself is made when it is first needed.
pub fn store_dir() -> Result<PathBuf, super::Error> {
    choose(nix::unistd::geteuid().is_root(), |name| env::var_os(name)).ok_or(super::Error::NoStore)
}

fn choose(root: bool, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(store) = path("NSBOX_STORE") {
        return Some(store);
    }
    if root {
        return Some(PathBuf::from("/var/lib/nsbox"));
    }
    path("XDG_DATA_HOME").or_else(|| Some(path("HOME")?.join(".local/share"))).map(|data| data.join("nsbox"))
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

/// A folder of the store, made where it is not there. Only its owner, root or the caller, may write to it.
pub(crate) fn shelf(store: &Path, name: &str) -> Result<PathBuf, super::Error> {
    let shelf = store.join(name);
    if trusted(&shelf)? {
        return Ok(shelf);
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| super::Error::Store { path, source }
    };
    let mut builder = DirBuilder::new();
    builder.mode(0o755);
    builder.recursive(true).create(store).map_err(failed(store))?;
    match builder.recursive(false).create(&shelf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&shelf)(error)),
        Err(_) => {}
        Ok(()) => fs::set_permissions(&shelf, Permissions::from_mode(0o755)).map_err(failed(&shelf))?,
    }
    Ok(shelf)
}

fn trusted(shelf: &Path) -> Result<bool, super::Error> {
    match fs::symlink_metadata(shelf) {
        Ok(metadata) => {
            let owner = metadata.uid() == 0 || metadata.uid() == nix::unistd::geteuid().as_raw();
            if metadata.is_dir() && owner && metadata.mode() & 0o022 == 0 {
                Ok(true)
            } else {
                Err(super::Error::StoreUnsafe { path: shelf.to_owned() })
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(super::Error::Store { path: shelf.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(root: bool, variables: &[(&str, &str)]) -> Option<PathBuf> {
        choose(root, |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn store_prefers_its_own_variable() {
        let variables = [("NSBOX_STORE", "/s"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(chosen(true, &variables), Some("/s".into()));
        assert_eq!(chosen(false, &variables), Some("/s".into()));
    }

    #[test]
    fn store_of_root_is_the_systems() {
        assert_eq!(chosen(true, &[("HOME", "/root")]), Some("/var/lib/nsbox".into()));
    }

    #[test]
    fn store_of_a_user_follows_xdg_and_passes_over_relative_values() {
        assert_eq!(chosen(false, &[("XDG_DATA_HOME", "/x"), ("HOME", "/h")]), Some("/x/nsbox".into()));
        assert_eq!(chosen(false, &[("XDG_DATA_HOME", "x"), ("HOME", "/h")]), Some("/h/.local/share/nsbox".into()));
        assert_eq!(chosen(false, &[("NSBOX_STORE", "s"), ("HOME", "")]), None);
    }
}
