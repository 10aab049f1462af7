//! How runs end, from within and from without: nothing of them is left, whoever is killed, and when.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsbox::outcome::Verdict;

use crate::harness::{self, eventually, inside, processes, script, wait_for_guest};

/// Sleeps, with an orphan in a session of its own that ignores every signal, and another that forks on.
const STUBBORN: &str = r"
import os, signal, time
if os.fork() == 0:
    os.setsid()
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    if os.fork() == 0:
        while True:
            if os.fork(): os._exit(0)
    time.sleep(60)
time.sleep(60)
";

fn launch(script: &Path) -> Child {
    harness::command(script, &[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("nsbox starts")
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).expect("the launcher is there");
}

/// Children of a process, in the host's numbers.
fn children(pid: u32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Whether `pid` is an init or a guest of ours still; its number may be another's by now.
fn is_of_sandbox(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.contains("(nsbox") && !stat.contains(") Z "))
}

/// The cgroups that the launcher `pid` made.
fn cgroups(pid: u32) -> Vec<PathBuf> {
    fn walk(folder: &Path, depth: usize, tag: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with("nsbox-") && name.contains(tag)) {
                found.push(entry.path());
            } else if depth > 0 {
                walk(&entry.path(), depth - 1, tag, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), 4, &format!("-{pid}-"), &mut found);
    found
}

/// A launcher was killed: all that it had made is gone, at the latest with the next run.
fn nothing_is_left(marker: &str, launchers: &[u32], inits: &[i32]) {
    eventually("processes of a dead launcher live on", || processes(marker).is_empty());
    eventually("inits of a dead launcher live on", || !inits.iter().any(|pid| is_of_sandbox(*pid)));
    // A cgroup may take a moment to be empty, and the sweep passes over one that is not.
    eventually("cgroups of a dead launcher are not swept", || {
        assert_eq!(inside(&format!("sweep-{}", harness::serial()), "pass\n", &[]).verdict, Verdict::Ok);
        launchers.iter().all(|pid| cgroups(*pid).is_empty())
    });
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let store = harness::folder().display().to_string();
    assert!(!mounts.contains(&store) && !mounts.contains("nsbox-"), "{mounts}");
}

/// What a run left in the store, and in the folder for temporary files.
fn listing(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

#[test]
fn launcher_killed_at_any_moment_leaves_nothing() {
    inside("warm-up", "pass\n", &[]);
    let marker = format!("killed-{}", std::process::id());
    let path = script(&format!("{marker}.py"), STUBBORN);
    let store = harness::folder().join("store");
    let before = listing(&store);
    let temporary = harness::folder().join("temporary");
    std::fs::create_dir_all(&temporary).expect("a folder");
    let (mut launchers, mut inits) = (Vec::new(), Vec::new());
    for attempt in 0..40_u64 {
        let mut command = harness::command(&path, &[]);
        let mut launcher = command
            .env("TMPDIR", &temporary)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nsbox starts");
        // 0 to 30 ms, in an order that no pattern of the scheduler follows.
        sleep(Duration::from_micros(attempt * 7_919 % 30_000));
        inits.extend(children(launcher.id()));
        signal(&launcher, Signal::SIGKILL);
        launcher.wait().expect("the launcher ends");
        launchers.push(launcher.id());
    }
    nothing_is_left(&marker, &launchers, &inits);
    assert_eq!(listing(&store), before);
    assert_eq!(listing(&temporary), [] as [PathBuf; 0]);
}

#[test]
fn launcher_killed_under_a_running_guest_takes_it_along() {
    let marker = format!("running-{}", std::process::id());
    let path = script(&format!("{marker}.py"), STUBBORN);
    let (mut launchers, mut inits) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let mut launcher = launch(&path);
        wait_for_guest(&marker);
        sleep(Duration::from_millis(round * 20));
        inits.extend(children(launcher.id()));
        let begun = Instant::now();
        signal(&launcher, Signal::SIGKILL);
        launcher.wait().expect("the launcher ends");
        eventually("the guest outlives its launcher", || processes(&marker).is_empty());
        assert!(begun.elapsed() < harness::patiently(Duration::from_secs(3)), "{:?}", begun.elapsed());
        launchers.push(launcher.id());
    }
    assert!(inits.len() >= 5, "each launcher had an init");
    nothing_is_left(&marker, &launchers, &inits);
}

#[test]
fn launcher_asked_to_end_says_cancelled() {
    for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let marker = format!("cancelled-{number}-{}", std::process::id());
        let launcher = launch(&script(&format!("{marker}.py"), STUBBORN));
        wait_for_guest(&marker);
        sleep(Duration::from_millis(100));
        signal(&launcher, number);
        let pid = launcher.id();
        let output = launcher.wait_with_output().expect("the launcher ends");
        let outcome = harness::parse(&output);
        assert_eq!(outcome.verdict, Verdict::Cancelled, "{outcome:#?}");
        assert_eq!(output.status.code(), Some(130));
        assert_eq!(processes(&marker), [] as [i32; 0], "the run returned before its processes were gone");
        assert_eq!(cgroups(pid), [] as [PathBuf; 0]);
    }
}

#[test]
fn launcher_stopped_and_continued_goes_on() {
    let marker = format!("stopped-{}", std::process::id());
    let launcher = launch(&script(&format!("{marker}.py"), "import time\ntime.sleep(0.5)\nprint('end')\n"));
    wait_for_guest(&marker);
    signal(&launcher, Signal::SIGSTOP);
    sleep(Duration::from_millis(800));
    signal(&launcher, Signal::SIGCONT);
    let outcome = harness::parse(&launcher.wait_with_output().expect("the launcher ends"));
    assert_eq!((outcome.verdict, outcome.stdout.as_slice()), (Verdict::Ok, &b"end\n"[..]));
}

#[test]
fn launcher_stopped_and_killed_takes_the_guest_along() {
    let marker = format!("stopkill-{}", std::process::id());
    let mut launcher = launch(&script(&format!("{marker}.py"), STUBBORN));
    wait_for_guest(&marker);
    signal(&launcher, Signal::SIGSTOP);
    let inits = children(launcher.id());
    signal(&launcher, Signal::SIGKILL);
    launcher.wait().expect("the launcher ends");
    nothing_is_left(&marker, &[launcher.id()], &inits);
}

#[test]
fn orphans_that_hold_the_output_do_not_delay_the_return() {
    let marker = format!("orphans-{}", std::process::id());
    let begun = Instant::now();
    let outcome = inside(
        &marker,
        &STUBBORN.replace("time.sleep(60)\n\"", "").replace("\ntime.sleep(60)\n", "\nprint('end')\n"),
        &[],
    );
    assert_eq!((outcome.verdict, outcome.stdout.as_slice()), (Verdict::Ok, &b"end\n"[..]), "{outcome:#?}");
    assert!(begun.elapsed() < harness::patiently(Duration::from_secs(10)), "{:?}", begun.elapsed());
    assert_eq!(processes(&marker), [] as [i32; 0]);
}

#[test]
fn signals_to_everyone_reach_neither_init_nor_the_supervisor() {
    let source = r"
import os, signal, subprocess, time
sleeper = subprocess.Popen(['/bin/sleep', '60'])
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV):
    os.kill(1, number)
try: os.kill(-1, signal.SIGKILL)
except OSError: pass
print(sleeper.wait(), os.getppid())
";
    let outcome = inside("kill-all", source, &[]);
    assert_eq!((outcome.verdict, outcome.stdout.as_slice()), (Verdict::Ok, &b"-9 1\n"[..]), "{outcome:#?}");
}

#[test]
fn script_that_kills_itself_is_signal_and_nothing_else() {
    for number in [libc::SIGKILL, libc::SIGSEGV, libc::SIGABRT, libc::SIGTERM, libc::SIGSYS] {
        let source = format!("import os\nos.kill(os.getpid(), {number})\n");
        let outcome = inside(&format!("suicide-{number}"), &source, &[]);
        // A SIGSYS of its own making looks like the filter's.
        let expected = if number == libc::SIGSYS { Verdict::Violation } else { Verdict::Signal };
        assert_eq!((outcome.verdict, outcome.signal), (expected, Some(number)), "{outcome:#?}");
    }
    let outcome = inside("fault", "import ctypes\nctypes.string_at(0)\n", &[]);
    assert_eq!((outcome.verdict, outcome.signal, outcome.exit_status()), (Verdict::Signal, Some(11), 139));
}

#[test]
fn runs_leave_no_cgroup_process_or_file() {
    let marker = format!("clean-{}", std::process::id());
    let path = script(&format!("{marker}.py"), "open('/tmp/x', 'w').write('x')\n");
    let store = harness::folder().join("store");
    inside("clean-warm-up", "pass\n", &[]);
    let before = listing(&store);
    for _ in 0..10 {
        let launcher = launch(&path);
        let pid = launcher.id();
        let outcome = harness::parse(&launcher.wait_with_output().expect("it ends"));
        assert_eq!(outcome.verdict, Verdict::Ok);
        assert_eq!(cgroups(pid), [] as [PathBuf; 0]);
    }
    assert_eq!(processes(&marker), [] as [i32; 0]);
    assert_eq!(listing(&store), before);
}
