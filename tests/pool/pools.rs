//! Pools for tests.

use nsbox::config::Resolver;
use nsbox::outcome::Outcome;
use nsbox::pool::{Builder, Pool};
use nsbox::sandbox::Watch;

use crate::RESTORED;

/// A pool to be, without the check, with these keys of the configuration set.
pub fn builder(keys: &[(&str, &str)]) -> Builder {
    let resolver = Resolver::new().flag("check", "false", "--no-check").flag("preload", "json,random", "--preload");
    let resolver = resolver.flag("slots", if RESTORED { "restored" } else { "one-shot" }, "slots");
    let resolver = keys.iter().fold(resolver, |resolver, (key, value)| resolver.flag(*key, *value, *key));
    Pool::builder(resolver.resolve().unwrap().config)
}

/// The same, of two slots.
pub fn pool(keys: &[(&str, &str)]) -> Pool {
    builder(keys).slots(2).build().unwrap()
}

/// Runs a script to its end.
pub fn run(pool: &Pool, source: &str) -> Outcome {
    pool.run(source, Watch::default())
}
