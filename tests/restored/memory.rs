//! What a run leaves in memory, and what the next one in the same slot finds: nothing.
//!
//! Each test first shows that what it leaves is found within the run that left it.

use std::collections::BTreeSet;

use nsbox::outcome::{Ended, Outcome, Value, Verdict};
use nsbox::pool::Pool;

use crate::harness::{alone, is_root, patiently, until};
use crate::{builder, earlier, run};

/// A pool of one slot, which every run of a test gets as long as it is used again.
fn single(keys: &[(&str, &str)]) -> Pool {
    builder(keys).slots(1).build().unwrap()
}

/// The outcome of a run that ended well.
#[track_caller]
fn good(pool: &Pool, source: &str) -> Outcome {
    let outcome = run(pool, source);
    let said = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!((outcome.verdict, outcome.ended), (Verdict::Ok, Ended::Answered), "{}: {said}", outcome.message);
    outcome
}

#[track_caller]
fn result(pool: &Pool, source: &str) -> Value {
    good(pool, source).result.unwrap()
}

/// Looks for a mark in all memory that it can read of itself, but for where this very search keeps it: which is nowhere, for the
/// mark is made of two halves only where it is written.
const SEARCH: &str = r#"
def found(first, second):
    import ctypes
    count = 0
    with open("/proc/self/maps") as maps:
        for line in maps:
            place, access = line.split()[:2]
            if access[0] != "r" or "[v" in line:
                continue
            begin, end = (int(part, 16) for part in place.split("-"))
            while begin < end:
                data = ctypes.string_at(begin, min(end - begin, 1 << 16))
                at = data.find(first)
                while at >= 0:
                    count += data[at + len(first) : at + len(first) + len(second)] == second
                    at = data.find(first, at + 1)
                begin += 1 << 16
    return count
"#;

#[test]
fn no_byte_of_an_earlier_run_is_left() {
    if !alone("memory::no_byte_of_an_earlier_run_is_left") {
        return;
    }
    let pool = single(&[("limits.timeout", "60s"), ("preload", "ctypes,json,random")]);
    // On the heap, in the interpreter's arenas, in a large block, on the stack, in what the libraries hold.
    let leave = "
import json, random
mark = bytes([77, 65, 82, 75]) + b'-of-an-earlier-run'
kept = [mark * n for n in (1, 10, 100, 10_000, 100_000)] + [bytearray(mark) for _ in range(1000)]
json.kept = random.kept = kept
def deep(n, local=mark):
    return deep(n - 1, local + b'.') if n else len(local)
deep(200)
";
    let search = format!("{SEARCH}\nresult = found(b'MARK', b'-of-an-earlier-run')\n");
    let Value::Int(within) = result(&pool, &format!("{leave}{search}")) else { panic!("no number") };
    assert!(within > 100_000, "a run finds what it left itself: {within}");
    for round in 1..6 {
        let restored = pool.counts().restored;
        let left = good(&pool, leave);
        until("the slot is put back", || pool.counts().restored > restored);
        let outcome = good(&pool, &search);
        assert_eq!(earlier(&outcome), earlier(&left) + 1, "round {round}: it is the same slot: {:?}", pool.counts());
        assert_eq!(outcome.result, Some(Value::Int(0)));
    }
}

#[test]
fn registers_are_put_back() {
    if !alone("memory::registers_are_put_back") {
        return;
    }
    let pool = builder(&[("preload", "ctypes,ctypes.util")]).slots(1).build().unwrap();
    let look = "
import ctypes
libm = ctypes.CDLL('libm.so.6')
def rounding():
    return libm.fegetround()
";
    // FE_TOWARDZERO of x86_64: both the control word of the x87 and MXCSR.
    let set = format!("{look}libm.fesetround(0xc00)\nresult = rounding()\n");
    let get = format!("{look}result = rounding()\n");
    assert_eq!(result(&pool, &get), Value::Int(0));
    assert_eq!(result(&pool, &set), Value::Int(0xc00), "a run sees what it set itself");
    for _ in 0..3 {
        let restored = pool.counts().restored;
        let left = good(&pool, &set);
        until("the slot is put back", || pool.counts().restored > restored);
        let after = good(&pool, &get);
        assert_eq!(earlier(&after), earlier(&left) + 1, "it is the same slot: {:?}", pool.counts());
        assert_eq!(after.result, Some(Value::Int(0)));
    }
}

#[test]
fn interpreter_is_put_back() {
    if !alone("memory::interpreter_is_put_back") {
        return;
    }
    let pool = single(&[]);
    let leave = r#"
import builtins, gc, json, random, sys, types
builtins.trace = 1
json.loads = json.dumps = None
sys.modules["trace"] = types.ModuleType("trace")
sys.path.append("/trace")
sys.setrecursionlimit(77)
gc.disable()
random.seed(1)
class Finder:
    def find_spec(self, *_): raise SystemExit(3)
sys.meta_path.insert(0, Finder())
sys.settrace(lambda *_: None)
sys.stdout.write = None
sys.displayhook = sys.excepthook = lambda *_: None
sys.modules["posix"].read = sys.modules["posix"].write = None
result = 1
"#;
    let look = r#"
import builtins, gc, json, random, sys
result = [hasattr(builtins, "trace"), json.loads("[2]"), "trace" in sys.modules, "/trace" in sys.path, sys.getrecursionlimit(), gc.isenabled(),
          [type(finder).__name__ for finder in sys.meta_path if type(finder).__name__ == "Finder"], sys.gettrace() is None,
          sys.excepthook is sys.__excepthook__]
print("heard")
"#;
    let untouched = result(&pool, look);
    for _ in 0..5 {
        // It has taken its own voice: the answer never comes, and its slot ends with it.
        let outcome = run(&pool, leave);
        assert_ne!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
        let gentle = leave.replace("sys.modules[\"posix\"].read = sys.modules[\"posix\"].write = None\n", "");
        good(&pool, &gentle);
        let after = good(&pool, look);
        assert_eq!((after.result, after.stdout.as_slice()), (Some(untouched.clone()), b"heard\n".as_slice()));
    }
    assert!(pool.counts().restored >= 10, "{:?}", pool.counts());
}

#[test]
fn numbers_are_drawn_anew() {
    if !alone("memory::numbers_are_drawn_anew") {
        return;
    }
    let pool = builder(&[("preload", "random,secrets,tempfile,uuid")]).slots(1).build().unwrap();
    let source = "import os, random, secrets, tempfile, uuid\n\
                  result = [random.random(), secrets.token_hex(), str(uuid.uuid4()), os.urandom(8).hex(), \
                  next(tempfile._get_candidate_names()), random.SystemRandom().random(), random.Random().random()]";
    let draws: Vec<Value> = (0..20).map(|_| result(&pool, source)).collect();
    assert!(pool.counts().restored >= 18, "{:?}", pool.counts());
    for i in 0..7 {
        let different: BTreeSet<String> = draws
            .iter()
            .map(|draw| match draw {
                Value::List(items) => format!("{:?}", items[i]),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(different.len(), 20, "number {i}: {draws:?}");
    }
    // And with a seed the same, again and again.
    let pool = builder(&[("preload", "random"), ("seed", "7")]).slots(1).build().unwrap();
    let source = "import random\nresult = [random.random(), random.random()]";
    let first = result(&pool, source);
    assert!((0..5).all(|_| result(&pool, source) == first));
}

#[test]
fn usage_is_each_runs_own() {
    if !alone("memory::usage_is_each_runs_own") {
        return;
    }
    let pool = single(&[("limits.cpus", "1")]);
    // Within what the slot may keep, so that it is used again.
    let large = "data = bytearray(6 << 20)\nresult = len(data)";
    let slow = "import time\nuntil = time.process_time() + 0.2\nwhile time.process_time() < until: pass";
    good(&pool, "result = 1");
    let peak = |outcome: &Outcome| outcome.usage.peak_memory_bytes.unwrap();
    let cpu = |outcome: &Outcome| outcome.usage.cpu_user_ms.unwrap() + outcome.usage.cpu_system_ms.unwrap();
    let small = good(&pool, "result = 2");
    let grown = good(&pool, large);
    assert!(peak(&grown) > peak(&small) + (5 << 20), "{} {}", peak(&small), peak(&grown));
    let busy = good(&pool, slow);
    // The run took so long that another slot was made beside it; the one that was put back is the first to be taken again.
    let idle: Vec<_> = (0..4).map(|_| good(&pool, "result = 3")).collect();
    assert!(idle.iter().any(|idle| earlier(idle) > earlier(&busy)), "{:?}", pool.counts());
    assert!(cpu(&busy) > 150.0 && idle.iter().all(|idle| cpu(idle) < 100.0), "{}", cpu(&busy));
    // Too much of it, and the next run has another slot.
    good(&pool, "data = bytearray(200 << 20)\ndata[::4096] = b'x' * len(data[::4096])");
    let fresh = good(&pool, "result = 4");
    assert!(peak(&fresh) < 64 << 20, "{}", peak(&fresh));
}

#[test]
fn memory_of_a_deep_stack_ends_the_slot() {
    if !alone("memory::memory_of_a_deep_stack_ends_the_slot") {
        return;
    }
    let pool = single(&[]);
    assert_eq!(earlier(&good(&pool, "result = 1")), 0);
    assert_eq!(earlier(&good(&pool, "result = 1")), 1);
    // The C stack grows by page faults, without a system call: repr of nested lists recurses in C.
    let size = "int(next(line for line in open('/proc/self/status') if line.startswith('VmStk')).split()[1])";
    let deep = format!(
        "import sys\nsys.setrecursionlimit(100_000)\nnested = []\nfor _ in range(8000):\n    nested = [nested]\n\
         before = {size}\nrepr(nested)\nresult = {size} - before"
    );
    let Value::Int(grown) = result(&pool, &deep) else { panic!("no number") };
    assert!(grown > 256, "{grown} KiB more of stack");
    assert_eq!(earlier(&good(&pool, "result = 1")), 0, "a slot whose stack has grown is not used again");
    good(&pool, "result = 2");
}

#[test]
fn restorer_is_neither_seen_nor_reached() {
    if !alone("memory::restorer_is_neither_seen_nor_reached") {
        return;
    }
    let pool = single(&[]);
    let source = "import os\nseen = sorted(int(name) for name in os.listdir('/proc') if name.isdigit())\n\
                  parent = os.getppid()\nreached = []\nfor pid in range(1, 400):\n    if pid != os.getpid():\n        try:\n            \
                  os.kill(pid, 0)\n            reached.append(pid)\n        except OSError:\n            pass\n\
                  result = [seen == [1, os.getpid()], parent, reached, open('/proc/self/comm').read()]";
    let Value::List(found) = result(&pool, source) else { panic!("no list") };
    assert_eq!(found[..2], [Value::Bool(true), Value::Int(0)]);
    // Its init, where Landlock does not know of signals.
    assert!([vec![], vec![Value::Int(1)]].map(Value::List).contains(&found[2]), "{found:?}");
    assert_ne!(found[3], Value::Str("nsbox-restorer\n".to_owned()));
}

#[test]
fn run_whose_restorer_dies_is_lost_and_the_pool_goes_on() {
    if !alone("memory::run_whose_restorer_dies_is_lost_and_the_pool_goes_on") {
        return;
    }
    if !crate::harness::require(is_root(), "right to name the restorer of a guest") {
        return;
    }
    let pool = single(&[]);
    let restorer = || {
        let mut all = vec![std::process::id()];
        let mut at = 0;
        while at < all.len() {
            all.extend(crate::harness::children(all[at]));
            at += 1;
        }
        all.into_iter().find(|pid| crate::harness::comm(*pid) == "nsbox-restorer")
    };
    let outcome = std::thread::scope(|scope| {
        let run = scope.spawn(|| run(&pool, "import time\nprint('begun', flush=True)\ntime.sleep(60)"));
        std::thread::sleep(patiently(std::time::Duration::from_millis(500)));
        let pid = nix::unistd::Pid::from_raw(restorer().unwrap().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        run.join().unwrap()
    });
    assert_eq!(outcome.verdict, Verdict::Lost, "{outcome:#?}");
    assert!(outcome.message.contains("restorer"), "{}", outcome.message);
    good(&pool, "result = 1");
}
