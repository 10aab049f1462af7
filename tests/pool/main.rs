//! The warm pool: every verdict through it, and what one run must never see of another.
//!
//! Each test is run again in a process of its own, which owns all the processes, cgroups and descriptors that it counts.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/engine.rs"]
mod engine;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/python.rs"]
mod python;

mod answers;
mod images;
mod isolation;
mod lifecycle;
mod pools;
mod scheduling;
mod usage;
mod verdicts;
mod warm;

use pools::{builder, pool, run};

/// Whether slots are used again.
const RESTORED: bool = false;
