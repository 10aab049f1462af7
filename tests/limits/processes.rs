//! Processes and threads together.

use std::time::Duration;

use crate::harness::{patiently, run};

const THREADS: &str = r#"
import threading
stop = threading.Event()
threads = []
metrics = {"end": "none"}
try:
    for _ in range(COUNT):
        thread = threading.Thread(target=stop.wait)
        thread.start()
        threads.append(thread)
except RuntimeError as error:
    metrics["end"] = str(error)
stop.set()
metrics["threads"] = 1 + len(threads)
"#;

const PROCESSES: &str = r#"
import errno, os, signal
children = []
metrics = {"end": "none"}
try:
    for _ in range(COUNT):
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except OSError as error:
    metrics["end"] = errno.errorcode[error.errno]
metrics["processes"] = 1 + len(children)
"#;

#[test]
fn threads_over_the_limit_cannot_start() {
    let ran = run(&["--pids", "8"], &THREADS.replace("COUNT", "8")).expect("ok");
    assert_eq!(ran.json["metrics"], serde_json::json!({"end": "can't start new thread", "threads": 8}));
    assert_eq!(ran.outcome.usage.processes_peak, Some(8));
}

#[test]
fn threads_up_to_the_limit_start() {
    let ran = run(&["--pids", "8"], &THREADS.replace("COUNT", "7")).expect("ok");
    assert_eq!(ran.json["metrics"], serde_json::json!({"end": "none", "threads": 8}));
}

#[test]
fn processes_over_the_limit_cannot_fork() {
    let ran = run(&["--pids", "8"], &PROCESSES.replace("COUNT", "8")).expect("ok");
    assert_eq!(ran.json["metrics"], serde_json::json!({"end": "EAGAIN", "processes": 8}));
}

#[test]
fn processes_up_to_the_limit_fork() {
    let ran = run(&["--pids", "8"], &PROCESSES.replace("COUNT", "7")).expect("ok");
    assert_eq!(ran.json["metrics"], serde_json::json!({"end": "none", "processes": 8}));
}

#[test]
fn fork_bomb_ends_at_its_timeout_and_leaves_nothing() {
    let source = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n";
    let timeout = format!("{}ms", patiently(Duration::from_millis(500)).as_millis());
    let ran = run(&["--pids", "16", "--timeout", &timeout], source).expect("timeout");
    assert_eq!(ran.outcome.usage.processes_peak, Some(16));
}
