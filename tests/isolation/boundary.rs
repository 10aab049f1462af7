//! Where the wall is: what a script may do inside, what the boundary refuses, and how that is reported.

use nsbox::outcome::{Outcome, Verdict};
use serde_json::json;

use crate::harness::{self, inside, parse, refused, said, script};

/// Runs with the check on.
fn checked(name: &str, source: &str) -> Outcome {
    let path = script(&format!("{name}.py"), source);
    let json = harness::command(&path, &[]);
    let mut command = std::process::Command::new(json.get_program());
    command.args(json.get_args().filter(|arg| *arg != "--no-check"));
    for (variable, value) in json.get_envs() {
        command.env(variable, value.unwrap_or_default());
    }
    parse(&command.output().expect("nsbox starts"))
}

#[test]
fn ordinary_work_is_allowed_and_is_no_violation() {
    let source = r"
import json, os, subprocess, sys, tempfile, threading, time
assert os.getpid() == 2 and os.getppid() == 1
with open('/tmp/file', 'w') as file: file.write('text')
os.rename('/tmp/file', '/work/../tmp/other')
assert open('/tmp/other').read() == 'text'
with tempfile.TemporaryDirectory() as folder: os.mkfifo(folder + '/fifo')
assert open(os.__file__).read()
assert open('/etc/passwd').read()
assert subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout == '42\n'
pid = os.fork()
if pid == 0: os._exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
thread = threading.Thread(target=time.sleep, args=(0.01,)); thread.start(); thread.join()
import socket
a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'
import multiprocessing
with multiprocessing.Pool(2) as pool: assert pool.map(abs, [-1, 2]) == [1, 2]
result = 'done'
";
    let outcome = inside("ordinary", source, &[]);
    assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
    assert_eq!(outcome.violations, []);
    assert!(!outcome.degraded || !harness::is_root(), "{:#?}", outcome.enforced);
}

#[test]
fn check_comes_before_seccomp_and_seccomp_backs_it_up() {
    let source = "import os\nos.setns(os.open('/proc/self/ns/uts', os.O_RDONLY), 0)\n";
    let source = if cfg!(target_arch = "x86_64") {
        source.replace("os.setns(", "(lambda f, k: __import__('ctypes').CDLL(None).setns(f, k))(")
    } else {
        source.to_owned()
    };
    let first = checked("checked", &source);
    assert_eq!(first.verdict, Verdict::Rejected, "{first:#?}");
    assert_eq!(first.exit_status(), 126);
    assert!(first.violations.is_empty(), "nothing ran");
    let second = inside("backed-up", &source, &[]);
    assert_eq!(second.verdict, Verdict::Ok, "{second:#?}");
    assert_eq!(refused(&second, "setns"), 1, "{:?}", second.violations);
}

#[test]
fn violations_are_counted_by_name() {
    let source = r"
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
found = []
for number in (101, 101, 101, 272, 298):
    found.append([libc.syscall(number, 0, 0, 0, 0, 0), ctypes.get_errno()])
print(json.dumps(found))
";
    let outcome = inside("counted", source, &[]);
    assert_eq!(outcome.verdict, Verdict::Ok);
    assert_eq!(said(&outcome), json!([[-1, 1], [-1, 1], [-1, 1], [-1, 1], [-1, 1]]));
    assert_eq!(
        (refused(&outcome, "ptrace"), refused(&outcome, "unshare"), refused(&outcome, "perf_event_open")),
        (3, 1, 1)
    );
    assert_eq!(outcome.violations.len(), 3);
}

#[test]
fn foreign_processes_cannot_be_signalled() {
    let mut victim = std::process::Command::new("/bin/sleep").arg("60").spawn().expect("a victim");
    let source = format!(
        "import errno, json, os\nfound = []\nfor pid in ({}, {}, os.getppid()):\n    try:\n        os.kill(pid, 0)\n        found.append('ok')\n    \
         except OSError as error: found.append(errno.errorcode[error.errno])\nprint(json.dumps(found))\n",
        victim.id(),
        std::process::id()
    );
    assert_eq!(harness::outside(&source), json!(["ok", "ok", "ok"]));
    let outcome = inside("kill", &source.replace("os.getppid()", "99999"), &[]);
    assert_eq!(said(&outcome), json!(["ESRCH", "ESRCH", "ESRCH"]));
    victim.kill().expect("the victim is alive");
    victim.wait().expect("the victim ends");
}

#[test]
fn time_cannot_be_set() {
    let source = "import json, time\ntry:\n    time.clock_settime(time.CLOCK_REALTIME, 1)\n    print(1)\nexcept PermissionError as error: print(error.errno)\n";
    let outcome = inside("time", source, &[]);
    assert_eq!(said(&outcome), libc::EPERM);
    assert_eq!(refused(&outcome, "clock_settime"), 1);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    assert!(now.as_secs() > 1_000_000_000);
}
