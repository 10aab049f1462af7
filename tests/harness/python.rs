//! Interpreters to test with: pyenv's, and environments of them with the packages that strategies import. Of a suite that
//! includes `harness/mod.rs` beside it.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{require, skipped};

/// The versions that nsbox serves.
pub const VERSIONS: [&str; 4] = ["3.10", "3.11", "3.12", "3.13"];

/// pyenv's interpreter of a version such as `3.12`.
pub fn pyenv(version: &str) -> Option<PathBuf> {
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv")));
    let versions = root.and_then(|root| fs::read_dir(root.join("versions")).ok());
    let found = versions.into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found = found
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{version}."))));
    let python = found.find(|path| path.join("bin/python3").exists()).map(|path| path.join("bin/python3"));
    if python.is_none() {
        // Each version that is present is tried; nobody must have them all.
        skipped(&format!("there is no Python {version} in pyenv"));
    }
    python
}

/// An environment with pandas and the prices; made where it is not there yet.
pub fn environment(version: &str) -> Option<PathBuf> {
    let python = pyenv(version)?;
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/requirements.txt");
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venvs");
    let folder = all.join(version);
    fs::create_dir_all(&all).unwrap();
    // One test makes it, the others wait.
    let lock = File::create(all.join(format!("{version}.lock"))).unwrap();
    lock.lock().unwrap();
    // Written last, so that one half made is made anew.
    let stamp = folder.join("requirements.txt");
    if fs::read(&stamp).ok() != Some(fs::read(&requirements).unwrap()) {
        let run = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary",
            ":all:",
            "--require-hashes",
            "-r",
        ];
        let made = run(Command::new(&python).args(["-m", "venv", "--clear"]).arg(&folder))
            && run(Command::new(folder.join("bin/python")).args(pip).arg(&requirements));
        if !require(made, &format!("packages for Python {version}: pip could not install them")) {
            return None;
        }
        fs::copy(&requirements, &stamp).unwrap();
    }
    Some(folder)
}

/// The tests' environment with numpy, pandas, pyarrow and the prices: its interpreter, and its folder of packages.
pub fn libraries() -> Option<(PathBuf, PathBuf)> {
    let venv = std::env::var_os("NSBOX_TEST_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv"), PathBuf::from);
    let lib = fs::read_dir(venv.join("lib")).into_iter().flatten().flatten();
    let packages = lib.map(|version| version.path().join("site-packages")).find(|path| path.join("pandas").exists());
    if !require(packages.is_some(), "environment with pandas (NSBOX_TEST_VENV)") {
        return None;
    }
    packages.map(|packages| (venv.join("bin/python3"), packages))
}
