//! The event log under many writers: whole lines, rotation, disks that are full; all with real processes.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/mod.rs"]
mod harness;

mod append;
mod disk;
mod rotate;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nsbox::event::{Error, Event, EventType, Log};

/// What a child is told, in its environment.
const PATH: &str = "NSBOX_TEST_LOG";
const NUMBER: &str = "NSBOX_TEST_NUMBER";

/// An ignored test of this binary in a process of its own, with a log and a number.
fn child(test: &str, path: &Path, number: usize) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored"]).env(PATH, path).env(NUMBER, number.to_string()).stdout(Stdio::null());
    command
}

/// In that process: its log's path and its number.
fn told_child() -> (PathBuf, usize) {
    let number = std::env::var(NUMBER).unwrap().parse().unwrap();
    (std::env::var_os(PATH).unwrap().into(), number)
}

fn all_succeed(children: Vec<Child>) {
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
}

/// The event that a writer writes as its `line`th.
fn event(who: usize, line: usize, filler: usize) -> Event {
    Event::new(EventType::ExecutionModeSelected, "m")
        .fact("who", who)
        .fact("line", line)
        .fact("filler", who.to_string().repeat(filler))
}

/// The log and its rotated files, oldest first.
fn files(log: &Path) -> Vec<PathBuf> {
    let name = log.file_name().unwrap().to_str().unwrap();
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for entry in fs::read_dir(log.parent().unwrap()).unwrap().flatten() {
        let other = entry.file_name().into_string().unwrap();
        match other.strip_prefix(name).map(|rest| rest.strip_prefix('.')) {
            Some(None) => found.push((0, entry.path())),
            Some(Some(number)) => found.push((number.parse().unwrap(), entry.path())),
            None => {}
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

/// The numbers of each writer's lines, in the order of the files. All but so many lines must be whole.
#[track_caller]
fn lines_by_writer(files: &[PathBuf], cut: usize) -> HashMap<usize, Vec<usize>> {
    let mut by_writer: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut not_whole = Vec::new();
    for file in files {
        for line in fs::read_to_string(file).unwrap().lines() {
            let Ok(read) = serde_json::from_str::<Event>(line) else {
                not_whole.push(line.to_owned());
                continue;
            };
            let figure = |name: &str| usize::try_from(read.facts[name].as_u64().unwrap()).unwrap();
            let filler = read.facts["filler"].as_str().unwrap().len() / figure("who").to_string().len();
            assert_eq!(read.facts, event(figure("who"), figure("line"), filler).facts);
            by_writer.entry(figure("who")).or_default().push(figure("line"));
        }
    }
    assert!(not_whole.len() <= cut, "{not_whole:#?}");
    by_writer
}

/// Counts what a log tells of failures, by the code.
fn teller() -> (Arc<AtomicU64>, impl Fn(&Error) + Send + Sync + 'static) {
    let times = Arc::new(AtomicU64::new(0));
    let inner = Arc::clone(&times);
    (times, move |_: &Error| _ = inner.fetch_add(1, Ordering::Relaxed))
}

/// A log in a new folder, with that folder.
fn scratch() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.log");
    (folder, path)
}

fn small_lines(log: &Log, who: usize, lines: usize) {
    for line in 0..lines {
        log.write(&event(who, line, 50 + line % 100));
    }
}
