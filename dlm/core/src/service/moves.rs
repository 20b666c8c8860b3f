//! What: mastery that follows the load: a resource moves to the member that works on it, with all its locks, while the view stays.
//! Owns: which member asks how often, the moves under way as old master and as home.
//! Invariants: a master gives up only when every holder has said all and will say no more to it, and the new one begins only when the old
//!   one has given up; until then the old one changes nothing on the resource, and a view that comes before that leaves it master.
//! Does not: move a resource with conversions or byte ranges under way; move anything before all is known in a view.
//! Called by: `service`.

use super::holder::LocalLock;
use super::{LockService, places::Place};
use crate::name::Key;
use crate::peers::{ME, PeerId};
use crate::queue::Owner;
use crate::wire::{LvbCopy, MoveRecord, Record, Report};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;

/// Most locks of a resource that moves (bounds what one message carries; chosen).
const LOCKS_MAX: usize = 64;
/// About the most moves that a master has under way, the most that a home has, and most resources whose load is watched (bound memory;
/// chosen).
const MOVES_MAX: usize = 64;
const HOME_MOVES_MAX: usize = 4096;
const LOADS_MAX: usize = 1024;
/// Places that a master which is to leave looks at in one turn (less than the moves that it may have under way).
const HAND_OVER_SLICE: u32 = 16;

/// When a resource moves: one of `sample` requests is looked at, and `turns` of these one after the other, of one other member and of nobody
/// else, make it master. 0 turns: never.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MoveRule {
    /// One of so many requests is looked at.
    pub sample: u32,
    /// So many in a row.
    pub turns: u32,
}

impl Default for MoveRule {
    /// Chosen: a move costs some ten messages, so it has to come after ten times as many.
    fn default() -> Self {
        Self { sample: 8, turns: 16 }
    }
}

#[derive(Debug)]
struct Load {
    peer: PeerId,
    turns: u32,
}

/// As master: the number of the move, and of the appointment that it is to end.
#[derive(Clone, Copy, Debug)]
struct Asked {
    number: u64,
    stamp: u32,
}

/// As master: nothing changes on the resource any more.
#[derive(Debug)]
struct Frozen {
    number: u64,
    /// Its locks in the order of their queues, and what their holders said of them.
    locks: Vec<Owner>,
    said: BTreeMap<Owner, Option<Report>>,
    /// Requests that came since, and what was said of these.
    stash: Vec<(Life, Record)>,
}

/// As home.
#[derive(Debug)]
struct Move {
    number: u64,
    from: PeerId,
    to: PeerId,
    held: Vec<(Life, Report)>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Moves {
    rule: MoveRule,
    seen: u32,
    loads: BTreeMap<u32, Load>,
    last: u64,
    /// As master: what the home was asked for.
    asked: BTreeMap<Key, Asked>,
    frozen: BTreeMap<u32, Frozen>,
    under_way: BTreeMap<u32, Move>,
    /// As home: who has given up, and has not heard yet that the new master has begun.
    leaving: BTreeMap<u32, (PeerId, u64)>,
    /// Resources that came to this node.
    pub(super) count: u64,
    /// As a master that is to leave: the next place to hand over; 0: none.
    next_handed: u32,
}

impl Moves {
    pub(super) fn is_frozen(&self, place: u32) -> bool {
        !self.frozen.is_empty() && self.frozen.contains_key(&place)
    }

    /// As home.
    pub(super) fn is_moving(&self, place: u32) -> bool {
        self.under_way.contains_key(&place)
    }

    /// The frozen resource that a stashed request is for.
    fn stash_of(&self, from: Life, lock: u32) -> Option<u32> {
        let is_it = |(other, record): &(Life, Record)| *other == from && lock_of(record) == Some(lock);
        self.frozen.iter().find(|(_, frozen)| frozen.stash.iter().any(is_it)).map(|(place, _)| *place)
    }
}

/// The lock that a record from a holder to a master is about.
fn lock_of(record: &Record) -> Option<u32> {
    match record {
        Record::Request { lock, .. }
        | Record::Convert { lock, .. }
        | Record::Unlock { lock, .. }
        | Record::Cancel { lock, .. }
        | Record::Whose { lock, .. } => Some(*lock),
        _ => None,
    }
}

impl LockService {
    /// When resources move.
    pub fn follow_load(&mut self, rule: MoveRule) {
        self.moves.rule = rule;
    }

    /// As master: somebody works on the resource.
    pub(super) fn note_load(&mut self, place: u32, peer: PeerId) {
        let Moves { rule, seen, loads, .. } = &mut self.moves;
        // Drawn, for clients have rhythms: any factor of a full period.
        *seen = seen.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if rule.turns == 0 || !(*seen >> 16).is_multiple_of(rule.sample.max(1)) {
            return;
        }
        if loads.len() >= LOADS_MAX && !loads.contains_key(&place) {
            loads.pop_first();
        }
        let load = loads.entry(place).or_insert(Load { peer, turns: 0 });
        if load.peer != peer {
            *load = Load { peer, turns: 0 };
        }
        load.turns += 1;
        if load.turns >= rule.turns && peer != ME {
            loads.remove(&place);
            self.ask_move(place, peer, false);
        }
    }

    /// `is_leaving`: also with those who wait. Else a resource could move again and again before the one who was passed most has its turn.
    fn is_movable(&self, place: u32, is_leaving: bool) -> bool {
        let resource = self.places.get(place).and_then(|place| self.mastered.get(place.mastered));
        let is_known = |owner: Owner| self.is_peer_member(owner.peer);
        self.is_complete
            && self.gate().may_grant
            && resource.is_some_and(|resource| resource.is_movable(LOCKS_MAX, is_known) && (is_leaving || !resource.has_waits()))
    }

    fn ask_move(&mut self, place: u32, to: PeerId, is_leaving: bool) {
        let stamp = self.places.get(place).map_or(0, |place| place.stamp);
        let (Some(key), Some(to)) = (self.places.key(place), self.peers.life(to)) else { return };
        let is_busy = self.moves.is_frozen(place) || self.moves.asked.contains_key(&key);
        if is_busy || self.moves.asked.len() + self.moves.frozen.len() >= 2 * MOVES_MAX || !self.is_movable(place, is_leaving) {
            return;
        }
        self.moves.last += 1;
        let number = self.moves.last;
        self.moves.asked.insert(key, Asked { number, stamp });
        self.send_move(self.home(&key), MoveRecord::MoveAsk { key, number, to, stamp });
    }

    /// This node is to leave: resources on which others have locks go to these, while somebody lives who knows all about them.
    pub(super) fn begin_hand_over(&mut self) {
        self.moves.next_handed = 1;
    }

    /// Is there something to hand over, and room for it?
    pub(super) fn is_handing_over(&self) -> bool {
        self.is_complete && self.moves.next_handed != 0 && self.moves.asked.len() + self.moves.frozen.len() < MOVES_MAX
    }

    /// After [`Input::Stop`](super::Input::Stop): nothing is on its way to another master, as far as that is possible.
    #[must_use]
    pub fn has_handed_over(&self) -> bool {
        !self.view.is_member
            || self.is_stopped
                && self.moves.next_handed == 0
                && self.moves.asked.is_empty()
                && self.moves.frozen.is_empty()
                && self.moves.under_way.is_empty()
                && self.moves.leaving.is_empty()
    }

    pub(super) fn hand_over_some(&mut self) {
        if !self.is_handing_over() {
            return;
        }
        let (numbers, next) = self.places.slice(self.moves.next_handed, HAND_OVER_SLICE);
        self.moves.next_handed = next;
        for number in numbers {
            let resource = self.places.get(number).and_then(|place| self.mastered.get(place.mastered));
            let other = resource.and_then(|resource| resource.entries().map(|entry| entry.owner.peer).find(|peer| *peer != ME));
            if let Some(other) = other {
                self.ask_move(number, other, true);
            }
        }
    }

    fn send_move(&mut self, to: Life, record: MoveRecord) {
        self.send(to, Record::Move(record));
    }

    /// What must wait for the end of a move; false: nothing of this.
    pub(super) fn stash(&mut self, from: Life, record: &Record) -> bool {
        let Some(lock) = lock_of(record).filter(|_| !self.moves.frozen.is_empty()) else { return false };
        let owner = Owner { peer: self.peers.id(from), lock };
        let place = match record {
            Record::Request { key, .. } => self.places.find(key),
            _ => self.place_of(&owner).or_else(|| self.moves.stash_of(from, lock)),
        };
        let frozen = place.and_then(|place| self.moves.frozen.get_mut(&place));
        frozen.map(|frozen| frozen.stash.push((from, record.clone()))).is_some()
    }

    pub(super) fn handle_move(&mut self, from: Life, record: MoveRecord) {
        match record {
            MoveRecord::MoveAsk { key, number, to, stamp } => self.begin_move(from, &key, number, (to, stamp)),
            MoveRecord::MoveAnswer { key, number, is_begun } => self.handle_answer(from, key, number, is_begun),
            MoveRecord::Reseat { key, lock } => {
                let report = self.reseat(from, &key, lock);
                self.send_move(from, MoveRecord::Reseated { key, lock, report });
            }
            MoveRecord::Reseated { key, lock, report } => self.handle_reseated(from, key, lock, report),
            MoveRecord::MoveHeld { key, number, origin, report } => {
                if let Some((_, found)) = self.move_of(from, &key, number) {
                    found.held.push((origin, report));
                }
            }
            MoveRecord::GivenUp { key, number, with } => self.finish_move(from, key, number, with),
            MoveRecord::MoveTakeEnd { key, lvb } => self.handle_take_end(from, &key, Some(lvb)),
        }
    }

    fn move_of(&mut self, from: Life, key: &Key, number: u64) -> Option<(u32, &mut Move)> {
        let (place, from) = (self.places.find(key)?, self.peers.id(from));
        let found = self.moves.under_way.get_mut(&place).filter(|found| (found.from, found.number) == (from, number))?;
        Some((place, found))
    }

    /// As home: may it move?
    fn begin_move(&mut self, from: Life, key: &Key, number: u64, (to, stamp): (Life, u32)) {
        let (place, peer, to) = (self.places.find(key).unwrap_or(0), self.peers.id(from), self.peers.id(to));
        let is_its = |place: &Place| place.appointed == Some(peer) && (peer == ME || place.stamp == stamp);
        let is_settled = !self.verifying.contains(&place) && !self.unconfirmed.contains(&place);
        let is_begun = self.is_complete
            && is_settled
            && self.home(key) == self.me
            && self.is_peer_member(to)
            && self.moves.under_way.len() < HOME_MOVES_MAX
            && self.places.get(place).is_some_and(is_its);
        if is_begun {
            self.moves.under_way.insert(place, Move { number, from: peer, to, held: Vec::new() });
            // From here on nobody knows who is master but by what is said in this view.
            self.unconfirmed.insert(place);
            if let Some(place) = self.places.get_mut(place) {
                place.appointed = None;
            }
        }
        self.send_move(from, MoveRecord::MoveAnswer { key: *key, number, is_begun });
    }

    /// As master: the home's word.
    fn handle_answer(&mut self, home: Life, key: Key, number: u64, is_begun: bool) {
        let place = self.places.find(&key).unwrap_or(0);
        let Some(Asked { stamp, .. }) = self.moves.asked.remove(&key).filter(|asked| asked.number == number) else { return };
        if !is_begun {
            return;
        }
        if self.is_movable(place, self.is_stopped) {
            return self.freeze(place, &key, number);
        }
        self.send_move(home, MoveRecord::GivenUp { key, number, with: None });
        if !self.places.get(place).is_some_and(Place::is_master) {
            // It came back to the home while that took it for moving.
            self.return_mastery(place, &key, (self.counter, stamp));
        }
    }

    fn freeze(&mut self, place: u32, key: &Key, number: u64) {
        let Some(resource) = self.places.get(place).and_then(|place| self.mastered.get(place.mastered)) else { return };
        let locks: Vec<Owner> = resource.entries().map(|entry| entry.owner).collect();
        let (said, stash) = (BTreeMap::new(), Vec::new());
        self.moves.frozen.insert(place, Frozen { number, locks: locks.clone(), said, stash });
        #[cfg(any(test, feature = "planted"))]
        if self.mistake == Some(super::Mistake::MoveEarly) {
            self.give_mastery_up(place, *key);
        }
        for Owner { peer, lock } in locks {
            if peer == ME {
                // At once: nothing of this node's own may be on its way to this master.
                let report = self.reseat(self.me, key, lock);
                self.handle_reseated(self.me, *key, lock, report);
            } else {
                self.send_to(peer, Record::Move(MoveRecord::Reseat { key: *key, lock }));
            }
        }
    }

    /// As holder: all that the lock's next master has to know. What is said of it from now on waits until that one speaks.
    fn reseat(&mut self, from: Life, key: &Key, id: u32) -> Option<Report> {
        let from = self.peers.id(from);
        let is_there = |lock: &&LocalLock| lock.at == Some(from) && self.places.key(lock.place).as_ref() == Some(key);
        self.locks.get(id).filter(is_there)?;
        self.leave_ranges_unsaid(id);
        self.unseat(id)
    }

    /// As master: a holder has said all.
    fn handle_reseated(&mut self, from: Life, key: Key, lock: u32, mut report: Option<Report>) {
        let (place, owner) = (self.places.find(&key).unwrap_or(0), Owner { peer: self.peers.id(from), lock });
        let queues = self.places.get(place).map_or(0, |place| place.mastered);
        let held = self.mastered.get_mut(queues).and_then(|resource| resource.find_mut(owner)).and_then(|entry| entry.granted);
        if let Some(report) = &mut report {
            // Who gave it back without waiting for its master calls it nothing by now; what that says of the value block goes by what it was.
            report.granted = report.granted.or(held);
        }
        let Some(frozen) = self.moves.frozen.get_mut(&place) else { return };
        frozen.said.insert(owner, report);
        if frozen.locks.iter().all(|owner| frozen.said.contains_key(owner)) {
            self.give_mastery_up(place, key);
        }
    }

    fn give_mastery_up(&mut self, place: u32, key: Key) {
        let Some(Frozen { number, locks, said, stash }) = self.moves.frozen.remove(&place) else { return };
        let home = self.home(&key);
        #[cfg(any(test, feature = "planted"))]
        let is_kept = self.mistake == Some(super::Mistake::KeepMoved);
        #[cfg(not(any(test, feature = "planted")))]
        let is_kept = false;
        let queues = self.places.get(place).map_or(0, |place| place.mastered);
        let resource = if is_kept { self.mastered.get(queues).cloned() } else { self.mastered.remove(queues) };
        let Some(resource) = resource else { return };
        for owner in locks {
            if !is_kept {
                self.owners.remove(&owner);
            }
            if let (Some(report), Some(origin)) = (said.get(&owner).copied().flatten(), self.peers.life(owner.peer)) {
                self.send_move(home, MoveRecord::MoveHeld { key, number, origin, report });
            }
        }
        if let Some(place) = self.places.get_mut(place).filter(|_| !is_kept) {
            place.mastered = 0;
        }
        self.contended.remove(&place);
        self.deadlocks.note(place, false, self.now_ms);
        self.uses_fewer(key.lockspace);
        self.send_move(home, MoveRecord::GivenUp { key, number, with: Some((resource.counter, resource.lvb())) });
        // Until the new master has begun.
        self.moves.asked.insert(key, Asked { number, stamp: 0 });
        // They hear that this is no master. Of locks that move, all is said.
        for (from, record) in stash {
            let owner = lock_of(&record).map(|lock| Owner { peer: self.peers.id(from), lock });
            if owner.is_none_or(|owner| !said.contains_key(&owner)) {
                self.handle_record(from, record);
            }
        }
        self.forget_place(place);
    }

    /// As home: the old master has given up, or stays.
    fn finish_move(&mut self, from: Life, key: Key, number: u64, with: Option<(u64, LvbCopy)>) {
        let Some((place, _)) = self.move_of(from, &key, number) else { return };
        let Some(Move { from, to, held, .. }) = self.moves.under_way.remove(&place) else { return };
        if let Some((counter, lvb)) = with {
            self.share_counter = self.share_counter.max(counter);
            let stamp = self.appoint_anew(place, to);
            self.send_to(to, Record::Take { key, counter: self.share_counter, stamp });
            for (origin, report) in held {
                self.send_to(to, Record::Forward { origin, report });
            }
            self.send_to(to, Record::Move(MoveRecord::MoveTakeEnd { key, lvb }));
            self.moves.leaving.insert(place, (from, number));
        } else {
            self.unconfirmed.remove(&place);
            if let Some(place) = self.places.get_mut(place) {
                place.appointed = Some(from);
            }
        }
        self.serve_parked_at(place);
        self.answer_parked();
    }

    /// As home: the new master has begun.
    pub(super) fn end_move(&mut self, place: u32, key: Key) {
        if let Some((from, number)) = self.moves.leaving.remove(&place) {
            self.send_to(from, Record::Move(MoveRecord::MoveAnswer { key, number, is_begun: false }));
        }
    }

    /// A view comes, and ends every move: whoever has not given up stays master, and does what has waited.
    pub(super) fn end_moves(&mut self) {
        self.moves.under_way.clear();
        self.moves.leaving.clear();
        for (place, Frozen { stash, .. }) in core::mem::take(&mut self.moves.frozen) {
            for (from, record) in stash {
                self.handle_record(from, record);
            }
            self.settle(place);
        }
        // What that said to this node itself belongs to the view in which it was said.
        self.pump();
        self.moves.loads.clear();
        self.moves.asked.clear();
        if self.is_stopped {
            self.begin_hand_over();
        }
    }
}
