//! What: the pure machines of the voting device: the view register, and who is proposed.
//! Owns: the rules by which a view is decided on the disk; the order among candidates.
//! Invariants: opens nothing, reads no clock, has no random order; the same inputs give the same outputs.
//! Does not: judge who is alive or gone, and decides nothing that the daemon did not propose.
//! Called by: `deadbolt-qdisk`, the membership daemon and the simulator.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod candidates;
pub mod register;
pub mod units;

pub use register::{
    DiskDone, DiskOp, DiskOpKind, Input, IoFailed, Output, ProposalError, Register, RegisterBlock, RegisterConfig, RegisterPhase,
    RegisterStatus,
};
