//! Loops on a real engine, of which either is killed at any moment: nothing is left after the next start.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsbox::event::Event;
use nsbox::outcome::Verdict;

use crate::engine::{BASE, Engine};
use crate::harness::{is_root, nsbox, store, until};
use crate::{Desk, Record, json_of, verdict};

/// How often something is killed; `NSBOX_TEST_LONG` is for more.
fn rounds() -> usize {
    if std::env::var_os("NSBOX_TEST_LONG").is_some() { 20 } else { 4 }
}

/// A number below `end` that nobody chose.
fn any(end: u32) -> u32 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_micros() % end
}

/// What the backend keeps in the store for runs under way.
fn kept() -> Vec<String> {
    let entries = fs::read_dir(store().join("docker")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn on_engine<'a>(command: &'a mut Command, engine: &Engine) -> &'a mut Command {
    let command = command.env("DOCKER_HOST", format!("unix://{}", engine.socket().display()));
    command.env("NSBOX_DOCKER_IMAGE", BASE).env("NSBOX_BACKEND", "docker").env("NSBOX_CHECK", "false")
}

/// A loop of a million iterations, which goes on with what there is.
fn start(desk: &Desk, engine: &Engine) -> Child {
    let mut command = desk.command(&["--iterations", "1000000", "--jobs", "3", "--quiet", "--json"]);
    command.args(["--results", "results.jsonl", "--resume", "--input", "private=private", "--output", "out"]);
    on_engine(&mut command, engine).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// The runs that were recorded and are not run again, by iteration: their ids. A killed loop has cut a line at most.
fn done(desk: &Desk) -> BTreeMap<u64, String> {
    let text = fs::read_to_string(desk.path("results.jsonl")).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let records = whole.map(|line| serde_json::from_str::<Record>(line).unwrap());
    let done = records.filter(|record| matches!(record.outcome.verdict, Verdict::Ok | Verdict::Lost));
    done.map(|record| (record.iteration, record.outcome.id)).collect()
}

#[test]
fn nothing_is_left_of_loops_and_engines_that_are_killed() {
    if !is_root() || Engine::shared().is_none_or(|engine| !engine.has_base()) {
        return;
    }
    let engine = Engine::start();
    assert!(engine.has_base());
    let desk = Desk::new(&[
        ("a.py", "metrics = {'a': len(open('/input/private').read())}"),
        ("b.py", "import time\ntime.sleep(0.3)\nopen('/output/b', 'w').write('b')"),
        ("c.py", "import os, time\nif os.fork() == 0: time.sleep(60)\nprint('x' * 100_000)"),
    ]);
    fs::write(desk.path("private"), "for its owner alone").unwrap();
    fs::set_permissions(desk.path("private"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut killed = 0;
    let mut before = BTreeMap::new();
    let mut forgotten = (0, 0);
    for round in 0..rounds() {
        let mut child = start(&desk, &engine);
        until("the loop is under way", || done(&desk).len() > before.len() || child.try_wait().unwrap().is_some());
        thread::sleep(Duration::from_millis(any(1000).into()));
        if round % 2 == 0 {
            child.kill().unwrap();
            child.wait().unwrap();
            killed += 1;
        } else {
            engine.kill_and_restart();
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
            assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
        }
        let now = done(&desk);
        let same = before.iter().all(|(iteration, id)| now.get(iteration) == Some(id));
        assert!(same, "round {round}: a run was lost or repeated, of {before:?} in {now:?}");
        before = now;

        // The next start.
        let mut next = nsbox(["run", "--quiet", "-"]);
        let output = on_engine(&mut next, &engine).output().unwrap();
        assert!(output.status.success(), "round {round}: {output:?}");
        let containers = engine.docker(["ps", "--all"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&containers.stdout).lines().count(), 1, "round {round}: {containers:?}");
        assert_eq!(kept(), Vec::<String>::new(), "round {round}");
        // An engine that is killed while it starts a container forgets the shim of that, its cgroup, and what runc has not
        // made the container's first process yet; Docker shows none of it to anybody.
        let nothing = || engine.processes().iter().all(|name| name == "runc:[2:INIT]");
        until("no process of a script, and none of pid 1's, is left", nothing);
        if round % 2 == 0 {
            until("the engine has let go of the last of it", || (engine.cgroups().len(), engine.shims()) <= forgotten);
        }
        forgotten = (engine.cgroups().len(), engine.shims());
    }

    // The loop goes on to a good end of its own.
    let child = start(&desk, &engine);
    until("there are more records", || done(&desk).len() >= before.len() + 6);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let records = desk.records();
    assert!(before.iter().all(|(iteration, id)| records[iteration].outcome.id == *id), "a run was lost or repeated");
    let mut verdicts = BTreeMap::new();
    for record in records.values() {
        *verdicts.entry(verdict(record)).or_insert(0_u64) += 1;
        let allowed = ["ok", "lost", "unavailable", "cancelled"];
        assert!(allowed.contains(&verdict(record).as_str()), "{:#?}", record.outcome);
    }
    assert_eq!(json_of(&output)["verdicts"], serde_json::to_value(&verdicts).unwrap());
    let events = fs::read_to_string(desk.path("events.log")).unwrap();
    let cut = events.lines().filter(|line| serde_json::from_str::<Event>(line).is_err()).count();
    println!("{forgotten:?} cgroups and shims are forgotten by {} killed engines", rounds() / 2);
    println!("{verdicts:?}, {} events, {cut} of them cut", events.lines().count());
    assert!(cut <= killed, "of the killed, each can have cut the line that it was writing, not {cut}");
}
