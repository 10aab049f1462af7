//! Which folders of a tree the guest gets, and at which moment of the set-up each is bound.
//!
//! A folder is bound at its own real path; links that lead there are made anew in the skeleton.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::python::Layout;
use super::site::SitePath;
use super::skeleton::Skeleton;
use super::tree::Tree;
use super::{Bind, Error, Kind};

/// Where the sandbox mounts what is private to a run: what the image has there is bound afterwards.
const PRIVATE: [&str; 5] = ["/dev/shm", "/input", "/output", "/tmp", "/work"];

/// The guest's own places: nothing of the image can be bound in them.
const SYNTHETIC: [&str; 4] = ["/dev", "/proc", "/run/nsbox", "/sys"];

/// Folders that hold more than a Python could need: neither they nor anything above them is bound.
const WIDE: [&str; 8] = ["/boot", "/home", "/mnt", "/opt", "/root", "/srv", "/usr", "/var"];

/// What a folder that holds an installation or a venv and nothing else may hold.
const INSTALLATION: [&str; 14] = [
    ".gitignore",
    ".lock",
    "BUILD",
    "CACHEDIR.TAG",
    "bin",
    "compiler_compat",
    "conda-meta",
    "include",
    "lib",
    "lib64",
    "man",
    "pyvenv.cfg",
    "share",
    "ssl",
];

/// What its `share` may hold: in a `share` that is not Python's alone, programs keep their users' data.
const SHARE: [&str; 9] = ["doc", "info", "jupyter", "licenses", "locale", "man", "tabset", "terminfo", "zoneinfo"];

/// What is bound of any other prefix, where it exists.
const PARTS: [&str; 6] = ["bin", "lib", "lib64", "pyvenv.cfg", "share/zoneinfo", "ssl"];

/// Package stores whose members need each other: bound whole.
const PACKAGE_STORES: [&str; 2] = ["/gnu/store", "/nix/store"];

/// Binds and links in the making.
#[derive(Debug)]
pub(crate) struct Binds<'t> {
    tree: &'t Tree,
    /// Whether the tree holds the caller's own files, not an image's alone.
    on_host: bool,
    /// Link-free paths in the tree, each to be bound at the same path in the guest.
    paths: BTreeMap<PathBuf, Kind>,
    links: BTreeMap<PathBuf, PathBuf>,
    /// Folders that hold nothing but links, copied instead of bound.
    copied: BTreeSet<PathBuf>,
}

impl<'t> Binds<'t> {
    /// Binds of the host: only what Python needs.
    pub fn of_host(tree: &'t Tree) -> Self {
        Self { tree, on_host: true, paths: BTreeMap::new(), links: BTreeMap::new(), copied: BTreeSet::new() }
    }

    /// Binds of an image, which holds nothing to hide.
    pub fn within_image(tree: &'t Tree) -> Self {
        Self { on_host: false, ..Self::of_host(tree) }
    }

    /// Everything that an interpreter needs beyond the system's libraries.
    pub fn add_python(&mut self, layout: &Layout, site: &[SitePath]) -> Result<(), Error> {
        let needed_by = &layout.executable;
        for prefix in BTreeSet::from([&layout.base_prefix, &layout.prefix]) {
            self.add_prefix(prefix, needed_by)?;
        }
        self.add(&layout.base_executable, needed_by)?;
        for entry in site {
            self.add(&entry.path, entry.named_by.as_ref().unwrap_or(needed_by))?;
        }
        self.add_links(layout.links.iter().cloned());
        Ok(())
    }

    /// Links that lead to what is bound, each as its link-free path and what it says.
    pub fn add_links(&mut self, links: impl IntoIterator<Item = (PathBuf, PathBuf)>) {
        self.links.extend(links);
    }

    /// A prefix: whole where it holds nothing but an installation, else the parts that Python needs.
    fn add_prefix(&mut self, prefix: &Path, needed_by: &Path) -> Result<(), Error> {
        if let Some(store) = PACKAGE_STORES.into_iter().find(|store| prefix.starts_with(store)) {
            return self.add(Path::new(store), needed_by);
        }
        let only = |path: &Path, known: &[&str]| {
            let names =
                self.tree.names(path).map_err(|source| Error::Read { path: self.tree.on_host(path), source })?;
            Ok(names.iter().all(|name| known.iter().any(|known| name == OsStr::new(known))))
        };
        let whole = !self.is_refused(prefix) && only(prefix, &INSTALLATION)? && only(&prefix.join("share"), &SHARE)?;
        if whole {
            return self.add(prefix, needed_by);
        }
        PARTS.iter().try_for_each(|part| self.add_if_there(&prefix.join(part), needed_by))
    }

    /// A folder or file that may be missing, with the links that lead to it.
    pub fn add_if_there(&mut self, path: &Path, needed_by: &Path) -> Result<(), Error> {
        let Ok(resolved) = self.tree.resolve(path) else { return Ok(()) };
        self.add_links(resolved.links);
        if self.copied.contains(&resolved.path) || self.is_bound(&resolved.path) {
            return Ok(());
        }
        if self.is_links_only(&resolved.path) {
            self.copied.insert(resolved.path);
            return Ok(());
        }
        self.add(&resolved.path, needed_by)
    }

    /// A folder or file by its real path.
    pub fn add(&mut self, real: &Path, needed_by: &Path) -> Result<(), Error> {
        if self.is_bound(real) {
            return Ok(());
        }
        if self.is_refused(real) {
            return Err(Error::TooWide { path: real.to_owned(), needed_by: needed_by.to_owned() });
        }
        let kind = self.kind(real)?;
        self.paths.insert(real.to_owned(), kind);
        Ok(())
    }

    fn kind(&self, real: &Path) -> Result<Kind, Error> {
        match self.tree.look(real) {
            Ok(metadata) => Ok(if metadata.is_dir() { Kind::Dir } else { Kind::File }),
            Err(source) => Err(Error::Read { path: self.tree.on_host(real), source }),
        }
    }

    /// Whether a folder of the host holds nothing but links, as `/usr/lib64` on Debian: copying them saves a mount.
    fn is_links_only(&self, real: &Path) -> bool {
        // A folder with folders in it has more than two names; a large one is not worth the look.
        let small = |metadata: Metadata| metadata.is_dir() && metadata.nlink() <= 2 && metadata.size() <= 4096;
        self.on_host
            && !is_private(real)
            && self.tree.look(real).is_ok_and(small)
            && fs::read_dir(real).is_ok_and(|mut entries| {
                entries.all(|entry| entry.and_then(|entry| entry.file_type()).is_ok_and(|kind| kind.is_symlink()))
            })
    }

    /// Whether a path is bound already, itself or with a folder above it.
    fn is_bound(&self, path: &Path) -> bool {
        path.ancestors().any(|up| self.paths.contains_key(up))
    }

    fn is_refused(&self, path: &Path) -> bool {
        let above = |places: &[&str]| places.iter().any(|place| Path::new(place).starts_with(path));
        let synthetic = SYNTHETIC.iter().any(|place| path.starts_with(place)) && !is_private(path);
        let wide = || {
            let somebodys_home = path.parent() == Some(Path::new("/home"));
            let callers_home = env::home_dir().is_some_and(|home| home.starts_with(path));
            above(&WIDE) || path.starts_with("/etc") || somebodys_home || callers_home
        };
        synthetic || above(&PRIVATE) || above(&SYNTHETIC) || (self.on_host && wide())
    }

    /// Puts mount points and links into the skeleton. Returns the binds, and those that come after the private tmpfs.
    pub fn finish(self, skeleton: &mut Skeleton) -> Result<(Vec<Bind>, Vec<Bind>), Error> {
        let bind = |real: &Path, target: &Path, kind| Bind {
            source: self.tree.on_host(real),
            target: target.to_owned(),
            kind,
        };
        let (mut early, mut late) = (Vec::new(), Vec::new());
        // In the order of the paths a folder comes before what lies in it, bound or not when that was added.
        let mut last_dir: Option<&Path> = None;
        for (path, kind) in &self.paths {
            if last_dir.is_some_and(|dir| path.starts_with(dir)) {
                continue;
            }
            if *kind == Kind::Dir {
                last_dir = Some(path);
            }
            if is_private(path) {
                late.push(bind(path, path, *kind));
                continue;
            }
            match kind {
                Kind::Dir => skeleton.dir(path),
                Kind::File => skeleton.file(path),
            }
            early.push(bind(path, path, *kind));
        }
        for path in &self.copied {
            skeleton.copy_links(path);
        }
        for (path, target) in self.links.iter().filter(|(path, _)| !self.is_bound(path)) {
            if is_private(path) {
                // The tmpfs is made anew for each run: what the link leads to is bound in the link's place.
                let real =
                    self.tree.resolve(path).map_err(|source| Error::Resolve { path: path.clone(), source })?.path;
                late.push(bind(&real, path, self.kind(&real)?));
            } else {
                skeleton.link(path, target);
            }
        }
        late.sort_by(|a, b| a.target.cmp(&b.target));
        Ok((early, late))
    }
}

fn is_private(path: &Path) -> bool {
    PRIVATE.iter().any(|private| path.starts_with(private))
}
