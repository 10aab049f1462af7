//! `nsbox config`.

use std::io::{self, Write};

use clap::Subcommand;

use super::{Failure, run};

/// Shows the configuration
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Prints the whole configuration as it would be used, with the origin of each value
    Show {
        /// The options of run, which are part of it
        #[command(flatten)]
        options: Box<run::Options>,
        /// Prints it as JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn main(command: &Command) -> Result<u8, Failure> {
    let Command::Show { options, json } = command;
    let resolved = options.resolve()?;
    let mut stdout = io::stdout().lock();
    if *json {
        serde_json::to_writer_pretty(&mut stdout, &resolved).map_err(io::Error::from)?;
        writeln!(stdout)?;
    } else {
        stdout.write_all(resolved.render().as_bytes())?;
    }
    Ok(0)
}
