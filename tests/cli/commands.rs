//! The commands beside `run`.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::harness::{feed, nsbox, require};

const BAD: &str = "import os\nprint(eval('1'))\n";

fn output(args: &[&str]) -> Output {
    nsbox(args).output().unwrap()
}

fn text(args: &[&str]) -> String {
    let output = output(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn check(format: &str, source: &str) -> (Option<i32>, String) {
    let output = feed(nsbox(["check", "--format", format, "-"]), source.as_bytes());
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn check_lists_findings_and_exits_with_1() {
    let (status, said) = check("text", BAD);
    assert_eq!(status, Some(1));
    let lines: Vec<&str> = said.lines().filter(|line| line.contains(" NSB")).collect();
    assert!(lines[0].contains(":1:8 NSB") && lines[0].contains("'os'"), "{said}");
    assert!(lines.iter().any(|line| line.contains(":2:7 NSB") && line.contains("eval")), "{said}");
}

#[test]
fn check_of_a_clean_script_exits_with_0() {
    assert_eq!(check("text", "import pandas as pd\nprint(pd.Series([1]).sum())").0, Some(0));
    assert_eq!(check("json", "pass").0, Some(0));
    assert_eq!(check("sarif", "pass").0, Some(0));
}

#[test]
fn check_writes_json_and_sarif() {
    let (status, said) = check("json", BAD);
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((status, json.as_array().unwrap().len()), (Some(1), 1));
    assert!(said.contains("NSB"));
    let (status, said) = check("sarif", BAD);
    let sarif: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((status, &sarif["version"]), (Some(1), &"2.1.0".into()));
    assert!(sarif["runs"][0]["results"].as_array().unwrap().len() >= 2, "{sarif:#}");
}

#[test]
fn check_takes_many_scripts_and_names_what_it_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good.py"), folder.path().join("bad.py"));
    fs::write(&good, "pass").unwrap();
    fs::write(&bad, BAD).unwrap();
    let output = nsbox(["check"]).args([&good, &bad]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("bad.py:1:8") && !said.contains("good.py"), "{said}");
    let output = nsbox(["check", "/nowhere.py"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere.py"));
}

#[test]
fn config_show_is_a_configuration_again_and_tells_origins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nsbox.yaml");
    fs::write(&file, "limits:\n  pids: 10\n").unwrap();
    let path = file.to_str().unwrap();
    let mut command = nsbox(["config", "show", "--config", path, "--memory", "100m"]);
    command.env("NSBOX_LIMITS_CPUS", "1.5");
    let shown = String::from_utf8(command.output().unwrap().stdout).unwrap();
    for (value, origin) in [("memory: 100m", "--memory"), ("pids: 10", path), ("cpus: 1.5", "NSBOX_LIMITS_CPUS")] {
        let line = shown
            .lines()
            .find(|line| line.trim_start().starts_with(value))
            .unwrap_or_else(|| panic!("{value}: {shown}"));
        assert!(line.contains(origin), "{line}");
    }
    fs::write(&file, &shown).unwrap();
    let again = text(&["config", "show", "--config", path, "--json"]);
    let json: Value = serde_json::from_str(&again).unwrap();
    assert!(json.is_object() && again.contains("100m"), "{again}");
}

#[test]
fn seccomp_show_and_explain_name_calls_and_reasons() {
    let shown = text(&["seccomp", "show"]);
    assert!(shown.contains("mount") && shown.contains("ptrace"), "{shown}");
    let json: Value = serde_json::from_str(&text(&["seccomp", "show", "--json"])).unwrap();
    assert!(json["syscalls"].is_array() && json["defaultAction"].is_string());
    let strict = text(&["seccomp", "show", "--profile", "strict", "--json"]);
    assert_ne!(serde_json::from_str::<Value>(&strict).unwrap(), json);
    let explained = text(&["seccomp", "explain", "mount", "read"]);
    assert!(explained.lines().count() >= 2 && explained.contains("mount") && explained.contains("read"), "{explained}");
    let wrong = output(&["seccomp", "explain", "no_such_call"]);
    assert_eq!(wrong.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("no_such_call"));
}

#[test]
fn completions_are_what_the_shell_can_read() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&["completions", shell]);
        assert!(script.contains("nsbox") && script.contains("memory"), "{shell}");
        let found = Command::new(shell).arg("-c").arg("exit 0").output().is_ok();
        if shell != "bash" && !found {
            // A further shell is a gain where it is there; bash is on every machine that builds this.
            continue;
        }
        let mut child = Command::new(shell).arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn man_page_names_every_command_and_flag() {
    let page = text(&["man"]);
    assert!(page.contains(".TH"), "{page}");
    for word in ["check", "config", "seccomp", "memory", "output\\-limit\\-kill", "NSBOX_CONFIG", "124 timeout"] {
        assert!(page.contains(word), "{word}");
    }
    if !require(Command::new("man").arg("--version").output().is_ok(), "man") {
        return;
    }
    let mut child = Command::new("man")
        .args(["--warnings", "-l", "-"])
        .env("MANPAGER", "cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && !output.stdout.is_empty());
}

#[test]
fn help_has_examples_and_exit_statuses() {
    let help = text(&["run", "--help"]);
    for word in ["Examples:", "124 timeout", "--input <NAME=PATH>", "[key: limits.memory]"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(text(&["--version"]).starts_with(concat!("nsbox ", env!("CARGO_PKG_VERSION"))));
    assert!(text(&["--help"]).contains("Examples:"));
}
