//! Where the suite builds: a store whose cache is kept for the next time, and whose images are not.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::harness::nsbox;

/// Removes all but the cache once its standard input has ended, when the suite has: however that ends.
const KEEPER: &str = r#"while read -r _; do :; done; cd "$1" && rm -rf blobs images names staging"#;

/// The image of the profile slim, as the first use of its name built it.
pub struct Slim {
    pub rootfs: PathBuf,
    pub layout: PathBuf,
    /// What the command said while it built.
    pub said: String,
}

/// The suite's store.
pub fn store() -> &'static Path {
    static STORE: OnceLock<PathBuf> = OnceLock::new();
    STORE.get_or_init(|| {
        let store = Path::new(env!("CARGO_TARGET_TMPDIR")).join("build");
        fs::create_dir_all(&store).unwrap();
        // One suite at a time, until its keeper has ended too: the lock is the keeper's output.
        let lock = File::create(store.join("suite.lock")).unwrap();
        lock.lock().unwrap();
        for name in ["blobs", "images", "names"] {
            fs::remove_dir_all(store.join(name)).ok();
        }
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "sh"]).arg(&store).stdin(Stdio::piped()).stdout(lock).process_group(0);
        std::mem::forget(keeper.spawn().unwrap());
        store
    })
}

/// `nsbox ARGS` with a store.
pub fn nsbox_in(store: &Path, args: &[&str]) -> Command {
    let mut command = nsbox(args);
    command.env("NSBOX_STORE", store);
    command
}

/// What a command printed, which must end well.
#[track_caller]
pub fn printed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

pub fn shown(output: &Output) -> String {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{}\n{stdout}\n{stderr}", output.status)
}

/// `nsbox image inspect --json NAME`.
pub fn inspect(store: &Path, name: &str) -> Value {
    serde_json::from_str(&printed(nsbox_in(store, &["image", "inspect", "--json", name]))).unwrap()
}

/// Built by the first test that asks.
pub fn slim() -> &'static Slim {
    static SLIM: OnceLock<Slim> = OnceLock::new();
    SLIM.get_or_init(|| {
        let script = store().join("first.py");
        File::create(&script).unwrap().write_all(b"import pandas\nprint(pandas.__name__)\n").unwrap();
        let script = script.display().to_string();
        let output = nsbox_in(store(), &["run", "--image", "sandbox-slim", &script]).output().unwrap();
        assert!(output.status.success() && output.stdout == b"pandas\n", "{}", shown(&output));
        let inspection = inspect(store(), "sandbox-slim");
        let path = |key: &str| PathBuf::from(inspection[key].as_str().unwrap());
        let said = String::from_utf8(output.stderr).unwrap();
        Slim { rootfs: path("rootfs"), layout: path("layout"), said }
    })
}
