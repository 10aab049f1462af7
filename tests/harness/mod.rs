//! What the suites of the built command share: how it is called, what every outcome must satisfy, how a run under way is
//! looked at from outside, and the gate for what a machine may lack.
#![allow(dead_code, reason = "each suite uses a part of it")]

mod slow;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nsbox::outcome::Outcome;
use serde_json::Value;
pub use slow::patiently;

/// Longer than anything takes on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);
/// Set in a process that runs one test alone: see [`alone`].
const ALONE: &str = "NSBOX_TEST_ALONE";

/// Whether a test can run: `true` where `present`; else says visibly why not, and fails under `NSBOX_TEST_MUST_RUN=1`.
#[must_use]
#[allow(clippy::explicit_write, reason = "a test's eprintln! is captured")]
pub fn require(present: bool, what: &str) -> bool {
    if !present {
        assert!(
            env::var_os("NSBOX_TEST_MUST_RUN").is_none_or(|value| value != "1"),
            "must run, but there is no {what}"
        );
        skipped(&format!("there is no {what}"));
    }
    present
}

/// Says that a test does not run here, past the capture of the test's output: a skip must be seen.
pub fn skipped(why: &str) {
    io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()).unwrap();
}

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A store of this test process alone; those of processes that are gone are removed.
pub fn store() -> &'static Path {
    static STORE: OnceLock<PathBuf> = OnceLock::new();
    STORE.get_or_init(|| {
        if is_alone() {
            return env::var_os("NSBOX_STORE").unwrap().into();
        }
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stores");
        fs::create_dir_all(&parent).unwrap();
        for entry in fs::read_dir(&parent).unwrap().flatten() {
            if !Path::new("/proc").join(entry.file_name()).exists() {
                // Another suite may be removing it as well.
                fs::remove_dir_all(entry.path()).ok();
            }
        }
        parent.join(std::process::id().to_string())
    })
}

/// The command, with none of the caller's settings.
pub fn nsbox<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsbox"));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NSBOX_")) {
        command.env_remove(name);
    }
    command.args(args).env("NSBOX_STORE", store()).env("NSBOX_EVENT_LOG", "none").stdin(Stdio::null());
    command
}

/// What came of `nsbox run --json`.
#[derive(Debug)]
pub struct Ran {
    /// The exit status of the command.
    pub status: i32,
    /// The outcome as it was printed.
    pub json: Value,
    /// The outcome as Rust reads it.
    pub outcome: Outcome,
    /// What the command said.
    pub stderr: String,
}

impl Ran {
    /// The script's standard output.
    pub fn stdout(&self) -> String {
        String::from_utf8(self.outcome.stdout.clone()).unwrap()
    }

    /// The verdict, in the words of the outcome.
    pub fn verdict(&self) -> &str {
        self.json["verdict"].as_str().unwrap()
    }

    /// Fails unless the run ended so, and shows all of it then.
    #[track_caller]
    pub fn expect(self, verdict: &str) -> Self {
        assert_eq!(self.verdict(), verdict, "{:#}", self.json);
        self
    }

    /// Fails unless the outcome's message says so.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.outcome.message.contains(text), "{:?} says nothing of {text:?}", self.outcome.message);
        self
    }
}

/// Runs a script that the check does not see.
#[track_caller]
pub fn run(flags: &[&str], source: &str) -> Ran {
    run_with(&[], flags, source)
}

/// The same, with variables of the command's environment.
#[track_caller]
pub fn run_with(variables: &[(&str, &str)], flags: &[&str], source: &str) -> Ran {
    let mut command = nsbox(["run", "--json", "--no-check"]);
    command.args(flags).arg("-").envs(variables.iter().copied());
    outcome_of(command, source.as_bytes())
}

/// Runs `nsbox run --json ... -` with the script on its standard input, and judges what it prints.
#[track_caller]
pub fn outcome_of(command: Command, source: &[u8]) -> Ran {
    judge(&feed(command, source))
}

/// Runs a command with `input` on its standard input.
pub fn feed(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that refuses its flags does not read.
    stdin.write_all(input).ok();
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// What holds of every outcome: one line of JSON and nothing else, of the published schema, that Rust reads without a
/// field too many, and whose exit status is the command's.
#[track_caller]
pub fn judge(output: &Output) -> Ran {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(stdout.lines().count(), 1, "one line of JSON is expected, not {stdout:?}; stderr: {stderr}");
    let json: Value = serde_json::from_str(&stdout).unwrap();
    static SCHEMA: OnceLock<jsonschema::Validator> = OnceLock::new();
    let schema = SCHEMA.get_or_init(|| {
        let text = include_str!("../../config/outcome.schema.json");
        jsonschema::validator_for(&serde_json::from_str(text).unwrap()).unwrap()
    });
    let wrong: Vec<String> = schema.iter_errors(&json).map(|error| error.to_string()).collect();
    assert!(wrong.is_empty(), "{wrong:#?} in {json:#}");
    let outcome: Outcome = serde_json::from_str(&stdout).unwrap();
    let status = output.status.code().unwrap();
    assert_eq!(status, outcome.exit_status(), "{json:#}");
    Ran { status, json, outcome, stderr }
}

/// What a script says to be seen from outside while nothing of its output is: PR_SET_NAME.
pub const READY: &str = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'ready')\n";

/// A run under way.
pub struct Running {
    pub child: Child,
    /// What the command prints.
    pub stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Starts `nsbox run --no-check FLAGS -`, and returns once the script has said [`READY`].
    pub fn start(flags: &[&str], source: &str) -> Self {
        let mut command = nsbox(["run", "--no-check"]);
        command.args(flags).arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let running = Self { child, stdout };
        until("the guest is ready", || running.guest().is_some_and(|guest| comm(guest) == "ready"));
        running
    }

    /// The sandbox's init, as the host numbers it.
    pub fn init(&self) -> Option<u32> {
        children(self.child.id()).into_iter().next()
    }

    /// The guest's main process.
    pub fn guest(&self) -> Option<u32> {
        children(self.init()?).into_iter().next()
    }

    /// The folders of the run's cgroup, in every hierarchy that has one.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        cgroups_of(self.child.id())
    }

    /// One line of what the command prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Output {
        let mut stdout = Vec::new();
        io::Read::read_to_end(&mut self.stdout, &mut stdout).unwrap();
        let output = self.child.wait_with_output().unwrap();
        Output { stdout, ..output }
    }
}

/// Polls until something holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patiently(PATIENCE);
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to pass that {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The children of a process, of whichever of its threads.
pub fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()).collect()
}

/// The name of a process.
pub fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// The cgroups, in all hierarchies, of the runs that the process `supervisor` made: its pid is in their names.
pub fn cgroups_of(supervisor: u32) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroup_mounts = mounts.lines().filter(|line| line.contains(" - cgroup"));
    let mut pending: Vec<PathBuf> =
        cgroup_mounts.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect();
    let mut found = Vec::new();
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let name = entry.file_name();
                let mut fields = name.to_str().unwrap_or_default().split('-');
                if fields.next() == Some("nsbox") && fields.nth(1) == Some(&supervisor.to_string()) {
                    found.push(entry.path());
                }
                pending.push(entry.path());
            }
        }
    }
    found
}

/// A file of the run's cgroup, whichever hierarchy has it.
pub fn cgroup_file(cgroups: &[PathBuf], names: &[&str]) -> String {
    let files = cgroups.iter().flat_map(|folder| names.iter().map(|name| folder.join(name)));
    let mut texts = files.filter_map(|path| fs::read_to_string(path).ok());
    texts.next().unwrap_or_else(|| panic!("{cgroups:?} have none of {names:?}")).trim_end().to_owned()
}

/// Whether this process runs one test alone: see [`alone`].
pub fn is_alone() -> bool {
    env::var_os(ALONE).is_some()
}

/// Runs a test of this binary again in a process of its own, where nothing else happens and the library finds the suite's
/// store. `true` there; `false` outside, when it has passed.
#[track_caller]
pub fn alone(test: &str) -> bool {
    alone_with(&[], test)
}

/// The same, with variables of that process's environment.
#[track_caller]
pub fn alone_with(variables: &[(&str, &str)], test: &str) -> bool {
    if is_alone() {
        return true;
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .env("NSBOX_STORE", store())
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}\n{stderr}");
    io::stderr().write_all(&output.stderr).unwrap();
    false
}

/// A sandbox of the library: without the check, and with these keys of the configuration set.
pub fn sandbox(keys: &[(&str, &str)]) -> nsbox::sandbox::Sandbox {
    let resolver = nsbox::config::Resolver::new().flag("check", "false", "--no-check");
    let resolver = keys.iter().fold(resolver, |resolver, (key, value)| resolver.flag(*key, *value, *key));
    nsbox::sandbox::Sandbox::new(resolver.resolve().unwrap().config).unwrap()
}
