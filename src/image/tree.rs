//! A tree of files that is, or will be, somebody's `/`: paths are resolved inside it, as the guest will resolve them.
//!
//! The host is the tree whose root is `/`. See `path_resolution(7)` and `RESOLVE_IN_ROOT` in `openat2(2)`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

/// Links followed before a path counts as a loop, as in the kernel.
const MAX_LINKS: usize = 40;

/// A folder seen as `/`, for as long as one image is looked for: what was found to be a folder is not looked at again.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    /// What is at link-free paths, links excepted.
    seen: RefCell<HashMap<OsString, Metadata>>,
}

/// Where a path led.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// The path in the tree, free of links, `.` and `..`.
    pub path: PathBuf,
    /// Every link on the way, as its own link-free path and what it says.
    pub links: Vec<(PathBuf, PathBuf)>,
}

impl Tree {
    /// The tree below `root`, a real path.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), seen: RefCell::default() }
    }

    /// The host path of a link-free path in the tree.
    pub fn on_host(&self, real: &Path) -> PathBuf {
        self.root.join(real.strip_prefix("/").unwrap_or(real))
    }

    /// What is at a path whose parents are free of links.
    pub fn look(&self, real: &Path) -> io::Result<Metadata> {
        if let Some(metadata) = self.seen.borrow().get(real.as_os_str()) {
            return Ok(metadata.clone());
        }
        let metadata = fs::symlink_metadata(self.on_host(real))?;
        if !metadata.is_symlink() {
            self.seen.borrow_mut().insert(real.into(), metadata.clone());
        }
        Ok(metadata)
    }

    /// Follows every link of an absolute path; `..` stops at the root, absolute links start there.
    pub fn resolve(&self, path: &Path) -> io::Result<Resolved> {
        let known = path.ancestors().skip(1).find(|up| self.seen.borrow().contains_key(up.as_os_str()));
        let known = known.unwrap_or(Path::new("/"));
        let mut todo = Vec::new();
        push_components(&mut todo, path.strip_prefix(known).unwrap_or(path));
        let mut real = known.to_owned();
        let mut links = Vec::new();
        while let Some(step) = todo.pop() {
            if step == ".." {
                // Only a folder has a `..`.
                if !self.look(&real)?.is_dir() {
                    return Err(io::ErrorKind::NotADirectory.into());
                }
                real.pop();
                continue;
            }
            real.push(&step);
            if !self.look(&real)?.is_symlink() {
                continue;
            }
            if links.len() == MAX_LINKS {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            let target = fs::read_link(self.on_host(&real))?;
            links.push((real.clone(), target.clone()));
            push_components(&mut todo, &target);
            real.pop();
            if target.is_absolute() {
                real = PathBuf::from("/");
            }
        }
        Ok(Resolved { path: real, links })
    }

    /// The real path and the metadata of what a path leads to, if it leads anywhere.
    pub fn find(&self, path: &Path) -> Option<(PathBuf, Metadata)> {
        let real = self.resolve(path).ok()?.path;
        let metadata = self.look(&real).ok()?;
        Some((real, metadata))
    }

    /// The real path of a folder.
    pub fn find_dir(&self, path: &Path) -> Option<PathBuf> {
        self.find(path).filter(|(_, metadata)| metadata.is_dir()).map(|(real, _)| real)
    }

    /// The real path of a regular file.
    pub fn find_file(&self, path: &Path) -> Option<PathBuf> {
        self.find(path).filter(|(_, metadata)| metadata.is_file()).map(|(real, _)| real)
    }

    /// Whether a path leads to a regular file that somebody may execute.
    pub fn is_executable(&self, path: &Path) -> bool {
        self.find(path).is_some_and(|(_, metadata)| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    }

    /// The content of a regular file; `None` where there is none.
    pub fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        match self.find_file(path) {
            Some(real) => fs::read(self.on_host(&real)).map(Some),
            None => Ok(None),
        }
    }

    /// The names in a folder, unsorted; none where there is no folder.
    pub fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let Ok(resolved) = self.resolve(path) else { return Ok(Vec::new()) };
        match fs::read_dir(self.on_host(&resolved.path)) {
            Ok(entries) => entries.map(|entry| entry.map(|entry| entry.file_name())).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Puts the components of a path on a stack, the first one on top.
fn push_components(stack: &mut Vec<OsString>, path: &Path) {
    let steps = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    stack.extend(steps.map(OsString::from));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const NAMES: [&str; 8] = ["a", "b", "l0", "l1", "l2", "l3", "..", "file"];

    /// Where the kernel says that a path leads inside `root`.
    fn kernel(root: &Path, path: &Path) -> Option<PathBuf> {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let opened = openat2(File::open(root).unwrap(), path, how).ok()?;
        let real = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).unwrap();
        Some(Path::new("/").join(real.strip_prefix(root).unwrap()))
    }

    fn path(steps: &[&str], absolute: bool) -> PathBuf {
        Path::new(if absolute { "/" } else { "" }).join(steps.join("/"))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn resolution_is_the_kernels(
            links in prop::collection::vec(
                (select(vec!["", "a", "a/b"]), 0..4, prop::collection::vec(select(&NAMES[..]), 1..4), any::<bool>()),
                0..6,
            ),
            asked in prop::collection::vec(prop::collection::vec(select(&NAMES[..]), 1..6), 1..8),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let root = fs::canonicalize(folder.path()).unwrap();
            fs::create_dir_all(root.join("a/b")).unwrap();
            fs::create_dir_all(root.join("b")).unwrap();
            fs::write(root.join("a/file"), "").unwrap();
            for (place, number, target, absolute) in &links {
                // A link of that name may be there already; the first one stays.
                drop(symlink(path(target, *absolute), root.join(place).join(format!("l{number}"))));
            }
            let tree = Tree::new(&root);
            for steps in &asked {
                let asked = path(steps, true);
                let (found, expected) = (tree.resolve(&asked).ok(), kernel(&root, &asked));
                prop_assert_eq!(found.as_ref().map(|found| &found.path), expected.as_ref(), "{:?}", asked);
                for (link, target) in found.iter().flat_map(|found| &found.links) {
                    prop_assert_eq!(&fs::read_link(tree.on_host(link)).unwrap(), target);
                }
            }
        }
    }

    #[test]
    fn loop_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        symlink("two", folder.path().join("one")).unwrap();
        symlink("/one", folder.path().join("two")).unwrap();
        let error = Tree::new(folder.path()).resolve(Path::new("/one")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}
