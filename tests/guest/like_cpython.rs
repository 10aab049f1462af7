//! Each script is run by CPython and by the runner, and must print the same and end the same.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use super::{Run, interpreters};

/// Name and source of each script.
const SCRIPTS: &[(&str, &str)] = &[
    ("empty", ""),
    ("print", "print('one'); import sys; print('two', file=sys.stderr)"),
    ("raise", "def f(x):\n    return 1 / x\n\nf(0)\n"),
    ("chained", "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e\n"),
    ("context", "try:\n    {}['a']\nexcept KeyError:\n    nope\n"),
    ("notes in names", "import maths\n"),
    ("suggestion", "value = 1\nprint(valu)\n"),
    ("attribute suggestion", "import sys\nsys.pth\n"),
    ("syntax error", "x = 1\nif x\n    pass\n"),
    ("indentation error", "if True:\nx\n"),
    ("symbol error", "def f():\n    x = 1\n    global x\n"),
    ("future", "from __future__ import nothing\n"),
    ("recursion", "def f(): f()\nf()\n"),
    ("exit none", "import sys; sys.exit()"),
    ("exit 3", "import sys; sys.exit(3)"),
    ("exit 256", "import sys; sys.exit(256)"),
    ("exit -1", "import sys; sys.exit(-1)"),
    ("exit true", "import sys; sys.exit(True)"),
    ("exit text", "import sys; sys.exit('bye')"),
    ("exit tuple", "raise SystemExit(1, 2)"),
    ("exit float", "raise SystemExit(2.0)"),
    ("interrupt", "raise KeyboardInterrupt"),
    ("os._exit", "import os; os._exit(7)"),
    ("own signal", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"),
    ("own exception hook", "import sys\nsys.excepthook = lambda t, v, tb: print('hook', t.__name__, v)\n1 / 0\n"),
    ("unprintable", "class E(Exception):\n    def __str__(self): raise ValueError\nraise E\n"),
    ("closed stderr", "import sys; sys.stderr = None; 1 / 0"),
    ("closed stdout", "import sys; sys.stdout.close()"),
    ("stderr elsewhere", "import sys, io; sys.stderr = io.StringIO(); 1 / 0"),
    ("threads", "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.1), print('late'))).start()\n"),
    (
        "thread raises",
        "import threading\nthreading.excepthook = lambda a: print('thread', a.exc_type.__name__)\n\
         threading.Thread(target=lambda: 1 / 0).start()\n",
    ),
    ("daemon", "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"),
    ("atexit", "import atexit\natexit.register(print, 'a')\natexit.register(print, 'b')\nprint('c')\n"),
    ("atexit after error", "import atexit\natexit.register(print, 'a')\n1 / 0\n"),
    ("finaliser", "import sys\nclass A:\n    def __del__(self): print('del', sys.__name__)\na = A()\n"),
    ("fork", "import os\nif os.fork() == 0: print('child')\nelse: os.wait(); print('parent')\n"),
    ("main", "import sys, __main__\nprint(__name__, __main__.__dict__ is globals(), sys.modules['__main__'].__doc__)"),
    ("globals", "print(sorted(globals()), __package__, __spec__, __cached__, type(__loader__).__name__)"),
    ("annotations", "x: int = 1\nprint(__annotations__)"),
    ("pickle", "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)"),
    ("inspect", "import inspect\ndef f():\n    return 1  # here\nprint(inspect.getsource(f))"),
    ("read itself", "print(open(__file__, 'rb').read())"),
    ("crlf", "x = '''a\r\nb'''\r\nprint(repr(x))\r\n"),
    ("syntax warning", "x = '\\d'\nprint(x is 1)\n"),
    (
        "nested code",
        "def f():\n    return [lambda: None for _ in 'a'][0]\nprint({f.__code__.co_filename, f().__code__.co_filename} == {__file__})",
    ),
    ("future annotations", "from __future__ import annotations\ndef f(x: nope): pass\nprint(f.__annotations__)"),
    ("profile", "import sys; print(sys.getprofile(), sys.gettrace())"),
    ("bom", "\u{feff}print('bom')\n"),
    ("cookie", "# coding: utf-8\nprint('é')\n"),
    ("arguments", "import sys; print(len(sys.argv), sys.argv[1:])"),
    ("module path", "import sys, os; print(sys.path[0] == os.path.dirname(os.path.abspath(__file__)) == os.getcwd())"),
    ("sibling", "open('helper.py', 'w').write('x = 1')\nimport helper\nprint(helper.x)"),
    ("warning", "import warnings\nwarnings.warn('careful')\n"),
    ("log", "import logging\nlogging.error('bad')\ntry: 1 / 0\nexcept Exception: logging.exception('worse')\n"),
    ("asyncio", "import asyncio\nasync def f(): return 1\nprint(asyncio.run(f()))\n"),
    ("executor", "from concurrent.futures import ThreadPoolExecutor as T\nT().submit(print, 'done')\n"),
];

/// Scripts that need Python 3.11.
const SINCE_3_11: &[(&str, &str)] = &[
    ("group", "try:\n    1 / 0\nexcept Exception as e:\n    raise ExceptionGroup('g', [e, ValueError('v')])\n"),
    (
        "group star",
        "try:\n    raise ExceptionGroup('g', [ValueError(1)])\nexcept* ValueError:\n    raise KeyError(2)\n",
    ),
    ("added note", "e = ValueError('v'); e.add_note('look here'); raise e"),
];

#[test]
fn scripts_end_as_under_cpython() {
    for python in interpreters() {
        let version = Command::new(&python).args(["-c", "import sys; print(sys.version_info[1])"]).output().unwrap();
        let minor: u32 = String::from_utf8(version.stdout).unwrap().trim().parse().unwrap();
        for (name, source) in SCRIPTS.iter().chain(SINCE_3_11.iter().filter(|_| minor >= 11)) {
            let ran = Run::new(&python, source).argument("a").argument("--").argument("b=c").go();
            let work = ran.folder.path().join("work");
            for left in std::fs::read_dir(&work).unwrap().flatten().filter(|left| left.file_name() != "strategy.py") {
                std::fs::remove_file(left.path()).unwrap();
            }
            let bare = Command::new(&python)
                .args(["-S", "-s", "-B", "-u"])
                .arg(work.join("strategy.py"))
                .args(["a", "--", "b=c"])
                .current_dir(&work)
                .env_remove("PYTHONPATH")
                .output()
                .unwrap();
            let label = format!("{name} under {}", python.display());
            assert!(ran.started, "{label}");
            assert_eq!(ran.stdout(), String::from_utf8_lossy(&bare.stdout), "stdout of {label}");
            let bare_stderr = String::from_utf8_lossy(&bare.stderr).into_owned();
            assert_eq!(without_counts(&ran.stderr()), without_counts(&bare_stderr), "stderr of {label}");
            assert_eq!(ran.output.status.code(), bare.status.code(), "status of {label}");
            assert_eq!(ran.output.status.signal(), bare.status.signal(), "signal of {label}");
        }
    }
}

/// The runner's own frames count towards the recursion limit, so the last repetitions of a recursion do not fit.
fn without_counts(stderr: &str) -> String {
    let lines =
        stderr.lines().map(|line| if line.contains("[Previous line repeated ") { "  [repeated]" } else { line });
    lines.collect::<Vec<_>>().join("\n")
}
