//! What: many locks of one resource in their order, found by owner, with counts of the modes that they have and want.
//! Owns: order and counts.
//! Invariants: the counts are those of the entries; an entry's modes and flags do not change while it stands here; no owner stands here twice.
//! Does not: know the grant rules.
//! Called by: `line`.

use super::Turn;
use crate::mode::{Flags, MODES, Mode};
use crate::queue::{Entry, Owner};
use alloc::collections::BTreeMap;
use core::ops::Bound;

/// Locks in order. Every operation on one of them takes logarithmic time.
#[derive(Clone, Debug, Default)]
pub(in crate::queue) struct Tree {
    entries: BTreeMap<Turn, Entry>,
    turns: BTreeMap<Owner, Turn>,
    held: [usize; 6],
    wanted: [usize; 6],
    without_order: usize,
    last: i64,
    first: i64,
}

fn count(counts: &[usize; 6], mode: Mode) -> usize {
    counts.get(usize::from(mode.number())).copied().unwrap_or(0)
}

fn change(counts: &mut [usize; 6], mode: Option<Mode>, by: impl Fn(usize) -> usize) {
    if let Some(count) = mode.and_then(|mode| counts.get_mut(usize::from(mode.number()))) {
        *count = by(*count);
    }
}

impl Tree {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// For everything but modes and flags.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.values_mut()
    }

    pub(super) fn contains(&self, owner: Owner) -> bool {
        self.turns.contains_key(&owner)
    }

    pub(super) fn get(&self, owner: Owner) -> Option<&Entry> {
        self.turns.get(&owner).and_then(|turn| self.entries.get(turn))
    }

    /// For everything but modes and flags.
    pub(super) fn get_mut(&mut self, owner: Owner) -> Option<&mut Entry> {
        self.turns.get(&owner).and_then(|turn| self.entries.get_mut(turn))
    }

    /// The first entry behind `turn`.
    pub(super) fn after(&self, turn: Option<Turn>) -> Option<(Turn, &Entry)> {
        let from = turn.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.range((from, Bound::Unbounded)).next().map(|(turn, entry)| (*turn, entry))
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.last += 1;
        self.put((0, self.last), entry);
    }

    pub(super) fn push_front(&mut self, entry: Entry) {
        self.first -= 1;
        self.put((0, self.first), entry);
    }

    /// Behind all of no higher rank.
    pub(super) fn push_by_rank(&mut self, rank: u8, entry: Entry) {
        self.last += 1;
        self.put((rank, self.last), entry);
    }

    fn put(&mut self, turn: Turn, entry: Entry) {
        self.take(entry.owner);
        change(&mut self.held, entry.granted, |count| count + 1);
        change(&mut self.wanted, entry.wanted, |count| count + 1);
        self.without_order += usize::from(entry.flags.has(Flags::NOORDER));
        self.turns.insert(entry.owner, turn);
        self.entries.insert(turn, entry);
    }

    pub(super) fn take(&mut self, owner: Owner) -> Option<Entry> {
        let entry = self.turns.remove(&owner).and_then(|turn| self.entries.remove(&turn))?;
        change(&mut self.held, entry.granted, |count| count.saturating_sub(1));
        change(&mut self.wanted, entry.wanted, |count| count.saturating_sub(1));
        self.without_order = self.without_order.saturating_sub(usize::from(entry.flags.has(Flags::NOORDER)));
        Some(entry)
    }

    /// Does any of them ignore the order?
    pub(super) fn has_disorder(&self) -> bool {
        self.without_order > 0
    }

    /// Does any of them want this mode?
    pub(super) fn wants(&self, mode: Mode) -> bool {
        count(&self.wanted, mode) > 0
    }

    /// How many have a mode that excludes this one.
    pub(super) fn excluders(&self, mode: Mode) -> usize {
        MODES.into_iter().filter(|held| !held.is_compatible(mode)).map(|held| count(&self.held, held)).sum()
    }
}
