//! `--image PATH`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nsbox::image::{self, Kind};

use crate::machine::{interpreters, run_inside, skip, text};

/// An interpreter that does not depend on its place: its executable holds libpython.
pub fn self_contained() -> Option<PathBuf> {
    interpreters().into_iter().find(|python| {
        let linked = Command::new("ldd").arg(fs::canonicalize(python).unwrap()).output().unwrap();
        !text(&linked).contains("libpython")
    })
}

/// Copies an installation to another prefix: executable, library, links.
pub fn copy_installation(python: &Path, prefix: &Path) {
    let real = fs::canonicalize(python).unwrap();
    let name = real.file_name().unwrap();
    fs::create_dir_all(prefix.join("bin")).unwrap();
    fs::copy(&real, prefix.join("bin").join(name)).unwrap();
    symlink(name, prefix.join("bin/python3")).unwrap();
    symlink("python3", prefix.join("bin/python")).unwrap();
    let library = real.parent().unwrap().parent().unwrap().join("lib").join(name);
    copy_tree(&library, &prefix.join("lib").join(name));
    fs::create_dir_all(prefix.join("lib").join(name).join("site-packages")).unwrap();
}

fn copy_tree(from: &Path, to: &Path) {
    const LEFT_OUT: [&str; 6] = ["__pycache__", "site-packages", "dist-packages", "test", "idlelib", "ensurepip"];
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else if entry.path().is_file() {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A small root file system: an installation in `/opt/py`, the libraries it needs, links that lead out if they are
/// followed outside of it.
pub fn small_root(python: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    copy_installation(python, &root.join("opt/py"));
    for line in text(&Command::new("ldd").arg(fs::canonicalize(python).unwrap()).output().unwrap()).lines() {
        let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        let target = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(library, target).unwrap();
    }
    for dir in ["etc", "usr/bin", "srv", "tmp/left", "proc"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "image:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(root.join("etc/image-release"), "1\n").unwrap();
    symlink("/usr/share/zoneinfo/Asia/Taipei", root.join("etc/localtime")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    symlink("/opt/current/bin/python3", root.join("usr/bin/python3")).unwrap();
    symlink("../../../../opt/py", root.join("opt/current")).unwrap();
    folder
}

#[test]
fn rootfs_runs_and_its_links_stay_inside() {
    let Some(python) = self_contained() else { return skip("no Python here can be moved") };
    let (root, store) = (small_root(&python), tempfile::tempdir().unwrap());
    let image = image::rootfs(root.path(), None, store.path()).unwrap();
    assert_eq!(image.python.prefix, Path::new("/opt/py"));
    assert!(image.binds.iter().all(|bind| bind.source.starts_with(root.path()) || bind.kind == Kind::File));
    assert!(!image.binds.iter().any(|bind| bind.target == Path::new("/srv")), "an empty folder needs no bind");
    let code = "import json, os, pwd
print(json.dumps([pwd.getpwuid(1000).pw_name, os.path.exists('/etc/image-release'), os.listdir('/tmp'),
                  os.readlink('/bin'), os.path.isdir('/srv'), sys.prefix]))";
    if let Some(inside) = run_inside(&image, code) {
        assert_eq!(inside.trim(), r#"["nsbox", true, [], "usr/bin", true, "/opt/py"]"#);
    }
}

#[test]
fn rootfs_takes_the_interpreter_named() {
    let Some(python) = self_contained() else { return skip("no Python here can be moved") };
    let (root, store) = (small_root(&python), tempfile::tempdir().unwrap());
    fs::rename(root.path().join("opt"), root.path().join("work")).unwrap();
    assert_eq!(image::rootfs(root.path(), None, store.path()).unwrap_err().code(), "image-no-python");
    let image = image::rootfs(root.path(), Some(Path::new("/work/py/bin/python")), store.path()).unwrap();
    assert_eq!(image.python.prefix, Path::new("/work/py"));
    assert!(image.late_binds.iter().any(|bind| bind.target == Path::new("/work/py")), "{image:#?}");
    if let Some(inside) = run_inside(&image, "import json; print(json.__file__)") {
        assert!(inside.starts_with("/work/py/lib"), "{inside}");
    }
}

#[test]
fn rootfs_without_a_python_of_its_own_is_refused() {
    let (root, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let code = |path: &Path| image::rootfs(path, None, store.path()).unwrap_err().code();
    assert_eq!(code(root.path()), "image-no-python");
    // A link to the host's Python: it must not be followed there.
    fs::create_dir_all(root.path().join("usr/bin")).unwrap();
    symlink("../../../../../../../../usr/bin/python3", root.path().join("usr/bin/python3")).unwrap();
    assert_eq!(code(root.path()), "image-no-python");
    assert_eq!(code(&root.path().join("missing")), "image-not-folder");
    fs::write(root.path().join("file"), "").unwrap();
    assert_eq!(code(&root.path().join("file")), "image-not-folder");
}
