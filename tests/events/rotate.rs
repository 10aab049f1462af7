//! Rotation by size, by as many processes as like, killed or not.

use std::fs;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use nsbox::event::Log;

use crate::harness::{nsbox, until};
use crate::{all_succeed, child, files, lines_by_writer, scratch, small_lines, teller, told_child};

const LINES: usize = 400;
/// Some 60 lines.
const MAX: u64 = 16 << 10;

#[test]
#[ignore = "the child process of the tests below"]
fn child_rotates() {
    let (path, number) = told_child();
    let keep = if number >= 100 { 3 } else { 999 };
    let log = Log::open(path).rotate(MAX, keep);
    small_lines(&log, number, LINES);
    assert_eq!(log.lost(), 0);
}

#[test]
fn rotation_by_16_processes_loses_no_line() {
    let (_folder, path) = scratch();
    all_succeed((0..16).map(|number| child("rotate::child_rotates", &path, number).spawn().unwrap()).collect());
    let files = files(&path);
    assert!(files.len() > 50, "{} files", files.len());
    for file in &files {
        let size = fs::metadata(file).unwrap().len();
        assert!(size <= MAX, "{} has {size} bytes", file.display());
    }
    let lines = lines_by_writer(&files, 0);
    assert_eq!(lines.len(), 16);
    for (who, lines) in lines {
        assert_eq!(lines, (0..LINES).collect::<Vec<_>>(), "lines of writer {who}");
    }
}

#[test]
fn rotation_keeps_the_newest_files() {
    let (_folder, path) = scratch();
    all_succeed((100..108).map(|number| child("rotate::child_rotates", &path, number).spawn().unwrap()).collect());
    let files = files(&path);
    assert_eq!(files.len(), 4, "{files:?}");
    for (who, lines) in lines_by_writer(&files, 0) {
        // What is gone of a writer's lines are the first.
        let first = lines[0];
        assert_eq!(lines, (first..LINES).collect::<Vec<_>>(), "lines of writer {who}");
    }
}

#[test]
#[ignore = "the child process of the test below"]
fn child_rotates_until_it_is_killed() {
    let (path, number) = told_child();
    let log = Log::open(path).rotate(64 << 10, 999);
    small_lines(&log, number, 100_000);
}

#[test]
fn rotation_survives_writers_that_are_killed() {
    let (_folder, path) = scratch();
    for round in 0..10_usize {
        let spawn =
            |number| child("rotate::child_rotates_until_it_is_killed", &path, number).stderr(Stdio::null()).spawn();
        let mut children: Vec<_> = (0..8).map(|number| spawn(round * 8 + number).unwrap()).collect();
        let before = files(&path).len();
        until("the log is rotated", || files(&path).len() > before);
        for (i, child) in children.iter_mut().enumerate() {
            // At moments that differ from round to round.
            thread::sleep(Duration::from_micros(137 * (round as u64 + 1) * (i as u64 + 1) % 3_000));
            child.kill().unwrap();
        }
        for child in &mut children {
            child.wait().unwrap();
        }
    }
    let files = files(&path);
    assert!(files.len() < 900, "no line was dropped as too old: {} files", files.len());
    // Each that was killed may have been within a line; that one is cut, and no other.
    let lines = lines_by_writer(&files, 80);
    assert!(lines.len() >= 40, "{} writers came to write", lines.len());
    for (who, lines) in lines {
        assert_eq!(lines, (0..lines.len()).collect::<Vec<_>>(), "lines of writer {who}");
    }
}

#[test]
fn rotation_fills_the_gap_that_a_killed_one_left() {
    let (_folder, path) = scratch();
    let numbered = |number: u32| path.with_extension(format!("log.{number}"));
    for (file, text) in [(path.clone(), "now"), (numbered(1), "one"), (numbered(3), "three"), (numbered(7), "too old")]
    {
        fs::write(file, format!("{text}\n")).unwrap();
    }
    let log = Log::open(&path).rotate(1, 6);
    small_lines(&log, 0, 1);
    let text = |number| fs::read_to_string(numbered(number)).unwrap();
    assert_eq!((text(1).as_str(), text(2).as_str(), text(3).as_str()), ("now\n", "one\n", "three\n"));
    assert!(!numbered(7).exists());
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
}

#[test]
fn rotation_that_fails_is_told_once_and_loses_no_line() {
    let (_folder, path) = scratch();
    // A folder in the way, which no file replaces.
    fs::create_dir_all(path.with_extension("log.1").join("x")).unwrap();
    let (times, tell) = teller();
    let log = Log::open(&path).rotate(1, 1).on_failure(tell);
    small_lines(&log, 0, 20);
    assert_eq!((times.load(Ordering::Relaxed), log.lost()), (1, 0));
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 20);
}

#[test]
fn rotation_renames_the_file_behind_a_link() {
    let (folder, path) = scratch();
    let real = folder.path().join("elsewhere");
    fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(real.join("events.log"), &path).unwrap();
    let log = Log::open(&path).rotate(1, 5);
    small_lines(&log, 0, 3);
    assert!(path.is_symlink());
    assert_eq!(files(&real.join("events.log")).len(), 3);
}

#[test]
fn configuration_sets_size_and_number() {
    let (_folder, path) = scratch();
    let filler = format!("{}\n", "x".repeat(65_400));
    for number in 1..=4_usize {
        fs::write(&path, &filler).unwrap();
        let mut command = nsbox(["run", "--no-check", "-"]);
        command.envs([("NSBOX_EVENT_LOG_MAX", "64k"), ("NSBOX_EVENT_LOG_KEEP", "2")]).env("NSBOX_EVENT_LOG", &path);
        let output = crate::harness::feed(command, b"pass");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(files(&path).len(), 1 + number.min(2), "after {number} runs");
        assert!(fs::metadata(&path).unwrap().len() < 2_000);
    }
}
