//! The backend `ast-only`: every attack that can be held without a namespace first succeeds outside, as the same user, and
//! is then refused inside; what it cannot hold, its outcome says.
//!
//! Its check cannot be turned off, so the attacks run under a policy that lets nearly everything pass.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/engine.rs"]
mod engine;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/user.rs"]
mod user;

mod attacks;
mod container;
mod policy;
mod runs;
mod threats;

use std::fs;

use harness::{Ran, outcome_of};
use user::User;

/// An interpreter that each user may read.
const PYTHON: &str = "/usr/bin/python3";

/// Root, where the tests run as root, and an ordinary user; each with the policy in their home.
fn everyone() -> Vec<User> {
    let users: Vec<User> = [User::root(), User::find()].into_iter().flatten().collect();
    for user in &users {
        fs::write(user.path("policy.yaml"), policy::lenient()).unwrap();
    }
    assert!(!users.is_empty());
    users
}

/// The arguments of a run under the lenient policy.
fn args(user: &User, flags: &[&str]) -> Vec<String> {
    let policy = user.path("policy.yaml").display().to_string();
    let fixed = ["run", "--backend", "ast-only", "--policy", &policy, "--python", PYTHON];
    fixed.iter().chain(flags).map(|arg| (*arg).to_owned()).collect()
}

/// A run under the lenient policy.
#[track_caller]
fn run(user: &User, flags: &[&str], source: &str) -> Ran {
    let args = args(user, &[flags, &["--json", "-"]].concat());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    outcome_of(user.nsbox(&[], &args), source.as_bytes())
}
