//! Wrong usage: status 125, and a message that says what is wrong, where, and what would be right.

use std::fs;

use crate::harness::{feed, nsbox};

fn refused(args: &[&str]) -> String {
    let output = feed(nsbox(args), b"print('ran')");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(125), b"".as_slice()), "{args:?}: {stderr}");
    stderr
}

#[test]
fn values_of_flags_are_judged_with_the_flag_and_what_is_expected() {
    for (flag, value, expected) in [
        ("--memory", "512", "512m"),
        ("--memory", "1m", "16m"),
        ("--cpus", "many", "0.5"),
        ("--cpus", "-1", "0.5"),
        ("--pids", "0", "64"),
        ("--disk", "big", "64m"),
        ("--timeout", "10", "300s"),
        ("--timeout", "5 parsecs", "300s"),
        ("--cpu-time", "-3s", "300s"),
        ("--output-limit", "1x", "512k"),
        ("--seed", "x", "none"),
        ("--backend", "moon", "namespace"),
        ("--fallback", "moon", "docker"),
        ("--env", "NOVALUE", "="),
    ] {
        let said = refused(&["run", &format!("{flag}={value}"), "-"]);
        assert!(said.contains(flag), "{flag} {value}: {said}");
        assert!(said.contains(expected), "{flag} {value}: {expected:?} is not in {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    let said = refused(&["run", "--input", "prices", "-"]);
    assert!(said.contains("--input prices") && said.contains("NAME=PATH"), "{said}");
}

#[test]
fn flags_that_do_not_exist_are_named_with_the_nearest() {
    let said = refused(&["run", "--memroy", "1g", "-"]);
    assert!(said.contains("--memroy") && said.contains("--memory"), "{said}");
    assert!(refused(&["chekc", "-"]).contains("check"));
    assert!(refused(&["run"]).contains("SCRIPT"));
    assert!(refused(&["run", "--fresh", "--warm", "-"]).contains("--warm"));
}

#[test]
fn script_that_is_not_there_is_named() {
    let said = refused(&["run", "/nowhere/strategy.py"]);
    assert!(said.contains("/nowhere/strategy.py") && said.contains("No such file"), "{said}");
    assert!(refused(&["run", "/"]).contains("failed to read the script /"));
}

#[test]
fn unknown_key_of_a_file_is_named_with_its_place_and_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nsbox.yaml");
    fs::write(&file, "limits:\n  pids: 10\n  memroy: 1g\n").unwrap();
    let path = file.to_str().unwrap();
    let said = refused(&["run", "--config", path, "-"]);
    assert!(
        said.contains(&format!("{path}:3:3")) && said.contains("memroy") && said.contains("limits.memory"),
        "{said}"
    );
    fs::write(&file, "limits: {memory: 512}\n").unwrap();
    assert!(refused(&["run", "--config", path, "-"]).contains(&format!("{path}:1:")));
    assert!(refused(&["run", "--config", "/nowhere.yaml", "-"]).contains("/nowhere.yaml"));
}

#[test]
fn unknown_variable_is_named_with_the_nearest() {
    let mut command = nsbox(["run", "-"]);
    command.env("NSBOX_LIMITS_MEMROY", "1g");
    let output = feed(command, b"pass");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(said.contains("NSBOX_LIMITS_MEMROY") && said.contains("NSBOX_LIMITS_MEMORY"), "{said}");
}

#[test]
fn event_log_that_cannot_be_written_is_said_and_stops_no_run() {
    let mut command = nsbox(["run", "-"]);
    command.env("NSBOX_EVENT_LOG", "/proc/nowhere/log");
    let output = feed(command, b"print('ran')");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"ran\n".as_slice()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("/proc/nowhere"), "{said}");
}
