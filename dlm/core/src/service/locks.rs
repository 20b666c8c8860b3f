//! What: this node's locks by number, and each session's locks as a list through them.
//! Owns: the numbers that clients know locks by, the numbers of operations.
//! Invariants: a number of a lock that is gone stands for no other lock until its place was used 128 times again; no two operations of this
//!   life have one number; a lock is on its session's list from `add` to `remove`, but for orphans.
//! Does not: know resources.
//! Called by: `service`.

use super::holder::LocalLock;
use crate::slab::Slab;
use alloc::vec::Vec;

/// Bits of a lock's number that are its place in the slab; above them: how often places were given back.
const PLACE_BITS: u32 = 25;
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;
/// Most locks of a node: what the numbers can tell apart.
pub(super) const NODE_LOCKS_MAX: usize = PLACE_MASK as usize;

/// A session's locks, newest first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LockList {
    first: u32,
    count: usize,
}

impl LockList {
    pub(super) fn len(&self) -> usize {
        self.count
    }
}

/// Neighbours on the session's list, as places in the slab; 0: none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Near {
    newer: u32,
    older: u32,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Locks {
    slab: Slab<LocalLock>,
    removals: u32,
    last_op: u64,
}

impl Locks {
    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    pub(super) fn next_op(&mut self) -> u64 {
        self.last_op += 1;
        self.last_op
    }

    pub(super) fn get(&self, id: u32) -> Option<&LocalLock> {
        self.slab.get(id & PLACE_MASK).filter(|lock| u32::from(lock.round) == id >> PLACE_BITS)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut LocalLock> {
        self.slab.get_mut(id & PLACE_MASK).filter(|lock| u32::from(lock.round) == id >> PLACE_BITS)
    }

    /// Where a lock stands among the numbers.
    pub(super) fn place(id: u32) -> u32 {
        id & PLACE_MASK
    }

    fn id(place: u32, lock: &LocalLock) -> u32 {
        place | (u32::from(lock.round) << PLACE_BITS)
    }

    /// Keeps a lock, newest of its session's `list`, under a number of its own and with one for its operation. There must be fewer than
    /// [`NODE_LOCKS_MAX`].
    #[inline]
    pub(super) fn add(&mut self, mut lock: LocalLock, list: &mut LockList) -> u32 {
        lock.op = self.next_op();
        lock.round = u8::try_from(self.removals % (1 << (u32::BITS - PLACE_BITS))).unwrap_or(0);
        let round = u32::from(lock.round);
        let id = self.slab.insert(lock) | (round << PLACE_BITS);
        self.link(id, list);
        id
    }

    /// Puts a lock that is on no list on one, as its newest.
    pub(super) fn link(&mut self, id: u32, list: &mut LockList) {
        let place = id & PLACE_MASK;
        let Some(lock) = self.slab.get_mut(place) else { return };
        lock.near = Near { newer: 0, older: list.first };
        if let Some(older) = self.slab.get_mut(list.first) {
            older.near.newer = place;
        }
        list.first = place;
        list.count += 1;
    }

    /// Takes a lock off its list, when that is still there.
    pub(super) fn unlink(&mut self, id: u32, list: Option<&mut LockList>) {
        let Some(lock) = self.slab.get_mut(id & PLACE_MASK) else { return };
        let near = core::mem::take(&mut lock.near);
        if let Some(newer) = self.slab.get_mut(near.newer) {
            newer.near.older = near.older;
        }
        if let Some(older) = self.slab.get_mut(near.older) {
            older.near.newer = near.newer;
        }
        if let Some(list) = list {
            list.count = list.count.saturating_sub(1);
            if list.first == id & PLACE_MASK {
                list.first = near.older;
            }
        }
    }

    /// Takes a lock out; `list`: its session's, when that is still there.
    pub(super) fn remove(&mut self, id: u32, list: Option<&mut LockList>) -> Option<LocalLock> {
        self.get(id)?;
        self.unlink(id, list);
        self.removals = self.removals.wrapping_add(1);
        self.slab.remove(id & PLACE_MASK)
    }

    /// The locks of a list, newest first.
    pub(super) fn list(&self, list: &LockList) -> impl Iterator<Item = u32> + '_ {
        let mut next = list.first;
        core::iter::from_fn(move || {
            let place = next;
            let lock = self.slab.get(place)?;
            next = lock.near.older;
            Some(Self::id(place, lock))
        })
    }

    /// The locks in the `count` places from `first` on, and where to go on; 0: that was the end.
    pub(super) fn slice(&self, first: u32, count: u32) -> (Vec<u32>, u32) {
        let (places, next) = self.slab.slice(first, count);
        let id = |place| self.slab.get(place).map(|lock| Self::id(place, lock));
        (places.into_iter().filter_map(id).collect(), next)
    }

    /// By place.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &LocalLock)> {
        self.slab.iter().map(|(place, lock)| (Self::id(place, lock), lock))
    }
}
