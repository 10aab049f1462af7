//! Where a run will live: a cgroup, and an init in new namespaces that waits for its plan.
//!
//! Neither depends on the script or the image, and the init not on the cgroup where it can enter that by itself: so its
//! namespaces, which take as long as everything else together, are made on a thread of their own meanwhile.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, sendmsg, shutdown, socketpair,
};

use super::cgroup::{Cgroup, Hierarchy, Owner};
use super::meter::Meter;
use super::plan::{Arg, Plan, literal};
use super::room::Room;
use super::supervise::{self, REAP_PATIENCE, poll, ready};
use super::{Error, chain, channels, failed};
use crate::config::{Config, Limits};
use crate::sys::clone::{Init, Spawn, spawn};
use crate::sys::fd::{pidfd_kill, pidfd_open};

/// The freestanding init, compiled by `build.rs`, in a sealed memfd.
pub(crate) fn init_binary() -> Result<OwnedFd, Error> {
    let content = include_bytes!(concat!(env!("OUT_DIR"), "/nsbox-init"));
    channels::executable(c"nsbox-init", content).map_err(failed("keep init in a memfd"))
}

/// What nests stand on: facts of this process and its machine.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Where cgroups are made, or why nowhere.
    pub hierarchy: Result<Hierarchy, String>,
    /// Why a cgroup could not be made there, and the run went on by consent.
    refusal: OnceLock<String>,
    /// Whose they are.
    pub owner: Owner,
    /// The init binary, in a sealed memfd.
    pub init: OwnedFd,
    /// A pidfd of this process, by which init sees its end.
    this: OwnedFd,
    drop_groups: bool,
}

/// A cgroup and an init, waiting.
#[derive(Debug)]
pub(crate) struct Nest {
    // Dropped in this order: a cgroup can be removed only when nothing is in it.
    pub init: Init,
    pub control: OwnedFd,
    pub room: Option<Room>,
    /// Whether init has to kill the guest's process group, for want of a pid namespace.
    bare: bool,
}

impl Ground {
    /// The ground of runs without a sandbox.
    pub(crate) fn bare(init: OwnedFd) -> Result<Self, Error> {
        Ok(Self {
            hierarchy: Err("none is made without a sandbox".to_owned()),
            refusal: OnceLock::new(),
            owner: Owner::current().map_err(failed("name this process"))?,
            init,
            this: pidfd_open(nix::unistd::getpid().as_raw()).map_err(failed("open a pidfd of this process"))?,
            drop_groups: false,
        })
    }

    /// Looks at this process. Without a cgroup hierarchy it fails, unless `allow_degraded`. `may_move`: this process is
    /// nsbox's own and may be moved into a leaf of its cgroup; a host that embeds the library never is.
    pub(crate) fn survey(
        init: OwnedFd,
        allow_degraded: bool,
        drop_groups: bool,
        may_move: bool,
    ) -> Result<Self, Error> {
        let owner = Owner::current().map_err(failed("name this process"))?;
        let hierarchy = match Hierarchy::discover(&owner, may_move) {
            Ok(hierarchy) => Ok(hierarchy),
            Err(error) if allow_degraded => Err(chain(&error)),
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            hierarchy,
            refusal: OnceLock::new(),
            owner,
            init,
            this: pidfd_open(nix::unistd::getpid().as_raw()).map_err(failed("open a pidfd of this process"))?,
            drop_groups,
        })
    }

    /// A cgroup with the limits of `config`; none where degradation is allowed and there can be none.
    pub(crate) fn cgroup(&self, config: &Config) -> Result<Option<Cgroup>, Error> {
        self.cgroup_with(&config.limits, config.allow_degraded)
    }

    /// The same, with these limits.
    pub(crate) fn cgroup_with(&self, limits: &Limits, allow_degraded: bool) -> Result<Option<Cgroup>, Error> {
        let Ok(hierarchy) = &self.hierarchy else { return Ok(None) };
        match hierarchy.create(&self.owner, limits) {
            Ok(cgroup) => Ok(Some(cgroup)),
            Err(error) if allow_degraded => {
                self.refusal.get_or_init(|| chain(&error));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what the runs of supervisors that are dead left.
    pub(crate) fn sweep(&self) {
        if let Ok(hierarchy) = &self.hierarchy {
            hierarchy.sweep(&self.owner);
        }
    }

    /// Why a degraded run has no cgroup.
    pub(crate) fn why_no_cgroup(&self) -> &str {
        match (&self.hierarchy, self.refusal.get()) {
            (Err(why), _) | (_, Some(why)) => why,
            (Ok(_), None) => "the cgroup could not be made",
        }
    }

    /// Sends a plan, and the descriptors in it, to who executes it.
    pub(crate) fn send(&self, plan: &mut Plan, control: &OwnedFd) -> Result<(), Error> {
        let (message, descriptors) = plan.encode(self.this.as_raw_fd())?;
        let rights = [ControlMessage::ScmRights(descriptors)];
        let parts = [io::IoSlice::new(&message)];
        sendmsg::<()>(control.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)
            .map_err(io::Error::from)
            .map_err(failed("send the plan to init"))?;
        Ok(())
    }
}

/// An init in new namespaces, with the supervisor's end of its control socket.
pub(crate) type Hatched = (Init, OwnedFd);

/// Starts `binary` as the init of new namespaces (`CLONE_NEW*`), in a cgroup of version 2 where `folder` is one.
pub(crate) fn hatch(
    binary: &OwnedFd,
    namespaces: u64,
    folder: Option<&OwnedFd>,
    drop_groups: bool,
) -> Result<Hatched, Error> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (control, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .map_err(io::Error::from)
        .map_err(failed("open the control socket"))?;
    let cgroup = folder.map(AsFd::as_fd);
    let init = spawn(Spawn { init: binary.as_fd(), control: theirs.as_fd(), namespaces, cgroup, drop_groups })
        .map_err(|error| Error::Spawn { step: error.step, source: error.source })?;
    Ok((init, control))
}

/// Whether init can be started before its cgroup is made: it enters one of version 1 by itself, but must be cloned into
/// one of version 2. A wrong guess costs time, for then init enters by itself too.
pub(crate) fn may_hatch_early() -> bool {
    !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

impl Nest {
    /// Makes the namespaces `namespaces` (`CLONE_NEW*`) with an init in them, unless that was done already.
    pub(crate) fn make(
        ground: &Ground,
        cgroup: Option<Cgroup>,
        namespaces: u64,
        hatched: Option<Hatched>,
    ) -> Result<Self, Error> {
        let room = cgroup.map(Room::of).transpose().map_err(failed("open the cgroup"))?;
        let (init, control) = match hatched {
            Some(hatched) => hatched,
            None => {
                let folder = room.as_ref().and_then(|room| room.entry.folder.as_ref());
                hatch(&ground.init, namespaces, folder, ground.drop_groups)?
            }
        };
        Ok(Self { init, control, room, bare: false })
    }

    /// The nest of a slot, whose init a zygote's has made: `init` and `control` are of it.
    pub(crate) fn of_slot(init: Init, control: OwnedFd, room: Option<Room>) -> Self {
        Self { init, control, room, bare: false }
    }

    /// What its cgroup counts, where there is one.
    pub(crate) fn meter(&self) -> Option<&Meter> {
        self.room.as_ref().map(|room| &room.meter)
    }

    /// The cgroup, where there is one.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.room.as_ref().map(|room| &room.cgroup)
    }

    /// An init without namespaces of its own. Its plan makes it a subreaper, and the guest the leader of a session.
    pub(crate) fn bare(ground: &Ground) -> Result<Self, Error> {
        let mut nest = Self::make(ground, None, 0, None)?;
        nest.bare = true;
        Ok(nest)
    }

    /// Plans how init enters its cgroup, where its clone did not put it there.
    pub(crate) fn plan_entry(&self, plan: &mut Plan) {
        if self.init.in_cgroup {
            return;
        }
        for file in self.room.iter().flat_map(|room| &room.entry.files) {
            let args = [Arg::Fd(file.as_raw_fd()), literal(c"0"), Arg::Value(1)];
            plan.call("enter the cgroup", libc::SYS_write, &args);
        }
    }

    /// Sends init its plan, and the descriptors in it.
    pub(crate) fn send(&self, plan: &mut Plan, ground: &Ground) -> Result<(), Error> {
        ground.send(plan, &self.control)
    }

    /// Ends init, and with it every process of its pid namespace.
    pub(crate) fn kill(&self) {
        // It may have ended by itself meanwhile.
        if self.bare {
            shutdown(self.control.as_raw_fd(), Shutdown::Write).ok();
        } else {
            pidfd_kill(self.init.pidfd.as_fd()).ok();
        }
        if let Some(cgroup) = self.cgroup() {
            cgroup.kill();
        }
    }

    /// Waits until the pid namespace, or the process group, is empty: init's end is announced only then.
    pub(crate) fn wait_empty(&self) -> Result<(), supervise::Error> {
        let deadline = Instant::now() + REAP_PATIENCE;
        loop {
            let mut set = [PollFd::new(self.init.pidfd.as_fd(), PollFlags::POLLIN)];
            poll(&mut set, Some(deadline))?;
            if ready(&set[0]) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(supervise::Error::Unreaped);
            }
        }
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        // A panic of the caller's, in the middle of a run: init, which its own drop kills, first kills the others.
        if self.bare {
            self.kill();
            self.wait_empty().ok();
        }
    }
}
