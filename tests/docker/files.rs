//! What goes in and out: inputs, standard input, arguments, artifacts.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};

use nsbox::outcome::{Artifact, Value, Verdict};
use nsbox::sandbox::{Script, Stdin, Watch};

use crate::harness::store;
use crate::{beside_engine, docker, engine, expect, says, text};

/// What the backend keeps in the store for this process.
fn kept() -> usize {
    let own = format!("-{}-", std::process::id());
    let entries = fs::read_dir(store().join("docker")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().contains(&own)).count()
}

#[test]
fn inputs_are_read_only_and_private_ones_are_readable() {
    let Some(docker) = beside_engine("files::inputs_are_read_only_and_private_ones_are_readable", &[]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("open.csv"), "a,b\n").unwrap();
    fs::write(path("private.csv"), "c,d\n").unwrap();
    fs::set_permissions(path("private.csv"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir_all(path("tree/below")).unwrap();
    fs::write(path("tree/below/file"), "deep").unwrap();
    fs::set_permissions(path("tree/below"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("below/file", path("tree/link")).unwrap();
    let source = r"
result = [open('/input/open').read(), open('/input/private').read(), open('/input/tree/link').read(), inputs]
for place in ('/input/open', '/input/private', '/input/tree/below/file', '/input/tree/new', '/input/new'):
    try: open(place, 'w')
    except OSError as error: print(error.strerror)
";
    let script = Script::from(source).input("open", path("open.csv")).input("private", path("private.csv"));
    let outcome = docker.run(script.input("tree", path("tree")), Watch::default());
    expect(&outcome, Verdict::Ok);
    let Some(Value::List(found)) = &outcome.result else { panic!("{outcome:#?}") };
    assert_eq!(found[..3], ["a,b\n", "c,d\n", "deep"].map(|text| Value::Str(text.to_owned())));
    assert_eq!(text(&outcome.stdout).lines().count(), 5, "{outcome:#?}");
    assert_eq!(fs::read_to_string(path("open.csv")).unwrap(), "a,b\n");
    assert_eq!(kept(), 0, "the copies are gone");
}

#[test]
fn input_that_cannot_be_is_refused_before_anything_runs() {
    let Some(docker) = beside_engine("files::input_that_cannot_be_is_refused_before_anything_runs", &[]) else {
        return;
    };
    for (name, path, said) in [
        ("data", "/nowhere/at/all", "No such file"),
        ("../x", "/etc/passwd", "cannot name an input"),
        ("null", "/dev/null", "regular file or a folder"),
    ] {
        let outcome = docker.run(Script::from("pass").input(name, path), Watch::default());
        assert_eq!(outcome.verdict, Verdict::Unavailable);
        says(&outcome, said);
    }
}

#[test]
fn artifacts_come_out_whole_and_what_is_none_is_left() {
    let Some(docker) = beside_engine("files::artifacts_come_out_whole_and_what_is_none_is_left", &[]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let source = r"
import os
os.makedirs('/output/a/b')
open('/output/a/b/big', 'wb').write(bytes(range(256)) * 4096)
open('/output/empty', 'w').close()
open('/output/hidden', 'w').write('x'); os.chmod('/output/hidden', 0)
os.symlink('/etc/passwd', '/output/link')
os.mkfifo('/output/pipe')
os.chmod('/output/a', 0)
";
    let outcome = docker.run(Script::from(source).artifacts(folder.path().join("out")), Watch::default());
    expect(&outcome, Verdict::Ok);
    let artifact = |path: &str, size| Artifact { path: path.to_owned(), size };
    assert_eq!(outcome.artifacts, [artifact("a/b/big", 1 << 20), artifact("empty", 0), artifact("hidden", 1)]);
    let big = fs::read(folder.path().join("out/a/b/big")).unwrap();
    assert!(big == (0..=255).collect::<Vec<u8>>().repeat(4096));
    says(&outcome, "artifact link left: neither a file nor a folder");
    says(&outcome, "artifact pipe left: neither a file nor a folder");
    assert!(!folder.path().join("out/link").exists());
    assert_eq!(kept(), 0, "the copies are gone");
}

#[test]
fn artifacts_over_their_limit_are_output_limit() {
    let keys = [("limits.artifacts", "1m"), ("limits.disk", "64m")];
    let Some(docker) = beside_engine("files::artifacts_over_their_limit_are_output_limit", &keys) else { return };
    let folder = tempfile::tempdir().unwrap();
    // Its size is more than the folder holds: it has holes.
    let source = "open('/output/a', 'wb').write(bytes(1000))\nos = __import__('os')\nf = os.open('/output/b', 65)\nos.ftruncate(f, 2 << 20)";
    let outcome = docker.run(Script::from(source).artifacts(folder.path().join("out")), Watch::default());
    expect(&outcome, Verdict::OutputLimit);
    says(&outcome, "its 2097152 bytes are over limits.artifacts");
    assert_eq!(outcome.artifacts.len(), 1);
}

#[test]
fn artifacts_of_a_run_over_its_time_are_there() {
    let keys = [("limits.timeout", "1s")];
    let Some(docker) = beside_engine("files::artifacts_of_a_run_over_its_time_are_there", &keys) else { return };
    let folder = tempfile::tempdir().unwrap();
    let source = "open('/output/early', 'w').write('x')\nwhile True: pass";
    let outcome = docker.run(Script::from(source).artifacts(folder.path().join("out")), Watch::default());
    expect(&outcome, Verdict::Timeout);
    assert_eq!(fs::read_to_string(folder.path().join("out/early")).unwrap(), "x", "{outcome:#?}");
}

#[test]
fn standard_input_is_the_callers_stream_or_empty() {
    let Some(engine) = engine() else { return };
    let docker = docker(&engine, &[("limits.timeout", "30s")]);
    let source = "import sys\nresult = sys.stdin.buffer.read()";
    let outcome = docker.run(source, Watch::default());
    expect(&outcome, Verdict::Ok);
    assert_eq!(outcome.result, Some(Value::Bytes(Vec::new())));
    let stream = std::io::Cursor::new(vec![7; 300_000]);
    let outcome = docker.run(Script::from(source).stdin(Stdin::Stream(Box::new(stream))), Watch::default());
    expect(&outcome, Verdict::Ok);
    assert_eq!(outcome.result, Some(Value::Bytes(vec![7; 300_000])));
    // A stream that never ends does not hold up a script that does not read it.
    let endless = Stdin::Stream(Box::new(std::io::repeat(1).take(u64::MAX)));
    expect(&docker.run(Script::from("pass").stdin(endless), Watch::default()), Verdict::Ok);
}

#[test]
fn arguments_name_and_main_are_the_scripts() {
    let Some(engine) = engine() else { return };
    let docker = docker(&engine, &[]);
    let source = "import sys, os\nresult = [__name__, __file__, sys.argv, open(__file__).read(20)]";
    let script = Script::from(source).name("x/strategy.py").arg("--fast").arg("ü = 1");
    let outcome = docker.run(script, Watch::default());
    expect(&outcome, Verdict::Ok);
    let text = |text: &str| Value::Str(text.to_owned());
    let argv = Value::List(vec![text("/work/strategy.py"), text("--fast"), text("ü = 1")]);
    let expected = vec![text("__main__"), text("/work/strategy.py"), argv, text("import sys, os\nresul")];
    assert_eq!(outcome.result, Some(Value::List(expected)));
}
