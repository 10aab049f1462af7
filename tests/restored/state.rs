//! What a run does to more than memory ends its slot: the next run has another, and finds nothing of it.

use nsbox::outcome::{Value, Verdict};
use nsbox::pool::{Counts, Pool};

use crate::harness::{alone, until};
use crate::{builder, earlier, run};

/// Acts that a slot does not survive, and that a script may do.
const ACTS: &[(&str, &str)] = &[
    ("a file", "open('/tmp/trace', 'w').close()"),
    ("a file that is replaced", "import os\nos.close(os.open('/work/trace', os.O_RDWR | os.O_CREAT))"),
    ("a folder", "import os\nos.mkdir('/dev/shm/trace')"),
    ("the working directory", "import os\nos.chdir('/tmp')"),
    ("the umask", "import os\nos.umask(0)"),
    ("an open file", "import os\nos.open('/etc/passwd', os.O_RDONLY)"),
    ("a closed stdin", "import os\nos.close(0)"),
    ("another stdout", "import os\nos.dup2(2, 1)"),
    ("a copy of a descriptor", "import os\nos.dup(3)"),
    ("a flag of a descriptor", "import os\nos.set_inheritable(3, True)"),
    ("a signal handler", "import signal\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)"),
    ("a blocked signal", "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])"),
    ("a timer", "import signal\nsignal.setitimer(signal.ITIMER_REAL, 100)"),
    ("a thread", "import threading\nthread = threading.Thread(target=int)\nthread.start()\nthread.join()"),
    ("a child", "import os\nif os.fork() == 0:\n    os._exit(0)\nos.wait()"),
    ("a socket", "import socket\nsocket.socketpair()"),
    ("a pipe", "import os\nos.pipe()"),
    ("a memfd", "import os\ntry:\n    os.memfd_create('trace')\nexcept PermissionError:\n    pass"),
    ("a mapping", "import mmap\nkept = mmap.mmap(-1, 1 << 20)"),
    ("a nice value", "import os\nos.nice(1)"),
    ("an affinity", "import os\nos.sched_setaffinity(0, os.sched_getaffinity(0))"),
    ("a limit", "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))"),
    ("a name", "import ctypes\nctypes.CDLL(None).prctl(15, b'trace', 0, 0, 0)"),
    ("a group of processes", "import os\nos.setpgid(0, 0) if os.getpgid(0) != os.getpid() else os.umask(0o22)"),
    ("a shared segment", "import ctypes\nctypes.CDLL(None).shmget(0, 4096, 0o1600)"),
    ("the memfd of the result", "import os\nos.pwrite(4, b'trace', 0)"),
    ("the offset of that memfd", "import os\nos.lseek(4, 7, os.SEEK_SET)"),
    ("a large block", "kept = bytearray(48 << 20)"),
];

/// What a slot survives.
const HARMLESS: &[(&str, &str)] = &[
    ("arithmetic", "total = sum(i * i for i in range(100_000))"),
    ("output", "import sys\nprint('x' * 5000)\nprint('y', file=sys.stderr)"),
    ("a file that is read", "with open('/etc/passwd') as file:\n    text = file.read()"),
    ("a folder that is listed", "import os\nfound = os.listdir('/'), os.stat('/tmp'), os.path.exists('/no')"),
    ("chance and time", "import os, time\nos.urandom(8)\ntime.time()\ntime.sleep(0.001)"),
    ("itself", "import os\nos.getpid(), os.getuid(), os.uname(), os.sched_getaffinity(0), os.getloadavg"),
    ("objects that come and go", "for _ in range(20):\n    kept = [str(i) for i in range(20_000)]\n    del kept"),
    ("an exception", "try:\n    1 / 0\nexcept ZeroDivisionError:\n    pass"),
    ("a result", "result = {'a': [1, 2.5, None, 'text']}\nmetrics = {'b': 1}"),
];

fn single() -> Pool {
    builder(&[("preload", "json,random,signal,threading,socket,resource,mmap,ctypes")]).slots(1).build().unwrap()
}

/// Has the pool's slot be one that has served before.
fn used(pool: &Pool) {
    let restored = pool.counts().restored;
    run(pool, "result = 0");
    until("the slot is put back", || pool.counts().restored > restored && pool.ready() == 1);
}

/// Shows that another slot was made in place of the last one, which was not put back.
#[track_caller]
fn gone(pool: &Pool, before: Counts, what: &str) {
    until(&format!("another slot is there after {what}"), || pool.ready() == 1);
    let next = run(pool, "result = 1");
    assert_eq!((next.verdict, earlier(&next)), (Verdict::Ok, 0), "{what}");
    let after = pool.counts();
    assert!(after.slots == before.slots + 1 && after.restored <= before.restored + 1, "{what}: {before:?} {after:?}");
}

#[test]
fn slot_ends_with_what_leaves_more_than_memory() {
    if !alone("state::slot_ends_with_what_leaves_more_than_memory") {
        return;
    }
    let pool = single();
    for (what, act) in ACTS {
        // The slot is one that is used again, as this shows; and then it is not.
        used(&pool);
        let before = pool.counts();
        let outcome = run(&pool, act);
        assert_eq!(outcome.verdict, Verdict::Ok, "{what}: {outcome:#?}");
        assert!(earlier(&outcome) > 0, "{what}: the slot had been used");
        gone(&pool, before, what);
    }
}

#[test]
fn slot_survives_what_leaves_memory_alone() {
    if !alone("state::slot_survives_what_leaves_memory_alone") {
        return;
    }
    let pool = single();
    for (what, act) in HARMLESS {
        for _ in 0..2 {
            let restored = pool.counts().restored;
            let outcome = run(&pool, act);
            assert_eq!(outcome.verdict, Verdict::Ok, "{what}: {outcome:#?}");
            until(&format!("the slot is put back after {what}"), || pool.counts().restored > restored);
        }
    }
}

#[test]
fn slot_ends_with_a_run_that_does_not_end_well() {
    if !alone("state::slot_ends_with_a_run_that_does_not_end_well") {
        return;
    }
    let pool = builder(&[("limits.timeout", "1s"), ("limits.memory", "32m")]).slots(1).build().unwrap();
    let ends = [
        ("raise ValueError", Verdict::Error),
        ("import sys\nsys.exit(3)", Verdict::Error),
        ("import os\nos.abort()", Verdict::Signal),
        ("while True: pass", Verdict::Timeout),
        ("data = b'x' * (200 << 20)", Verdict::Oom),
        ("import ctypes\nctypes.CDLL(None).syscall(165, 0, 0, 0, 0, 0)", Verdict::Ok),
    ];
    for (source, verdict) in ends {
        used(&pool);
        let before = pool.counts();
        let outcome = run(&pool, source);
        // mount(2) is refused or kills, by the profile.
        let is_mount = source.contains("165") && outcome.verdict == Verdict::Violation;
        assert!(is_mount || outcome.verdict == verdict, "{source}: {outcome:#?}");
        gone(&pool, before, source);
    }
}

/// Finds the nonce of the request, which lies in the runner's frames: an answer can be forged with it, and the script go on.
const NONCE: &str = "
import sys, os
frame, nonce = sys._getframe(), None
while frame:
    nonce = frame.f_locals.get('nonce', nonce)
    frame = frame.f_back
";

#[test]
fn word_after_the_answer_is_nobodys() {
    if !alone("state::word_after_the_answer_is_nobodys") {
        return;
    }
    let pool = single();
    let forge = "
os.write(3, nonce + b'i')
os.write(3, b'more')
print('late', flush=True)
while True:
    pass
";
    for _ in 0..3 {
        used(&pool);
        let forged = run(&pool, &format!("{NONCE}{forge}"));
        assert_eq!((forged.verdict, forged.result.clone()), (Verdict::Ok, None), "it harms itself alone: {forged:#?}");
        let next = run(&pool, "result = 1");
        assert_eq!((next.verdict, next.result.clone()), (Verdict::Ok, Some(Value::Int(1))), "{next:#?}");
        assert!(next.stdout.is_empty(), "{next:#?}");
    }
}

#[test]
fn forged_answer_without_another_word_is_put_back() {
    if !alone("state::forged_answer_without_another_word_is_put_back") {
        return;
    }
    let pool = single();
    let forge = "
kept = [b'MARK'] * 1000
os.write(3, nonce + b'i')
while True:
    kept.append(len(kept))
    kept = kept[-1000:]
";
    for _ in 0..5 {
        let forged = run(&pool, &format!("{NONCE}{forge}"));
        assert_eq!(forged.verdict, Verdict::Ok, "{forged:#?}");
        let next = run(&pool, "result = 'kept' in globals()");
        assert_eq!((next.verdict, next.result.clone()), (Verdict::Ok, Some(Value::Bool(false))), "{next:#?}");
    }
    assert!(pool.counts().restored >= 5, "it is stopped wherever it is: {:?}", pool.counts());
}

#[test]
fn slot_ends_after_a_thousand_runs() {
    if !alone("state::slot_ends_after_a_thousand_runs") {
        return;
    }
    let pool = single();
    let most = (0..1050).map(|_| earlier(&run(&pool, "result = 1"))).max().unwrap();
    assert!((990..1000).contains(&most), "{most}");
    assert!(pool.counts().slots >= 2, "{:?}", pool.counts());
}

#[test]
fn limit_of_cpu_time_is_refused() {
    let refused = builder(&[("limits.cpu_time", "1s")]).build().unwrap_err();
    assert_eq!(refused.code(), "pool-slots");
    assert!(refused.to_string().contains("limits.cpu_time"), "{refused}");
}
