//! The files of a run's cgroup, each by what it does.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Ran, Running, cgroup_file, comm, judge, require, run, store, until};
use crate::scope;

/// What the guest does once it is told to go on: see [`Visited::go_on`].
const UNTIL_TOLD: &str = r#"
import ctypes, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
ctypes.CDLL(None).prctl(15, b'ready')
signal.sigwait([signal.SIGUSR1])
"#;

/// What a script does that has gone on: it stops again.
const STOPS: &str = "
ctypes.CDLL(None).prctl(15, b'stopped')
signal.sigwait([signal.SIGUSR1])
signal = None
";

/// A run with a process of ours in its cgroup, which is in no pid namespace of the run's.
struct Visited {
    running: Running,
    visitor: Child,
    cgroup: PathBuf,
}

impl Visited {
    fn start(flags: &[&str], source: &str) -> Self {
        let running = Running::start(&[flags, &["--json"]].concat(), &format!("{UNTIL_TOLD}{source}"));
        let cgroups = running.cgroups();
        let cgroup = cgroups.into_iter().find(|folder| folder.join("memory.max").exists()).unwrap();
        let visitor = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(cgroup.join("cgroup.procs"), visitor.id().to_string()).unwrap();
        Self { running, visitor, cgroup }
    }

    fn go_on(&self) {
        kill(Pid::from_raw(self.running.guest().unwrap().cast_signed()), Signal::SIGUSR1).unwrap();
    }

    /// Lets it go on, up to where it stops again.
    fn go_on_until_it_stops(&self) {
        self.go_on();
        until("the script stops", || self.running.guest().is_some_and(|guest| comm(guest) == "stopped"));
    }

    /// A file of the run's cgroup.
    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.cgroup.join(file)).unwrap().trim_end().to_owned()
    }

    /// A number of a file with a key in each line.
    #[track_caller]
    fn count(&self, file: &str, key: &str) -> u64 {
        let text = self.read(file);
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{key} is not in {text}")).parse().unwrap()
    }

    /// The end of the run; fails unless the visitor was killed and the cgroup is gone.
    #[track_caller]
    fn finish(mut self) -> Ran {
        let ran = judge(&self.running.finish());
        let killed = self.visitor.try_wait().unwrap().and_then(|status| status.signal());
        if killed.is_none() {
            self.visitor.kill().unwrap();
            self.visitor.wait().unwrap();
        }
        assert_eq!(killed, Some(libc::SIGKILL), "the visitor outlived the run: {:#}", ran.json);
        assert!(!self.cgroup.exists(), "{} is left", self.cgroup.display());
        ran
    }
}

#[test]
fn outcome_names_each_file_and_its_value() {
    let Some(_scope) = scope() else { return };
    let visited = Visited::start(&["--memory", "96m", "--pids", "9", "--cpus", "1.5"], "signal = None");
    // What the kernel says, while the run is under way.
    let files = ["memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"];
    let said = files.map(|file| format!("{file}={}", visited.read(file)));
    let held =
        ["memory.max=100663296", "memory.swap.max=0", "memory.oom.group=1", "pids.max=10", "cpu.max=150000 100000"];
    assert_eq!(said, held);
    visited.go_on();
    let ran = visited.finish().expect("ok");
    let cgroup = &ran.json["enforced"]["cgroup"];
    assert_eq!(cgroup["version"], 2);
    let memory = "memory.max=100663296, memory.swap.max=0, memory.oom.group=1";
    for (layer, applied) in [("memory", memory), ("pids", "pids.max=10"), ("cpu", "cpu.max=150000 100000")] {
        assert_eq!((&cgroup[layer]["status"], &cgroup[layer]["applied"]), (&json!("applied"), &json!(applied)));
    }
    assert!(!ran.outcome.degraded);
}

#[test]
fn memory_max_is_counted_where_it_bites() {
    let Some(_scope) = scope() else { return };
    // What can be reclaimed without swap goes, and nobody is killed.
    let source = r#"
import mmap
blocks = [mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(8)]
for block in blocks:
    block.write(bytes([1]) * len(block))
    block.madvise(mmap.MADV_FREE)
"#;
    let visited = Visited::start(&["--memory", "64m"], &format!("{source}{STOPS}"));
    assert_eq!(visited.count("memory.events", "max"), 0);
    visited.go_on_until_it_stops();
    assert!(visited.count("memory.events", "max") > 0, "{}", visited.read("memory.events"));
    assert_eq!(visited.count("memory.events", "oom_kill"), 0);
    assert!(visited.read("memory.current").parse::<u64>().unwrap() <= 64 << 20);
    visited.go_on();
    visited.finish().expect("ok");
}

#[test]
fn memory_oom_group_ends_all_that_is_in_the_cgroup() {
    let Some(_scope) = scope() else { return };
    let visited = Visited::start(&["--memory", "64m"], "block = bytearray(100 << 20)");
    visited.go_on();
    let ran = visited.finish().expect("oom");
    assert_eq!(ran.status, 137);
}

#[test]
fn memory_swap_max_keeps_a_run_out_of_swap() {
    let Some(scope) = scope() else { return };
    let Some(_swap) = Swap::on() else { return };
    let hog = "block = bytearray(b'1') * (100 << 20)\nprint('held')";
    // Outside, the same limit of memory sends it to swap.
    scope.write("memory.max", "67108864");
    let enter = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
    let outside = Command::new("sh")
        .args(["-c", enter])
        .arg(scope.path())
        .args(["/usr/bin/python3", "-c", hog])
        .output()
        .unwrap();
    assert_eq!(outside.stdout, b"held\n", "{outside:?}");
    let ran = run(&["--memory", "64m"], hog).expect("oom");
    assert_eq!(ran.stdout(), "");
}

#[test]
fn memory_events_tell_an_oom_from_a_kill() {
    let Some(_scope) = scope() else { return };
    let child = "import os\npid = os.fork()\nif pid == 0:\n    END\nos.waitpid(pid, 0)\nprint('well')";
    let ended = |end: &str| run(&["--memory", "64m"], &child.replace("END", end));
    // memory.oom.group leaves no parent to say that all went well.
    assert_eq!(ended("block = bytearray(100 << 20)").expect("oom").stdout(), "");
    assert_eq!(ended("os.kill(os.getpid(), 9)").expect("ok").stdout(), "well\n");
}

#[test]
fn memory_peak_is_the_outcomes() {
    let Some(_scope) = scope() else { return };
    let visited = Visited::start(&["--memory", "96m"], &format!("block = bytearray(50 << 20)\ndel block{STOPS}"));
    visited.go_on_until_it_stops();
    let [now, highest] = ["memory.current", "memory.peak"].map(|file| visited.read(file).parse::<u64>().unwrap());
    assert!(highest > now + (40 << 20), "{highest} once, {now} now");
    visited.go_on();
    let peak = visited.finish().expect("ok").outcome.usage.peak_memory_bytes.unwrap();
    assert!((highest..96 << 20).contains(&peak), "{peak}, not {highest}");
}

#[test]
fn pids_max_is_counted_where_it_bites() {
    let Some(_scope) = scope() else { return };
    // RLIMIT_NPROC, which a run has as well, does not count the visitor.
    let source = r#"
import os
forked = 0
try:
    while forked < 20:
        if os.fork() == 0:
            signal.pause()
        forked += 1
except BlockingIOError:
    pass
metrics = {"forked": forked}
"#;
    let visited = Visited::start(&["--pids", "8"], &format!("{source}{STOPS}"));
    visited.go_on_until_it_stops();
    assert_eq!(visited.read("pids.current"), "9", "eight and init");
    assert_eq!(visited.count("pids.events", "max"), 1);
    visited.go_on();
    let ran = visited.finish().expect("ok");
    assert_eq!(ran.json["metrics"], json!({"forked": 6}), "beside init, the main process and the visitor");
}

#[test]
fn cpu_max_is_counted_where_it_bites() {
    let Some(_scope) = scope() else { return };
    let source = r#"
import ctypes, time
end = time.perf_counter() + 1
while time.perf_counter() < end:
    pass
ctypes.CDLL(None).prctl(15, b'ready')
time.sleep(1000)
"#;
    let mut running = Running::start(&["--cpus", "0.1"], source);
    let stat = cgroup_file(&running.cgroups(), &["cpu.stat"]);
    let of = |key: &str| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap();
    assert!(of("nr_throttled ") >= 5, "{stat}");
    assert!(of("throttled_usec ") > 300_000, "{stat}");
    running.child.kill().unwrap();
    running.finish();
}

#[test]
fn cgroup_kill_reaches_what_the_pid_namespace_does_not() {
    let Some(_scope) = scope() else { return };
    let visited = Visited::start(&[], "");
    // The run is cancelled, so the supervisor ends it.
    kill(Pid::from_raw(visited.running.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    visited.finish().expect("cancelled");
}

#[test]
fn cgroup_events_end_the_wait_for_what_is_left() {
    let Some(_scope) = scope() else { return };
    let visited = Visited::start(&[], "print('well')\nsignal = None");
    let events = visited.cgroup.join("cgroup.events");
    assert!(fs::read_to_string(events).unwrap().contains("populated 1"));
    visited.go_on();
    let ran = visited.finish().expect("ok");
    assert_eq!((ran.stdout().as_str(), ran.outcome.message.as_str()), ("well\n", ""));
}

#[test]
fn init_is_cloned_into_its_cgroup() {
    let Some(scope) = scope() else { return };
    let Some(trace) = Trace::of_moves() else { return };
    let ran = run(&[], "pass").expect("ok");
    assert_eq!(ran.json["enforced"]["cgroup"]["version"], 2);
    // A move, for comparison: it is after the run's, so those have been written.
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    scope.write("cgroup.procs", &child.id().to_string());
    child.kill().unwrap();
    child.wait().unwrap();
    let moves = trace.read();
    let name = scope.path().file_name().unwrap().to_str().unwrap();
    assert!(moves.lines().any(|line| line.contains(name)), "the trace shows moves: {moves}");
    let into_runs: Vec<_> = moves.lines().filter(|line| line.contains("comm=nsbox-init")).collect();
    assert!(into_runs.is_empty(), "{into_runs:#?}");
}

/// Swap, for as long as this lives.
struct Swap(PathBuf);

impl Swap {
    fn on() -> Option<Self> {
        let file = store().with_extension("swap");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let script = "dd if=/dev/zero of=\"$0\" bs=1M count=160 status=none && chmod 600 \"$0\" && mkswap -q \"$0\" && swapon \"$0\"";
        let made = Command::new("sh").args(["-c", script]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        let swap = Self(file);
        require(made.status.success(), &format!("place for swap: {said}")).then_some(swap)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        Command::new("swapoff").arg(&self.0).status().unwrap();
        fs::remove_file(&self.0).unwrap();
    }
}

/// The kernel's own record of the processes that were moved from one cgroup to another.
struct Trace(PathBuf);

impl Trace {
    fn of_moves() -> Option<Self> {
        let instances = Path::new("/sys/kernel/tracing/instances");
        if !require(instances.exists(), "tracefs at /sys/kernel/tracing") {
            return None;
        }
        let trace = Self(instances.join(format!("nsbox-test-{}", std::process::id())));
        fs::create_dir(&trace.0).unwrap();
        for event in ["cgroup_attach_task", "cgroup_transfer_tasks"] {
            fs::write(trace.0.join("events/cgroup").join(event).join("enable"), "1").unwrap();
        }
        Some(trace)
    }

    fn read(&self) -> String {
        fs::read_to_string(self.0.join("trace")).unwrap()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).unwrap();
    }
}
