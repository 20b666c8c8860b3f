//! What: the service as master: who may have the lock?
//! Owns: the mastered resources, what is said to their holders, the return of mastery.
//! Invariants: one master per resource and view; mastery takes the share's token counter along and brings it back.
//! Does not: know sessions.
//! Called by: `service`.

use super::LockService;
use super::home::Lookup;
use super::places::Place;
use crate::client::Lvb;
use crate::mode::{Flags, Mode};
use crate::name::Key;
use crate::peers::{ME, PeerId};
use crate::queue::{Entry, Gate, Notice, Notices, Owner, Resource};
use crate::wire::{LvbCopy, OpResult, Party, RangeRecord, Record};
use crate::{LockStatus, ResultFlags, Token};
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;

/// An operation whose lock is not here.
fn gone(op: u64) -> OpResult {
    let (flags, token, lvb) = (ResultFlags::default(), Token::default(), LvbCopy::default());
    OpResult { op, status: LockStatus::Unlocked, mode: None, flags, token, lvb }
}

impl LockService {
    /// `lookup`: the receiver is asked as home, for the second time or not.
    pub(super) fn handle_lock_request(
        &mut self,
        owner: Owner,
        key: Key,
        whose: (u32, Party),
        (op, mode, flags): (u64, Mode, Flags),
        lookup: Option<bool>,
    ) {
        #[cfg(any(test, feature = "planted"))]
        let lookup = lookup.or((self.mistake == Some(super::Mistake::HomeJudgesAll) && self.home(&key) == self.me).then_some(false));
        let place = self.places.find(&key).filter(|place| self.places.get(*place).is_some_and(Place::is_master));
        if let Some(place) = place {
            if lookup.is_some() {
                let (master, counter, stamp, is_asked) = (self.me, 0, 0, false);
                self.send_to(owner.peer, Record::MasterIs { key, master, counter, stamp, is_taken: true, is_asked });
            }
            self.unfold(place);
            self.note_load(place, owner.peer);
            self.remember_owner(&owner, place);
            let entry = Entry::new(owner, whose, op, mode, flags, self.now_ms);
            self.operate_at(place, |resource, gate, out| resource.request(entry, gate, out));
        } else if let (Some(is_retry), true) = (lookup, self.home(&key) == self.me) {
            self.look_up(&key, Lookup { owner, op, is_retry });
        } else {
            self.send_to(owner.peer, Record::NotMaster { lock: owner.lock, op });
        }
    }

    pub(super) fn handle_cancel(&mut self, owner: Owner, op: u64) {
        if self.drop_lookup(owner, Some(op)) {
            let result = OpResult { status: LockStatus::Cancelled, ..gone(op) };
            return self.send_to(owner.peer, Record::Completed { lock: owner.lock, result });
        }
        self.operate(owner, |resource, owner, gate, out| resource.cancel(owner, op, gate, out));
    }

    /// Runs an operation on the resource of a lock, tells holders, gives mastery back when nothing is left.
    pub(super) fn operate(&mut self, owner: Owner, operation: impl FnOnce(&mut Resource, Owner, Gate, &mut Notices)) {
        if let Some(place) = self.place_of(&owner) {
            self.unfold(place);
            self.note_load(place, owner.peer);
            self.operate_at(place, |resource, gate, out| operation(resource, owner, gate, out));
        }
    }

    pub(super) fn operate_at(&mut self, place: u32, operation: impl FnOnce(&mut Resource, Gate, &mut Notices)) {
        let Some(found) = self.places.get(place).filter(|_| !self.moves.is_frozen(place)) else { return };
        let gate = self.gate();
        let mut out = Vec::new();
        if let Some(resource) = self.mastered.get_mut(found.mastered) {
            operation(resource, gate, &mut out);
            self.counter = self.counter.max(resource.counter);
            self.deadlocks.note(place, resource.has_waits(), self.now_ms);
            if resource.has_waiters() {
                self.contended.insert(place);
            } else {
                self.contended.remove(&place);
            }
        }
        self.tell(out);
        self.release_if_empty(place);
    }

    /// The resource of a lock whose master this is, if it is.
    pub(super) fn place_of(&self, owner: &Owner) -> Option<u32> {
        if owner.peer == ME {
            let number = self.locks.get(owner.lock)?.place;
            let place = self.places.get(number)?;
            let is_queued = self.mastered.get(place.mastered).is_some_and(|resource| resource.has(*owner));
            return (place.lone == owner.lock || is_queued).then_some(number);
        }
        self.owners.get(owner).copied()
    }

    pub(super) fn send_to(&mut self, peer: PeerId, record: Record) {
        if let Some(life) = self.peers.life(peer) {
            self.send(life, record);
        }
    }

    pub(super) fn remember_owner(&mut self, owner: &Owner, place: u32) {
        if owner.peer != ME {
            self.owners.insert(*owner, place);
        }
    }

    /// A view is learned: whoever left it waits no more, and those in the way are told again.
    pub(super) fn begin_view_at(&mut self, place: u32) {
        let (peers, members) = (&self.peers, &self.view.members);
        let is_member = |peer: PeerId| peers.life(peer).is_some_and(|life| members.contains(&life));
        if let Some(resource) = self.places.get(place).and_then(|place| self.mastered.get_mut(place.mastered)) {
            for owner in resource.begin_view(is_member) {
                self.owners.remove(&owner);
            }
        }
        self.settle(place);
    }

    /// Lives that are neither members nor owed are gone: so are their locks.
    pub(super) fn drop_gone_at(&mut self, place: u32) {
        let gone: Vec<PeerId> = match self.places.get(place).and_then(|place| self.mastered.get(place.mastered)) {
            Some(resource) => resource.entries().map(|entry| entry.owner.peer).filter(|peer| !self.is_kept(*peer)).collect(),
            None => return,
        };
        if gone.is_empty() {
            return;
        }
        #[cfg(any(test, feature = "planted"))]
        let is_marked = self.mistake != Some(super::Mistake::KeepDeadLvb);
        #[cfg(not(any(test, feature = "planted")))]
        let is_marked = true;
        if let Some(resource) = self.places.get(place).and_then(|place| self.mastered.get_mut(place.mastered)) {
            let was_invalid = resource.lvb().is_invalid;
            for owner in resource.retain_peers(|peer| !gone.contains(&peer)) {
                self.owners.remove(&owner);
            }
            resource.mark_lvb(if is_marked { resource.lvb().is_invalid } else { was_invalid });
        }
        self.settle(place);
    }

    pub(super) fn handle_unlock(&mut self, owner: Owner, op: u64, data: (Flags, Option<Lvb>)) {
        if self.place_of(&owner).is_some() {
            self.operate(owner, |resource, owner, gate, out| resource.unlock(owner, op, data, gate, out));
            return;
        }
        // It never got here (its request met no master): it is given back by that.
        self.drop_lookup(owner, None);
        self.send_to(owner.peer, Self::unlocked_record(owner.lock, op));
    }

    pub(super) fn unlocked_record(lock: u32, op: u64) -> Record {
        Record::Completed { lock, result: gone(op) }
    }

    pub(super) fn settle(&mut self, place: u32) {
        self.operate_at(place, |resource, gate, out| resource.settle(gate, out));
    }

    pub(super) fn tell(&mut self, notices: Notices) {
        for (owner, notice) in notices {
            let record = match notice {
                Notice::Completed(result) => {
                    if result.mode.is_none() {
                        self.owners.remove(&owner);
                        self.note_refused(owner, result.op);
                    }
                    Record::Completed { lock: owner.lock, result }
                }
                Notice::Blocking(mode) => Record::Blocking { lock: owner.lock, mode },
                Notice::Range { op, status } => Record::Range(RangeRecord::RangeEnded { lock: owner.lock, op, status }),
            };
            if let Some(life) = self.peers.life(owner.peer)
                && self.is_member(&life)
            {
                self.send(life, record);
            }
        }
    }

    pub(super) fn release_if_empty(&mut self, number: u32) {
        let Some(place) = self.places.get(number) else { return };
        if !self.is_running() || self.mastered.get(place.mastered).is_none_or(|resource| !resource.is_empty()) {
            return;
        }
        if !self.loopback.is_empty() {
            // An appointment, or a request, of this node to itself may be on its way.
            return self.release_later.push(number);
        }
        let (queues, Some(key)) = (place.mastered, self.places.key(number)) else { return };
        let counter = self.mastered.remove(queues).map_or(0, |resource| resource.counter);
        self.contended.remove(&number);
        if let Some(place) = self.places.get_mut(number) {
            place.mastered = 0;
        }
        self.end_mastery(number, &key, counter);
    }

    /// The home made this node master.
    pub(super) fn become_master(&mut self, key: &Key, counter: u64, stamp: u32) {
        let number = self.places.intern(key);
        let is_home = self.home(key) == self.me;
        let Some(place) = self.places.get_mut(number) else { return };
        if !is_home {
            place.stamp = stamp;
        }
        if !place.is_master() {
            self.counter = self.counter.max(counter);
            self.master(number, Resource::with_counter(self.counter));
        }
    }

    /// Makes this node master of a place, with these queues.
    pub(super) fn master(&mut self, number: u32, resource: Resource) {
        let queues = self.mastered.insert(resource);
        if let Some(place) = self.places.get_mut(number) {
            place.mastered = queues;
            if place.locks == 0 {
                // It was somebody else, and is remembered no more.
                place.master = None;
            }
            let lockspace = place.lockspace;
            self.uses_more(lockspace);
        }
    }

    /// Homes have seen so much of what was given back.
    pub(super) fn forget_releases(&mut self, home: Life, count: u32) {
        let Some(releases) = self.releases.get_mut(&home) else { return };
        for _ in 0..count {
            releases.pop_front();
        }
        if releases.is_empty() {
            self.releases.remove(&home);
        }
    }

    /// Mastery that was given back in an older view, and of which no home has said that it has seen it.
    pub(super) fn give_back_again(&mut self) {
        for (key, counter, stamp) in core::mem::take(&mut self.releases).into_values().flatten() {
            let home = self.home(&key);
            let is_master = self.places.find(&key).and_then(|place| self.places.get(place)).is_some_and(Place::is_master);
            if is_master {
                continue;
            }
            if home == self.me {
                self.handle_returned(ME, &key, counter, stamp);
            } else {
                self.releases.entry(home).or_default().push_back((key, counter, stamp));
                self.send(home, Record::Released { key, counter, stamp });
            }
        }
    }

    /// A home asks whether this node is master. When it is not it has given mastery back by now.
    pub(super) fn answer_home(&mut self, key: Key, home: Life, stamp: u32) {
        let is_master = self.places.find(&key).and_then(|place| self.places.get(place)).is_some_and(Place::is_master);
        if is_master {
            self.send(home, Record::Claim { key, stamp });
        }
    }

    pub(super) fn uses_more(&mut self, lockspace: u32) {
        if let Some(lockspace) = self.lockspaces.get_mut(&lockspace) {
            lockspace.uses += 1;
        }
    }

    pub(super) fn uses_fewer(&mut self, number: u32) {
        let Some(lockspace) = self.lockspaces.get_mut(&number) else { return };
        lockspace.uses = lockspace.uses.saturating_sub(1);
        if lockspace.uses == 0 {
            self.leave_if_unused(number);
        }
    }
}
