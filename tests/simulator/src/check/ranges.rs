//! What: the history of byte ranges as clients see it: what two owners are sure to have does not exclude each other.
//! Owns: what each owner was told that it has, byte for byte, in pieces that all clients use.
//! Invariants: an owner is sure of bytes from the moment it reads that it has them until it asks for less, gives its lock back, or is gone;
//!   while it asks, it relies on no more than it has before and after; what a failed request leaves is a promise again.
//! Does not: know who waits.
//! Called by: `locks`, whose locks the ranges belong to; the clients of the world.

use super::Found;
use crate::machine::Pid;
use deadbolt_dlm_core::client::RangeKind;
use std::{collections::BTreeMap, ops::RangeInclusive};

/// Pieces of a resource that clients ask for; the last one goes to the end.
pub const PIECES: usize = 8;
/// Bytes of each.
const PIECE_BYTES: u64 = 100;

/// Some pieces.
pub type Pieces = RangeInclusive<usize>;

/// First and last byte.
#[must_use]
pub fn bytes_of(pieces: &Pieces) -> (u64, u64) {
    let end = if *pieces.end() + 1 < PIECES { (*pieces.end() as u64 + 1) * PIECE_BYTES - 1 } else { u64::MAX };
    (*pieces.start() as u64 * PIECE_BYTES, end)
}

/// Whose ranges: of which lock of which client, and for whom behind it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RangeKey {
    /// The client.
    pub client: Pid,
    /// The lock.
    pub lock: u32,
    /// For whom.
    pub owner: u64,
}

/// How a piece is had; nothing excludes nobody.
type Held = [Option<RangeKind>; PIECES];

#[derive(Clone, Debug)]
struct Owned {
    machine: usize,
    boot: u64,
    resource: usize,
    sure: Held,
    /// What is left when the request under way fails, and what is had when it does not.
    open: Option<(Held, Held)>,
}

/// All ranges.
#[derive(Debug, Default)]
pub struct RangeHistory(BTreeMap<RangeKey, Owned>);

fn strength(kind: Option<RangeKind>) -> u8 {
    match kind {
        None | Some(RangeKind::Unlock) => 0,
        Some(RangeKind::Read) => 1,
        Some(RangeKind::Write) => 2,
    }
}

fn exclude(one: Option<RangeKind>, other: Option<RangeKind>) -> bool {
    strength(one) > 0 && strength(other) > 0 && strength(one) + strength(other) > 2
}

impl RangeHistory {
    /// A request was sent; one at a time for each owner.
    pub fn asked(&mut self, key: RangeKey, place: (usize, u64), resource: usize, kind: RangeKind, pieces: &Pieces) {
        let owned = self.0.entry(key).or_insert(Owned { machine: place.0, boot: place.1, resource, sure: [None; PIECES], open: None });
        let (before, mut after) = (owned.sure, owned.sure);
        for piece in pieces.clone() {
            after[piece] = Some(kind).filter(|kind| *kind != RangeKind::Unlock);
            owned.sure[piece] = if strength(after[piece]) < strength(before[piece]) { after[piece] } else { before[piece] };
        }
        owned.open = Some((before, after));
    }

    /// Its end was read. S2.
    pub fn answered(&mut self, key: RangeKey, is_done: bool) -> Vec<Found> {
        let Some(owned) = self.0.get_mut(&key) else { return Vec::new() };
        let Some((before, after)) = owned.open.take() else { return Vec::new() };
        owned.sure = if is_done { after } else { before };
        let (resource, sure) = (owned.resource, owned.sure);
        let others = self.0.iter().filter(|(other, owned)| **other != key && owned.resource == resource);
        let clash = |owned: &Owned| (0..PIECES).find(|piece| exclude(sure[*piece], owned.sure[*piece]));
        let clashes = others.filter_map(|(other, owned)| clash(owned).map(|piece| (other, owned, piece)));
        let text = |(other, owned, piece): (&RangeKey, &Owned, usize)| {
            format!("r{resource}: {key:?} has {:?} of piece {piece}, of which {other:?} has {:?}", sure[piece], owned.sure[piece])
        };
        clashes.map(|clash| ("S2", text(clash))).collect()
    }

    /// A lock is on its way back, and its ranges with it; `None`: all of a client.
    pub fn dropped(&mut self, client: Pid, lock: Option<u32>) {
        self.0.retain(|key, _| key.client != client || lock.is_some_and(|lock| lock != key.lock));
    }

    /// All clients of a boot are gone.
    pub fn machine_ended(&mut self, machine: usize, boot: u64) {
        self.0.retain(|_, owned| (owned.machine, owned.boot) != (machine, boot));
    }

    /// A client that is sure to have some bytes: of a boot, or this one.
    #[must_use]
    pub fn holder(&self, is_it: impl Fn(Pid, usize, u64) -> bool) -> Option<Pid> {
        let mut held = self.0.iter().filter(|(_, owned)| owned.sure.iter().any(Option::is_some));
        held.find(|(key, owned)| is_it(key.client, owned.machine, owned.boot)).map(|(key, _)| key.client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RangeKind::{Read, Unlock, Write};

    const PLACE: (usize, u64) = (0, 1);

    fn key(client: Pid, owner: u64) -> RangeKey {
        RangeKey { client, lock: 1, owner }
    }

    fn take(history: &mut RangeHistory, key: RangeKey, kind: RangeKind, pieces: Pieces) -> usize {
        history.asked(key, PLACE, 0, kind, &pieces);
        history.answered(key, true).len()
    }

    #[test]
    fn bytes_are_where_their_pieces_are() {
        assert_eq!(bytes_of(&(0..=0)), (0, 99));
        assert_eq!(bytes_of(&(2..=6)), (200, 699));
        assert_eq!(bytes_of(&(7..=7)), (700, u64::MAX));
    }

    #[test]
    fn what_excludes_each_other_is_not_had_by_two() {
        let mut history = RangeHistory::default();
        assert_eq!(take(&mut history, key(1, 0), Read, 0..=3), 0);
        assert_eq!(take(&mut history, key(1, 5), Read, 3..=4), 0, "another owner reads, too");
        assert_eq!(take(&mut history, key(2, 0), Write, 5..=7), 0);
        assert_eq!(take(&mut history, key(2, 0), Write, 3..=3), 2, "two others read");
        history.dropped(2, Some(1));
        assert_eq!(take(&mut history, key(1, 5), Unlock, 0..=7), 0);
        history.asked(key(3, 0), PLACE, 1, Write, &(0..=7));
        assert!(history.answered(key(3, 0), true).is_empty(), "another resource");
    }

    #[test]
    fn whoever_asks_relies_on_the_less_of_before_and_after() {
        let mut history = RangeHistory::default();
        take(&mut history, key(1, 0), Write, 0..=3);
        history.asked(key(1, 0), PLACE, 0, Read, &(2..=5));
        assert_eq!(take(&mut history, key(2, 0), Read, 2..=5), 0, "weakened already, or not taken yet");
        assert_eq!(take(&mut history, key(2, 0), Read, 1..=1), 1, "not asked about");
        history.dropped(2, None);
        take(&mut history, key(2, 0), Read, 3..=3);
        assert_eq!(history.answered(key(1, 0), false).len(), 1, "what is kept is a promise");
        history.machine_ended(0, 1);
        assert_eq!(take(&mut history, key(4, 0), Write, 0..=7), 0);
        assert_eq!(history.holder(|client, _, _| client == 4), Some(4));
    }
}
