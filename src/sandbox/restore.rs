//! Slots that are used again (`slots: restored`): after a run that left nothing but memory behind, the guest's memory and
//! registers are put back to what they were before its request.
//!
//! Two things make that safe. The slot's filter tells the supervisor of every system call that may leave more than memory
//! behind (`seccomp/neutral.rs`): one such call, and the slot ends with its run. And the putting back is done from outside, by
//! the guest's parent (`sys/init/restorer.rs`), which the guest can neither see nor reach. The kernel's own counters start
//! anew where they can, and are told from what was before where they cannot.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{MsgFlags, send};

use super::channels::Supervised;
use super::evidence::Evidence;
use super::line;
use super::meter::Meter;
use super::seccomp::Denial;
use super::slot::Slot;
use super::supervise::{self, hear, poll, ready};
use super::{Error, Sandbox, failed};
use crate::outcome::Enforced;
use crate::sys::notify;
use crate::sys::program::{COMMAND_REMEMBER, COMMAND_RESTORE, REPORT_READY, RESTORER_STEPS};

/// Runs that one slot serves at most: what the kernel keeps count of (process times, page faults) starts anew with the next.
const MOST_RUNS: u64 = 1000;
/// Where the kernel cannot reset a cgroup's peak of memory (cgroup version 2 before Linux 6.12), a slot whose peak has grown by
/// more serves no further run: no outcome shows a peak of earlier runs that is higher by more.
const PEAK_SLACK: u64 = 8 << 20;

/// The supervisor's end of a restorer.
#[derive(Debug)]
pub(super) struct Restorer {
    orders: OwnedFd,
    /// Runs that the slot has served.
    runs: u64,
    /// Whether the last of them has left nothing but memory behind.
    is_clean: bool,
    /// Whether the next one is the last, whatever it does.
    is_last: bool,
}

impl Restorer {
    /// A restorer, and its own end of the socket for its orders.
    pub(super) fn open() -> io::Result<(Self, OwnedFd)> {
        let (orders, theirs) = line::open()?;
        Ok((Self { orders, runs: 0, is_clean: false, is_last: false }, theirs))
    }

    fn serves_again(&self) -> bool {
        !self.is_last && self.runs < MOST_RUNS
    }

    /// Gives an order, and waits until it has been carried out.
    fn order(&self, order: u32, deadline: Instant) -> Result<(), Error> {
        send(self.orders.as_raw_fd(), &order.to_ne_bytes(), MsgFlags::MSG_NOSIGNAL)
            .map_err(|errno| failed("give the restorer an order")(errno.into()))?;
        let mut set = [PollFd::new(self.orders.as_fd(), PollFlags::POLLIN)];
        poll(&mut set, Some(deadline))?;
        match hear(self.orders.as_fd())? {
            Some((report, _)) if report.kind == REPORT_READY => Ok(()),
            Some((report, _)) => {
                let step = RESTORER_STEPS.get(report.index as usize).unwrap_or(&"do as it was told");
                Err(Error::Restorer {
                    step,
                    source: (report.errno != 0).then(|| io::Error::from_raw_os_error(report.errno)),
                })
            }
            None => Err(Error::Restorer { step: "answer in time (limits.setup_timeout)", source: None }),
        }
    }
}

impl Slot {
    /// Whether it can serve another run once it has been restored.
    pub(crate) fn is_restorable(&self) -> bool {
        self.restorer.as_ref().is_some_and(|restorer| restorer.is_clean && restorer.serves_again())
    }

    /// Whether it is likely to serve another run after the next one.
    pub(crate) fn serves_again(&self) -> bool {
        self.restorer.as_ref().is_some_and(Restorer::serves_again)
    }

    /// The layers of its next run.
    pub(super) fn layers(&mut self) -> Enforced {
        let Some(restorer) = &mut self.restorer else { return std::mem::take(&mut self.enforced) };
        let mut enforced = self.enforced.clone();
        if restorer.runs > 0
            && let Some(applied) = &mut enforced.namespaces.applied
        {
            applied.push_str(&format!("; of a slot that was put back after {} runs", restorer.runs));
        }
        restorer.runs += 1;
        enforced
    }

    /// Keeps what a further run needs, if the last one allows any.
    pub(super) fn keep(&mut self, listener: Option<OwnedFd>, channels: Supervised, evidence: &Evidence) {
        let Some(restorer) = &mut self.restorer else { return };
        restorer.is_clean = evidence.answer.is_some()
            && evidence.kill.is_none()
            && evidence.told == 0
            && evidence.violations.is_empty()
            && evidence.counters.is_none_or(|counters| counters.oom_kills == 0);
        if restorer.is_clean {
            // Where it cannot be shared, there is none, and a result that only it holds is no answer.
            let result = evidence.result.as_ref().and_then(|file| file.try_clone().ok());
            self.listener = listener;
            self.channels = Some(Supervised { result, ..channels });
        }
    }

    /// Whether anything has come since its last answer: output, a message, a call that waits for the supervisor's word.
    fn has_more_to_say(&self) -> Result<bool, supervise::Error> {
        let streams = self.channels.iter().flat_map(|channels| [channels.stdout.as_fd(), channels.stderr.as_fd()]);
        let others = self.listener.iter().map(AsFd::as_fd).chain([self.line.as_fd()]);
        let mut set: Vec<_> = streams.chain(others).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll(&mut set, Some(Instant::now()))?;
        Ok(set.iter().any(ready))
    }
}

impl Sandbox {
    /// Has the restorer remember a guest that waits for its first message, and the guest make itself ready.
    pub(super) fn remember(&self, slot: &mut Slot, deadline: Instant) -> Result<(), Error> {
        let Some(restorer) = &slot.restorer else { return Ok(()) };
        restorer.order(COMMAND_REMEMBER, deadline)?;
        self.prepare_again(slot, deadline)
    }

    /// Puts a slot back to what it was before its last run.
    ///
    /// # Errors
    /// Where that cannot be done, or something else than memory is not as it was: such a slot serves no further run.
    pub(crate) fn restore(&self, slot: &mut Slot) -> Result<(), Error> {
        let deadline = Instant::now() + self.config.limits.setup_timeout;
        let Some(restorer) = slot.restorer.as_ref().filter(|restorer| restorer.is_clean) else {
            return Err(Error::Restorer { step: "find the slot as its run began", source: None });
        };
        restorer.order(COMMAND_RESTORE, deadline)?;
        // Nothing more can come: the guest waits for its first message.
        if slot.has_more_to_say()? {
            return Err(Error::Restorer { step: "find the slot silent", source: None });
        }
        self.prepare_again(slot, deadline)?;
        slot.nonce = line::nonce().map_err(failed("draw a random number"))?;
        slot.restorer.iter_mut().for_each(|restorer| restorer.is_clean = false);
        Ok(())
    }

    /// Answers a call that the guest makes before its request comes, which is nsbox's own code still. It leaves more than memory
    /// behind, so the slot serves one run more at most.
    pub(super) fn hear_out(&self, slot: &mut Slot) -> Result<(), Error> {
        let lost = failed("answer a seccomp notification");
        let Some(listener) = slot.listener.as_ref().map(AsFd::as_fd) else { return Ok(()) };
        let Some(notification) = notify::receive(listener).map_err(&lost)? else { return Ok(()) };
        let program = slot.zygote.telling.as_ref().unwrap_or(&self.program);
        match program.decide(notification.nr, &notification.args) {
            Denial::LetRun => {
                slot.restorer.iter_mut().for_each(|restorer| restorer.is_last = true);
                notify::let_run(listener, notification.id).map_err(lost)
            }
            Denial::Refuse(errno) => notify::refuse(listener, notification.id, errno).map_err(lost),
            Denial::Kill => Err(Error::Restorer { step: "keep its own code within the seccomp profile", source: None }),
        }
    }

    /// Has the guest draw new random numbers and say that it is ready, and counts from here on.
    fn prepare_again(&self, slot: &mut Slot, deadline: Instant) -> Result<(), Error> {
        if let Some(meter) = slot.meter().filter(|meter| !meter.reset_peak()) {
            let (peak, first) = (meter.read().memory_peak.unwrap_or(0), slot.before.memory_peak.unwrap_or(u64::MAX));
            if peak > first.saturating_add(PEAK_SLACK) {
                return Err(Error::Restorer { step: "find the peak of its memory unchanged", source: None });
            }
        }
        line::warm(&slot.line).map_err(failed("write to the slot"))?;
        self.await_guest(slot, None, deadline)?;
        // The peak that later ones are measured by is that before the first run.
        let peak = slot.before.memory_peak;
        slot.before = slot.meter().map(Meter::read).unwrap_or_default();
        if peak.is_some() {
            slot.before.memory_peak = peak;
        }
        Ok(())
    }
}
