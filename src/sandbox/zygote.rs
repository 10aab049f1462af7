//! The interpreter that a pool's slots are forked from: a sandbox like any other, whose guest is `rootfs/guest/zygote.py`.
//!
//! It keeps its capabilities, which hold in its own user namespace alone, for it runs no code of a script's; its namespaces,
//! image and user map are around it and all its slots. See `sandbox/slot.rs` for what each slot has of its own.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{MsgFlags, recv, send};

use super::lane::{Lanes, Places};
use super::line;
use super::nest::Nest;
use super::plan::Plan;
use super::room::Room;
use super::seccomp::Program;
use super::supervise::{self, failed as step_failed, hear, poll, ready};
use super::{Error, Sandbox, failed, guest, idmap, rlimits};
use crate::config::{Limits, Slots};
use crate::sys::clone::NAMESPACES;
use crate::sys::program::{COMMAND_GO, REPORT_ENDED, REPORT_FAILED, REPORT_READY};
use crate::sys::sched;

/// What strategies do, in small.
const WARM_UP: &str = include_str!("../../rootfs/guest/warm_up.py");
/// Memory that a zygote may have at least, beside what a script may: the kernel's own for all the slots' namespaces.
const MEMORY: u64 = 512 << 20;
/// Cgroups that are kept for slots to come.
const SPARE_ROOMS: usize = 4;
/// The longest word of zygote.py.
const LONGEST_WORD: usize = 4096;

/// An empty memfd for what zygotes with the same configuration need to find out but once: see `Sandbox::zygote`.
pub(crate) fn layout() -> Result<OwnedFd, Error> {
    Ok(super::channels::memory(c"nsbox-layout").map_err(failed("make a memfd for the zygotes"))?.into())
}

/// A zygote that is ready; dropped, it and all its slots are killed.
#[derive(Debug)]
pub(crate) struct Zygote {
    pub(super) nest: Nest,
    /// Takes the programs of slots.
    pub(super) socket: OwnedFd,
    /// Network namespaces that no process is in, for slots to come.
    networks: Mutex<Vec<OwnedFd>>,
    /// Cgroups that nothing is in, with the limits of a slot's.
    rooms: Mutex<Vec<Room>>,
    /// The host ids of all its slots.
    pub(super) host_ids: (u32, u32),
    pub(super) rlimits: Vec<rlimits::Rlimit>,
    /// The targets of its late binds, with whether each is a folder.
    pub(super) late: Vec<(PathBuf, bool)>,
    /// Its user namespace, where the caller needs that to clone mounts.
    pub(super) user_namespace: Option<OwnedFd>,
    /// Whether its slots can be warmed up.
    pub(super) warms: bool,
    /// The filter of its slots, where these are used again.
    pub(super) telling: Option<Program>,
    pub(super) places: Places,
    /// Its nice value, and its slots'.
    pub(super) nice: i32,
}

impl Sandbox {
    /// Starts a zygote for at most `slots` slots at once. The calling thread must live as long as the zygote: the ids that its
    /// guests have outside are the thread's (see [`idmap::HostIds::of_this_thread`]). `layout` is a memfd for what it finds out about
    /// where things had better lie in its memory, which the next ones with the same configuration need not; empty for the first.
    pub(crate) fn zygote(&self, slots: u32, layout: BorrowedFd) -> Result<Zygote, Error> {
        let deadline = Instant::now() + self.config.limits.setup_timeout;
        let nest = Nest::make(&self.ground, self.zygote_cgroup(slots)?, NAMESPACES, None)?;
        let guest_ids = (idmap::GUEST_ID, idmap::GUEST_ID);
        let host_ids = self.ids.of_this_thread();
        idmap::write_maps(nest.init.pid, guest_ids, host_ids).map_err(failed("map the guest's user"))?;
        let user_namespace = if self.privileged {
            None
        } else {
            let file = std::fs::File::open(format!("/proc/{}/ns/user", nest.init.pid));
            Some(file.map_err(failed("open the zygote's user namespace"))?.into())
        };
        // Counted per user namespace, which all slots share; what one run may start, its cgroup says.
        let pids = self.config.limits.pids.saturating_add(3).saturating_mul(slots).saturating_add(2);
        let shared = Limits { pids, ..self.config.limits.clone() };
        let rlimits = rlimits::of(&shared);
        let own = rlimits::of(&Limits { cpu_time: None, ..shared });
        let (socket, theirs) = line::open().map_err(failed("open the zygote's socket"))?;
        let warm_up = self.warm_up()?;
        let nice = sched::nice().map_err(failed("read the nice value"))?;
        let mut further = vec![theirs.as_raw_fd(), layout.as_raw_fd()];
        further.extend(warm_up.as_ref().map(AsRawFd::as_raw_fd));
        let fds = guest::Descriptors { stdin: None, output: None, further };
        let view = self.view(&[], false, host_ids)?;
        let mut plan = self.plan(&nest, &view, &own, &self.command_for(guest::Task::Zygote { nice }), &fds);
        nest.send(&mut plan, &self.ground)?;
        let late = view.private.late_targets();
        drop((view, theirs));
        let (networks, rooms, warms) = (Mutex::default(), Mutex::default(), warm_up.is_some());
        let is_restored = self.config.slots == Slots::Restored;
        let telling = is_restored.then(|| super::filter(&self.config.seccomp, self.ids, true)).transpose()?;
        let places = Places::on(&Lanes::of(self.config.limits.cpus));
        let zygote = Zygote {
            nest,
            socket,
            networks,
            rooms,
            host_ids,
            rlimits,
            late,
            user_namespace,
            warms,
            telling,
            places,
            nice,
        };
        zygote.await_ready(&plan, deadline)?;
        Ok(zygote)
    }

    /// The zygote's own cgroup: it has no share of a script's limits.
    fn zygote_cgroup(&self, slots: u32) -> Result<Option<super::cgroup::Cgroup>, Error> {
        let limits = &self.config.limits;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let limits = Limits {
            memory: limits.memory.saturating_add(MEMORY),
            cpus: f64::from(u32::try_from(cpus).unwrap_or(1)),
            // Each slot's init and restorer, and its guest until that has entered its own cgroup.
            pids: slots.saturating_mul(3).saturating_add(16),
            ..limits.clone()
        };
        self.ground.cgroup_with(&limits, self.config.allow_degraded)
    }

    /// The warm-up script, in a sealed memfd.
    fn warm_up(&self) -> Result<Option<OwnedFd>, Error> {
        let read = |path: &str| {
            let mut text = Vec::new();
            std::fs::File::open(path)?.read_to_end(&mut text)?;
            io::Result::Ok(text)
        };
        let text = match self.config.warm_up.as_str() {
            "none" => return Ok(None),
            "default" => WARM_UP.as_bytes().to_vec(),
            path => {
                read(path).map_err(|source| Error::Step { step: format!("read the warm-up script {path}"), source })?
            }
        };
        super::channels::sealed(c"nsbox-warm-up", &text).map(Some).map_err(failed("keep the warm-up script in a memfd"))
    }
}

impl Zygote {
    /// Waits until it has imported everything.
    fn await_ready(&self, plan: &Plan, deadline: Instant) -> Result<(), Error> {
        loop {
            let mut set = [
                PollFd::new(self.nest.control.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.nest.init.pidfd.as_fd(), PollFlags::POLLIN),
            ];
            poll(&mut set, Some(deadline))?;
            let [said, spoke, died] = [0, 1, 2].map(|i| ready(&set[i]));
            if spoke && self.hear_word()? {
                return Ok(());
            }
            match said.then(|| hear(self.nest.control.as_fd())).transpose()?.flatten() {
                Some((report, _)) if report.kind == REPORT_READY => {
                    send(self.nest.control.as_raw_fd(), &COMMAND_GO.to_ne_bytes(), MsgFlags::MSG_NOSIGNAL)
                        .map_err(|errno| failed("start the zygote")(errno.into()))?;
                }
                Some((report, _)) if report.kind == REPORT_FAILED => return Err(step_failed(plan, report).into()),
                Some((report, _)) if report.kind == REPORT_ENDED => {
                    // Its last word may be on the socket still.
                    self.hear_word()?;
                    return Err(Error::Zygote {
                        what: "start".to_owned(),
                        why: format!("it ended ({:?})", supervise::end(report)),
                    });
                }
                _ if died => return Err(supervise::Error::InitDied.into()),
                _ if !said && !spoke => return Err(supervise::Error::SetupTimeout(deadline.elapsed()).into()),
                _ => {}
            }
        }
    }

    /// Takes its word: whether it is ready, or why it never will be.
    fn hear_word(&self) -> Result<bool, Error> {
        let mut word = [0; LONGEST_WORD];
        let length = recv(self.socket.as_raw_fd(), &mut word, MsgFlags::MSG_DONTWAIT).unwrap_or(0);
        let word = String::from_utf8_lossy(&word[..length]);
        match word.split_once('\0') {
            Some((what, why)) => Err(Error::Zygote { what: what.to_owned(), why: why.to_owned() }),
            None => Ok(word == "ready"),
        }
    }

    /// Why it ended by itself, where it has said so.
    pub(crate) fn last_word(&self) -> Option<Error> {
        self.hear_word().err()
    }

    /// Readable once it is dead, and all its slots with it.
    pub(crate) fn end(&self) -> &OwnedFd {
        &self.nest.init.pidfd
    }

    /// Whether it is dead, and all its slots with it.
    pub(crate) fn is_dead(&self) -> bool {
        let mut end = [PollFd::new(self.end().as_fd(), PollFlags::POLLIN)];
        poll(&mut end, Some(Instant::now())).is_ok() && ready(&end[0])
    }

    /// A network namespace that no process is in, if there is one.
    pub(super) fn take_network(&self) -> Option<OwnedFd> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// A cgroup for a slot, if there is one.
    pub(super) fn take_room(&self) -> Option<Room> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Takes a cgroup back that is as new, unless there are enough of them.
    pub(super) fn give_room(&self, room: Room) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        if rooms.len() < SPARE_ROOMS {
            rooms.push(room);
        }
    }

    /// Takes a network namespace back, whose processes are all gone.
    pub(super) fn give_network(&self, network: OwnedFd) {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner).push(network);
    }
}
