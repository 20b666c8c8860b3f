//! The program `fsck-deadbolt`.
fn main() {}
