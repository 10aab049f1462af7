//! Every backend beside every other, on one machine and in one run: `cargo bench --bench backends`.
//!
//! | backend | what it is |
//! |---|---|
//! | `namespace, cold` | `--fresh`: namespaces, a new interpreter for each run |
//! | `namespace, pool` | an interpreter that has imported pandas already |
//! | `docker` | a container for each run, through the Engine's API |
//! | `ast-only` | the same machine's own interpreter without namespaces |
//! | `direct` | that with no isolation at all |
//!
//! First the script `pass`, in turns, one run at a time: from the call of a router that is ready to its outcome. The mean of
//! `docker` over that of `namespace, cold` stands beside its target. Then `nsbox loop examples/strategies` on each, with the
//! mean and p95 of each stage as the loop's own statistics have them; its strategy `fails` fails, on each.
//!
//! Namespaces and Docker run one image with numpy and pandas, each run with one CPU. Without `DOCKER_IMAGE` it is made of
//! Debian's smallest variant and the environment at `NSBOX_TEST_VENV` (CPython 3.11 with `examples/requirements.txt`), for an
//! engine of the bench's own. `DOCKER_IMAGE` names one of the engine at `DOCKER_HOST`; then `IMAGE` is its root file system,
//! `PYTHON` an interpreter of this machine's with the same libraries, and `PRICES` the strategies' input.
//! `ROUNDS` says how often each takes its turn, `ITERATIONS` how long the loops are. As root, on a quiet machine.

#![allow(clippy::unwrap_used, reason = "the tests' harness, which fails that way")]

#[path = "../tests/harness/engine.rs"]
mod engine;
#[path = "../tests/harness/mod.rs"]
mod harness;
#[path = "../tests/harness/strategies.rs"]
mod strategies;

use std::env;
use std::error::Error;
use std::process::Command;
use std::time::Instant;

use nsbox::config::{Config, Resolver};
use nsbox::event::Log;
use nsbox::outcome::Verdict;
use nsbox::router::Router;
use nsbox::sandbox::Watch;
use nsbox::stats::STAGES;
use serde_json::Value as Json;

use engine::Engine;
use strategies::{Image, PYTHON, examples};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// So many times the mean of a cold run on namespaces a run in Docker should take at least.
const TARGET: f64 = 10.0;
/// Keys of the configuration, with their values.
type Keys = Vec<(&'static str, String)>;

/// What the backends run on, by the names of the variables that say so.
struct Ground {
    image: String,
    root: String,
    python: String,
    prices: String,
}

fn main() -> Result<()> {
    if env::var_os("DOCKER_IMAGE").is_none() {
        return beside_engine();
    }
    let number = |name: &str, default| env::var(name).map_or(Ok(default), |text| text.parse());
    let (rounds, iterations) = (number("ROUNDS", 50)?, number("ITERATIONS", 20)?);
    let variable = |name| env::var(name).map_err(|error| format!("{name}: {error}"));
    let ground = Ground {
        image: variable("DOCKER_IMAGE")?,
        root: variable("IMAGE")?,
        python: variable("PYTHON")?,
        prices: variable("PRICES")?,
    };
    let backends = ground.backends();
    let ratio = pass(&backends, usize::try_from(rounds)?)?;
    for (name, keys) in &backends {
        strategies_on(&ground, name, keys, iterations)?;
    }
    show(&format!("\npass: docker / namespace, cold   {ratio:.1}   target >= {TARGET:.0}"));
    Ok(())
}

/// Runs all of it in a process of its own, beside an engine and on an image that are made for it.
fn beside_engine() -> Result<()> {
    let engine = Engine::shared().filter(|engine| engine.has_base()).ok_or("there is no engine")?;
    let image = Image::make(&engine).ok_or("there is no image for the strategies")?;
    let mut command = Command::new(env::current_exe()?);
    command.env("DOCKER_HOST", format!("unix://{}", engine.socket().display())).env("DOCKER_IMAGE", image.name);
    command.env("IMAGE", image.root()).env("PYTHON", image.outside()).env("PRICES", &image.prices);
    match command.status()?.success() {
        true => Ok(()),
        false => Err("it failed beside an engine of its own".into()),
    }
}

#[expect(clippy::print_stdout, reason = "the figures are what a benchmark is for")]
fn show(line: &str) {
    println!("{line}");
}

impl Ground {
    /// Each backend by its name, with what its configuration says.
    fn backends(&self) -> Vec<(&'static str, Keys)> {
        let namespace = |warm: &str| {
            let image = ("image", self.root.clone());
            vec![("backend", "namespace".to_owned()), image, ("python", PYTHON.to_owned()), ("warm", warm.to_owned())]
        };
        let docker = [("backend", "docker"), ("docker.image", self.image.as_str()), ("python", PYTHON)];
        let own = |key, value: &str| vec![(key, value.to_owned()), ("python", self.python.clone())];
        let ast_only = [own("backend", "ast-only"), vec![("allow_degraded", "true".to_owned())]].concat();
        vec![
            ("namespace, cold", namespace("false")),
            ("namespace, pool", namespace("true")),
            ("docker", docker.map(|(key, value)| (key, value.to_owned())).into()),
            ("ast-only", ast_only),
            ("direct", own("enabled", "false")),
        ]
    }
}

fn config(keys: &Keys) -> Result<Config> {
    let resolver = Resolver::new().flag("limits.cpus", "1", "--cpus");
    let resolver = keys.iter().fold(resolver, |resolver, (key, value)| resolver.flag(*key, value.as_str(), *key));
    Ok(resolver.resolve()?.config)
}

/// The script `pass` on each in turns; the ratio of Docker's mean to that of a cold run on namespaces.
fn pass(backends: &[(&'static str, Keys)], rounds: usize) -> Result<f64> {
    const WARM_UP: usize = 3;
    let mut routers = Vec::new();
    for (name, keys) in backends {
        let router = Router::new(config(keys)?, Log::off()).jobs(1);
        router.prepare().map_err(|error| format!("{name}: {error}"))?;
        routers.push(router);
    }
    let mut times = vec![Vec::with_capacity(rounds); routers.len()];
    for round in 0..rounds + WARM_UP {
        for ((router, times), (name, _)) in routers.iter().zip(&mut times).zip(backends) {
            let begun = Instant::now();
            let outcome = router.run("pass", Watch::default());
            let took = begun.elapsed();
            if outcome.verdict != Verdict::Ok {
                return Err(format!("{name}: {:?}: {}", outcome.verdict, outcome.message).into());
            }
            if round >= WARM_UP {
                times.push(took.as_secs_f64() * 1e3);
            }
        }
    }
    show(&format!("pass, {rounds} rounds, ms\n{:<18}{:>10}{:>10}{:>10}", "", "mean", "p50", "p95"));
    let mut means = Vec::new();
    for ((name, _), times) in backends.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        #[expect(clippy::cast_precision_loss, reason = "a number of rounds")]
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let at = |percent: usize| times[times.len() * percent / 100];
        show(&format!("{name:<18}{mean:>10.2}{:>10.2}{:>10.2}", at(50), at(95)));
        means.push(mean);
    }
    Ok(means[2] / means[0])
}

/// A loop over the example strategies, one run at a time.
fn strategies_on(ground: &Ground, name: &str, keys: &Keys, iterations: u64) -> Result<()> {
    let mut command = harness::nsbox(["loop", "--json", "--quiet", "--jobs", "1"]);
    command.env("NSBOX_LIMITS_CPUS", "1");
    for (key, value) in keys {
        command.env(format!("NSBOX_{}", key.to_uppercase().replace('.', "_")), value);
    }
    command.args(["--iterations", &iterations.to_string(), "--input"]);
    command.arg(format!("prices={}", ground.prices)).arg(examples());
    let output = command.output()?;
    let report: Json = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{name}: {error}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let rate = report["fallback_rate"].as_f64().unwrap_or_default() * 100.0;
    show(&format!("\n{name}: {iterations} iterations, {}, {rate:.1} % fell back", report["verdicts"]));
    show(&format!("{:<18}{:>10}{:>10}{:>10}", "stage, ms", "mean", "p50", "p95"));
    for stage in STAGES {
        let figure = |name| report["stages"][stage][name].as_f64().unwrap_or(f64::NAN);
        show(&format!("{stage:<18}{:>10.2}{:>10.2}{:>10.2}", figure("mean_ms"), figure("p50_ms"), figure("p95_ms")));
    }
    Ok(())
}
