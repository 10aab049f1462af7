//! Lines from many processes and threads, and what stands in their way.

use std::fs::{self, File};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nsbox::event::{Event, Log};

use crate::{all_succeed, child, event, files, lines_by_writer, scratch, small_lines, teller, told_child};

const LINES: usize = 100;

fn append_all(log: &Log, who: usize) {
    for line in 0..LINES {
        // Every tenth line is longer than a pipe or a page would take at once.
        let filler = if line.is_multiple_of(10) { 100_000 } else { 50 + line };
        log.write(&event(who, line, filler));
    }
}

#[test]
#[ignore = "the child process of the test below"]
fn child_appends() {
    let (path, number) = told_child();
    let log = Log::open(path);
    append_all(&log, number);
    assert_eq!(log.lost(), 0);
}

#[test]
fn log_of_16_processes_has_every_line_whole() {
    let (_folder, path) = scratch();
    let path = path.with_file_name("a/b/events.log");
    all_succeed((0..16).map(|number| child("append::child_appends", &path, number).spawn().unwrap()).collect());
    let lines = lines_by_writer(&files(&path), 0);
    assert_eq!(lines.len(), 16);
    for (who, lines) in lines {
        assert_eq!(lines, (0..LINES).collect::<Vec<_>>(), "lines of writer {who}");
    }
}

#[test]
fn log_of_16_threads_has_every_line_whole() {
    let (_folder, path) = scratch();
    let log = Log::open(&path).rotate(1 << 20, 900);
    std::thread::scope(|scope| {
        for who in 0..16 {
            let log = &log;
            scope.spawn(move || append_all(log, who));
        }
    });
    assert_eq!(log.lost(), 0);
    assert!(files(&path).len() > 8);
    for (who, lines) in lines_by_writer(&files(&path), 0) {
        assert_eq!(lines, (0..LINES).collect::<Vec<_>>(), "lines of writer {who}");
    }
}

#[test]
fn line_that_was_cut_spoils_no_other() {
    let (_folder, path) = scratch();
    fs::write(&path, "{\"timestamp\":\"2026-01-31T12:0").unwrap();
    let log = Log::open(&path);
    small_lines(&log, 1, 2);
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().map(serde_json::from_str::<Event>).collect();
    assert_eq!(lines.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, true]);
}

#[test]
fn stopped_process_that_holds_the_lock_stops_nobody() {
    let (_folder, path) = scratch();
    let (log, other) = (Log::open(&path).rotate(1, 5), Log::open(&path));
    small_lines(&log, 0, 1);
    let held = File::open(&path).unwrap();
    held.lock().unwrap();
    let begun = Instant::now();
    small_lines(&log, 1, 50);
    small_lines(&other, 2, 50);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!((log.lost(), other.lost(), files(&path).len()), (0, 0, 1));
    drop(held);
    for (who, lines) in lines_by_writer(&files(&path), 0) {
        assert_eq!(lines.len(), if who == 0 { 1 } else { 50 });
    }
}

#[test]
fn log_that_cannot_be_opened_is_told_once_and_tried_again() {
    let (folder, _) = scratch();
    let parent = folder.path().join("file");
    fs::write(&parent, "not a folder").unwrap();
    let (times, tell) = teller();
    let log = Log::open(parent.join("events.log")).on_failure(tell);
    small_lines(&log, 0, 2);
    assert_eq!((times.load(Ordering::Relaxed), log.lost()), (1, 2));

    fs::remove_file(&parent).unwrap();
    small_lines(&log, 0, 1);
    assert_eq!(log.lost(), 2);
    assert_eq!(fs::read_to_string(log.path().unwrap()).unwrap().lines().count(), 1);
}

#[test]
fn fifo_without_a_reader_never_blocks() {
    let (_folder, path) = scratch();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IWUSR).unwrap();
    let log = Log::open(&path).rotate(1, 1);
    // Opened for reading too, the FIFO has a reader: this very process. Its buffer fills up, then lines are lost.
    append_all(&log, 0);
    assert!(log.lost() > 0);
}

#[test]
fn log_that_is_removed_goes_on_in_a_new_file() {
    let (_folder, path) = scratch();
    let log = Log::open(&path);
    small_lines(&log, 0, 3);
    fs::remove_file(&path).unwrap();
    small_lines(&log, 1, 2);
    // As logrotate(8) does.
    fs::rename(&path, path.with_extension("old")).unwrap();
    small_lines(&log, 2, 1);
    assert_eq!(fs::read_to_string(path.with_extension("old")).unwrap().lines().count(), 2);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
    assert_eq!(log.lost(), 0);
}

#[test]
fn log_that_is_off_keeps_nothing() {
    let log = Log::off().rotate(1, 1);
    small_lines(&log, 0, 1);
    assert_eq!((log.path(), log.lost()), (None, 0));
}
