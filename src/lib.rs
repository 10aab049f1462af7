//! nsbox runs untrusted, machine-written Python inside Linux namespaces, with no daemon, at a cost close to a function call.
//!
//! The modules stand in the order in which a run goes through them: a [`config`] says what is allowed, the [`check`]
//! reads the source, the [`image`] is what the guest will see, the [`sandbox`] holds it, the [`outcome`] says how it
//! ended and the [`event`] log keeps one line of it. The [`router`] is what most callers want; [`batch`] runs many scripts through it,
//! and [`stats`] counts what came of them.
//!
//! ```
//! use nsbox::config::Config;
//! use nsbox::outcome::{Value, Verdict};
//! use nsbox::sandbox::{Sandbox, Script};
//!
//! # fn main() -> Result<(), nsbox::sandbox::Error> {
//! let mut config = Config::default();
//! config.limits.memory = 256 << 20;
//! # config.allow_degraded = true;
//! let sandbox = Sandbox::new(config)?;
//! let outcome = sandbox.run(Script::from("result = 1 + 2").name("strategy.py"));
//! assert_eq!(outcome.verdict, Verdict::Ok, "{}", outcome.message);
//! assert_eq!(outcome.result, Some(Value::Int(3)));
//! # Ok(())
//! # }
//! ```
//!
//! A [`sandbox::Sandbox`] serves any number of runs, from any number of threads. Whatever happens to a run is an
//! [`outcome::Outcome`]; only what all runs share can fail to be made.

pub mod batch;
pub mod check;
pub mod cli;
pub mod config;
pub mod docker;
pub mod doctor;
pub mod event;
pub mod image;
pub mod outcome;
pub mod pool;
pub mod router;
pub mod sandbox;
pub mod stats;
mod sys;

pub use router::Router;
