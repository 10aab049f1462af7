//! `nsbox image` and `nsbox run --image NAME`, as they are typed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::archives::{Layout, Tar, gzip, plain};
use crate::import::Place;
use crate::machine::{skip, text};
use crate::rootfs::{self_contained, small_root};
use crate::slow::patiently;

pub fn command(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsbox"));
    command.args(args).env("NSBOX_STORE", place.store.root()).env("NSBOX_EVENT_LOG", "none").stdin(Stdio::null());
    command
}

fn nsbox(place: &Place, args: &[&str]) -> Output {
    command(place, args).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&text(output)).unwrap()
}

#[test]
fn image_is_imported_listed_inspected_verified_and_removed() {
    let place = Place::new();
    let status = "Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\n\n";
    let tar = Tar::new().file("var/lib/dpkg/status", status).entry(tar::EntryType::Fifo, b"pipe", b"", b"").done();
    let source = place.write("a.tar.gz", &gzip(&tar));
    let source = source.to_str().unwrap();
    let imported = nsbox(&place, &["image", "import", source, "--name", "base"]);
    let digest = text(&imported).trim().to_owned();
    assert!(digest.starts_with("sha256:"), "{digest}");
    let said = String::from_utf8(imported.stderr).unwrap();
    assert!(said.contains("note: FIFOs skipped: 1 (pipe)"), "{said}");
    let again = json(&nsbox(&place, &["image", "import", source, "--name", "other", "--json"]));
    assert_eq!((&again["digest"], &again["was_there"]), (&Value::from(digest.as_str()), &Value::Bool(true)));

    let listed = text(&nsbox(&place, &["image", "ls"]));
    for word in ["NAME", "base, other", &digest["sha256:".len()..][..12], source] {
        assert!(listed.contains(word), "{listed}");
    }
    let listed = json(&nsbox(&place, &["image", "list", "--json"]));
    assert_eq!(listed[0]["digest"], *digest);
    assert_eq!(listed[0]["layers"][0]["tar_size"], tar.len());
    let shown = text(&nsbox(&place, &["image", "inspect", "base"]));
    for word in [digest.as_str(), "libc6", "2.36-9", "dpkg", "note: FIFOs skipped", "rootfs", "KiB"] {
        assert!(shown.contains(word), "{shown}");
    }
    let shown = json(&nsbox(&place, &["image", "inspect", "--json", &digest[..20]]));
    assert_eq!((&shown["packages"][0]["name"], &shown["totals"]["files"]), (&Value::from("libc6"), &Value::from(1)));

    let verified = nsbox(&place, &["image", "verify"]);
    assert!(text(&verified).contains("as it was imported"));
    let file = PathBuf::from(shown["rootfs"].as_str().unwrap()).join("var/lib/dpkg/status");
    fs::write(&file, status.replace('6', "7")).unwrap();
    let differs = nsbox(&place, &["image", "verify", "base"]);
    assert_eq!(differs.status.code(), Some(1));
    let told = String::from_utf8(differs.stdout).unwrap();
    assert!(told.contains("./var/lib/dpkg/status: expected"), "{told}");

    assert!(text(&nsbox(&place, &["image", "rm", "base"])).contains("the image has others"));
    assert_eq!(json(&nsbox(&place, &["image", "rm", "--json", "other"]))[0]["removed"], *digest);
    let gone = nsbox(&place, &["image", "inspect", "base"]);
    assert_eq!(gone.status.code(), Some(125));
    assert!(String::from_utf8(gone.stderr).unwrap().contains("there is no image \"base\""));
}

#[test]
fn refused_import_exits_with_125_and_says_why_once() {
    let place = Place::new();
    let source = place.write("bad.tar", &Tar::new().file("../x", "x").done());
    let output = nsbox(&place, &["image", "import", source.to_str().unwrap()]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(125), b"".as_slice()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("bad.tar") && said.contains("\"../x\"") && said.contains("'..'"), "{said}");
    assert_eq!(said.matches("bad.tar").count(), 1, "{said}");
    let large = nsbox(&place, &["image", "import", source.to_str().unwrap(), "--max-size", "1"]);
    assert!(String::from_utf8(large.stderr).unwrap().contains("--max-size"));
}

#[test]
fn name_whose_image_is_gone_is_built_anew() {
    let place = Place::new();
    let source = place.write("a.tar", &Tar::new().file("a", "a").done());
    text(&nsbox(&place, &["image", "import", source.to_str().unwrap(), "--name", "sandbox"]));
    fs::remove_dir_all(place.store.root().join("images")).unwrap();
    let mut command = command(&place, &["run", "--image", "sandbox", "-"]);
    let output = command.env("NSBOX_OFFLINE", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(125) && said.contains("failed to build offline"), "{said}");
    // Nor is it named once more without being brought.
    text(&nsbox(&place, &["image", "import", source.to_str().unwrap(), "--name", "sandbox"]));
    assert_eq!(text(&nsbox(&place, &["image", "verify", "sandbox"])), "sandbox: as it was imported\n");
    place.store.set_name("other", &nsbox::image::Digest::of(b"another")).unwrap_err();
}

/// An image with a Python in two layers, of which the second changes what the first has.
fn python_image(place: &Place) -> Option<()> {
    let Some(python) = self_contained() else {
        skip("no Python here can be moved");
        return None;
    };
    let root = small_root(&python);
    fs::write(root.path().join("etc/layer"), "1").unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", root.path()).unwrap();
    let base = builder.into_inner().unwrap();
    let folder = place.path("layout");
    fs::create_dir(&folder).unwrap();
    Layout(&folder).image(&plain(&[base, Tar::new().file("etc/layer", "2").done()]));
    place.import(&folder).unwrap();
    Some(())
}

fn run(place: &Place, source: &str) -> Child {
    let mut child = command(place, &["run", "--image", "image", "--allow-degraded", "--no-check", "--json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    child
}

#[test]
fn imported_image_is_run_by_many_at_once_and_changed_by_none() {
    let place = Place::new();
    let Some(()) = python_image(&place) else { return };
    let source = "
import os, sys, time
refused = []
for path in ['/etc/layer', '/opt/py/bin/python3', '/new', '/etc/new']:
    try:
        open(path, 'w')
    except OSError as error:
        refused.append(error.errno)
open('/tmp/own', 'w').write('x')
time.sleep(0.3)
result = [open('/etc/layer').read(), sys.prefix, refused, os.listdir('/tmp'), os.path.exists('/usr/bin/env')]";
    let runs: Vec<Child> = (0..4).map(|_| run(&place, source)).collect();
    let digest = place.store.find("image").unwrap().digest.to_string();
    for child in runs {
        let outcome: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
        let message = outcome["message"].as_str().unwrap_or_default();
        if outcome["verdict"] == "unavailable" {
            return skip(&format!("nsbox cannot run here: {message}"));
        }
        let expected = serde_json::json!(["2", "/opt/py", [30, 30, 30, 30], ["own"], false]);
        assert_eq!(outcome["result"], expected, "{outcome:#}");
        assert_eq!(outcome["image"], *digest, "{outcome:#}");
    }
    assert_eq!(place.store.verify("image", &()).unwrap(), Vec::<String>::new());
}

#[test]
fn image_in_use_is_not_removed() {
    let place = Place::new();
    let Some(()) = python_image(&place) else { return };
    let mut child = command(&place, &["run", "--image", "image", "--allow-degraded", "--no-check", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"import time\nprint('up')\ntime.sleep(60)").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if line != "up\n" {
        child.wait().unwrap();
        return skip("nsbox cannot run here");
    }
    let refused = nsbox(&place, &["image", "rm", "image"]);
    assert_eq!(refused.status.code(), Some(125));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("in use by a run"));
    assert_eq!(place.read("etc/layer"), "2");
    child.kill().unwrap();
    child.wait().unwrap();
    // What is left of the run goes by itself.
    let deadline = Instant::now() + patiently(Duration::from_secs(30));
    while let Err(error) = place.store.remove("image") {
        assert!(Instant::now() < deadline, "{error}");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(place.store.list().unwrap().is_empty());
}
