//! Runs one attack outside, with the bare interpreter, and inside, through the command.
#![allow(dead_code, reason = "shared by modules that each use a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsbox::outcome::Outcome;
use serde_json::Value;

#[path = "../harness/slow.rs"]
mod slow;
pub use slow::patiently;

/// The interpreter on both sides.
pub const PYTHON: &str = "/usr/bin/python3";

/// What a test cannot do without.
#[derive(Debug, Clone, Copy)]
pub enum Capability {
    /// A cgroup hierarchy to write to.
    Cgroup,
}

/// Whether the machine offers `capability`. On a desk a missing one is said aloud and passed over; where every test must
/// run (`NSBOX_TEST_MUST_RUN=1`) it fails the test.
#[must_use]
pub fn require(capability: Capability) -> bool {
    let missing = match capability {
        Capability::Cgroup => cgroup_refusal().clone(),
    };
    let Some(reason) = missing else { return true };
    assert!(
        std::env::var_os("NSBOX_TEST_MUST_RUN").is_none_or(|value| value != "1"),
        "{capability:?} is missing here, and NSBOX_TEST_MUST_RUN=1: {reason}"
    );
    eprintln!("SKIPPED: {reason}");
    false
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Why no run gets a cgroup of its own here; none if it does.
fn cgroup_refusal() -> &'static Option<String> {
    static REFUSAL: OnceLock<Option<String>> = OnceLock::new();
    REFUSAL.get_or_init(|| {
        let outcome = parse(&command(&script("pass.py", "pass"), &[]).output().expect("nsbox starts"));
        outcome.enforced.cgroup.version.is_none().then(|| format!("no cgroup: {}", outcome.message))
    })
}

/// A folder of this process's own: the store, scripts and whatever a test leaves.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("isolation-{}", nix::unistd::geteuid()));
        std::fs::remove_dir_all(&folder).ok();
        std::fs::create_dir_all(folder.join("store")).expect("a folder for the store");
        folder
    })
}

/// Writes a script of that name and returns its path.
pub fn script(name: &str, source: &str) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, source).expect("a script");
    path
}

/// `nsbox run --json` of a script, ready to start.
pub fn command(script: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsbox"));
    command.args(["run", "--json", "--no-check", "--python", PYTHON]);
    if !is_root() {
        command.arg("--allow-degraded");
    }
    command.args(flags).arg(script).stdin(Stdio::null());
    command.env("NSBOX_STORE", folder().join("store")).env("NSBOX_EVENT_LOG", "none");
    // As variables, which a test's own flags override.
    let timeout = format!("{}s", patiently(Duration::from_secs(60)).as_secs());
    command.env("NSBOX_LIMITS_CPUS", "2").env("NSBOX_LIMITS_TIMEOUT", timeout);
    command
}

/// The outcome that the command printed.
pub fn parse(output: &Output) -> Outcome {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    })
}

/// Runs `source` inside. `name` is unique among the tests.
pub fn inside(name: &str, source: &str, flags: &[&str]) -> Outcome {
    parse(&command(&script(&format!("{name}.py"), source), flags).output().expect("nsbox starts"))
}

/// Runs `source` outside, and returns its exit status and the JSON that it printed.
pub fn outside(source: &str) -> Value {
    let output = Command::new(PYTHON).args(["-c", source]).stdin(Stdio::null()).output().expect("python starts");
    assert!(output.status.success(), "outside: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the script prints JSON")
}

/// The JSON that a script printed inside.
pub fn said(outcome: &Outcome) -> Value {
    serde_json::from_slice(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:#?}"))
}

/// Where a file of attacks is.
pub fn attacks(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/isolation/guest").join(file)
}

/// Runs a file of attacks outside, with arguments.
pub fn attack_outside(file: &str, args: &[&str]) -> Value {
    let output = Command::new(PYTHON).arg(attacks(file)).args(args).output().expect("python starts");
    assert!(output.status.success(), "outside: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the attacks print JSON")
}

/// Runs a file of attacks inside, with arguments. It is an input there, so that it can be executed anew.
pub fn attack_inside(file: &str, args: &[&str], flags: &[&str]) -> Outcome {
    let mut command = command(&driver(), flags);
    command.arg("--input").arg(format!("{file}={}", attacks(file).display()));
    for arg in std::iter::once(format!("/input/{file}").as_str()).chain(args.iter().copied()) {
        command.args(["--arg", arg]);
    }
    parse(&command.output().expect("nsbox starts"))
}

/// A script that runs its first argument as a script, with the others.
pub fn driver() -> PathBuf {
    static DRIVER: OnceLock<PathBuf> = OnceLock::new();
    let source = "import runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n";
    DRIVER.get_or_init(|| script("driver.py", source)).clone()
}

/// A number that no other call of this process gets.
pub fn serial() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// How often the run was refused `syscall`.
pub fn refused(outcome: &Outcome, syscall: &str) -> u64 {
    outcome.violations.iter().find(|violation| violation.syscall == syscall).map_or(0, |violation| violation.count)
}

/// The pids of every process whose command line has `marker`, `/proc` of the host read.
pub fn processes(marker: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.windows(marker.len()).any(|window| window == marker.as_bytes()))
    })
    .collect()
}

/// The guest's own process, seen from the host, once it runs.
pub fn wait_for_guest(marker: &str) -> i32 {
    let deadline = Instant::now() + patiently(Duration::from_secs(20));
    while Instant::now() < deadline {
        // The launcher's command line has the marker too, and for a moment that of the init which it clones, as 1.
        let guest = processes(marker).into_iter().find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
                let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
                pids.is_some_and(|pids| pids.split_whitespace().nth(1).is_some_and(|inside| inside != "1"))
            })
        });
        if let Some(guest) = guest {
            return guest;
        }
        sleep(Duration::from_millis(5));
    }
    panic!("no guest of {marker} came up");
}

/// Waits until `held` is true, for a while.
pub fn eventually(what: &str, mut held: impl FnMut() -> bool) {
    let deadline = Instant::now() + patiently(Duration::from_secs(10));
    while !held() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(10));
    }
}

/// Ends a launcher by asking it to.
pub fn end(launcher: &mut Child) {
    let pid = Pid::from_raw(launcher.id().cast_signed());
    kill(pid, Signal::SIGTERM).expect("the launcher is there");
    launcher.wait().expect("the launcher ends");
}
