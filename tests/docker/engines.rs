//! Engines that are absent, old, lack the image, or die; and what is left of supervisors that did.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nsbox::docker::{Docker, Error};
use nsbox::outcome::{Ended, Outcome, Verdict};
use nsbox::sandbox::{Cancel, Script, Stdin, Stream, Watch};

use crate::engine::{BASE, Engine};
use crate::harness::until;
use crate::{beside_engine, config, docker, engine, expect, run, says, text};

/// In a process that runs one script until it is killed: the socket of the engine.
const VICTIM: &str = "NSBOX_TEST_VICTIM";
/// There: what its script is given to read. Of an endless stream it reads nothing.
const STDIN: &str = "NSBOX_TEST_VICTIM_STDIN";

#[test]
fn absent_engine_is_unavailable_and_says_what_to_do() {
    let docker = Docker::new(config(&[])).unwrap().socket("/nowhere/docker.sock");
    let outcome = docker.run("pass", Watch::default());
    assert_eq!((outcome.verdict, outcome.backend, outcome.ended), (Verdict::Unavailable, None, Ended::NotStarted));
    for word in ["/nowhere/docker.sock", "No such file", "systemctl start docker", "DOCKER_HOST", "usermod -aG docker"]
    {
        says(&outcome, word);
    }
}

#[test]
fn absent_image_is_unavailable_and_says_what_to_do() {
    let Some(engine) = engine() else { return };
    let outcome = run(&engine, &[("docker.image", "no-such-image:1")], "pass");
    assert_eq!((outcome.verdict, outcome.backend), (Verdict::Unavailable, None));
    for word in ["no-such-image:1", "docker build", "docker.image", &engine.socket().display().to_string()] {
        says(&outcome, word);
    }
}

#[test]
fn image_that_comes_later_is_found_by_the_next_run() {
    let Some(engine) = engine() else { return };
    let docker = docker(&engine, &[("docker.image", "comes-later:1")]);
    assert_eq!(docker.run("pass", Watch::default()).verdict, Verdict::Unavailable);
    assert!(engine.docker(["tag", BASE, "comes-later:1"]).status().unwrap().success());
    expect(&docker.run("pass", Watch::default()), Verdict::Ok);
}

#[test]
fn image_without_python_is_unavailable() {
    let Some(engine) = engine() else { return };
    let outcome = run(&engine, &[("python", "/no/such/python3")], "pass");
    assert_eq!((outcome.verdict, outcome.backend), (Verdict::Unavailable, None), "{outcome:#?}");
    says(&outcome, "/no/such/python3");
}

/// An engine that only tells its version.
#[test]
fn engine_that_is_too_old_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            if stream.read(&mut request).unwrap_or(0) > 0 {
                let body = r#"{"ApiVersion": "1.40", "Version": "19.03.15"}"#;
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
                write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok();
            }
        }
    });
    let outcome = Docker::new(config(&[])).unwrap().socket(&socket).run("pass", Watch::default());
    assert_eq!(outcome.verdict, Verdict::Unavailable);
    for word in ["has version 1.40", "1.41 is needed", "Docker 20.10", &socket.display().to_string()] {
        says(&outcome, word);
    }
}

#[test]
fn engine_that_does_not_answer_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let keys = [("limits.setup_timeout", "1s")];
    let begun = Instant::now();
    let outcome = Docker::new(config(&keys)).unwrap().socket(&socket).run("pass", Watch::default());
    assert_eq!(outcome.verdict, Verdict::Unavailable);
    says(&outcome, "longer than 1s");
    says(&outcome, "limits.setup_timeout");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn foreign_socket_in_docker_host_and_profiles_that_are_none_are_errors() {
    let error = Docker::new(config(&[("seccomp", "/nowhere.json")])).unwrap_err();
    assert!(matches!(error, Error::Seccomp(_)) && error.code() == "docker.seccomp", "{error}");
    assert!(Docker::new(config(&[("check", "true"), ("policy", "/nowhere.yaml")])).is_err());
}

#[test]
fn engine_killed_while_a_script_runs_is_lost() {
    if engine().is_none() {
        return;
    }
    let engine = Engine::start();
    assert!(engine.has_base());
    let dockerd = engine.daemon();
    let docker = docker(&engine, &[("limits.timeout", "10s")]);
    let mut sink = |_: Stream, _: &[u8]| kill(dockerd, Signal::SIGKILL).unwrap();
    let begun = Instant::now();
    let watch = Watch { sink: Some(&mut sink), cancel: None };
    let outcome = docker.run("import time\nprint('begun')\ntime.sleep(600)\nresult = 1", watch);
    expect(&outcome, Verdict::Lost);
    assert_eq!((outcome.ended, outcome.stdout.len(), &outcome.result), (Ended::Lost, 0, &None));
    says(&outcome, "was lost while the script ran");
    says(&outcome, &engine.socket().display().to_string());
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!(docker.run("pass", Watch::default()).verdict, Verdict::Unavailable);
    until("its script ends, by the limit that pid 1 holds too", || engine.processes().is_empty());
}

#[test]
fn engine_killed_under_a_flood_of_output_leaves_no_script() {
    if engine().is_none() {
        return;
    }
    let engine = Engine::start();
    assert!(engine.has_base());
    let dockerd = engine.daemon();
    // Nobody takes what is written, so pid 1 comes to stand in a write, with the script in another.
    let docker = docker(&engine, &[("limits.timeout", "2s"), ("limits.output", "1g")]);
    let mut sink = |_: Stream, _: &[u8]| kill(dockerd, Signal::SIGKILL).unwrap_or_default();
    let watch = Watch { sink: Some(&mut sink), cancel: None };
    expect(&docker.run("while True: print('x' * 10_000)", watch), Verdict::Lost);
    until("nothing of it is left", || engine.processes().is_empty());
}

/// The containers of this process, which is beside the engine.
fn own_containers() -> String {
    let filter = format!("label=nsbox.supervisor.pid={}", std::process::id());
    let output = Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &filter]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

/// Runs a script that is cancelled after a while, and returns how long that took.
fn cancelled_after(docker: &Docker, delay: Duration) -> (Outcome, Duration) {
    let cancel = Cancel::new().unwrap();
    let other = cancel.clone();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(delay);
            other.cancel();
        });
        let outcome = docker.run("import time\ntime.sleep(60)", Watch { sink: None, cancel: Some(cancel) });
        (outcome, begun.elapsed())
    })
}

#[test]
fn cancel_is_heard_at_any_moment_of_the_set_up() {
    let test = "engines::cancel_is_heard_at_any_moment_of_the_set_up";
    let Some(docker) = beside_engine(test, &[]) else { return };
    expect(&docker.run("pass", Watch::default()), Verdict::Ok);
    let mut in_set_up = 0;
    for delay in (0..200).step_by(15).map(Duration::from_millis) {
        let (outcome, took) = cancelled_after(&docker, delay);
        assert_eq!(outcome.verdict, Verdict::Cancelled, "after {delay:?}: {outcome:#?}");
        assert!(took < Duration::from_secs(5), "after {delay:?} it took {took:?}");
        in_set_up += u32::from(outcome.ended == Ended::NotStarted);
        assert_eq!(own_containers(), "", "after {delay:?}");
    }
    assert!(in_set_up >= 3, "{in_set_up} of them were in the set-up");
}

#[test]
fn cancel_is_heard_while_an_engine_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let docker = Docker::new(config(&[])).unwrap().socket(&socket);
    let (outcome, took) = cancelled_after(&docker, Duration::from_millis(300));
    assert_eq!((outcome.verdict, outcome.ended), (Verdict::Cancelled, Ended::NotStarted));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn panic_of_the_callers_sink_leaves_no_container() {
    let Some(docker) = beside_engine("engines::panic_of_the_callers_sink_leaves_no_container", &[]) else { return };
    let mut sink = |_: Stream, _: &[u8]| panic!("the sink's own");
    let run = std::panic::AssertUnwindSafe(|| {
        let watch = Watch { sink: Some(&mut sink), cancel: None };
        docker.run("import time\nprint('begun')\ntime.sleep(60)", watch)
    });
    let panic = std::panic::catch_unwind(run).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"the sink's own"));
    assert_eq!(own_containers(), "");
    expect(&docker.run("pass", Watch::default()), Verdict::Ok);
}

#[test]
fn container_is_removed_however_its_script_ends() {
    let test = "engines::container_is_removed_however_its_script_ends";
    let keys = [("limits.timeout", "5s"), ("limits.memory", "96m"), ("limits.cpus", "1")];
    let Some(docker) = beside_engine(test, &keys) else { return };
    for (source, verdict) in [
        ("pass", Verdict::Ok),
        ("raise ValueError", Verdict::Error),
        ("while True: pass", Verdict::Timeout),
        ("x = bytearray(512 << 20)", Verdict::Oom),
        ("import os\nos.abort()", Verdict::Signal),
    ] {
        expect(&docker.run(source, Watch::default()), verdict);
        assert_eq!(own_containers(), "", "after {verdict:?}");
    }
}

/// How many containers a supervisor has, of these states.
fn containers(engine: &Engine, supervisor: u32, flags: &[&str]) -> usize {
    let filter = format!("label=nsbox.supervisor.pid={supervisor}");
    let args = [&["ps", "--quiet", "--filter", &filter], flags].concat();
    let output = engine.docker(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout).lines().count()
}

/// A stream that has nothing to say, and does not end.
struct Silent;

impl Read for Silent {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        loop {
            std::thread::park();
        }
    }
}

#[test]
fn killed_supervisor_leaves_a_container_that_the_next_sweeps() {
    let test = "engines::killed_supervisor_leaves_a_container_that_the_next_sweeps";
    if let Some(socket) = std::env::var_os(VICTIM) {
        // The victim: it is killed while its script runs.
        let docker = Docker::new(config(&[])).unwrap().socket(socket);
        let mut sink = |_: Stream, bytes: &[u8]| std::io::stdout().write_all(bytes).unwrap();
        let (reads, stdin) = match std::env::var(STDIN).unwrap().as_str() {
            "empty" => ("", Stdin::Empty),
            "line" => ("sys.stdin.readline()", Stdin::Stream(Box::new(b"x\n".chain(Silent)))),
            _ => ("", Stdin::Stream(Box::new(std::io::repeat(1)))),
        };
        let source = format!("import sys, time\n{reads}\nprint('begun')\ntime.sleep(600)");
        docker.run(Script::from(source).stdin(stdin), Watch { sink: Some(&mut sink), cancel: None });
        return;
    }
    let Some(engine) = engine() else { return };
    for stdin in ["empty", "line", "endless"] {
        let mut victim = Command::new(std::env::current_exe().unwrap());
        victim.args(["--exact", test, "--nocapture", "--test-threads=1"]);
        victim.env(VICTIM, engine.socket()).env(STDIN, stdin);
        let mut victim = victim.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut said = Vec::new();
        let mut stdout = victim.stdout.take().unwrap();
        while !said.ends_with(b"begun\n") {
            let mut byte = [0];
            assert_eq!(stdout.read(&mut byte).unwrap(), 1, "{}", text(&said));
            said.push(byte[0]);
        }
        let id = victim.id();
        // What runs is not swept while its supervisor lives.
        expect(&run(&engine, &[], "pass"), Verdict::Ok);
        assert_eq!(containers(&engine, id, &[]), 1);
        victim.kill().unwrap();
        victim.wait().unwrap();
        until("the script ends with its supervisor", || containers(&engine, id, &[]) == 0);
        // The start of a test beside this one may have been the next.
        assert!(containers(&engine, id, &["--all"]) <= 1);
        expect(&run(&engine, &[], "pass"), Verdict::Ok);
        assert_eq!(containers(&engine, id, &["--all"]), 0, "the next start removes it");
    }
}
