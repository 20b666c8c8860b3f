//! What: every record that Deadbolt keeps on a shared device, as values and as bytes.
//! Owns: the layout of the device, the encoders and decoders, their compile-time proofs.
//! Invariants: a decoder accepts a record only with the expected type, cluster, offset, slot and checksum; it never panics.
//! Does not: open devices, keep state, or decide anything.
//! Called by: every other package.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod types;

pub use types::*;
