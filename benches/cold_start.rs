//! A cold run against the same interpreter bare, and against bubblewrap: `cargo bench --bench cold_start`.
//!
//! Cases, each with the ratio that it should reach against the bare interpreter:
//!
//! | case | what is timed |
//! |---|---|
//! | `bare` | `python3 -I -c pass` |
//! | `bwrap` | the same in `bwrap --unshare-all --ro-bind / /`: no cgroup, no seccomp, no check |
//! | `nsbox` | `nsbox run pass.py`: every layer, every cgroup limit, the check; target 1.25, then 1.15 |
//!
//! The cases take turns within one run, back to back and then with 100 ms of idle before each, for an idle machine shows
//! what back-to-back runs hide. `PYTHON` names another interpreter, `ROUNDS` how often.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What each nsbox case should reach against the bare interpreter: first step, then target.
const TARGETS: [f64; 2] = [1.25, 1.15];

fn main() -> Result<(), Box<dyn Error>> {
    let python = env::var("PYTHON").unwrap_or_else(|_| "/usr/bin/python3".to_owned());
    let rounds: usize = env::var("ROUNDS").map_or(Ok(200), |rounds| rounds.parse())?;
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("pass.py");
    fs::write(&script, "pass\n")?;

    let mut bare = Command::new(&python);
    bare.args(["-I", "-c", "pass"]);
    let mut nsbox = Command::new(env!("CARGO_BIN_EXE_nsbox"));
    nsbox.args(["run", "--python", &python]).arg(&script).current_dir(folder.path());
    let mut cases = vec![("bare", bare), ("nsbox", nsbox)];
    if Path::new("/usr/bin/bwrap").exists() {
        let mut bwrap = Command::new("/usr/bin/bwrap");
        bwrap.args(["--unshare-all", "--ro-bind", "/", "/", &python, "-I", "-c", "pass"]);
        cases.push(("bwrap", bwrap));
    }
    for (name, idle) in [("back to back", Duration::ZERO), ("after 100 ms of idle", Duration::from_millis(100))] {
        let times = measure(&mut cases, rounds, idle)?;
        report(name, &cases, &times);
    }
    Ok(())
}

/// Milliseconds of each case, in turns; the first rounds warm the caches and are not kept.
fn measure(cases: &mut [(&str, Command)], rounds: usize, idle: Duration) -> Result<Vec<Vec<f64>>, Box<dyn Error>> {
    const WARM_UP: usize = 3;
    let mut times = vec![Vec::with_capacity(rounds); cases.len()];
    for round in 0..rounds + WARM_UP {
        for (case, (name, command)) in cases.iter_mut().enumerate() {
            sleep(idle);
            let begun = Instant::now();
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
            let took = begun.elapsed();
            if !status.success() {
                return Err(format!("{name} ended with {status}").into());
            }
            if round >= WARM_UP {
                times[case].push(took.as_secs_f64() * 1e3);
            }
        }
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    Ok(times)
}

#[expect(clippy::print_stdout, reason = "the figures are what a benchmark is for")]
fn report(name: &str, cases: &[(&str, Command)], times: &[Vec<f64>]) {
    println!(
        "\n{name}, {} rounds\n{:<8}{:>10}{:>10}{:>10}{:>10}",
        times[0].len(),
        "",
        "fastest",
        "median",
        "p95",
        "ratio"
    );
    let median = |times: &[f64]| times[times.len() / 2];
    let bare = median(&times[0]);
    for ((name, _), times) in cases.iter().zip(times) {
        let ratio = median(times) / bare;
        let p95 = times[times.len() * 95 / 100];
        println!("{name:<8}{:>10.2}{:>10.2}{p95:>10.2}{ratio:>10.3}", times[0], median(times));
    }
    println!("targets of nsbox / bare: {} first, then {}", TARGETS[0], TARGETS[1]);
}
