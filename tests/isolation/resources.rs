//! Memory, processes, disk, descriptors and time: spread in every way that a limit of one process would miss.

use std::path::Path;
use std::time::{Duration, Instant};

use nsbox::outcome::Verdict;
use serde_json::{Value, json};

use crate::harness::{self, Capability, inside, require, said, serial};

const LIMIT: u64 = 96 << 20;

/// Each holds over 200 MiB, and says so when it could; `{}` ends every line of them.
const HOGS: [(&str, &str); 8] = [
    ("one process", "held = bytearray(b'1') * (200 << 20)\n"),
    (
        "children",
        r"
import os, time
up = []
for _ in range(10):
    read, write = os.pipe()
    if os.fork() == 0:
        held = bytearray(b'1') * (20 << 20)
        os.write(write, b'1')
        time.sleep(60)
        os._exit(0)
    os.close(write)
    up.append(read)
assert all(os.read(read, 1) for read in up)
",
    ),
    (
        "a grandchild",
        r"
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        held = bytearray(b'1') * (200 << 20)
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]) and 1)
assert os.wait()[1] == 0
",
    ),
    (
        "a tmpfs",
        r"
import os
for i in range(4):
    with open(f'/dev/shm/nsbox-hog-{os.getpid()}-{i}', 'wb') as file:
        os.unlink(file.name)
        held = globals().setdefault('kept', [])
        held.append(os.dup(file.fileno()))
        for _ in range(50): file.write(b'1' * (1 << 20))
",
    ),
    (
        "memfds",
        r"
import errno, os
def memfd():
    try:
        return os.memfd_create('hog', 8)  # MFD_NOEXEC_SEAL: others are refused to an ordinary user's guest
    except OSError as error:
        if error.errno != errno.EINVAL: raise
        return os.memfd_create('hog')
kept = [memfd() for _ in range(4)]
for fd in kept:
    for _ in range(50): os.write(fd, b'1' * (1 << 20))
",
    ),
    (
        "shared memory of System V",
        r"
import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(0, 200 << 20, 0o1600)
address = libc.shmat(segment, None, 0)
libc.shmctl(segment, 0, None)
ctypes.memset(address, 1, 200 << 20)
",
    ),
    (
        "a shared mapping",
        "import mmap\nheld = mmap.mmap(-1, 200 << 20)\nfor page in range(0, 200 << 20, 4096): held[page] = 1\n",
    ),
    (
        "socket buffers",
        r"
import socket
total, kept = 0, []
while total < 200 << 20:
    pair = socket.socketpair()
    kept.append(pair)
    pair[0].setblocking(False)
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
    try:
        while total < 200 << 20: total += pair[0].send(b'1' * 65536)
    except BlockingIOError:
        pass
",
    ),
];

#[test]
fn memory_is_held_outside_and_is_oom_inside_however_it_is_spread() {
    if !require(Capability::Cgroup) {
        return;
    }
    for (how, hog) in HOGS {
        assert_eq!(
            harness::outside(
                &(hog.to_owned()
                    + "print('\"held\"', flush=True)\nimport os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
             for pid in open(f'/proc/self/task/{os.getpid()}/children').read().split(): os.kill(int(pid), 9)\n")
            ),
            "held",
            "{how}"
        );
        let outcome = inside(
            &format!("hog-{}", serial()),
            &format!("{hog}\nprint('held')\n"),
            &["--memory", "96m", "--disk", "512m"],
        );
        if how == "memfds" && !Path::new("/proc/sys/vm/memfd_noexec").exists() {
            // Before Linux 6.3 none can be made that is never executed, so that a guest makes none at all.
            assert_eq!((outcome.verdict, harness::refused(&outcome, "memfd_create")), (Verdict::Error, 1));
            continue;
        }
        assert_eq!(outcome.verdict, Verdict::Oom, "{how}: {outcome:#?}");
        assert_eq!(outcome.exit_status(), 137);
        let peak = outcome.usage.peak_memory_bytes.expect("a peak");
        assert!(peak <= LIMIT, "{how}: {peak} bytes were held");
        assert!(outcome.stdout.is_empty(), "{how}");
    }
}

#[test]
fn pipe_buffers_count_as_memory() {
    if !require(Capability::Cgroup) {
        return;
    }
    let source = r"
import fcntl, os
kept = []
try:
    while True:
        read, write = os.pipe()
        kept.append((read, write))
        try: fcntl.fcntl(write, 1031, 1 << 20)
        except OSError: pass
        os.set_blocking(write, False)
        try:
            while True: os.write(write, b'1' * 65536)
        except BlockingIOError: pass
except OSError as error:
    print(error.errno)
";
    let outcome = inside("pipes", source, &["--memory", "32m"]);
    assert_eq!(outcome.verdict, Verdict::Oom, "{outcome:#?}");
    assert!(outcome.usage.peak_memory_bytes.is_some_and(|peak| peak <= 32 << 20));
}

#[test]
fn memory_under_the_limit_is_left_alone() {
    let outcome = inside("under", "held = bytearray(b'1') * (64 << 20)\nresult = len(held)\n", &["--memory", "256m"]);
    assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
}

const FORKS: &str = r"
import json, os, signal
pids = []
failed = None
try:
    for _ in range(100):
        pid = os.fork()
        if pid == 0:
            signal.pause()
        pids.append(pid)
except OSError as error:
    failed = error.errno
for pid in pids: os.kill(pid, 9)
print(json.dumps([len(pids), failed]))
";

#[test]
fn forks_over_the_limit_fail() {
    assert_eq!(harness::outside(FORKS), json!([100, null]));
    let outcome = inside("forks", FORKS, &["--pids", "16"]);
    let said = said(&outcome);
    assert!(said[0].as_u64().is_some_and(|count| (8..=16).contains(&count)), "{said}");
    assert_eq!(said[1], libc::EAGAIN);
    assert!(outcome.usage.processes_peak.is_some_and(|peak| peak <= 17), "{:?}", outcome.usage);
}

#[test]
fn threads_over_the_limit_fail() {
    let source = r"
import json, threading
release, count = threading.Event(), 0
try:
    for count in range(100): threading.Thread(target=release.wait).start()
    failed = False
except RuntimeError:
    failed = True
release.set()
print(json.dumps([count, failed]))
";
    assert_eq!(harness::outside(source), json!([99, false]));
    let said = said(&inside("threads", source, &["--pids", "16"]));
    assert!(said[0].as_u64().is_some_and(|count| count < 17), "{said}");
    assert_eq!(said[1], true);
}

#[test]
fn fork_bomb_ends_with_its_main_process() {
    let source = r"
import os, time
end = time.monotonic() + 0.5
main = os.getpid()
while os.getpid() != main or time.monotonic() < end:
    try:
        os.fork()
    except OSError:
        pass
result = 'over'
";
    let marker = format!("bomb-{}", std::process::id());
    let begun = Instant::now();
    let outcome = inside(&marker, source, &["--pids", "32", "--timeout", "20s"]);
    assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
    assert!(begun.elapsed() < harness::patiently(Duration::from_secs(15)), "{:?}", begun.elapsed());
    assert_eq!(harness::processes(&marker), [] as [i32; 0]);
}

#[test]
fn disk_is_one_limit_for_all_that_is_writable() {
    let source = r"
import errno, json, os
def attempt(act):
    try:
        act()
        return 'ok'
    except OSError as error:
        return errno.errorcode[error.errno]
def fill(path):
    try:
        with open(path, 'wb') as file:
            for _ in range(9): file.write(b'1' * 200000)
    finally:
        if KEEP is None: os.unlink(path)
def sparse(path, act):
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        act(fd)
    finally:
        os.close(fd)
        os.unlink(path)
base = FOLDER
print(json.dumps({
    'sparse': attempt(lambda: sparse(base + '/nsbox-sparse', lambda fd: os.ftruncate(fd, 1 << 30))),
    'allocated': attempt(lambda: sparse(base + '/nsbox-allocated', lambda fd: os.posix_fallocate(fd, 0, 1 << 25))),
    'tmp': attempt(lambda: fill(base + '/nsbox-one')),
    'work': attempt(lambda: fill((WORK or base) + '/nsbox-two')),
    'shm': attempt(lambda: fill('/dev/shm/nsbox-three')),
}))
";
    let with = |keep: &str, folder: &str, work: &str| {
        source.replace("KEEP", keep).replace("FOLDER", folder).replace("WORK", work)
    };
    let place = harness::folder().display().to_string();
    let outside: Value = harness::outside(&with("None", &format!("{place:?}"), "None"));
    for (act, how) in outside.as_object().expect("an object") {
        assert_eq!(how, "ok", "{act}");
    }
    let inside = said(&inside("disk", &with("True", "'/tmp'", "'/work'"), &["--disk", "1m"]));
    let expected = json!({"sparse": "EFBIG", "allocated": "EFBIG", "tmp": "ENOSPC", "work": "ENOSPC", "shm": "ENOSPC"});
    assert_eq!(inside, expected);
}

#[test]
fn inodes_and_descriptors_run_out_inside() {
    let source = r"
import errno, json, os
def until_failure(act, most):
    for count in range(most):
        try:
            act(count)
        except OSError as error:
            return [count, errno.errorcode[error.errno]]
    return [most, 'ok']
kept = []
print(json.dumps({
    'inodes': until_failure(lambda i: os.mkdir(f'/tmp/{i}'), 2000),
    'descriptors': until_failure(lambda i: kept.append(os.open('/', os.O_RDONLY)), 5000),
}))
";
    let path = harness::script("inodes.py", source);
    let output = harness::command(&path, &[]).env("NSBOX_LIMITS_INODES", "1000").output().expect("nsbox starts");
    let said = said(&harness::parse(&output));
    assert_eq!(said["inodes"][1], "ENOSPC");
    assert!(said["inodes"][0].as_u64().is_some_and(|count| count < 1000), "{said}");
    assert_eq!(said["descriptors"][1], "EMFILE");
    assert!(said["descriptors"][0].as_u64().is_some_and(|count| count < 1024), "{said}");
}

#[test]
fn scripts_that_will_not_end_are_ended() {
    let scripts = [
        ("a call that holds the interpreter's lock", "sum(range(10 ** 13))\n"),
        ("a regular expression", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')\n"),
        (
            "every signal ignored",
            "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: time.sleep(1)\n",
        ),
        (
            "every signal blocked",
            "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: time.sleep(1)\n",
        ),
        ("stopped", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n"),
        (
            "children that stop their parent",
            "import os, signal, time\nif os.fork() == 0:\n    while True: os.kill(os.getppid(), signal.SIGSTOP)\nwhile True: time.sleep(1)\n",
        ),
        ("output without end", "while True: print('x' * 100000)\n"),
        (
            "refused calls without end",
            "import ctypes\nlibc = ctypes.CDLL(None)\nwhile True: libc.syscall(101, 0, 0, 0, 0)\n",
        ),
        ("an empty poll", "import select\nselect.select([], [], [])\n"),
    ];
    for (how, source) in scripts {
        let begun = Instant::now();
        let outcome =
            inside(&format!("endless-{}", serial()), &format!("print('begun')\n{source}"), &["--timeout", "400ms"]);
        assert_eq!(outcome.verdict, Verdict::Timeout, "{how}: {outcome:?}");
        assert_eq!(outcome.exit_status(), 124);
        assert!(outcome.stdout.starts_with(b"begun"), "{how}: what was printed is kept");
        assert!(outcome.usage.wall_ms >= 400.0, "{how}: {:?}", outcome.usage);
        assert!(begun.elapsed() < harness::patiently(Duration::from_secs(10)), "{how}: {:?}", begun.elapsed());
    }
}

#[test]
fn cpu_time_is_limited_over_all_processes() {
    let source = "import os\nfor _ in range(3): os.fork()\nwhile True: pass\n";
    let outcome = inside("cpu-time", source, &["--cpu-time", "500ms", "--timeout", "30s"]);
    assert_eq!(outcome.verdict, Verdict::Timeout, "{outcome:#?}");
    assert!(outcome.usage.wall_ms < 20_000.0, "{:?}", outcome.usage);
}
