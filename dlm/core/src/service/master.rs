//! What: the service as home (who is master?) and as master (who may have the lock?).
//! Owns: the directory of this node's share, the mastered resources, the token counter of the share.
//! Invariants: one master per resource and view; mastery takes the share's token counter along and brings it back.
//! Does not: know sessions.
//! Called by: `service`.

use super::LockService;
use super::places::Place;
use crate::client::Lvb;
use crate::mode::{Flags, Mode};
use crate::name::Key;
use crate::peers::{ME, PeerId};
use crate::queue::{Entry, Gate, Notice, Notices, Owner, Resource};
use crate::wire::{LvbCopy, OpResult, Party, RangeRecord, Record};
use crate::{LockStatus, ResultFlags, Token};
use alloc::vec::Vec;

impl LockService {
    pub(super) fn handle_lock_request(
        &mut self,
        owner: Owner,
        key: Key,
        whose: (u32, Party),
        (op, mode, flags): (u64, Mode, Flags),
        is_lookup: bool,
    ) {
        #[cfg(any(test, feature = "planted"))]
        let is_lookup = is_lookup || (self.mistake == Some(super::Mistake::HomeJudgesAll) && self.home(&key) == self.me);
        let place = self.places.find(&key).filter(|place| self.places.get(*place).is_some_and(Place::is_master));
        if let Some(place) = place {
            if is_lookup {
                self.send_to(owner.peer, Record::MasterIs { key, master: self.me, counter: 0, is_taken: true });
            }
            self.unfold(place);
            self.remember_owner(&owner, place);
            let entry = Entry::new(owner, whose, op, mode, flags, self.now_ms);
            self.operate_at(place, |resource, gate, out| resource.request(entry, gate, out));
        } else if is_lookup && self.home(&key) == self.me {
            let master = self.appoint(&key, owner.peer);
            #[cfg(any(test, feature = "planted"))]
            let master = if self.mistake == Some(super::Mistake::TwoMasters) { owner.peer } else { master };
            let Some(master) = self.peers.life(master) else { return };
            self.send_to(owner.peer, Record::MasterIs { key, master, counter: self.share_counter, is_taken: false });
        } else {
            self.send_to(owner.peer, Record::NotMaster { lock: owner.lock, op });
        }
    }

    /// Runs an operation on the resource of a lock, tells holders, gives mastery back when nothing is left.
    pub(super) fn operate(&mut self, owner: Owner, operation: impl FnOnce(&mut Resource, Owner, Gate, &mut Notices)) {
        if let Some(place) = self.place_of(&owner) {
            self.unfold(place);
            self.operate_at(place, |resource, gate, out| operation(resource, owner, gate, out));
        }
    }

    fn operate_at(&mut self, place: u32, operation: impl FnOnce(&mut Resource, Gate, &mut Notices)) {
        let Some(found) = self.places.get(place) else { return };
        let gate = self.gate(found.lockspace);
        let mut out = Vec::new();
        if let Some(resource) = self.mastered.get_mut(found.mastered) {
            operation(resource, gate, &mut out);
            self.counter = self.counter.max(resource.counter);
            self.deadlocks.note(place, resource.has_waits(), self.now_ms);
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

    fn send_to(&mut self, peer: PeerId, record: Record) {
        if let Some(life) = self.peers.life(peer) {
            self.send(life, record);
        }
    }

    pub(super) fn remember_owner(&mut self, owner: &Owner, place: u32) {
        if owner.peer != ME {
            self.owners.insert(*owner, place);
        }
    }

    /// As home: who is master; the asker becomes it when nobody is.
    pub(super) fn appoint(&mut self, key: &Key, asker: PeerId) -> PeerId {
        let number = self.places.intern(key);
        self.places.get_mut(number).map_or(asker, |place| *place.appointed.get_or_insert(asker))
    }

    pub(super) fn mastered_places(&self) -> Vec<u32> {
        self.places.iter().filter(|(_, place)| place.is_master()).map(|(number, _)| number).collect()
    }

    pub(super) fn handle_unlock(&mut self, owner: Owner, op: u64, data: (Flags, Option<Lvb>)) {
        if self.place_of(&owner).is_some() {
            self.operate(owner, |resource, owner, gate, out| resource.unlock(owner, op, data, gate, out));
            return;
        }
        // It never got here (its request met no master): it is given back by that.
        let result = OpResult {
            op,
            status: LockStatus::Unlocked,
            mode: None,
            flags: ResultFlags::default(),
            token: Token::default(),
            lvb: LvbCopy::default(),
        };
        self.send_to(owner.peer, Record::Completed { lock: owner.lock, result });
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
        let (queues, Some(key)) = (place.mastered, self.places.key(number)) else { return };
        let counter = self.mastered.remove(queues).map_or(0, |resource| resource.counter);
        if let Some(place) = self.places.get_mut(number) {
            place.mastered = 0;
        }
        self.give_mastery_back(number, &key, counter);
    }

    pub(super) fn handle_released(&mut self, from: PeerId, number: u32, counter: u64) {
        if let Some(place) = self.places.get_mut(number)
            && place.appointed == Some(from)
        {
            place.appointed = None;
            self.places.forget_if_unused(number);
        }
        #[cfg(any(test, feature = "planted"))]
        if self.mistake == Some(super::Mistake::TokenReset) {
            return;
        }
        self.share_counter = self.share_counter.max(counter);
    }

    /// The home made this node master.
    pub(super) fn become_master(&mut self, key: &Key, counter: u64) {
        let number = self.places.intern(key);
        if self.places.get(number).is_none_or(Place::is_master) {
            return;
        }
        self.master(number, Resource::with_counter(counter));
    }

    /// Makes this node master of a place, with these queues.
    pub(super) fn master(&mut self, number: u32, resource: Resource) {
        let queues = self.mastered.insert(resource);
        if let Some(place) = self.places.get_mut(number) {
            place.mastered = queues;
            let lockspace = place.lockspace;
            self.uses_more(lockspace);
        }
    }

    /// Somebody else is master by what the homes say.
    pub(super) fn unmaster(&mut self, number: u32) {
        let Some(place) = self.places.get_mut(number) else { return };
        let (queues, lockspace) = (place.mastered, place.lockspace);
        (place.mastered, place.lone) = (0, 0);
        self.mastered.remove(queues);
        self.places.forget_if_unused(number);
        self.uses_fewer(lockspace);
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
