//! The program `deadbolt`.
fn main() {}
