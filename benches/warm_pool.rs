//! The warm pool against a bare worker and a bare fork: `cargo bench --bench warm_pool`.
//!
//! Sides, interleaved within one run on one machine, so that the ratios carry:
//!
//! | side | what it is |
//! |---|---|
//! | `pool` | a [`Pool`], every layer and every cgroup limit on, the check too |
//! | `W` | a persistent worker with no sandbox: the same interpreter with the same imports, over the same kind of socket |
//! | `F` | `os.fork`, exit and wait of that interpreter |
//! | `docker` | `docker run` of S1, where `DOCKER_IMAGE` names an image of the engine at `DOCKER_HOST` |
//!
//! All of it twice, with slots of either kind (`slots: one-shot` and `restored`).
//!
//! Scripts: S0 is `1+1`, S1 a moving-average backtest over 500 rows. Cases: one at a time and one for each CPU at once, back to
//! back and after 20-100 ms of idle, and in bursts without a pause; throughput, CPU time and memory of slots.
//!
//! `PYTHON` names an interpreter with pandas, `IMAGE` a root file system that the pool against Docker runs on (that of
//! `DOCKER_IMAGE`), `ROUNDS` how often each side takes its turn, `SECONDS` how long each throughput is measured. Run it on a
//! quiet machine, as root for the CPU and memory figures: `benches/run` does all of it. Each line shows its first step and
//! its target.

#[path = "warm_pool/worker.rs"]
mod worker;

use std::env;
use std::error::Error;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nsbox::config::{Config, Slots};
use nsbox::outcome::Verdict;
use nsbox::pool::Pool;
use nsbox::sandbox::Watch;
use worker::Worker;

const S0: &str = "1+1\n";
const S1: &str = "import numpy as np
import pandas as pd

rng = np.random.default_rng(7)
close = pd.Series(100 * np.exp(np.cumsum(rng.normal(0, 0.01, 500))))
fast, slow = close.rolling(10).mean(), close.rolling(30).mean()
position = (fast > slow).astype(float).shift(1).fillna(0)
returns = close.pct_change().fillna(0) * position
equity = (1 + returns).cumprod()
result = {
    'total_return': float(equity.iloc[-1] - 1),
    'max_drawdown': float((equity / equity.cummax() - 1).min()),
    'sharpe': float(returns.mean() / returns.std() * np.sqrt(252)),
}
";

/// Slots of a pool.
const SLOTS: usize = 4;
/// Runs of a burst, for which there are twice as many slots.
const BURST: usize = 8;
/// Into how many parts the time of each throughput is cut, which take turns.
const TURNS: u32 = 3;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Times of one side, in microseconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn take<T>(&mut self, what: impl FnOnce() -> Result<T>) -> Result<()> {
        let begun = Instant::now();
        what()?;
        self.0.push(begun.elapsed().as_secs_f64() * 1e6);
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    fn at(&self, quantile: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * quantile).round() as usize]
    }
}

#[derive(Default)]
struct Round {
    pool: [Times; 2],
    worker: [Times; 2],
    fork: Times,
}

#[expect(clippy::print_stdout, reason = "the figures are what a benchmark is for")]
fn main() -> Result<()> {
    let python = env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let rounds: usize = env::var("ROUNDS").map_or(Ok(200), |rounds| rounds.parse())?;
    let seconds: f64 = env::var("SECONDS").map_or(Ok(3.0), |seconds| seconds.parse())?;
    let meter = CpuMeter::open();
    let workers = [Worker::start(&python)?, Worker::start(&python)?];
    for (slots, name) in [(Slots::OneShot, "one-shot"), (Slots::Restored, "restored")] {
        println!("\n==== slots: {name}");
        let mut config = Config { event_log: None, python: Some(python.clone().into()), slots, ..Config::default() };
        config.limits.cpus = 1.0;
        measure(config, &workers, meter.as_ref(), rounds, seconds)?;
    }
    Ok(())
}

/// The whole table for slots of one kind.
#[expect(clippy::print_stdout, reason = "the figures are what a benchmark is for")]
fn measure(config: Config, workers: &[Worker; 2], meter: Option<&CpuMeter>, rounds: usize, seconds: f64) -> Result<()> {
    let pool = Pool::builder(config.clone()).slots(SLOTS).build()?;
    let back_to_back = latencies(&pool, &workers[0], rounds, false)?;
    let idle = latencies(&pool, &workers[0], rounds / 2, true)?;
    for (name, round) in [("back to back", &back_to_back), ("after 20-100 ms of idle", &idle)] {
        print_times(name, round);
    }
    let fork = back_to_back.fork.at(0.5);
    let p50 = |times: &Times| times.at(0.5);
    println!("\n{:<58}{:>9}{:>12}{:>9}", "", "measured", "first step", "target");
    line("S1 / W(S1)", p50(&back_to_back.pool[1]) / p50(&back_to_back.worker[1]), "<= 1.3", "<= 1.10");
    line("(S0 - W(S0)) / F", (p50(&back_to_back.pool[0]) - p50(&back_to_back.worker[0])) / fork, "<= 0.05", "<= 0.02");
    line("S0 p99 / F", back_to_back.pool[0].at(0.99) / fork, "<= 0.10", "<= 0.05");
    line("  the same of W(S0), which has no sandbox", back_to_back.worker[0].at(0.99) / fork, "", "");
    line("S0 after idle / back to back", p50(&idle.pool[0]) / p50(&back_to_back.pool[0]), "", "<= 1.1");
    line("S1 after idle / back to back", p50(&idle.pool[1]) / p50(&back_to_back.pool[1]), "", "<= 1.1");
    for (side, name) in ["S0", "S1"].into_iter().enumerate() {
        let ratio = p50(&idle.worker[side]) / p50(&back_to_back.worker[side]);
        line(&format!("  the same of W({name}), which has no sandbox"), ratio, "", "");
    }

    crowded(&pool, workers, rounds / 4)?;
    pss(&pool, "warmed", "", "<= 0.08")?;
    let s1_cpu = meter.map(|meter| cpu_of(meter, &pool, S1, 200)).transpose()?;
    let fork_cpu = workers[0].number("C", "200")?;
    if let Some(s1_cpu) = s1_cpu {
        line("CPU per S1 / CPU per F", s1_cpu / fork_cpu, "<= 5", "<= 1.5");
    }
    let both = |kind: &str, text: &str| -> Result<f64> {
        thread::scope(|scope| {
            let other = scope.spawn(|| workers[1].ask(kind, text));
            let own = workers[0].number(kind, text)?;
            Ok(own + other.join().map_err(|_| "a thread panicked")??.parse::<f64>()?)
        })
    };
    let part = seconds / f64::from(TURNS);
    for callers in [2, 4] {
        let in_turns = |kind: &str, text: &str, source: &str| -> Result<[f64; 2]> {
            let (mut bare, mut runs) = (0.0, 0.0);
            for _ in 0..TURNS {
                settle(&pool, SLOTS);
                bare += both(kind, text)? / seconds;
                runs += throughput(&pool, source, part, callers)? / f64::from(TURNS);
            }
            Ok([runs, bare])
        };
        let [runs, forks] = in_turns("f", &part.to_string(), S0)?;
        let name = format!("S0 runs/s, {callers} callers / forks/s ({runs:.0} / {forks:.0})");
        line(&name, runs / forks, ">= 0.7", ">= 1.0");
        let [runs, loops] = in_turns("L", &format!("{part} {S1}"), S1)?;
        let name = format!("S1 runs/s, {callers} callers / in-process ({runs:.0} / {loops:.0})");
        line(&name, runs / loops, ">= 0.10", ">= 0.6");
        let [runs, forks] = in_turns("l", &format!("{part} {S1}"), S1)?;
        let name = format!("  the same / a bare fork for each ({runs:.0} / {forks:.0})");
        line(&name, runs / forks, "", "");
        // What the ratio of S1 depends on, beside the sandbox: 3 where a copied page costs 1.75 microseconds.
        line("  runs of S1 in-process in the CPU time of one F", fork_cpu * loops / 2.0, "", "");
    }
    drop(pool);
    bursts(Pool::builder(config.clone()).slots(2 * BURST).build()?, &workers[0], rounds / BURST)?;
    let plain = Pool::builder(Config { warm_up: "none".to_owned(), ..config.clone() }).slots(SLOTS).build()?;
    pss(&plain, "plain", "", "<= 0.02")?;
    drop(plain);
    docker(config, rounds / 20)
}

/// Runs that are asked for as soon as the last one is answered. The first of each burst comes out of sleep, and does not count.
fn bursts(pool: Pool, worker: &Worker, rounds: usize) -> Result<()> {
    let mut round = Round::default();
    let burst = |times: &mut Times, ask: &dyn Fn() -> Result<()>| {
        settle(&pool, 2 * BURST);
        ask()?;
        (0..BURST).try_for_each(|_| times.take(ask))
    };
    for _ in 0..rounds {
        for (side, source) in [S0, S1].into_iter().enumerate() {
            burst(&mut round.pool[side], &|| run(&pool, source))?;
            burst(&mut round.worker[side], &|| Ok(worker.ask("R", source).map(drop)?))?;
        }
        burst(&mut round.fork, &|| Ok(worker.ask("F", "").map(drop)?))?;
    }
    print_times("in bursts", &round);
    Ok(())
}

/// As many runs at once as there are CPUs: the slowest of each round is what is kept.
fn crowded(pool: &Pool, workers: &[Worker; 2], rounds: usize) -> Result<()> {
    let mut round = Round::default();
    for i in 0..rounds + 4 {
        if i == 4 {
            round = Round::default();
        }
        for (side, source) in [S0, S1].into_iter().enumerate() {
            settle(pool, SLOTS);
            let both = |one: &(dyn Fn(usize) -> std::result::Result<(), String> + Sync)| {
                let start = Barrier::new(2);
                let timed = |n| {
                    start.wait();
                    let begun = Instant::now();
                    one(n).map(|()| begun.elapsed().as_secs_f64() * 1e6)
                };
                thread::scope(|scope| {
                    let other = scope.spawn(|| timed(1));
                    let own = timed(0)?;
                    Ok::<_, String>([own, other.join().map_err(|_| "a thread panicked".to_owned())??])
                })
            };
            round.pool[side].0.extend(both(&|_| run(pool, source).map_err(|error| error.to_string()))?);
            let ask = |n: usize| workers[n].ask("R", source).map(drop).map_err(|error| error.to_string());
            settle(pool, SLOTS);
            round.worker[side].0.extend(both(&ask)?);
        }
        settle(pool, SLOTS);
        round.fork.0.push(workers[0].number("F", "")? * 1e6);
    }
    print_times("two at a time", &round);
    let fork = round.fork.at(0.5);
    let p50 = |times: &Times| times.at(0.5);
    line("S1 / W(S1), two at a time", p50(&round.pool[1]) / p50(&round.worker[1]), "<= 1.3", "<= 1.10");
    line("S0 p99 / F, two at a time", round.pool[0].at(0.99) / fork, "<= 0.10", "<= 0.05");
    line("  the same of W(S0)", round.worker[0].at(0.99) / fork, "", "");
    Ok(())
}

/// A warm S1 against `docker run` of it, in turns.
#[expect(clippy::print_stdout, reason = "the figures are what a benchmark is for")]
fn docker(config: Config, rounds: usize) -> Result<()> {
    let Ok(name) = env::var("DOCKER_IMAGE") else {
        println!("\nno DOCKER_IMAGE is named: S1 against docker run is left out");
        return Ok(());
    };
    let config = match env::var("IMAGE") {
        Ok(image) => Config { image, python: None, ..config },
        Err(_) => config,
    };
    let pool = Pool::builder(config).slots(2).build()?;
    let (mut warm, mut docker) = (Times::default(), Times::default());
    for i in 0..rounds.max(5) + 1 {
        if i == 1 {
            (warm, docker) = Default::default();
        }
        warm.take(|| run(&pool, S1))?;
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--network=none", "--memory=2g", "--cpus=1", &name, "python3", "-c", S1]);
        docker.take(|| {
            let output = command.stdin(Stdio::null()).output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() { Ok(()) } else { Err(said.into()) }
        })?;
    }
    let (warm, docker) = (warm.at(0.5), docker.at(0.5));
    let name = format!("docker run of S1 / S1 ({:.0} / {:.2} ms)", docker / 1e3, warm / 1e3);
    line(&name, docker / warm, ">= 100", ">= 300");
    Ok(())
}

/// Waits until the pool has all its slots, warmed up, and has done so for a moment.
fn settle(pool: &Pool, slots: usize) {
    while pool.warmed() < slots {
        sleep(Duration::from_millis(1));
    }
    sleep(Duration::from_millis(3));
}

/// Each side in turns. The pool is full before each, for what is timed is a run, not a queue: both sides come out of a few
/// milliseconds of sleep, and neither pays for what the other's last run has left to do.
fn latencies(pool: &Pool, worker: &Worker, rounds: usize, idle: bool) -> Result<Round> {
    let mut round = Round::default();
    for i in 0..rounds + 4 {
        if i == 4 {
            round = Round::default();
        }
        let nap = |n: u64| {
            settle(pool, SLOTS);
            if idle {
                sleep(Duration::from_millis(20 + (i as u64 * 37 + n * 23) % 80))
            }
        };
        for (side, source) in [S0, S1].into_iter().enumerate() {
            nap(1);
            round.pool[side].take(|| run(pool, source))?;
            nap(2);
            round.worker[side].take(|| Ok(worker.ask("R", source)?))?;
        }
        nap(3);
        round.fork.0.push(worker.number("F", "")? * 1e6);
    }
    Ok(round)
}

fn run(pool: &Pool, source: &str) -> Result<()> {
    let outcome = pool.run(source, Watch::default());
    if outcome.verdict == Verdict::Ok {
        Ok(())
    } else {
        Err(format!("{:?}: {}", outcome.verdict, outcome.message).into())
    }
}

/// Runs per second of so many callers, each of which asks again as soon as it is answered. Counted once those are used up that
/// were ready at the start.
#[expect(clippy::cast_precision_loss)]
fn throughput(pool: &Pool, source: &str, seconds: f64, callers: usize) -> Result<f64> {
    let begun = Instant::now() + Duration::from_millis(200);
    let ask = || -> std::result::Result<usize, String> {
        let mut count = 0;
        while begun.elapsed().as_secs_f64() < seconds {
            run(pool, source).map_err(|error| error.to_string())?;
            count += usize::from(Instant::now() > begun);
        }
        Ok(count)
    };
    let counts: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..callers).map(|_| scope.spawn(ask)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
            .collect()
    });
    let mut total = 0;
    for count in counts {
        total += count?;
    }
    Ok(total as f64 / begun.elapsed().as_secs_f64())
}

/// CPU seconds of this process, its zygote and its slots, by a cgroup around all of them.
struct CpuMeter(std::path::PathBuf);

impl CpuMeter {
    /// Enters a cgroup of its own, where this process may make one.
    fn open() -> Option<Self> {
        let folder = std::path::Path::new("/sys/fs/cgroup/cpuacct").join(format!("nsbox-bench-{}", std::process::id()));
        fs::create_dir(&folder).ok()?;
        fs::write(folder.join("cgroup.procs"), std::process::id().to_string()).ok()?;
        Some(Self(folder))
    }

    fn read(&self) -> Result<f64> {
        Ok(fs::read_to_string(self.0.join("cpuacct.usage"))?.trim().parse::<f64>()? / 1e9)
    }
}

impl Drop for CpuMeter {
    fn drop(&mut self) {
        fs::write("/sys/fs/cgroup/cpuacct/cgroup.procs", std::process::id().to_string()).ok();
        fs::remove_dir(&self.0).ok();
    }
}

/// CPU time of one run, with the making and ending of its slot.
fn cpu_of(meter: &CpuMeter, pool: &Pool, source: &str, runs: u32) -> Result<f64> {
    let settled = || {
        settle(pool, SLOTS);
        sleep(Duration::from_millis(50));
    };
    settled();
    let before = meter.read()?;
    for _ in 0..runs {
        settle(pool, SLOTS);
        run(pool, source)?;
    }
    settled();
    Ok((meter.read()? - before) / f64::from(runs))
}

/// Memory that a slot takes which waits: what it shares with nobody, as a share of the zygote's.
#[expect(clippy::cast_precision_loss)]
fn pss(pool: &Pool, kind: &str, first_step: &str, target: &str) -> Result<()> {
    settle(pool, SLOTS);
    let sum = |pid: u32, keys: &[&str]| -> Result<f64> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let lines = rollup.lines().filter(|line| keys.iter().any(|key| line.starts_with(key)));
        Ok(lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum())
    };
    let below = |pid: u32| -> Vec<u32> {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
        lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
    };
    let comm = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let init =
        below(std::process::id()).into_iter().find(|pid| comm(*pid).starts_with("nsbox-init")).ok_or("no init")?;
    let zygote = below(init).into_iter().find(|pid| !comm(*pid).starts_with("nsbox-init")).ok_or("no zygote")?;
    let slots = below(zygote);
    let mut own = 0.0;
    // A restorer and the slot that it stands over are one.
    for slot in slots.iter().copied().chain(slots.iter().flat_map(|slot| below(*slot))) {
        own += sum(slot, &["Private_Clean:", "Private_Dirty:"])? / slots.len() as f64;
    }
    let whole = sum(zygote, &["Rss:"])?;
    let name = format!("idle slot's own memory / zygote, {kind} ({:.1} of {:.0} MB)", own / 1024.0, whole / 1024.0);
    line(&name, own / whole, first_step, target);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the figures are what a benchmark is for")]
fn print_times(name: &str, round: &Round) {
    println!("\n{name}, microseconds\n{:<12}{:>10}{:>10}{:>10}", "", "p50", "p90", "p99");
    let sides = [
        ("pool S0", &round.pool[0]),
        ("W S0", &round.worker[0]),
        ("pool S1", &round.pool[1]),
        ("W S1", &round.worker[1]),
        ("F", &round.fork),
    ];
    for (name, times) in sides {
        println!("{name:<12}{:>10.0}{:>10.0}{:>10.0}", times.at(0.5), times.at(0.9), times.at(0.99));
    }
}

#[expect(clippy::print_stdout, reason = "the figures are what a benchmark is for")]
fn line(name: &str, measured: f64, first_step: &str, target: &str) {
    println!("{name:<58}{measured:>9.3}{first_step:>12}{target:>9}");
}
