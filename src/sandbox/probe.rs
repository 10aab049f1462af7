//! One layer tried alone, the way a run arms it: init is cloned into namespaces, carries out a small plan, and is killed.
//!
//! For `nsbox doctor`. Nothing of a guest runs, and nothing is left: init ends with the probe.

use std::fmt;
use std::time::{Duration, Instant};

use super::cgroup::{Cgroup, Hierarchy, Owner};
use super::channels::Channels;
use super::idmap::{self, GUEST_ID, HostIds, OnlyRoot};
use super::mounts::{View, WRITABLE};
use super::nest::{self, Ground, Nest};
use super::plan::{Arg, Plan, literal};
use super::script::Stdin;
use super::supervise::Supervisor;
use super::{
    Error, caps, failed, image_view, landlock, mounts, plan_cgroup_namespace, plan_file, plan_host_name, rlimits,
    seccomp, sets_memfd_noexec,
};
use crate::config::Limits;
use crate::image::Image;

/// A probe takes milliseconds; one that waits for longer waits for nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// A kind of namespace beside the user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespace {
    Mount,
    Pid,
    Net,
    Ipc,
    Uts,
    Cgroup,
}

impl Namespace {
    /// All of them.
    pub(crate) const ALL: [Self; 6] = [Self::Mount, Self::Pid, Self::Net, Self::Ipc, Self::Uts, Self::Cgroup];

    fn flag(self) -> i32 {
        match self {
            Self::Mount => libc::CLONE_NEWNS,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Net => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
        }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mount => "mount",
            Self::Pid => "pid",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
        })
    }
}

/// What a probe saw beside its success.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// The host's user and group id that stood for the guest's.
    pub host_ids: (u32, u32),
    /// Whether clone3 made init; a filter around this process may leave only clone.
    pub clone3: bool,
}

/// What probes have in common.
#[derive(Debug)]
pub(crate) struct Prober<'a> {
    limits: &'a Limits,
    /// `None` where the guest could only be root of the host; a user namespace can be tried all the same.
    ids: Option<HostIds>,
    program: seccomp::Program,
    ground: Ground,
    privileged: bool,
}

impl<'a> Prober<'a> {
    /// Prepares probes of `limits` and the seccomp profile `profile`.
    pub(crate) fn new(limits: &'a Limits, profile: &str) -> Result<Self, Error> {
        let ids = HostIds::choose().ok();
        let require_memfd_noexec = !ids.is_some_and(sets_memfd_noexec);
        let options = seccomp::Options { require_memfd_noexec, ..seccomp::Options::default() };
        Ok(Self {
            limits,
            ids,
            program: seccomp::program(profile, options)?,
            ground: Ground::survey(nest::init_binary()?, true, ids.is_some_and(HostIds::drops_groups), true)?,
            privileged: mounts::may_clone(),
        })
    }

    /// A user namespace, and the guest's user in it.
    pub(crate) fn user(&self) -> Result<Seen, Error> {
        self.attempt(0, None, idmap::plan_become_guest)
    }

    /// One more namespace, inside a user namespace.
    pub(crate) fn namespace(&self, kind: Namespace) -> Result<Seen, Error> {
        match kind {
            Namespace::Cgroup => self.attempt(0, None, plan_cgroup_namespace),
            // Made, it is of no use where a security module takes the rights in it away.
            Namespace::Uts => self.attempt(kind.flag(), None, plan_host_name),
            _ => self.attempt(kind.flag(), None, |_| {}),
        }
    }

    /// A tmpfs with the limits of a run.
    pub(crate) fn tmpfs(&self) -> Result<Seen, Error> {
        self.attempt(libc::CLONE_NEWNS, None, |plan| {
            plan_private_mounts(plan);
            mounts::tmpfs(plan, "proc", self.limits.disk, self.limits.inodes, "0755", WRITABLE);
        })
    }

    /// A proc file system of its own pid namespace that shows processes alone.
    pub(crate) fn proc(&self) -> Result<Seen, Error> {
        self.attempt(libc::CLONE_NEWNS | libc::CLONE_NEWPID, None, |plan| {
            let proc = mounts::plan_proc(plan);
            plan_private_mounts(plan);
            mounts::attach_proc(plan, proc);
        })
    }

    /// The image's root with a run's binds and tmpfs, pivoted into.
    pub(crate) fn root(&self, image: &Image) -> Result<Seen, Error> {
        self.inside(image, |_| {})
    }

    /// Landlock's rules, on the image's root.
    pub(crate) fn landlock(&self, image: &Image, abi: i32) -> Result<Seen, Error> {
        self.inside(image, |plan| {
            caps::plan_drop(plan);
            landlock::plan_restrict(plan, abi, false);
        })
    }

    /// Empty capability sets and no_new_privs.
    pub(crate) fn capabilities(&self) -> Result<Seen, Error> {
        self.attempt(0, None, caps::plan_drop)
    }

    /// The seccomp filter, with its listener handed to this process.
    pub(crate) fn seccomp(&self) -> Result<Seen, Error> {
        self.attempt(0, None, |plan| {
            caps::plan_drop(plan);
            self.program.plan(plan);
        })
    }

    /// The limits of each process, as far as this process's own hard limits let them be.
    pub(crate) fn rlimits(&self) -> Result<Vec<rlimits::Rlimit>, Error> {
        let limits = rlimits::of(self.limits);
        self.attempt(0, None, |plan| rlimits::plan(plan, &limits))?;
        Ok(limits)
    }

    /// `vm.memfd_noexec` of the sandbox's pid namespace; `None` where a run leaves that to the seccomp filter.
    pub(crate) fn memfd_noexec(&self) -> Option<Result<Seen, Error>> {
        self.ids.is_some_and(sets_memfd_noexec).then(|| {
            self.attempt(libc::CLONE_NEWPID, None, |plan| {
                plan_file(plan, "forbid executable memfds", c"/proc/sys/vm/memfd_noexec", c"2");
            })
        })
    }

    /// A cgroup with the limits of a run, and a process in it; what its files then say.
    pub(crate) fn cgroup(&self, hierarchy: &Hierarchy, owner: &Owner) -> Result<[String; 3], Error> {
        let cgroup = hierarchy.create(owner, self.limits)?;
        let files = cgroup.limit_files();
        self.attempt(0, Some(cgroup), |_| {})?;
        Ok(files)
    }

    /// Inside the image's root.
    fn inside(&self, image: &Image, build: impl FnOnce(&mut Plan)) -> Result<Seen, Error> {
        let view = image_view(image, self.limits, self.privileged)?;
        self.attempt(libc::CLONE_NEWNS | libc::CLONE_NEWPID, None, |plan| {
            let proc = mounts::plan_proc(plan);
            view.plan_binds(plan);
            idmap::plan_become_guest(plan);
            view.private.plan(plan);
            mounts::attach_proc(plan, proc);
            View::plan_pivot(plan);
            build(plan);
        })
    }

    /// Lets an init in a new user namespace, and in `namespaces`, carry out what `build` plans.
    fn attempt(&self, namespaces: i32, cgroup: Option<Cgroup>, build: impl FnOnce(&mut Plan)) -> Result<Seen, Error> {
        let channels = Channels::open(Stdin::Empty, &Vec::new()).map_err(failed("open the pipes of the run"))?;
        let namespaces = u64::from((libc::CLONE_NEWUSER | namespaces).unsigned_abs());
        let nest = Nest::make(&self.ground, cgroup, namespaces, None)?;
        let (pid, clone3) = (nest.init.pid, nest.init.clone3);
        let host_ids = self.ids.ok_or(OnlyRoot)?.of_this_thread();
        idmap::write_maps(pid, (GUEST_ID, GUEST_ID), host_ids).map_err(failed("map the guest's user"))?;
        let mut plan = Plan::new();
        nest.plan_entry(&mut plan);
        build(&mut plan);
        plan.begin_guest();
        nest.send(&mut plan, &self.ground)?;
        let mut supervisor = Supervisor::of(nest, channels, self.limits, &self.program)?;
        supervisor.wait_ready(&plan, Instant::now() + PATIENCE)?;
        Ok(Seen { host_ids, clone3 })
    }
}

/// What is mounted from here on is seen by this init alone.
fn plan_private_mounts(plan: &mut Plan) {
    let none = Arg::Value(0);
    let private = Arg::Value(libc::MS_REC | libc::MS_PRIVATE);
    plan.call("make the mounts private", libc::SYS_mount, &[none, literal(c"/"), none, private, none]);
    plan.call("enter the root", libc::SYS_chdir, &[literal(c"/")]);
}
