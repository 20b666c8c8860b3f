//! What: the service alone in its view, then several over a scripted network.
//! Owns: the simulated network and the checkers.
//! Invariants: every checker is shown to see its planted mistake.
//! Does not: use time or threads; a seed decides everything.
//! Called by: `cargo test`.

use super::*;
use crate::client::ResourceName;
use crate::mode::{Flags, LockStatus, Mode, ResultFlags, Token};
use deadbolt_disk_format::types::{BootId, Incarnation, SlotIndex};
use std::vec;

mod asks;
mod cluster;
mod deadlocks;
mod kept;
mod listing;
mod many;
mod moves;
mod orphans;
mod ranges;
mod scenes;
mod single;
mod stage;
mod timed;
mod timeouts;

fn name(bytes: &[u8]) -> ResourceName {
    ResourceName::new(bytes).unwrap()
}

fn life(slot: u16, incarnation: u8) -> Life {
    Life { slot: SlotIndex(slot), boot: BootId([1; 16]), incarnation: Incarnation([incarnation; 16]) }
}
