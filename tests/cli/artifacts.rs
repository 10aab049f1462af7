//! What a script leaves in /output, hostile ones included.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::{Ran, run};

/// Everything below a folder, by path, without following anything.
fn all(folder: &Path) -> Vec<(PathBuf, fs::FileType)> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_path_buf()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                pending.push(entry.path());
            }
            found.push((entry.path(), kind));
        }
    }
    found
}

fn collect(folder: &Path, source: &str) -> Ran {
    run(&["--output", folder.to_str().unwrap()], source)
}

#[test]
fn artifacts_are_copied_with_their_folders() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("new/output");
    let source = r#"
import os
os.makedirs("/output/charts/2024")
open("/output/equity.csv", "w").write("day,equity\n")
open("/output/charts/2024/a.png", "wb").write(bytes(range(256)))
open("/output/empty", "w")
"#;
    let ran = collect(&output, source).expect("ok");
    assert_eq!(
        ran.json["artifacts"],
        json!([
            {"path": "charts/2024/a.png", "size": 256},
            {"path": "empty", "size": 0},
            {"path": "equity.csv", "size": 11},
        ])
    );
    assert_eq!(fs::read_to_string(output.join("equity.csv")).unwrap(), "day,equity\n");
    assert_eq!(fs::read(output.join("charts/2024/a.png")).unwrap(), (0..=255).collect::<Vec<u8>>());
    let owner = fs::metadata(output.join("empty")).unwrap();
    assert_eq!((owner.uid(), owner.mode() & 0o7777), (nix::unistd::geteuid().as_raw(), 0o644));
}

#[test]
fn artifacts_of_a_failed_run_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    collect(folder.path(), "open('/output/log', 'w').write('so far')\nraise ValueError").expect("error");
    assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap(), "so far");
}

#[test]
fn output_is_not_there_unless_asked_for() {
    run(&[], "import os\nassert not os.path.exists('/output') or not os.access('/output', os.W_OK)").expect("ok");
}

#[test]
fn hostile_leavings_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output");
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "of the host").unwrap();
    let source = format!(
        r#"
import os, socket
os.chdir("/output")
os.mkfifo("fifo")
os.symlink("{outside}/secret", "link")
os.symlink("{outside}", "folder-link")
os.symlink("/etc/passwd", "passwd")
os.symlink("link", "link-of-link")
try:
    socket.socket(socket.AF_UNIX).bind("socket")
except OSError as error:
    print("socket:", error)
open("unreadable", "w").write("x")
os.chmod("unreadable", 0)
open("suid", "w").write("x")
os.chmod("suid", 0o6777)
os.link("suid", "hard-link")
open(b"not-\xff-utf8", "w").write("x")
open("new\nline\x1b[2J", "w").write("x")
deep = "d"
for _ in range(60):
    os.mkdir(deep)
    deep += "/d"
open(os.path.dirname(deep) + "/bottom", "w").write("deep")
open("good", "w").write("good")
"#,
        outside = outside.display(),
    );
    let ran = collect(&output, &source);
    assert!(["ok", "output-limit"].contains(&ran.verdict()), "{:#}", ran.json);
    assert_eq!(fs::read_to_string(output.join("good")).unwrap(), "good");
    for (path, kind) in all(&output) {
        assert!(!kind.is_symlink() && !kind.is_fifo() && !kind.is_socket(), "{}", path.display());
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o6000, 0, "{} keeps no set-id bit", path.display());
    }
    let outside_now: Vec<_> = all(&outside).into_iter().map(|(path, _)| path).collect();
    assert_eq!(outside_now, [outside.join("secret")]);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "of the host");
    for left in ["fifo", "link", "folder-link", "passwd"] {
        assert!(ran.outcome.message.contains(left), "{left} is named in {:?}", ran.outcome.message);
    }
}

#[test]
fn thousands_of_leavings_fit_the_message_and_the_descriptors() {
    let folder = tempfile::tempdir().unwrap();
    let source = r#"
import os
for i in range(4000):
    os.mkfifo(f"/output/fifo-{i}")
for i in range(3000):
    os.mkdir(f"/output/folder-{i}")
open("/output/folder-2999/good", "w").write("good")
"#;
    let ran = collect(folder.path(), source).expect("ok");
    assert!(ran.outcome.message.len() < 16 << 10, "a message of {} bytes", ran.outcome.message.len());
    assert_eq!(ran.json["artifacts"], json!([{"path": "folder-2999/good", "size": 4}]));
}

#[test]
fn links_of_the_caller_are_not_written_through() {
    let folder = tempfile::tempdir().unwrap();
    let (output, target) = (folder.path().join("output"), folder.path().join("target"));
    fs::create_dir(&output).unwrap();
    fs::write(&target, "untouched").unwrap();
    std::os::unix::fs::symlink(&target, output.join("file")).unwrap();
    let ran = collect(&output, "open('/output/file', 'w').write('of the guest')");
    assert_ne!(ran.verdict(), "ok");
    assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
}
