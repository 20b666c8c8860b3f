//! What: locks of one resource in their order, found by owner, with counts of the modes that they have and want.
//! Owns: order and counts.
//! Invariants: the counts are those of the entries; an entry's modes and flags do not change while it stands here; no owner stands here twice.
//! Does not: know the grant rules.
//! Called by: `queue`.

use super::{Entry, Owner};
use crate::mode::{Flags, MODES, Mode};
use alloc::collections::BTreeMap;
use core::ops::Bound;

/// Where an entry stands: by rank, then by turn.
pub(super) type Turn = (u8, i64);

/// Locks in order. Every operation on one of them takes logarithmic time.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
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

impl Line {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
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

    /// Behind all whose granted mode is not weaker.
    pub(super) fn push_by_mode(&mut self, entry: Entry) {
        self.last += 1;
        let rank = entry.granted.map_or(u8::MAX, |mode| u8::MAX - 1 - mode.number());
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

    pub(super) fn retain(&mut self, is_kept: impl Fn(&Entry) -> bool) {
        let gone: alloc::vec::Vec<Owner> = self.iter().filter(|entry| !is_kept(entry)).map(|entry| entry.owner).collect();
        for owner in gone {
            self.take(owner);
        }
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

    /// Does any of them want a mode that is kept out by this one?
    pub(super) fn wants_beside(&self, held: Option<Mode>) -> bool {
        held.is_some_and(|held| MODES.into_iter().any(|mode| !mode.is_compatible(held) && self.wants(mode)))
    }
}
