//! What a pool leaves, and what becomes of it when something dies.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsbox::outcome::{Value, Verdict};

use crate::harness::{alone, cgroups_of, children, comm, is_root, patiently, require, until};
use crate::{builder, pool, run};

/// Every process below this one.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = children(pid);
    let mut at = 0;
    while at < found.len() {
        found.extend(children(found[at]));
        at += 1;
    }
    found
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// What may not grow: descriptors of this process, its mounts, all processes below it, their cgroups.
fn held() -> [usize; 4] {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap().lines().count();
    [descriptors(), mounts, descendants(std::process::id()).len(), cgroups_of(std::process::id()).len()]
}

/// The memory of this process and all below it, what they share counted once, in bytes. None where others may not be read.
/// Without that of files, whose share depends on who else has this program's.
fn memory() -> Option<u64> {
    let pss = |pid: u32| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let kib = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok())
        };
        Some(kib("Pss_Anon:")? + kib("Pss_Shmem:").unwrap_or(0_u64))
    };
    let all = [descendants(std::process::id()), vec![std::process::id()]].concat();
    is_root().then(|| all.into_iter().filter_map(pss).sum::<u64>() << 10)
}

/// What the run number `i` does, and how it ends.
fn deed(i: usize) -> (String, Verdict) {
    let name = |rest: &str| format!("import ctypes, time\nctypes.CDLL(None).prctl(15, b'target{i}')\n{rest}");
    match i % 100 {
        // Killed from outside, at any time: the script's process, or all of its sandbox.
        7 => (name("time.sleep(60)"), if i.is_multiple_of(2) { Verdict::Lost } else { Verdict::Signal }),
        27 => ("x = bytes(1) * (64 << 20)".to_owned(), Verdict::Oom),
        47 => ("while True: pass".to_owned(), Verdict::Timeout),
        57 => ("import os; os._exit(3)".to_owned(), Verdict::Error),
        67 => ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)".to_owned(), Verdict::Signal),
        77 => ("import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass".to_owned(), Verdict::Ok),
        87 => ("print('x' * 100_000)".to_owned(), Verdict::Ok),
        _ => (format!("result = {i}"), Verdict::Ok),
    }
}

/// Kills the guest of run `i`, or its init, once it has said its name, at a time of no pattern.
fn kill_target(i: usize, verdict: Verdict) {
    let own = std::process::id();
    let (name, mut found) = (format!("target{i}"), None);
    until("the target is there", || {
        found = descendants(own).into_iter().find(|pid| comm(*pid) == name);
        found.is_some()
    });
    std::thread::sleep(Duration::from_micros(i as u64 * 7919 % 20_000));
    let mut victim = found.unwrap();
    if verdict == Verdict::Lost {
        // The init that shares its pid namespace.
        let space = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own_space = space(victim);
        victim = descendants(own)
            .into_iter()
            .find(|pid| *pid != victim && comm(*pid) == "nsbox-init" && space(*pid) == own_space)
            .unwrap();
    }
    kill(Pid::from_raw(victim.cast_signed()), Signal::SIGKILL).unwrap();
}

/// `NSBOX_TEST_RUNS` runs, 600 without it; the whole figure is 10,000.
#[test]
fn many_runs_leave_nothing_and_are_told_apart() {
    /// Slots at once, and who asks.
    const MOST: usize = 8;
    const CALLERS: usize = 3;
    /// Cgroups that are kept for slots to come, and the descriptors of one at most.
    const SPARE: usize = 4;
    const FILES: usize = 12;
    if !alone("lifecycle::many_runs_leave_nothing_and_are_told_apart") {
        return;
    }
    if !require(is_root(), "right to name the namespaces of a guest") {
        return;
    }
    // Of this thread and those that it starts: what others mount meanwhile is not the pool's.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let runs: usize = std::env::var("NSBOX_TEST_RUNS").map_or(600, |text| text.parse().unwrap());
    let before = (held(), threads());
    let pool = builder(&[("limits.timeout", "3s"), ("limits.memory", "24m"), ("limits.cpus", "2")])
        .slots(3)
        .most(MOST)
        .build()
        .unwrap();
    until("three slots are ready", || pool.warmed() == 3 && cgroups_of(std::process::id()).len().is_multiple_of(4));
    let full = held();
    // The zygote has one too.
    let most_cgroups = full[3] / 4 * (4 + SPARE);
    let is_full = |held: [usize; 4]| held[1..3] == full[1..3] && (full[3]..=most_cgroups).contains(&held[3]);
    let settled = || until("all of them are there again, and no more", || pool.warmed() == 3 && is_full(held()));
    let mut fifths = Vec::new();
    for fifth in 0..5 {
        let next = AtomicUsize::new(fifth * runs / 5);
        let mut times: Vec<Duration> = std::thread::scope(|scope| {
            let caller = || {
                let mut times = Vec::new();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= (fifth + 1) * runs / 5 {
                        return times;
                    }
                    let (source, verdict) = deed(i);
                    let killer = source.contains("target").then(|| scope.spawn(move || kill_target(i, verdict)));
                    let begun = Instant::now();
                    let outcome = run(&pool, &source);
                    assert_eq!(outcome.verdict, verdict, "run {i}: {outcome:#?}");
                    if source.starts_with("result") {
                        assert_eq!(outcome.result, Some(Value::Int(i as i128)));
                        times.push(begun.elapsed());
                    }
                    killer.into_iter().for_each(|killer| killer.join().unwrap());
                }
            };
            let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(caller)).collect();
            callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
        });
        times.sort();
        settled();
        fifths.push((times[times.len() / 2], times[times.len() * 99 / 100], held(), memory()));
    }
    for (p50, p99, held, memory) in &fifths {
        eprintln!("p50 {p50:?}, p99 {p99:?}, descriptors, mounts, processes, cgroups {held:?}, memory {memory:?}");
    }
    let (first, last) = (&fifths[0], &fifths[4]);
    // Network namespaces are kept for later slots: never more than there were slots at once.
    assert!(last.2[0] < first.2[0] + MOST + SPARE * FILES, "{:?} {:?}", first.2, last.2);
    assert!(is_full(first.2) && is_full(last.2), "{full:?} {:?} {:?}", first.2, last.2);
    // The allocator of this process and the zygote's heap have found their size by the middle.
    let (middle_memory, last_memory) = (fifths[2].3.unwrap(), last.3.unwrap());
    assert!(last_memory < middle_memory + (4 << 20), "{middle_memory} {last_memory}");
    // Others may load the machine for a while; what grows without end shows in the median.
    assert!(last.0 < first.0 * 3 + Duration::from_millis(5), "{:?} {:?}", first.0, last.0);
    assert_eq!(pool.counts().crashes, 0);
    drop(pool);
    assert_eq!((held(), threads()), before);
}

#[test]
fn runs_that_wait_outlive_a_zygote() {
    if !alone("lifecycle::runs_that_wait_outlive_a_zygote") {
        return;
    }
    let pool = builder(&[]).slots(2).build().unwrap();
    let handles: Vec<_> =
        (0..60).map(|i| pool.submit(format!("import time; time.sleep(0.02)\nresult = {i}"))).collect();
    // The second one perhaps on its way still: then it is the start that fails, and is tried again.
    let mut killed = Vec::new();
    for crashes in 1..=2 {
        std::thread::sleep(patiently(Duration::from_millis(200)));
        let mut next = None;
        until("there is a zygote", || {
            next = children(std::process::id())
                .into_iter()
                .find(|pid| comm(*pid) == "nsbox-init" && !killed.contains(pid));
            next.is_some()
        });
        kill(Pid::from_raw(next.unwrap().cast_signed()), Signal::SIGKILL).unwrap();
        killed.extend(next);
        until("its death is known", || pool.counts().crashes == crashes);
    }
    let outcomes: Vec<_> = handles.into_iter().map(nsbox::pool::Handle::wait).collect();
    for (i, outcome) in outcomes.iter().enumerate() {
        match outcome.verdict {
            Verdict::Ok => assert_eq!(outcome.result, Some(Value::Int(i as i128))),
            verdict => assert_eq!(verdict, Verdict::Lost, "{outcome:#?}"),
        }
    }
    // Each time those that ran, and as many that were given a slot which was dying already.
    let lost = outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Lost).count();
    assert!(lost <= 8, "{lost}");
    assert_eq!(pool.counts().crashes, 2, "{:?}", pool.counts());
}

#[test]
fn dead_zygote_is_replaced_and_only_what_ran_is_lost() {
    if !alone("lifecycle::dead_zygote_is_replaced_and_only_what_ran_is_lost") {
        return;
    }
    let pool = pool(&[]);
    let zygote = || children(std::process::id()).into_iter().find(|pid| comm(*pid) == "nsbox-init");
    let first = zygote().unwrap();
    let running = pool.submit("import time; time.sleep(60)");
    std::thread::sleep(Duration::from_millis(300));
    kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL).unwrap();
    let lost = running.wait();
    assert_eq!(lost.verdict, Verdict::Lost, "{lost:#?}");
    for i in 0..5 {
        let outcome = run(&pool, &format!("result = {i}"));
        assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
    }
    assert!(zygote().is_some_and(|next| next != first));
    assert_eq!(pool.counts().crashes, 1, "{:?}", pool.counts());
}

#[test]
fn zygote_is_rotated() {
    if !alone("lifecycle::zygote_is_rotated") {
        return;
    }
    let pool = builder(&[]).slots(2).rotate_after(5).build().unwrap();
    for i in 0..30 {
        let outcome = run(&pool, &format!("result = {i}"));
        assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    until("there is a successor", || pool.counts().zygotes > 1);
    assert_eq!(pool.counts().crashes, 0);
    // The old ones are gone once their last slot is.
    until("one zygote is left", || children(std::process::id()).len() == 1);
}

#[test]
fn everything_dies_with_the_host() {
    /// Set in the host that is killed.
    const HOST: &str = "NSBOX_TEST_HOST";
    if std::env::var_os(HOST).is_some() {
        let pool = pool(&[]);
        let handle = pool.submit("import time; time.sleep(60)");
        std::thread::sleep(Duration::from_millis(300));
        eprintln!("ready");
        drop(handle.wait());
        return;
    }
    if !alone("lifecycle::everything_dies_with_the_host") {
        return;
    }
    let mut host = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lifecycle::everything_dies_with_the_host", "--nocapture"])
        .env(HOST, "1")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(host.stderr.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "ready"));
    let all = descendants(host.id());
    assert!(all.len() >= 4, "{all:?}");
    host.kill().unwrap();
    host.wait().unwrap();
    until("all its processes are gone", || all.iter().all(|pid| comm(*pid).is_empty()));
}
