//! `nsbox check`.

use std::fs;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use super::Failure;
use crate::check::{self, Policy, render_json, render_sarif, render_text};

/// Checks scripts against the policy without running them; exits with 1 where there are findings
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// How findings are written
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The policy file; default: the one built in
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The scripts; - reads one from standard input
    #[arg(value_name = "SCRIPT|-", required = true)]
    scripts: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// A line per finding, as linters write them
    Text,
    /// An array of reports
    Json,
    /// SARIF 2.1.0, for code hosts and editors
    Sarif,
}

pub(super) fn main(args: &Args) -> Result<u8, Failure> {
    let loaded;
    let policy = match &args.policy {
        Some(path) => {
            loaded = Policy::load(path).map_err(|error| Failure::usage(&error))?;
            &loaded
        }
        None => Policy::builtin(),
    };
    let mut reports = Vec::with_capacity(args.scripts.len());
    for path in &args.scripts {
        let mut source = Vec::new();
        let read = if path.as_os_str() == "-" {
            io::stdin().lock().read_to_end(&mut source).map(|_| ())
        } else {
            fs::read(path).map(|bytes| source = bytes)
        };
        read.map_err(|error| Failure {
            status: super::USAGE,
            message: format!("failed to read the script {}: {error}", path.display()),
        })?;
        reports.push(check::check(&source, &path.to_string_lossy(), policy));
    }
    let text = match args.format {
        Format::Text => render_text(&reports),
        Format::Json => render_json(&reports),
        Format::Sarif => render_sarif(&reports),
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    if !text.is_empty() && !text.ends_with('\n') {
        writeln!(stdout)?;
    }
    Ok(u8::from(!reports.iter().all(check::Report::is_clean)))
}
