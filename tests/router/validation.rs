//! The old system's validation: twenty iterations of real strategies, on namespaces and in Docker, whose metrics agree.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value as Json, json};

use crate::Desk;
use crate::engine::Engine;
use crate::harness::nsbox;
use crate::strategies::{Image, PYTHON, examples};

const ITERATIONS: u64 = 20;

/// Iteration and metrics of each record of a loop over the examples; fails unless all ended well, without a fallback.
#[track_caller]
fn metrics_of(desk: &Desk, engine: &Engine, image: &Image, backend: &str) -> BTreeMap<u64, Json> {
    let results = format!("{backend}.jsonl");
    let iterations = ITERATIONS.to_string();
    let mut command = nsbox(["loop", "--json", "--cpus", "2", "--jobs", "2", "--iterations", &*iterations]);
    command.args(["--results", &*results, "--backend", backend, "--python", PYTHON, "--image"]).arg(image.root());
    command.arg("--input").arg(format!("prices={}", image.prices.display())).arg("strategies");
    command.current_dir(desk.folder.path()).env("DOCKER_HOST", format!("unix://{}", engine.socket().display()));
    command.env("NSBOX_DOCKER_IMAGE", image.name).env("NSBOX_EVENT_LOG", desk.path(&format!("{backend}.log")));
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
    let Some(image) = Image::make(&engine) else { return };
    let desk = Desk::new();
    fs::create_dir(desk.path("strategies")).unwrap();
    for entry in fs::read_dir(examples()).unwrap().flatten() {
        // One of them shows what a failure looks like.
        if entry.file_name() != "fails.py" {
            fs::copy(entry.path(), desk.path("strategies").join(entry.file_name())).unwrap();
        }
    }
    let [namespace, docker] = ["namespace", "docker"].map(|backend| metrics_of(&desk, &engine, &image, backend));
    assert_eq!((namespace.len() as u64, docker.len() as u64), (ITERATIONS, ITERATIONS));
    for (iteration, metrics) in &namespace {
        assert!(metrics["sharpe_ratio"].is_number(), "{metrics}");
        agree(metrics, &docker[iteration], &format!("iteration {iteration}"));
    }
}
