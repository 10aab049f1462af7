//! The command as a shell meets it: verdicts and exit statuses, output, flags, inputs, artifacts, and the other commands.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/mod.rs"]
mod harness;

mod artifacts;
mod commands;
mod given;
mod output;
mod usage;
mod verdicts;
