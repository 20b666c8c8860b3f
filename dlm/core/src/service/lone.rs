//! What: the short way for a resource on which there is one lock, of this node, at this node as master: no queue, no record.
//! Owns: when a resource may go without queues, and how it gets them when somebody else comes.
//! Invariants: a lone lock is granted and has no operation under way while recovery does not run; its resource has never had a value
//!   block; what the short way does is what the queues would have done.
//! Does not: judge requests against other locks.
//! Called by: `service`.

use super::LockService;
use super::holder::LocalLock;
use crate::client::ClientReply;
use crate::mode::{Flags, LockStatus, Mode, ResultFlags, Token};
use crate::name::Key;
use crate::peers::ME;
use crate::queue::{Entry, Owner, Resource};
use crate::wire::Record;

/// Granted without a turn on a queue, for those who asked.
fn at_once(flags: Flags) -> ResultFlags {
    if flags.has(Flags::SYNCSTS) { ResultFlags::SYNCH } else { ResultFlags::default() }
}

impl LocalLock {
    /// As queues would have it.
    pub(super) fn entry(&self, id: u32) -> Entry {
        let owner = Owner { peer: ME, lock: id };
        // An operation under way has reached no queue.
        let op = if self.pending.is_some() { 0 } else { self.op };
        let mut entry = Entry::new(owner, (self.pid, self.party()), op, Mode::Nl, Flags::NONE, self.since_ms);
        (entry.wanted, entry.granted, entry.token) = (None, self.granted, self.token);
        entry
    }
}

impl LockService {
    /// Would a lock be the first of a resource whose master this node is, or may become by itself as home, and may it be granted?
    pub(super) fn is_first(&self, number: u32, key: &Key) -> bool {
        let Some(place) = self.places.get(number).filter(|place| place.locks == 0 && self.gate().may_grant) else { return false };
        let is_unused = !place.is_master() && place.appointed.is_none();
        place.is_kept() || (is_unused && self.home(key) == self.me && self.is_free(number, key))
    }

    /// Grants the first lock of a resource.
    pub(super) fn grant_alone(&mut self, id: u32, serial: u64, (mode, flags): (Mode, Flags)) {
        self.counter = self.counter.max(self.share_counter).saturating_add(1);
        let token = Token { view: self.view.number, counter: self.counter };
        let Some(lock) = self.locks.get_mut(id) else { return };
        (lock.granted, lock.token, lock.at) = (Some(mode), token, Some(ME));
        let (session, number) = (lock.session, lock.place);
        if let Some(place) = self.places.get_mut(number) {
            if !place.is_kept() {
                place.appointed = Some(ME);
            }
            (place.lone, place.master) = (id, Some(ME));
            let lockspace = place.lockspace;
            self.uses_more(lockspace);
        }
        let (status, flags) = (LockStatus::Success, at_once(flags));
        self.reply_about(session, id, true, ClientReply::Completed { serial, lock: id, status, mode: Some(mode), flags, lvb: None, token });
    }

    fn is_alone(&self, id: u32) -> bool {
        let place = self.locks.get(id).filter(|lock| lock.pending.is_none()).and_then(|lock| self.places.get(lock.place));
        self.is_running() && place.is_some_and(|place| place.lone == id)
    }

    /// Gives a lone lock back.
    pub(super) fn unlock_alone(&mut self, id: u32, serial: Option<u64>) -> bool {
        if !self.is_alone(id) {
            return false;
        }
        let Some((session, number)) = self.locks.get(id).map(|lock| (lock.session, lock.place)) else { return false };
        if let Some(serial) = serial {
            self.reply(session, Self::simple_reply(serial, id, LockStatus::Unlocked, None));
        }
        let Some(key) = self.places.key(number) else { return false };
        if let Some(place) = self.places.get_mut(number) {
            place.lone = 0;
        }
        self.end_mastery(number, &key, self.counter);
        self.remove_lock(id);
        true
    }

    /// Converts a lone lock: nobody is in the way. Value blocks go the long way.
    pub(super) fn convert_alone(&mut self, id: u32, serial: Option<u64>, mode: Mode, flags: Flags) -> bool {
        let is_short = !flags.has(Flags::VALBLK) && !flags.has(Flags::IVVALBLK);
        if !is_short || !self.is_alone(id) {
            return false;
        }
        let (view, op, now_ms) = (self.view.number, self.locks.next_op(), self.now_ms);
        let Some(lock) = self.locks.get(id) else { return false };
        let is_given_up = lock.granted.is_some_and(|granted| mode < granted && granted.is_down(mode));
        if !is_given_up && !self.gate().may_grant {
            return false;
        }
        self.counter = self.counter.saturating_add(u64::from(!is_given_up));
        let counter = self.counter;
        let Some(lock) = self.locks.get_mut(id) else { return false };
        if !is_given_up {
            lock.token = Token { view, counter };
        }
        (lock.op, lock.granted, lock.told, lock.since_ms) = (op, Some(mode), None, now_ms);
        let (session, token) = (lock.session, lock.token);
        if let Some(serial) = serial {
            let (status, flags) = (LockStatus::Success, at_once(flags));
            let reply = ClientReply::Completed { serial, lock: id, status, mode: Some(mode), flags, lvb: None, token };
            self.reply_about(session, id, !is_given_up, reply);
        }
        true
    }

    /// Somebody else comes: the resource gets its queues.
    pub(super) fn unfold(&mut self, number: u32) {
        let Some(place) = self.places.get_mut(number).filter(|place| place.lone != 0) else { return };
        if place.is_kept() {
            place.lone = 0;
            return self.master(number, Resource::with_counter(self.counter));
        }
        let Some(lock) = self.locks.get(place.lone) else { return };
        let entry = lock.entry(place.lone);
        let queues = self.mastered.insert(Resource::with_holder(entry, self.counter));
        if let Some(place) = self.places.get_mut(number) {
            (place.lone, place.mastered) = (0, queues);
        }
    }

    /// Nothing is left here: mastery is kept, or the home may make somebody else master.
    pub(super) fn end_mastery(&mut self, number: u32, key: &Key, counter: u64) {
        if self.keep_mastery(number, key) {
            return;
        }
        let stamp = self.places.get(number).map_or(0, |place| place.stamp);
        self.return_mastery(number, key, (counter, stamp));
        self.forget_place(number);
        self.uses_fewer(key.lockspace);
    }

    pub(super) fn return_mastery(&mut self, number: u32, key: &Key, (counter, stamp): (u64, u32)) {
        let home = self.home(key);
        if home == self.me {
            // At once: a request of this turn must not meet the old appointment, nor its token the old counter.
            self.handle_released(ME, number, counter, stamp);
        } else {
            if let Some(place) = self.places.get_mut(number).filter(|place| place.appointed == Some(ME)) {
                // It was home, too, until this view.
                place.appointed = None;
            }
            self.releases.entry(home).or_default().push_back((*key, counter, stamp));
            self.send(home, Record::Released { key: *key, counter, stamp });
        }
    }
}
