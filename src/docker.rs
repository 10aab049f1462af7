//! One run in a Docker container: the same guest, limits, seccomp file and outcome as in a sandbox, through the Engine API.
//!
//! The story of [`Docker::run`]: check the source, ask the engine once what it is and has, create a container that holds
//! nothing of the host but read-only inputs, attach to it, start it, watch it, account for its end, remove it. The guest's
//! own pid 1 (`rootfs/guest/container.py`) comes by the container's command line, everything else by its standard input;
//! what the script leaves comes back in frames that only pid 1 can write.

mod account;
mod channel;
mod engine;
mod files;
mod request;
mod watch;

use std::io;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bollard::errors::Error as ApiError;
use futures_util::FutureExt;

use crate::check::{self, Policy};
use crate::config::{Config, duration_text};
use crate::outcome::{Backend, Ended, Outcome, Verdict};
use crate::sandbox::account::{milliseconds, new_id, rejected};
use crate::sandbox::seccomp::{self, Profile};
use crate::sandbox::{self, Script, Watch, chain, unavailable};
use engine::Engine;
pub(crate) use engine::find_socket;

/// The oldest version of the Engine API that does all of it: Docker 20.10.
const OLDEST_API: (usize, usize) = (1, 41);

/// Why a run in a container did not begin, or cannot be accounted for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The seccomp profile.
    #[error(transparent)]
    Seccomp(#[from] seccomp::Error),
    /// The seccomp profile in the form that an engine takes.
    #[error("failed to write the seccomp profile {profile} for the engine")]
    Profile {
        /// Its name.
        profile: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The check's policy.
    #[error(transparent)]
    Policy(#[from] check::Error),
    /// DOCKER_HOST.
    #[error("DOCKER_HOST={0} names no local socket: set it to unix:///path/of/the/socket, or unset it")]
    NotLocal(String),
    /// No engine listens.
    #[error(
        "no Docker engine answers ({tried}): start it (systemctl start docker), name its socket in DOCKER_HOST, and let this \
         user connect (usermod -aG docker USER, which is as good as root)"
    )]
    NoEngine {
        /// Each socket, with what came of it.
        tried: String,
    },
    /// An engine from before Docker 20.10.
    #[error(
        "the Docker engine at {} has version {has} of its API, and {}.{} is needed: update it to Docker 20.10 or later",
        socket.display(), OLDEST_API.0, OLDEST_API.1
    )]
    TooOld {
        /// Where it listens.
        socket: PathBuf,
        /// Its version.
        has: String,
    },
    /// The image is not there.
    #[error(
        "the Docker engine at {} has no image {image}: build it there (docker build -f Dockerfile.sandbox -t {image} .), pull \
         it, or name another (docker.image, DOCKER_IMAGE)",
        socket.display()
    )]
    NoImage {
        /// Where the engine listens.
        socket: PathBuf,
        /// Its name.
        image: String,
    },
    /// The image declares volumes, which would be writable folders of the host's.
    #[error("the image {image} declares the volumes {volumes}, which scripts could write to: build it without VOLUME")]
    Volumes {
        /// Its name.
        image: String,
        /// Their paths.
        volumes: String,
    },
    /// The engine cannot enforce a limit.
    #[error(
        "the Docker engine at {} cannot limit {what}: docker info warns of it and says what its kernel lacks \
         (allow_degraded: true runs without)",
        socket.display()
    )]
    NoLimit {
        /// Where it listens.
        socket: PathBuf,
        /// Which limits.
        what: String,
    },
    /// A request of the set-up failed.
    #[error("the Docker engine at {} failed to {step}", socket.display())]
    Engine {
        /// Where it listens.
        socket: PathBuf,
        /// What was asked.
        step: &'static str,
        /// What it answered.
        #[source]
        source: ApiError,
    },
    /// The set-up took longer than it may.
    #[error(
        "the Docker engine at {} took longer than {} to begin the script (limits.setup_timeout)",
        socket.display(), duration_text(*limit)
    )]
    SetupTimeout {
        /// Where it listens.
        socket: PathBuf,
        /// How long it may take.
        limit: Duration,
    },
    /// The container ended before the script began.
    #[error("the container ended with status {status} before the script's first line: {said}")]
    Died {
        /// Its exit status.
        status: i64,
        /// What it wrote to its standard error.
        said: String,
    },
    /// An input.
    #[error(transparent)]
    Input(#[from] sandbox::Error),
    /// A call of this process's own.
    #[error("failed to {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The caller gave up before the container started.
    #[error("cancelled before the script began")]
    Cancelled,
    /// The engine was lost while the script may have run.
    #[error(
        "the Docker engine at {} was lost while the script ran, and it is unknown how far that came: see that the engine runs \
         again (systemctl status docker); what is left of the run is removed by the next one",
        socket.display()
    )]
    Lost {
        /// Where it listened.
        socket: PathBuf,
        /// The request that found out.
        #[source]
        source: ApiError,
    },
    /// The container did not end, or ended in a way that cannot be.
    #[error("it is unknown how the script ended: {0}")]
    Unknown(String),
}

impl Error {
    /// A stable name of the failure, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Seccomp(_) | Self::Profile { .. } => "docker.seccomp",
            Self::Policy(_) => "docker.policy",
            Self::NotLocal(_) | Self::NoEngine { .. } => "docker.no-engine",
            Self::TooOld { .. } => "docker.too-old",
            Self::NoImage { .. } => "docker.no-image",
            Self::Volumes { .. } => "docker.volumes",
            Self::NoLimit { .. } => "docker.no-limit",
            Self::Engine { .. } => "docker.engine",
            Self::SetupTimeout { .. } => "docker.setup-timeout",
            Self::Died { .. } => "docker.died",
            Self::Input(_) => "docker.input",
            Self::Step { .. } => "docker.step",
            Self::Cancelled => "docker.cancelled",
            Self::Lost { .. } => "docker.lost",
            Self::Unknown(_) => "docker.unknown",
        }
    }

    fn verdict(&self) -> Verdict {
        match self {
            Self::Lost { .. } | Self::Unknown(_) => Verdict::Lost,
            Self::Cancelled => Verdict::Cancelled,
            _ => Verdict::Unavailable,
        }
    }
}

/// Runs scripts in containers of Docker's; any number of them, from any number of threads.
///
/// ```no_run
/// use nsbox::config::Config;
/// use nsbox::docker::Docker;
/// use nsbox::sandbox::{Script, Watch};
///
/// let docker = Docker::new(Config::default())?;
/// let outcome = docker.run(Script::from("metrics = {'sharpe_ratio': 1.5}"), Watch::default());
/// println!("{:?}: {}", outcome.verdict, outcome.message);
/// # Ok::<(), nsbox::docker::Error>(())
/// ```
#[derive(Debug)]
pub struct Docker {
    config: Config,
    policy: Option<Policy>,
    /// The profile as `--security-opt seccomp=` takes it.
    seccomp: String,
    /// Where the engine listens, if the caller said.
    socket: Option<PathBuf>,
    /// What the first run found; looked for again after a failure.
    engine: Mutex<Option<Arc<Engine>>>,
}

impl Docker {
    /// Prepares for runs by `config`. The engine is looked for by the first of them.
    ///
    /// # Errors
    /// The seccomp profile or the policy cannot be read.
    pub fn new(config: Config) -> Result<Self, Error> {
        let profile = Profile::named(&config.seccomp)?;
        let unwritten = |source: Box<dyn std::error::Error + Send + Sync>| Error::Profile {
            profile: config.seccomp.clone(),
            source,
        };
        let profile = profile.oci().map_err(|source| unwritten(source.into()))?;
        let seccomp = serde_json::to_string(&profile).map_err(|source| unwritten(source.into()))?;
        let policy = sandbox::policy(&config)?;
        Ok(Self { config, policy, seccomp, socket: None, engine: Mutex::default() })
    }

    /// The socket of the engine. Without it, that of `DOCKER_HOST`, else the system's, else the user's own.
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = Some(path.into());
        self
    }

    /// Finds the engine and the image, so that no run has to, and removes what runs of dead supervisors left there.
    ///
    /// # Errors
    /// Why no run could begin.
    pub fn prepare(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.config.limits.setup_timeout;
        in_thread(|| runtime()?.block_on(self.engine(deadline)).map(drop))?
    }

    /// Runs one script to its end.
    ///
    /// Never fails: a run that could not begin is an outcome of verdict `unavailable`, one that the engine took with it of
    /// verdict `lost`; the message says which.
    pub fn run(&self, script: impl Into<Script>, watch: Watch<'_>) -> Outcome {
        self.run_and_clean(script.into(), watch).0
    }

    /// The same; and whether a container was made for it and is removed.
    pub(crate) fn run_and_clean(&self, script: Script, watch: Watch<'_>) -> (Outcome, bool) {
        let mut clean = false;
        let outcome = in_thread(|| self.run_here(script, watch, &mut clean));
        (outcome.unwrap_or_else(|error| self.failed(new_id(), &error)), clean)
    }

    fn run_here(&self, script: Script, watch: Watch<'_>, clean: &mut bool) -> Outcome {
        let (id, begun) = (new_id(), Instant::now());
        let mut script = script;
        let mut check = Duration::ZERO;
        if self.config.check {
            let (text, took) = sandbox::checked(self.policy.as_ref(), &script.source, &script.name);
            match text {
                Ok(text) => script.source = text,
                Err(report) => return rejected(id, &self.config.docker.image, took, &report),
            }
            check = took;
        }
        let runtime = match runtime() {
            Ok(runtime) => runtime,
            Err(error) => return self.failed(id, &error),
        };
        let outcome = Outcome::new(id.clone(), Verdict::Lost);
        let run = account::Run { outcome, begun, check };
        let outcome = runtime.block_on(self.execute(run, script, watch, clean)).unwrap_or_else(|error| {
            let mut outcome = self.failed(id, &error);
            outcome.timings.check_ms = milliseconds(check);
            outcome.timings.setup_ms = milliseconds(begun.elapsed().saturating_sub(check));
            outcome
        });
        // A read of the caller's own stream may block for ever.
        runtime.shutdown_background();
        if matches!(outcome.verdict, Verdict::Unavailable | Verdict::Lost) {
            *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        outcome
    }

    /// The whole of a run that the check lets pass.
    async fn execute(
        &self,
        run: account::Run,
        script: Script,
        watch: Watch<'_>,
        clean: &mut bool,
    ) -> Result<Outcome, Error> {
        let deadline = Instant::now() + self.config.limits.setup_timeout;
        let artifacts = script.artifacts.clone();
        let engine = tokio::select! {
            biased;
            () = watch::cancelled(watch.cancel.as_ref()) => return Err(Error::Cancelled),
            engine = self.engine(deadline) => engine?,
        };
        let container = engine.container(&self.config, &self.seccomp, &script)?;
        // The caller's sink may panic: the container goes all the same.
        let held = AssertUnwindSafe(container.hold(&self.config, script, watch, deadline)).catch_unwind().await;
        let removed = container.remove().await;
        *clean = removed.is_ok();
        let held = held.unwrap_or_else(|panic| resume_unwind(panic));
        let mut outcome = run.close(&self.config, &engine, held?, artifacts.as_deref())?;
        if let Err(error) = removed {
            // The run is over all the same: `unavailable` would let it be repeated.
            outcome.say(&format!("{}; the next start removes what is left", chain(&error)));
        }
        Ok(outcome)
    }

    /// The engine, looked for where it is not known.
    async fn engine(&self, deadline: Instant) -> Result<Arc<Engine>, Error> {
        if let Some(engine) = &*self.engine.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(engine));
        }
        let engine = Arc::new(Engine::find(&self.config, self.socket.as_deref(), deadline).await?);
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&engine));
        Ok(engine)
    }

    /// An outcome for a run that never began, or that was lost.
    fn failed(&self, id: String, error: &Error) -> Outcome {
        let mut outcome = unavailable(&self.config.docker.image, &chain(error));
        outcome.id = id;
        outcome.verdict = error.verdict();
        if outcome.verdict == Verdict::Lost {
            outcome.backend = Some(Backend::Docker);
            outcome.ended = Ended::Lost;
        }
        outcome
    }
}

/// Runs in a thread of its own: a caller may be inside a runtime, where no other can be entered.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("nsbox-docker".to_owned());
        let thread = thread.spawn_scoped(scope, work);
        let thread = thread.map_err(|source| Error::Step { step: "start a thread for the engine", source })?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|source| Error::Step { step: "start a runtime", source })
}
