//! What: beat, mailbox, watchdog and fencer of a node; the drop-in `sbd`.
//! Owns: the process that writes the node's only beat and feeds its watchdog.
//! Invariants: the watchdog is fed only under a lease; nothing on the feeding thread allocates, locks or waits.
//! Does not: decide who is a member; that is the daemon's.
//! Called by: the program `sbd`, the front door, the daemon and its supervisor (page and pill helpers).

pub mod feeder;
pub mod life;
pub mod log;
mod memory;
pub mod page;
pub mod pill;
pub mod protect;
pub mod reset;
pub mod run;
mod say;
pub mod watchdog;
