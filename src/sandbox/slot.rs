//! A place for one warm run: a fork of the zygote in namespaces, a file system and a cgroup of its own, behind every layer
//! that a cold run has; made ahead, used once.
//!
//! Its init is made by the zygote's init and mounts what is the slot's own; the zygote forks into its pid namespace, and the
//! fork enters the rest, gives everything up and waits for a request. Two things are used again, once every process that was in
//! them is gone: the network namespace, which costs as much as all the others and holds nothing (no interface is up, and
//! nobody can put one up), and the cgroup, where it is as new (see `room.rs`).

mod plan;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::account::{Account, longest_document};
use super::cgroup::Cgroup;
use super::channels::{Channels, Supervised};
use super::evidence::Evidence;
use super::input::{self, Values};
use super::lane::Place;
use super::line::{self, Line, Nonce, Request};
use super::meter::{Counters, Meter};
use super::nest::Nest;
use super::plan::Plan;
use super::restore::Restorer;
use super::room::Room;
use super::script::{Script, Stdin, Watch};
use super::supervise::{self, Supervisor, end, failed as step_failed, hear, poll, ready};
use super::zygote::Zygote;
use super::{Error, Sandbox, checked, failed, guest};
use crate::config::Limits;
use crate::outcome::{Enforced, Outcome};
use crate::sys::clone::Init;
use crate::sys::program::{
    REPORT_ENDED, REPORT_FAILED, REPORT_LISTENER, REPORT_NETWORK, REPORT_OUTPUT, REPORT_READY, REPORT_SPAWNED, Report,
};

/// The files and folders that a script is given, by name.
pub(crate) type Inputs = Vec<(String, PathBuf)>;

/// A run that takes longer has the next slot made beside it, not after it: as long as that takes.
const LONG: Duration = Duration::from_millis(5);
/// The same of a slot that is used again: many times what another one takes, for this one will be back.
const LONG_OF_RESTORED: Duration = Duration::from_millis(100);

/// What a slot is made with. The default serves any script that needs nothing of the host.
#[derive(Debug, Default)]
pub(crate) struct Order {
    pub inputs: Inputs,
    pub output: bool,
    pub stdin: Stdin,
}

/// A slot that is ready, or was; dropped, all of it is killed and removed.
pub(crate) struct Slot {
    nest: Option<Nest>,
    pub(super) channels: Option<Supervised>,
    pub(super) line: OwnedFd,
    pub(super) listener: Option<OwnedFd>,
    output: Option<OwnedFd>,
    network: Option<OwnedFd>,
    /// What the cgroup had counted before the request.
    pub(super) before: Counters,
    pub(super) enforced: Enforced,
    pub(super) zygote: Arc<Zygote>,
    inputs: Inputs,
    /// What was at their paths.
    files: Vec<Identity>,
    pub(super) nonce: Nonce,
    is_warm: bool,
    /// Of a slot that is used again.
    pub(super) restorer: Option<Restorer>,
    place: Place,
    /// When it was given its request.
    asked: Option<Instant>,
}

/// A script that was let through, in a slot's terms.
#[derive(Debug)]
pub(crate) struct Task {
    /// `__file__` in the guest.
    file: String,
    text: Vec<u8>,
    args: Vec<String>,
    values: Values,
    artifacts: Option<PathBuf>,
    check: Duration,
}

impl Order {
    /// Whether only a slot that is made for it can serve it.
    pub(crate) fn is_special(&self) -> bool {
        self.output || matches!(self.stdin, Stdin::Stream(_))
    }
}

/// Tells a file from another one that has come to its place: device, inode, and who may read it.
type Identity = [u64; 5];

/// What is at the paths of inputs; an error where one cannot be looked at.
fn identify(inputs: &Inputs) -> io::Result<Vec<Identity>> {
    let identity = |path: &PathBuf| {
        let found = std::fs::metadata(path)?;
        Ok([found.dev(), found.ino(), found.mode().into(), found.uid().into(), found.gid().into()])
    };
    inputs.iter().map(|(_, path)| identity(path)).collect()
}

impl Slot {
    /// Whether it can be given a request still: its guest and its init are there.
    pub(crate) fn is_alive(&self) -> bool {
        let Some(nest) = &self.nest else { return false };
        let mut set = [
            PollFd::new(nest.init.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(nest.control.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut set, Some(Instant::now())).is_ok() && !set.iter().any(ready)
    }

    /// Whether it shows these inputs, the very files that are at their paths now.
    pub(crate) fn shows(&self, inputs: &Inputs) -> bool {
        self.inputs == *inputs && (inputs.is_empty() || identify(inputs).is_ok_and(|files| files == self.files))
    }

    /// Whether it has copied the pages that strategies touch, so that no run has to wait for that; or has none to copy.
    pub(crate) fn is_warm(&self) -> bool {
        self.is_warm
    }

    /// The CPUs that it is on: slots with other numbers are on others.
    pub(crate) fn lane(&self) -> usize {
        self.place.lane
    }

    /// What its cgroup counts.
    pub(super) fn meter(&self) -> Option<&Meter> {
        self.nest.as_ref().and_then(Nest::meter)
    }

    /// What it was made with.
    pub(crate) fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Whether it is a fork of this zygote.
    pub(crate) fn is_of(&self, zygote: &Arc<Zygote>) -> bool {
        Arc::ptr_eq(&self.zygote, zygote)
    }

    /// Gives it its request. Where that fails, nothing of the script has run.
    pub(crate) fn ask(&mut self, task: &Task) -> io::Result<()> {
        let request = Request {
            // What is left in /output is read when nobody writes to it any more.
            answer: task.artifacts.is_none(),
            source: &task.text,
            file: &task.file,
            args: &task.args,
            inputs: self.inputs.iter().map(|(name, _)| name.as_str()).collect(),
            values: &task.values,
        };
        // Before: whoever is woken by it may run at once, in this thread's place.
        self.asked = Some(Instant::now());
        request.send(self.line.as_fd(), &self.nonce)
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("nest", &self.nest).finish_non_exhaustive()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(mut nest) = self.nest.take() else { return };
        nest.kill();
        let empty = nest.wait_empty().is_ok();
        if let Some(room) = nest.room.take_if(|room| empty && room.is_as_new(self.before)) {
            self.zygote.give_room(room);
        }
        drop(nest);
        if let Some(network) = self.network.take().filter(|_| empty) {
            self.zygote.give_network(network);
        }
    }
}

impl Sandbox {
    /// Makes a slot of `zygote`, ready for its request.
    pub(crate) fn slot(&self, zygote: &Arc<Zygote>, order: Order) -> Result<Slot, Error> {
        let deadline = Instant::now() + self.config.limits.setup_timeout;
        let mut account = Account::of_slot(self, Enforced::default(), zygote.host_ids);
        account.rlimits.clone_from(&zygote.rlimits);
        let (control, theirs) = line::open().map_err(failed("open the control socket"))?;
        let (line, far_line) = line::open().map_err(failed("open the line to the slot"))?;
        let channels = Channels::of_slot(order.stdin, far_line).map_err(failed("open the pipes of the slot"))?;

        // Before they are opened: what is put there meanwhile is another one.
        let files = identify(&order.inputs).unwrap_or_default();
        let mut network = zygote.take_network();
        let mut private = self.private(&order.inputs, order.output, zygote.host_ids)?;
        self.clone_inputs(zygote, &mut private.inputs, deadline)?;
        let mut plan = Self::plan_slot_init(zygote, theirs.as_raw_fd(), network.as_ref(), &private);
        self.ground.send(&mut plan, &zygote.nest.control)?;
        let room = match zygote.take_room() {
            Some(room) => Some(room),
            None => self.slot_cgroup()?.map(Room::of).transpose().map_err(failed("open the cgroup"))?,
        };
        let (mut init, mut output, mut is_ready) = (None, None, false);
        while init.is_none() || !is_ready {
            let (report, descriptor) = self.hear_from(zygote, &control, &plan, deadline)?;
            match (report.kind, descriptor) {
                (REPORT_SPAWNED, Some(pidfd)) => init = Some(Init { pidfd, pid: 0, in_cgroup: false, clone3: false }),
                (REPORT_NETWORK, descriptor) => network = descriptor,
                (REPORT_OUTPUT, descriptor) => output = descriptor,
                (REPORT_READY, _) => is_ready = true,
                _ => {}
            }
        }
        let Some(init) = init else { return Err(supervise::Error::InitDied.into()) };

        let nest = Nest::of_slot(init, control, room);
        // What only this run can have, no other will.
        let is_special = order.output || channels.has_stdin();
        let restored = zygote.telling.as_ref().filter(|_| !is_special).map(|_| Restorer::open());
        let (restorer, orders) = restored.transpose().map_err(failed("open the restorer's socket"))?.unzip();
        let place = zygote.places.take();
        let mut plan = self.plan_slot_guest(&plan::Guest {
            control: theirs.as_raw_fd(),
            nest: &nest,
            descriptors: channels.guest(),
            zygote,
            output: order.output,
            orders: orders.as_ref(),
            lane: place.lane,
        });
        self.ground.send(&mut plan, &zygote.socket)?;
        account.armed(nest.cgroup());
        let enforced = account.into_enforced();
        let mut slot = Slot {
            nest: Some(nest),
            channels: Some(channels.detach().map_err(failed("start a thread for the script's standard input"))?),
            line,
            listener: None,
            output,
            network,
            before: Counters::default(),
            enforced,
            zygote: Arc::clone(zygote),
            inputs: order.inputs,
            files,
            nonce: line::nonce().map_err(failed("draw a random number"))?,
            is_warm: !zygote.warms || orders.is_some(),
            restorer,
            place,
            asked: None,
        };
        drop((theirs, orders));
        self.await_guest(&mut slot, Some(&plan), deadline)?;
        slot.before = slot.meter().map(Meter::read).unwrap_or_default();
        self.remember(&mut slot, deadline)?;
        Ok(slot)
    }

    /// Has a slot copy the pages that the zygote's rehearsal touched, where there was one.
    pub(crate) fn warm(&self, slot: &mut Slot) -> Result<(), Error> {
        if !slot.is_warm {
            line::warm(&slot.line).map_err(failed("write to the slot"))?;
            self.await_guest(slot, None, Instant::now() + self.config.limits.setup_timeout)?;
            slot.before = slot.meter().map(Meter::read).unwrap_or_default();
            slot.is_warm = true;
        }
        Ok(())
    }

    /// Checks a script; an outcome where it is refused.
    pub(crate) fn admit(&self, script: Script) -> Result<(Task, Order), Box<Outcome>> {
        let Script { name: shown, source, args, inputs, values, stdin, artifacts, iteration: _ } = script;
        if let Err(error) = input::check(&values, &inputs) {
            return Err(Box::new(self.account_for(Err(error))));
        }
        let (text, check) = match self.config.check.then(|| checked(self.policy.as_ref(), &source, &shown)) {
            None => (source, Duration::ZERO),
            Some((Ok(text), took)) => (text, took),
            Some((Err(report), took)) => {
                let mut account = Account::of_slot(self, Enforced::default(), (0, 0));
                account.check = took;
                return Err(Box::new(account.rejected(&report)));
            }
        };
        let order = Order { inputs, output: artifacts.is_some(), stdin };
        Ok((Task { file: guest::script_path(&shown), text, args, values, artifacts, check }, order))
    }

    /// Watches the script that `slot` was given to its end. The slot is of no more use then, and may be dropped at leisure.
    /// `long` is called once it has run for [`LONG`], or [`LONG_OF_RESTORED`].
    pub(crate) fn watch_slot(&self, slot: &mut Slot, task: &Task, watch: Watch<'_>, long: &dyn Fn()) -> Outcome {
        self.account_for(self.watch_to_the_end(slot, task, watch, long))
    }

    fn watch_to_the_end(
        &self,
        slot: &mut Slot,
        task: &Task,
        watch: Watch<'_>,
        long: &dyn Fn(),
    ) -> Result<Outcome, Error> {
        let (Some(nest), Some(channels), Some(started)) = (slot.nest.take(), slot.channels.take(), slot.asked.take())
        else {
            return Err(failed("watch a slot")(std::io::Error::other("it has not been asked")));
        };
        let limits = input::room(&self.config.limits, &task.values);
        let enforced = slot.layers();
        let mut account = Account::of_slot(self, enforced, slot.zygote.host_ids);
        account.check = task.check;
        let mut supervisor = Supervisor {
            nest,
            channels,
            cancel: watch.cancel.as_ref().map(super::Cancel::descriptor),
            limits: &limits,
            program: self.filter(&slot.zygote, slot.restorer.is_some()),
            sink: watch.sink,
            listener: slot.listener.take(),
            long: Some((started + if slot.restorer.is_some() { LONG_OF_RESTORED } else { LONG }, long)),
            folder: None,
            line: Some(Line {
                socket: slot.line.as_fd(),
                nonce: slot.nonce,
                most: longest_document(self.config.limits.result),
            }),
            evidence: Evidence { started: Some(started), output: slot.output.take(), ..Evidence::default() },
        };
        let watched = supervisor.run_warm(started + self.config.limits.timeout);
        // What is left of the slot ends with it, unless it is used again.
        let Supervisor { nest, listener, channels, .. } = supervisor;
        slot.nest = Some(nest);
        let evidence = watched?;
        slot.keep(listener, channels, &evidence);
        let counters = evidence.counters.or_else(|| slot.meter().map(Meter::read));
        let counters = counters.map(|counters| since(counters, slot.before));
        Ok(account.close(evidence, counters, task.artifacts.as_deref()))
    }

    /// The slot's init stays in the zygote's cgroup, so that a run's own limit of processes is for the run alone.
    fn slot_cgroup(&self) -> Result<Option<Cgroup>, Error> {
        self.ground.sweep();
        let limits = &self.config.limits;
        let limits = Limits { pids: limits.pids.saturating_sub(1), ..limits.clone() };
        self.ground.cgroup_with(&limits, self.config.allow_degraded)
    }

    /// The next report on a slot's control socket.
    pub(super) fn hear_from(
        &self,
        zygote: &Zygote,
        control: &OwnedFd,
        plan: &Plan,
        deadline: Instant,
    ) -> Result<(Report, Option<OwnedFd>), Error> {
        loop {
            let mut set =
                [PollFd::new(control.as_fd(), PollFlags::POLLIN), PollFd::new(zygote.end().as_fd(), PollFlags::POLLIN)];
            poll(&mut set, Some(deadline))?;
            if ready(&set[0]) {
                match hear(control.as_fd())? {
                    Some((report, _)) if report.kind == REPORT_FAILED => return Err(step_failed(plan, report).into()),
                    Some(heard) => return Ok(heard),
                    None => return Err(supervise::Error::InitDied.into()),
                }
            }
            if ready(&set[1]) {
                return Err(supervise::Error::InitDied.into());
            }
            if Instant::now() >= deadline {
                return Err(supervise::Error::SetupTimeout(self.config.limits.setup_timeout).into());
            }
        }
    }

    /// Waits until the guest is behind the wall and ready. `plan` is what it goes by, until it is there.
    pub(super) fn await_guest(&self, slot: &mut Slot, plan: Option<&Plan>, deadline: Instant) -> Result<(), Error> {
        let mut is_ready = false;
        while slot.listener.is_none() || !is_ready {
            let Some(nest) = &slot.nest else { return Ok(()) };
            let mut set = vec![
                PollFd::new(nest.control.as_fd(), PollFlags::POLLIN),
                PollFd::new(slot.line.as_fd(), PollFlags::POLLIN),
                PollFd::new(slot.zygote.end().as_fd(), PollFlags::POLLIN),
            ];
            set.extend(slot.listener.as_ref().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
            poll(&mut set, Some(deadline))?;
            let [said, spoke, died] = [0, 1, 2].map(|i| ready(&set[i]));
            // Once the guest is gone, the listener only hangs up.
            let asks = set.get(3).and_then(PollFd::revents).is_some_and(|r| r.contains(PollFlags::POLLIN));
            drop(set);
            if asks {
                self.hear_out(slot)?;
                continue;
            }
            if said {
                match hear(nest.control.as_fd())? {
                    Some((report, listener)) if report.kind == REPORT_LISTENER => slot.listener = listener,
                    Some((report, _)) if report.kind == REPORT_FAILED => return Err(step_failed(plan, report).into()),
                    Some((report, _)) if report.kind == REPORT_ENDED => {
                        let why = format!("it ended ({:?})", end(report));
                        return Err(Error::Zygote { what: "make a slot".to_owned(), why });
                    }
                    // The zygote has died: nobody has the other end.
                    None => return Err(supervise::Error::InitDied.into()),
                    Some(_) => {}
                }
            } else if spoke {
                is_ready = line::is_ready(&slot.line).map_err(failed("hear from the slot"))?;
                if !is_ready {
                    return Err(supervise::Error::InitDied.into());
                }
            } else if died {
                return Err(supervise::Error::InitDied.into());
            } else if Instant::now() >= deadline {
                return Err(supervise::Error::SetupTimeout(self.config.limits.setup_timeout).into());
            }
        }
        Ok(())
    }
}

/// What was counted after `before`. A peak cannot be told apart: it holds the slot's warm-up too.
fn since(now: Counters, before: Counters) -> Counters {
    Counters {
        cpu_user: now.cpu_user.saturating_sub(before.cpu_user),
        cpu_system: now.cpu_system.saturating_sub(before.cpu_system),
        // Init is counted in a cold run's, and left out of the outcome.
        processes_peak: now.processes_peak.map(|peak| peak + 1),
        ..now
    }
}
