//! `nsbox stats`, and the table of statistics that `nsbox loop` ends with.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Parser;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Table};

use super::{Failure, USAGE, complain, run};
use crate::stats::{Malformed, Report, STAGES, Statistics};

/// Tells what came of the runs in an event log: counts, fallbacks, times of each stage, alerts
#[derive(Debug, Parser)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Reads this configuration file [env: NSBOX_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Prints the statistics as JSON
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,
    /// Prints them in the text format of Prometheus
    #[arg(long)]
    prometheus: bool,
    /// The log, whose rotated files LOG.1, LOG.2 are read too; default: that of the configuration [key: event_log]
    #[arg(value_name = "LOG")]
    log: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Percentiles are within 0.1 %. Lines that are no events are counted and named, and never stop it.
Alerts are raised over the configuration's alerts.fallback_rate and alerts.p95.
Exit status: 0, also with alerts; 125 when the log cannot be read.

Examples:
  nsbox stats logs/sandbox_execution.json.log
  nsbox stats --json | jq .stages.whole.p95_ms
  nsbox stats --prometheus > /var/lib/node_exporter/textfile/nsbox.prom";

pub(super) fn main(args: &Args) -> Result<u8, Failure> {
    let config = run::Options::of_file(args.config.clone()).resolve()?.config;
    let Some(log) = args.log.clone().or(config.event_log) else {
        let message = "there is no log: event_log is none; name one, as in nsbox stats LOG".to_owned();
        return Err(Failure { status: USAGE, message });
    };
    let (statistics, reading) = Statistics::of_log(&log).map_err(|error| Failure::usage(&error))?;
    let mut report = statistics.report(&config.alerts);
    for malformed in &reading.first_malformed {
        let Malformed { file, line, why } = malformed;
        complain(&format!("warning: {}:{line} is no event: {why}", file.display()));
    }
    let unnamed = reading.malformed - reading.first_malformed.len() as u64;
    if unnamed > 0 {
        complain(&format!("warning: {unnamed} more lines are no events"));
    }
    report.log = Some(reading);
    print(&report, args.json, args.prometheus)?;
    Ok(0)
}

/// Writes a report to stdout.
pub(super) fn print(report: &Report, json: bool, prometheus: bool) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut stdout, report).map_err(io::Error::from)?;
        writeln!(stdout)?;
    } else if prometheus {
        stdout.write_all(report.to_prometheus().as_bytes())?;
    } else {
        stdout.write_all(render(report).as_bytes())?;
    }
    Ok(())
}

/// The report for people.
fn render(report: &Report) -> String {
    let span = report.since.zip(report.until);
    let span = span.map_or_else(String::new, |(since, until)| format!(", {since:.0} to {until:.0}"));
    let mut text = format!("{} runs{span}\n", report.runs);
    let list = |counts: &std::collections::BTreeMap<String, u64>| {
        let mut counts: Vec<(&String, &u64)> = counts.iter().collect();
        counts.sort_by(|a, b| b.1.cmp(a.1));
        counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    };
    // Writing into a string cannot fail.
    _ = writeln!(text, "verdicts   {}", list(&report.verdicts));
    _ = writeln!(text, "backends   {}", list(&report.backends));
    _ = writeln!(text, "fallbacks  {} ({:.1} %)", report.fallbacks, report.fallback_rate * 100.0);
    if !report.stages.is_empty() {
        _ = writeln!(text, "{}", stages(report));
    }
    for alert in &report.alerts {
        _ = writeln!(text, "ALERT: {}", alert.message);
    }
    if let Some(log) = &report.log {
        let files = if log.files.len() == 1 { "1 file".to_owned() } else { format!("{} files", log.files.len()) };
        _ = writeln!(text, "{} lines in {files}, {} malformed", log.lines, log.malformed);
    }
    text
}

fn stages(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["stage, ms", "runs", "mean", "p50", "p95", "p99", "longest"]);
    for (name, stage) in STAGES.iter().filter_map(|name| Some((*name, report.stages.get(name)?))) {
        let figures = [stage.mean_ms, stage.p50_ms, stage.p95_ms, stage.p99_ms, stage.max_ms];
        let figures = figures.into_iter().map(|ms| format!("{ms:.2}"));
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        table.add_row(
            std::iter::once(Cell::new(name)).chain([right(stage.count.to_string())]).chain(figures.map(right)),
        );
    }
    table
}
