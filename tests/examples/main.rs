//! The example strategies under `--image host`, on each Python: isolation must not change a figure.
//!
//! Each version that pyenv has (`$PYENV_ROOT/versions`) gets a virtual environment in `target/test-venvs`, made once from
//! the hash-locked `examples/requirements.txt`.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/metrics.rs"]
mod metrics;
#[path = "../harness/python.rs"]
mod python;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use harness::{Ran, judge, nsbox, require};
use metrics::{OUTSIDE, assert_same};
use python::{VERSIONS, environment, pyenv};

fn strategies() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/strategies");
    let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert!(found.len() >= 7, "{found:?}");
    found
}

fn name(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

fn inside(python: &Path, prices: Option<&Path>, script: &Path) -> Ran {
    let mut command = nsbox(["run", "--json", "--image", "host", "--cpus", "2", "--python"]);
    command.arg(python);
    if let Some(prices) = prices {
        command.arg("--input").arg(format!("prices={}", prices.display()));
    }
    judge(&command.arg(script).output().unwrap())
}

fn outside(python: &Path, prices: Option<&Path>, script: &Path) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join(script.file_name().unwrap());
    let mut text = fs::read_to_string(script).unwrap();
    if let Some(prices) = prices {
        text = text.replace("/input/prices", prices.to_str().unwrap());
    }
    fs::write(&copy, text).unwrap();
    let output = Command::new(python).args(["-c", OUTSIDE]).arg(&copy).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn strategies_run_on(version: &str) {
    let Some(venv) = environment(version) else { return };
    let python = venv.join("bin/python");
    let prices = venv.join(format!("lib/python{version}/site-packages/backtesting/test/GOOG.csv"));
    for script in strategies() {
        if name(&script) == "fails" {
            fails_with_its_own_line(&inside(&python, Some(&prices), &script).expect("error"), &script);
            continue;
        }
        let ran = inside(&python, Some(&prices), &script).expect("ok");
        assert!(!ran.outcome.degraded || !harness::is_root());
        assert!(ran.json["metrics"]["sharpe_ratio"].is_number(), "{:#}", ran.json);
        assert!(!ran.json["signals"].is_null(), "{:#}", ran.json);
        let place = format!("{} on {version}", name(&script));
        assert_same(&ran.json["metrics"], &outside(&python, Some(&prices), &script), &place);
    }
}

/// The traceback is the script's: its own file and line, then the library's, and never the runner's.
fn fails_with_its_own_line(ran: &Ran, script: &Path) {
    assert_eq!((ran.status, ran.json["metrics"].is_null()), (1, true));
    assert!(
        ran.outcome.message.contains("KeyError") && ran.outcome.message.contains("Adj Close"),
        "{}",
        ran.outcome.message
    );
    let traceback = String::from_utf8_lossy(&ran.outcome.stderr);
    let text = fs::read_to_string(script).unwrap();
    let line = 1 + text.lines().position(|line| line.contains("data[\"Adj Close\"]")).unwrap();
    // pandas raises one KeyError from another: the script's own frame is the first of the second traceback.
    let last = traceback.rsplit_once("Traceback (most recent call last):\n").unwrap().1;
    let frame = last.lines().next().unwrap();
    assert!(frame.contains(&format!("fails.py\", line {line}, in <module>")), "{traceback}");
    assert!(!traceback.contains("runner") && !traceback.contains("/run/nsbox"), "{traceback}");
}

#[test]
fn strategies_run_on_python_3_10() {
    strategies_run_on("3.10");
}

#[test]
fn strategies_run_on_python_3_11() {
    strategies_run_on("3.11");
}

#[test]
fn strategies_run_on_python_3_12() {
    strategies_run_on("3.12");
}

#[test]
fn strategies_run_on_python_3_13() {
    strategies_run_on("3.13");
}

#[test]
fn stdlib_only_needs_no_packages_and_no_input() {
    let script = strategies().into_iter().find(|path| name(path) == "stdlib_only").unwrap();
    let system = PathBuf::from("/usr/bin/python3");
    let found = require(system.exists(), "/usr/bin/python3").then_some(system);
    for python in found.into_iter().chain(VERSIONS.into_iter().filter_map(pyenv)) {
        let ran = inside(&python, None, &script).expect("ok");
        assert_same(&ran.json["metrics"], &outside(&python, None, &script), &python.display().to_string());
    }
}

#[test]
fn expected_metrics_are_those_of_the_readme() {
    let Some(venv) = environment("3.12") else { return };
    let prices = venv.join("lib/python3.12/site-packages/backtesting/test/GOOG.csv");
    let readme = include_str!("../../examples/README.md");
    let rows = readme.lines().filter(|line| line.starts_with("| `") && line.matches(" % |").count() == 2);
    let mut seen = 0;
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`');
        let script = strategies().into_iter().find(|path| self::name(path) == name).unwrap();
        let metrics = &inside(&venv.join("bin/python"), Some(&prices), &script).expect("ok").json["metrics"];
        let number = |key: &str| metrics[key].as_f64().unwrap();
        assert_eq!(format!("{:.4}", number("sharpe_ratio")), cells[2], "{name}");
        assert_eq!(format!("{:.2} %", number("annual_return") * 100.0), cells[3], "{name}");
        assert_eq!(format!("{:.2} %", number("max_drawdown") * 100.0), cells[4], "{name}");
        assert_eq!(format!("{:.0}", number("trades")), cells[5], "{name}");
        seen += 1;
    }
    assert_eq!(seen, strategies().len() - 1, "one row for each strategy but `fails`");
}
