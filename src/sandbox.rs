//! One run inside every kernel layer: namespaces, a read-only root, limits, no capabilities, seccomp, Landlock.
//!
//! The story of [`Sandbox::run`]: gather descriptors, clone init into its namespaces, hand it the plan, check the source
//! while init carries the plan out, start the guest, watch it, and account for how it ended. A layer that cannot be armed
//! fails the run: init executes nothing of the guest unless every call of the plan succeeded.

mod account;
mod artifacts;
mod caps;
mod cgroup;
mod channels;
mod guest;
mod idmap;
mod landlock;
mod measure;
mod mounts;
mod plan;
mod rlimits;
mod script;
pub mod seccomp;
mod supervise;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use ::caps::{CapSet, Capability, has_cap};
use nix::sys::socket::{MsgFlags, send};

use crate::check::{self, Policy};
use crate::config::Config;
use crate::image::{self, Image, Kind};
use crate::outcome::Outcome;
use crate::sys::clone::{NAMESPACES, Spawn, spawn};
use crate::sys::fd::pidfd_open;
pub(crate) use account::{chain, unavailable};
use account::Account;
use cgroup::{Cgroup, Hierarchy, Owner};
use channels::Channels;
use idmap::HostIds;
use mounts::{Bind, View};
use plan::{Arg, Plan, literal};
pub use script::{Cancel, Script, Stdin, Watch};
pub use supervise::Stream;
use supervise::Supervisor;

/// The freestanding init, compiled by `build.rs`.
const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nsbox-init"));

/// Why there is no sandbox, or why a run did not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The image.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The check's policy.
    #[error(transparent)]
    Policy(#[from] check::Error),
    /// The seccomp profile.
    #[error(transparent)]
    Seccomp(#[from] seccomp::Error),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The user mapping.
    #[error(transparent)]
    UserMap(#[from] idmap::OnlyRoot),
    /// The namespaces or init.
    #[error("failed to {step}{}", knob(*.step, .source))]
    Spawn {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A call of the supervisor's own.
    #[error("failed to {step}")]
    Step {
        /// What was tried.
        step: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The plan.
    #[error(transparent)]
    Plan(#[from] plan::TooLong),
    /// The set-up inside the namespaces, or the watch over the run.
    #[error(transparent)]
    Run(#[from] supervise::Error),
    /// An input.
    #[error("{name:?} cannot name an input: use letters, digits, '_', '-' and '.', at most 64 of them")]
    InputName {
        /// The name given.
        name: String,
    },
    /// Two inputs of one name.
    #[error("two inputs are named {name:?}: give each a name of its own")]
    InputTwice {
        /// The name.
        name: String,
    },
    /// An input's file or folder.
    #[error("failed to open the input {name}={}", path.display())]
    Input {
        /// Its name.
        name: String,
        /// Its path on the host.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A configuration that this backend cannot serve.
    #[error("{0}")]
    Unsupported(String),
}

/// What to do about a refused namespace.
fn knob(step: &str, source: &io::Error) -> String {
    let advice = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if step == "make the namespaces" => {
            ": unprivileged user namespaces are refused here (sysctl kernel.unprivileged_userns_clone=1; \
             sysctl kernel.apparmor_restrict_unprivileged_userns=0; in a container, a seccomp profile that allows them)"
        }
        Some(libc::ENOSPC | libc::EUSERS) => ": the limit of namespaces is reached (sysctl user.max_user_namespaces)",
        _ => "",
    };
    format!("{advice}; nsbox doctor tells more")
}

/// Everything that runs have in common: built once, it may serve any number of them, from any number of threads.
#[derive(Debug)]
pub struct Sandbox {
    config: Config,
    image: Image,
    policy: Option<Policy>,
    program: seccomp::Program,
    hierarchy: Result<Hierarchy, String>,
    owner: Owner,
    ids: HostIds,
    init: OwnedFd,
    this: OwnedFd,
    runner: guest::Runner,
    privileged: bool,
    landlock: Option<i32>,
}

impl Sandbox {
    /// Prepares for runs by `config`: finds the image, compiles the filter, finds the cgroup hierarchy.
    ///
    /// # Errors
    /// Whatever of that cannot be had; nothing is replaced by something weaker unless `config.allow_degraded` says so.
    pub fn new(config: Config) -> Result<Self, Error> {
        let store = image::store_dir()?;
        let image = if config.image == "host" {
            image::host(config.python.as_deref(), &store)?
        } else {
            image::rootfs(Path::new(&config.image), config.python.as_deref(), &store)?
        };
        let ids = HostIds::choose()?;
        let options = seccomp::Options { require_memfd_noexec: !sets_memfd_noexec(ids), ..seccomp::Options::default() };
        let program = seccomp::program(&config.seccomp, options)?;
        let policy = match (&config.policy, config.check) {
            (Some(path), true) => Some(Policy::load(path)?),
            _ => None,
        };
        let hierarchy = match Hierarchy::discover() {
            Ok(hierarchy) => Ok(hierarchy),
            Err(error) if config.allow_degraded => Err(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        let runner = guest::Runner::install(&store, &image.python.cache_tag).map_err(failed("install the guest's runner"))?;
        let this = pidfd_open(nix::unistd::getpid().as_raw()).and_then(channels::high);
        let mut sandbox = Self {
            policy,
            program,
            hierarchy,
            owner: Owner::current().map_err(failed("name this process"))?,
            ids,
            init: channels::executable(c"nsbox-init", INIT).map_err(failed("keep init in a memfd"))?,
            this: this.map_err(failed("open a pidfd of this process"))?,
            runner,
            privileged: has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false),
            landlock: landlock::abi(),
            image,
            config,
        };
        if sandbox.runner.is_source() {
            sandbox.compile_runner()?;
        }
        Ok(sandbox)
    }

    /// Compiles the guest's runner for this interpreter, in a sandbox like any other run.
    fn compile_runner(&mut self) -> Result<(), Error> {
        let script = Script::from(guest::COMPILE).name("compile.py");
        // Under limits of its own: those of the caller's script may be too tight for it.
        let limits = std::mem::take(&mut self.config.limits);
        let outcome = self.execute(script, Watch::default(), false);
        self.config.limits = limits;
        let outcome = outcome?;
        let files = account::files_of(&outcome);
        self.runner.store_compiled(&files).map_err(|source| Error::Step {
            step: format!("compile the guest's runner: {}", outcome.message),
            source,
        })
    }

    /// Runs one script to its end.
    ///
    /// A failure to set the sandbox up is an outcome too, of verdict `unavailable`: nothing ran.
    pub fn run(&self, script: impl Into<Script>) -> Outcome {
        self.run_watched(script, Watch::default())
    }

    /// Runs one script to its end, watched.
    pub fn run_watched(&self, script: impl Into<Script>, watch: Watch<'_>) -> Outcome {
        self.execute(script.into(), watch, self.config.check)
            .unwrap_or_else(|error| account::failed(&self.config, &self.image.name, &error))
    }

    /// The whole of a run.
    fn execute(&self, script: Script, watch: Watch<'_>, check: bool) -> Result<Outcome, Error> {
        let mut account = Account::begin(self);
        let setup_deadline = Instant::now() + self.config.limits.setup_timeout;
        let Script { name: shown, source, args, inputs, stdin, artifacts } = script;
        let view = self.view(&inputs, artifacts.is_some())?;
        let channels = Channels::open(stdin).map_err(failed("open the pipes of the run"))?;
        let cgroup = self.cgroup()?;
        let entry = cgroup.as_ref().map(Cgroup::entry).transpose().map_err(failed("open the cgroup"))?.unwrap_or_default();

        let fds = channels.guest();
        let mut keep: Vec<RawFd> = view.fds().chain(fds.all()).collect();
        keep.push(self.this.as_raw_fd());
        keep.extend(entry.files.iter().map(AsRawFd::as_raw_fd));
        let init = spawn(Spawn {
            init: self.init.as_fd(),
            control: channels.init.as_fd(),
            keep,
            namespaces: NAMESPACES,
            cgroup: entry.folder.as_ref().map(AsFd::as_fd),
            drop_groups: self.drops_groups(),
        })
        .map_err(|error| Error::Spawn { step: error.step, source: error.source })?;
        let pid = init.pid;
        let attach = if init.in_cgroup { &[] } else { entry.files.as_slice() };
        // From here on the supervisor ends init whatever happens.
        let mut supervisor = Supervisor {
            init,
            channels: channels.detach(),
            oom: None,
            cancel: watch.cancel.as_ref().map(Cancel::descriptor),
            cgroup: cgroup.as_ref(),
            limits: &self.config.limits,
            program: &self.program,
            sink: watch.sink,
            listener: None,
            evidence: supervise::Evidence::default(),
        };
        if let Some(cgroup) = &cgroup {
            supervisor.oom = cgroup.oom_event().map_err(failed("watch for the end of memory"))?;
        }
        account.host_ids = self.ids.write(pid).map_err(failed("map the guest's user"))?;

        let file = guest::script_path(&shown);
        let command = guest::Command {
            runner: &self.runner,
            python: &self.image.python,
            file: &file,
            args: &args,
            inputs: inputs.iter().map(|(name, _)| name.as_str()).collect(),
        };
        let plan = self.plan(&view, attach, &account.rlimits, &command, fds, pid);
        let message = plan.encode(self.this.as_raw_fd())?;
        send(supervisor.channels.control.as_raw_fd(), &message, MsgFlags::MSG_NOSIGNAL)
            .map_err(|errno| failed("send the plan to init")(errno.into()))?;
        drop(view);

        // Init works on another CPU meanwhile.
        let text = if check {
            let policy = self.policy.as_ref().unwrap_or_else(|| Policy::builtin());
            let begun = Instant::now();
            let report = check::check(&source, &shown, policy);
            account.check = begun.elapsed();
            match report.source() {
                Some(text) => text.as_bytes().to_vec(),
                None => return Ok(account.rejected(&report)),
            }
        } else {
            source
        };
        channels::write_sealed(&mut supervisor.channels.code, &text).map_err(failed("hand over the script"))?;
        if let Ok(hierarchy) = &self.hierarchy {
            hierarchy.sweep(&self.owner);
        }
        supervisor.wait_ready(&plan, setup_deadline)?;
        account.armed(cgroup.as_ref());
        let evidence = supervisor.run(&plan, setup_deadline)?;
        let counters = cgroup.as_ref().map(Cgroup::counters);
        if let Some(mut cgroup) = cgroup {
            cgroup.remove()?;
        }
        Ok(account.close(evidence, counters, artifacts.as_deref()))
    }

    /// The guest's file system, with every source opened.
    fn view(&self, inputs: &[(String, PathBuf)], output: bool) -> Result<View, Error> {
        let bind = |source: &Path, target: &Path| {
            Bind::new(source, target, self.privileged).map_err(|error| Error::Step {
                step: format!("open {} for the guest", source.display()),
                source: error,
            })
        };
        let mut view = View {
            root: bind(&self.image.skeleton, Path::new("/"))?,
            binds: Bind::devices(self.privileged).map_err(failed("open the device nodes"))?,
            late_binds: Vec::new(),
            inputs: Vec::new(),
            disk: (self.config.limits.disk, self.config.limits.inodes),
            output: output.then_some(self.config.limits.artifacts),
        };
        for image::Bind { source, target, .. } in &self.image.binds {
            view.binds.push(bind(source, target)?);
        }
        view.binds.push(bind(&self.runner.folder, Path::new("/run/nsbox"))?);
        for image::Bind { source, target, kind } in &self.image.late_binds {
            view.late_binds.push((bind(source, target)?, *kind == Kind::Dir));
        }
        for (i, (name, path)) in inputs.iter().enumerate() {
            if !guest::is_input_name(name) {
                return Err(Error::InputName { name: name.clone() });
            }
            if inputs[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(Error::InputTwice { name: name.clone() });
            }
            let failed = |source| Error::Input { name: name.clone(), path: path.clone(), source };
            let real = path.canonicalize().map_err(failed)?;
            let kind = std::fs::metadata(&real).map_err(failed)?.file_type();
            if !kind.is_dir() && !kind.is_file() {
                return Err(failed(io::Error::other("an input is a regular file or a folder")));
            }
            let target = Path::new("/input").join(name);
            view.inputs.push((Bind::new(&real, &target, self.privileged).map_err(failed)?, kind.is_dir()));
        }
        Ok(view)
    }

    fn cgroup(&self) -> Result<Option<Cgroup>, Error> {
        let Ok(hierarchy) = &self.hierarchy else { return Ok(None) };
        match hierarchy.create(&self.owner, &self.config.limits) {
            Ok(cgroup) => Ok(Some(cgroup)),
            Err(_) if self.config.allow_degraded => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Supplementary groups would follow the guest, and with them what they may read.
    fn drops_groups(&self) -> bool {
        matches!(self.ids, HostIds::Free { .. }) && nix::unistd::getgroups().is_ok_and(|groups| !groups.is_empty())
    }

    /// Every call of the set-up, in order.
    fn plan(
        &self,
        view: &View,
        attach: &[OwnedFd],
        rlimits: &[rlimits::Rlimit],
        command: &guest::Command<'_>,
        fds: guest::Descriptors,
        pid: libc::pid_t,
    ) -> Plan {
        let mut plan = Plan::new();
        plan.call("lead a session", libc::SYS_setsid, &[]);
        plan.call("set the umask", libc::SYS_umask, &[Arg::Value(0o022)]);
        for file in attach {
            let args = [Arg::Fd(file.as_raw_fd()), literal(c"0"), Arg::Value(1)];
            plan.call("enter the cgroup", libc::SYS_write, &args);
        }
        let namespace = [Arg::Value(libc::CLONE_NEWCGROUP as u64)];
        plan.call("make the cgroup namespace", libc::SYS_unshare, &namespace);
        let name = Arg::Text(image::HOSTNAME.as_ref());
        plan.call("set the host name", libc::SYS_sethostname, &[name, Arg::Value(image::HOSTNAME.len() as u64)]);
        plan_file(&mut plan, "offer the guest to the out-of-memory killer", c"/proc/self/oom_score_adj", c"1000");
        if sets_memfd_noexec(self.ids) {
            plan_file(&mut plan, "forbid executable memfds", c"/proc/sys/vm/memfd_noexec", c"2");
        }
        let proc = mounts::plan_proc(&mut plan);
        view.plan_binds(&mut plan);
        idmap::plan_become_guest(&mut plan);
        view.plan_private(&mut plan, fds.control);
        mounts::attach_proc(&mut plan, proc);
        View::plan_pivot(&mut plan);
        guest::plan_affinity(&mut plan, self.config.limits.cpus, pid.unsigned_abs() as usize);
        rlimits::plan(&mut plan, rlimits);
        caps::plan_drop(&mut plan);
        if let Some(abi) = self.landlock {
            landlock::plan_restrict(&mut plan, abi, view.output.is_some());
        }
        self.program.plan(&mut plan, fds.control);
        command.plan(&mut plan, &self.config, fds);
        plan
    }
}

/// Writes a short text into a file of /proc.
fn plan_file(plan: &mut Plan, step: &'static str, path: &'static CStr, text: &'static CStr) {
    let flags = Arg::Value((libc::O_WRONLY | libc::O_CLOEXEC) as u64);
    let file = plan.open(step, libc::SYS_openat, &[Arg::Fd(libc::AT_FDCWD), literal(path), flags]);
    plan.call(step, libc::SYS_write, &[Arg::Register(file), literal(text), Arg::Value(text.to_bytes().len() as u64)]);
    plan.close(file);
}

/// Whether init, with the host ids that it starts with, may write the sysctl of its own pid namespace (Linux 6.3).
fn sets_memfd_noexec(ids: HostIds) -> bool {
    matches!(ids, HostIds::Free { .. })
        && nix::unistd::geteuid().is_root()
        && Path::new("/proc/sys/vm/memfd_noexec").exists()
}

/// An error of the supervisor's own.
fn failed(step: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Step { step: step.to_owned(), source }
}
