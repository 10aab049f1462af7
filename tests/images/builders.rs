//! Many first runs at once, some of them killed.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nsbox::image;

use crate::machine::interpreters;

/// Every path below a folder, with its mode.
fn listing(folder: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            found.push((path.strip_prefix(folder).unwrap().to_owned(), metadata.permissions().mode()));
            if metadata.is_dir() {
                todo.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn skeleton_is_built_once_by_sixteen_threads() {
    for python in interpreters().iter().take(1) {
        let store = tempfile::tempdir().unwrap();
        let built: Vec<PathBuf> = thread::scope(|scope| {
            let build = || image::host(Some(python), store.path()).unwrap().skeleton;
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(build)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(built.iter().all(|path| *path == built[0]));
        let shelf: Vec<_> = fs::read_dir(store.path().join("skeletons")).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(shelf.len(), 2, "a lock and a skeleton: {shelf:?}");
        assert!(built[0].join("run/nsbox").is_dir() && built[0].join("etc/passwd").is_file());
    }
}

/// One of the processes of the test below, with a umask that must not matter.
fn builder(store: &Path, python: &Path, umask: &str) -> Child {
    Command::new("sh")
        .args(["-c", "umask $0; exec \"$@\"", umask])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "builders::child_builds", "--ignored"])
        .env("NSBOX_TEST_STORE", store)
        .env("NSBOX_TEST_PYTHON", python)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "a process of skeleton_survives_killed_builders_and_any_umask"]
fn child_builds() {
    let variable = |name: &str| PathBuf::from(env::var_os(name).unwrap());
    image::host(Some(&variable("NSBOX_TEST_PYTHON")), &variable("NSBOX_TEST_STORE")).unwrap();
}

#[test]
fn skeleton_survives_killed_builders_and_any_umask() {
    for python in interpreters().iter().take(1) {
        let reference_store = tempfile::tempdir().unwrap();
        let reference = image::host(Some(python), reference_store.path()).unwrap().skeleton;
        for round in 0_u64..4 {
            let store = tempfile::tempdir().unwrap();
            let mut children: Vec<Child> = (0..16)
                .map(|number| builder(store.path(), python, if number % 2 == 0 { "077" } else { "000" }))
                .collect();
            thread::sleep(Duration::from_millis(round * 15));
            for victim in children.iter_mut().step_by(2) {
                victim.kill().unwrap();
            }
            for (number, child) in children.iter_mut().enumerate() {
                let status = child.wait().unwrap();
                assert!(number % 2 == 0 || status.success(), "builder {number}: {status}");
            }
            assert!(store.path().join("skeletons").join(reference.file_name().unwrap()).is_dir(), "they have built it");
            let skeleton = image::host(Some(python), store.path()).unwrap().skeleton;
            assert_eq!(skeleton.file_name(), reference.file_name());
            assert_eq!(listing(&skeleton), listing(&reference));
            let shelf = fs::read_dir(store.path().join("skeletons")).unwrap().count();
            assert_eq!(shelf, 2, "a lock and a skeleton");
        }
    }
}

#[test]
fn skeleton_modes_are_fixed() {
    for python in interpreters().iter().take(1) {
        let store = tempfile::tempdir().unwrap();
        let skeleton = image::host(Some(python), store.path()).unwrap().skeleton;
        assert_eq!(fs::metadata(&skeleton).unwrap().permissions().mode(), 0o040_755);
        for (path, mode) in listing(&skeleton) {
            assert!([0o040_755, 0o100_644, 0o120_777].contains(&mode), "{path:?} {mode:o}");
        }
    }
}
