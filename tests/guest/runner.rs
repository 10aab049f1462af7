//! What the runner does that CPython does not.

use std::path::Path;
use std::process::Command;

use nsbox::outcome::Value;

use super::{Run, guest_folder, interpreters};

fn text(text: &str) -> Value {
    Value::Str(text.to_owned())
}

#[test]
fn runner_imports_nothing_that_the_interpreter_has_not() {
    for python in interpreters() {
        let source = "import sys; print(sorted(sys.modules))";
        let ran = Run::new(&python, source).go();
        let script = ran.folder.path().join("work/strategy.py");
        let bare = Command::new(&python).args(["-S", "-s"]).arg(script).output().unwrap();
        assert_eq!(ran.stdout(), String::from_utf8(bare.stdout).unwrap(), "{python:?}");
    }
}

#[test]
fn compiled_runner_does_the_same() {
    for python in interpreters() {
        let compiled = tempfile::tempdir().unwrap();
        let compile = "import glob, os, py_compile, sys\n\
            for file in glob.glob(sys.argv[1] + '/*.py'):\n\
            \x20   name = os.path.basename(file)[:-3]\n\
            \x20   py_compile.compile(file, f'{sys.argv[2]}/{name}.{sys.implementation.cache_tag}.pyc', doraise=True)\n\
            print(sys.implementation.cache_tag)";
        let tag =
            Command::new(&python).args(["-c", compile]).arg(guest_folder()).arg(compiled.path()).output().unwrap();
        let tag = String::from_utf8(tag.stdout).unwrap();
        let mut run = Run::new(&python, "import socket\nresult = [1, socket.gethostbyname.__module__]");
        run.runner = compiled.path().join(format!("runner.{}.pyc", tag.trim()));
        assert_eq!(run.go().result(), Value::List(vec![Value::Int(1), text("network_hint")]));
    }
}

#[test]
fn guest_modules_are_not_importable() {
    for name in ["runner", "collect", "inputs", "network_hint"] {
        let ran = Run::new(Path::new("python3"), format!("result = 1\nimport {name}")).go();
        assert!(ran.stderr().contains("ModuleNotFoundError"), "{}", ran.stderr());
    }
}

#[test]
fn traceback_shows_the_text_that_ran() {
    for python in interpreters() {
        let source = "open(__file__, 'w').write('# nothing\\n' * 9)\n\n1 / 0  # really\n";
        let ran = Run::new(&python, source).go();
        assert!(ran.stderr().contains("1 / 0  # really"), "{}", ran.stderr());
        assert!(!ran.stderr().contains("# nothing"), "{}", ran.stderr());
        assert!(!ran.stderr().contains("runner.py"), "{}", ran.stderr());
    }
}

#[test]
fn error_is_described_in_the_document() {
    let ran = Run::new(Path::new("python3"), "result = 1\nraise ValueError('no luck')").go();
    let document = ran.document();
    let error = document.error.unwrap();
    assert_eq!((error.kind.as_str(), error.message.as_str()), ("ValueError", "no luck"));
    assert_eq!(error.traceback, ran.stderr());
    assert_eq!(document.result, None, "a script that fails has no result");
}

#[test]
fn result_of_a_script_that_exits_well_is_kept() {
    assert_eq!(Run::new(Path::new("python3"), "result = 1\nexit()").go().result(), Value::Int(1));
    let failed = Run::new(Path::new("python3"), "result = 1\nimport sys; sys.exit(2)").go();
    assert_eq!((failed.output.status.code(), failed.document.len()), (Some(2), 0));
}

#[test]
fn exit_status_beyond_a_long_is_255() {
    // As in CPython, whose 3.12 also prints an error of its own here.
    for python in interpreters() {
        assert_eq!(Run::new(&python, "import sys; sys.exit(10 ** 30)").go().output.status.code(), Some(255));
    }
}

#[test]
fn result_is_collected_after_threads_end() {
    let source = "import threading, time\nresult = []\n\
        def late():\n    time.sleep(.1)\n    result.append(1)\nthreading.Thread(target=late).start()";
    assert_eq!(Run::new(Path::new("python3"), source).go().result(), Value::List(vec![Value::Int(1)]));
}

#[test]
fn forked_child_does_not_write_the_result() {
    let source = "import os\nif os.fork() == 0:\n    result = 'child'\nelse:\n    os.wait()\n    result = 'parent'";
    assert_eq!(Run::new(Path::new("python3"), source).go().result(), text("parent"));
}

#[test]
fn files_left_open_are_written_out() {
    for keep in ["f = open('left', 'w')", "import threading\nthreading.f = f = open('left', 'w')"] {
        for python in interpreters() {
            let ran = Run::new(&python, format!("{keep}\nf.write('x' * 5000)")).go();
            assert!(ran.output.status.success(), "{}", ran.stderr());
            assert_eq!(std::fs::read(ran.folder.path().join("work/left")).unwrap().len(), 5000, "{keep} {python:?}");
        }
    }
}

#[test]
fn site_builtins_are_there() {
    let source =
        "result = [repr(exit), repr(quit), 'Copyright' in repr(copyright), 'help' in repr(help), str(credits) != '']";
    let exit = text("Use exit() or Ctrl-D (i.e. EOF) to exit");
    let quit = text("Use quit() or Ctrl-D (i.e. EOF) to exit");
    let ran = Run::new(Path::new("python3"), source).go();
    let Value::List(items) = ran.result() else { panic!("not a list") };
    assert_eq!(items[..2], [exit, quit]);
    assert_eq!(items[2..], [Value::Bool(true), Value::Bool(true), Value::Bool(true)]);
}

#[test]
fn protocol_keys_reach_the_interpreter() {
    let source =
        "import sys\nresult = [sys.path[-2:], sys.prefix, sys.exec_prefix, sys.argv[1:], inputs, sys.orig_argv[1:]]";
    let keys = ["path=/a/b", "path=/c=d", "prefix=/venv", "input=prices", "input=a b"];
    let run = keys.into_iter().fold(Run::new(Path::new("python3"), source), Run::key);
    let ran = run.argument("x=y").go();
    let file = ran.folder.path().join("work/strategy.py").display().to_string();
    let expected = serde_json::json!([
        ["/a/b", "/c=d"], "/venv", "/venv", ["x=y"],
        {"prices": "/input/prices", "a b": "/input/a b"}, [file, "x=y"]
    ]);
    assert_eq!(ran.result().to_json(&mut Vec::new()), expected);
    let without = Run::new(Path::new("python3"), "result = 'inputs' in globals()").go();
    assert_eq!(without.result(), Value::Bool(false));
}

#[test]
fn seed_makes_random_repeatable() {
    for python in interpreters() {
        let ask = |seed: &str| {
            let expected = "import random\nresult = [random.random(), random.randint(0, 10 ** 9)]";
            Run::new(&python, expected).key(format!("seed={seed}")).go().result()
        };
        assert_eq!(ask("7"), ask("7"));
        assert_ne!(ask("7"), ask("8"));
        let own =
            Run::new(&python, "import random; random.seed(7)\nresult = [random.random(), random.randint(0, 10 ** 9)]");
        assert_eq!(ask("7"), own.go().result());
    }
}

#[test]
fn network_is_refused_with_a_hint() {
    let ways = [
        "import socket; socket.create_connection(('example.com', 80), timeout=2)",
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=2)",
        "import socket; socket.socket(socket.AF_INET6).connect(('::1', 1))",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 1))",
        "import socket; socket.gethostbyname('example.com')",
        "import urllib.request; urllib.request.urlopen('http://example.com', timeout=2)",
        "import http.client; http.client.HTTPConnection('example.com', timeout=2).request('GET', '/')",
        "import asyncio; asyncio.run(asyncio.open_connection('example.com', 80))",
    ];
    for python in interpreters() {
        for way in ways {
            let ran = Run::new(&python, way).go();
            assert_eq!(ran.output.status.code(), Some(1), "{way}");
            assert!(ran.stderr().contains("nsbox run --input NAME=PATH"), "{way}\n{}", ran.stderr());
        }
    }
}

#[test]
fn network_errors_keep_their_kind_and_path_sockets_work() {
    let source = "import errno, socket\nresult = []\n\
        try: socket.getaddrinfo('example.com', 80)\nexcept socket.gaierror as e: result.append(e.errno == errno.ENETUNREACH)\n\
        try: socket.socket().connect(('192.0.2.1', 80))\nexcept OSError as e: result.append(e.errno == errno.ENETUNREACH)\n\
        result.append(socket.socket().connect_ex(('192.0.2.1', 80)) == errno.ENETUNREACH)\n\
        s = socket.socket(socket.AF_UNIX); s.bind('s'); s.listen()\n\
        c = socket.socket(socket.AF_UNIX); c.connect('s'); result.append(s.accept()[0].fileno() > 0)\n\
        result.append(socket.getaddrinfo('127.0.0.1', 80)[0][4] == ('127.0.0.1', 80))";
    for python in interpreters() {
        assert_eq!(Run::new(&python, source).go().result(), Value::List(vec![Value::Bool(true); 5]), "{python:?}");
    }
}

#[test]
fn result_over_its_limit_says_so() {
    let over = |source: &str| Run::new(Path::new("python3"), source).key("result_limit=1000").go().well();
    for source in ["result = 'x' * 1001", "result = [1] * 2000", "result = b'x' * 10 ** 9", "result = range(10 ** 12)"]
    {
        let document = over(source);
        assert_eq!((document.over_limit, document.result), (Some(1000), None), "{source}");
    }
    assert_eq!(over("result = 'x' * 900").over_limit, None);
}

#[test]
fn failure_before_the_script_writes_no_start() {
    let ran = Run::new(Path::new("python3"), [b'#', 0xff]).go();
    assert!(!ran.started && !ran.output.status.success());
}
