//! What one warm run must never see of another, before it, after it or beside it.
//!
//! Each script that is to be held does what it tries within its own run first, where it must succeed.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nsbox::outcome::{Value, Verdict};
use nsbox::pool::Pool;

use crate::harness::{alone, children, comm, is_root, patiently, require};
use crate::{RESTORED, builder, pool, run};

/// The `result` of a run that ended well.
#[track_caller]
pub fn result(pool: &Pool, source: &str) -> Value {
    let outcome = run(pool, source);
    assert_eq!(outcome.verdict, Verdict::Ok, "{}: {}", outcome.message, String::from_utf8_lossy(&outcome.stderr));
    outcome.result.unwrap()
}

/// What every trace leaves, looked at by `LOOK`.
const LEAVE: &str = r#"
import builtins, ctypes, json, os, random, signal, socket, sys, threading, time
for folder in ("/tmp", "/work", "/dev/shm"):
    open(f"{folder}/trace", "w").write("secret")
os.environ["TRACE"] = "secret"
builtins.trace = json.trace = sys.trace = "secret"
json.loads = lambda text: "patched"
sys.modules["trace_module"] = json
sys.path.insert(0, "/tmp")
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 100)
random.seed(1)
threading.Thread(target=time.sleep, args=(100,), daemon=True, name="trace").start()
libc = ctypes.CDLL(None, use_errno=True)
shm = libc.shmget(77, 4096, 0o1600)
queue = libc.mq_open(b"/trace", os.O_CREAT | os.O_RDWR, 0o600, None)
semaphore = libc.semget(78, 1, 0o1600)
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\0trace")
abstract.listen()
ctypes.c_int.in_dll(libc, "optind").value = 77
os.umask(0o777)
os.nice(5)
if os.fork() == 0:
    os.setsid()
    time.sleep(100)
"#;

/// Whether each trace is there.
const LOOK: &str = r#"
import builtins, ctypes, json, os, signal, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
probe = socket.socket(socket.AF_UNIX)
result = {
    "files": [os.path.exists(f"{folder}/trace") for folder in ("/tmp", "/work", "/dev/shm")],
    "environment": "TRACE" in os.environ,
    "globals": [hasattr(module, "trace") for module in (builtins, json, sys)],
    "patch": json.loads('"x"') != "x",
    "modules": "trace_module" in sys.modules,
    "path": "/tmp" in sys.path,
    "handler": signal.getsignal(signal.SIGUSR1) != signal.SIG_DFL,
    "timer": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
    "threads": threading.active_count() > 1,
    "shm": libc.shmget(77, 4096, 0) >= 0,
    "queue": libc.mq_open(b"/trace", os.O_RDWR) >= 0,
    "semaphore": libc.semget(78, 1, 0) >= 0,
    "abstract": probe.connect_ex("\0trace") == 0,
    "library": ctypes.c_int.in_dll(libc, "optind").value == 77,
    "umask": os.umask(0o022) != 0o022,
    "nice": os.nice(0) != NICE,
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) != [1, os.getpid()],
}
"#;

/// [`LOOK`] by a caller of this process's niceness, which slots have too.
fn look() -> String {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let nice = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap();
    LOOK.replace("NICE", nice)
}

fn seen(value: &Value) -> Vec<(String, bool)> {
    let Value::Dict(entries) = value else { panic!("{value:?}") };
    let any = |value: &Value| match value {
        Value::List(list) => list.contains(&Value::Bool(true)),
        value => *value == Value::Bool(true),
    };
    entries.iter().map(|(name, value)| (name.clone(), any(value))).collect()
}

#[test]
fn nothing_of_an_earlier_run_is_seen() {
    if !alone("isolation::nothing_of_an_earlier_run_is_seen") {
        return;
    }
    // One slot at a time, so that what can be used again is.
    let pool = builder(&[]).slots(1).build().unwrap();
    let mut within = seen(&result(&pool, &format!("{LEAVE}\n{}", look())));
    // Landlock, where the kernel has it, lets no run have a POSIX queue at all.
    within.retain(|(name, _)| name != "queue");
    assert!(within.iter().all(|(_, seen)| *seen), "each trace must be one: {within:?}");
    for _ in 0..3 {
        let after = seen(&result(&pool, &look()));
        assert!(after.iter().all(|(_, seen)| !*seen), "{after:?}");
        result(&pool, &format!("{LEAVE}\nresult = 1"));
    }
}

#[test]
fn nothing_of_a_neighbour_is_seen_or_reached() {
    if !alone("isolation::nothing_of_a_neighbour_is_seen_or_reached") {
        return;
    }
    let pool = pool(&[]);
    let neighbour = pool.submit(format!(
        "{LEAVE}\nsecret = 'neigh' + 'bour-secret'\ntime.sleep(3)\nresult = open('/tmp/trace').read() if False else secret"
    ));
    std::thread::sleep(Duration::from_millis(500));
    let beside = seen(&result(&pool, &look()));
    assert!(beside.iter().all(|(_, seen)| !*seen), "{beside:?}");
    // Every process that can be named is its own, and no signal reaches another.
    let outcome = run(
        &pool,
        "import os\nown = os.fork()\nif own == 0:\n    import time; time.sleep(100)\n\
         try:\n    os.kill(-1, 9)\nexcept ProcessLookupError:\n    pass\n\
         for pid in range(1, 3000):\n    try:\n        pid != os.getpid() and os.kill(pid, 9)\n    except OSError:\n        pass\n\
         result = [os.waitpid(own, 0)[1], os.getppid()]",
    );
    assert_eq!(outcome.result, Some(Value::List(vec![Value::Int(9), Value::Int(0)])), "{outcome:#?}");
    let outcome = neighbour.wait();
    assert_eq!(outcome.result, Some(Value::Str("neighbour-secret".to_owned())), "{outcome:#?}");
}

/// Reads the memory of the processes in `pids` in every way; a fork of this one has its buffer at the same address.
const READ: &str = r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
own = ctypes.create_string_buffer(b"own")
into = ctypes.create_string_buffer(3)
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
def copy(pid):
    here, there = Vector(ctypes.addressof(into), 3), Vector(ctypes.addressof(own), 3)
    return libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
def memory(pid):
    try:
        with open(f"/proc/{pid}/mem", "rb") as file:
            file.seek(ctypes.addressof(own))
            return file.read(3) == b"own"
    except OSError:
        return False
def read(pids):
    return {
        "copied": [pid for pid in pids if copy(pid) == 3],
        "read": [pid for pid in pids if memory(pid)],
        "fds": [pid for pid in pids if os.path.exists(f"/proc/{pid}/fd/0")],
        "traced": [pid for pid in pids if libc.ptrace(16, pid, 0, 0) == 0],
    }
"#;

#[test]
fn memory_of_others_is_out_of_reach() {
    if !alone("isolation::memory_of_others_is_out_of_reach") {
        return;
    }
    // Outside, a neighbour of the same user can be read.
    let outside = format!(
        "{READ}\npid = os.fork()\nif pid == 0:\n    import time; time.sleep(60)\nfound = read([pid])\nos.kill(pid, 9)\n\
         print(all(found.values()))"
    );
    let output = Command::new("python3").args(["-c", &outside]).output().unwrap();
    // A child, because that is what kernel.yama.ptrace_scope leaves.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "True\n", "{output:?}");
    let pool = pool(&[]);
    let neighbour = pool.submit(format!("{READ}\nimport time; time.sleep(3)\nresult = 1"));
    std::thread::sleep(patiently(Duration::from_millis(300)));
    // Its own child, every process that it can name, and the numbers that the host has for the others.
    let host: Vec<u32> =
        children(std::process::id()).into_iter().flat_map(|pid| [vec![pid], children(pid)].concat()).collect();
    let read = format!(
        "{READ}\nchild = os.fork()\nif child == 0:\n    import time; time.sleep(60)\n\
         result = read([pid for pid in {{*range(300), *{host:?}}} - {{os.getpid(), child}}])\n\
         result['child'] = [copy(child) == 3, libc.ptrace(16, child, 0, 0) == 0]"
    );
    let outcome = run(&pool, &read);
    let Some(Value::Dict(found)) = &outcome.result else { panic!("{outcome:#?}") };
    for (name, list) in found {
        let Value::List(list) = list else { panic!("{found:?}") };
        assert!(list.iter().all(|value| *value == Value::Bool(false)), "{name}: {found:?}");
    }
    assert_eq!(neighbour.wait().verdict, Verdict::Ok);
}

/// Writes past private mappings of a memfd whose name begins so, into the memfd; how many there are, how many it wrote to.
const WRITE_BACK: &str = r#"
import os
def write_back(name):
    ranges = [line.split()[0] for line in open("/proc/self/maps") if f"/memfd:{name}" in line]
    written = 0
    for range in ranges:
        try:
            with open(f"/proc/self/map_files/{range}", "r+b", buffering=0) as file:
                written += file.write(b"x")
        except OSError:
            pass
    return [len(ranges), written]
"#;

#[test]
fn what_slots_share_of_libraries_is_not_to_be_written() {
    if !alone("isolation::what_slots_share_of_libraries_is_not_to_be_written") {
        return;
    }
    // Outside, who may look at its own mappings can write to the file behind one that is not sealed.
    if require(is_root(), "right to open files of /proc/self/map_files") {
        let outside = format!(
            "{WRITE_BACK}\nimport mmap\nfd = os.memfd_create('own')\nos.truncate(fd, 4096)\n\
             own = mmap.mmap(fd, 4096, flags=mmap.MAP_PRIVATE)\nprint(write_back('own'), own[:1])"
        );
        let output = Command::new("python3").args(["-c", &outside]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "[1, 1] b'x'\n", "{output:?}");
    }
    let Value::List(found) = result(&pool(&[]), &format!("{WRITE_BACK}\nresult = write_back('nsbox-libraries')"))
    else {
        panic!("no list");
    };
    assert!(matches!(found[..], [Value::Int(1..), Value::Int(0)]), "{found:?}");
}

#[test]
fn loopback_of_two_live_slots_is_two() {
    if !alone("isolation::loopback_of_two_live_slots_is_two") {
        return;
    }
    let pool = pool(&[]);
    // Datagrams: Landlock refuses TCP before the network could.
    let serve = "import os, socket, time\nlistener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                 listener.bind(('0.0.0.0', 5555))\ntime.sleep(2)\nlistener.setblocking(False)\n\
                 try:\n    listener.recv(9)\n    result = 'reached'\nexcept BlockingIOError:\n    result = 'alone'";
    let neighbour = pool.submit(serve);
    std::thread::sleep(Duration::from_millis(300));
    // The same port is free here, and nobody answers on it.
    let connect = "import socket\nprobe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nprobe.bind(('0.0.0.0', 5555))\n\
                   try:\n    probe.sendto(b'x', ('127.0.0.1', 5555))\n    result = False\nexcept OSError:\n    result = True";
    assert_eq!(result(&pool, connect), Value::Bool(true));
    assert_eq!(neighbour.wait().result, Some(Value::Str("alone".to_owned())));
}

#[test]
fn random_numbers_are_drawn_by_each_run_anew() {
    if !alone("isolation::random_numbers_are_drawn_by_each_run_anew") {
        return;
    }
    let draw = "import random, tempfile, os, uuid\nresult = [random.random(), os.urandom(8).hex(), \
                next(tempfile._get_candidate_names()), str(uuid.uuid4())]";
    let one = pool(&[("preload", "random,tempfile,uuid")]);
    let drawn: Vec<Value> = (0..4).map(|_| result(&one, draw)).collect();
    for (i, value) in drawn.iter().enumerate() {
        let (Value::List(this), Value::List(first)) = (value, &drawn[0]) else { panic!("{value:?}") };
        assert!(i == 0 || this.iter().zip(first).all(|(a, b)| a != b), "{drawn:?}");
    }
    let seeded = pool(&[("seed", "7")]);
    let draws: Vec<Value> = (0..3).map(|_| result(&seeded, "import random\nresult = random.random()")).collect();
    assert!(draws.iter().all(|draw| *draw == draws[0]), "{draws:?}");
    let cold = crate::harness::sandbox(&[("seed", "7")]).run("import random\nresult = random.random()");
    assert_eq!(cold.result.as_ref(), Some(&draws[0]));
}

#[test]
fn slot_holds_no_more_than_its_protocol() {
    if !alone("isolation::slot_holds_no_more_than_its_protocol") {
        return;
    }
    let pool = pool(&[]);
    let look = "import os\nfds = {}\nfor fd in range(1024):\n    try:\n        fds[fd] = os.readlink(f'/proc/self/fd/{fd}')\n    \
                except OSError:\n        pass\n\
                result = [sorted(fds), [link.split(':')[0].split('/')[-1] for link in fds.values()], os.getppid()]";
    let Value::List(found) = result(&pool, look) else { panic!() };
    assert_eq!(found[0], Value::List((0..5).map(Value::Int).collect()));
    let kinds = ["null", "pipe", "pipe", "socket", "memfd"].map(|kind| Value::Str(kind.to_owned()));
    assert_eq!(found[1], Value::List(kinds.to_vec()), "{found:?}");
    assert_eq!(found[2], Value::Int(0), "the zygote cannot be named");
    let status = "text = open('/proc/self/status').read()\n\
                  result = [text.split(key + ':')[1].split()[0] for key in \
                  ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp', 'Seccomp_filters')]";
    let none = || Value::Str("0".repeat(16));
    let one = |text: &str| Value::Str(text.to_owned());
    let expected = [none(), none(), none(), none(), none(), one("1"), one("2"), one("1")];
    assert_eq!(result(&pool, status), Value::List(expected.to_vec()));
}

/// A host with a secret in its environment and in an open file, both of which its children inherit: see
/// `secrets_of_the_host_are_in_no_zygote_and_no_slot`.
const HOST: &str = "NSBOX_TEST_HOST";

/// What `pid` has open, by number.
fn open_files(pid: u32) -> Vec<(u32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut found: Vec<_> = entries
        .map(|entry| (entry.file_name().to_str().unwrap().parse().unwrap(), entry.path()))
        .map(|(fd, path)| (fd, fs::read_link(path).map(|link| link.display().to_string()).unwrap_or_default()))
        .collect();
    found.sort();
    found
}

#[test]
fn secrets_of_the_host_are_in_no_zygote_and_no_slot() {
    if std::env::var_os(HOST).is_none() {
        if !require(is_root(), "right to look into a process that hides itself") {
            return;
        }
        let secret = tempfile::NamedTempFile::new().unwrap();
        fs::write(&secret, "secret-content").unwrap();
        let output = Command::new("sh")
            .args(["-c", "exec 9<\"$0\"; exec \"$@\""])
            .arg(secret.path())
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "isolation::secrets_of_the_host_are_in_no_zygote_and_no_slot", "--nocapture"])
            .env(HOST, "secret-of-the-environment")
            .env("NSBOX_STORE", crate::harness::store())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let look = "import os; print('secret-of' in str(os.environ), os.pread(9, 99, 0).decode())";
    let child = Command::new("python3").args(["-c", look]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&child.stdout), "True secret-content\n", "a child that is no guest has both");

    let pool = pool(&[]);
    let init = children(std::process::id()).into_iter().find(|pid| comm(*pid) == "nsbox-init").unwrap();
    let zygote = children(init).into_iter().find(|pid| comm(*pid) != "nsbox-init").unwrap();
    let forks = children(zygote);
    assert!(!forks.is_empty());
    // Where slots are used again, a restorer stands over each: it holds its sockets and files of the guest's in /proc.
    let restorers = if RESTORED { forks.clone() } else { Vec::new() };
    for (fd, link) in restorers.iter().flat_map(|pid| open_files(*pid)) {
        let known = ["socket:", "anon_inode:[signalfd]", "/proc/"];
        assert!(known.iter().any(|known| link.starts_with(known)), "{fd} -> {link}");
    }
    let slots = if RESTORED { forks.into_iter().flat_map(children).collect() } else { forks };
    for pid in slots.iter().chain(&restorers).copied().chain([init, zygote]) {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(!environ.windows(6).any(|window| window == b"secret"), "{pid}: {}", String::from_utf8_lossy(&environ));
    }
    // Null devices, the socket to the supervisor (whose copies keep the numbers that programs are not to have), the
    // signalfd, its own pid namespace, and for each slot the socket on which its end is told.
    let known = ["/dev/null", "socket:", "anon_inode:[signalfd]", "pid:", "anon_inode:[pidfd]"];
    for (fd, link) in open_files(zygote) {
        assert!(known.iter().any(|known| link.starts_with(known)), "{fd} -> {link}");
    }
    let sockets: std::collections::BTreeSet<_> =
        open_files(zygote).into_iter().map(|(_, link)| link).filter(|link| link.starts_with("socket:")).collect();
    assert_eq!(sockets.len(), 1 + slots.len(), "{:?}", open_files(zygote));
    for slot in slots {
        // One that is used once has its script's file open until it writes that.
        let mut files = open_files(slot);
        files.retain(|(_, link)| RESTORED || link != "/work/script.py");
        let numbers: Vec<u32> = files.iter().map(|(fd, _)| *fd).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4], "{files:?}");
        // Its line is its own, not the zygote's.
        let line = &files[3].1;
        assert!(line.starts_with("socket:") && !sockets.contains(line), "{line} {sockets:?}");
    }
    // Within: neither is to be found, and no way leads to the zygote's socket.
    let search = "import os, socket\nline = socket.socket(fileno=3)\n\
                  result = ['secret' in str(os.environ), os.path.exists('/proc/self/fd/9'), \
                  os.path.exists('/proc/1/fd/3'), bool(line.getpeername()), bool(line.getsockname())]";
    assert_eq!(result(&pool, search), Value::List(vec![Value::Bool(false); 5]));
}
