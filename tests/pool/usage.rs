//! What a run is charged for: its own, whatever a run before it did in the same cgroup.

use std::collections::BTreeSet;

use nsbox::outcome::{Outcome, Value, Verdict};

use crate::harness::{alone, cgroups_of, until};
use crate::{RESTORED, builder, run};

/// Acts that a cgroup counts, with their verdicts.
const ACTS: [(&str, Verdict); 7] = [
    ("x = bytes(100 << 20)\nx = bytearray(100 << 20)", Verdict::Ok),
    ("open('/tmp/big', 'wb').write(bytes(20 << 20))", Verdict::Ok),
    ("result = bytes(8 << 20)", Verdict::Ok),
    (
        "import threading, time\nthreads = [threading.Thread(target=time.sleep, args=(0.05,)) for _ in range(8)]\n\
         for thread in threads: thread.start()\nfor thread in threads: thread.join()",
        Verdict::Ok,
    ),
    ("import os\nif os.fork() == 0: os._exit(0)\nos.wait()", Verdict::Ok),
    ("import time\nbegun = time.process_time()\nwhile time.process_time() < begun + 0.3: pass", Verdict::Ok),
    ("x = []\nwhile True: x.append(bytearray(1 << 20))", Verdict::Oom),
];
/// What a run may seem to have had that had it not: as far as a peak cannot be reset, and what is counted ahead.
const SLACK: u64 = 10 << 20;

fn peak(outcome: &Outcome) -> u64 {
    outcome.usage.peak_memory_bytes.unwrap()
}

/// CPU time in milliseconds.
fn cpu(outcome: &Outcome) -> f64 {
    outcome.usage.cpu_user_ms.unwrap() + outcome.usage.cpu_system_ms.unwrap()
}

#[test]
fn run_is_charged_for_nothing_of_an_earlier_one() {
    if !alone("usage::run_is_charged_for_nothing_of_an_earlier_one") {
        return;
    }
    let pool = builder(&[("limits.memory", "300m"), ("limits.result", "16m"), ("limits.cpus", "0.5")]);
    let pool = pool.slots(1).build().unwrap();
    let plain = || {
        let outcome = run(&pool, "result = 1");
        assert_eq!((outcome.verdict, &outcome.result), (Verdict::Ok, &Some(Value::Int(1))), "{outcome:#?}");
        outcome
    };
    let first = peak(&plain());
    let mut seen = [0_u64, 0, 0];
    for (act, verdict) in ACTS {
        let outcome = run(&pool, act);
        assert_eq!(outcome.verdict, verdict, "{act}: {outcome:#?}");
        let usage = &outcome.usage;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let now = [peak(&outcome), usage.processes_peak.unwrap(), cpu(&outcome) as u64];
        seen = std::array::from_fn(|i| seen[i].max(now[i]));
        for _ in 0..3 {
            let next = plain();
            assert!(peak(&next) < first + SLACK, "after {act}: {first} {next:#?}");
            assert_eq!(next.usage.processes_peak, Some(1), "after {act}: {next:#?}");
            assert!(cpu(&next) < 150.0, "after {act}: {next:#?}");
        }
    }
    // They did count.
    assert!(seen[0] > first + (80 << 20) && seen[1] == 9 && seen[2] > 200, "{first} {seen:?}");
}

/// A cgroup that a run has left as it was serves the next one; one that it has not, never again.
#[test]
fn cgroup_is_used_again_only_where_it_is_as_new() {
    if !alone("usage::cgroup_is_used_again_only_where_it_is_as_new") {
        return;
    }
    let name = |folder: &std::path::Path| folder.file_name().unwrap().to_owned();
    let here = || cgroups_of(std::process::id()).iter().map(|folder| name(folder)).collect::<BTreeSet<_>>();
    for (act, may_stay) in [("result = 1", true), ("import os\nif os.fork() == 0: os._exit(0)\nos.wait()", false)] {
        let pool = builder(&[]).slots(1).build().unwrap();
        until("the slot is warm", || pool.warmed() == 1);
        let mut all = here();
        for _ in 0..12 {
            assert_eq!(run(&pool, act).verdict, Verdict::Ok);
            until("a slot is ready", || pool.warmed() == 1);
            all.extend(here());
        }
        if !may_stay {
            assert!(all.len() >= 12, "{act}: {all:?}");
        } else if RESTORED || peaks_can_be_reset() {
            // The zygote's, the slot's, and that of the slot which is made while this one ends.
            assert!(all.len() <= 4, "{act}: {all:?}");
        } else {
            assert!(all.len() >= 12, "{act}: {all:?}");
        }
    }
}

/// Version 1, or version 2 from Linux 6.12 on.
fn peaks_can_be_reset() -> bool {
    let folders = cgroups_of(std::process::id());
    let is_v1 = folders.iter().any(|folder| folder.join("memory.limit_in_bytes").exists());
    let resets = |folder: &std::path::PathBuf| std::fs::write(folder.join("memory.peak"), "0").is_ok();
    is_v1 || folders.iter().any(resets)
}
