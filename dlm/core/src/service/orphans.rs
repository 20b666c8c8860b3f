//! What: locks that outlive their process until somebody adopts them or has them purged.
//! Owns: which locks are orphans.
//! Invariants: an orphan is held as before its process died; its operation under way is taken back; it is on no session's list.
//! Does not: know why a process is gone.
//! Called by: `service`, its sessions.

use super::LockService;
use crate::client::ClientReply;
use crate::mode::{Flags, LockStatus, Mode, ResultFlags};
use crate::name::Key;
use crate::wire::NO_SESSION;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Whoever dies while it may write leaves the value block in doubt.
pub(super) const AT_DEATH: Flags = Flags::IVVALBLK.with(Flags::FORCEUNLOCK);

/// Orphans by the place of their resource.
#[derive(Debug, Default)]
pub(super) struct Orphans(BTreeMap<u32, BTreeSet<u32>>);

impl Orphans {
    fn add(&mut self, place: u32, lock: u32) {
        self.0.entry(place).or_default().insert(lock);
    }

    pub(super) fn remove(&mut self, place: u32, lock: u32) {
        if let Some(locks) = self.0.get_mut(&place) {
            locks.remove(&lock);
            if locks.is_empty() {
                self.0.remove(&place);
            }
        }
    }

    fn at(&self, place: u32) -> impl Iterator<Item = u32> + '_ {
        self.0.get(&place).into_iter().flatten().copied()
    }

    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.values().flatten().copied()
    }
}

impl LockService {
    /// The process that had this lock is gone.
    pub(super) fn leave_behind(&mut self, id: u32) {
        self.locks.unlink(id, None);
        let Some(lock) = self.locks.get_mut(id).filter(|lock| lock.is_persistent && !lock.is_in_many()) else {
            return self.begin_unlock(id, None, AT_DEATH, None);
        };
        let session = core::mem::replace(&mut lock.session, NO_SESSION);
        let place = lock.place;
        lock.is_renamed |= lock.owner() == 0;
        if let Some(pending) = &mut lock.pending {
            pending.serial = None;
            pending.cancels.clear();
        }
        self.orphans.add(place, id);
        // Nobody is there to be told of its grants.
        self.held.retain(|(_, lock, _)| *lock != id);
        self.take_back(id, LockStatus::Cancelled);
        self.abandon_ranges(id, session);
        // Its master says of it that it is an orphan, too.
        self.advance(id);
    }

    /// A session takes over an orphan of this resource and mode.
    pub(super) fn adopt(&mut self, session: u64, serial: u64, (key, mode): (&Key, Mode), owner: u64) -> Result<(), LockStatus> {
        let place = self.places.find(key).ok_or(LockStatus::NotFound)?;
        let is_free = |id: &u32| self.locks.get(*id).is_some_and(|lock| lock.pending.is_none());
        let is_it = |id: &u32| is_free(id) && self.locks.get(*id).is_some_and(|lock| lock.granted == Some(mode));
        let Some(id) = self.orphans.at(place).find(is_it) else {
            let all_free = self.orphans.at(place).map(|id| is_free(&id)).reduce(|all, is_free| all && is_free);
            return Err(match all_free {
                None => LockStatus::NotFound,
                Some(true) => LockStatus::Again,
                // What is still being taken back may yet be in this mode.
                Some(false) => LockStatus::Busy,
            });
        };
        let Some(asker) = self.sessions.get_mut(&session) else { return Err(LockStatus::NotFound) };
        self.orphans.remove(place, id);
        self.locks.link(id, &mut asker.locks);
        let Some(lock) = self.locks.get_mut(id) else { return Err(LockStatus::NotFound) };
        (lock.session, lock.pid, lock.told, lock.is_renamed) = (session, asker.info.pid, None, true);
        lock.set_owner(owner);
        let (token, flags, status) = (lock.token, ResultFlags::default(), LockStatus::Success);
        let reply = ClientReply::Completed { serial, lock: id, status, mode: Some(mode), flags, lvb: None, token };
        self.reply_about(session, id, true, reply);
        self.advance(id);
        Ok(())
    }

    /// Gives back the orphans that a process left in a lockspace; 0: every process.
    pub(super) fn purge(&mut self, lockspace: u32, pid: u32) {
        let is_it = |id: &u32| {
            let lock = self.locks.get(*id);
            let is_there = |place| self.places.get(place).is_some_and(|place| place.lockspace == lockspace);
            lock.is_some_and(|lock| (pid == 0 || lock.pid == pid) && is_there(lock.place))
        };
        let purged: Vec<u32> = self.orphans.iter().filter(is_it).collect();
        for id in purged {
            self.begin_unlock(id, None, AT_DEATH, None);
        }
    }
}
