//! An image that the example strategies run in, for a sandbox and for an engine alike. Of a suite that includes `engine.rs` and
//! `harness/mod.rs` beside it.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::engine::{Engine, base_tarball};
use crate::harness::require;

/// The image's interpreter, which is the base image's own, and where it looks for libraries.
pub const PYTHON: &str = "/usr/bin/python3";
const LIBRARIES: &str = "usr/local/lib/python3.11/dist-packages";
/// Compiled modules are of the source of one very time.
const COPY: [&str; 2] = ["--recursive", "--preserve=timestamps"];

/// The base image with numpy and pandas: unpacked, and as an image of an engine's.
pub struct Image {
    folder: TempDir,
    /// Its name there.
    pub name: &'static str,
    /// The prices that the strategies read.
    pub prices: PathBuf,
}

impl Image {
    /// Makes it of the tests' environment: `NSBOX_TEST_VENV`, or `target/test-venv`. `None` where that cannot be, which is said.
    #[track_caller]
    pub fn make(engine: &Engine) -> Option<Self> {
        let venv = std::env::var_os("NSBOX_TEST_VENV")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv"), PathBuf::from);
        let libraries = venv.join("lib/python3.11/site-packages");
        let prices = libraries.join("backtesting/test/GOOG.csv");
        let present = libraries.join("pandas").is_dir() && prices.is_file();
        if !require(present, "environment of Python 3.11 with pandas and backtesting (NSBOX_TEST_VENV)") {
            return None;
        }
        let base = base_tarball()?;
        let folder = tempfile::tempdir().unwrap();
        let image = Self { folder, name: "nsbox-test-strategies", prices };
        let root = image.root();
        fs::create_dir(&root).unwrap();
        done(Command::new("tar").arg("-xf").arg(base).arg("-C").arg(&root).arg("--exclude=./dev/*"));
        fs::create_dir_all(root.join(LIBRARIES)).unwrap();
        for name in ["numpy", "numpy.libs", "pandas", "pandas.libs", "dateutil", "pytz", "tzdata", "six.py"] {
            if libraries.join(name).exists() {
                done(Command::new("cp").args(COPY).arg(libraries.join(name)).arg(root.join(LIBRARIES)));
            }
        }
        let tarball = image.folder.path().join("image.tar");
        done(Command::new("tar").arg("-cf").arg(&tarball).arg("-C").arg(&root).arg("."));
        engine.import(&tarball, image.name);
        fs::remove_file(tarball).unwrap();
        Some(image)
    }

    /// An interpreter of this machine's own with the same libraries, which every user may read and execute.
    pub fn outside(&self) -> PathBuf {
        let venv = self.folder.path().join("venv");
        fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        done(Command::new(PYTHON).args(["-m", "venv", "--without-pip"]).arg(&venv));
        let all = self.root().join(LIBRARIES).join(".");
        done(Command::new("cp").args(COPY).arg(all).arg(venv.join("lib/python3.11/site-packages")));
        venv.join("bin/python")
    }

    /// Its root file system.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }
}

#[track_caller]
fn done(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The folder of the example strategies.
pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/strategies")
}
