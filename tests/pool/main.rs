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

mod images;
mod isolation;
mod lifecycle;
mod verdicts;
mod warm;

use nsbox::config::Resolver;
use nsbox::outcome::Outcome;
use nsbox::pool::{Builder, Pool};
use nsbox::sandbox::Watch;

/// Whether slots are used again.
const RESTORED: bool = false;

/// A pool to be, without the check, with these keys of the configuration set.
fn builder(keys: &[(&str, &str)]) -> Builder {
    let resolver = Resolver::new().flag("check", "false", "--no-check").flag("preload", "json,random", "--preload");
    let resolver = keys.iter().fold(resolver, |resolver, (key, value)| resolver.flag(*key, *value, *key));
    Pool::builder(resolver.resolve().unwrap().config)
}

/// The same, of two slots.
fn pool(keys: &[(&str, &str)]) -> Pool {
    builder(keys).slots(2).build().unwrap()
}

/// Runs a script to its end.
fn run(pool: &Pool, source: &str) -> Outcome {
    pool.run(source, Watch::default())
}
