//! What: the service as home (who is master?) and as master (who may have the lock?).
//! Owns: the directory of this node's share, the mastered resources, the token counter of the share.
//! Invariants: one master per resource and view; mastery takes the share's token counter along and brings it back.
//! Does not: know sessions.
//! Called by: `service`.

use super::{LockService, Mastered};
use crate::client::Lvb;
use crate::mode::{Flags, Mode};
use crate::name::Key;
use crate::queue::{Entry, Gate, Notice, Notices, Owner, Resource};
use crate::wire::{LvbCopy, OpResult, Record};
use crate::{LockStatus, ResultFlags, Token};
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;

impl LockService {
    pub(super) fn handle_lock_request(&mut self, owner: Owner, key: Key, (pid, op, mode, flags): (u32, u64, Mode, Flags), is_lookup: bool) {
        #[cfg(any(test, feature = "planted"))]
        let is_lookup = is_lookup || (self.mistake == Some(super::Mistake::HomeJudgesAll) && self.home(&key) == self.me);
        if self.mastered.contains_key(&key) {
            if is_lookup {
                self.send(owner.life, Record::MasterIs { key, master: self.me, counter: 0, is_taken: true });
            }
            self.owners.insert(owner, key);
            let entry = Entry::new(owner, pid, op, mode, flags, self.now_ms);
            self.operate(owner, |resource, _, gate, out| resource.request(entry, gate, out));
        } else if is_lookup && self.home(&key) == self.me {
            let master = *self.directory.entry(key).or_insert(owner.life);
            #[cfg(any(test, feature = "planted"))]
            let master = if self.mistake == Some(super::Mistake::TwoMasters) { owner.life } else { master };
            self.send(owner.life, Record::MasterIs { key, master, counter: self.share_counter, is_taken: false });
        } else {
            self.send(owner.life, Record::NotMaster { lock: owner.lock, op });
        }
    }

    /// Runs an operation on the resource of a lock, tells holders, gives mastery back when nothing is left.
    pub(super) fn operate(&mut self, owner: Owner, operation: impl FnOnce(&mut Resource, Owner, Gate, &mut Notices)) {
        let Some(key) = self.owners.get(&owner).copied() else { return };
        let gate = self.gate(key.lockspace);
        let mut out = Vec::new();
        if let Some(mastered) = self.mastered.get_mut(&key) {
            operation(&mut mastered.resource, owner, gate, &mut out);
        }
        self.tell(out);
        self.release_if_empty(key);
    }

    pub(super) fn handle_unlock(&mut self, owner: Owner, op: u64, data: (Flags, Option<Lvb>)) {
        if self.owners.contains_key(&owner) {
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
        self.send(owner.life, Record::Completed { lock: owner.lock, result });
    }

    pub(super) fn settle(&mut self, key: Key) {
        let gate = self.gate(key.lockspace);
        let mut out = Vec::new();
        if let Some(mastered) = self.mastered.get_mut(&key) {
            mastered.resource.settle(gate, &mut out);
        }
        self.tell(out);
        self.release_if_empty(key);
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
            };
            if self.is_member(&owner.life) {
                self.send(owner.life, record);
            }
        }
    }

    pub(super) fn release_if_empty(&mut self, key: Key) {
        if !self.is_running() || self.mastered.get(&key).is_none_or(|mastered| !mastered.resource.is_empty()) {
            return;
        }
        if let Some(mastered) = self.mastered.remove(&key) {
            let counter = mastered.resource.counter;
            let home = self.home(&key);
            if home == self.me {
                // At once: a request of this turn must not meet the old directory, nor its token the old counter.
                self.handle_released(home, &key, counter);
            } else {
                self.send(home, Record::Released { key, counter });
            }
            self.leave_if_unused(key.lockspace);
        }
    }

    pub(super) fn handle_released(&mut self, from: Life, key: &Key, counter: u64) {
        if self.directory.get(key) == Some(&from) {
            self.directory.remove(key);
        }
        #[cfg(any(test, feature = "planted"))]
        if self.mistake == Some(super::Mistake::TokenReset) {
            return;
        }
        self.share_counter = self.share_counter.max(counter);
    }

    /// The home made this node master.
    pub(super) fn become_master(&mut self, key: Key, counter: u64) {
        let firm = self.view.number;
        let resource = Resource::with_counter(counter);
        self.mastered.entry(key).or_insert(Mastered { resource, firm });
    }
}
