//! Accounts for a run: from the evidence to the outcome.
//!
//! The verdict is decided here and nowhere else, from what the kernel said. The guest's own document fills in values and
//! the text of its exception; of how it ended, it is not asked.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::cgroup::{self, Counters};
use super::evidence::{End, Evidence, Kill, Stream};
use super::rlimits::{self, Rlimit};
use super::supervise;
use super::{Error, Sandbox, artifacts, idmap, seccomp};
use crate::check::{Report, render_text};
use crate::config::{Config, Limits, duration_text, size_text};
use crate::outcome as record;
use crate::outcome::{
    Backend, Ended, Enforced, Layer, LayerStatus, Outcome, Timings, Usage, Value, Verdict, Violation,
};

/// What a guest's document may take beyond the values in it.
const DOCUMENT_OVERHEAD: u64 = 64 << 10;

/// The longest document of a guest whose values may take `limit` bytes.
pub(crate) fn longest_document(limit: u64) -> usize {
    to_usize(limit.saturating_add(DOCUMENT_OVERHEAD))
}

/// One run's account, open until its end.
#[derive(Debug)]
pub(crate) struct Account<'a> {
    sandbox: &'a Sandbox,
    id: String,
    begun: Instant,
    enforced: Enforced,
    /// The limits of each process, as they can be set.
    pub rlimits: Vec<Rlimit>,
    /// The host ids that stand for the guest's.
    pub host_ids: (u32, u32),
    /// How long the check took.
    pub check: Duration,
}

impl<'a> Account<'a> {
    pub(crate) fn begin(sandbox: &'a Sandbox) -> Self {
        Self {
            sandbox,
            id: new_id(),
            begun: Instant::now(),
            enforced: Enforced::default(),
            rlimits: rlimits::of(&sandbox.config.limits),
            host_ids: sandbox.ids.of_this_thread(),
            check: Duration::ZERO,
        }
    }

    /// The account of a run in a slot that has been armed before.
    pub(crate) fn of_slot(sandbox: &'a Sandbox, enforced: Enforced, host_ids: (u32, u32)) -> Self {
        let begun = Instant::now();
        Self { sandbox, id: new_id(), begun, enforced, rlimits: Vec::new(), host_ids, check: Duration::ZERO }
    }

    /// The layers that [`Account::armed`] noted.
    pub(crate) fn into_enforced(self) -> Enforced {
        self.enforced
    }

    /// Notes the layers: init has said that every call of the plan succeeded.
    pub(crate) fn armed(&mut self, cgroup: Option<&cgroup::Cgroup>) {
        let (uid, gid) = self.host_ids;
        let guest = idmap::GUEST_ID;
        let config = &self.sandbox.config;
        self.enforced = Enforced {
            namespaces: Layer::applied("user, mount, pid, net, ipc, uts, cgroup"),
            user_map: Layer::applied(format!("uid {guest} is {uid} outside, gid {guest} is {gid}, setgroups denied")),
            root: Layer::applied(format!("{}, read-only, pivoted into", self.sandbox.image.name)),
            capabilities: Layer::applied("none in any set, bounding set empty"),
            no_new_privs: Layer::applied("set"),
            seccomp: Layer::applied(config.seccomp.clone()),
            landlock: match self.sandbox.landlock {
                Some(abi) => Layer::applied(format!("ABI {abi}")),
                None => Layer::missing("newest ABI", "the kernel has no Landlock, or it is not enabled (lsm=landlock)"),
            },
            cgroup: self.cgroup_layers(cgroup),
            rlimits: rlimit_layer(&self.rlimits),
            memfd_noexec: if super::sets_memfd_noexec(self.sandbox.ids) {
                Layer::applied("vm.memfd_noexec=2 in the sandbox's pid namespace")
            } else {
                Layer::applied("memfd_create without MFD_NOEXEC_SEAL refused by seccomp")
            },
        };
    }

    /// Notes these layers.
    pub(crate) fn note(&mut self, enforced: Enforced) {
        self.enforced = enforced;
    }

    /// The layers that each process has by itself; the others are not asked.
    pub(crate) fn layers_of_processes(&self) -> Enforced {
        let no_new_privs = Layer::applied("set");
        Enforced { no_new_privs, rlimits: rlimit_layer(&self.rlimits), ..Enforced::default() }
    }

    /// Notes that none of the layers is there.
    pub(crate) fn unarmed(&mut self, why: &str) {
        self.armed(None);
        self.enforced.miss_all(why);
    }

    fn cgroup_layers(&self, cgroup: Option<&cgroup::Cgroup>) -> record::Cgroup {
        let Limits { memory, pids, cpus, .. } = self.sandbox.config.limits;
        let asked = [size_text(memory), pids.to_string(), cpus.to_string()];
        let [memory, pids, cpu] = match cgroup {
            Some(cgroup) => {
                let mut files = cgroup.limit_files().into_iter();
                asked.map(|value| Layer {
                    status: LayerStatus::Applied,
                    applied: files.next(),
                    configured: Some(value),
                    why: None,
                })
            }
            None => {
                let why = self.sandbox.ground.why_no_cgroup();
                let weaker =
                    ["measured by the supervisor every 20 ms", "RLIMIT_NPROC in the sandbox's user namespace", ""];
                let mut weaker = weaker.into_iter();
                asked.map(|value| Layer {
                    applied: weaker.next().filter(|text| !text.is_empty()).map(str::to_owned),
                    ..Layer::missing(value, why)
                })
            }
        };
        record::Cgroup { version: cgroup.map(cgroup::Cgroup::version), memory, pids, cpu }
    }

    /// The check refused the source; nothing ran.
    pub(crate) fn rejected(self, report: &Report) -> Outcome {
        rejected(self.id, &image_name(self.sandbox), self.check, report)
    }

    /// The run is over and nothing of it is left.
    pub(crate) fn close(self, evidence: Evidence, counters: Option<Counters>, folder: Option<&Path>) -> Outcome {
        let (started, ended) = (evidence.started, evidence.ended);
        let measured = evidence.measured.as_ref().map(|m| (m.memory, m.processes, m.cpu));
        let oom = counters.is_some_and(|counters| counters.oom_kills > 0);
        let config = &self.sandbox.config;
        let mut outcome =
            settle(Outcome::new(self.id, Verdict::Lost), Backend::Namespace, config, evidence, oom, folder);
        outcome.image = Some(image_name(self.sandbox));
        outcome.degraded = self.enforced.degraded();
        outcome.enforced = self.enforced;

        let since = |from: Option<Instant>, to: Option<Instant>| {
            milliseconds(to.zip(from).map_or(Duration::ZERO, |(to, from)| to.saturating_duration_since(from)))
        };
        outcome.usage = usage(counters, measured, since(started, ended));
        outcome.timings = Timings {
            check_ms: milliseconds(self.check),
            queue_ms: 0.0,
            setup_ms: since(Some(self.begun), started.or(ended)),
            run_ms: since(started, ended),
            teardown_ms: since(ended, Some(Instant::now())),
        };
        outcome
    }
}

/// Decides how a run that is over ended, and fills in what it left: the verdict, the output, the values, the artifacts. `oom`:
/// whether the kernel killed for want of memory.
pub(crate) fn settle(
    mut outcome: Outcome,
    backend: Backend,
    config: &Config,
    evidence: Evidence,
    oom: bool,
    folder: Option<&Path>,
) -> Outcome {
    let Evidence { end, kill, stdout, stderr, violations, started, answer, document, result, output, .. } = evidence;
    let answered = answer.is_some();
    // An answer says that the script ended with status 0.
    let end = if answered { Some(End::Exited(0)) } else { end };
    let verdict = verdict(end, kill.as_ref(), oom, started.is_some());
    outcome.verdict = verdict;
    outcome.backend = Some(backend);
    match end {
        Some(End::Exited(code)) => outcome.exit_code = Some(code),
        Some(End::Signalled(signal)) => outcome.signal = Some(signal),
        None => {}
    }
    outcome.ended = match (verdict, end) {
        (Verdict::Lost, _) => Ended::Lost,
        _ if answered => Ended::Answered,
        (_, Some(End::Exited(_))) => Ended::Exited,
        _ => Ended::Killed,
    };
    (outcome.stdout, outcome.stdout_truncated) = (stdout.bytes, stdout.truncated);
    (outcome.stderr, outcome.stderr_truncated) = (stderr.bytes, stderr.truncated);
    outcome.violations = violations
        .into_iter()
        .map(|(nr, count)| Violation { syscall: seccomp::syscall_name(nr.into()).into_owned(), count })
        .collect();
    explain(&mut outcome, config, kill.as_ref());
    for (stream, truncated) in [("stdout", outcome.stdout_truncated), ("stderr", outcome.stderr_truncated)] {
        if truncated && verdict != Verdict::OutputLimit {
            outcome.say(&format!("{stream} was cut at {} (--output-limit)", size_text(config.limits.output)));
        }
    }
    if matches!(verdict, Verdict::Ok | Verdict::Error) {
        let limit = config.limits.result;
        let document = answer
            .or(document)
            .map_or_else(|| result.map(|file| read_document(&file, limit)).transpose(), |document| Ok(Some(document)));
        take_result(&mut outcome, document, limit);
    }
    if let (Some(output), Some(folder)) = (output, folder) {
        take_artifacts(&mut outcome, output, folder, config.limits.artifacts);
    }
    outcome
}

/// The check refused the source; nothing ran.
pub(crate) fn rejected(id: String, image: &str, check: Duration, report: &Report) -> Outcome {
    let mut outcome = Outcome::new(id, Verdict::Rejected);
    outcome.image = Some(image.to_owned());
    outcome.message = render_text(std::slice::from_ref(report)).trim_end().to_owned();
    outcome.timings.check_ms = milliseconds(check);
    outcome
}

/// An outcome for a run that never began, or that the supervisor lost.
pub(crate) fn failed(config: &Config, image: &str, error: &Error) -> Outcome {
    let (verdict, ended) = match error {
        Error::Run(supervise::Error::Cancelled) => (Verdict::Cancelled, Ended::NotStarted),
        Error::Run(supervise::Error::Unreaped | supervise::Error::Supervisor { .. }) => (Verdict::Lost, Ended::Lost),
        _ => (Verdict::Unavailable, Ended::NotStarted),
    };
    let mut outcome = Outcome::new(new_id(), verdict);
    outcome.image = Some(image.to_owned());
    outcome.message = error.explain();
    outcome.ended = ended;
    if verdict == Verdict::Lost {
        outcome.backend = Some(Backend::Namespace);
    } else if config.allow_degraded {
        outcome.say("allow_degraded is set, but this layer has no weaker form");
    }
    outcome
}

/// An outcome for a run that never began.
pub(crate) fn unavailable(image: &str, why: &str) -> Outcome {
    let mut outcome = Outcome::new(new_id(), Verdict::Unavailable);
    outcome.image = Some(image.to_owned());
    outcome.message = why.to_owned();
    outcome
}

/// How a run ended. What the supervisor killed for comes before what the kernel says of the killed.
fn verdict(end: Option<End>, kill: Option<&Kill>, oom: bool, started: bool) -> Verdict {
    match (kill, end) {
        (Some(Kill::Timeout | Kill::CpuTime), _) => Verdict::Timeout,
        (Some(Kill::Violation(_)), _) => Verdict::Violation,
        (Some(Kill::Cancelled), _) => Verdict::Cancelled,
        (Some(Kill::Output(_) | Kill::Disk), _) => Verdict::OutputLimit,
        (Some(Kill::Memory), _) => Verdict::Oom,
        (None, _) if oom => Verdict::Oom,
        (None, Some(_)) if !started => Verdict::Unavailable,
        (None, Some(End::Exited(0))) => Verdict::Ok,
        (None, Some(End::Exited(_))) => Verdict::Error,
        // A call of another architecture: the filter kills without asking.
        (None, Some(End::Signalled(libc::SIGSYS))) => Verdict::Violation,
        (None, Some(End::Signalled(libc::SIGXCPU))) => Verdict::Timeout,
        (None, Some(End::Signalled(_))) => Verdict::Signal,
        (None, None) => Verdict::Lost,
    }
}

/// Says why, and which knob to turn.
fn explain(outcome: &mut Outcome, config: &Config, kill: Option<&Kill>) {
    let limits = &config.limits;
    let sentence = match (outcome.verdict, kill) {
        (Verdict::Timeout, Some(Kill::Timeout)) => {
            format!("the script ran longer than {} (--timeout)", duration_text(limits.timeout))
        }
        (Verdict::Timeout, _) => {
            let limit = limits.cpu_time.map_or_else(|| "its CPU time limit".to_owned(), duration_text);
            format!("the script used more than {limit} of CPU time (--cpu-time)")
        }
        (Verdict::Oom, _) => format!("the script used more than {} of memory (--memory)", size_text(limits.memory)),
        (Verdict::OutputLimit, Some(Kill::Output(stream))) => {
            let stream = if *stream == Stream::Stdout { "stdout" } else { "stderr" };
            format!("the script wrote more than {} to {stream} (--output-limit)", size_text(limits.output))
        }
        (Verdict::OutputLimit, Some(Kill::Disk)) => {
            let (disk, inodes) = (size_text(limits.disk), limits.inodes);
            format!("the script's files are more than {disk}, or than {inodes} (--disk, limits.inodes)")
        }
        (Verdict::Violation, Some(Kill::Violation(nr))) => {
            format!("the script called {}, for which seccomp kills", seccomp::syscall_name((*nr).into()))
        }
        (Verdict::Violation, _) if outcome.backend == Some(Backend::Docker) => {
            "the script made a system call for which seccomp kills; Docker cannot say which".to_owned()
        }
        (Verdict::Violation, _) => "the script made a system call of another architecture".to_owned(),
        (Verdict::Signal, _) => {
            let number = outcome.signal.unwrap_or_default();
            let name = nix::sys::signal::Signal::try_from(number).map_or("signal", nix::sys::signal::Signal::as_str);
            format!("the script was killed by {name} ({number}), sent by itself or the kernel for a fault")
        }
        (Verdict::Cancelled, _) => "the run was cancelled".to_owned(),
        (Verdict::Unavailable, _) => {
            let said = String::from_utf8_lossy(&outcome.stderr).trim().to_owned();
            format!("the interpreter ended before the script's first line: {said}")
        }
        (Verdict::Lost, _) => {
            "the sandbox's init was killed from outside: it is unknown whether the script ran to its end".to_owned()
        }
        (Verdict::Ok | Verdict::Error | Verdict::Rejected | Verdict::OutputLimit, _) => return,
    };
    outcome.say(&sentence);
}

/// Reads the guest's document: values and the text of its exception, nothing of how it ended.
fn take_result(outcome: &mut Outcome, document: io::Result<Option<Vec<u8>>>, limit: u64) {
    let Some(document) = document.transpose() else { return };
    let limits = record::Limits { bytes: longest_document(limit), ..record::Limits::default() };
    let document = match document.map(|bytes| record::decode(&bytes, &limits)) {
        Ok(Ok(document)) => document,
        Ok(Err(record::Error::TooLarge { .. })) => return over_limit(outcome, limit),
        Ok(Err(error)) => {
            outcome.verdict = Verdict::Error;
            return outcome.say(&format!("the result cannot be read: {error}"));
        }
        Err(error) => {
            outcome.verdict = Verdict::Lost;
            return outcome.say(&format!("failed to read the result: {error}"));
        }
    };
    if document.over_limit.is_some() && outcome.verdict == Verdict::Ok {
        return over_limit(outcome, limit);
    }
    outcome.attach(document);
}

fn over_limit(outcome: &mut Outcome, limit: u64) {
    outcome.verdict = Verdict::OutputLimit;
    outcome.say(&format!("the result is larger than {} (limits.result)", size_text(limit)));
}

/// The document's bytes; one more than may be, where there are too many.
fn read_document(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let size = file.metadata()?.len().min(limit.saturating_add(DOCUMENT_OVERHEAD + 1));
    let mut bytes = vec![0; to_usize(size)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn take_artifacts(outcome: &mut Outcome, output: std::os::fd::OwnedFd, folder: &Path, limit: u64) {
    match artifacts::collect(output, folder, limit) {
        Ok(found) => {
            outcome.artifacts = found.files;
            for note in &found.notes {
                outcome.say(note);
            }
            if found.over_limit && outcome.verdict == Verdict::Ok {
                outcome.verdict = Verdict::OutputLimit;
            }
        }
        Err(error) => {
            outcome.verdict = Verdict::Lost;
            outcome.say(&format!("failed to copy the artifacts to {}: {error}", folder.display()));
        }
    }
}

fn usage(counters: Option<Counters>, measured: Option<(u64, u64, Duration)>, wall_ms: f64) -> Usage {
    let mut usage = Usage { wall_ms, ..Usage::default() };
    if let Some(counters) = counters {
        usage.cpu_user_ms = Some(milliseconds(counters.cpu_user));
        usage.cpu_system_ms = Some(milliseconds(counters.cpu_system));
        usage.peak_memory_bytes = counters.memory_peak;
        // Init is not the script's.
        usage.processes_peak = counters.processes_peak.map(|peak| peak.saturating_sub(1));
    } else if let Some((memory, processes, _)) = measured {
        usage.peak_memory_bytes = Some(memory);
        usage.processes_peak = Some(processes);
    }
    usage
}

fn rlimit_layer(limits: &[Rlimit]) -> Layer {
    let list = |value: fn(&Rlimit) -> u64| {
        limits.iter().map(|limit| format!("{}={}", limit.name, value(limit))).collect::<Vec<_>>().join(" ")
    };
    let mut layer = Layer::applied(list(|limit| limit.configured));
    layer.applied = Some(list(|limit| limit.applied));
    if layer.applied != layer.configured {
        layer.why = Some("this process's own hard limits are lower (ulimit -H)".to_owned());
    }
    layer
}

/// The content of each `.pyc` that the compile script left in `result`.
pub(crate) fn files_of(outcome: &Outcome) -> Vec<(&str, &[u8])> {
    let Some(Value::Dict(entries)) = &outcome.result else { return Vec::new() };
    let files = entries.iter().filter_map(|(name, value)| match value {
        Value::Bytes(bytes) => Some((name.as_str(), bytes.as_slice())),
        _ => None,
    });
    files.collect()
}

fn image_name(sandbox: &Sandbox) -> String {
    sandbox.image.digest.clone().unwrap_or_else(|| sandbox.image.name.clone())
}

/// Unique, and in the order of time.
pub(crate) fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn to_usize(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
