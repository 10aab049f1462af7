//! A backend that can be given runs.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Terms;
use super::journal::Journal;
use crate::config::Config;
use crate::docker::Docker;
use crate::event::EventType;
use crate::outcome::{Backend, Outcome};
use crate::pool::Pool;
use crate::sandbox::ast_only::AstOnly;
use crate::sandbox::direct::Direct;
use crate::sandbox::{Sandbox, Script, Watch, chain};

/// Runs in a row that a pool may fail to serve before another takes its place.
const PATIENCE_WITH_POOLS: u32 = 3;
/// Slots that a pool can keep ready beside those in use; further runs wait.
const MOST_SLOTS: usize = 300;

/// One backend, ready.
#[derive(Debug)]
pub(super) enum Ready {
    /// Namespaces, warm.
    Pool {
        pool: Box<Pool>,
        /// Its interpreters so far, for the log.
        zygotes: AtomicU64,
    },
    /// Namespaces, each run in a fresh interpreter.
    Sandbox(Box<Sandbox>),
    /// The same, for a single run: the sandbox is made with it.
    Once(Box<Config>),
    /// Containers.
    Docker(Box<Docker>),
    /// Without namespaces.
    AstOnly(Box<AstOnly>),
    /// No isolation at all.
    Direct(Box<Direct>),
}

impl Ready {
    /// Makes it.
    pub(super) fn make(backend: Backend, config: &Config, terms: Terms, journal: Journal<'_>) -> Result<Self, String> {
        match backend {
            Backend::Namespace if terms.once => Ok(Self::Once(Box::new(config.clone()))),
            Backend::Namespace if config.warm => Self::pool(config, terms, journal),
            Backend::Namespace => {
                let sandbox = Sandbox::new(config.clone()).map_err(|error| error.explain())?;
                Ok(Self::Sandbox(Box::new(sandbox)))
            }
            Backend::Direct => {
                let direct = Direct::new(config.clone()).map_err(|error| error.explain())?;
                Ok(Self::Direct(Box::new(direct)))
            }
            Backend::AstOnly => {
                let ast_only = AstOnly::new(config.clone()).map_err(|error| error.explain())?;
                Ok(Self::AstOnly(Box::new(ast_only)))
            }
            Backend::Docker => {
                let docker = Docker::new(config.clone()).map_err(|error| chain(&error))?;
                docker.prepare().map_err(|error| chain(&error))?;
                Ok(Self::Docker(Box::new(docker)))
            }
        }
    }

    fn pool(config: &Config, terms: Terms, journal: Journal<'_>) -> Result<Self, String> {
        let builder = Pool::builder(config.clone());
        let builder = match terms.jobs {
            // One more is being made or ended while each of them runs.
            Some(jobs) => builder.slots(jobs.min(MOST_SLOTS)).most(3 * jobs.min(MOST_SLOTS) + 1),
            None => builder,
        };
        match builder.build() {
            Ok(pool) => {
                let modules = config.preload.join(", ");
                let message = format!("interpreters that have imported [{modules}] serve the runs");
                journal.tell(EventType::PoolStarted, Backend::Namespace, &message, ("slots", pool.ready() as u64));
                let zygotes = AtomicU64::new(pool.counts().zygotes);
                Ok(Self::Pool { pool: Box::new(pool), zygotes })
            }
            Err(error) => {
                let why = chain(&error);
                journal.say(EventType::PoolFailed, Backend::Namespace, why.as_str());
                Err(format!("{why}; --fresh (warm: false) runs without a pool"))
            }
        }
    }

    /// Runs a script on it.
    pub(super) fn run(&self, script: Script, watch: Watch<'_>, journal: Journal<'_>) -> Outcome {
        match self {
            Self::Pool { pool, zygotes } => {
                let outcome = pool.run(script, watch);
                let now = pool.counts().zygotes;
                if zygotes.fetch_max(now, Ordering::Relaxed) < now {
                    let message = "the pool has a new interpreter";
                    journal.tell(EventType::PoolRecycled, Backend::Namespace, message, ("zygotes", now));
                }
                outcome
            }
            Self::Sandbox(sandbox) => sandbox.run_watched(script, watch),
            Self::Docker(docker) => {
                let (outcome, clean) = docker.run_and_clean(script, watch);
                if clean {
                    journal.say(EventType::DockerCleanup, Backend::Docker, "the run's container is removed");
                }
                outcome
            }
            Self::AstOnly(ast_only) => ast_only.run(script, watch),
            Self::Direct(direct) => direct.run(script, watch),
            Self::Once(config) => Sandbox::run_once(Config::clone(config), script, watch),
        }
    }

    /// After how many runs in a row that it could not serve it is made anew.
    pub(super) fn patience(&self) -> u32 {
        if matches!(self, Self::Pool { .. }) { PATIENCE_WITH_POOLS } else { 1 }
    }

    /// Ends it where this is the last that holds it, and tells of a pool's end.
    pub(super) fn end(self, journal: Journal<'_>) {
        if let Self::Pool { pool, .. } = self {
            let counts = pool.counts();
            drop(pool);
            journal.tell(EventType::PoolStopped, Backend::Namespace, "the pool is closed", ("slots", counts.slots));
        }
    }
}
