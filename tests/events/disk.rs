//! Disks that are full, and limits that are reached: said once, and no run stops.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::sync::atomic::Ordering;

use nsbox::event::{Event, Log};

use crate::harness::{feed, is_root, nsbox, require};
use crate::{child, event, scratch, small_lines, teller, told_child};

/// The command as one that a shell runs after this, with `$1` being `argument`.
fn after(shell: &str, argument: impl AsRef<OsStr>, command: &Command) -> Command {
    let mut outer = Command::new("unshare");
    outer.args(["-m", "sh", "-c", &format!("{shell} && shift && exec \"$@\""), "sh"]).arg(argument);
    outer.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// A tmpfs of two pages, seen by the command alone.
const TINY: &str = "mount -t tmpfs -o size=8k none \"$1\"";

/// Lines of nsbox's own that speak of the log.
fn warnings(stderr: &[u8]) -> usize {
    String::from_utf8_lossy(stderr).lines().filter(|line| line.contains("the event log")).count()
}

#[test]
fn full_disk_is_told_once_and_counted() {
    let (times, tell) = teller();
    let log = Log::open("/dev/full").on_failure(tell);
    small_lines(&log, 0, 100);
    assert_eq!((times.load(Ordering::Relaxed), log.lost()), (1, 100));
}

#[test]
#[ignore = "the child process of the test below"]
fn child_fills_the_disk() {
    let (path, _) = told_child();
    let filler = path.with_file_name("filler");
    fs::write(&filler, [0; 4096]).unwrap();
    let (times, tell) = teller();
    let log = Log::open(&path).on_failure(tell);
    // One page is left: some lines fit, one is cut at its end, the others are lost.
    small_lines(&log, 0, 40);
    let lost = log.lost();
    assert!(lost > 10 && lost < 40, "{lost} lines are lost");
    assert_eq!(times.load(Ordering::Relaxed), 1);
    assert!(!fs::read(&path).unwrap().ends_with(b"\n"), "the last line is cut");
    fs::remove_file(filler).unwrap();
    log.write(&event(1, 0, 10));
    log.write(&event(1, 1, 10));
    assert_eq!(log.lost(), lost);
    let text = fs::read_to_string(&path).unwrap();
    let whole: Vec<bool> = text.lines().map(|line| serde_json::from_str::<Event>(line).is_ok()).collect();
    assert_eq!(whole.iter().filter(|whole| !**whole).count(), 1, "only the line that was cut is not whole");
    assert_eq!(whole[whole.len() - 2..], [true, true]);
}

#[test]
fn log_goes_on_when_the_disk_has_room_again() {
    if !require(is_root(), "right to mount a small disk") {
        return;
    }
    let (folder, path) = scratch();
    let output = after(TINY, folder.path(), &child("disk::child_fills_the_disk", &path, 0)).output().unwrap();
    // A name that is no test's would be a success too.
    assert!(output.status.success() && output.stdout.windows(8).any(|said| said == b"1 passed"), "{output:?}");
}

#[test]
fn run_and_loop_end_well_on_a_full_disk() {
    if !require(is_root(), "right to mount a small disk") {
        return;
    }
    let (folder, path) = scratch();
    let scripts = tempfile::tempdir().unwrap();
    let script = scripts.path().join("pass.py");
    fs::write(&script, "metrics = {'a': 1}").unwrap();
    let full = format!("{TINY} && head -c 8192 /dev/zero >\"$1\"/filler");
    // Empty, the disk has room for the events of some nine runs.
    let many = ["loop", "--iterations", "20", "--quiet", "--preload", "json"];
    for (disk, args, said) in [(TINY, &["run"][..], 0), (&full, &["run"], 1), (TINY, &many, 1), (&full, &many, 1)] {
        let mut command = nsbox(args);
        command.arg(&script).env("NSBOX_EVENT_LOG", &path);
        let output = after(disk, folder.path(), &command).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(warnings(&output.stderr), said, "{args:?} {output:?}");
    }
}

#[test]
fn limit_of_file_sizes_is_told_once_and_kills_nobody() {
    if !require(is_root(), "right to a mount namespace") {
        return;
    }
    let (_folder, path) = scratch();
    let run = || {
        let mut command = nsbox(["run", "--no-check", "-"]);
        command.env("NSBOX_EVENT_LOG", &path);
        command
    };
    assert!(feed(run(), b"print('ran')").status.success());
    // Almost up to the limit, which sh counts in blocks of 512 bytes.
    let room = 200 * 512 - fs::metadata(&path).unwrap().len() - 100;
    fs::File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(&b"\n".repeat(usize::try_from(room).unwrap()))
        .unwrap();
    let before = fs::read(&path).unwrap();
    let output = feed(after("ulimit -S -f \"$1\"", "200", &run()), b"print('ran')");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"ran\n".as_slice()), "{output:?}");
    assert_eq!(warnings(&output.stderr), 1, "{output:?}");
    assert_eq!(fs::read(&path).unwrap(), before, "nothing was written, and nothing cut");
}
