//! `enabled: false`: the check, then the script on the host's interpreter with no isolation at all, at the caller's own word.
//!
//! The same init, runner and supervisor as in a sandbox, without a namespace, a cgroup, a filter or a limit but those of
//! time, output and result. The script has the caller's user, files, network, environment and working directory. What
//! ends is its process group: a process that leaves it is nobody's business.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use nix::unistd::{getegid, geteuid};

use super::account::Account;
use super::channels::Channels;
use super::guest::{self, Task};
use super::idmap::HostIds;
use super::nest::{self, Ground, Nest};
use super::plan::{Arg, Plan};
use super::scratch::Scratch;
use super::script::{Cancel, Script, Watch};
use super::supervise::Supervisor;
use super::{Equipment, Error, Sandbox, failed, input};
use crate::config::{Config, Limits};
use crate::outcome::{Backend, Outcome, Verdict};

/// Why each layer is missing.
const WHY: &str = "enabled is false: there is no sandbox";

/// Runs scripts without a sandbox; any number of them, from any number of threads.
#[derive(Debug)]
pub(crate) struct Direct {
    /// What is the same in both, and how a run is accounted for.
    inner: Sandbox,
    limits: Limits,
    /// The image that the configuration names, where it is not this host.
    unused_image: Option<String>,
}

impl Direct {
    /// Finds the interpreter, by `config`.
    pub(crate) fn new(mut config: Config) -> Result<Self, Error> {
        let image = std::mem::replace(&mut config.image, "host".to_owned());
        let unused_image = (image != "host").then_some(image);
        if unused_image.is_some() {
            // It is a path in that image.
            config.python = None;
        }
        let ids = HostIds::Caller { uid: geteuid().as_raw(), gid: getegid().as_raw() };
        let ground = Ground::bare(nest::init_binary()?)?;
        let limits = Limits { memory: u64::MAX, cpu_time: None, ..config.limits.clone() };
        let mut inner = Equipment::gather(&config, ids)?.complete(config, ids, ground);
        inner.runner = inner.runner.on_host();
        Ok(Self { inner, limits, unused_image })
    }

    /// Runs one script to its end.
    pub(crate) fn run(&self, script: Script, watch: Watch<'_>) -> Outcome {
        let (has_inputs, has_artifacts) = (!script.inputs.is_empty(), script.artifacts.is_some());
        let mut outcome = self.inner.account_for(self.execute(script, watch));
        outcome.backend = outcome.backend.map(|_| Backend::Direct);
        if outcome.backend.is_none() {
            return outcome;
        }
        if let Some(image) = &self.unused_image {
            outcome.say(&format!("without a sandbox there is no image: the host's interpreter ran it, not {image}"));
        }
        if has_inputs && outcome.verdict != Verdict::Ok {
            outcome.say("without a sandbox there is no /input: the paths of the inputs are in the dict `inputs`");
        }
        if has_artifacts {
            outcome.say("without a sandbox there is no /output: no artifacts are collected");
        }
        outcome
    }

    fn execute(&self, script: Script, watch: Watch<'_>) -> Result<Outcome, Error> {
        let inner = &self.inner;
        let mut account = Account::begin(inner);
        account.rlimits.clear();
        account.unarmed(WHY);
        let deadline = Instant::now() + self.limits.setup_timeout;
        let Script { name: shown, source, args, inputs, values, stdin, artifacts: _, iteration: _ } = script;
        input::check(&values, &inputs)?;
        let text = if inner.config.check {
            match inner.checked(&source, &shown, &mut account) {
                Ok(text) => text,
                Err(report) => return Ok(account.rejected(&report)),
            }
        } else {
            source
        };
        let inputs = found(&inputs)?;
        // The runner writes the script to where its `__file__` says.
        let folder = Scratch::make(&inner.ground.owner, 0o700)
            .map_err(failed("make a folder for the script (TMPDIR names another place)"))?;
        let name = guest::script_path(&shown);
        let file = folder.path().join(name.rsplit('/').next().unwrap_or_default()).to_string_lossy().into_owned();

        let nest = Nest::bare(&inner.ground)?;
        let channels = Channels::open(stdin, &values).map_err(failed("open the pipes of the run"))?;
        let task = Task::Script { file: &file, args: &args, inputs, has_values: !values.is_empty() };
        let command = guest::Command { on_host: true, ..inner.command_for(task) };
        let mut plan = Plan::new();
        plan.call("lead a session", libc::SYS_setsid, &[]);
        plan_control(&mut plan, "adopt the orphans of the script", libc::PR_SET_CHILD_SUBREAPER, 1);
        plan.begin_guest();
        plan.call("lead a session", libc::SYS_setsid, &[]);
        plan_control(&mut plan, "end the script with init", libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        command.plan(&mut plan, &inner.config, &channels.guest(), &[]);
        nest.send(&mut plan, &inner.ground)?;
        let mut supervisor = Supervisor {
            cancel: watch.cancel.as_ref().map(Cancel::descriptor),
            sink: watch.sink,
            ..Supervisor::of(nest, channels, &self.limits, &inner.program)?
        };
        supervisor.start(&text, &plan, deadline)?;
        let evidence = supervisor.run(&plan, deadline)?;
        Ok(account.close(evidence, None, None))
    }
}

/// The inputs as the runner is told them: `NAME=PATH`.
pub(super) fn found(inputs: &[(String, PathBuf)]) -> Result<Vec<String>, Error> {
    let mut named = Vec::with_capacity(inputs.len());
    for (i, (name, path)) in inputs.iter().enumerate() {
        super::check_input_name(inputs, i)?;
        let real = fs::canonicalize(path);
        let real = real.map_err(|source| Error::Input { name: name.clone(), path: path.clone(), source })?;
        named.push(format!("{name}={}", real.display()));
    }
    Ok(named)
}

pub(super) fn plan_control(plan: &mut Plan, step: &'static str, option: i32, value: i32) {
    let args = [Arg::Value(u64::from(option.unsigned_abs())), Arg::Value(u64::from(value.unsigned_abs()))];
    plan.call(step, libc::SYS_prctl, &args);
}
