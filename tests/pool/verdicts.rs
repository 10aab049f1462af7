//! How a warm run ends, and by what that is known.

use std::fs;
use std::io::Cursor;
use std::time::{Duration, Instant};

use nsbox::outcome::{Ended, Outcome, Value, Verdict};
use nsbox::pool::{Drained, Pool};
use nsbox::sandbox::{Cancel, Script, Stdin, Watch};

use crate::harness::{alone, patiently, until};
use crate::{RESTORED, builder, pool, run};

/// Fails unless a run ended so, and shows all of it then.
#[track_caller]
fn expect(outcome: &Outcome, verdict: Verdict, ended: Ended) {
    assert_eq!((outcome.verdict, outcome.ended), (verdict, ended), "{outcome:#?}");
}

#[test]
fn good_run_is_answered() {
    if !alone("verdicts::good_run_is_answered") {
        return;
    }
    let pool = pool(&[]);
    for i in 0..5 {
        let outcome = run(&pool, &format!("print('hello')\nresult = {i} + 1"));
        expect(&outcome, Verdict::Ok, Ended::Answered);
        assert_eq!(outcome.result, Some(Value::Int(i + 1)));
        assert_eq!(outcome.stdout, b"hello\n");
        assert_eq!(outcome.exit_code, Some(0));
        assert!(!outcome.degraded, "{:#?}", outcome.enforced);
        assert!(outcome.usage.peak_memory_bytes.is_some() && outcome.usage.processes_peak == Some(1), "{outcome:#?}");
    }
    // One slot for each run, and none twice; or the same ones again.
    let counts = pool.counts();
    assert!(if RESTORED { counts.restored >= 3 } else { counts.slots >= 5 && counts.restored == 0 }, "{counts:?}");
}

#[test]
fn script_is_like_one_of_a_cold_run() {
    if !alone("verdicts::script_is_like_one_of_a_cold_run") {
        return;
    }
    let source = r#"
import os, sys
result = {
    "name": __name__, "file": __file__, "argv": sys.argv, "cwd": os.getcwd(), "ids": [os.getuid(), os.getgid()],
    "text": RESTORED or open(__file__).read().startswith("\nimport os"),
    "main": sys.modules["__main__"].__dict__ is globals(), "loader": __loader__.get_filename(),
    "names": sorted(globals()), "path": sys.path, "stdin": sys.stdin.read(), "environment": sorted(os.environ),
    "descriptors": len(os.listdir("/proc/self/fd")) <= 6, "tmp": os.listdir("/tmp"),
    "work": RESTORED or os.listdir("/work"),
    "children": os.waitstatus_to_exitcode(os.system("exit 3")), "host": os.uname().nodename,
    "signals": open("/proc/self/status").read().split("SigBlk:")[1].split()[0],
}
"#;
    // A slot that is used again has no file of the script.
    let source = source.replace("RESTORED", if RESTORED { "True" } else { "False" });
    let script = || Script::from(source.as_str()).name("strategy.py").arg("one").arg("");
    let pool = pool(&[]);
    let warm = pool.run(script(), Watch::default());
    expect(&warm, Verdict::Ok, Ended::Answered);
    let cold = crate::harness::sandbox(&[]).run(script());
    assert_eq!(warm.result, cold.result);
}

/// What a script leaves to its end: a logger that flushes, a handler, a thread that outlasts it.
const ENDINGS: [(&str, &str); 4] = [
    (
        "import logging, logging.handlers, sys\nout = logging.StreamHandler(sys.stdout)\n\
         logging.getLogger().addHandler(logging.handlers.MemoryHandler(100, 100, out))\nlogging.error('kept')",
        "kept\n",
    ),
    ("import atexit\natexit.register(print, 'at exit')", "at exit\n"),
    (
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()\nprint('early')",
        "early\nlate\n",
    ),
    (
        "import atexit, concurrent.futures\ndef end():\n    try:\n        concurrent.futures.ThreadPoolExecutor().submit(print)\n\
         \x20   except RuntimeError as error:\n        print('refused')\natexit.register(end)",
        "refused\n",
    ),
];

#[test]
fn what_is_left_to_the_end_is_done() {
    if !alone("verdicts::what_is_left_to_the_end_is_done") {
        return;
    }
    let cold = crate::harness::sandbox(&[]);
    for preload in ["json", "concurrent.futures,concurrent.futures.thread,logging,logging.handlers,threading"] {
        let pool = pool(&[("preload", preload)]);
        for (source, said) in ENDINGS {
            let outcome = run(&pool, source);
            expect(&outcome, Verdict::Ok, Ended::Answered);
            assert_eq!(String::from_utf8_lossy(&outcome.stdout), said, "{preload}: {source}");
            assert_eq!(outcome.stdout, cold.run(source).stdout, "{source}");
        }
    }
}

#[test]
fn exception_is_an_error_with_its_traceback() {
    if !alone("verdicts::exception_is_an_error_with_its_traceback") {
        return;
    }
    let pool = pool(&[]);
    let outcome = run(&pool, "def f():\n    raise ValueError('why')\nf()\n");
    expect(&outcome, Verdict::Error, Ended::Exited);
    assert_eq!(outcome.exit_code, Some(1));
    assert!(outcome.message.contains("ValueError: why"), "{outcome:#?}");
    let stderr = String::from_utf8(outcome.stderr).unwrap();
    assert!(stderr.contains("line 2, in f") && stderr.contains("raise ValueError('why')"), "{stderr}");
    assert!(!stderr.contains("zygote") && !stderr.contains("runner"), "{stderr}");
    for (source, status) in [("import sys; sys.exit(42)", 42), ("import os; os._exit(7)", 7)] {
        let outcome = run(&pool, source);
        expect(&outcome, Verdict::Error, Ended::Exited);
        assert_eq!(outcome.exit_code, Some(status));
    }
    // A good status without an answer is known by the process's end.
    expect(&run(&pool, "import os; os._exit(0)"), Verdict::Ok, Ended::Exited);
}

#[test]
fn limits_are_told_apart() {
    if !alone("verdicts::limits_are_told_apart") {
        return;
    }
    let pool =
        pool(&[("limits.timeout", "4s"), ("limits.cpus", "2"), ("limits.memory", "96m"), ("limits.output", "1k")]);
    let begun = Instant::now();
    let outcome = run(&pool, "print('before')\nwhile True: pass");
    expect(&outcome, Verdict::Timeout, Ended::Killed);
    assert_eq!(outcome.stdout, b"before\n");
    assert!(outcome.usage.wall_ms >= 4000.0 && begun.elapsed() < patiently(Duration::from_secs(15)), "{outcome:#?}");
    expect(&run(&pool, "x = bytearray(200 << 20)"), Verdict::Oom, Ended::Killed);
    // A child's end by the limit is the run's, whatever the script says of its own.
    let outcome = run(&pool, "import os\nif os.fork() == 0:\n    x = bytearray(200 << 20)\nos.wait()\nresult = 1");
    expect(&outcome, Verdict::Oom, outcome.ended);
    let outcome = run(&pool, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)");
    expect(&outcome, Verdict::Signal, Ended::Killed);
    assert_eq!(outcome.signal, Some(9));
    expect(&run(&pool, "import ctypes; ctypes.string_at(0)"), Verdict::Signal, Ended::Killed);
    let outcome = run(&pool, "import ctypes; ctypes.CDLL(None).syscall(321, 0, 0, 0)");
    expect(&outcome, Verdict::Violation, Ended::Killed);
    assert_eq!(outcome.violations[0].syscall, "bpf");
    let outcome = run(&pool, "print('x' * 5000)");
    expect(&outcome, Verdict::Ok, Ended::Answered);
    assert!(outcome.stdout_truncated && outcome.stdout.len() == 1024, "{outcome:#?}");
}

#[test]
fn results_of_every_size_come_back() {
    if !alone("verdicts::results_of_every_size_come_back") {
        return;
    }
    let pool = pool(&[("limits.result", "1m")]);
    for size in [0_usize, 1, 65_000, 65_536, 70_000, 900_000] {
        let outcome = run(&pool, &format!("result = 'x' * {size}"));
        expect(&outcome, Verdict::Ok, Ended::Answered);
        assert_eq!(outcome.result, Some(Value::Str("x".repeat(size))));
    }
    let outcome = run(&pool, "result = 'x' * 2_000_000");
    expect(&outcome, Verdict::OutputLimit, Ended::Answered);
    assert!(outcome.message.contains("limits.result"), "{}", outcome.message);
    // A source that takes many messages.
    let outcome = run(&pool, &format!("text = '{}'\nresult = len(text)", "y".repeat(700_000)));
    assert_eq!(outcome.result, Some(Value::Int(700_000)));
}

#[test]
fn inputs_artifacts_and_stdin_get_a_slot_of_their_own() {
    if !alone("verdicts::inputs_artifacts_and_stdin_get_a_slot_of_their_own") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data.csv"), folder.path().join("out"));
    fs::write(&data, "a,b\n1,2\n").unwrap();
    let pool = pool(&[]);
    let script = Script::from(
        "import sys\nresult = [open('/input/prices').read(), inputs, sys.stdin.read()]\n\
         open('/output/made', 'w').write('made')\n\
         try:\n    open('/input/prices', 'w')\nexcept OSError as error:\n    metrics = error.errno",
    )
    .input("prices", &data)
    .artifacts(&out)
    .stdin(Stdin::Stream(Box::new(Cursor::new("fed"))));
    let outcome = pool.run(script, Watch::default());
    expect(&outcome, Verdict::Ok, Ended::Exited);
    let prices = Value::Dict(vec![("prices".to_owned(), Value::Str("/input/prices".to_owned()))]);
    let read = [Value::Str("a,b\n1,2\n".to_owned()), prices, Value::Str("fed".to_owned())];
    assert_eq!(outcome.result, Some(Value::List(read.to_vec())));
    assert_eq!(outcome.metrics, Some(Value::Int(libc_erofs())));
    assert_eq!(fs::read_to_string(out.join("made")).unwrap(), "made");
    assert_eq!(pool.counts().forked, 1);
    // The next run sees nothing of it.
    let outcome = run(&pool, "import os\nresult = [os.path.exists('/input/prices'), os.path.exists('/output/made')]");
    assert_eq!(outcome.result, Some(Value::List(vec![Value::Bool(false), Value::Bool(false)])));
}

#[test]
fn inputs_that_many_runs_have_are_in_slots_made_ahead() {
    if !alone("verdicts::inputs_that_many_runs_have_are_in_slots_made_ahead") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let paths = ["one", "two"].map(|name| folder.path().join(name));
    paths.iter().for_each(|path| fs::write(path, path.file_name().unwrap().as_encoded_bytes()).unwrap());
    let pool = pool(&[]);
    let read = |path: &std::path::Path| {
        let script = Script::from("result = open('/input/data').read()").input("data", path);
        pool.run(script, Watch::default())
    };
    let expect_text = |outcome: &Outcome, text: &str| {
        expect(outcome, Verdict::Ok, Ended::Answered);
        assert_eq!(outcome.result, Some(Value::Str(text.to_owned())), "{outcome:#?}");
    };
    let ready = || until("slots are ready", || pool.ready() == 2);
    for _ in 0..2 {
        expect_text(&read(&paths[0]), "one");
    }
    assert_eq!(pool.counts().forked, 2);
    for _ in 0..6 {
        ready();
        expect_text(&read(&paths[0]), "one");
    }
    assert_eq!(pool.counts().forked, 2, "the rest was ready");
    // One that has others is given those, and one without any sees none.
    expect_text(&read(&paths[1]), "two");
    let outcome = run(&pool, "import os\nresult = str(os.path.exists('/input/data'))");
    expect_text(&outcome, "False");
    // Another file at the same path is another input.
    for text in ["three", "four"] {
        read(&paths[0]);
        ready();
        let next = folder.path().join("next");
        fs::write(&next, text).unwrap();
        fs::rename(&next, &paths[0]).unwrap();
        for _ in 0..3 {
            ready();
            expect_text(&read(&paths[0]), text);
        }
    }
    // One that is gone is named at once, and nothing else suffers.
    ready();
    fs::remove_file(&paths[0]).unwrap();
    let begun = Instant::now();
    for _ in 0..3 {
        let outcome = read(&paths[0]);
        assert_eq!(outcome.verdict, Verdict::Unavailable, "{outcome:#?}");
        assert!(outcome.message.contains("failed to open the input data"), "{}", outcome.message);
    }
    assert!(begun.elapsed() < patiently(Duration::from_secs(10)));
    for _ in 0..3 {
        expect_text(&run(&pool, "result = 'none'"), "none");
    }
}

fn libc_erofs() -> i128 {
    i128::from(nix::errno::Errno::EROFS as i32)
}

#[test]
fn module_that_cannot_be_imported_is_named() {
    if !alone("verdicts::module_that_cannot_be_imported_is_named") {
        return;
    }
    let error = builder(&[("preload", "json,no_such_module")]).build().unwrap_err();
    assert_eq!(error.code(), "pool-start");
    let text = format!("{error:?}");
    assert!(text.contains("import no_such_module") && text.contains("ModuleNotFoundError"), "{text}");
}

#[test]
fn run_is_cancelled_while_it_waits_and_while_it_runs() {
    if !alone("verdicts::run_is_cancelled_while_it_waits_and_while_it_runs") {
        return;
    }
    let pool = builder(&[]).slots(1).most(2).build().unwrap();
    let first = pool.submit("import time; time.sleep(60)");
    std::thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    first.cancel();
    expect(&first.wait(), Verdict::Cancelled, Ended::Killed);
    // Dropped, a handle's run ends; the pool's end waits for it.
    drop(pool.submit("import time; time.sleep(60)"));
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    let outcome = pool.run("import time; time.sleep(60)", Watch { sink: None, cancel: Some(cancel) });
    assert_eq!(outcome.verdict, Verdict::Cancelled, "{outcome:#?}");
    drop(pool);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn drained_pool_waits_forks_or_rejects() {
    if !alone("verdicts::drained_pool_waits_forks_or_rejects") {
        return;
    }
    let busy = |pool: &Pool| {
        let handle = pool.submit("import time; time.sleep(30)");
        until("it has begun, and the next slot is ready", || pool.counts().slots == 2 && pool.ready() == 1);
        handle
    };
    // Slots that are used again count among those that are kept ready while they are in use.
    let kept = if RESTORED { 2 } else { 1 };
    // As many as there are to be: the one that sleeps, and the one that is ready.
    let pool = builder(&[]).slots(kept).most(kept + 1).drained(Drained::Reject).build().unwrap();
    let first = busy(&pool);
    let cancel = Cancel::new().unwrap();
    std::thread::scope(|scope| {
        let watch = Watch { sink: None, cancel: Some(cancel.clone()) };
        scope.spawn(|| pool.run("import time; time.sleep(30)", watch));
        until("the last slot is taken", || pool.ready() == 0);
        let third = run(&pool, "result = 1");
        assert_eq!(third.verdict, Verdict::Unavailable, "{third:#?}");
        assert!(third.message.contains("no slot of the pool is ready"), "{}", third.message);
        cancel.cancel();
    });
    drop((first, pool));

    let pool = builder(&[]).slots(kept).most(4).drained(Drained::Fork).build().unwrap();
    let busy_ones = [busy(&pool), pool.submit("pass")];
    for _ in 0..20 {
        expect(&run(&pool, "result = 1"), Verdict::Ok, Ended::Answered);
    }
    drop((busy_ones, pool));

    let pool = builder(&[]).slots(1).most(2).queue(2).patience(Duration::from_secs(2)).build().unwrap();
    let cancel = Cancel::new().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let cancel = cancel.clone();
            scope.spawn(|| pool.run("import time; time.sleep(30)", Watch { sink: None, cancel: Some(cancel) }));
        }
        std::thread::sleep(Duration::from_millis(1500));
        let begun = Instant::now();
        let outcome = run(&pool, "result = 1");
        assert_eq!(outcome.verdict, Verdict::Unavailable, "{outcome:#?}");
        assert!(outcome.message.contains("became ready in time"), "{}", outcome.message);
        assert!(begun.elapsed() >= Duration::from_secs(2));
        cancel.cancel();
    });
    // Those that are ended make room again.
    expect(&run(&builder(&[]).slots(1).build().unwrap(), "result = 1"), Verdict::Ok, Ended::Answered);
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    if !alone("verdicts::sizes_that_make_no_sense_are_refused") {
        return;
    }
    assert_eq!(builder(&[]).slots(0).build().unwrap_err().code(), "pool-size");
    assert_eq!(builder(&[]).slots(4).most(4).build().unwrap_err().code(), "pool-size");
    assert_eq!(builder(&[]).rotate_after(0).build().unwrap_err().code(), "pool-size");
}
