//! Why there is no sandbox, or why a run did not begin: one variant for each stage of the story.

use std::io;
use std::path::PathBuf;

use super::host::Host;
use super::{account, cgroup, idmap, input, knob, plan, seccomp, supervise};
use crate::{check, image};

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
    #[error("failed to {step}")]
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
    /// An input that is a value, under a name that no global can have.
    #[error("{name:?} cannot name a value: {why}")]
    ValueName {
        /// The name given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More values than a run can be handed.
    #[error("{count} inputs that are values, the most is {}: put some of them into one dict", input::MOST)]
    TooManyValues {
        /// How many there are.
        count: usize,
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
    /// The description of a run for OCI runtimes.
    #[error("failed to describe the run in the OCI format")]
    Oci(#[from] oci_spec::OciSpecError),
    /// The interpreter that slots are forked from.
    #[error("the pool's interpreter failed to {what}: {why}; nothing runs warm without it (see preload and warm_up)")]
    Zygote {
        /// What it was doing: `import NAME`, say.
        what: String,
        /// Its exception.
        why: String,
    },
    /// The process that puts slots back.
    #[error("a slot cannot be used again: its restorer failed to {step}; `slots: one-shot` does without")]
    Restorer {
        /// What it was doing.
        step: &'static str,
        /// Why it failed, where the kernel said so.
        #[source]
        source: Option<io::Error>,
    },
    /// A configuration that this backend cannot serve.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    /// A caller gave up before the script began.
    pub(crate) fn cancelled() -> Self {
        Self::Run(supervise::Error::Cancelled)
    }

    /// What mends it on this machine, each a way of its own; the first is the narrowest. None where the error itself says
    /// what to do, or nothing is known.
    #[must_use]
    pub fn knobs(&self) -> Vec<String> {
        knob::of(self, &Host::read())
    }

    /// The error with its causes and the first knob, in one line.
    pub(crate) fn explain(&self) -> String {
        match self.knobs().first() {
            Some(knob) => format!("{}; to mend it: {knob} (nsbox doctor tells more)", account::chain(self)),
            None => account::chain(self),
        }
    }
}

/// An error of the supervisor's own.
pub(super) fn failed(step: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Step { step: step.to_owned(), source }
}
