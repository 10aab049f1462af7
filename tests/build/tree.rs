//! A tree as what can be compared of it: every entry's kind, mode, owner and content.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

/// Path to description.
pub type Tree = BTreeMap<PathBuf, String>;

/// What an engine puts into every container; the kernel and nsbox put theirs there.
const ENGINES: [&str; 7] = ["dev", "proc", "sys", ".dockerenv", "etc/hostname", "etc/hosts", "etc/mtab"];

/// A tar's entries; hard links are as the file that they lead to.
pub fn of_tar(tar: impl Read) -> Tree {
    let mut tree = Tree::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().components().as_path().to_owned();
        let left_out = ENGINES.iter().any(|name| path.starts_with(name)) || path.ends_with("etc/resolv.conf");
        if path.as_os_str().is_empty() || left_out {
            continue;
        }
        let header = entry.header();
        let kind = header.entry_type();
        // Docker's tars have the kind in the mode too.
        let facts =
            format!("{:o} {}:{}", header.mode().unwrap() & 0o7777, header.uid().unwrap(), header.gid().unwrap());
        let target = entry.link_name().unwrap().map(|target| target.into_owned());
        let described = match (kind, target) {
            (tar::EntryType::Link, Some(target)) => tree[target.components().as_path()].clone(),
            (tar::EntryType::Symlink, Some(target)) => format!("link to {}", target.display()),
            (tar::EntryType::Directory, _) => format!("folder {facts}"),
            (kind, _) => {
                assert!(kind.is_file(), "{path:?} is {kind:?}");
                let mut hash = Sha256::new();
                std::io::copy(&mut entry, &mut hash).unwrap();
                format!("file {facts} {:x}", hash.finalize())
            }
        };
        tree.insert(path, described);
    }
    tree
}

/// The only layer of an image in an OCI layout.
pub fn of_layout(layout: &Path) -> Tree {
    let json = |path: PathBuf| -> serde_json::Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let blob = |digest: &serde_json::Value| layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let index = json(layout.join("index.json"));
    let manifest = json(blob(&index["manifests"][0]["digest"]));
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1);
    let layer = std::fs::File::open(blob(&layers[0]["digest"])).unwrap();
    of_tar(flate2::read::GzDecoder::new(layer))
}

/// What a command writes, as a tar.
pub fn of_command(mut command: Command) -> Tree {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let tree = of_tar(&mut stdout);
    // What pads the archive behind its end is read too, or the command may find nobody there to write it to.
    std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
    assert!(child.wait().unwrap().success());
    tree
}

/// Fails with the first differences.
#[track_caller]
pub fn assert_same(ours: &Tree, theirs: &Tree) {
    let paths = ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path)));
    let differ = paths.filter(|path| ours.get(*path) != theirs.get(*path));
    let shown: Vec<String> =
        differ.take(20).map(|path| format!("{path:?}: {:?}, {:?}", ours.get(path), theirs.get(path))).collect();
    assert!(shown.is_empty(), "{}", shown.join("\n"));
}
