//! What: the floors: what this machine takes for the bare work, without anything of ours in it.
//! Owns: the names by which rows refer to their floors.
//! Invariants: a floor does the least that the work of its row needs, in the regime that its name says.
//! Does not: use the lock manager.
//! Called by: the benchmarks.

pub(crate) mod poll;
mod processor;
mod rings;
pub(crate) mod table;
mod tcp;

use crate::{locks::Scale, sheet::Case};

pub(crate) const CAS: &str = "floor: CAS pair, one thread";
pub(crate) const FUTEX: &str = "floor: futex round trip, two processes sleeping on one core";
pub(crate) const FUTEX_APART: &str = "floor: futex round trip, two processes sleeping on two cores";
pub(crate) const SPIN: &str = "floor: round trip through shared memory, two processes spinning on two cores";
pub(crate) const RING: &str = "floor: one record through a ring, two cores, pipelined";
pub(crate) const TABLE: &str = "floor: hash table insert+remove among 1 M, one thread";
pub(crate) const RING_TABLE: &str = "floor: pair through rings to a table of 1 M, two cores, pipelined";
pub(crate) const TABLE_MEMORY: &str = "floor: resident memory of a hash table entry at 1 M";
pub(crate) const SOCKET: &str = "floor: 1 M records from a socket into a table, one thread";
pub(crate) const TCP: &str = "floor: TCP round trip over veth, two processes sleeping on one core";
pub(crate) const TCP_APART: &str = "floor: TCP round trip over veth, two processes sleeping on two cores";
pub(crate) const POLL: &str = "floor: CPU of a bare poll of the disk, every 250 ms";

/// All of them; the one at rest stands with what it is compared with.
pub(crate) fn cases(scale: &Scale) -> Vec<Case> {
    let mut cases = processor::cases(scale);
    cases.extend(table::cases(scale));
    cases.extend(rings::cases(scale));
    cases.extend(tcp::cases(scale));
    cases
}
