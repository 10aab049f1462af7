//! `--image PATH`: an unpacked root file system with a Python in it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::binds::Binds;
use super::python::Layout;
use super::site::site_paths;
use super::skeleton::{Skeleton, synthetic};
use super::tree::Tree;
use super::{Bind, Error, Image, Kind};

/// Where an image's interpreter is looked for: the usual places of a system, of official images, of venvs and of conda.
const SEARCH: [&str; 5] = ["/opt/venv/bin", "/opt/conda/bin", "/usr/local/bin", "/usr/bin", "/bin"];

/// Top-level folders that are the guest's own, whatever the image has there; `/etc` is seen to apart.
const OWN: [&str; 9] = ["dev", "etc", "input", "output", "proc", "run", "sys", "tmp", "work"];

/// An unpacked root file system as an image; the interpreter is `python`, a path in it, or the first `python3` in its
/// usual places. Every link is followed inside `path`, as the guest will follow it. The image's `/etc` is bound, and the
/// synthetic files over those of its files that have the same name.
///
/// # Errors
/// [`Error::NotFolder`], or what [`host`](super::host()) fails with.
pub fn rootfs(path: &Path, python: Option<&Path>, store: &Path) -> Result<Image, Error> {
    let root = fs::canonicalize(path).ok().filter(|root| root.is_dir());
    let root = root.ok_or_else(|| Error::NotFolder { path: path.to_owned() })?;
    let tree = Tree::new(root);
    let layout = Layout::read(&tree, &find_python(&tree, python)?)?;
    let site = site_paths(&tree, &layout)?;

    let mut skeleton = Skeleton::new();
    let mut binds = Binds::within_image(&tree);
    add_top(&tree, &mut binds, &mut skeleton)?;
    binds.add_python(&layout, &site)?;
    let (mut binds, late_binds) = binds.finish(&mut skeleton)?;
    let skeleton = skeleton.build(store)?;
    binds.extend(etc(&tree, &skeleton));
    Ok(Image {
        name: path.display().to_string(),
        digest: None,
        skeleton,
        binds,
        late_binds,
        python: layout.into_interpreter(site),
        lease: None,
    })
}

fn find_python(tree: &Tree, python: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(python) = python {
        return Ok(Path::new("/").join(python));
    }
    let mut candidates = SEARCH.iter().map(|folder| Path::new(folder).join("python3"));
    candidates
        .find(|path| tree.is_executable(path))
        .ok_or_else(|| Error::NoPython { name: "python3".into(), searched: SEARCH.join(":").into() })
}

/// The top of the image: folders and files become binds, links stay links. What is no more than an empty folder needs
/// no bind; sockets, devices and the like are left out.
fn add_top(tree: &Tree, binds: &mut Binds, skeleton: &mut Skeleton) -> Result<(), Error> {
    let top = Path::new("/");
    let failed = |path: &Path, source| Error::Read { path: tree.on_host(path), source };
    for name in tree.names(top).map_err(|source| failed(top, source))? {
        let path = top.join(&name);
        if OWN.iter().any(|own| own.as_bytes() == name.as_bytes()) {
            continue;
        }
        let kind = tree.look(&path).map_err(|source| failed(&path, source))?.file_type();
        if kind.is_symlink() {
            skeleton.link(&path, &fs::read_link(tree.on_host(&path)).map_err(|source| failed(&path, source))?);
        } else if kind.is_dir() && tree.names(&path).map_err(|source| failed(&path, source))?.is_empty() {
            skeleton.dir(&path);
        } else if kind.is_dir() || kind.is_file() {
            binds.add(&path, top)?;
        }
    }
    Ok(())
}

/// The image's `/etc`, and over it the skeleton's files: those for which the image has a regular file to mount on.
fn etc(tree: &Tree, skeleton: &Path) -> Vec<Bind> {
    let Some(etc) = tree.find_dir(Path::new("/etc")) else { return Vec::new() };
    let mut binds = vec![Bind { source: tree.on_host(&etc), target: "/etc".into(), kind: Kind::Dir }];
    for (name, _) in synthetic() {
        if fs::symlink_metadata(tree.on_host(&etc.join(name))).is_ok_and(|metadata| metadata.is_file()) {
            let target = Path::new("/etc").join(name);
            binds.push(Bind { source: skeleton.join("etc").join(name), target, kind: Kind::File });
        }
    }
    binds
}
