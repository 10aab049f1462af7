//! The command line: arguments become a configuration, outcomes become output and an exit status; nothing else.

mod check;
mod config;
mod doctor;
mod image;
mod loop_;
mod progress;
mod run;
mod seccomp;
mod spec;
mod stats;
mod terminal;

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::Config;
use crate::event::Log;

/// Exit status of a usage error, and of a sandbox that could not start.
const USAGE: u8 = 125;

/// Runs untrusted, machine-written Python inside Linux namespaces, with no daemon.
#[derive(Debug, Parser)]
#[command(name = "nsbox", version, max_term_width = 100, after_help = EXAMPLES)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  nsbox run strategy.py                          run a script with the host's Python
  nsbox run --input prices=GOOG.csv strategy.py  it reads /input/prices
  nsbox run --memory 512m --timeout 10s --json strategy.py
  nsbox loop strategies/ --results results.jsonl run many, with a record of each
  nsbox stats                                    what came of all runs
  nsbox check strategies/*.py                    the check alone
  nsbox doctor                                   what this machine allows";

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one script: streams its output and mirrors its exit status
    Run(Box<run::Args>),
    /// Runs strategies one after the other, with a record of each and statistics at the end
    Loop(Box<loop_::Args>),
    /// Checks scripts against the policy without running them
    Check(check::Args),
    /// Brings images into the store, shows, checks and removes them
    #[command(subcommand)]
    Image(image::Command),
    /// Tells what this machine allows, layer by layer, and what mends what it does not
    Doctor(Box<doctor::Args>),
    /// Tells what came of the runs in an event log: counts, fallbacks, times of each stage, alerts
    Stats(stats::Args),
    /// Shows the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Shows and explains the seccomp profiles
    #[command(subcommand)]
    Seccomp(seccomp::Command),
    /// Prints a run as the config.json of an OCI runtime, without running it
    Spec(Box<spec::Args>),
    /// Prints a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Prints the manual page, in roff: nsbox man | man -l -
    Man,
}

/// Why a command ended early, and with which status.
#[derive(Debug)]
struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    fn usage(error: &dyn std::error::Error) -> Self {
        Self { status: USAGE, message: crate::sandbox::chain(error) }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { status: USAGE, message: format!("failed to write the output: {error}") }
    }
}

/// Runs the command; its exit status is the process's.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are no errors. Nothing can be said where even stderr is gone.
            error.print().ok();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let result = match args.command {
        Command::Run(args) => run::main(*args),
        Command::Loop(args) => loop_::main(&args),
        Command::Check(args) => check::main(&args),
        Command::Image(command) => image::main(&command),
        Command::Doctor(args) => doctor::main(&args),
        Command::Stats(args) => stats::main(&args),
        Command::Config(command) => config::main(&command),
        Command::Seccomp(command) => seccomp::main(&command),
        Command::Spec(args) => spec::main(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "nsbox", &mut io::stdout());
            Ok(0)
        }
        Command::Man => man().map(|()| 0),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            complain(&failure.message);
            ExitCode::from(failure.status)
        }
    }
}

/// A message of nsbox's own, apart from what scripts print. It may quote a script: its exception, the names of its files.
fn complain(message: &str) {
    let mut stderr = io::stderr();
    let message = if stderr.is_terminal() { terminal::visible(message).into() } else { Cow::Borrowed(message) };
    // Where stderr is gone nobody reads it.
    writeln!(stderr, "nsbox: {message}").ok();
}

/// The event log of this configuration, which warns of what it cannot do.
fn event_log(config: &Config) -> Log {
    Log::configured(config).on_failure(|error| complain(&format!("warning: {}", crate::sandbox::chain(error))))
}

/// The manual page of the command and of each subcommand, one after the other.
fn man() -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let command = Args::command();
    clap_mangen::Man::new(command.clone()).render(&mut out)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        clap_mangen::Man::new(sub.clone()).title(format!("nsbox-{}", sub.get_name())).render(&mut out)?;
    }
    Ok(())
}
