//! Runs `rootfs/install.py` in the tree that it completes, by the tree's own Python: the host needs none, and what a
//! package brought runs in namespaces of its own, where the tree is all there is and nothing of the network.
//!
//! The namespaces are unshare(1)'s, of util-linux, and a build by an ordinary user is the same as root's. A base may be
//! anybody's, and its Python is what runs: the user that it is in the namespace is not root there, so that no capability
//! outlasts the start, and nobody leaves a chroot(2), or makes another namespace in one, without any.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Error;
use super::lock::Package;
use crate::image::Progress;
use crate::image::store::Staging;

const INSTALLER: &str = include_str!("../../../rootfs/install.py");
const CUT: &str = include_str!("../../../rootfs/cut.txt");
const CUT_SLIM: &str = include_str!("../../../rootfs/cut-slim.txt");
/// nsbox's own Python in the guest, for engines that have no store.
const GUEST: [(&str, &str); 10] = [
    ("collect.py", include_str!("../../../rootfs/guest/collect.py")),
    ("compile.py", include_str!("../../../rootfs/guest/compile.py")),
    ("container.py", include_str!("../../../rootfs/guest/container.py")),
    ("inputs.py", include_str!("../../../rootfs/guest/inputs.py")),
    ("memory.py", include_str!("../../../rootfs/guest/memory.py")),
    ("network_hint.py", include_str!("../../../rootfs/guest/network_hint.py")),
    ("relocate.py", include_str!("../../../rootfs/guest/relocate.py")),
    ("runner.py", include_str!("../../../rootfs/guest/runner.py")),
    ("warm_up.py", include_str!("../../../rootfs/guest/warm_up.py")),
    ("zygote.py", include_str!("../../../rootfs/guest/zygote.py")),
];

/// Lays the installer and what it installs into the tree. Wheels `shared` with the cache are the same files: whoever runs
/// in the tree may write to them.
pub(super) fn prepare<'a>(
    tree: &Path,
    slim: bool,
    wheels: impl Iterator<Item = (&'a Package, PathBuf)>,
    shared: bool,
) -> Result<(), Error> {
    let build = tree.join("build");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Write { path, source }
    };
    // What a base has there may be a link out of the tree. It would go at the end in any case.
    remove(&build).map_err(failed(&build))?;
    for folder in ["", "wheels", "guest"] {
        fs::create_dir(build.join(folder)).map_err(failed(&build))?;
    }
    let cut = if slim { format!("{CUT}\n{CUT_SLIM}") } else { CUT.to_owned() };
    let texts = [("install.py".to_owned(), INSTALLER), ("cut.txt".to_owned(), cut.as_str())];
    let guest = GUEST.map(|(name, text)| (format!("guest/{name}"), text));
    for (name, text) in texts.into_iter().chain(guest) {
        let path = build.join(name);
        fs::write(&path, text).map_err(failed(&path))?;
    }
    for (wheel, cached) in wheels {
        let path = build.join("wheels").join(&wheel.file);
        // The store is one file system as a rule.
        let linked = shared && fs::hard_link(&cached, &path).is_ok();
        if !linked {
            fs::copy(&cached, &path).map_err(failed(&path))?;
        }
    }
    Ok(())
}

/// Removes what is at a path, links not followed; nothing there is fine.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Runs it, and takes it out of the tree again. Where the build is killed, it ends at its next line, and the tree stays
/// until then: its standard input, an empty file, is the lock that keeps it.
pub(super) fn run(tree: &Path, staging: &Staging, progress: &dyn Progress) -> Result<(), Error> {
    let spawn_failed = |source| Error::Spawn { source };
    let mut child = Command::new("unshare")
        .args([
            "--user",
            "--map-user=1000",
            "--map-group=1000",
            "--mount",
            "--pid",
            "--net",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
        ])
        .arg("--root")
        .arg(tree)
        // Nothing of the caller's environment; strings hash the same in every build.
        .args(["/usr/bin/env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONHASHSEED=0"])
        .args(["python3", "-S", "-s", "-B", "/build/install.py"])
        .stdin(staging.share_lock().map_err(spawn_failed)?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spawn_failed)?;
    let (stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let complaint = std::thread::scope(|scope| {
        let complaint = scope.spawn(move || {
            let mut text = Vec::new();
            // What was read until then is all there is to say.
            stderr.as_mut().map(|stderr| stderr.read_to_end(&mut text)).transpose().ok();
            String::from_utf8_lossy(&text).trim_end().to_owned()
        });
        for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines()).map_while(io::Result::ok) {
            show(&line, progress);
        }
        complaint.join().unwrap_or_default()
    });
    let status = child.wait().map_err(spawn_failed)?;
    if !status.success() {
        return Err(Error::Install { status, complaint });
    }
    let build = tree.join("build");
    remove(&build).map_err(|source| Error::Write { path: build, source })
}

/// One line of the installer: `begin STAGE BYTES`, then `done BYTES` as often as it likes.
fn show(line: &str, progress: &dyn Progress) {
    let mut words = line.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some("begin"), Some(stage), Some(total)) => progress.begin(&format!("{stage} packages"), total.parse().ok()),
        (Some("done"), Some(bytes), None) => progress.advance(bytes.parse().unwrap_or_default()),
        _ => {}
    }
}
