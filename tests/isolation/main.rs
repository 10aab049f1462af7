//! The isolation suite: each attack first succeeds outside, with the bare interpreter, and then fails inside.
//!
//! The attacks of each module are the guest's scripts; why each fails is asserted (errno, verdict, violation), so that a
//! pass tells which layer held. With `NSBOX_TEST_MUST_RUN=1` nothing is skipped for want of a capability.
#![expect(clippy::expect_used, clippy::print_stderr, reason = "a test fails by panicking, and says what it skips")]

mod boundary;
mod channel;
mod harness;
mod host;
mod inherited;
mod kernel;
mod lifecycle;
mod network;
mod paths;
mod resources;
