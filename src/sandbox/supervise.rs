//! Watches one run from outside: its output, its clock, its memory events, its refused calls, and its end.
//!
//! One thread, one poll loop. What it returns is what the kernel said: init's waitid, the cgroup's counters, seccomp's
//! notifications, and which limit made the supervisor kill. See pidfd_open(2), seccomp_unotify(2), poll(2).

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, send};
use nix::sys::time::TimeSpec;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::ast_only::Folder;
use super::channels::{self, Channels, Supervised};
use super::error::failed as step_failed;
use super::evidence::{End, Evidence, Kill, Stream};
use super::line::Line;
use super::measure::Measure;
use super::meter::Meter;
use super::nest::Nest;
use super::plan::Plan;
use super::script::Sink;
use super::seccomp::{Denial, Program};
use crate::config::Limits;
use crate::sys::fd::adopt;
use crate::sys::notify;
use crate::sys::program::{
    COMMAND_GO, REPORT_ENDED, REPORT_FAILED, REPORT_LISTENER, REPORT_ORPHANED, REPORT_OUTPUT, REPORT_READY, Report,
};

/// After this many calls that were refused, or told, each answer waits a little, so that a flood of them costs the supervisor
/// next to nothing.
const FLOOD: u64 = 10_000;
/// What is read of a stream at once, in bytes, and what a pipe may hold (fs.pipe-max-size is 1 MiB without a setting).
const PIECE: usize = 16 << 10;
const FULLEST_PIPE: usize = 4 << 20;
/// How long the killed may take to be gone, before the supervisor says that it cannot tell.
pub(crate) const REAP_PATIENCE: Duration = Duration::from_secs(10);
/// How often the clocks that no descriptor announces are read.
const MEASURE_EVERY: Duration = Duration::from_millis(20);

/// Why a run did not begin, or cannot be accounted for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call of the set-up failed.
    #[error("failed to {step}")]
    Step {
        /// What was tried.
        step: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The set-up took longer than it may.
    #[error("the set-up took longer than {0:?} (limits.setup_timeout)")]
    SetupTimeout(Duration),
    /// The caller gave up before the script began.
    #[error("cancelled before the script began")]
    Cancelled,
    /// Init died without a word.
    #[error("the sandbox's init died during the set-up; the memory or process limit may be too low for it")]
    InitDied,
    /// A call of the supervisor's own failed.
    #[error("failed to {step}")]
    Supervisor {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The processes of the run would not end.
    #[error("the run was killed, but its processes were not gone after {REAP_PATIENCE:?}")]
    Unreaped,
}

/// What a run is watched by; the descriptors are the supervisor's ends.
pub(crate) struct Supervisor<'a, 's> {
    pub nest: Nest,
    pub channels: Supervised,
    pub cancel: Option<BorrowedFd<'a>>,
    pub limits: &'a Limits,
    pub program: &'a Program,
    pub sink: Option<&'a mut Sink<'s>>,
    pub listener: Option<OwnedFd>,
    /// Called once, if the run goes on until then.
    pub long: Option<(Instant, &'a dyn Fn())>,
    /// What stands for the run's own file system, where it has none.
    pub folder: Option<&'a Folder>,
    /// Of a warm run.
    pub line: Option<Line<'a>>,
    pub evidence: Evidence,
}

impl<'a> Supervisor<'a, '_> {
    /// The supervisor of a run whose init has its plan: from now on init alone holds the guest's ends of `channels`.
    pub(crate) fn of(
        nest: Nest,
        channels: Channels,
        limits: &'a Limits,
        program: &'a Program,
    ) -> Result<Self, super::Error> {
        let channels = channels.detach().map_err(step_failed("start a thread for the script's standard input"))?;
        Ok(Self {
            nest,
            channels,
            cancel: None,
            limits,
            program,
            sink: None,
            listener: None,
            long: None,
            folder: None,
            line: None,
            evidence: Evidence::default(),
        })
    }

    /// Hands over the script's text, and starts the guest once init has carried out the whole set-up.
    pub(crate) fn start(&mut self, text: &[u8], plan: &Plan, deadline: Instant) -> Result<(), super::Error> {
        if let Some(mut code) = self.channels.code.take() {
            channels::write_sealed(&mut code, text).map_err(step_failed("hand over the script"))?;
        }
        self.wait_ready(plan, deadline)?;
        send(self.nest.control.as_raw_fd(), &COMMAND_GO.to_ne_bytes(), MsgFlags::MSG_NOSIGNAL)
            .map_err(|errno| Error::Supervisor { step: "start the guest", source: errno.into() })?;
        Ok(())
    }

    /// Waits until init has carried out the whole set-up.
    pub(crate) fn wait_ready(&mut self, plan: &Plan, deadline: Instant) -> Result<(), Error> {
        loop {
            let mut set = vec![PollFd::new(self.nest.control.as_fd(), PollFlags::POLLIN)];
            set.extend(self.cancel.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            poll(&mut set, Some(deadline))?;
            if set.get(1).is_some_and(ready) {
                return Err(Error::Cancelled);
            }
            if !ready(&set[0]) {
                return Err(Error::SetupTimeout(self.limits.setup_timeout));
            }
            match self.receive()? {
                Some(report) if report.kind == REPORT_READY => return Ok(()),
                Some(report) if report.kind == REPORT_FAILED => return Err(failed(plan, report)),
                Some(_) => {}
                None => return Err(Error::InitDied),
            }
        }
    }

    /// Watches the started guest until nothing of it is left.
    pub(crate) fn run(&mut self, plan: &Plan, setup_deadline: Instant) -> Result<Evidence, Error> {
        let outcome = self.watch(Some(plan), setup_deadline);
        if outcome.is_err() {
            self.nest.kill();
        }
        let reaped = self.reap(Some(plan));
        self.drain();
        outcome.and(reaped)?;
        self.evidence.result = self.channels.result.take();
        Ok(std::mem::take(&mut self.evidence))
    }

    /// Watches a slot that has its request, until it has answered or nothing of it is left.
    pub(crate) fn run_warm(&mut self, deadline: Instant) -> Result<Evidence, Error> {
        let outcome = self.watch(None, deadline);
        let answered = outcome.is_ok() && self.evidence.answer.is_some();
        let mut reaped = Ok(());
        if !answered {
            // Its init does not end with the guest.
            self.nest.kill();
            reaped = self.reap(None);
        }
        self.drain();
        outcome.and(reaped)?;
        if answered && self.evidence.kill.is_some() {
            self.evidence.answer = None;
        }
        self.evidence.result = self.channels.result.take();
        Ok(std::mem::take(&mut self.evidence))
    }

    /// The poll loop: from the start of the guest to its answer, to the end of its main process, or its killing. `plan` is
    /// that of a guest that has yet to begin.
    fn watch(&mut self, plan: Option<&Plan>, mut deadline: Instant) -> Result<(), Error> {
        let mut next_measure = self.measures().then(|| Instant::now() + MEASURE_EVERY);
        let mut open = [true; 4]; // start, stdout, stderr, the line of a warm run
        loop {
            let fds: [Option<BorrowedFd<'_>>; 9] = [
                Some(self.nest.control.as_fd()),
                Some(self.nest.init.pidfd.as_fd()),
                self.listener.as_ref().map(AsFd::as_fd),
                self.nest.room.as_ref().and_then(|room| room.oom.as_ref()).map(AsFd::as_fd),
                self.cancel,
                self.channels.start.as_ref().filter(|_| open[0]).map(AsFd::as_fd),
                open[1].then(|| self.channels.stdout.as_fd()),
                open[2].then(|| self.channels.stderr.as_fd()),
                self.line.as_ref().filter(|_| open[3]).map(|line| line.socket),
            ];
            let mut index = [usize::MAX; 9];
            let mut set = Vec::with_capacity(9);
            for (i, fd) in fds.into_iter().enumerate() {
                if let Some(fd) = fd {
                    index[i] = set.len();
                    set.push(PollFd::new(fd, PollFlags::POLLIN));
                }
            }
            let long = self.long.as_ref().map(|(at, _)| *at);
            let until = [next_measure, long].into_iter().flatten().fold(deadline, Instant::min);
            poll(&mut set, Some(until))?;
            let is_ready = |i: usize| set.get(index[i]).is_some_and(ready);
            let [said, died, notified, oom, cancelled, started, stdout, stderr, spoke] = std::array::from_fn(is_ready);
            // Once all its processes are gone, the listener only hangs up; before Linux 6.11 a read would then never return.
            let asks = set.get(index[2]).and_then(PollFd::revents).is_some_and(|r| r.contains(PollFlags::POLLIN));
            drop(set);

            // What began before is read before what ended: a start and an end in one round are both seen.
            if started {
                open[0] = false;
                let mut byte = [0];
                let read = self.channels.start.as_mut().map(|pipe| pipe.read(&mut byte));
                if read.is_some_and(|read| read.is_ok_and(|count| count == 1)) {
                    let now = Instant::now();
                    self.evidence.started = Some(now);
                    deadline = now + self.limits.timeout;
                }
            }
            if stdout {
                open[1] = self.capture(Stream::Stdout);
            }
            if stderr {
                open[2] = self.capture(Stream::Stderr);
            }
            if asks {
                self.answer()?;
            } else if notified {
                self.listener = None;
            }
            if said {
                match self.receive()? {
                    Some(report) if report.kind == REPORT_ENDED => {
                        self.evidence.end = Some(end(report));
                        break;
                    }
                    Some(report) if report.kind == REPORT_FAILED => return Err(failed(plan, report)),
                    Some(report) if report.kind == REPORT_ORPHANED => {
                        let source = io::Error::other("its restorer died");
                        return Err(Error::Supervisor { step: "watch the slot", source });
                    }
                    Some(_) => {}
                    None if plan.is_some() => break,
                    None => {}
                }
            }
            if died {
                break;
            }
            if cancelled {
                self.evidence.kill.get_or_insert(Kill::Cancelled);
            }
            if oom {
                self.evidence.kill.get_or_insert(Kill::Memory);
            }
            let now = Instant::now();
            if let Some((_, call)) = self.long.take_if(|(at, _)| *at <= now) {
                call();
            }
            if next_measure.is_some_and(|at| at <= now) {
                next_measure = Some(now + MEASURE_EVERY);
                self.measure();
            }
            if now >= deadline && self.evidence.kill.is_none() {
                if self.evidence.started.is_none() {
                    return Err(Error::SetupTimeout(self.limits.setup_timeout));
                }
                self.evidence.kill = Some(Kill::Timeout);
            }
            if self.evidence.kill.is_some() {
                self.nest.kill();
                break;
            }
            if spoke {
                open[3] = self.hear_answer();
                if self.evidence.answer.is_some() {
                    break;
                }
            }
        }
        self.evidence.ended = Some(Instant::now());
        Ok(())
    }

    /// Whether there is a limit that only looking tells.
    fn measures(&self) -> bool {
        self.nest.room.is_none() || self.limits.cpu_time.is_some()
    }

    fn measure(&mut self) {
        let mut cpu = None;
        if let Some(meter) = self.nest.meter() {
            cpu = Some(meter.cpu_time());
        } else {
            let look = || Measure::of(self.nest.init.pid, self.limits.memory);
            let now = self.folder.map_or_else(look, |folder| folder.as_owner(look));
            let peak = self.evidence.measured.get_or_insert_default();
            peak.raise_to(now);
            cpu = cpu.or(Some(peak.cpu));
            if now.memory > self.limits.memory {
                self.evidence.kill.get_or_insert(Kill::Memory);
            }
        }
        if self.folder.is_some_and(|folder| folder.is_over(self.limits)) {
            self.evidence.kill.get_or_insert(Kill::Disk);
        }
        if self.limits.cpu_time.zip(cpu).is_some_and(|(limit, used)| used > limit) {
            self.evidence.kill.get_or_insert(Kill::CpuTime);
        }
    }

    /// Takes what a stream holds now; `false` at its end.
    fn capture(&mut self, stream: Stream) -> bool {
        let mut buffer = [0; PIECE];
        let (pipe, captured) = match stream {
            Stream::Stdout => (&mut self.channels.stdout, &mut self.evidence.stdout),
            Stream::Stderr => (&mut self.channels.stderr, &mut self.evidence.stderr),
        };
        let count = match pipe.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        let kept = captured.keep(&buffer[..count], self.limits.output);
        if let Some(sink) = self.sink.as_mut().filter(|_| kept > 0) {
            sink(stream, &buffer[..kept]);
        }
        if kept < count && self.limits.output_kill {
            self.evidence.kill.get_or_insert(Kill::Output(stream));
        }
        true
    }

    /// Answers one refused call: with its errno, or with the end of the run.
    fn answer(&mut self) -> Result<(), Error> {
        let Some(listener) = &self.listener else { return Ok(()) };
        let lost = |source| Error::Supervisor { step: "answer a seccomp notification", source };
        let notification = match notify::receive(listener.as_fd()) {
            Ok(Some(notification)) => notification,
            Ok(None) => return Ok(()),
            Err(error) => return Err(lost(error)),
        };
        let total: u64 = self.evidence.violations.values().sum();
        if total + self.evidence.told > FLOOD {
            std::thread::sleep(Duration::from_micros(200));
        }
        let (listener, id) = (listener.as_fd(), notification.id);
        let answered = match self.program.decide(notification.nr, &notification.args) {
            Denial::LetRun => {
                self.evidence.told += 1;
                return notify::let_run(listener, id).map_err(lost);
            }
            Denial::Refuse(errno) => notify::refuse(listener, id, errno).map_err(lost),
            Denial::Kill => {
                self.evidence.kill.get_or_insert(Kill::Violation(notification.nr));
                Ok(())
            }
        };
        *self.evidence.violations.entry(notification.nr).or_default() += 1;
        answered
    }

    /// Takes a warm run's message: an answer, if it is one and the kernel has counted nothing that speaks against it. Else the
    /// line is cut, so that a guest whose end is to be believed has to end; `false` then.
    fn hear_answer(&mut self) -> bool {
        let Some(line) = &self.line else { return false };
        if let Some(document) = line.hear(self.channels.result.as_ref()) {
            let counters = self.nest.meter().map(Meter::read);
            if counters.is_none_or(|counters| counters.oom_kills == 0) {
                self.evidence.counters = counters;
                self.evidence.answer = Some(document);
                return true;
            }
        }
        line.cut();
        false
    }

    /// Waits until the pid namespace is empty: init's end is announced only then.
    fn reap(&mut self, plan: Option<&Plan>) -> Result<(), Error> {
        self.nest.wait_empty()?;
        // execve(2) gave init the exit signal SIGCHLD, so a host that waits for any child may have reaped it first. Its end is
        // known by the pidfd all the same.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::__WALL;
        match waitid(Id::PIDFd(self.nest.init.pidfd.as_fd()), flags) {
            Ok(_) | Err(nix::errno::Errno::ECHILD) => {}
            Err(errno) => return Err(Error::Supervisor { step: "reap init", source: errno.into() }),
        }
        // Init may have spoken between the last poll and its end: of the guest's, or of one that never began.
        while self.evidence.end.is_none() {
            match self.receive()? {
                Some(report) if report.kind == REPORT_ENDED => self.evidence.end = Some(end(report)),
                Some(report) if report.kind == REPORT_FAILED && self.evidence.kill.is_none() => {
                    return Err(failed(plan, report));
                }
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }

    /// Takes what is in the pipes, now that nobody can write any more, or nothing that counts.
    fn drain(&mut self) {
        let mut open = [true; 2];
        for _ in 0..FULLEST_PIPE / PIECE {
            let streams = [&self.channels.stdout, &self.channels.stderr];
            let mut set = streams.map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN));
            let polled = poll(&mut set, Some(Instant::now()));
            let [stdout, stderr] = [0, 1].map(|i| open[i] && ready(&set[i]));
            if polled.is_err() || !stdout && !stderr {
                return;
            }
            open[0] &= !stdout || self.capture(Stream::Stdout);
            open[1] &= !stderr || self.capture(Stream::Stderr);
        }
    }

    /// One message of init; `None` at the end of its socket.
    fn receive(&mut self) -> Result<Option<Report>, Error> {
        let Some((report, descriptor)) = hear(self.nest.control.as_fd())? else { return Ok(None) };
        match report.kind {
            REPORT_LISTENER => self.listener = descriptor,
            REPORT_OUTPUT => self.evidence.output = descriptor,
            _ => {}
        }
        Ok(Some(report))
    }
}

/// A message that waits on a control socket, and the descriptor that it carries; `None` where there is none, or never will be.
pub(crate) fn hear(control: BorrowedFd<'_>) -> Result<Option<(Report, Option<OwnedFd>)>, Error> {
    let mut bytes = [0; size_of::<Report>()];
    let mut space = cmsg_space!([std::os::fd::RawFd; 1]);
    let mut buffers = [io::IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<()>(control.as_raw_fd(), &mut buffers, Some(&mut space), flags) {
        Ok(message) => message,
        Err(nix::errno::Errno::ECONNRESET | nix::errno::Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(Error::Supervisor { step: "hear from init", source: errno.into() }),
    };
    let mut received: Vec<OwnedFd> = Vec::new();
    for control in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(fds) = control {
            received = fds.into_iter().map(adopt).collect();
        }
    }
    if message.bytes < bytes.len() {
        return Ok(None);
    }
    let word = |i: usize| bytes[4 * i..4 * i + 4].try_into().map_or(0, u32::from_ne_bytes);
    let report = Report {
        kind: word(0),
        index: word(1),
        errno: word(2).cast_signed(),
        code: word(3).cast_signed(),
        status: word(4).cast_signed(),
    };
    Ok(Some((report, received.pop())))
}

/// How the guest's main process ended, by such a report.
pub(crate) fn end(report: Report) -> End {
    if report.code == libc::CLD_EXITED { End::Exited(report.status) } else { End::Signalled(report.status) }
}

/// The step that failed, by its executor's report.
pub(crate) fn failed<'p>(plan: impl Into<Option<&'p Plan>>, report: Report) -> Error {
    let step = plan.into().map_or("start the guest's process", |plan| plan.step(report.index)).to_owned();
    Error::Step { step, source: io::Error::from_raw_os_error(report.errno) }
}

pub(crate) fn ready(fd: &PollFd<'_>) -> bool {
    fd.any().unwrap_or(false)
}

/// Sleeps until one is ready, or `until`; a signal's interruption counts as neither.
pub(crate) fn poll(set: &mut [PollFd<'_>], until: Option<Instant>) -> Result<(), Error> {
    loop {
        let timeout = until.map(|until| TimeSpec::from(until.saturating_duration_since(Instant::now())));
        match ppoll(set, timeout, None) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Error::Supervisor { step: "wait for the run", source: errno.into() }),
        }
    }
}
