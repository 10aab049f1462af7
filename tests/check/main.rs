//! The AST check: what it must refuse, what it must leave alone, and that nothing makes it fall over.

mod api;
mod corpus;
mod cpython;
mod hostile;
mod position;
