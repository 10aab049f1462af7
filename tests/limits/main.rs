//! Every limit, through the built command: seen to bite, and just under it not to.
//!
//! The limits of a run are exact where the kernel's are (processes, open files, file size, output), and have a margin where
//! an interpreter itself takes some (memory, CPU time, disk).
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/mod.rs"]
mod harness;

mod configured;
mod cpu;
mod disk;
mod events;
mod memory;
mod output;
mod processes;
mod time;
