//! The strategies of `examples/image`, in the image and by its interpreter without a sandbox: isolation must not change a
//! figure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::{Ran, judge, require};
use crate::metrics::{OUTSIDE, assert_same};
use crate::store::{nsbox_in, slim, store};

/// What nsbox sets where it grants one CPU.
const THREADS: [&str; 4] = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"];

pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/image").join(name).with_extension("py")
}

/// GOOG's, which the image has from backtesting.
pub fn prices() -> PathBuf {
    slim().rootfs.join("usr/local/lib/python3.11/dist-packages/backtesting/test/GOOG.csv")
}

/// One run in the image.
#[track_caller]
pub fn inside(script: &Path) -> Ran {
    slim();
    let mut command = nsbox_in(store(), &["run", "--json", "--image", "sandbox-slim", "--cpus", "1", "--input"]);
    command.arg(format!("prices={}", prices().display())).arg(script);
    judge(&command.output().unwrap()).expect("ok")
}

/// The same interpreter, files and number of threads, in a plain chroot.
fn outside(script: &Path) -> Value {
    let mut bwrap = Command::new("bwrap");
    bwrap.env_clear().args(["--unshare-net", "--die-with-parent", "--ro-bind"]).arg(&slim().rootfs).arg("/");
    bwrap.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/input", "--ro-bind"]);
    bwrap.arg(prices()).arg("/input/prices").arg("--ro-bind").arg(script).arg("/tmp/strategy.py");
    bwrap.args(["--chdir", "/tmp", "--setenv", "HOME", "/tmp", "--setenv", "PATH", "/usr/bin"]);
    for name in THREADS {
        bwrap.args(["--setenv", name, "1"]);
    }
    let output = bwrap.args(["python3", "-B", "-c", OUTSIDE, "/tmp/strategy.py"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn figures_are_the_same(name: &str) {
    if !require(Path::new("/usr/bin/bwrap").exists(), "bwrap") {
        return;
    }
    let script = script(name);
    let ran = inside(&script);
    assert!(!ran.outcome.degraded || !crate::harness::is_root(), "{:#}", ran.json);
    let metrics = &ran.json["metrics"];
    for key in ["sharpe_ratio", "annual_return", "max_drawdown"] {
        assert!(metrics[key].as_f64().is_some_and(|figure| figure.is_finite() && figure != 0.0), "{metrics:#}");
        assert!(ran.stdout().contains(&format!("'{key}': ")), "{} is printed too", key);
    }
    assert!(!ran.json["signals"].is_null() && !ran.json["result"].is_null(), "{:#}", ran.json);
    assert_same(metrics, &outside(&script), name);
}

#[test]
fn pandas_has_the_same_figures() {
    figures_are_the_same("pandas_trend");
}

#[test]
fn talib_has_the_same_figures() {
    figures_are_the_same("talib_indicators");
}

#[test]
fn factor_graph_has_the_same_figures() {
    figures_are_the_same("factor_graph");
}

#[test]
fn sklearn_has_the_same_figures() {
    figures_are_the_same("sklearn_forest");
}

#[test]
fn backtesting_has_the_same_figures() {
    figures_are_the_same("backtesting_goog");
}

#[test]
fn every_strategy_of_the_folder_is_tested() {
    let tested = include_str!("strategies.rs");
    for entry in fs::read_dir(script("pandas_trend").parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(tested.contains(&format!("figures_are_the_same(\"{name}\")")), "{name}");
    }
}
