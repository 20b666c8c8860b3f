//! What: the byte ranges of this node's locks, for people.
//! Owns: nothing.
//! Invariants: reads only.
//! Does not: know what their masters know; judge.
//! Called by: `service`'s listing.

use super::{RangeBook, Step};
use crate::ranges::Span;

impl RangeBook {
    /// What a lock has: owner's number and bytes.
    pub(in crate::service) fn had(&self, lock: u32) -> impl Iterator<Item = (u64, Span)> + '_ {
        let held = self.locks.get(&lock).into_iter().flat_map(|ranges| &ranges.held);
        held.flat_map(|(number, spans)| spans.iter().map(|span| (*number, span)))
    }

    /// What it waits for: owner's number and bytes.
    pub(in crate::service) fn wanted(&self, lock: u32) -> impl Iterator<Item = (u64, Span)> + '_ {
        let ops = self.locks.get(&lock).into_iter().flat_map(|ranges| ranges.ops.values());
        ops.filter_map(|op| match op.step {
            Step::Ask(span) => Some((op.number, span)),
            Step::Lower { .. } | Step::Query(_) => None,
        })
    }
}
