//! The only `unsafe` of nsbox: system calls that no crate wraps, each behind a safe function.
#![expect(unsafe_code, reason = "raw system calls; every block names the invariant that makes it sound")]

pub(crate) mod clone;
pub(crate) mod fd;
pub(crate) mod mount;
pub(crate) mod notify;
pub(crate) mod program;
