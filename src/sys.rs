//! The only `unsafe` of nsbox: system calls that no crate wraps, each behind a safe function.
#![expect(unsafe_code, reason = "raw system calls; every block names the invariant that makes it sound")]

pub(crate) mod clone;
pub(crate) mod fd;
pub(crate) mod mount;
pub(crate) mod notify;
#[expect(dead_code, reason = "some of it is for init alone")]
pub(crate) mod program;
pub(crate) mod sched;
