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
//!
//! In an image, as in `IMAGE=sandbox CODE='import pandas' cargo bench --bench cold_start`, `bare` is the image's own
//! interpreter in its tree by chroot(8), which takes root, there is no `bwrap`, and the target is 1.03. Both sides have one
//! thread for each BLAS, and nsbox one CPU.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What each nsbox case should reach against the bare interpreter: first step, then target.
const TARGETS: [f64; 2] = [1.25, 1.15];
/// The same in an image.
const IMAGE_TARGETS: [f64; 2] = [1.03, 1.01];
/// What nsbox sets where it grants one CPU.
const THREADS: [&str; 4] = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"];

fn main() -> Result<(), Box<dyn Error>> {
    let rounds: usize = env::var("ROUNDS").map_or(Ok(200), |rounds| rounds.parse())?;
    let code = env::var("CODE").unwrap_or_else(|_| "pass".to_owned());
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("pass.py");
    fs::write(&script, format!("{code}\n"))?;
    // As an installation does: a file that a linker has just mapped and written lies in small pieces in the page cache.
    let command = folder.path().join("nsbox");
    fs::copy(env!("CARGO_BIN_EXE_nsbox"), &command)?;
    let image = env::var("IMAGE").ok();
    let mut cases = match &image {
        Some(image) => in_image(&command, image, &code)?,
        None => on_host(&command, &code),
    };
    cases[1].1.arg(&script).current_dir(folder.path());
    let targets = if image.is_some() { IMAGE_TARGETS } else { TARGETS };
    for (name, idle) in [("back to back", Duration::ZERO), ("after 100 ms of idle", Duration::from_millis(100))] {
        let times = measure(&mut cases, rounds, idle)?;
        report(name, &cases, &times, targets);
    }
    Ok(())
}

/// The host's interpreter; the bare case first, nsbox second.
fn on_host(command: &Path, code: &str) -> Vec<(&'static str, Command)> {
    let python = env::var("PYTHON").unwrap_or_else(|_| "/usr/bin/python3".to_owned());
    let mut bare = Command::new(&python);
    bare.args(["-I", "-c", code]);
    let mut nsbox = Command::new(command);
    nsbox.args(["run", "--python", &python]);
    let mut cases = vec![("bare", bare), ("nsbox", nsbox)];
    if Path::new("/usr/bin/bwrap").exists() {
        let mut bwrap = Command::new("/usr/bin/bwrap");
        bwrap.args(["--unshare-all", "--ro-bind", "/", "/", &python, "-I", "-c", code]);
        cases.push(("bwrap", bwrap));
    }
    cases
}

/// An image's interpreter, in the same order.
fn in_image(command: &Path, image: &str, code: &str) -> Result<Vec<(&'static str, Command)>, Box<dyn Error>> {
    let held = nsbox::image::Store::open()?.find(image)?;
    let mut bare = Command::new("chroot");
    bare.arg(held.rootfs).args(["/usr/bin/python3", "-I", "-c", code]);
    bare.env_clear().envs(THREADS.map(|name| (name, "1")));
    bare.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let mut nsbox = Command::new(command);
    nsbox.args(["run", "--cpus", "1", "--image", image]);
    Ok(vec![("bare", bare), ("nsbox", nsbox)])
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
fn report(name: &str, cases: &[(&str, Command)], times: &[Vec<f64>], targets: [f64; 2]) {
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
    println!("targets of nsbox / bare: {} first, then {}", targets[0], targets[1]);
}
