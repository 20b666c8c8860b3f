//! What: corosync's quorum device as a pure machine: whom a ring's votes go to, decided on a shared disk.
//! Owns: the settings and what is refused among them, the arbiter, the bridge that wires register, observer and evidence.
//! Invariants: no clock, no file, no socket, no library of corosync: time is a parameter, calls are outputs that are answered.
//! Does not: decide views (the register), judge silence (observer and evidence of the cluster's core), rank sides (candidates).
//! Called by: the program `deadbolt-qdevice`, the simulation beside it.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod arbiter;
pub mod bridge;
pub mod settings;
#[cfg(test)]
mod tests;

pub use bridge::{Bridge, Call, Cast, Input, Output, Ring, RingId, Setup, Status};
pub use settings::{Found, Refusal, Rules};
