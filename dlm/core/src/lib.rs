//! What: the pure lock manager: modes, queues, mastery, recovery, and the bytes between client, node and node.
//! Owns: every decision about locks; nothing that opens, sleeps or reads a clock.
//! Invariants: no two locks of incompatible modes are granted; a grant leaves only under a permit and after "holds" was published.
//! Does not: know sockets, disks, views' making or evidence; those arrive as inputs.
//! Called by: the daemon (`deadbolt-dlm`, `deadbolt-cluster`), the simulator.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod bytes;
pub mod client;
mod cycle;
#[cfg(test)]
mod documents;
mod fields;
pub mod legal;
pub mod mode;
mod name;
pub mod pattern;
mod peers;
mod queue;
#[cfg(test)]
mod random;
mod ranges;
pub mod service;
mod slab;
mod waits;
mod wire;

pub use bytes::DecodeError;
pub use client::{ClientReply, ClientRequest, ResourceName};
pub use cycle::{CYCLE_STEPS_MAX, Claim, Cycle, CycleParty, CycleStep};
pub use fields::LvbCopy;
pub use mode::{Flags, LockStatus, Mode, ResultFlags, Token};
pub use ranges::{RangeMode, Span};
pub use service::{Input, LockService, Output, SessionInfo};
pub use wire::rewrite_message;
