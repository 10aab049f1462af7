//! What a script is given: arguments, variables, standard input, inputs, a seed, an interpreter, an image.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Ran, feed, judge, nsbox, outcome_of, require, run};

fn run_file(path: &Path, flags: &[&str]) -> Ran {
    judge(&nsbox(["run", "--json", "--no-check"]).args(flags).arg(path).output().unwrap())
}

#[test]
fn script_of_a_file_bears_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("my strategy.py");
    fs::write(&script, "result = [__name__, __file__]\nraise SystemExit(__file__)").unwrap();
    let ran = run_file(&script, &[]).expect("error");
    assert!(String::from_utf8_lossy(&ran.outcome.stderr).contains("my strategy.py"));
}

#[test]
fn args_are_the_scripts_own() {
    let ran =
        run(&["--arg", "--fast", "--arg", "two words", "--arg", "é"], "import sys\nresult = sys.argv[1:]").expect("ok");
    assert_eq!(ran.json["result"], json!(["--fast", "two words", "é"]));
}

#[test]
fn env_is_what_was_given_and_not_the_callers() {
    let mut command =
        nsbox(["run", "--json", "--no-check", "--env", "TZ=Asia/Taipei", "--env", "EMPTY=", "--env", "EQ=a=b", "-"]);
    command.env("SECRET_TOKEN", "of the caller").env("PYTHONPATH", "/of/the/caller");
    let ran = outcome_of(command, b"import os\nresult = dict(os.environ)").expect("ok");
    let seen = &ran.json["result"];
    assert_eq!((&seen["TZ"], &seen["EMPTY"], &seen["EQ"]), (&json!("Asia/Taipei"), &json!(""), &json!("a=b")));
    assert!(seen.get("SECRET_TOKEN").is_none() && seen["PYTHONPATH"] != "/of/the/caller", "{seen:#}");
    assert_eq!(seen["OMP_NUM_THREADS"], "1");
}

#[test]
fn stdin_is_empty_unless_it_is_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script.py");
    fs::write(&script, "import sys\nresult = sys.stdin.read()").unwrap();
    let with = |flags: &[&str]| {
        let mut command = nsbox(["run", "--json", "--no-check"]);
        command.args(flags).arg(&script);
        judge(&feed(command, b"for the script\n")).expect("ok").json["result"].clone()
    };
    assert_eq!(with(&[]), "");
    assert_eq!(with(&["--stdin"]), "for the script\n");
}

#[test]
fn stdin_that_nobody_ends_does_not_hold_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script.py");
    fs::write(&script, "print('well')").unwrap();
    let mut command = nsbox(["run", "--no-check", "--stdin"]);
    let mut child = command.arg(&script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    assert!(child.wait().unwrap().success());
    drop(stdin);
}

fn inputs() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("prices.csv"), "close\n1\n2\n").unwrap();
    fs::create_dir_all(folder.path().join("data/deep")).unwrap();
    fs::write(folder.path().join("data/deep/a.txt"), "deep").unwrap();
    folder
}

#[test]
fn input_file_and_folder_are_there_read_only() {
    let folder = inputs();
    let source = r#"
import errno, os
def attempt(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
result = {
    "names": sorted(os.listdir("/input")),
    "file": open("/input/prices").read(),
    "folder": open("/input/data/deep/a.txt").read(),
    "write": attempt(lambda: open("/input/prices", "a")),
    "create": attempt(lambda: open("/input/data/new", "w")),
    "remove": attempt(lambda: os.remove("/input/data/deep/a.txt")),
    "replace": attempt(lambda: os.rename("/input/prices", "/input/other")),
    "chmod": attempt(lambda: os.chmod("/input/prices", 0o777)),
}
"#;
    let prices = format!("prices={}", folder.path().join("prices.csv").display());
    let data = format!("data={}", folder.path().join("data").display());
    let ran = run(&["--input", &prices, "--input", &data], source).expect("ok");
    let mut result = ran.json["result"].clone();
    assert_eq!((&result["file"], &result["folder"]), (&json!("close\n1\n2\n"), &json!("deep")));
    assert_eq!(result["names"], json!(["data", "prices"]));
    for act in ["write", "create", "remove", "replace", "chmod"] {
        let end = result[act].take();
        assert!(["EROFS", "EACCES", "EPERM"].contains(&end.as_str().unwrap()), "{act}: {end}");
    }
    assert_eq!(fs::read_to_string(folder.path().join("prices.csv")).unwrap(), "close\n1\n2\n");
}

#[test]
fn input_that_only_the_caller_may_read_is_readable() {
    let folder = inputs();
    for name in ["prices.csv", "data/deep/a.txt"] {
        fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    for name in ["data/deep", "data", "."] {
        fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o700)).unwrap();
    }
    let prices = format!("prices={}", folder.path().join("prices.csv").display());
    let data = format!("data={}", folder.path().join("data").display());
    let source = "result = [open('/input/prices').read(), open('/input/data/deep/a.txt').read()]";
    let ran = run(&["--input", &prices, "--input", &data], source).expect("ok");
    assert_eq!(ran.json["result"], json!(["close\n1\n2\n", "deep"]));
}

#[test]
fn input_by_a_link_is_what_it_leads_to() {
    let folder = inputs();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("prices.csv", &link).unwrap();
    let ran =
        run(&["--input", &format!("prices={}", link.display())], "result = open('/input/prices').read()").expect("ok");
    assert_eq!(ran.json["result"], "close\n1\n2\n");
}

#[test]
fn input_names_and_paths_are_validated() {
    let folder = inputs();
    let file = folder.path().join("prices.csv").display().to_string();
    let long = "x".repeat(65);
    for name in ["", ".", "..", "a/b", "../x", "a b", "a\nb", "/etc", long.as_str()] {
        run(&["--input", &format!("{name}={file}")], "print('ran')").expect("unavailable").says("cannot name an input");
    }
    run(&["--input", "a=/nowhere/at/all"], "pass").expect("unavailable").says("a=/nowhere/at/all");
    run(&["--input", "a=/dev/zero"], "pass").expect("unavailable").says("regular file or a folder");
    let ran = run(&["--input", &format!("ok-1.csv_={file}")], "result = open('/input/ok-1.csv_').read(5)").expect("ok");
    assert_eq!(ran.json["result"], "close");
}

#[test]
fn input_given_twice_is_refused() {
    let folder = inputs();
    let file = format!("a={}", folder.path().join("prices.csv").display());
    let ran = run(&["--input", &file, "--input", &file], "print('ran')").expect("unavailable");
    ran.says("two inputs are named \"a\"");
}

#[test]
fn seed_makes_runs_the_same() {
    let source = "import random\nresult = [random.random(), hash('text')]";
    let with = |flags: &[&str]| run(flags, source).expect("ok").json["result"].clone();
    let seeded = with(&["--seed", "7", "--fresh"]);
    assert_eq!(with(&["--seed", "7", "--fresh"]), seeded);
    assert_ne!(with(&["--seed", "8", "--fresh"]), seeded);
    let (one, other) = (with(&[]), with(&[]));
    assert_ne!(one[0], other[0], "without a seed it is random");
    assert_ne!(one[1], other[1]);
    assert_ne!(seeded[0], one[0]);
}

#[test]
fn seed_reaches_numpy() {
    let venv = std::env::var_os("NSBOX_TEST_VENV");
    let venv = venv.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv"), Into::into);
    let python = venv.join("bin/python");
    if !require(python.exists(), "Python with numpy in target/test-venv (tests/run makes it)") {
        return;
    }
    let with = |seed: &str| {
        let flags = ["--python", python.to_str().unwrap(), "--seed", seed];
        run(&flags, "import numpy\nresult = numpy.random.rand(3)").expect("ok").json["result"].clone()
    };
    assert_eq!(with("7"), with("7"));
    assert_ne!(with("7"), with("8"));
}

#[test]
fn python_may_be_named() {
    if !require(Path::new("/usr/bin/python3").exists(), "/usr/bin/python3") {
        return;
    }
    let version = Command::new("/usr/bin/python3").args(["-c", "import sys; print(sys.version)"]).output().unwrap();
    let ran = run(&["--python", "/usr/bin/python3"], "import sys\nprint(sys.version)").expect("ok");
    assert_eq!(ran.stdout().as_bytes(), version.stdout);
}

#[test]
fn image_of_an_unpacked_root_is_all_that_is_there() {
    if !require(Path::new("/usr/bin/python3").exists(), "/usr/bin/python3") {
        return;
    }
    // The system's own interpreter with its library and what it links to: a root file system of a few links.
    let root = tempfile::tempdir().unwrap();
    let listing = Command::new("/usr/bin/python3")
        .args(["-c", "import os, sys\nprint(os.path.realpath(sys.executable), os.path.dirname(os.__file__))"])
        .output()
        .unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    let (executable, library) = listing.trim().split_once(' ').unwrap();
    let linked = Command::new("ldd").arg(executable).output().unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    let files = linked.split_whitespace().filter(|word| word.starts_with('/'));
    let mut copied = vec![executable.to_owned(), library.to_owned()];
    copied.extend(files.map(str::to_owned));
    for path in copied {
        let target = root.path().join(path.strip_prefix('/').unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        // Of the library just the modules: other packages' folders are large.
        let status = Command::new("cp").args(["-rL", &path]).arg(&target).stderr(Stdio::null()).status().unwrap();
        assert!(status.success() || Path::new(&path).is_dir(), "{path}");
    }
    std::os::unix::fs::symlink(Path::new(executable).file_name().unwrap(), root.path().join("usr/bin/python3")).ok();
    fs::write(root.path().join("only-here"), "yes").unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let source = "import os\nresult = [open('/only-here').read(), os.path.exists('/usr/bin/env')]";
    let ran = run(&["--image", root.path().to_str().unwrap()], source).expect("ok");
    assert_eq!(ran.json["result"], json!(["yes", false]));
}

#[test]
fn stdin_cannot_be_script_and_input() {
    let output = feed(nsbox(["run", "--stdin", "-"]), b"pass");
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--stdin"));
}
