//! Many runs: a list of strategies, gone through in turn, some at a time, with a record of each.
//!
//! In front of the [`router`](crate::router), which every run goes through. Iteration `k`, counted from 0, runs strategy
//! `k mod count`: 20 iterations over 7 strategies are two passes and the first six of a third. Records are written as runs end, so
//! not in the order of iterations.

mod record;
mod results;
mod table;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use crate::outcome::Outcome;
use crate::router::Router;
use crate::sandbox::{Cancel, Script, Watch, unavailable};

pub use record::{Record, Row};
pub use results::Results;
pub use table::Table;

/// Why a loop could not begin, or not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder of strategies could not be read.
    #[error("failed to read the strategies in {}", path.display())]
    Strategies {
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There is nothing to run.
    #[error("there is no strategy in {}: a folder's strategies are its files *.py", path.display())]
    NoStrategies {
        /// The folder.
        path: PathBuf,
    },
    /// The results file could not be opened, locked or read.
    #[error("failed to open the results {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There are results already.
    #[error("there are results in {} already: --resume goes on from them; or name another file", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Another loop writes there.
    #[error("another loop is writing to the results {}: wait for its end, or name another file", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// A line of the results is no record.
    #[error("line {line} of the results {} is no record; take it out, and --resume runs its iteration again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// An iteration stands in the results twice.
    #[error("line {line} of the results {} repeats iteration {iteration}; take one of the two out", path.display())]
    Repeated {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The iteration.
        iteration: u64,
    },
    /// The results are of another list of strategies.
    #[error(
        "iteration {iteration} is {found} in the results {}, and would be {expected} now: give the same strategies in the \
         same order, or name another file", path.display()
    )]
    OtherList {
        /// The results.
        path: PathBuf,
        /// The iteration.
        iteration: u64,
        /// Its strategy there.
        found: String,
        /// Its strategy in this loop.
        expected: String,
    },
    /// A record could not be written.
    #[error("failed to write to the results {}; what is there is whole, and --resume goes on from it", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The table could not be written.
    #[error("failed to write the table {}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// A stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Strategies { .. } => "loop.strategies",
            Self::NoStrategies { .. } => "loop.no-strategies",
            Self::Open { .. } => "loop.open",
            Self::Exists { .. } => "loop.exists",
            Self::Busy { .. } => "loop.busy",
            Self::Malformed { .. } => "loop.malformed",
            Self::Repeated { .. } => "loop.repeated",
            Self::OtherList { .. } => "loop.other-list",
            Self::Write { .. } => "loop.write",
            Self::Table { .. } => "loop.table",
        }
    }
}

/// The strategies that these paths name: files as they are, and of each folder its files `*.py` by name; folders in it, and
/// files that begin with a dot or `__`, are none.
///
/// # Errors
/// [`Error::Strategies`] when a path cannot be read, [`Error::NoStrategies`] when a folder has none.
pub fn strategies(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let mut all = Vec::new();
    for path in paths {
        let failed = |source| Error::Strategies { path: path.clone(), source };
        if !fs::metadata(path).map_err(failed)?.is_dir() {
            all.push(path.clone());
            continue;
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(path).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let is_script = file.extension().is_some_and(|ext| ext == "py") && !name.starts_with(['.']);
            if is_script && !name.starts_with("__") && file.is_file() {
                found.push(file);
            }
        }
        if found.is_empty() {
            return Err(Error::NoStrategies { path: path.clone() });
        }
        found.sort();
        all.append(&mut found);
    }
    Ok(all)
}

/// A list of strategies and how it is gone through.
///
/// ```no_run
/// use nsbox::batch::{Batch, strategies};
/// use nsbox::config::Config;
/// use nsbox::event::Log;
/// use nsbox::router::Router;
/// use nsbox::sandbox::Cancel;
///
/// # fn main() -> Result<(), nsbox::batch::Error> {
/// let batch = Batch::new(strategies(&["strategies".into()])?).iterations(20).jobs(2);
/// let router = Router::new(Config::default(), Log::off());
/// # let cancel = Cancel::new().unwrap();
/// batch.run(&router, &Default::default(), &cancel, |script, _| script, |record| {
///     println!("{}: {:?}", record.strategy, record.outcome.verdict);
///     Ok(())
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Batch {
    strategies: Vec<PathBuf>,
    iterations: u64,
    jobs: usize,
}

impl Batch {
    /// One pass over these strategies, one run at a time.
    #[must_use]
    pub fn new(strategies: Vec<PathBuf>) -> Self {
        let iterations = strategies.len() as u64;
        Self { strategies, iterations, jobs: 1 }
    }

    /// Runs this many in all.
    #[must_use]
    pub fn iterations(mut self, iterations: u64) -> Self {
        self.iterations = iterations;
        self
    }

    /// Runs this many at once, at least one.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs.max(1);
        self
    }

    /// How many iterations there are in all.
    #[must_use]
    pub fn len(&self) -> u64 {
        if self.strategies.is_empty() { 0 } else { self.iterations }
    }

    /// Whether there is nothing to run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The strategy of an iteration; none in an empty list.
    #[must_use]
    pub fn strategy(&self, iteration: u64) -> Option<&Path> {
        let turn = iteration.checked_rem(self.strategies.len() as u64)?;
        self.strategies.get(usize::try_from(turn).ok()?).map(PathBuf::as_path)
    }

    /// Runs every iteration that is not in `done`, and gives each record to `each`, one at a time, as its run ends.
    ///
    /// `give` adds what a script is given (inputs, arguments, a folder for artifacts) by its iteration. A strategy that cannot be
    /// read is an outcome too, of verdict `unavailable`. After `cancel`, runs under way end as `cancelled` and have their
    /// records, and no further one begins.
    ///
    /// # Errors
    /// The first of `each`; then too runs under way are ended, and no further one begins.
    pub fn run<E: Send>(
        &self,
        router: &Router,
        done: &HashSet<u64>,
        cancel: &Cancel,
        give: impl Fn(Script, u64) -> Script + Sync,
        mut each: impl FnMut(Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let pending: Vec<u64> = (0..self.len()).filter(|iteration| !done.contains(iteration)).collect();
        let next = AtomicUsize::new(0);
        // A run that has ended waits until the one before is recorded: no more are held than there are jobs.
        let (done, records) = sync_channel(0);
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.min(pending.len()) {
                let (next, pending, give, done) = (&next, &pending, &give, done.clone());
                scope.spawn(move || {
                    while !cancel.is_cancelled()
                        && let Some(iteration) = pending.get(next.fetch_add(1, Ordering::Relaxed))
                        && let Some(strategy) = self.strategy(*iteration)
                    {
                        let shown = strategy.to_string_lossy().into_owned();
                        let outcome = run_one(router, *iteration, strategy, cancel, give);
                        let record = Record { iteration: *iteration, strategy: shown, outcome };
                        if done.send(record).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(done);
            let result = records.iter().try_for_each(&mut each);
            if result.is_err() {
                cancel.cancel();
            }
            // Whoever waits with a record now is sent away.
            drop(records);
            result
        })
    }
}

fn run_one(
    router: &Router,
    iteration: u64,
    strategy: &Path,
    cancel: &Cancel,
    give: &impl Fn(Script, u64) -> Script,
) -> Outcome {
    match fs::read(strategy) {
        Ok(source) => {
            let script = Script::from(source).name(strategy.to_string_lossy()).iteration(iteration);
            router.run(give(script, iteration), Watch { sink: None, cancel: Some(cancel.clone()) })
        }
        Err(error) => {
            let mut outcome = unavailable("", &format!("failed to read the strategy {}: {error}", strategy.display()));
            outcome.image = None;
            outcome
        }
    }
}
