//! Which interpreters and images a pool serves, and what its zygote may be.

use std::path::PathBuf;
use std::process::Command;

use nsbox::outcome::{Ended, Outcome, Value, Verdict};
use nsbox::pool::Pool;

use crate::engine::base_tarball;
use crate::harness::{alone, children, comm, is_root, require};
use crate::python::{VERSIONS, environment, pyenv};
use crate::{RESTORED, builder, run};

#[track_caller]
fn answered(outcome: &Outcome) -> &Value {
    assert_eq!((outcome.verdict, outcome.ended), (Verdict::Ok, Ended::Answered), "{outcome:#?}");
    outcome.result.as_ref().unwrap()
}

/// What a run in it says of its interpreter, one after the other.
#[track_caller]
fn versions_of(pool: &Pool) -> Vec<Value> {
    let source = "import sys, json, random\nresult = '.'.join(map(str, sys.version_info[:2]))";
    (0..4).map(|_| answered(&run(pool, source)).clone()).collect()
}

/// Threads of a pool, one that outlasts the script, and what is left for the very end.
const THREADS: &str = "
import atexit, threading, time
from concurrent.futures import ThreadPoolExecutor
atexit.register(print, 'at exit')
with ThreadPoolExecutor(2) as pool:
    total = sum(pool.map(abs, range(-9, 1)))
threading.Thread(target=lambda: (time.sleep(0.3), print('late'))).start()
result = [total, threading.main_thread().is_alive()]
";

/// Whether threads know who they are, here and in a fork of a process with two; and whether freed memory is given back.
const FORKS: &str = "
import logging, os, threading
main = threading.main_thread()
known = main.native_id == threading.get_native_id() == os.getpid()
stop = threading.Event()
other = threading.Thread(target=stop.wait)
other.start()
if (pid := os.fork()) == 0:
    logging.getLogger('child').setLevel(10)
    os._exit(threading.active_count() + (main is not threading.current_thread()))
stop.set()
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) >> 8
before, much = resident(), [[number] for number in range(1_000_000)]
full = resident()
del much
result = [known, status, full - before > 50, resident() - before < LEFT]
";

/// How many references are counted to what the zygote made: an object, and what only code holds; whether the script's own end.
const REFERENCES: &str = "
import json, sys, weakref
class Own:
    pass
ended = []
own = Own()
kept = weakref.ref(own, ended.append)
del own
counts = [sys.getrefcount(json.JSONDecoder), sys.getrefcount(json.loads.__code__.co_consts), sys.getrefcount(Own)]
result = [counts[0] >> 31, counts[1] >> 31, counts[2] >> 31, len(ended)]
";

/// The areas of the C library and whether what it has written is behind it in the file that slots share, and whether there is an
/// area, of whatever, that can be written to and executed.
const AREAS: &str = "
areas = [line.split(maxsplit=5) for line in open('/proc/self/maps')]
ours = [at for at, area in enumerate(areas) if 'libc.so' in area[-1]]
behind = areas[ours[-1] + 1]
result = [[areas[at][1] for at in ours], 'memfd:nsbox-libraries' in behind[-1] and behind[1] == 'rw-p',
          any('w' in area[1] and 'x' in area[1] for area in areas)]
";

#[test]
fn every_version_of_python_serves() {
    if !alone("images::every_version_of_python_serves") {
        return;
    }
    for (version, python) in VERSIONS.into_iter().filter_map(|version| Some((version, pyenv(version)?))) {
        let pool = builder(&[("python", &python.display().to_string()), ("preload", "json,logging,random,threading")])
            .slots(2)
            .build()
            .unwrap();
        assert_eq!(versions_of(&pool), vec![Value::Str(version.to_owned()); 4], "{}", python.display());
        // Its exceptions, its exit and its children are those of any script.
        let outcome = run(&pool, "import os\nif os.fork() == 0:\n    os._exit(0)\nos.wait()\nraise ValueError('why')");
        assert_eq!((outcome.verdict, outcome.exit_code), (Verdict::Error, Some(1)), "{version}: {outcome:#?}");
        assert!(String::from_utf8_lossy(&outcome.stderr).ends_with("ValueError: why\n"), "{version}: {outcome:#?}");
        // Nothing of the warm-up's end is left: thread pools work, threads are waited for, exit handlers run.
        let outcome = run(&pool, THREADS);
        assert_eq!(answered(&outcome), &Value::List(vec![Value::Int(45), Value::Bool(true)]), "{version}");
        assert_eq!(String::from_utf8_lossy(&outcome.stdout), "late\nat exit\n", "{version}");
        let known = vec![Value::Bool(true), Value::Int(1), Value::Bool(true), Value::Bool(true)];
        // A slot that is used again keeps some of it.
        let forks = FORKS.replace("LEFT", if RESTORED { "40" } else { "20" });
        assert_eq!(answered(&run(&pool, &forks)), &Value::List(known), "{version}");
        // Where the interpreter knows of immortal objects, the zygote's are, and no others.
        let immortal = i128::from(["3.12", "3.13"].contains(&version));
        let counts = [immortal, immortal, 0, 1].map(Value::Int);
        assert_eq!(answered(&run(&pool, REFERENCES)), &Value::List(counts.to_vec()), "{version}");
        let areas = Value::List(vec![Value::Str("r-xp".to_owned())]);
        let expected = Value::List(vec![areas, Value::Bool(true), Value::Bool(false)]);
        assert_eq!(answered(&run(&pool, AREAS)), &expected, "{version}");
        assert_eq!(pool.counts().crashes, 0, "{version}");
    }
}

#[test]
fn root_file_system_serves() {
    if !alone("images::root_file_system_serves") {
        return;
    }
    // Only root can make one with every owner and device in it.
    let Some(tarball) = require(is_root(), "right to unpack a root file system").then(base_tarball).flatten() else {
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let mut unpack = Command::new("tar");
    unpack.args(["--extract", "--exclude=./dev/*", "--file"]).arg(tarball).arg("--directory").arg(root.path());
    assert!(unpack.status().unwrap().success());
    std::fs::write(root.path().join("etc/image-release"), "of the image").unwrap();
    let pool = builder(&[("image", &root.path().display().to_string())]).slots(2).build().unwrap();
    for _ in 0..3 {
        let outcome =
            run(&pool, "import json, os\nresult = [open('/etc/image-release').read(), os.path.exists('/root')]");
        let Value::List(seen) = answered(&outcome) else { panic!("{outcome:#?}") };
        assert_eq!(seen[0], Value::Str("of the image".to_owned()));
        assert!(!outcome.degraded, "{:#?}", outcome.enforced);
    }
}

/// How far apart the code of four functions is, in KiB, and on how many pages new objects are, of two sizes.
const PLACES: &str = "
import inspect, json, logging
functions = [json.loads, json.JSONDecoder.decode, logging.getLogger, inspect.signature]
places = sorted(id(function.__code__) for function in functions)
small, large = [bytes(200) for _ in range(200)], [bytes(2000) for _ in range(50)]
result = [places[-1] - places[0] >> 10] + [len({id(made) >> 12 for made in blocks}) for blocks in (small, large)]
";

/// Code that has been moved is what it was: its source, its lines, its value, its end.
const MOVED: &str = "
import gc, inspect, json, marshal, sys, traceback
code, lines = json.loads.__code__, []
try:
    json.loads('[1, }')
except ValueError as error:
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)][1:]
def trace(frame, event, argument):
    if frame.f_code is code:
        lines.append(frame.f_lineno)
    return trace
sys.settrace(trace)
loaded = json.loads('[7]')
sys.settrace(None)
source, first = inspect.getsourcelines(json.loads)
same = marshal.loads(marshal.dumps(code)) == code and hash(code.replace()) == hash(code)
inside = bool(lines) and all(first <= line < first + len(source) for line in lines)
del json.loads
gc.collect()
result = [source[0][:9], names, same, inside, code.co_name, loaded]
";

#[test]
fn code_and_new_objects_lie_side_by_side() {
    if !alone("images::code_and_new_objects_lie_side_by_side") {
        return;
    }
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        &script,
        "import inspect, json, logging\njson.loads('[1]'), logging.getLogger('a'), inspect.signature(json.loads)",
    )
    .unwrap();
    let pool = |python: &str, warm_up: &str| {
        let keys = [("python", python), ("preload", "json,inspect,logging"), ("warm_up", warm_up)];
        builder(&keys).slots(2).build().unwrap()
    };
    let text = |text: &str| Value::Str(text.to_owned());
    for (version, python) in VERSIONS.into_iter().filter_map(|version| Some((version, pyenv(version)?))) {
        let python = python.display().to_string();
        let packed = pool(&python, script.path().to_str().unwrap());
        for _ in 0..2 {
            let Value::List(seen) = answered(&run(&packed, PLACES)).clone() else { panic!("{version}") };
            // 48 and 100 KiB of them.
            let [Value::Int(0..64), Value::Int(12..18), Value::Int(25..32)] = seen[..] else {
                panic!("{version}: {seen:?}");
            };
            let names = ["loads", "decode", "raw_decode"].map(text);
            let [yes, loaded] = [Value::Bool(true), Value::List(vec![Value::Int(7)])];
            let expected = [text("def loads"), Value::List(names.to_vec()), yes.clone(), yes, text("loads"), loaded];
            assert_eq!(answered(&run(&packed, MOVED)), &Value::List(expected.to_vec()), "{version}");
        }
        assert_eq!(packed.counts().crashes, 0, "{version}");
        drop(packed);
        let plain = pool(&python, "none");
        let Value::List(seen) = answered(&run(&plain, PLACES)).clone() else { panic!("{version}") };
        assert!(matches!(seen[0], Value::Int(64..)), "{version}: {seen:?}");
    }
}

/// A pool whose zygote has imported numpy and pandas.
fn of_pandas(version: &str, keys: &[(&str, &str)]) -> Option<Pool> {
    let python: PathBuf = environment(version)?.join("bin/python");
    let keys = [&[("python", python.to_str().unwrap()), ("preload", "numpy,pandas")], keys].concat();
    Some(builder(&keys).slots(2).build().unwrap())
}

/// What the zygote has made is changed, dropped and collected, and the libraries serve as before.
const COLLECTED: &str = "
import gc, sys
import numpy as np
import pandas as pd
gc.unfreeze()
kept = [sys.modules.pop(name) for name in ('json', 'decimal') if name in sys.modules]
np.mean, pd.Series.mean = np.median, pd.Series.median
del kept
gc.collect()
import json
table = pd.DataFrame({'a': np.arange(500.0), 'b': ['x', 'y'] * 250})
means = table.groupby('b')['a'].sum().to_dict()
del table
gc.collect()
result = [means['x'], means['y'], float(pd.Series([1.0, 2.0, 9.0]).mean()), json.loads('[7]')[0]]
";

#[test]
fn libraries_of_every_version_can_be_changed_and_collected() {
    if !alone("images::libraries_of_every_version_can_be_changed_and_collected") {
        return;
    }
    for version in VERSIONS {
        let Some(pool) = of_pandas(version, &[]) else { continue };
        for _ in 0..4 {
            let expected = vec![Value::Float(62250.0), Value::Float(62500.0), Value::Float(2.0), Value::Int(7)];
            assert_eq!(answered(&run(&pool, COLLECTED)), &Value::List(expected), "{version}");
            let mean = "import pandas as pd\nresult = float(pd.Series([1.0, 2.0, 9.0]).mean())";
            assert_eq!(answered(&run(&pool, mean)), &Value::Float(4.0), "{version}");
        }
        assert_eq!(pool.counts().crashes, 0, "{version}");
    }
}

#[test]
fn random_numbers_of_numpy_are_drawn_by_each_run_anew() {
    if !alone("images::random_numbers_of_numpy_are_drawn_by_each_run_anew") {
        return;
    }
    let draw = "import numpy, random\nresult = [float(numpy.random.random()), random.random(), \
                float(numpy.random.default_rng().random())]";
    let Some(pool) = of_pandas("3.11", &[]) else { return };
    let drawn: Vec<Value> = (0..4).map(|_| answered(&run(&pool, draw)).clone()).collect();
    for (i, this) in drawn.iter().enumerate() {
        for that in &drawn[..i] {
            let (Value::List(this), Value::List(that)) = (this, that) else { panic!("{drawn:?}") };
            assert!(this.iter().zip(that).all(|(a, b)| a != b), "{drawn:?}");
        }
    }
    drop(pool);
    // With a seed they are those of every other run with it, warm or cold.
    let Some(seeded) = of_pandas("3.11", &[("seed", "7")]) else { return };
    let draw = "import numpy, random\nresult = [float(numpy.random.random()), random.random()]";
    let drawn: Vec<Value> = (0..3).map(|_| answered(&run(&seeded, draw)).clone()).collect();
    let python = environment("3.11").unwrap().join("bin/python");
    let cold = crate::harness::sandbox(&[("seed", "7"), ("python", python.to_str().unwrap())]).run(draw);
    assert!(drawn.iter().all(|value| Some(value) == cold.result.as_ref()), "{drawn:?}, {:?}", cold.result);
}

#[test]
fn warm_up_may_import_what_preload_does_not() {
    if !alone("images::warm_up_may_import_what_preload_does_not") {
        return;
    }
    // The default one uses pandas, which may load pyarrow, whose allocator would start a thread.
    let Some(pool) = of_pandas("3.11", &[("preload", "numpy")]) else { return };
    let source =
        "import os, sys\nresult = ['pandas' in sys.modules, [name for name in os.environ if 'MALLOC' in name]]";
    let known = vec![Value::Bool(true), Value::List(Vec::new())];
    assert_eq!(answered(&run(&pool, source)), &Value::List(known));
}

#[test]
fn patch_of_a_preloaded_library_is_the_run_s_alone() {
    if !alone("images::patch_of_a_preloaded_library_is_the_run_s_alone") {
        return;
    }
    let Some(pool) = of_pandas("3.11", &[]) else { return };
    let patch = "import numpy as np, pandas as pd\npd.DataFrame.sum = lambda self: 'patched'\nnp.pi = 4\n\
                 pd.options.display.max_rows = 7\nnp.seterr(all='ignore')\n";
    let look = "import numpy as np, pandas as pd\n\
                result = [pd.DataFrame({'a': [1]}).sum() is 'patched', np.pi == 4, pd.options.display.max_rows == 7, \
                np.geterr()['divide'] == 'ignore']";
    assert_eq!(answered(&run(&pool, &format!("{patch}{look}"))), &Value::List(vec![Value::Bool(true); 4]));
    for _ in 0..4 {
        assert_eq!(answered(&run(&pool, look)), &Value::List(vec![Value::Bool(false); 4]));
    }
}

/// The text of why there is no pool.
#[track_caller]
fn refusal(keys: &[(&str, &str)]) -> String {
    let error = builder(keys).build().unwrap_err();
    assert_eq!(error.code(), "pool-start");
    format!("{error:?}")
}

#[test]
fn warm_up_that_fails_is_told() {
    if !alone("images::warm_up_that_fails_is_told") {
        return;
    }
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&script, "raise ValueError('of the warm-up')").unwrap();
    let text = refusal(&[("warm_up", script.path().to_str().unwrap())]);
    assert!(text.contains("run the warm-up script") && text.contains("ValueError: of the warm-up"), "{text}");
    // It has to bear a second time.
    std::fs::write(&script, "import json\nassert not hasattr(json, 'ran'), 'twice'\njson.ran = True").unwrap();
    let text = refusal(&[("warm_up", script.path().to_str().unwrap())]);
    assert!(text.contains("run the warm-up script again") && text.contains("AssertionError: twice"), "{text}");
    let text = refusal(&[("warm_up", "/no/such/warm_up.py")]);
    assert!(text.contains("/no/such/warm_up.py"), "{text}");
}

/// A warm-up that wants a thread in the zygote with every fork.
const HOOK: &str = "
import os, threading, time
def start(threading=threading, time=time):
    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
os.register_at_fork(after_in_parent=start)
";

#[test]
fn zygote_with_threads_forks_nothing() {
    if !alone("images::zygote_with_threads_forks_nothing") {
        return;
    }
    let script = tempfile::NamedTempFile::new().unwrap();
    let path = script.path().to_str().unwrap();
    std::fs::write(
        &script,
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
    )
    .unwrap();
    let text = refusal(&[("warm_up", path)]);
    assert!(text.contains("1 more thread"), "{text}");
    // A hook of each fork can start none: the kernel refuses a thread to whoever forks into another pid namespace.
    std::fs::write(&script, HOOK).unwrap();
    let pool = builder(&[("warm_up", path)]).slots(2).build().unwrap();
    for _ in 0..6 {
        let threads = "import threading\nresult = threading.active_count()";
        let outcome = run(&pool, threads);
        // Restorers are forked into the zygote's own namespace, so it can start one, and ends.
        if !(RESTORED && matches!(outcome.verdict, Verdict::Unavailable | Verdict::Lost)) {
            assert_eq!(answered(&outcome), &Value::Int(1));
        }
    }
    assert!(RESTORED || pool.counts().crashes == 0);
    drop(pool);
    assert!(children(std::process::id()).into_iter().all(|pid| comm(pid) != "nsbox-init"));
}
