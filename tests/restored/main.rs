//! The pool's suite once more, with slots that are used again, and what only these can do wrong.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/engine.rs"]
mod engine;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/python.rs"]
mod python;

#[path = "../pool/answers.rs"]
mod answers;
#[path = "../pool/images.rs"]
mod images;
#[path = "../pool/isolation.rs"]
mod isolation;
#[path = "../pool/lifecycle.rs"]
mod lifecycle;
#[path = "../pool/pools.rs"]
mod pools;
#[path = "../pool/scheduling.rs"]
mod scheduling;
#[path = "../pool/usage.rs"]
mod usage;
#[path = "../pool/verdicts.rs"]
mod verdicts;

mod memory;
mod state;

use nsbox::outcome::Outcome;
use pools::{builder, pool, run};

/// Whether slots are used again.
const RESTORED: bool = true;

/// How many runs the slot of this one had served before, as the outcome says.
fn earlier(outcome: &Outcome) -> u64 {
    let applied = outcome.enforced.namespaces.applied.as_deref().unwrap();
    applied.split_once("put back after ").map_or(0, |(_, rest)| rest.split(' ').next().unwrap().parse().unwrap())
}
