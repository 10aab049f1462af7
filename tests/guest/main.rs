//! The guest's runner and collector under real interpreters, outside any sandbox.
//!
//! Interpreters: `python3` on `PATH`, and 3.10 to 3.13 of pyenv (`$PYENV_ROOT/versions`). The tests of numpy and pandas
//! need a virtual environment: `python3 -m venv target/test-venv && target/test-venv/bin/pip install numpy pandas pyarrow`
//! (or `NSBOX_TEST_VENV`). What is missing is skipped with a line on stderr, and fails under `NSBOX_TEST_MUST_RUN=1`.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod libraries;
mod like_cpython;
mod runner;
mod values;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nsbox::outcome::{Document, Limits, Value, decode};
use tempfile::TempDir;

/// Where the guest's modules lie.
fn guest_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs/guest")
}

/// Says that a test does not run, and fails it where it must.
fn skip(why: &str) {
    assert!(std::env::var_os("NSBOX_TEST_MUST_RUN").is_none_or(|value| value != "1"), "must run, but {why}");
    eprintln!("SKIPPED: {why}");
}

/// The interpreters to test, each once.
fn interpreters() -> Vec<PathBuf> {
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv")));
    let mut found = vec![PathBuf::from("python3")];
    for minor in 10..=13 {
        let prefix = format!("3.{minor}.");
        let versions = root.as_ref().and_then(|root| std::fs::read_dir(root.join("versions")).ok());
        let version = versions.into_iter().flatten().flatten().find(|entry| {
            entry.file_name().to_string_lossy().starts_with(&prefix) && entry.path().join("bin/python3").exists()
        });
        match version {
            Some(version) => found.push(version.path().join("bin/python3")),
            // Not a lack of the machine: one interpreter is enough to run every test, and the first is always there.
            None => eprintln!("SKIPPED: there is no Python 3.{minor} in pyenv"),
        }
    }
    found
}

/// The virtual environment with numpy, pandas and pyarrow: its interpreter and its folder of packages.
fn libraries() -> Option<(PathBuf, PathBuf)> {
    let venv = std::env::var_os("NSBOX_TEST_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv"), PathBuf::from);
    let lib = std::fs::read_dir(venv.join("lib")).ok().into_iter().flatten().flatten();
    let packages = lib.map(|version| version.path().join("site-packages")).find(|path| path.join("pandas").exists());
    if packages.is_none() {
        skip(&format!("there is no environment with pandas in {}", venv.display()));
    }
    packages.map(|packages| (venv.join("bin/python3"), packages))
}

/// One run of the runner.
struct Run {
    python: PathBuf,
    source: Vec<u8>,
    keys: Vec<String>,
    arguments: Vec<String>,
    runner: PathBuf,
    folder: TempDir,
}

/// What came of it.
struct Ran {
    output: Output,
    document: Vec<u8>,
    started: bool,
    folder: TempDir,
}

impl Run {
    fn new(python: &Path, source: impl AsRef<[u8]>) -> Self {
        Self {
            python: python.to_owned(),
            source: source.as_ref().to_owned(),
            keys: Vec::new(),
            arguments: Vec::new(),
            runner: guest_folder().join("runner.py"),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Adds a key of the protocol.
    fn key(mut self, key: impl Into<String>) -> Self {
        self.keys.push(key.into());
        self
    }

    /// Adds an argument of the script.
    fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    fn go(self) -> Ran {
        let Self { python, source, keys, arguments, runner, folder } = self;
        let work = folder.path().join("work");
        std::fs::create_dir(&work).unwrap();
        let path = |name| folder.path().join(name);
        std::fs::write(path("code"), source).unwrap();
        std::fs::write(path("result"), "").unwrap();
        // Plain files stand for the sandbox's memfds; the shell opens them under the numbers that the runner is told.
        let output = Command::new("sh")
            .args(["-c", "exec \"$@\" 5<../code 6<>../result 7>../start", "sh"])
            .arg(python)
            .args(["-S", "-s", "-B", "-u"])
            .arg(runner)
            .arg(format!("file={}", work.join("strategy.py").display()))
            .args(["code=5", "result=6", "start=7"])
            .arg("result_limit=16777216")
            .args(keys)
            .arg("--")
            .args(arguments)
            .current_dir(&work)
            .env_remove("PYTHONPATH")
            .output()
            .unwrap();
        let document = std::fs::read(path("result")).unwrap();
        let started = std::fs::read(path("start")).unwrap() == b"\n";
        Ran { output, document, started, folder }
    }
}

impl Ran {
    fn stdout(&self) -> String {
        String::from_utf8(self.output.stdout.clone()).unwrap()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn document(&self) -> Document {
        decode(&self.document, &Limits::default()).unwrap()
    }

    /// The document of a run that must have ended well.
    fn well(&self) -> Document {
        assert!(self.started && self.output.status.success(), "{}", self.stderr());
        self.document()
    }

    fn result(&self) -> Value {
        self.well().result.unwrap()
    }
}
