//! What is done for a slot before its request: by its init, by the zygote, and by its guest after the fork.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use crate::sandbox::lane::Lanes;
use crate::sandbox::mounts::Private;
use crate::sandbox::nest::Nest;
use crate::sandbox::plan::{Arg, Plan, literal};
use crate::sandbox::zygote::Zygote;
use crate::sandbox::{Error, Sandbox, caps, guest, landlock, rlimits, seccomp};
use crate::sys::program::REPORT_NETWORK;

/// The namespaces that every slot's init makes.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
/// Those of them that the guest enters.
const ENTERED: libc::c_int = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET;

/// A guest that is to be forked.
pub(super) struct Guest<'a> {
    /// Its end of the slot's control socket.
    pub control: RawFd,
    pub nest: &'a Nest,
    pub descriptors: guest::Descriptors,
    pub zygote: &'a Zygote,
    /// Whether it has a folder for artifacts.
    pub output: bool,
    /// The restorer's socket, where the slot is used again.
    pub orders: Option<&'a OwnedFd>,
    /// Which of the CPUs it is on.
    pub lane: usize,
}

impl Sandbox {
    /// The filter of a slot.
    pub(super) fn filter<'s>(&'s self, zygote: &'s Zygote, is_restored: bool) -> &'s seccomp::Program {
        zygote.telling.as_ref().filter(|_| is_restored).unwrap_or(&self.program)
    }

    /// What the slot has for itself, but for what it copies of the zygote's.
    pub(super) fn private(
        &self,
        inputs: &[(String, PathBuf)],
        output: bool,
        guest: (u32, u32),
    ) -> Result<Private, Error> {
        let limits = &self.config.limits;
        Ok(Private {
            late_binds: Vec::new(),
            inputs: self.inputs(inputs, guest)?,
            disk: (limits.disk, limits.inodes),
            output: output.then_some(limits.artifacts),
        })
    }

    /// What the slot's init does, in its new namespaces.
    pub(super) fn plan_slot_init(zygote: &Zygote, control: i32, network: Option<&OwnedFd>, private: &Private) -> Plan {
        let mut namespaces = NAMESPACES;
        if network.is_none() {
            namespaces |= libc::CLONE_NEWNET;
        }
        let mut plan = Plan::of_slot(control, namespaces);
        if let Some(network) = network {
            let args = [Arg::Fd(network.as_raw_fd()), Arg::Value(libc::CLONE_NEWNET as u64)];
            plan.call("enter the network namespace", libc::SYS_setns, &args);
        }
        private.plan_over(&mut plan, &zygote.late);
        if network.is_none() {
            let flags = Arg::Value((libc::O_RDONLY | libc::O_CLOEXEC) as u64);
            let args = [Arg::Fd(libc::AT_FDCWD), literal(c"proc/self/ns/net"), flags];
            let network = plan.open("open the network namespace", libc::SYS_openat, &args);
            plan.send(REPORT_NETWORK, network);
            plan.close(network);
        }
        caps::plan_clear(&mut plan);
        plan
    }

    /// What the zygote does for the slot's guest, and the guest after its fork.
    pub(super) fn plan_slot_guest(&self, of: &Guest<'_>) -> Plan {
        let restored = |orders: &OwnedFd| Plan::of_restored_slot(of.control, orders.as_raw_fd());
        let mut plan = of.orders.map_or_else(|| Plan::of_slot(of.control, 0), restored);
        let init = Arg::Fd(of.nest.init.pidfd.as_raw_fd());
        let enter = |flags: libc::c_int| [init, Arg::Value(u64::from(flags.cast_unsigned()))];
        plan.call("enter the slot's pid namespace", libc::SYS_setns, &enter(libc::CLONE_NEWPID));
        plan.begin_guest();
        plan.call("lead a session", libc::SYS_setsid, &[]);
        of.nest.plan_entry(&mut plan);
        plan.call("enter the slot's namespaces", libc::SYS_setns, &enter(ENTERED));
        let namespace = [Arg::Value(libc::CLONE_NEWCGROUP as u64)];
        plan.call("make the cgroup namespace", libc::SYS_unshare, &namespace);
        plan.call("enter /work", libc::SYS_chdir, &[literal(c"/work")]);
        Lanes::of(self.config.limits.cpus).plan(&mut plan, of.lane);
        guest::plan_scheduling(&mut plan, libc::SCHED_OTHER, of.zygote.nice);
        rlimits::plan_cpu_time(&mut plan, &of.zygote.rlimits);
        of.descriptors.plan(&mut plan);
        let control = of.descriptors.plan_close(&mut plan);
        guest::plan_unblock(&mut plan);
        caps::plan_clear(&mut plan);
        if let Some(abi) = self.landlock {
            landlock::plan_restrict(&mut plan, abi, of.output);
        }
        self.filter(of.zygote, of.orders.is_some()).plan(&mut plan);
        plan.call("close the control socket", libc::SYS_close, &[Arg::Value(control)]);
        plan
    }
}
