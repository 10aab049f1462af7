//! What a build stands on: another image, which may be anybody's.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use tar::{Builder, EntryType, Header};

use crate::harness::{outcome_of, require};
use crate::registries::Registry;
use crate::small::{WHEELS, digest, kept_cache, lock, scratch};
use crate::store::{inspect, nsbox_in, printed, shown, store};

#[test]
fn layout_or_registry_is_a_base_as_good_as_debians_packages() {
    let (lock, folder) = (lock(), scratch());
    digest();
    let small = inspect(store(), "small");
    assert!(small["source"].as_str().unwrap().starts_with("build slim, lock /tmp/nsbox-lock-"), "{}", small["source"]);
    let layout = small["layout"].as_str().unwrap();
    let fewer = lock.path().join("slim.txt");
    let text = fs::read_to_string(&fewer).unwrap();
    fs::write(&fewer, text.lines().find(|line| line.starts_with("tqdm")).unwrap()).unwrap();
    let lock_path = lock.path().to_str().unwrap();
    let build = |store: &Path, base: &str| {
        let args = ["image", "build", "--profile", "slim", "--name", "based", "--base", base, "--lock", lock_path];
        printed(nsbox_in(store, &args))
    };
    // The base has the wheels already: what is built on it is what it was.
    assert_eq!(build(store(), layout), digest());
    let packages = inspect(store(), "based")["packages"].to_string();
    assert!(WHEELS.iter().all(|name| packages.to_lowercase().contains(name)), "{packages}");
    let script = "import yaml, tqdm\nprint(yaml.safe_load('[1, 2]'))";
    let command = nsbox_in(store(), &["run", "--json", "--no-check", "--image", "based", "-"]);
    assert_eq!(outcome_of(command, script.as_bytes()).expect("ok").stdout(), "[1, 2]\n");
    printed(nsbox_in(store(), &["image", "rm", "based"]));

    let registry = Registry::start(&folder.path().join("registry"), None);
    if !require(registry.is_some(), "docker-registry") {
        return;
    }
    let registry = registry.unwrap();
    registry.push(Path::new(layout), "small");
    let fresh = kept_cache(folder.path(), lock.path(), nix::unistd::geteuid().as_raw());
    let base = format!("oci://127.0.0.1:{}/quant/base:small", registry.port);
    assert_eq!(build(&fresh, &base), digest());
    // The base is that image: what it was called first stays.
    assert_eq!(inspect(&fresh, "based")["source"], base);
}

/// Adds an entry of root's to an archive.
fn append(tar: &mut Builder<File>, kind: EntryType, path: &str, link: &str, content: &str) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(content.len() as u64);
    match kind {
        EntryType::Symlink => tar.append_link(&mut header, path, link).unwrap(),
        _ => tar.append_data(&mut header, path, content.as_bytes()).unwrap(),
    }
}

#[test]
fn base_that_links_out_of_itself_is_not_followed() {
    let (lock, folder) = (lock(), scratch());
    let fresh = kept_cache(folder.path(), lock.path(), nix::unistd::geteuid().as_raw());
    let (base, outside) = (folder.path().join("base.tar"), folder.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    let mut tar = Builder::new(File::create(&base).unwrap());
    append(&mut tar, EntryType::Symlink, "build", outside.to_str().unwrap(), "");
    tar.finish().unwrap();
    let args = ["image", "build", "--profile", "slim", "--offline", "--lock", lock.path().to_str().unwrap(), "--base"];
    let output = nsbox_in(&fresh, &[args.as_slice(), &[base.to_str().unwrap()]].concat()).output().unwrap();
    // It has no Python.
    assert_eq!(output.status.code(), Some(125), "{}", shown(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("failed to install"), "{}", shown(&output));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was written outside of the tree");
}

/// Leaves the folder that chroot(2) made the root of, where that can be left.
const LEAVE: &str = "
import os, sys
os.chdir('/')
try:
    os.chroot('/tmp')
except PermissionError:
    sys.exit('held')
for _ in range(64):
    os.chdir('..')
os.chroot('.')
open(CANARY, 'w').close()
sys.exit('out')
";

#[test]
fn base_with_a_hostile_python_is_held_in_its_tree() {
    let (lock, folder) = (lock(), scratch());
    digest();
    let small = inspect(store(), "small");
    let rootfs = Path::new(small["rootfs"].as_str().unwrap());
    let canary = folder.path().join("canary");
    let leave = LEAVE.replace("CANARY", &format!("{:?}", canary.to_str().unwrap()));
    let mut chroot = Command::new("unshare");
    chroot.args(["--user", "--map-root-user", "--root"]).arg(rootfs).args(["/usr/bin/python3.11", "-S", "-c", &leave]);
    let output = chroot.output().unwrap();
    assert!(canary.exists() && output.stderr == b"out\n", "root of a namespace leaves it: {}", shown(&output));
    fs::remove_file(&canary).unwrap();

    let base = folder.path().join("base.tar");
    let mut tar = Builder::new(File::create(&base).unwrap());
    tar.follow_symlinks(false);
    tar.append_dir_all("", rootfs).unwrap();
    append(&mut tar, EntryType::Regular, "usr/bin/python3", "", &format!("#!/usr/bin/python3.11 -S{leave}"));
    tar.finish().unwrap();
    let fresh = kept_cache(folder.path(), lock.path(), nix::unistd::geteuid().as_raw());
    let args = ["image", "build", "--profile", "slim", "--offline", "--lock", lock.path().to_str().unwrap(), "--base"];
    let output = nsbox_in(&fresh, &[args.as_slice(), &[base.to_str().unwrap()]].concat()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(125) && said.contains("held"), "{said}");
    assert!(!canary.exists(), "the base's Python has left its tree");
}
