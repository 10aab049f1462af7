//! Images of the interpreters on this machine: what is told by their files is what they say of themselves, and a root
//! made of the skeleton and the binds is all that they need. Imports into the store: honest ones, hostile ones, killed ones.
//!
//! Roots are made with bubblewrap. What a machine lacks is skipped with a note, or fails under `NSBOX_TEST_MUST_RUN=1`.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../harness/registry.rs"]
mod registries;
#[path = "../harness/slow.rs"]
mod slow;

mod archives;
mod builders;
mod command;
mod documents;
mod host;
mod hostile;
mod import;
mod machine;
mod registry;
mod rootfs;
mod stored;
