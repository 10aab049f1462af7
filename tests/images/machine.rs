//! What the tests find on this machine, and the root they make of an image.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nsbox::image::{Image, Kind};

/// Says that something cannot be tested here; a failure where everything must be.
pub fn skip(what: &str) {
    assert!(env::var_os("NSBOX_TEST_MUST_RUN").is_none(), "NSBOX_TEST_MUST_RUN is set, but {what}");
    eprintln!("skipped: {what}");
}

/// The supported interpreters: the system's, and those of pyenv.
pub fn interpreters() -> Vec<PathBuf> {
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from);
    let versions = root.and_then(|root| fs::read_dir(root.join("versions")).ok());
    let pyenv = versions.into_iter().flatten().map(|entry| entry.unwrap().path().join("bin/python3"));
    let all = pyenv.chain([PathBuf::from("/usr/bin/python3"), PathBuf::from("/usr/local/bin/python3")]);
    let found: Vec<PathBuf> = all.filter(|python| python.is_file() && is_supported(python)).collect();
    if found.is_empty() {
        skip("there is no Python 3.10 to 3.14");
    }
    found
}

fn is_supported(python: &Path) -> bool {
    let code = "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))";
    Command::new(python).args(["-S", "-c", code]).status().is_ok_and(|status| status.success())
}

/// Runs a program to its end, which must be a good one.
pub fn run(program: impl AsRef<OsStr>, args: &[&OsStr]) -> String {
    let output = Command::new(program).args(args).env_remove("PYTHONPATH").output().unwrap();
    text(&output)
}

/// The output of a program that ended well.
pub fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A venv made by an interpreter.
pub fn venv(python: &Path, folder: &Path, options: &[&str]) {
    let mut args = ["-m", "venv", "--without-pip"].map(OsStr::new).to_vec();
    args.extend(options.iter().map(OsStr::new));
    args.push(folder.as_os_str());
    run(python, &args);
}

/// Runs Python code in a root made of an image, as the guest's runner does: without `site`, the paths set by hand.
/// `None` where bubblewrap cannot be used.
pub fn run_inside(image: &Image, code: &str) -> Option<String> {
    let probe = Command::new("bwrap").args(["--ro-bind", "/", "/", "--unshare-pid", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        skip("bwrap cannot make a root");
        return None;
    }
    let mut bwrap = Command::new("bwrap");
    bwrap.env_clear().args(["--unshare-all", "--die-with-parent", "--ro-bind"]).arg(&image.skeleton).arg("/");
    for bind in &image.binds {
        assert_eq!(bind.source.is_dir(), bind.kind == Kind::Dir, "{bind:?}");
        bwrap.arg("--ro-bind").arg(&bind.source).arg(&bind.target);
    }
    bwrap.args(["--proc", "/proc", "--tmpfs", "/dev/shm", "--tmpfs", "/tmp", "--tmpfs", "/work"]);
    for device in ["null", "zero", "full", "random", "urandom"] {
        let device = Path::new("/dev").join(device);
        bwrap.arg("--dev-bind").arg(&device).arg(&device);
    }
    for bind in &image.late_binds {
        bwrap.arg("--ro-bind").arg(&bind.source).arg(&bind.target);
    }
    for (name, value) in &image.python.env {
        bwrap.arg("--setenv").arg(name).arg(value);
    }
    let python = &image.python;
    bwrap.args(["--chdir", "/work"]).arg(&python.executable).args(["-S", "-s", "-B", "-c", &runner(code)]);
    bwrap.arg(&python.prefix).args(&python.sys_path);
    Some(text(&bwrap.output().unwrap()))
}

/// What the guest's runner does before the script, in small.
fn runner(code: &str) -> String {
    format!("import sys\nsys.prefix = sys.exec_prefix = sys.argv[1]\nsys.path += sys.argv[2:]\n{code}")
}
