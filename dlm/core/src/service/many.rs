//! What: several new locks by one request, all or none.
//! Owns: such requests under way and the locks that they have taken so far.
//! Invariants: one lock after the other, in the order of names: two such requests never wait for each other; the client learns of the locks
//!   when it has all of them, and of who waits for them after that; whatever fails gives back what was taken.
//! Does not: decide grants.
//! Called by: `service`, its sessions and its holder's side.

use super::holder::Pending;
use super::{LockService, OPERATION_CANCELS_MAX, SESSION_LOCKS_MAX};
use crate::client::{ClientReply, NONE_FAILED, ResourceName};
use crate::legal::check_many;
use crate::mode::{Flags, LockStatus, Mode};
use crate::name::Key;
use crate::wire::OpKind;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// Most such requests of one session under way (bounds memory; chosen, no strong reason).
const SESSION_MANY_MAX: usize = 1024;

/// Session and serial.
type ManyId = (u64, u64);

#[derive(Debug)]
struct Many {
    lockspace: u32,
    /// In the order of names; each with its number in the request.
    items: Vec<(ResourceName, Mode, u16)>,
    flags: Flags,
    owner: u64,
    deadline_ms: u64,
    /// The locks of the first items.
    taken: Vec<u32>,
    /// The lock that is waited for.
    current: u32,
    is_cancelled: bool,
    /// Cancel requests to answer at the end.
    cancels: Vec<u64>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Manies {
    open: BTreeMap<ManyId, Many>,
    /// They have all their locks and wait until grants may leave.
    complete: VecDeque<ManyId>,
}

impl LockService {
    pub(super) fn lock_many(&mut self, id: ManyId, lockspace: u32, items: &[(ResourceName, Mode)], flags: Flags, times: (u64, u32)) {
        if let Err((status, failed)) = self.check_many(id, lockspace, items, flags) {
            let reply = ClientReply::ManyCompleted { serial: id.1, status, failed, locks: Vec::new() };
            return self.reply(id.0, reply);
        }
        let mut items: Vec<_> = items.iter().zip(0..).map(|((name, mode), number)| (*name, *mode, number)).collect();
        items.sort_unstable();
        let (owner, timeout_ms) = times;
        let (deadline_ms, taken, cancels) = (self.deadline(timeout_ms), Vec::new(), Vec::new());
        let many = Many { lockspace, items, flags, owner, deadline_ms, taken, current: 0, is_cancelled: false, cancels };
        self.manies.open.insert(id, many);
        self.take_next(id);
    }

    fn check_many(&self, id: ManyId, lockspace: u32, items: &[(ResourceName, Mode)], flags: Flags) -> Result<(), (LockStatus, u16)> {
        let asker = self.sessions.get(&id.0).ok_or((LockStatus::NotFound, NONE_FAILED))?;
        if self.is_stopped {
            return Err((LockStatus::Stopped, NONE_FAILED));
        }
        if !asker.lockspaces.contains(&lockspace) {
            return Err((LockStatus::NotFound, NONE_FAILED));
        }
        if items.is_empty() || check_many(flags).is_err() || self.manies.open.contains_key(&id) {
            return Err((LockStatus::Invalid, NONE_FAILED));
        }
        // Twice the same resource could wait for itself.
        let is_twice = |(number, (name, _)): &(usize, &(ResourceName, Mode))| items.iter().take(*number).any(|(other, _)| other == name);
        if let Some((number, _)) = items.iter().enumerate().find(is_twice) {
            return Err((LockStatus::Invalid, u16::try_from(number).unwrap_or(NONE_FAILED)));
        }
        let open = self.manies.open.range((id.0, 0)..=(id.0, u64::MAX)).count();
        if open >= SESSION_MANY_MAX || asker.locks.len() + items.len() > SESSION_LOCKS_MAX {
            return Err((LockStatus::NoMemory, NONE_FAILED));
        }
        Ok(())
    }

    /// Asks for the next lock; with the last one taken, the request is complete.
    fn take_next(&mut self, id: ManyId) {
        let Some(many) = self.manies.open.get(&id) else { return };
        let Some((name, mode, _)) = many.items.get(many.taken.len()).copied() else {
            return self.manies.complete.push_back(id);
        };
        if many.is_cancelled {
            return self.fail_many(id, LockStatus::Cancelled);
        }
        let (flags, owner, deadline_ms, pid) =
            (many.flags, many.owner, many.deadline_ms, self.sessions.get(&id.0).map(|asker| asker.info.pid));
        let Some(key) = Key::new(many.lockspace, name.as_bytes()) else { return };
        let place = self.places.intern(&key);
        let new = match self.add_lock(id.0, place, pid.unwrap_or(0)) {
            Ok(new) => new,
            Err(status) => return self.fail_many(id, status),
        };
        if let Some(lock) = self.locks.get_mut(new) {
            lock.is_persistent = flags.has(Flags::PERSISTENT);
            lock.set_owner(owner);
            lock.set_in_many(true);
        }
        self.begin_new(new, Pending { deadline_ms, ..Pending::new(OpKind::New, Some(id.1), mode, flags, None) });
        if let Some(many) = self.manies.open.get_mut(&id) {
            many.current = new;
        }
    }

    /// The lock that was waited for is granted or has failed.
    pub(super) fn many_went_on(&mut self, id: ManyId, lock: u32, status: LockStatus) {
        let Some(many) = self.manies.open.get_mut(&id) else { return };
        if status == LockStatus::Success {
            many.taken.push(lock);
            self.take_next(id);
        } else {
            self.fail_many(id, status);
        }
    }

    fn fail_many(&mut self, id: ManyId, status: LockStatus) {
        let Some(many) = self.manies.open.remove(&id) else { return };
        for lock in &many.taken {
            self.begin_unlock(*lock, None, Flags::NONE, None);
        }
        let failed = many.items.get(many.taken.len()).map_or(NONE_FAILED, |(.., number)| *number);
        self.reply(id.0, ClientReply::ManyCompleted { serial: id.1, status, failed, locks: Vec::new() });
        self.answer_cancels(id.0, many.cancels);
    }

    fn answer_cancels(&mut self, session: u64, cancels: Vec<u64>) {
        for serial in cancels {
            self.reply(session, Self::simple_reply(serial, 0, LockStatus::Success, None));
        }
    }

    /// Tells of the requests that have all their locks.
    pub(super) fn deliver_manies(&mut self) {
        while self.may_deliver()
            && let Some(id) = self.manies.complete.pop_front()
        {
            let Some(many) = self.manies.open.remove(&id) else { continue };
            let mut locks: Vec<_> = many.items.iter().map(|(.., number)| *number).zip(&many.taken).collect();
            locks.sort_unstable();
            let token = |lock: u32| self.locks.get(lock).map(|lock| lock.token).unwrap_or_default();
            let locks = locks.into_iter().map(|(_, lock)| (*lock, token(*lock))).collect();
            let reply = ClientReply::ManyCompleted { serial: id.1, status: LockStatus::Success, failed: NONE_FAILED, locks };
            self.reply(id.0, reply);
            self.answer_cancels(id.0, many.cancels);
            for id in many.taken {
                let Some(lock) = self.locks.get_mut(id) else { continue };
                lock.set_in_many(false);
                if let (session, Some(mode)) = (lock.session, lock.told) {
                    self.reply(session, ClientReply::Blocking { lock: id, mode });
                }
            }
        }
    }

    /// Takes such a request back, unless it has all its locks already. Is it one?
    pub(super) fn cancel_many(&mut self, session: u64, serial: u64, request: u64) -> bool {
        let Some(many) = self.manies.open.get_mut(&(session, request)) else { return false };
        if many.cancels.len() >= OPERATION_CANCELS_MAX {
            self.reply(session, Self::simple_reply(serial, 0, LockStatus::Busy, None));
            return true;
        }
        many.cancels.push(serial);
        many.is_cancelled = true;
        let current = many.current;
        self.take_back(current, LockStatus::Cancelled);
        true
    }

    /// The session is gone, and gives its locks back.
    pub(super) fn forget_manies(&mut self, session: u64) {
        let open: Vec<ManyId> = self.manies.open.range((session, 0)..=(session, u64::MAX)).map(|(id, _)| *id).collect();
        for id in open {
            self.manies.open.remove(&id);
        }
    }
}
