//! `nsbox doctor`.

use std::io::{self, Write};

use clap::Parser;

use super::{Failure, run};
use crate::doctor::{Layer, Report, Status, examine};

/// Tells what this machine allows, layer by layer, and what mends what it does not
#[derive(Debug, Parser)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The options of run: what is tried is that run
    #[command(flatten)]
    options: run::Options,
    /// Prints the findings as JSON
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Exit status: 0 when nsbox run works with every required layer, 1 when not, 125 on wrong usage.

Examples:
  nsbox doctor
  nsbox doctor --python ~/.venv/bin/python
  nsbox doctor --json | jq '.layers[] | select(.status != \"allowed\")'";

pub(super) fn main(args: &Args) -> Result<u8, Failure> {
    let resolved = args.options.resolve()?;
    let report = examine(&resolved.config);
    let mut stdout = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut stdout, &report).map_err(io::Error::from)?;
        writeln!(stdout)?;
    } else {
        stdout.write_all(render(&report).as_bytes())?;
    }
    Ok(u8::from(report.run != Status::Allowed))
}

/// A line for each layer, its knobs below it, and the summary.
fn render(report: &Report) -> String {
    let width = |text: fn(&Layer) -> &str| report.layers.iter().map(|layer| text(layer).len()).max().unwrap_or(0);
    let (name, status) = (width(|layer| layer.layer), width(|layer| layer.status.word()));
    let mut text = format!("nsbox {}, Linux {}\n\n", report.nsbox, report.kernel);
    let mut said: &[String] = &[];
    for layer in &report.layers {
        let shown = layer.layer.replace('_', " ");
        let Layer { tried, found, .. } = layer;
        text += &format!("{shown:name$}  {:status$}  {tried}: {found}\n", layer.status.word());
        let optional = if layer.required { "" } else { " (not required)" };
        if layer.knobs == said && !said.is_empty() {
            text += &format!("{:name$}  {:status$}  mend{optional}: as above\n", "", "");
            continue;
        }
        said = &layer.knobs;
        for (i, knob) in layer.knobs.iter().enumerate() {
            let lead = if i == 0 { format!("mend{optional}") } else { "or".to_owned() };
            text += &format!("{:name$}  {:status$}  {lead}: {knob}\n", "", "");
        }
    }
    format!("{text}\n{}\n", report.summary)
}
