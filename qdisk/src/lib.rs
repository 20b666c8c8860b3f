//! What: the voting device: the cluster's devices as they are found, and the view register over them.
//! Owns: the identification of devices; the thread that carries operations between the register and the I/O engines.
//! Invariants: the register's machine decides, this only carries; what hangs on one device stops neither the thread nor the others.
//! Does not: decide, time out I/O, or know who may propose.
//! Called by: the membership daemon; the process tests.

pub mod devices;
mod driver;

pub use deadbolt_qdisk_core as core;
pub use driver::{DriveError, Driver, Event, drive};
