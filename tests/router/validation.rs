//! The old system's validation: twenty iterations of real strategies, on namespaces and in Docker, whose metrics agree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value as Json, json};

use crate::Desk;
use crate::engine::{Engine, base_tarball};
use crate::harness::{nsbox, require};

/// The image that both run: the base with the libraries of the tests' environment.
const IMAGE: &str = "nsbox-test-validation";
const ITERATIONS: u64 = 20;
/// The base image's own interpreter, and where it looks for libraries.
const PYTHON: &str = "/usr/bin/python3";
const LIBRARIES: &str = "usr/local/lib/python3.11/dist-packages";

/// The libraries of the tests' environment, where they are of the base image's Python.
fn libraries() -> Option<PathBuf> {
    let venv = std::env::var_os("NSBOX_TEST_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv"), PathBuf::from);
    let folder = venv.join("lib/python3.11/site-packages");
    let present = folder.join("pandas").is_dir() && folder.join("backtesting/test/GOOG.csv").is_file();
    require(present, "environment of Python 3.11 with pandas and backtesting (NSBOX_TEST_VENV)").then_some(folder)
}

/// Iteration and metrics of each record of a loop over the examples; fails unless all ended well, without a fallback.
#[track_caller]
fn metrics_of(desk: &Desk, engine: &Engine, root: &Path, prices: &Path, backend: &str) -> BTreeMap<u64, Json> {
    let results = format!("{backend}.jsonl");
    let iterations = ITERATIONS.to_string();
    let mut command = nsbox(["loop", "--json", "--cpus", "2", "--jobs", "2", "--iterations", &*iterations]);
    command.args(["--results", &*results, "--backend", backend, "--python", PYTHON, "--image"]).arg(root);
    command.arg("--input").arg(format!("prices={}", prices.display())).arg("strategies");
    command.current_dir(desk.folder.path()).env("DOCKER_HOST", format!("unix://{}", engine.socket().display()));
    command.env("NSBOX_DOCKER_IMAGE", IMAGE).env("NSBOX_EVENT_LOG", desk.path(&format!("{backend}.log")));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["verdicts"], &report["fallback_rate"]), (&json!({"ok": ITERATIONS}), &json!(0.0)), "{backend}");
    assert_eq!(report["backends"], json!({backend: ITERATIONS}));
    let records = fs::read_to_string(desk.path(&results)).unwrap();
    let records = records.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    records.map(|mut record| (record["iteration"].as_u64().unwrap(), record["outcome"]["metrics"].take())).collect()
}

/// Fails unless both are the same, numbers to 1e-12 of their size.
#[track_caller]
fn agree(one: &Json, other: &Json, place: &str) {
    match (one, other) {
        (Json::Object(one), Json::Object(other)) => {
            assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "{place}");
            one.iter().for_each(|(name, value)| agree(value, &other[name], &format!("{place}.{name}")));
        }
        (Json::Array(one), Json::Array(other)) => {
            assert_eq!(one.len(), other.len(), "{place}");
            one.iter().zip(other).for_each(|(one, other)| agree(one, other, place));
        }
        (Json::Number(a), Json::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= 1e-12 * a.abs().max(b.abs()).max(1.0), "{place}: {a} and {b}");
        }
        _ => assert_eq!(one, other, "{place}"),
    }
}

#[test]
fn twenty_iterations_agree_on_namespaces_and_in_docker() {
    let Some(engine) = Engine::shared().filter(|engine| engine.has_base()) else { return };
    let (Some(libraries), Some(base)) = (libraries(), base_tarball()) else { return };
    let desk = Desk::new();
    // One root file system for both: unpacked, and as an image of the engine's.
    let root = desk.path("root");
    fs::create_dir(&root).unwrap();
    let done = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    done(Command::new("tar").arg("-xf").arg(base).arg("-C").arg(&root).arg("--exclude=./dev/*"));
    fs::create_dir_all(root.join(LIBRARIES)).unwrap();
    for name in ["numpy", "numpy.libs", "pandas", "pandas.libs", "dateutil", "pytz", "tzdata", "six.py"] {
        if libraries.join(name).exists() {
            done(Command::new("cp").arg("-r").arg(libraries.join(name)).arg(root.join(LIBRARIES)));
        }
    }
    let tarball = desk.path("image.tar");
    done(Command::new("tar").arg("-cf").arg(&tarball).arg("-C").arg(&root).arg("."));
    engine.import(&tarball, IMAGE);
    fs::remove_file(tarball).unwrap();
    let prices = libraries.join("backtesting/test/GOOG.csv");
    fs::create_dir(desk.path("strategies")).unwrap();
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/strategies")).unwrap().flatten() {
        // One of them shows what a failure looks like.
        if entry.file_name() != "fails.py" {
            fs::copy(entry.path(), desk.path("strategies").join(entry.file_name())).unwrap();
        }
    }
    let [namespace, docker] =
        ["namespace", "docker"].map(|backend| metrics_of(&desk, &engine, &root, &prices, backend));
    assert_eq!((namespace.len() as u64, docker.len() as u64), (ITERATIONS, ITERATIONS));
    for (iteration, metrics) in &namespace {
        assert!(metrics["sharpe_ratio"].is_number(), "{metrics}");
        agree(metrics, &docker[iteration], &format!("iteration {iteration}"));
    }
}
