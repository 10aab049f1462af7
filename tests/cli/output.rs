//! The script's output on its way to the caller.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Running, feed, nsbox, require};

fn plain(flags: &[&str], source: &str) -> (i32, Vec<u8>, String) {
    let mut command = nsbox(["run", "--no-check"]);
    command.args(flags).arg("-");
    let output = feed(command, source.as_bytes());
    (output.status.code().unwrap(), output.stdout, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn output_comes_while_the_script_runs() {
    let source = "import sys\nprint('first')\nassert sys.stdin.readline() == 'go on\\n'\nprint('second')";
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script.py");
    std::fs::write(&script, source).unwrap();
    let mut command = nsbox(["run", "--no-check", "--stdin"]);
    command.arg(&script).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "first\n", "the script cannot go on before this was read");
    child.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("second\n", Some(0)));
}

#[test]
fn streams_stay_apart() {
    let (status, stdout, stderr) = plain(&[], "import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(5)");
    assert_eq!((status, stdout.as_slice(), stderr.as_str()), (5, b"out\n".as_slice(), "err\n"));
}

#[test]
fn output_streamed_has_the_same_limit() {
    let (status, stdout, _) = plain(&["--output-limit", "4k"], "print('x' * 100_000)");
    assert_eq!((status, stdout.len()), (0, 4096));
}

const ESCAPES: &str = r"import sys; sys.stdout.buffer.write(b'\x1b]0;title\x07\x1b[2Jred\xff\n')";

#[test]
fn escapes_are_raw_to_a_pipe() {
    assert_eq!(plain(&[], ESCAPES).1, b"\x1b]0;title\x07\x1b[2Jred\xff\n");
}

#[test]
fn escapes_are_visible_on_a_terminal() {
    if !require(Command::new("script").arg("--version").output().is_ok(), "script(1), which makes a terminal") {
        return;
    }
    let (status, said) = on_a_terminal(ESCAPES);
    assert!(status == Some(0) && said.starts_with("^[]0;title^G^[[2Jred\u{fffd}\r\nnsbox: ok: "), "{said:?}");
    // What nsbox itself says may quote the script.
    let (status, said) = on_a_terminal("import sys\nsys.stderr = None\nraise ValueError('\\x1b]0;title\\x07')");
    assert!(status == Some(1) && said.contains("nsbox: ValueError: ^[]0;title^G"), "{said:?}");
}

/// Exit status and screen of `nsbox run -v`.
fn on_a_terminal(source: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script.py");
    std::fs::write(&script, source).unwrap();
    let mut command = Command::new("script");
    let line = format!("'{}' run -v --no-check '{}'", env!("CARGO_BIN_EXE_nsbox"), script.display());
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    for (name, value) in nsbox::<&str>([]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn reader_that_goes_away_does_not_stop_the_run() {
    let source =
        "import time\nprint('first')\ntime.sleep(0.3)\nfor i in range(1000): print('x' * 100)\nraise SystemExit(7)";
    let mut command = nsbox(["run", "--no-check", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn reader_that_does_not_read_does_not_stop_the_clock() {
    let source = "import time\nprint('x' * 900_000)\nwhile True: time.sleep(1)";
    let mut command = nsbox(["run", "--no-check", "--timeout", "400ms", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let begun = Instant::now();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    // What it has to say comes after all output; the run itself must be over long before.
    std::thread::sleep(Duration::from_millis(1500));
    let mut stdout = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), stdout.len()), (Some(124), 900_001), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn quiet_says_nothing_of_its_own() {
    let source = "print('out')\nimport time\ntime.sleep(20)";
    let (status, stdout, stderr) = plain(&["--timeout", "200ms", "--quiet"], source);
    assert_eq!((status, stdout.as_slice(), stderr.as_str()), (124, b"out\n".as_slice(), ""));
    let (_, _, stderr) = plain(&["--timeout", "200ms"], source);
    assert_eq!(stderr, "nsbox: timeout: the script ran longer than 200ms (--timeout)\n");
}

#[test]
fn verbose_says_how_it_went() {
    let (status, stdout, stderr) = plain(&["-v"], "print('out')");
    assert_eq!((status, stdout.as_slice()), (0, b"out\n".as_slice()));
    assert!(stderr.starts_with("nsbox: ok: ") && stderr.contains("peak memory"), "{stderr}");
    assert!(stderr.ends_with(" MiB\n"), "what nobody can read at a glance: {stderr}");
    assert_eq!(plain(&[], "pass").2, "", "a run that ends well has nothing to say");
}

#[test]
fn interrupt_says_so() {
    let source = format!("print('begun')\n{}time.sleep(60)", crate::harness::READY);
    let mut running = Running::start(&[], &source);
    assert_eq!(running.line(), "begun\n");
    let pid = nix::unistd::Pid::from_raw(running.child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = running.finish();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "nsbox: cancelled: the run was cancelled\n");
}
