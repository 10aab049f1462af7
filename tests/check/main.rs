//! The AST check: what it must refuse, what it must leave alone, and that nothing makes it fall over.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api;
mod corpus;
mod cpython;
mod hostile;
mod position;
