//! The same command for an ordinary user: refused without a cgroup, weaker by consent, whole with a delegated one.
//!
//! Run as root, the suite becomes user 65534 by setpriv(1); run as an ordinary user, it is that one.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/mod.rs"]
mod harness;

mod degraded;
mod delegated;
#[path = "../harness/scope.rs"]
mod scope;
#[path = "../harness/user.rs"]
mod user;
