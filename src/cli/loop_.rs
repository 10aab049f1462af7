//! `nsbox loop`.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::num::NonZero;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::terminal::visible;
use super::{Failure, complain, event_log, run, stats};
use crate::batch::{Batch, Record, Results, Row, Table, strategies};
use crate::outcome::{Timings, Verdict};
use crate::router::Router;
use crate::sandbox::{Cancel, settle};
use crate::stats::{Statistics, word};

/// Runs strategies one after the other, with a record of each and statistics at the end
#[derive(Debug, Parser)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    options: run::Options,
    #[command(flatten)]
    given: run::Given,
    /// Runs this many in all, going through the list again and again; default: once through
    #[arg(long, value_name = "NUMBER", help_heading = "Loop")]
    iterations: Option<u64>,
    /// Runs this many at once; default: the number of CPUs
    #[arg(long, value_name = "NUMBER", help_heading = "Loop")]
    jobs: Option<NonZero<usize>>,
    /// Writes the record of each iteration into this file, a line of JSON each
    #[arg(long, value_name = "FILE", help_heading = "Loop")]
    results: Option<PathBuf>,
    /// Goes on from the records that the results file has
    #[arg(long, requires = "results", help_heading = "Loop")]
    resume: bool,
    /// Writes a table of all records, best first, as CSV
    #[arg(long, value_name = "FILE", help_heading = "Loop")]
    csv: Option<PathBuf>,
    /// Writes that table as Parquet
    #[arg(long, value_name = "FILE", help_heading = "Loop")]
    parquet: Option<PathBuf>,
    /// The metric that is best where it is highest
    #[arg(long, value_name = "METRIC", default_value = "metrics.sharpe_ratio", help_heading = "Loop")]
    rank: String,
    /// Prints the statistics as JSON
    #[arg(long)]
    json: bool,
    /// Says nothing of single runs
    #[arg(long, short)]
    quiet: bool,
    /// The strategies; of a folder, its files *.py by name
    #[arg(value_name = "DIR|FILE", required = true)]
    strategies: Vec<PathBuf>,
}

const AFTER_HELP: &str = "\
Iteration K, counted from 0, runs strategy K modulo their number: 20 iterations over 7 strategies go through the list
twice, and through its first six a third time. What --output names has a folder for each iteration.

Runs on namespaces share a warm pool: interpreters that have imported what --preload names (pandas and numpy) before a run
comes. --fresh gives each run an interpreter of its own.

A record is in the results as soon as its run has ended, and on disk within a second. Ctrl-C ends the runs under way; their
records say cancelled, and --resume runs them again, as it does what nothing ran for (unavailable) and what a killed loop
had not recorded.

Exit status: 0 when every iteration ended with verdict ok, 1 when some did not, 130 when it was interrupted,
125 on wrong usage, or when results could not be written.

Examples:
  nsbox loop strategies/
  nsbox loop strategies/ --iterations 20 --jobs 4 --input prices=GOOG.csv
  nsbox loop strategies/ --preload pandas,numpy,scipy --backend docker --fallback namespace
  nsbox loop strategies/ --results results.jsonl --resume --csv best.csv --rank metrics.sharpe_ratio";

/// Exit status of a loop that did not come to its end.
const INTERRUPTED: u8 = 130;
/// What is shown of a message, in characters; the record has all of it.
const LONGEST_WHY: usize = 200;

pub(super) fn main(args: &Args) -> Result<u8, Failure> {
    let config = args.options.resolve()?.config;
    let usage = |error| Failure::usage(&error);
    let strategies = strategies(&args.strategies).map_err(usage)?;
    let jobs = args.jobs.or_else(|| available_parallelism().ok()).map_or(1, NonZero::get);
    let passes = strategies.len() as u64;
    let batch = Batch::new(strategies).iterations(args.iterations.unwrap_or(passes)).jobs(jobs);
    let inputs = args.given.inputs()?;
    super::image::ensure(&config.image, args.quiet)?;
    let (mut results, mut rows) = match &args.results {
        Some(path) if args.resume => Results::resume(path, &batch).map(|(results, rows)| (Some(results), rows)),
        Some(path) => Results::create(path).map(|results| (Some(results), Vec::new())),
        None => Ok((None, Vec::new())),
    }
    .map_err(usage)?;

    let (alerts, log) = (config.alerts, event_log(&config));
    let done: HashSet<u64> = rows.iter().map(|row| row.iteration).collect();
    let pending = (0..batch.len()).filter(|iteration| !done.contains(iteration)).count();
    let cancel = Cancel::new()?;
    run::end_by_signal(&cancel)?;
    settle();
    let router = Router::new(config, log).jobs(jobs.min(pending));
    if pending > 0 {
        router.prepare().map_err(|error| Failure::usage(&error))?;
    }
    let mut display = Display::new(batch.len(), &rows, args.quiet);
    let give = |script, iteration| args.given.give_iteration(script, &inputs, iteration);
    let ran = batch.run(&router, &done, &cancel, give, |record| {
        let line = record.to_line().map_err(io::Error::from)?;
        if let Some(results) = &mut results {
            results.append(&line).map_err(usage)?;
        }
        rows.push(Row::read(&line).map_err(io::Error::from)?);
        display.show(&record);
        Ok::<(), Failure>(())
    });
    display.finish();
    // The table and the figures of what there is are worth having after a failure too.
    let kept = results.map_or(Ok(()), |results| results.finish().map_err(usage)).and(tables(args, &rows));
    let mut statistics = Statistics::default();
    for row in &rows {
        statistics.add_recorded(row.backend, row.verdict, row.timings, row.fell_back);
    }
    stats::print(&statistics.report(&alerts), args.json, false)?;
    ran.and(kept)?;
    let ended = |row: &&Row| row.iteration < batch.len() && row.verdict != Verdict::Cancelled;
    Ok(match rows.iter().filter(ended).count() as u64 == batch.len() {
        false => INTERRUPTED,
        true => u8::from(rows.iter().any(|row| row.verdict != Verdict::Ok)),
    })
}

/// Writes the tables that were asked for.
fn tables(args: &Args, rows: &[Row]) -> Result<(), Failure> {
    if args.csv.is_none() && args.parquet.is_none() {
        return Ok(());
    }
    let usage = |error| Failure::usage(&error);
    let table = Table::ranked(rows, &args.rank);
    if table.with_metric() == 0 {
        complain(&format!("warning: no record has {}, so the table is in the order of iterations (--rank)", args.rank));
    }
    if let Some(path) = &args.csv {
        table.write_csv(path).map_err(usage)?;
    }
    if let Some(path) = &args.parquet {
        table.write_parquet(path).map_err(usage)?;
    }
    Ok(())
}

/// What is said while the loop goes on: on a terminal a bar below the lines, else the lines alone.
struct Display {
    bar: Option<ProgressBar>,
    quiet: bool,
    total: u64,
    done: u64,
    failed: u64,
}

impl Display {
    fn new(total: u64, rows: &[Row], quiet: bool) -> Self {
        let bar = (io::stderr().is_terminal() && !quiet).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {per_sec}  {msg}  {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(rows.len() as u64);
            // What earlier loops did says nothing of this one's speed.
            bar.reset_eta();
            // Between the ends of long runs, the time that is left goes on.
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        let failed = rows.iter().filter(|row| row.verdict != Verdict::Ok).count() as u64;
        let display = Self { bar, quiet, total, done: rows.len() as u64, failed };
        display.count();
        display
    }

    fn count(&self) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{} failed", self.failed));
        }
    }

    fn show(&mut self, record: &Record) {
        self.done += 1;
        self.failed += u64::from(record.outcome.verdict != Verdict::Ok);
        self.count();
        let line = format!("{}/{} {}", self.done, self.total, describe(record));
        match &self.bar {
            Some(bar) => {
                bar.inc(1);
                bar.println(visible(&line));
            }
            None if self.quiet => {}
            // Where stderr is gone nobody reads it.
            None => writeln!(io::stderr(), "{line}").unwrap_or_default(),
        }
    }

    fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A record in one line, which warns of a fallback.
fn describe(Record { iteration, strategy, outcome }: &Record) -> String {
    let Timings { check_ms, queue_ms, setup_ms, run_ms, teardown_ms } = outcome.timings;
    let ms = check_ms + queue_ms + setup_ms + run_ms + teardown_ms;
    let mut line = format!("#{iteration} {strategy}: {} in {ms:.0} ms", word(&outcome.verdict));
    if let (Some(attempt), Some(backend)) = (outcome.attempts.last(), &outcome.backend) {
        let (left, verdict) = (word(&attempt.backend), word(&attempt.verdict));
        write!(line, ", on {} after {left} ({verdict})", word(backend)).unwrap_or_default();
    }
    if outcome.verdict != Verdict::Ok {
        let why = outcome.message.lines().next().unwrap_or_default();
        line.push_str(": ");
        line.extend(why.chars().take(LONGEST_WHY));
    }
    line
}
