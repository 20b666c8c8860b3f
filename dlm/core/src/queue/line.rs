//! What: locks of one resource in their order, found by owner: few of them in a vector, many in a tree.
//! Owns: order; when to change from one to the other.
//! Invariants: an entry's modes and flags do not change while it stands here; no owner stands here twice.
//! Does not: know the grant rules.
//! Called by: `queue`.

mod tree;

use super::{Entry, Owner};
use crate::mode::{Flags, MODES, Mode};
use alloc::boxed::Box;
use alloc::vec::Vec;
use tree::Tree;

/// Where an entry stands: by rank, then by turn. In a vector: by its index.
pub(super) type Turn = (u8, i64);

/// Above this many a vector becomes a tree (chosen: a walk through so many costs about what the tree's first step does).
const FEW_MAX: usize = 16;

/// Most resources have one lock, or a few.
#[derive(Clone, Debug)]
pub(super) enum Line {
    Few(Vec<Entry>),
    Many(Box<Tree>),
}

impl Default for Line {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

/// Holders stand by the strength of what they hold.
fn rank(entry: &Entry) -> u8 {
    entry.granted.map_or(u8::MAX, |mode| u8::MAX - 1 - mode.number())
}

fn index(entries: &[Entry], owner: Owner) -> Option<usize> {
    entries.iter().position(|entry| entry.owner == owner)
}

impl Line {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Few(entries) => entries.len(),
            Self::Many(tree) => tree.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        let (few, many) = match self {
            Self::Few(entries) => (Some(entries.iter()), None),
            Self::Many(tree) => (None, Some(tree.iter())),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }

    /// For everything but modes and flags.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        let (few, many) = match self {
            Self::Few(entries) => (Some(entries.iter_mut()), None),
            Self::Many(tree) => (None, Some(tree.iter_mut())),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }

    pub(super) fn contains(&self, owner: Owner) -> bool {
        match self {
            Self::Few(entries) => index(entries, owner).is_some(),
            Self::Many(tree) => tree.contains(owner),
        }
    }

    pub(super) fn get(&self, owner: Owner) -> Option<&Entry> {
        match self {
            Self::Few(entries) => entries.iter().find(|entry| entry.owner == owner),
            Self::Many(tree) => tree.get(owner),
        }
    }

    /// For everything but modes and flags.
    pub(super) fn get_mut(&mut self, owner: Owner) -> Option<&mut Entry> {
        match self {
            Self::Few(entries) => entries.iter_mut().find(|entry| entry.owner == owner),
            Self::Many(tree) => tree.get_mut(owner),
        }
    }

    /// The first entry behind `turn`. A turn stays good while only entries behind it are taken out.
    pub(super) fn after(&self, turn: Option<Turn>) -> Option<(Turn, &Entry)> {
        match self {
            Self::Few(entries) => {
                let next = turn.map_or(0, |(_, index)| usize::try_from(index + 1).unwrap_or(usize::MAX));
                let entry = entries.get(next)?;
                Some(((0, i64::try_from(next).unwrap_or(i64::MAX)), entry))
            }
            Self::Many(tree) => tree.after(turn),
        }
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.make_room(false, entry.owner);
        match self {
            Self::Few(entries) => entries.push(entry),
            Self::Many(tree) => tree.push(entry),
        }
    }

    pub(super) fn push_front(&mut self, entry: Entry) {
        self.make_room(false, entry.owner);
        match self {
            Self::Few(entries) => entries.insert(0, entry),
            Self::Many(tree) => tree.push_front(entry),
        }
    }

    /// Behind all whose granted mode is not weaker.
    pub(super) fn push_by_mode(&mut self, entry: Entry) {
        self.make_room(true, entry.owner);
        match self {
            Self::Few(entries) => {
                let at = entries.iter().position(|other| rank(other) > rank(&entry)).unwrap_or(entries.len());
                entries.insert(at, entry);
            }
            Self::Many(tree) => tree.push_by_rank(rank(&entry), entry),
        }
    }

    /// A line is either by rank or by turn, for good.
    fn make_room(&mut self, is_ranked: bool, newcomer: Owner) {
        let Self::Few(entries) = self else { return };
        entries.retain(|entry| entry.owner != newcomer);
        if entries.len() < FEW_MAX {
            // Not by doubling: there are a million of such vectors, and most of them have one entry.
            return entries.reserve_exact(1);
        }
        let mut tree = Box::new(Tree::default());
        for entry in core::mem::take(entries) {
            if is_ranked {
                tree.push_by_rank(rank(&entry), entry);
            } else {
                tree.push(entry);
            }
        }
        *self = Self::Many(tree);
    }

    pub(super) fn take(&mut self, owner: Owner) -> Option<Entry> {
        match self {
            Self::Few(entries) => index(entries, owner).map(|index| entries.remove(index)),
            Self::Many(tree) => {
                let entry = tree.take(owner);
                if tree.len() == 0 {
                    *self = Self::default();
                }
                entry
            }
        }
    }

    /// Does any of them ignore the order?
    pub(super) fn has_disorder(&self) -> bool {
        match self {
            Self::Few(entries) => entries.iter().any(|entry| entry.flags.has(Flags::NOORDER)),
            Self::Many(tree) => tree.has_disorder(),
        }
    }

    /// Does any of them want this mode?
    pub(super) fn wants(&self, mode: Mode) -> bool {
        match self {
            Self::Few(entries) => entries.iter().any(|entry| entry.wanted == Some(mode)),
            Self::Many(tree) => tree.wants(mode),
        }
    }

    /// How many have a mode that excludes this one.
    pub(super) fn excluders(&self, mode: Mode) -> usize {
        match self {
            Self::Few(entries) => entries.iter().filter(|entry| super::blocks(entry, mode)).count(),
            Self::Many(tree) => tree.excluders(mode),
        }
    }

    /// Does any of them want a mode that is kept out by this one?
    pub(super) fn wants_beside(&self, held: Option<Mode>) -> bool {
        held.is_some_and(|held| MODES.into_iter().any(|mode| !mode.is_compatible(held) && self.wants(mode)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::PeerId;
    use proptest::prelude::*;

    fn entry(lock: u32, mode: u8) -> Entry {
        let owner = Owner { peer: PeerId::of(1), lock };
        let mode = Mode::from_number(mode % 6).unwrap();
        Entry {
            granted: Some(mode),
            ..Entry::new(
                owner,
                (1, crate::wire::Party::Session(1)),
                1,
                mode,
                Flags(u32::from(lock.is_multiple_of(7)) * Flags::NOORDER.0),
                0,
            )
        }
    }

    fn order(line: &Line) -> Vec<u32> {
        let mut turn = None;
        core::iter::from_fn(|| {
            let (next, entry) = line.after(turn)?;
            turn = Some(next);
            Some(entry.owner.lock)
        })
        .collect()
    }

    proptest! {
        /// Vector and tree are one line: through growing and shrinking the order is that of a plain list.
        #[test]
        fn the_order_is_that_of_a_plain_list(steps in prop::collection::vec((0..4_u8, 0..60_u32, 0..6_u8), 1..200), is_ranked: bool) {
            let (mut line, mut plain) = (Line::default(), Vec::<Entry>::new());
            for (step, lock, mode) in steps {
                let new = entry(lock, mode);
                if step == 3 || line.contains(new.owner) {
                    let is_there = plain.iter().any(|other| other.owner == new.owner);
                    prop_assert_eq!(line.take(new.owner).is_some(), is_there);
                    plain.retain(|other| other.owner != new.owner);
                } else if is_ranked {
                    let at = plain.iter().position(|other| rank(other) > rank(&new)).unwrap_or(plain.len());
                    plain.insert(at, new.clone());
                    line.push_by_mode(new);
                } else if step == 0 {
                    plain.insert(0, new.clone());
                    line.push_front(new);
                } else {
                    plain.push(new.clone());
                    line.push(new);
                }
                let locks: Vec<u32> = plain.iter().map(|entry| entry.owner.lock).collect();
                prop_assert_eq!(order(&line), locks.clone());
                prop_assert_eq!(line.iter().map(|entry| entry.owner.lock).collect::<Vec<_>>(), locks);
                prop_assert_eq!(line.len(), plain.len());
                for mode in MODES {
                    prop_assert_eq!(line.excluders(mode), plain.iter().filter(|entry| super::super::blocks(entry, mode)).count());
                    prop_assert_eq!(line.wants(mode), plain.iter().any(|entry| entry.wanted == Some(mode)));
                }
                prop_assert_eq!(line.has_disorder(), plain.iter().any(|entry| entry.flags.has(Flags::NOORDER)));
            }
        }
    }
}
