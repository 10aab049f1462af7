//! Values that a guest hands back.

/// A value collected from the guest.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {}

/// A table collected from the guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {}
