//! The pool's suite once more, with slots that are used again, and what only these can do wrong.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/engine.rs"]
mod engine;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/python.rs"]
mod python;

#[path = "../pool/images.rs"]
mod images;
#[path = "../pool/isolation.rs"]
mod isolation;
#[path = "../pool/lifecycle.rs"]
mod lifecycle;
#[path = "../pool/verdicts.rs"]
mod verdicts;

mod memory;
mod state;

use nsbox::config::Resolver;
use nsbox::outcome::Outcome;
use nsbox::pool::{Builder, Pool};
use nsbox::sandbox::Watch;

/// Whether slots are used again.
const RESTORED: bool = true;

/// A pool to be, without the check, of slots that are used again, with these keys of the configuration set.
fn builder(keys: &[(&str, &str)]) -> Builder {
    let resolver = Resolver::new().flag("check", "false", "--no-check").flag("preload", "json,random", "--preload");
    let resolver = resolver.flag("slots", "restored", "slots");
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
