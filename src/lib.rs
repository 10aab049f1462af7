//! nsbox runs untrusted, machine-written Python inside Linux namespaces, with no daemon, at a cost close to a function call.
//!
//! The modules stand in the order in which a run goes through them: a [`config`] says what is allowed, the [`check`]
//! reads the source, the [`image`] is what the guest will see, the [`sandbox`] holds it, the [`outcome`] says how it
//! ended and the [`event`] log keeps one line of it.

pub mod check;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod event;
pub mod image;
pub mod outcome;
pub mod router;
pub mod sandbox;
mod sys;
