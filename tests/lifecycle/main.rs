//! A run from its start to its end, and what it leaves: nothing.
//!
//! Through the built command where the whole command counts, and through the library where its host process does.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/mod.rs"]
mod harness;

mod cancelled;
mod host;
mod run;
mod traces;
