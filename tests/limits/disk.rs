//! Disk: a root that nobody can write, a private tmpfs with bytes and inodes, open files and file sizes.

use crate::harness::{run, run_with};

#[test]
fn disk_of_the_image_is_read_only() {
    let source = r#"
import errno, os
places = ["/", "/usr", "/usr/bin", "/etc", "/etc/passwd", "/input", "/dev", "/run", os.path.dirname(os.__file__)]
metrics = {}
for place in places:
    target = place if os.path.isfile(place) else place + "/new"
    try:
        open(target, "a")
    except OSError as error:
        metrics[place] = errno.errorcode[error.errno]
    else:
        metrics[place] = "written"
"#;
    let ran = run(&[], source).expect("ok");
    for (place, end) in ran.json["metrics"].as_object().unwrap() {
        assert!(["EROFS", "EACCES", "EPERM", "ENOENT"].contains(&end.as_str().unwrap()), "{place}: {end}");
    }
    assert_eq!(ran.json["metrics"]["/usr/bin"], "EROFS");
}

/// Writes files of 64 KiB until there is no room; the three places share one.
const FILL: &str = r#"
import errno, os
written = 0
metrics = {"end": "none"}
try:
    for i in range(COUNT):
        folder = ["/tmp", "/work", "/dev/shm"][i % 3]
        with open(f"{folder}/{i}", "wb", buffering=0) as file:
            written += file.write(bytes(65536))
except OSError as error:
    metrics["end"] = errno.errorcode[error.errno]
metrics["written"] = written
"#;

#[test]
fn tmpfs_is_writable_under_its_limit() {
    let ran = run(&["--disk", "1m"], &FILL.replace("COUNT", "14")).expect("ok");
    assert_eq!(ran.json["metrics"], serde_json::json!({"end": "none", "written": 14 * 65536}));
}

#[test]
fn tmpfs_over_its_limit_has_no_space_left() {
    let ran = run(&["--disk", "1m"], &FILL.replace("COUNT", "40")).expect("ok");
    assert_eq!(ran.json["metrics"]["end"], "ENOSPC");
    let written = ran.json["metrics"]["written"].as_u64().unwrap();
    assert!((14 * 65536..=1 << 20).contains(&written), "{written} in all three places together");
}

#[test]
fn inodes_have_a_limit() {
    let source = r#"
import errno
metrics = {"end": "none"}
try:
    for i in range(COUNT):
        open(f"/tmp/{i}", "w").close()
        metrics["made"] = i + 1
except OSError as error:
    metrics["end"] = errno.errorcode[error.errno]
"#;
    let made = |count: &str| {
        let ran = run_with(&[("NSBOX_LIMITS_INODES", "32")], &[], &source.replace("COUNT", count)).expect("ok");
        (ran.json["metrics"]["end"].as_str().unwrap().to_owned(), ran.json["metrics"]["made"].as_u64().unwrap())
    };
    let (end, most) = made("100");
    assert_eq!(end, "ENOSPC");
    assert!((16..32).contains(&most), "{most}: the folders and the script itself take a few");
    assert_eq!(made(&most.to_string()), ("none".to_owned(), most));
}

#[test]
fn open_files_have_a_limit() {
    let source = r#"
import errno, os
metrics = {"highest": 0}
try:
    while True:
        metrics["highest"] = os.open("/dev/null", os.O_RDONLY)
except OSError as error:
    metrics["end"] = errno.errorcode[error.errno]
    for fd in range(10, metrics["highest"] + 1):
        os.close(fd)
"#;
    for limit in [32_u64, 100] {
        let ran = run_with(&[("NSBOX_LIMITS_OPEN_FILES", &limit.to_string())], &[], source).expect("ok");
        assert_eq!(ran.json["metrics"], serde_json::json!({"highest": limit - 1, "end": "EMFILE"}));
    }
}

#[test]
fn file_size_has_a_limit() {
    let source = r#"
import errno, os
file = os.open("/tmp/file", os.O_WRONLY | os.O_CREAT)
metrics = {"written": os.write(file, bytes(SIZE))}
try:
    os.write(file, b"x")
    metrics["end"] = "none"
except OSError as error:
    metrics["end"] = errno.errorcode[error.errno]
"#;
    let written = |size: u64| {
        let limit = [("NSBOX_LIMITS_FILE_SIZE", "64k")];
        run_with(&limit, &[], &source.replace("SIZE", &size.to_string())).expect("ok").json["metrics"].clone()
    };
    assert_eq!(written(65536), serde_json::json!({"written": 65536, "end": "EFBIG"}));
    assert_eq!(written(65535), serde_json::json!({"written": 65535, "end": "none"}));
}

#[test]
fn file_size_is_the_disk_limit_where_nothing_else_is_said() {
    let source = r#"
import errno, os
file = os.open("/tmp/file", os.O_WRONLY | os.O_CREAT)
os.ftruncate(file, 1 << 20)
try:
    os.ftruncate(file, (1 << 20) + 1)
    signal = "none"
except OSError as error:
    signal = errno.errorcode[error.errno]
"#;
    let ran = run(&["--disk", "1m"], source).expect("ok");
    assert_eq!(ran.json["signals"], "EFBIG");
}
