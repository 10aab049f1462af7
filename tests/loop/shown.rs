//! What a loop says while it goes on: lines to a pipe, a bar to a terminal.

use std::process::Command;

use crate::harness::require;
use crate::{Desk, THREE, text};

const HOSTILE: &str = "raise ValueError('\\x1b[2J\\x1b]0;owned\\x07')";

/// Runs a command on a terminal of its own, and prints what that shows.
const ON_A_TERMINAL: &str = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

#[test]
fn lines_are_plain_where_there_is_no_terminal() {
    let desk = Desk::new(&[("a.py", "pass"), ("b.py", "raise ValueError('no\\nsecond line')")]);
    let output = desk.status(&["--iterations", "3", "--jobs", "1"], 1);
    let lines: Vec<String> = text(&output.stderr).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("1/3 #0 strategies/a.py: ok in "), "{lines:?}");
    assert!(
        lines[1].starts_with("2/3 #1 strategies/b.py: error in ") && lines[1].ends_with("ms: ValueError: no"),
        "{lines:?}"
    );
    let said = text(&output.stdout);
    for word in ["3 runs", "ok 2, error 1", "namespace 3", "fallbacks  0 (0.0 %)", "p95", "whole"] {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    assert!(desk.status(&["--quiet", "--iterations", "1"], 0).stderr.is_empty());
}

#[test]
fn terminal_has_a_bar_and_no_escape_of_a_script() {
    let desk = Desk::new(&[THREE[0], ("z.py", HOSTILE)]);
    let inner = desk.command(&["--iterations", "6", "--jobs", "1"]);
    let python = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !require(python, "python3 to make a terminal") {
        return;
    }
    let mut outer = Command::new("python3");
    outer.args(["-c", ON_A_TERMINAL]).arg(inner.get_program()).args(inner.get_args()).current_dir(desk.folder.path());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    let output = outer.env("TERM", "xterm").env("COLUMNS", "100").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let shown = text(&output.stdout);
    for word in ["█", "/6  ", "/s  ", "1 failed", "left", "#1 strategies/z.py: error", "6 runs"] {
        assert!(shown.contains(word), "{word:?} is not in {shown:?}");
    }
    assert!(shown.contains("^[[2J") && !shown.contains("\x1b[2J\x1b]0"), "{shown:?}");
    assert!(!shown.contains("owned\x07"), "{shown:?}");
}
