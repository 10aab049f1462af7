//! One run through the command, and a few at once.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsbox::outcome::Ended;

use crate::harness::{READY, Running, cgroups_of, children, feed, judge, nsbox, run, store, until};
use crate::traces::tree;

/// Says that it has begun, to whoever reads it and to whoever looks, and waits.
fn wait() -> String {
    format!("print('begun')\n{READY}time.sleep(60)")
}

/// Whether there is such a process, or its zombie.
fn exists(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn start_makes_an_init_and_a_guest_in_a_cgroup() {
    let mut running = Running::start(&[], &wait());
    assert_eq!(running.line(), "begun\n");
    let (init, guest) = (running.init().unwrap(), running.guest().unwrap());
    assert_eq!(crate::harness::comm(init), "nsbox-init");
    for namespace in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&guest.to_string()), of("self"), "{namespace}");
        assert_eq!(of(&guest.to_string()), of(&init.to_string()), "{namespace}");
    }
    assert!(!running.cgroups().is_empty());
    running.child.kill().unwrap();
    running.finish();
}

#[test]
fn success_has_output_status_and_values() {
    let ran = run(&[], "print('well')\nresult = [1, 2.5, 'three']\nreport = 'fine'").expect("ok");
    assert_eq!((ran.status, ran.stdout().as_str()), (0, "well\n"));
    assert_eq!((&ran.json["result"], &ran.json["report"]), (&serde_json::json!([1, 2.5, "three"]), &"fine".into()));
    assert_eq!((ran.outcome.ended, ran.outcome.degraded), (Ended::Exited, false));
}

#[test]
fn termination_by_a_signal_ends_the_guest_first() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let running = Running::start(&["--json"], &wait());
        let (command, init, guest) = (running.child.id(), running.init().unwrap(), running.guest().unwrap());
        kill(Pid::from_raw(command.cast_signed()), signal).unwrap();
        let ran = judge(&running.finish()).expect("cancelled");
        assert_eq!(ran.status, 130, "{signal}");
        assert_eq!(ran.stdout(), "begun\n");
        assert!(!exists(init) && !exists(guest), "they are gone when the command is");
        assert!(cgroups_of(command).is_empty());
    }
}

#[test]
fn command_killed_outright_takes_the_guest_with_it() {
    let mut running = Running::start(&[], &wait());
    let (command, init, guest) = (running.child.id(), running.init().unwrap(), running.guest().unwrap());
    running.child.kill().unwrap();
    running.finish();
    until("init and the guest are gone", || !exists(init) && !exists(guest));
    // Nobody is left to remove its cgroup but the next run, whosever that is.
    run(&[], "pass").expect("ok");
    until("the next run has removed the cgroup", || cgroups_of(command).is_empty());
}

#[test]
fn failure_leaves_nothing() {
    run(&[], "pass").expect("ok");
    let stored = tree(store());
    for source in ["raise ValueError", "import os\nos.abort()", "this is no Python", "import os\nos._exit(7)"] {
        let mut command = nsbox(["run", "--json", "--no-check", "-"]);
        command.env("TMPDIR", "/nowhere");
        let output = feed(command, source.as_bytes());
        assert!(["error", "signal"].contains(&judge(&output).verdict()), "{source}");
    }
    // Other tests use the store as well, for the time being.
    until("nothing is in the store that was not", || tree(store()).is_subset(&stored));
    assert_eq!(cgroups_of(std::process::id()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn five_at_once_do_not_see_each_other() {
    run(&[], "pass").expect("ok");
    let source = r#"
import os, time
begun = time.time()
open("/tmp/mine", "x").write("ME")
time.sleep(0.3)
processes = [name for name in os.listdir("/proc") if name.isdigit()]
result = [open("/tmp/mine").read(), os.listdir("/tmp"), len(processes), os.getpid()]
"#;
    let pids: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..5)
            .map(|i| {
                scope.spawn(move || run(&[], &source.replace("ME", &i.to_string())).expect("ok").json["result"].clone())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (i, result) in pids.iter().enumerate() {
        assert_eq!(result, &serde_json::json!([i.to_string(), ["mine"], 2, 2]));
    }
}

#[test]
fn files_of_one_run_are_not_there_in_the_next() {
    let source = r#"
import os
places = ["/tmp", "/work", "/dev/shm"]
result = [sorted(set(os.listdir(place)) - {"stdin.py"}) for place in places]
for place in places:
    open(place + "/secret", "w").write("of the first run")
"#;
    for _ in 0..2 {
        assert_eq!(run(&[], source).expect("ok").json["result"], serde_json::json!([[], [], []]));
    }
}

#[test]
fn processes_left_running_are_gone_when_the_run_is_over() {
    let source = r#"
import ctypes, os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, b"straggler")
        os.close(1)
        os.close(2)
        time.sleep(60)
    os._exit(0)
os.wait()
while not any(open(f"/proc/{p}/comm").read() == "straggler\n" for p in os.listdir("/proc") if p.isdigit()):
    time.sleep(0.01)
"#;
    let begun = Instant::now();
    let ran = run(&[], source).expect("ok");
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!(ran.outcome.ended, Ended::Exited);
    let all =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    assert!(!all.into_iter().any(|pid| crate::harness::comm(pid) == "straggler"));
}

#[test]
fn timeout_leaves_nothing() {
    let running = Running::start(&["--json", "--timeout", "700ms"], &wait());
    let (command, init, guest) = (running.child.id(), running.init().unwrap(), running.guest().unwrap());
    let ran = judge(&running.finish()).expect("timeout");
    assert_eq!(ran.outcome.ended, Ended::Killed);
    assert!(!exists(init) && !exists(guest));
    assert!(cgroups_of(command).is_empty() && children(std::process::id()).iter().all(|child| *child != command));
}

#[test]
fn figures_are_plausible() {
    let source = r#"
import time
block = bytearray(50 << 20)
time.sleep(0.2)
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
"#;
    let begun = Instant::now();
    let ran = run(&["--cpus", "2"], source).expect("ok");
    let all = begun.elapsed().as_secs_f64() * 1e3;
    let (usage, timings) = (ran.outcome.usage, ran.outcome.timings);
    assert!((300.0..all).contains(&usage.wall_ms), "{usage:?} of {all}");
    let cpu = usage.cpu_user_ms.unwrap() + usage.cpu_system_ms.unwrap();
    assert!((180.0..all).contains(&cpu), "{usage:?}");
    let peak = usage.peak_memory_bytes.unwrap();
    assert!((50 << 20..200 << 20).contains(&peak), "{usage:?}");
    assert_eq!(usage.processes_peak, Some(1));
    assert!((timings.run_ms - usage.wall_ms).abs() < 1.0, "{timings:?}");
    assert!(timings.setup_ms > 0.0 && timings.teardown_ms > 0.0, "{timings:?}");
    let stages = timings.check_ms + timings.queue_ms + timings.setup_ms + timings.run_ms + timings.teardown_ms;
    assert!(stages < all, "{timings:?} of {all}");
}

#[test]
fn figures_of_a_script_that_does_nothing_are_small() {
    let ran = run(&[], "pass").expect("ok");
    assert!(ran.outcome.usage.wall_ms < 2_000.0);
    assert!(ran.outcome.usage.peak_memory_bytes.unwrap() < 64 << 20);
}
