//! One run inside every kernel layer: namespaces, a read-only root, limits, no capabilities, seccomp, Landlock.
//!
//! The story of [`Sandbox::run`]: gather descriptors, clone init into its namespaces, hand it the plan, check the source
//! while init carries the plan out, start the guest, watch it, and account for how it ended. A layer that cannot be armed
//! fails the run: init executes nothing of the guest unless every call of the plan succeeded.

pub(crate) mod account;
mod artifacts;
pub(crate) mod ast_only;
mod caps;
pub(crate) mod cgroup;
mod channels;
pub(crate) mod direct;
mod error;
pub(crate) mod evidence;
pub(crate) mod guest;
pub(crate) mod host;
pub(crate) mod idmap;
pub(crate) mod input;
pub(crate) mod knob;
pub(crate) mod landlock;
pub(crate) mod lane;
pub(crate) mod line;
mod measure;
mod meter;
mod mounts;
mod nest;
mod oci;
mod plan;
pub(crate) mod probe;
mod restore;
pub(crate) mod rlimits;
pub(crate) mod room;
mod scratch;
mod script;
pub mod seccomp;
pub(crate) mod slot;
pub(crate) mod supervise;
mod trees;
pub(crate) mod zygote;

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::check::{self, Policy};
use crate::config::{Config, Limits};
use crate::image::{self, Image, Kind};
use crate::outcome::Outcome;
use crate::sys::clone::NAMESPACES;
use account::Account;
pub(crate) use account::{chain, failed as failed_run, milliseconds, unavailable};
use cgroup::Hierarchy;
use channels::Channels;
pub use error::Error;
use error::failed;
pub use evidence::Stream;
use idmap::HostIds;
pub use input::{Input, InputError};
use mounts::{Bind, Private, View};
use nest::{Ground, Nest};
use plan::{Arg, Plan, literal};
pub use script::{Cancel, Script, Sink, Stdin, Watch};
use supervise::Supervisor;

/// Everything that runs have in common: built once, it may serve any number of them, from any number of threads.
#[derive(Debug)]
pub struct Sandbox {
    config: Config,
    ids: HostIds,
    image: Image,
    policy: Option<Policy>,
    program: seccomp::Program,
    runner: guest::Runner,
    privileged: bool,
    landlock: Option<i32>,
    ground: Ground,
}

impl Sandbox {
    /// Prepares for runs by `config`: finds the image, compiles the filter, finds the cgroup hierarchy.
    ///
    /// # Errors
    /// Whatever of that cannot be had; nothing is replaced by something weaker unless `config.allow_degraded` says so.
    pub fn new(config: Config) -> Result<Self, Error> {
        let ids = HostIds::choose()?;
        let ground = Ground::survey(nest::init_binary()?, config.allow_degraded, ids.drops_groups(), false)?;
        let mut sandbox = Equipment::gather(&config, ids)?.complete(config, ids, ground);
        sandbox.compile_runner()?;
        Ok(sandbox)
    }

    /// Runs one script by `config`: as [`Sandbox::new`] and [`Sandbox::run_watched`] do, but makes the namespaces while
    /// the image is looked for.
    pub(crate) fn run_once(config: Config, script: Script, watch: Watch<'_>) -> Outcome {
        let image = config.image.clone();
        Self::prepare(config)
            .map(|(sandbox, nest)| {
                sandbox.account_for(sandbox.execute(script, watch, sandbox.config.check, Some(nest)))
            })
            .unwrap_or_else(|error| unavailable(&image, &error.explain()))
    }

    /// A sandbox, and the nest of its first run.
    fn prepare(config: Config) -> Result<(Self, Nest), Error> {
        let ids = HostIds::choose()?;
        let init = nest::init_binary()?;
        let drop_groups = ids.drops_groups();
        let (hatched, equipment, found) = std::thread::scope(|scope| {
            // Where no thread can be had (RLIMIT_NPROC), the namespaces are made in their turn.
            let hatching = nest::may_hatch_early().then(|| {
                let init = &init;
                let hatch = move || nest::hatch(init, NAMESPACES, None, drop_groups);
                std::thread::Builder::new().spawn_scoped(scope, hatch).ok()
            });
            let found = init.try_clone().map_err(failed("share the init binary")).and_then(|init| {
                let ground = Ground::survey(init, config.allow_degraded, drop_groups, true)?;
                let cgroup = ground.cgroup(&config)?;
                Ok((ground, cgroup))
            });
            let equipment = Equipment::gather(&config, ids);
            let panicked = || Err(failed("make the namespaces")(io::Error::other("its thread panicked")));
            let hatched = hatching.flatten().map(|thread| thread.join().unwrap_or_else(|_| panicked())).transpose();
            (hatched, equipment, found)
        });
        // Of several refusals the one without a weaker form comes first: it is what doctor says, too.
        let (equipment, hatched, (ground, cgroup)) = (equipment?, hatched?, found?);
        let nest = Nest::make(&ground, cgroup, NAMESPACES, hatched)?;
        let mut sandbox = equipment.complete(config, ids, ground);
        sandbox.compile_runner()?;
        Ok((sandbox, nest))
    }

    /// Compiles the guest's runner for this interpreter if that has not been done, in a sandbox like any other run.
    fn compile_runner(&mut self) -> Result<(), Error> {
        if !self.runner.is_source() {
            return Ok(());
        }
        let script = Script::from(guest::COMPILE).name("compile.py");
        // Under limits and a profile of its own: those of the caller's script may be too tight for it.
        let limits = std::mem::take(&mut self.config.limits);
        let program = std::mem::replace(&mut self.program, filter("default", self.ids, false)?);
        let outcome = self.execute(script, Watch::default(), false, None);
        (self.config.limits, self.program) = (limits, program);
        let outcome = outcome?;
        let files = account::files_of(&outcome);
        self.runner
            .store_compiled(&files)
            .map_err(|source| Error::Step { step: format!("compile the guest's runner: {}", outcome.message), source })
    }

    /// Runs one script to its end.
    ///
    /// A failure to set the sandbox up is an outcome too, of verdict `unavailable`: nothing ran.
    pub fn run(&self, script: impl Into<Script>) -> Outcome {
        self.run_watched(script, Watch::default())
    }

    /// Runs one script to its end, watched.
    pub fn run_watched(&self, script: impl Into<Script>, watch: Watch<'_>) -> Outcome {
        self.account_for(self.execute(script.into(), watch, self.config.check, None))
    }

    fn account_for(&self, result: Result<Outcome, Error>) -> Outcome {
        result.unwrap_or_else(|error| account::failed(&self.config, &self.image.name, &error))
    }

    /// The whole of a run, in `nest` or a new one.
    fn execute(&self, script: Script, watch: Watch<'_>, check: bool, nest: Option<Nest>) -> Result<Outcome, Error> {
        let mut account = Account::begin(self);
        let setup_deadline = Instant::now() + self.config.limits.setup_timeout;
        let Script { name: shown, source, args, inputs, values, stdin, artifacts, iteration: _ } = script;
        input::check(&values, &inputs)?;
        if !self.program.lets_start() {
            return Err(Error::Unsupported(format!(
                "the seccomp profile `{}` lets no program be started, an interpreter as little as others, so it serves warm runs \
                 alone: use --warm, or another profile with --seccomp",
                self.config.seccomp
            )));
        }
        let nest = match nest {
            Some(nest) => nest,
            None => Nest::make(&self.ground, self.ground.cgroup(&self.config)?, NAMESPACES, None)?,
        };
        let guest_ids = (idmap::GUEST_ID, idmap::GUEST_ID);
        idmap::write_maps(nest.init.pid, guest_ids, account.host_ids).map_err(failed("map the guest's user"))?;
        let view = self.view(&inputs, artifacts.is_some(), account.host_ids)?;
        let file = guest::script_path(&shown);
        let command = self.command(&file, &args, &inputs, !values.is_empty());
        let limits = input::room(&self.config.limits, &values);
        let channels = Channels::open(stdin, &values).map_err(failed("open the pipes of the run"))?;
        let mut plan = self.plan(&nest, &view, &account.rlimits, &command, &channels.guest());
        nest.send(&mut plan, &self.ground)?;
        drop(view);
        let mut supervisor = Supervisor {
            cancel: watch.cancel.as_ref().map(Cancel::descriptor),
            sink: watch.sink,
            ..Supervisor::of(nest, channels, &limits, &self.program)?
        };

        // Init works on another CPU meanwhile.
        let text = if check {
            match self.checked(&source, &shown, &mut account) {
                Ok(text) => text,
                Err(report) => return Ok(account.rejected(&report)),
            }
        } else {
            source
        };
        self.ground.sweep();
        supervisor.start(&text, &plan, setup_deadline)?;
        // Read back while the interpreter starts; that all is armed, init has said.
        account.armed(supervisor.nest.cgroup());
        let evidence = supervisor.run(&plan, setup_deadline)?;
        let mut room = supervisor.nest.room.take();
        let counters = room.as_ref().map(|room| room.meter.read());
        let removed = room.as_mut().map_or(Ok(()), |room| room.cgroup.remove());
        let mut outcome = account.close(evidence, counters, artifacts.as_deref());
        if let Err(error) = removed {
            // The run is over all the same: `unavailable` would let it be repeated.
            outcome.say(&chain(&error));
        }
        Ok(outcome)
    }

    /// The text that the check lets run, or its report.
    fn checked(&self, source: &[u8], shown: &str, account: &mut Account<'_>) -> Result<Vec<u8>, check::Report> {
        let (text, took) = checked(self.policy.as_ref(), source, shown);
        account.check = took;
        text
    }

    /// What the guest's process executes; `file` is its script, as it sees it.
    fn command<'a>(
        &'a self,
        file: &'a str,
        args: &'a [String],
        inputs: &'a [(String, PathBuf)],
        has_values: bool,
    ) -> guest::Command<'a> {
        let inputs = inputs.iter().map(|(name, _)| name.clone()).collect();
        self.command_for(guest::Task::Script { file, args, inputs, has_values })
    }

    fn command_for<'a>(&'a self, task: guest::Task<'a>) -> guest::Command<'a> {
        guest::Command { runner: &self.runner, python: &self.image.python, task, on_host: false, root: None }
    }

    /// The guest's file system, with every source opened.
    fn view(&self, inputs: &[(String, PathBuf)], output: bool, guest: (u32, u32)) -> Result<View, Error> {
        let mut view = image_view(&self.image, &self.config.limits, self.privileged)?;
        view.binds.push(bind(&self.runner.folder, Path::new("/run/nsbox"), self.privileged)?);
        view.private.output = output.then_some(self.config.limits.artifacts);
        view.private.inputs = self.inputs(inputs, guest)?;
        Ok(view)
    }

    /// The inputs of a run, opened.
    fn inputs(&self, inputs: &[(String, PathBuf)], guest: (u32, u32)) -> Result<Vec<(Bind, bool)>, Error> {
        let mut binds = Vec::with_capacity(inputs.len());
        for (i, (name, path)) in inputs.iter().enumerate() {
            check_input_name(inputs, i)?;
            let input = self.input(name, path, guest).map_err(|source| Error::Input {
                name: name.clone(),
                path: path.clone(),
                source,
            })?;
            binds.push(input);
        }
        Ok(binds)
    }

    /// A file or folder of the caller's, bound under /input; and whether it is a folder.
    fn input(&self, name: &str, path: &Path, guest: (u32, u32)) -> io::Result<(Bind, bool)> {
        let real = path.canonicalize()?;
        let metadata = std::fs::metadata(&real)?;
        if !metadata.is_dir() && !metadata.is_file() {
            return Err(io::Error::other("an input is a regular file or a folder"));
        }
        let bind = Bind::new(&real, &Path::new("/input").join(name), self.privileged)?;
        // What only its owner may read must be readable for the guest, who is somebody else when the caller is root.
        let private = metadata.is_dir() || metadata.mode() & 0o004 == 0;
        if private && self.privileged && matches!(self.ids, HostIds::Free { .. }) {
            let owner = (metadata.uid(), metadata.gid());
            match bind.map_ids(&idmap::mount_namespace(self.ground.init.as_fd(), owner, guest)?) {
                // The file system has no idmapped mounts: what everybody may read needs none.
                Err(error) if !idmap::is_everybodys(&real)? => return Err(error),
                _ => {}
            }
        }
        Ok((bind, metadata.is_dir()))
    }

    /// Every call of the set-up, in order.
    fn plan(
        &self,
        nest: &Nest,
        view: &View,
        rlimits: &[rlimits::Rlimit],
        command: &guest::Command<'_>,
        fds: &guest::Descriptors,
    ) -> Plan {
        let mut plan = Plan::new();
        plan.call("lead a session", libc::SYS_setsid, &[]);
        plan.call("set the umask", libc::SYS_umask, &[Arg::Value(guest::UMASK.into())]);
        nest.plan_entry(&mut plan);
        plan_cgroup_namespace(&mut plan);
        plan_host_name(&mut plan);
        plan_file(&mut plan, "offer the guest to the out-of-memory killer", c"/proc/self/oom_score_adj", c"1000");
        if sets_memfd_noexec(self.ids) {
            plan_file(&mut plan, "forbid executable memfds", c"/proc/sys/vm/memfd_noexec", c"2");
        }
        let proc = mounts::plan_proc(&mut plan);
        view.plan_binds(&mut plan);
        idmap::plan_become_guest(&mut plan);
        let is_apart = matches!(command.task, guest::Task::Zygote { .. }) && view.private.may_be_apart();
        if !is_apart {
            view.private.plan(&mut plan);
        }
        mounts::attach_proc(&mut plan, proc);
        View::plan_pivot(&mut plan);
        rlimits::plan(&mut plan, rlimits);
        caps::plan_bound(&mut plan);
        // A zygote runs no code of a script's: its slots do, and get the rest.
        if let guest::Task::Zygote { nice } = command.task {
            // What slots are made with does not get in the way of those that run.
            guest::plan_scheduling(&mut plan, libc::SCHED_BATCH, nice);
        } else {
            lane::Lanes::of(self.config.limits.cpus).plan(&mut plan, nest.init.pid.unsigned_abs() as usize);
            caps::plan_clear(&mut plan);
            if let Some(abi) = self.landlock {
                landlock::plan_restrict(&mut plan, abi, view.private.output.is_some());
            }
            self.program.plan(&mut plan);
        }
        plan.begin_guest();
        if is_apart {
            view.private.plan_apart(&mut plan);
        }
        command.plan(&mut plan, &self.config, fds, rlimits);
        plan
    }
}

/// Moves this process, which is nsbox's own, into a leaf of its cgroup where runs could have no limits beside it: see
/// [`Ground::survey`]. Where that fails, so will the sandbox, and it says why.
pub(crate) fn settle() {
    if let Ok(owner) = cgroup::Owner::current() {
        Hierarchy::discover(&owner, true).ok();
    }
}

/// The text that a policy (`None` is the built-in one) lets run, or its report; and how long that took.
pub(crate) fn checked(
    policy: Option<&Policy>,
    source: &[u8],
    shown: &str,
) -> (Result<Vec<u8>, check::Report>, Duration) {
    let begun = Instant::now();
    let report = check::check(source, shown, policy.unwrap_or_else(|| Policy::builtin()));
    let took = begun.elapsed();
    let text = report.source().map(|text| text.as_bytes().to_vec());
    (text.ok_or(report), took)
}

/// The check's policy that `config` names; `None` is the built-in one.
pub(crate) fn policy(config: &Config) -> Result<Option<Policy>, check::Error> {
    match (&config.policy, config.check) {
        (Some(path), true) => Policy::load(path).map(Some),
        _ => Ok(None),
    }
}

/// Whether the input at `index` can have its name.
pub(crate) fn check_input_name(inputs: &[(String, PathBuf)], index: usize) -> Result<(), Error> {
    let (name, _) = &inputs[index];
    if !guest::is_input_name(name) {
        return Err(Error::InputName { name: name.clone() });
    }
    if inputs[..index].iter().any(|(earlier, _)| earlier == name) {
        return Err(Error::InputTwice { name: name.clone() });
    }
    Ok(())
}

/// What a run needs beside its nest, found by looking at files.
struct Equipment {
    image: Image,
    policy: Option<Policy>,
    program: seccomp::Program,
    runner: guest::Runner,
}

impl Equipment {
    fn gather(config: &Config, ids: HostIds) -> Result<Self, Error> {
        let store = image::store_dir()?;
        let image = image::find(&config.image, config.python.as_deref(), &store)?;
        let program = filter(&config.seccomp, ids, false)?;
        let policy = policy(config)?;
        let runner =
            guest::Runner::install(&store, &image.python.cache_tag).map_err(failed("install the guest's runner"))?;
        Ok(Self { image, policy, program, runner })
    }

    fn complete(self, config: Config, ids: HostIds, ground: Ground) -> Sandbox {
        let Self { image, policy, program, runner } = self;
        let (privileged, landlock) = (mounts::may_clone(), landlock::abi());
        Sandbox { config, ids, image, policy, program, runner, privileged, landlock, ground }
    }
}

/// The filter by the profile `name`; one that tells of every call which may leave more than memory behind, where a slot is used
/// again.
fn filter(name: &str, ids: HostIds, notices: bool) -> Result<seccomp::Program, seccomp::Error> {
    let require_memfd_noexec = !sets_memfd_noexec(ids);
    seccomp::program(name, seccomp::Options { require_memfd_noexec, notices, ..seccomp::Options::default() })
}

/// The image's part of the guest's file system, with every source opened.
fn image_view(image: &Image, limits: &Limits, privileged: bool) -> Result<View, Error> {
    let mut view = View {
        root: bind(&image.skeleton, Path::new("/"), privileged)?,
        binds: Bind::devices(privileged).map_err(failed("open the device nodes"))?,
        private: Private { disk: (limits.disk, limits.inodes), ..Private::default() },
    };
    for image::Bind { source, target, .. } in &image.binds {
        view.binds.push(bind(source, target, privileged)?);
    }
    for image::Bind { source, target, kind } in &image.late_binds {
        view.private.late_binds.push((bind(source, target, privileged)?, *kind == Kind::Dir));
    }
    Ok(view)
}

fn bind(source: &Path, target: &Path, privileged: bool) -> Result<Bind, Error> {
    Bind::new(source, target, privileged)
        .map_err(|error| Error::Step { step: format!("open {} for the guest", source.display()), source: error })
}

fn plan_cgroup_namespace(plan: &mut Plan) {
    plan.call("make the cgroup namespace", libc::SYS_unshare, &[Arg::Value(libc::CLONE_NEWCGROUP as u64)]);
}

fn plan_host_name(plan: &mut Plan) {
    let name = Arg::Text(image::HOSTNAME.as_ref());
    plan.call("set the host name", libc::SYS_sethostname, &[name, Arg::Value(image::HOSTNAME.len() as u64)]);
}

/// Writes a short text into a file of /proc.
fn plan_file(plan: &mut Plan, step: &'static str, path: &'static CStr, text: &'static CStr) {
    let flags = Arg::Value((libc::O_WRONLY | libc::O_CLOEXEC) as u64);
    let file = plan.open(step, libc::SYS_openat, &[Arg::Fd(libc::AT_FDCWD), literal(path), flags]);
    plan.call(step, libc::SYS_write, &[Arg::Register(file), literal(text), Arg::Value(text.to_bytes().len() as u64)]);
    plan.close(file);
}

/// Whether init, with the host ids that it starts with, may write the sysctl of its own pid namespace (Linux 6.3). Not
/// where /proc/sys is read-only, as in containers.
fn sets_memfd_noexec(ids: HostIds) -> bool {
    matches!(ids, HostIds::Free { .. })
        && nix::unistd::geteuid().is_root()
        && nix::unistd::access("/proc/sys/vm/memfd_noexec", nix::unistd::AccessFlags::W_OK).is_ok()
}
