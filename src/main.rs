//! The command `nsbox`.
fn main() {}
