//! Version 2 of cgroups, alone: every file of it that a run relies on, seen to bite, and every place where the kernel's rules
//! of delegation put a run, or refuse it.
//!
//! `tests/vm/run` boots a machine for it; the suite makes cgroups as systemd makes them, so it is root that runs it. On a
//! machine with version 1 or both it says so and passes over.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/scope.rs"]
mod scope;
#[path = "../harness/user.rs"]
mod user;

mod files;
mod places;

use std::env;

use harness::{is_root, skipped};
use scope::Scope;

/// A scope of the test's own.
#[track_caller]
fn scope() -> Option<Scope> {
    let found = is_root().then(Scope::new).flatten();
    if found.is_none() {
        // Not NSBOX_TEST_MUST_RUN: a machine of version 1 cannot be made to have it.
        assert!(
            env::var_os("NSBOX_TEST_VM").is_none(),
            "the machine of tests/vm has version 2 alone, and root runs this"
        );
        skipped("these tests are for root on cgroup version 2 alone: tests/vm/run has it");
    }
    found
}
