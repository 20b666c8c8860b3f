//! The program `deadboltd`.
fn main() {}
