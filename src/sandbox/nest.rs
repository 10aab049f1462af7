//! Where a run will live: a cgroup, and an init in new namespaces that waits for its plan.
//!
//! It depends on the limits alone, not on the script or the image, so it is made on a thread of its own while the rest
//! is gathered: making namespaces takes as long as everything else together.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

use super::cgroup::{Cgroup, Entry, Hierarchy, Owner};
use super::plan::{Arg, Plan, literal};
use super::{Error, channels, failed};
use crate::config::Config;
use crate::sys::clone::{Init, Spawn, spawn};
use crate::sys::fd::pidfd_open;

/// The freestanding init, compiled by `build.rs`.
const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nsbox-init"));

/// What nests stand on: facts of this process and its machine.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Where cgroups are made, or why nowhere.
    pub hierarchy: Result<Hierarchy, String>,
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
    pub cgroup: Option<Cgroup>,
    entry: Entry,
    /// Readable once the cgroup runs out of memory (version 1).
    pub oom: Option<OwnedFd>,
}

impl Ground {
    /// Looks at this process. Without a cgroup hierarchy it fails, unless `allow_degraded`. `may_move`: this process is
    /// nsbox's own and may be moved into a leaf of its cgroup; a host that embeds the library never is.
    pub(crate) fn survey(allow_degraded: bool, drop_groups: bool, may_move: bool) -> Result<Self, Error> {
        let owner = Owner::current().map_err(failed("name this process"))?;
        let hierarchy = match Hierarchy::discover(&owner, may_move) {
            Ok(hierarchy) => Ok(hierarchy),
            Err(error) if allow_degraded => Err(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            hierarchy,
            owner,
            init: channels::executable(c"nsbox-init", INIT).map_err(failed("keep init in a memfd"))?,
            this: pidfd_open(nix::unistd::getpid().as_raw()).map_err(failed("open a pidfd of this process"))?,
            drop_groups,
        })
    }

    /// A cgroup with the limits of `config`; none where degradation is allowed and there can be none.
    pub(crate) fn cgroup(&self, config: &Config) -> Result<Option<Cgroup>, Error> {
        let Ok(hierarchy) = &self.hierarchy else { return Ok(None) };
        match hierarchy.create(&self.owner, &config.limits) {
            Ok(cgroup) => Ok(Some(cgroup)),
            Err(_) if config.allow_degraded => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Nest {
    /// Makes the namespaces `namespaces` (`CLONE_NEW*`) with an init in them.
    pub(crate) fn make(ground: &Ground, cgroup: Option<Cgroup>, namespaces: u64) -> Result<Self, Error> {
        let entry =
            cgroup.as_ref().map(Cgroup::entry).transpose().map_err(failed("open the cgroup"))?.unwrap_or_default();
        let oom = cgroup.as_ref().map(Cgroup::oom_event).transpose().map_err(failed("watch for the end of memory"))?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (control, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(io::Error::from)
            .map_err(failed("open the control socket"))?;
        let init = spawn(Spawn {
            init: ground.init.as_fd(),
            control: theirs.as_fd(),
            namespaces,
            cgroup: entry.folder.as_ref().map(AsFd::as_fd),
            drop_groups: ground.drop_groups,
        })
        .map_err(|error| Error::Spawn { step: error.step, source: error.source })?;
        Ok(Self { init, control, cgroup, entry, oom: oom.flatten() })
    }

    /// Plans how init enters its cgroup, where its clone did not put it there.
    pub(crate) fn plan_entry(&self, plan: &mut Plan) {
        if self.init.in_cgroup {
            return;
        }
        for file in &self.entry.files {
            let args = [Arg::Fd(file.as_raw_fd()), literal(c"0"), Arg::Value(1)];
            plan.call("enter the cgroup", libc::SYS_write, &args);
        }
    }

    /// Sends init its plan, and the descriptors in it.
    pub(crate) fn send(&self, plan: &mut Plan, ground: &Ground) -> Result<(), Error> {
        let (message, descriptors) = plan.encode(ground.this.as_raw_fd())?;
        let rights = [ControlMessage::ScmRights(descriptors)];
        let parts = [io::IoSlice::new(&message)];
        sendmsg::<()>(self.control.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)
            .map_err(io::Error::from)
            .map_err(failed("send the plan to init"))?;
        Ok(())
    }
}
