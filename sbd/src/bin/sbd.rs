//! The program `sbd`.
fn main() {}
