//! `nsbox seccomp`.

use std::io::{self, Write};
use std::path::Path;

use clap::Subcommand;

use super::Failure;
use crate::sandbox::seccomp::Profile;

/// Shows and explains the seccomp profiles
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Prints a profile: each system call, what becomes of it, and why
    Show {
        /// default, strict, or the path of a profile
        #[arg(long, default_value = "default")]
        profile: String,
        /// Prints the file itself, as docker run --security-opt seccomp=FILE takes it
        #[arg(long)]
        json: bool,
    },
    /// Tells what becomes of a system call, and why
    Explain {
        /// default, strict, or the path of a profile
        #[arg(long, default_value = "default")]
        profile: String,
        /// Its name, such as mount
        #[arg(value_name = "SYSCALL", required = true)]
        syscalls: Vec<String>,
    },
}

pub(super) fn main(command: &Command) -> Result<u8, Failure> {
    let mut stdout = io::stdout().lock();
    match command {
        Command::Show { profile, json: true } => {
            let text = match Profile::builtin_text(profile) {
                Some(text) => text.to_owned(),
                None => std::fs::read_to_string(profile).map_err(|error| Failure {
                    status: super::USAGE,
                    message: format!("failed to read the profile {profile}: {error}"),
                })?,
            };
            stdout.write_all(text.as_bytes())?;
        }
        Command::Show { profile, json: false } => stdout.write_all(load(profile)?.show().as_bytes())?,
        Command::Explain { profile, syscalls } => {
            let profile = load(profile)?;
            for name in syscalls {
                let text = profile.explain(name).ok_or_else(|| Failure {
                    status: super::USAGE,
                    message: format!("there is no system call named {name:?} on this machine"),
                })?;
                writeln!(stdout, "{}", text.trim_end())?;
            }
        }
    }
    Ok(0)
}

fn load(name: &str) -> Result<Profile, Failure> {
    let profile =
        if Profile::builtin_text(name).is_some() { Profile::builtin(name) } else { Profile::load(Path::new(name)) };
    profile.map_err(|error| Failure::usage(&error))
}
