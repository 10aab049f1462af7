//! Hosts that refuse something: either a run works there with everything armed, or it is `unavailable` with a message that
//! names the cause and the knob, and `nsbox doctor` says the same.
//!
//! One file for each kind of host. Every test first shows that the host refuses, outside nsbox, and that the same run works
//! without the refusal.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/engine.rs"]
mod engine;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/scope.rs"]
mod scope;
#[path = "../harness/user.rs"]
mod user;

mod confined;
mod container;
mod filtered;
mod host;
mod landlock;
mod namespaces;
mod processes;
mod procfs;
mod store;
mod tmpfs;
