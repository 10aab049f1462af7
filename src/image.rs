//! What the guest sees as its root: the host's own Python, or an unpacked root file system.
//!
//! Third stage of a run, after the check and before the sandbox. Nothing of the image is run here: an interpreter is
//! known by its files alone. The result is data for the sandbox, which mounts in this order:
//!
//! 1. [`Image::skeleton`], read-only, as `/`. It holds an empty mount point for everything below, and so is shared by
//!    all runs: also for `/proc`, `/tmp`, `/work`, `/dev/shm`, `/input` (room for a small tmpfs with a mount point per
//!    input), `/output`, `/run/nsbox` and the five device files of `/dev`.
//! 2. [`Image::binds`], in their order, each read-only, nosuid, nodev.
//! 3. The private tmpfs at `/tmp`, `/work` and `/dev/shm`, and what `/input` and `/output` hold.
//! 4. [`Image::late_binds`], in their order. Their mount points lie in what step 3 mounted, so the sandbox makes them:
//!    a folder with its parents, or an empty file.
//!
//! What lies in no installation stays outside: the user's own site (`~/.local`), and what links in site-packages name
//! elsewhere. Libraries are found in the system's folders, in `/usr/local/lib` and in the installation.
//!
//! Every source is a real path, free of links: open it with `RESOLVE_NO_SYMLINKS`, and what was found is what is bound.

pub mod archive;
mod binds;
pub mod build;
mod digest;
mod documents;
mod host;
mod import;
pub mod layer;
pub mod layout;
mod meter;
mod mtree;
mod packages;
mod pax;
mod pyenv;
mod python;
pub mod registry;
mod root;
mod rootfs;
mod site;
mod skeleton;
pub mod store;
mod tls;
mod tree;
pub mod unpack;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

pub use digest::{Digest, NotADigest};
pub use host::host;
pub use import::{Imported, Limits, Options, Progress, Source};
pub use mtree::Totals;
pub use packages::{Manager, Package};
pub use rootfs::rootfs;
pub use store::{Lease, Store, store_dir};

/// Name of the guest's user, in the synthetic `/etc/passwd`.
pub const USER: &str = "nsbox";
/// User and group id of the guest.
pub const UID: u32 = 1000;
/// The guest's home, in its private tmpfs.
pub const HOME: &str = "/tmp";
/// The guest's host name, in the synthetic `/etc/hostname`.
pub const HOSTNAME: &str = "nsbox";
/// The guest's `/etc/machine-id`, the same in every sandbox: `nsbox` in hexadecimal, then zeros.
pub const MACHINE_ID: &str = "6e73626f780000000000000000000000";

/// The oldest and the newest minor version of Python 3 that can be run.
pub(crate) const MINORS: std::ops::RangeInclusive<u8> = 10..=14;

/// A root for the guest, found and ready to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `host`, or the path or name that was given.
    pub name: String,
    /// Digest of the content (`sha256:...`); `None` where nothing vouches for it, as with `host` and a path.
    pub digest: Option<String>,
    /// Folder in the store to be mounted as `/`: mount points, links and synthetic files.
    pub skeleton: PathBuf,
    /// What is bound over the skeleton; a target comes after the one it lies under.
    pub binds: Vec<Bind>,
    /// What is bound after the private tmpfs, since its target lies in `/tmp`, `/work`, `/dev/shm`, `/input` or `/output`.
    pub late_binds: Vec<Bind>,
    /// The guest's Python.
    pub python: Interpreter,
    /// Keeps an image of the store there for as long as this lives; `None` for what is not the store's.
    pub lease: Option<Lease>,
}

/// The image that a configuration names: `host`, the path of an unpacked root file system (with a `/`), or the name or
/// digest of an image in the store, which then stays there for as long as the result lives.
///
/// # Errors
/// What [`host`](host()), [`rootfs`](rootfs()) and [`Store::find`] fail with.
pub fn find(image: &str, python: Option<&Path>, store: &Path) -> Result<Image, Error> {
    if image == "host" {
        return host(python, store);
    }
    if image.contains('/') {
        return rootfs(Path::new(image), python, store);
    }
    let held = Store::at(store).find(image).map_err(|error| Error::InStore(Box::new(error)))?;
    let found = rootfs(&held.rootfs, python, store)?;
    Ok(Image { name: image.to_owned(), digest: Some(held.digest.to_string()), lease: Some(held.lease), ..found })
}

/// One read-only, nosuid, nodev bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Real, absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the guest.
    pub target: PathBuf,
    /// What source and target are.
    pub kind: Kind,
}

/// What a bind mount's two ends are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Two folders.
    Dir,
    /// Two regular files.
    File,
}

/// A Python, as its files tell of it. Started as `executable -S -s -B`, with [`Interpreter::env`]: the time of `site` is
/// saved, and what `site` would have done is in the other fields, for the guest's runner to set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// Path in the guest; of a venv, the link in its `bin`, so that its `pyvenv.cfg` is found.
    pub executable: PathBuf,
    /// Major and minor version.
    pub version: (u8, u8),
    /// What `sys.prefix` and `sys.exec_prefix` are to be; a venv's own folder.
    pub prefix: PathBuf,
    /// What `sys.base_prefix` is; differs from `prefix` in a venv.
    pub base_prefix: PathBuf,
    /// What `site` would have appended to `sys.path`, in order: `site-packages` (on Debian `dist-packages`), and after
    /// each the existing paths of its `.pth` files. Lines with `import` are not run; the user's own site is left out.
    pub sys_path: Vec<PathBuf>,
    /// Variables without which this Python does not find its library.
    pub env: Vec<(String, OsString)>,
    /// What `sys.implementation.cache_tag` is: `cpython-311`.
    pub cache_tag: String,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such interpreter on the search path.
    #[error("found no {name:?} in {searched:?}: name an interpreter with --python PATH")]
    NoPython {
        /// The name looked for.
        name: OsString,
        /// The folders looked through.
        searched: OsString,
    },
    /// The interpreter's path leads nowhere.
    #[error("failed to resolve the interpreter {path:?}: name another with --python PATH")]
    Resolve {
        /// The path, with its links.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no CPython executable.
    #[error("{path:?} is {found}, not a Python executable: name the interpreter itself with --python PATH")]
    NotPython {
        /// The file, links followed.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// A pyenv shim whose version cannot be told.
    #[error("failed to resolve the pyenv shim {shim:?}: {reason}: install that version or name one with --python PATH")]
    Shim {
        /// The shim.
        shim: PathBuf,
        /// What pyenv would say.
        reason: String,
    },
    /// No standard library at the places where the interpreter looks.
    #[error(
        "found no standard library (lib/python3.N/os.py) of {executable:?}: name another interpreter with --python PATH"
    )]
    NoLibrary {
        /// The executable, links followed.
        executable: PathBuf,
    },
    /// A Python that the guest's runner does not support.
    #[error(
        "{executable:?} is Python {found}, nsbox runs Python 3.{} to 3.{}: name another interpreter with --python PATH",
        MINORS.start(), MINORS.end()
    )]
    Version {
        /// The executable, links followed.
        executable: PathBuf,
        /// The version found.
        found: String,
    },
    /// A venv whose base interpreter cannot be told.
    #[error(
        "failed to find the base interpreter of the venv {config:?}: make the venv anew or name another interpreter with --python PATH"
    )]
    Venv {
        /// Its `pyvenv.cfg`.
        config: PathBuf,
    },
    /// A folder of the image would hide one of the guest's own places, or show more of the host than Python.
    #[error(
        "refused to bind {path:?}, needed by {needed_by:?}: it holds more than Python: move what is needed to a folder of its own"
    )]
    TooWide {
        /// The folder.
        path: PathBuf,
        /// The interpreter or `.pth` file that names it.
        needed_by: PathBuf,
    },
    /// A file or folder of the image cannot be read.
    #[error("failed to read {path:?}")]
    Read {
        /// The path on the host.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image's path is not a folder.
    #[error("{path:?} is not a folder: --image takes an unpacked root file system, the name of an image, or host")]
    NotFolder {
        /// The path given.
        path: PathBuf,
    },
    /// No place for the store.
    #[error(
        "failed to choose a store: neither NSBOX_STORE, XDG_DATA_HOME nor HOME is an absolute path: set NSBOX_STORE"
    )]
    NoStore,
    /// The store can be written by somebody else.
    #[error(
        "refused the store {path:?}: another user owns it or may write to it: chown it, chmod go-w it, or set NSBOX_STORE"
    )]
    StoreUnsafe {
        /// The folder.
        path: PathBuf,
    },
    /// A folder of the store cannot be made or looked at.
    #[error("failed to make {path:?} in the store (NSBOX_STORE names another)")]
    Store {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store has no such image, or cannot give it.
    #[error(transparent)]
    InStore(Box<store::Error>),
    /// The skeleton cannot be built.
    #[error("failed to build the skeleton {path:?} in the store (NSBOX_STORE names another)")]
    Skeleton {
        /// The file or folder that failed.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// A stable name for JSON, the command line and Python.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoPython { .. } => "image-no-python",
            Self::Resolve { .. } => "image-resolve",
            Self::NotPython { .. } => "image-not-python",
            Self::Shim { .. } => "image-shim",
            Self::NoLibrary { .. } => "image-no-library",
            Self::Version { .. } => "image-version",
            Self::Venv { .. } => "image-venv",
            Self::TooWide { .. } => "image-too-wide",
            Self::Read { .. } => "image-read",
            Self::NotFolder { .. } => "image-not-folder",
            Self::NoStore => "image-no-store",
            Self::StoreUnsafe { .. } => "image-store-unsafe",
            Self::Store { .. } => "image-store",
            Self::InStore(error) => error.code(),
            Self::Skeleton { .. } => "image-skeleton",
        }
    }
}
