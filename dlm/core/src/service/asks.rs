//! What: what a client wants to know of other nodes or have done there: who holds a resource, and the purge of orphans.
//! Owns: the questions that are not answered yet.
//! Invariants: each is answered once; one whose answer was lost with a view is asked again in the next.
//! Does not: decide about locks.
//! Called by: `service`, its sessions and its recovery.

use super::{LockService, places::Place};
use crate::client::{ALL_SLOTS, ClientReply, QUERIED_LOCKS_MAX, QueriedLock, ResourceName};
use crate::mode::LockStatus;
use crate::name::Key;
use crate::queue::Entry;
use crate::wire::{LvbCopy, Party, Record};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;

#[derive(Clone, Debug)]
enum What {
    Query(Key),
    /// `awaited`: who has not answered in this view.
    Purge {
        lockspace: u32,
        slot: u16,
        pid: u32,
        awaited: BTreeSet<Life>,
    },
}

#[derive(Debug)]
struct Ask {
    session: u64,
    serial: u64,
    what: What,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Asks {
    last: u64,
    open: BTreeMap<u64, Ask>,
    /// As home: questions about resources of which too little is known yet.
    parked: Vec<(Key, u64, Life)>,
}

impl Asks {
    /// In a new view each is asked again.
    pub(super) fn forget_parked(&mut self) {
        self.parked.clear();
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

fn queried(entry: &Entry, slot: u16, now_ms: u64) -> QueriedLock {
    let owner = if let Party::Transaction(number) = entry.party() { number } else { 0 };
    let age_ms = now_ms.saturating_sub(entry.since_ms);
    let (pid, lock, granted, wanted) = (entry.pid, entry.owner.lock, entry.granted, entry.wanted);
    QueriedLock { slot, pid, lock, owner, granted, wanted, age_ms }
}

impl LockService {
    pub(super) fn query(&mut self, session: u64, serial: u64, lock: u32) {
        let place = self.own_lock(session, lock).map(|lock| lock.place);
        match place.ok().and_then(|place| self.places.key(place)) {
            Some(key) => self.begin_ask(session, serial, What::Query(key)),
            None => self.answer_query(session, serial, None, (LvbCopy::default(), 0, Vec::new())),
        }
    }

    pub(super) fn query_resource(&mut self, session: u64, serial: u64, lockspace: u32, resource: &ResourceName) {
        match Key::new(lockspace, resource.as_bytes()).filter(|_| self.has_joined(session, lockspace)) {
            Some(key) => self.begin_ask(session, serial, What::Query(key)),
            None => self.answer_query(session, serial, None, (LvbCopy::default(), 0, Vec::new())),
        }
    }

    pub(super) fn ask_purge(&mut self, session: u64, serial: u64, lockspace: u32, (slot, pid): (u16, u32)) {
        let is_known = slot == ALL_SLOTS || slot == self.me.slot.0 || self.view.members.iter().any(|life| life.slot.0 == slot);
        if !is_known || !self.has_joined(session, lockspace) {
            return self.reply(session, Self::simple_reply(serial, 0, LockStatus::NotFound, None));
        }
        if slot == ALL_SLOTS || slot == self.me.slot.0 {
            self.purge(lockspace, pid);
        }
        #[cfg(any(test, feature = "planted"))]
        let slot = if self.mistake == Some(super::Mistake::PurgeHere) { self.me.slot.0 } else { slot };
        self.begin_ask(session, serial, What::Purge { lockspace, slot, pid, awaited: BTreeSet::new() });
    }

    fn has_joined(&self, session: u64, lockspace: u32) -> bool {
        self.sessions.get(&session).is_some_and(|session| session.lockspaces.contains(&lockspace))
    }

    fn begin_ask(&mut self, session: u64, serial: u64, what: What) {
        self.asks.last += 1;
        self.asks.open.insert(self.asks.last, Ask { session, serial, what });
        self.ask(self.asks.last);
    }

    /// Asks, in this view, unless a recovery has to end first.
    fn ask(&mut self, request: u64) {
        if !self.is_running() {
            return;
        }
        let others = self.others();
        let Some(ask) = self.asks.open.get_mut(&request) else { return };
        match &mut ask.what {
            What::Query(key) => {
                let key = *key;
                let to = self.master_near(&key);
                self.send(to, Record::Query { key, request, asker: self.me });
            }
            What::Purge { lockspace, slot, pid, awaited } => {
                let is_meant = |life: &Life| *slot == ALL_SLOTS || *slot == life.slot.0;
                let (lockspace, pid, to): (u32, u32, Vec<Life>) = (*lockspace, *pid, others.into_iter().filter(is_meant).collect());
                *awaited = to.iter().copied().collect();
                for life in to {
                    self.send(life, Record::Purge { request, lockspace, pid });
                }
                self.finish_purge(request);
            }
        }
    }

    /// Answers to questions of older views are lost.
    pub(super) fn ask_again(&mut self) {
        let open: Vec<u64> = self.asks.open.keys().copied().collect();
        for request in open {
            self.ask(request);
        }
    }

    pub(super) fn forget_asks(&mut self, session: u64) {
        self.asks.open.retain(|_, ask| ask.session != session);
    }

    /// The master as far as it is known here, else the home, who knows.
    fn master_near(&self, key: &Key) -> Life {
        let place = self.places.find(key).and_then(|place| self.places.get(place));
        if place.is_some_and(Place::is_master) {
            return self.me;
        }
        let master = place.filter(|place| place.locks != 0).and_then(|place| place.master).and_then(|master| self.peers.life(master));
        master.filter(|life| self.is_member(life)).unwrap_or_else(|| self.home(key))
    }

    /// The master answers. Anybody else hands the question on to the home, and the home to the master: a master that has just given the
    /// resource back said so on the same link before.
    pub(super) fn answer_parked(&mut self) {
        for (key, request, asker) in core::mem::take(&mut self.asks.parked) {
            self.handle_query(key, request, asker);
        }
    }

    pub(super) fn handle_query(&mut self, key: Key, request: u64, asker: Life) {
        let number = self.places.find(&key);
        let place = number.and_then(|number| self.places.get(number));
        let home = self.home(&key);
        let appointed = place.and_then(|place| place.appointed).and_then(|master| self.peers.life(master));
        let appointed = appointed.filter(|life| *life != self.me && self.is_member(life));
        let (lvb, left_out, locks) = match place {
            Some(place) if place.is_master() => self.list_locks(place),
            _ if home != self.me => return self.send(home, Record::Query { key, request, asker }),
            _ => match appointed {
                Some(master) => return self.send(master, Record::Query { key, request, asker }),
                None if !self.is_free(number.unwrap_or(0), &key) => {
                    // What is lost is listed when it was rebuilt.
                    return self.asks.parked.push((key, request, asker));
                }
                // Nobody has or wants it.
                None => (LvbCopy::default(), 0, Vec::new()),
            },
        };
        if self.is_member(&asker) {
            self.send(asker, Record::Queried { request, lvb, left_out, locks });
        }
    }

    fn list_locks(&self, place: &Place) -> (LvbCopy, u32, Vec<QueriedLock>) {
        let Some(resource) = self.mastered.get(place.mastered) else {
            let lone = self.locks.get(place.lone).map(|lock| queried(&lock.entry(place.lone), self.me.slot.0, self.now_ms));
            return (LvbCopy::default(), 0, lone.into_iter().collect());
        };
        let slot = |entry: &Entry| self.peers.life(entry.owner.peer).map_or(0, |life| life.slot.0);
        let mut entries = resource.entries();
        let locks = entries.by_ref().take(QUERIED_LOCKS_MAX).map(|entry| queried(entry, slot(entry), self.now_ms)).collect();
        (resource.lvb(), u32::try_from(entries.count()).unwrap_or(u32::MAX), locks)
    }

    pub(super) fn handle_queried(&mut self, request: u64, answer: (LvbCopy, u32, Vec<QueriedLock>)) {
        if let Some(Ask { what: What::Query(_), .. }) = self.asks.open.get(&request)
            && let Some(Ask { session, serial, what: What::Query(key) }) = self.asks.open.remove(&request)
        {
            self.answer_query(session, serial, ResourceName::new(key.name()), answer);
        }
    }

    fn answer_query(
        &mut self,
        session: u64,
        serial: u64,
        resource: Option<ResourceName>,
        (lvb, left_out, locks): (LvbCopy, u32, Vec<QueriedLock>),
    ) {
        let status = if resource.is_some() { LockStatus::Success } else { LockStatus::NotFound };
        self.reply(session, ClientReply::Queried { serial, status, resource, lvb, left_out, locks });
    }

    pub(super) fn handle_purge(&mut self, from: Life, request: u64, lockspace: u32, pid: u32) {
        self.purge(lockspace, pid);
        self.send(from, Record::Purged { request });
    }

    pub(super) fn handle_purged(&mut self, from: Life, request: u64) {
        if let Some(Ask { what: What::Purge { awaited, .. }, .. }) = self.asks.open.get_mut(&request) {
            awaited.remove(&from);
            self.finish_purge(request);
        }
    }

    fn finish_purge(&mut self, request: u64) {
        if let Some(Ask { session, serial, what: What::Purge { awaited, .. } }) = self.asks.open.get(&request)
            && awaited.is_empty()
        {
            let (session, reply) = (*session, Self::simple_reply(*serial, 0, LockStatus::Success, None));
            self.asks.open.remove(&request);
            self.reply(session, reply);
        }
    }
}
