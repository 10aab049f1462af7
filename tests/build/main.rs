//! `nsbox image build`: reproducible, by any user, whole or not at all; its image against that of `Dockerfile.sandbox`, in a
//! real engine; and the strategies of `examples/image` in it, against the same interpreter without a sandbox.
//!
//! What needs no more is shown with a lock of a few packages. The profile slim is built once, by a first use, and by
//! Docker; full once. Packages are fetched once and kept in `target/tmp/build`; images go when the suite ends. Where a
//! build fails for want of a mirror or an index, so does its test.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/mod.rs"]
mod harness;

mod base;
mod docker;
#[path = "../harness/engine.rs"]
mod engine;
#[path = "../harness/metrics.rs"]
mod metrics;
mod profiles;
#[path = "../harness/registry.rs"]
mod registries;
mod small;
mod store;
mod strategies;
mod tree;
#[path = "../harness/user.rs"]
mod user;
