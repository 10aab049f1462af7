//! `ast-only`: what can be held without a single namespace, for machines that have none to give. Its isolation is weak.
//!
//! The check, then a process of the host's interpreter under Landlock, seccomp, rlimits and `no_new_privs`, as a user who
//! owns nothing where the caller is root, and measured by the supervisor. The same init, runner and supervisor as in a
//! sandbox. Without a pid namespace no process can leave the script's process group, for seccomp refuses setsid(2) and
//! setpgid(2): init kills and reaps the whole group. Without mounts a folder of the run's own stands for /work, /tmp, /input
//! and /output, and literal paths in the script lead there. See landlock(7), killpg(3), credentials(7).
//!
//! Not held: the names, owners, sizes and times of all files can be asked for, as can the pids of all processes and what
//! /proc says of the machine. Memory that is no process's own (pipes, sockets) is not measured.

mod folder;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::account::Account;
use super::channels::Channels;
use super::direct::plan_control;
use super::guest::{self, Task};
use super::idmap::HostIds;
use super::lane::Lanes;
use super::nest::{self, Ground, Nest};
use super::plan::{Arg, Plan};
use super::script::{Cancel, Script, Watch};
use super::supervise::Supervisor;
use super::{Equipment, Error, Sandbox, caps, failed, input, landlock, measure, plan_file, rlimits, seccomp};
use crate::config::Config;
use crate::outcome::{Backend, Enforced, Layer, Outcome};
pub(crate) use folder::Folder;

/// What every outcome of this backend says.
const LABEL: &str = "isolation: weak (ast-only)";
/// What the guest may read of `/proc`, beside its own folder.
const PROC: [&str; 4] = ["/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/kernel"];
const DEVICES: [&str; 5] = ["/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero"];
/// What the dynamic loader looks into first.
const LOADER: &str = "/etc/ld.so.cache";

/// Runs scripts without namespaces; any number of them, from any number of threads.
#[derive(Debug)]
pub(crate) struct AstOnly {
    /// What is the same in both, and how a run is accounted for.
    inner: Sandbox,
    abi: i32,
    /// The image that the configuration names, where it is not this host.
    unused_image: Option<String>,
}

impl AstOnly {
    /// Finds the interpreter and compiles the filter, by `config`.
    ///
    /// # Errors
    /// Where the check is off, or Landlock is not to be had: it is the main wall.
    pub(crate) fn new(mut config: Config) -> Result<Self, Error> {
        let unsupported = |why: &str| Err(Error::Unsupported(why.to_owned()));
        if !config.check {
            return unsupported("ast-only runs nothing unchecked: leave --no-check (check: false) out");
        }
        let Some(abi) = landlock::abi() else {
            return unsupported(
                "ast-only needs Landlock, which this kernel lacks or has not enabled: boot with lsm=landlock added",
            );
        };
        let image = std::mem::replace(&mut config.image, "host".to_owned());
        let unused_image = (image != "host").then_some(image);
        if unused_image.is_some() {
            // It is a path in that image.
            config.python = None;
        }
        let ids = HostIds::choose()?;
        let ground = Ground::bare(nest::init_binary()?)?;
        let holds_signals = abi < landlock::SCOPED;
        let options = seccomp::Options { shares_host: true, holds_signals, ..seccomp::Options::default() };
        let program = seccomp::program(&config.seccomp, options)?;
        let mut inner = Equipment::gather(&config, ids)?.complete(config, ids, ground);
        inner.program = program;
        inner.runner = inner.runner.on_host();
        Ok(Self { inner, abi, unused_image })
    }

    /// Runs one script to its end.
    pub(crate) fn run(&self, script: Script, watch: Watch<'_>) -> Outcome {
        let mut outcome = self.inner.account_for(self.execute(script, watch));
        if outcome.backend.is_none() {
            return outcome;
        }
        outcome.backend = Some(Backend::AstOnly);
        outcome.say(LABEL);
        if let Some(image) = &self.unused_image {
            outcome.say(&format!("ast-only has no image: the host's interpreter ran it, not {image}"));
        }
        outcome
    }

    fn execute(&self, script: Script, watch: Watch<'_>) -> Result<Outcome, Error> {
        let inner = &self.inner;
        let mut account = Account::begin(inner);
        let deadline = Instant::now() + inner.config.limits.setup_timeout;
        let Script { name: shown, source, args, inputs, values, stdin, artifacts, iteration: _ } = script;
        input::check(&values, &inputs)?;
        let limits = input::room(&inner.config.limits, &values);
        self.adjust(&mut account, limits.memory);
        let text = match inner.checked(&source, &shown, &mut account) {
            Ok(text) => text,
            Err(report) => return Ok(account.rejected(&report)),
        };
        let folder = Folder::make(&inner.ground.owner, account.host_ids)
            .map_err(failed("make a folder for the run (TMPDIR names another place)"))?;
        let name = guest::script_path(&shown);
        let file = folder.work.join(name.rsplit('/').next().unwrap_or_default()).to_string_lossy().into_owned();
        let mut config = inner.config.clone();
        let places = [("HOME", &folder.tmp), ("TMPDIR", &folder.tmp), ("NSBOX_OUTPUT", &folder.output)];
        for (name, path) in places {
            config.env.entry(name.to_owned()).or_insert_with(|| path.to_string_lossy().into_owned());
        }
        let inputs = show(&folder, &inputs)?;
        let rules = self.rules(&folder, &inputs)?;

        let nest = Nest::bare(&inner.ground)?;
        let channels = Channels::open(stdin, &values).map_err(failed("open the pipes of the run"))?;
        let task = Task::Script { file: &file, args: &args, inputs, has_values: !values.is_empty() };
        let mut plan = Plan::new();
        self.plan_init(&mut plan, &account, nest.init.pid);
        plan.begin_guest();
        plan.call("lead a session", libc::SYS_setsid, &[]);
        plan_control(&mut plan, "end the script with init", libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        plan.call("enter the script's folder", libc::SYS_chdir, &[Arg::Text(folder.work.as_os_str())]);
        landlock::plan_own_process(&mut plan, self.abi, rules.as_raw_fd());
        landlock::plan_enforce(&mut plan, Arg::Fd(rules.as_raw_fd()));
        inner.program.plan(&mut plan);
        let command = guest::Command { root: Some(folder.root()), ..inner.command_for(task) };
        command.plan(&mut plan, &config, &channels.guest(), &account.rlimits);
        nest.send(&mut plan, &inner.ground)?;
        drop(rules);
        let mut supervisor = Supervisor {
            cancel: watch.cancel.as_ref().map(Cancel::descriptor),
            sink: watch.sink,
            folder: Some(&folder),
            ..Supervisor::of(nest, channels, &limits, &inner.program)?
        };
        supervisor.start(&text, &plan, deadline)?;
        account.note(self.enforced(&account));
        let mut evidence = supervisor.run(&plan, deadline)?;
        if artifacts.is_some() {
            let output = File::open(&folder.output).map_err(failed("open the folder of artifacts"))?;
            evidence.output = Some(OwnedFd::from(output));
        }
        Ok(account.close(evidence, None, artifacts.as_deref()))
    }

    /// The limits of processes count for a user, not for a run: those that the caller's user has already are added.
    fn adjust(&self, account: &mut Account<'_>, memory: u64) {
        rlimits::bound_addresses(&mut account.rlimits, memory);
        if let HostIds::Caller { uid, .. } = self.inner.ids {
            rlimits::allow_more_processes(&mut account.rlimits, measure::tasks_of(uid));
        }
    }

    /// Plans what init and all that comes after it are under.
    fn plan_init(&self, plan: &mut Plan, account: &Account<'_>, init: libc::pid_t) {
        plan.call("lead a session", libc::SYS_setsid, &[]);
        plan.call("set the umask", libc::SYS_umask, &[Arg::Value(guest::UMASK.into())]);
        plan_control(plan, "adopt the orphans of the script", libc::PR_SET_CHILD_SUBREAPER, 1);
        plan_file(plan, "offer the guest to the out-of-memory killer", c"/proc/self/oom_score_adj", c"1000");
        rlimits::plan(plan, &account.rlimits);
        Lanes::of(self.inner.config.limits.cpus).plan(plan, init.unsigned_abs() as usize);
        if matches!(self.inner.ids, HostIds::Free { .. }) {
            caps::plan_bound(plan);
            let [uid, gid] = [account.host_ids.0, account.host_ids.1].map(|id| Arg::Value(id.into()));
            plan.call("give up the supplementary groups", libc::SYS_setgroups, &[Arg::Value(0), Arg::Value(0)]);
            plan.call("become the guest's group", libc::SYS_setresgid, &[gid, gid, gid]);
            plan.call("become the guest's user", libc::SYS_setresuid, &[uid, uid, uid]);
        } else {
            plan_control(plan, "set no_new_privs", libc::PR_SET_NO_NEW_PRIVS, 1);
        }
        caps::plan_clear(plan);
    }

    /// The Landlock rules, but for the guest's own part of `/proc`.
    fn rules(&self, folder: &Folder, inputs: &[String]) -> Result<OwnedFd, Error> {
        let image = &self.inner.image;
        let rules = landlock::Rules::new(self.abi).map_err(failed("make the Landlock ruleset"))?;
        let readable = image.binds.iter().chain(&image.late_binds).map(|bind| bind.source.as_path());
        let inputs = inputs.iter().filter_map(|input| input.split_once('=')).map(|(_, path)| Path::new(path));
        let optional = PROC.iter().chain([&LOADER]).map(Path::new).filter(|path| path.exists());
        let devices = DEVICES.iter().map(Path::new).filter(|path| path.exists());
        let read = landlock::READ | landlock::EXECUTE;
        let all = (readable.chain([self.inner.runner.folder.as_path()]).map(|path| (path, read)))
            .chain(inputs.chain(optional).map(|path| (path, landlock::READ)))
            .chain(devices.map(|path| (path, landlock::DEVICE)))
            .chain([(folder.input.as_path(), landlock::READ)])
            .chain(folder.writable().map(|path| (path, landlock::FILL)));
        for (path, rights) in all {
            rules.allow(path, rights).map_err(|source| {
                let step = format!("add a Landlock rule for {}", path.display());
                Error::Step { step, source }
            })?;
        }
        Ok(rules.into())
    }

    /// What holds the run, and what does not.
    fn enforced(&self, account: &Account<'_>) -> Enforced {
        let limits = &self.inner.config.limits;
        let (uid, gid) = account.host_ids;
        let is_free = matches!(self.inner.ids, HostIds::Free { .. });
        let weak = |configured: &str, why: &str| Layer::missing(configured, format!("{LABEL}: {why}"));
        let in_place = |layer: Layer, applied: &str| Layer { applied: Some(applied.to_owned()), ..layer };
        let mut enforced = account.layers_of_processes();
        enforced.namespaces = weak("user, mount, pid, net, ipc, uts, cgroup", "ast-only has no namespaces");
        enforced.user_map = if is_free {
            Layer::applied(format!("uid {uid}, gid {gid}, who own nothing; no supplementary groups"))
        } else {
            weak("a user of its own", "the caller is not root, so the guest has the caller's own user")
        };
        enforced.root = in_place(
            weak("read-only", "it sees the names, sizes and times of the host's files"),
            "Landlock: reads the interpreter and its libraries, fills a folder of its own, whose content is counted",
        );
        let bounding = if is_free { "bounding set empty" } else { "no_new_privs keeps the bounding set out of reach" };
        enforced.capabilities = Layer::applied(format!("none in any set; {bounding}"));
        enforced.seccomp = Layer::applied(format!(
            "{}, without sockets, IPC, memfds, new process groups, and changes of modes, owners, times and attributes",
            self.inner.config.seccomp
        ));
        let scoped = self.abi >= landlock::SCOPED;
        enforced.landlock = Layer::applied(format!("ABI {}", self.abi));
        if !scoped {
            enforced.landlock.applied = Some(format!("ABI {}; seccomp refuses all signals", self.abi));
        }
        enforced.memfd_noexec = Layer::applied("memfd_create refused by seccomp");
        let measured = "measured by the supervisor every 20 ms, RLIMIT_AS of each process";
        let why = "ast-only has no cgroup";
        enforced.cgroup.memory = in_place(weak(&limits.memory.to_string(), why), measured);
        enforced.cgroup.pids = in_place(weak(&limits.pids.to_string(), why), "RLIMIT_NPROC of the user");
        enforced.cgroup.cpu = in_place(weak(&limits.cpus.to_string(), why), "CPU affinity alone");
        enforced
    }
}

/// Shows the inputs in the run's folder; as the runner is told them: `NAME=PATH`.
fn show(folder: &Folder, inputs: &[(String, PathBuf)]) -> Result<Vec<String>, Error> {
    let mut named = Vec::with_capacity(inputs.len());
    for (i, (name, path)) in inputs.iter().enumerate() {
        super::check_input_name(inputs, i)?;
        let shown = folder.show(name, path);
        let shown = shown.map_err(|source| Error::Input { name: name.clone(), path: path.clone(), source })?;
        named.push(format!("{name}={}", shown.display()));
    }
    Ok(named)
}
