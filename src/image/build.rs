//! `nsbox image build`: the production image from packages and a lock, without a daemon and without root.
//!
//! The packages come by their digests ([`fetch`]), Debian's become a tree ([`debian`]), the tree's own Python installs and
//! compiles the wheels in namespaces of its own ([`install`]), and the tree becomes one layer, the same bytes for the
//! same lock ([`pack`]), which is imported like any other image. All of it happens in a folder that the store sweeps if
//! the build dies.

mod debian;
mod fetch;
mod install;
mod lock;
mod pack;

use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::str::FromStr;

use super::store::{self, Staging, Store};
use super::unpack::{self, Unpacker};
use super::{Digest, Imported, Limits, Options as ImportOptions, Progress, Source};
use fetch::Cache;
use lock::Lock;
pub use pack::Error as PackError;

/// What an image is built of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Which packages.
    pub profile: Profile,
    /// What they are put on.
    pub base: Base,
    /// Its name in the store; `None` is [`Profile::image`].
    pub name: Option<String>,
    /// A folder as `rootfs/lock.sh` writes it; `None` is the lock of this version of nsbox.
    pub lock: Option<PathBuf>,
    /// Seconds since 1970 that every file bears; `None` is `SOURCE_DATE_EPOCH`, else the lock's own time.
    pub epoch: Option<u64>,
    /// Takes no package from the network: what the cache has is all there is.
    pub offline: bool,
}

impl Options {
    /// What an image of them is called as the source of the store's: `build slim`.
    fn shown(&self) -> String {
        let mut shown = format!("build {}", self.profile.name());
        if let Base::Image(source) = &self.base {
            shown += &format!(" on {source}");
        }
        if let Some(lock) = &self.lock {
            shown += &format!(", lock {}", lock.display());
        }
        shown
    }
}

/// Which packages an image has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Profile {
    /// All of them.
    #[default]
    Full,
    /// Without the clients of language models, and what the others do not need to compute.
    Slim,
}

impl Profile {
    /// As the command line and the lock's files spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Slim => "slim",
        }
    }

    /// The name that an image of it gets where none is given.
    #[must_use]
    pub fn image(self) -> &'static str {
        match self {
            Self::Full => "sandbox",
            Self::Slim => "sandbox-slim",
        }
    }

    /// The profile that is built where an image of this name is asked for and there is none.
    #[must_use]
    pub fn of_image(name: &str) -> Option<Self> {
        [Self::Full, Self::Slim].into_iter().find(|profile| profile.image() == name)
    }
}

/// What an image's packages are put on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Base {
    /// The lock's packages of Debian.
    #[default]
    Debian,
    /// An image with the Python that the lock is for: an OCI layout, an archive, or `oci://HOST/NAME:TAG`.
    Image(Source),
}

impl FromStr for Base {
    type Err = std::convert::Infallible;

    /// `debian`, or what `nsbox image import` takes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "debian" { Ok(Self::Debian) } else { text.parse().map(Self::Image) }
    }
}

/// What came of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Built {
    /// The image's name in the store.
    pub name: String,
    /// The image in the store.
    pub imported: Imported,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A lock's file.
    #[error("failed to read {path:?}: rootfs/lock.sh FOLDER writes FOLDER/lock")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line of a lock.
    #[error("failed to understand {path:?}, line {line}: {text:?}: rootfs/lock.sh writes the lock anew")]
    Lock {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// `SOURCE_DATE_EPOCH` is no time.
    #[error("SOURCE_DATE_EPOCH is {text:?}: it is a number of seconds since 1970")]
    Epoch {
        /// Its value.
        text: String,
    },
    /// No client for the network.
    #[error("failed to prepare for the network")]
    Network {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody is trusted.
    #[error("failed to prepare for TLS: install ca-certificates, or name a file of certificates in SSL_CERT_FILE")]
    Tls {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The mirror or index is not trusted.
    #[error(
        "failed to trust {place}: its certificate needs an authority of the system's (update-ca-certificates) or of a file that SSL_CERT_FILE names, and must be none itself"
    )]
    Distrust {
        /// The address.
        place: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The cache does not have all of it, and the network is not to be asked.
    #[error(
        "failed to build offline: {package} is not in the cache (missing packages: {count}); build once with the network"
    )]
    Offline {
        /// Name and version of the first.
        package: String,
        /// How many.
        count: usize,
    },
    /// A package that cannot be fetched.
    #[error("failed to fetch {package} from {place}")]
    Fetch {
        /// Its name and version.
        package: String,
        /// The address.
        place: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// A package that is offered no more.
    #[error("{package} is not at {place} any more: rootfs/lock.sh renews the lock; a kept cache still has what it had")]
    Dropped {
        /// Its name and version.
        package: String,
        /// The address.
        place: String,
    },
    /// A package that is not what the lock says.
    #[error(
        "{package} from {place} has the digest {found}, not that of the lock: it was exchanged; use another mirror"
    )]
    Mismatch {
        /// Its name and version.
        package: String,
        /// The address.
        place: String,
        /// What was fetched.
        found: Digest,
    },
    /// An index that answers neither in PEP 691's format nor in PEP 503's.
    #[error("failed to understand what {place} lists: PIP_INDEX_URL names an index of PEP 503 or 691")]
    Index {
        /// The address.
        place: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// No address.
    #[error("{text:?} does not lead to a package: PIP_INDEX_URL and NSBOX_DEBIAN_MIRROR are addresses")]
    Address {
        /// The part that is shown.
        text: String,
    },
    /// A Debian package that cannot be unpacked.
    #[error("failed to unpack {package}")]
    Package {
        /// Its name and version.
        package: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The tree.
    #[error("failed to unpack the base")]
    Unpack(#[from] unpack::Error),
    /// A file of the build.
    #[error("failed to write {path:?} (NSBOX_STORE names another place)")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespaces for the installer.
    #[error("failed to start unshare, of the package util-linux")]
    Spawn {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The installer.
    #[error("failed to install the packages, {status}: {complaint}; nsbox doctor tells what namespaces lack")]
    Install {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        complaint: String,
    },
    /// The layer or its documents.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// A stable name for JSON, the command line and Python.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "build-read",
            Self::Lock { .. } => "build-lock",
            Self::Epoch { .. } => "build-epoch",
            Self::Network { .. } => "build-network",
            Self::Tls { .. } => "build-tls",
            Self::Distrust { .. } => "build-distrust",
            Self::Offline { .. } => "build-offline",
            Self::Fetch { .. } => "build-fetch",
            Self::Dropped { .. } => "build-dropped",
            Self::Mismatch { .. } => "build-mismatch",
            Self::Index { .. } => "build-index",
            Self::Address { .. } => "build-address",
            Self::Package { .. } => "build-package",
            Self::Unpack(_) => "build-unpack",
            Self::Write { .. } => "build-write",
            Self::Spawn { .. } => "build-spawn",
            Self::Install { .. } => "build-install",
            Self::Pack(_) => "build-pack",
            Self::Store(error) => error.code(),
        }
    }
}

/// Builds an image into `store`. Builds of one lock have one digest, on any machine and by any user, as long as their
/// packages can be had: those fetched are kept in `cache` of the store.
///
/// # Errors
/// An [`Error`] that names the package; the store is then as it was, but for the cache.
pub fn build(store: &Store, options: &Options, progress: &dyn Progress) -> Result<Built, Error> {
    let name = options.name.clone().unwrap_or_else(|| options.profile.image().to_owned());
    store::check_name(&name)?;
    let lock = Lock::read(options.profile, options.lock.as_deref())?;
    let epoch = options.epoch.map_or_else(|| source_date_epoch(lock.epoch), Ok)?;
    store.sweep()?;
    let staging = store.stage(None)?;
    let folder = store.shelf("cache")?;
    let cache = Cache { folder: &folder, partial: &staging.make_dir("fetched")? };
    cache.fill(&lock, options, progress)?;

    progress.begin("unpacking the base", None);
    let tree = staging.make_dir("tree")?;
    let base = match &options.base {
        Base::Debian => debian_base(&lock, &cache, &staging)?,
        Base::Image(source) => image_base(store, source, &staging, progress)?,
    };
    let failed = |source| Error::Write { path: tree.clone(), source };
    Unpacker::new(&tree, Limits::default()).map_err(failed)?.apply(base, true)?;
    let wheels = lock.wheels.iter().map(|wheel| (wheel, cache.path(wheel)));
    install::prepare(&tree, options.profile == Profile::Slim, wheels, options.base == Base::Debian)?;
    install::run(&tree, &staging, progress)?;

    progress.begin("packing the image", None);
    let layout = staging.make_dir("layout")?;
    pack::pack(&tree, epoch, &layout, progress)?;
    let layout = Source::Path(layout);
    let imported = store.import_as(&layout, &options.shown(), Some(&name), &ImportOptions::default(), progress)?;
    Ok(Built { name, imported })
}

/// The time that files bear: what `SOURCE_DATE_EPOCH` says, as reproducible-builds.org defines it.
fn source_date_epoch(default: u64) -> Result<u64, Error> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().map_err(|_| Error::Epoch { text }),
        Err(_) => Ok(default),
    }
}

/// The packages of Debian as one layer, in a file of the build's.
fn debian_base(lock: &Lock, cache: &Cache<'_>, staging: &Staging) -> Result<File, Error> {
    let path = staging.path().join("base.tar");
    let failed = |source| Error::Write { path: path.clone(), source };
    let mut base = debian::Base::new(read_write(&path).map_err(failed)?).map_err(failed)?;
    for package in &lock.debian {
        let failed = |source| Error::Package { package: package.shown(), source };
        base.add(&cache.path(package)).map_err(failed)?;
    }
    base.finish().map_err(failed)
}

/// Another image's tree as one layer.
fn image_base(store: &Store, source: &Source, staging: &Staging, progress: &dyn Progress) -> Result<File, Error> {
    let imported = store.import(source, None, &ImportOptions::default(), progress)?;
    let held = store.find(&imported.digest.to_string())?;
    let path = staging.path().join("base.tar");
    let failed = |source| Error::Write { path: path.clone(), source };
    let file = read_write(&path).map_err(failed)?;
    let mut file = pack::tar_of(&held.rootfs, 0, file, &())?;
    file.rewind().map_err(failed)?;
    Ok(file)
}

fn read_write(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(true).open(path)
}
