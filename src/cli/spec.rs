//! `nsbox spec`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Parser;

use super::{Failure, run};
use crate::outcome::Outcome;
use crate::sandbox::{Sandbox, Script};

/// Prints a run as the config.json of an OCI runtime, without running it
#[derive(Debug, Parser)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    options: run::Options,
    #[command(flatten)]
    given: run::Given,
    /// Prints the JSON Schema of the outcome instead, of nsbox run --json
    #[arg(long, conflicts_with = "script")]
    schema: bool,
    /// The script; only its name is in the result
    #[arg(value_name = "SCRIPT", default_value = "script.py")]
    script: PathBuf,
}

const AFTER_HELP: &str = "\
Examples:
  nsbox spec --memory 512m strategy.py > bundle/config.json
  nsbox spec --schema > outcome.schema.json";

pub(super) fn main(args: &Args) -> Result<u8, Failure> {
    let mut stdout = io::stdout().lock();
    if args.schema {
        serde_json::to_writer_pretty(&mut stdout, &Outcome::json_schema()).map_err(io::Error::from)?;
    } else {
        let mut config = args.options.resolve()?.config;
        // It is described and not run, so a cgroup need not be had here.
        config.allow_degraded = true;
        let script = args.given.give(Script::from("").name(args.script.to_string_lossy()))?;
        let sandbox = Sandbox::new(config).map_err(|error| Failure::usage(&error))?;
        let spec = sandbox.spec(&script).map_err(|error| Failure::usage(&error))?;
        serde_json::to_writer_pretty(&mut stdout, &spec).map_err(io::Error::from)?;
    }
    writeln!(stdout)?;
    Ok(0)
}
