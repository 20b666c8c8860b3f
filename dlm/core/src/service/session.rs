//! What: what clients ask, judged; and the joining of lockspaces.
//! Owns: sessions, the lockspaces this node uses.
//! Invariants: a lockspace is used only after every member of the present view knows that this node has joined it.
//! Does not: read sockets; the server hands typed frames in.
//! Called by: `service`.

use super::holder::{LocalLock, Pending};
use super::{
    LockService, Lockspace, NODE_LOCKSPACES_MAX, OPERATION_CANCELS_MAX, SESSION_LOCKS_MAX, SESSION_LOCKSPACES_MAX, SESSION_REQUESTS_MAX,
};
use crate::client::{CLIENT_VERSION, ClientReply, ClientRequest, LOCKSPACE_BYTES_MAX, Lvb, ResourceName};
use crate::legal::{check_convert, check_lock, check_unlock};
use crate::mode::{Flags, LockStatus, Mode};
use crate::name::{Key, lockspace_number};
use crate::wire::{OpKind, Record};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;

/// What a new lock and a conversion have in common.
#[derive(Clone, Copy, Debug)]
struct Wish {
    mode: Mode,
    flags: Flags,
    owner: u64,
    deadline_ms: u64,
}

/// The serial to answer; none for a posted request.
fn answered(serial: u64) -> Option<u64> {
    (serial != 0).then_some(serial)
}

impl LockService {
    pub(super) fn handle_request(&mut self, session: u64, request: ClientRequest) {
        let Some(asker) = self.sessions.get_mut(&session) else { return };
        if !matches!(request, ClientRequest::Hello { .. }) && !request.is_posted() {
            asker.unanswered += 1;
            if asker.unanswered > SESSION_REQUESTS_MAX {
                let reason = "this session has too many requests without an answer; wait for some of them";
                return self.refuse(session, request.serial(), LockStatus::NoMemory, reason);
            }
        }
        match request {
            ClientRequest::Hello { .. } => {
                let (slot, view) = (self.me.slot.0, self.view.number);
                self.reply(session, ClientReply::Welcome { version: CLIENT_VERSION, slot, view });
            }
            ClientRequest::JoinLockspace { serial, name } => self.join_lockspace(session, serial, name),
            ClientRequest::LeaveLockspace { serial, lockspace } => self.leave_lockspace(session, serial, lockspace),
            ClientRequest::Lock { serial, lockspace, resource, mode, flags, owner, timeout_ms, lvb: _ } => {
                let wish = Wish { mode, flags, owner, deadline_ms: self.deadline(timeout_ms) };
                let done = self.lock(session, serial, (lockspace, &resource), wish);
                self.reply_unless_begun(session, Some(serial), 0, done);
            }
            ClientRequest::Convert { serial, lock, mode, flags, owner, timeout_ms, lvb } => {
                let wish = Wish { mode, flags, owner, deadline_ms: self.deadline(timeout_ms) };
                let done = self.convert(session, serial, lock, wish, lvb);
                self.reply_unless_begun(session, answered(serial), lock, done);
            }
            ClientRequest::Unlock { serial, lock, flags, lvb } => {
                let done = self.unlock(session, serial, lock, flags, lvb);
                self.reply_unless_begun(session, answered(serial), lock, done);
            }
            ClientRequest::Cancel { serial, lock } => self.cancel(session, serial, Some(lock)),
            ClientRequest::CancelRequest { serial, request } if self.cancel_many(session, serial, request) => {}
            ClientRequest::CancelRequest { serial, request } => {
                if self.cancel_range(session, serial, request) {
                    return;
                }
                let found = self.find_request(session, request);
                self.cancel(session, serial, found);
            }
            more => self.handle_more(session, more),
        }
    }

    /// The kinds that are not needed for every lock.
    fn handle_more(&mut self, session: u64, request: ClientRequest) {
        let (serial, status) = (request.serial(), LockStatus::Invalid);
        match request {
            ClientRequest::LockMany { lockspace, items, flags, owner, timeout_ms, .. } => {
                self.lock_many((session, serial), lockspace, &items, flags, (owner, timeout_ms));
            }
            ClientRequest::Query { lock, .. } => self.query(session, serial, lock),
            ClientRequest::QueryResource { lockspace, resource, .. } => self.query_resource(session, serial, lockspace, &resource),
            ClientRequest::Purge { lockspace, slot, pid, .. } => self.ask_purge(session, serial, lockspace, (slot, pid)),
            ClientRequest::Range { .. } | ClientRequest::RangeQuery { .. } => self.handle_range_request(session, request),
            _ => self.reply(session, Self::simple_reply(serial, 0, status, None)),
        }
    }

    /// What became no operation is answered at once, unless it was posted.
    pub(super) fn reply_unless_begun(&mut self, session: u64, serial: Option<u64>, lock: u32, begun: Result<(), LockStatus>) {
        if let (Some(serial), Err(status)) = (serial, begun) {
            let granted = self.own_lock(session, lock).ok().and_then(|lock| lock.granted);
            self.reply(session, Self::simple_reply(serial, lock, status, granted));
        }
    }

    fn refuse(&mut self, session: u64, serial: u64, status: LockStatus, reason: &str) {
        self.reply(session, ClientReply::Refused { serial, status, reason: reason.into() });
    }

    fn lock(&mut self, session: u64, serial: u64, (lockspace, name): (u32, &ResourceName), wish: Wish) -> Result<(), LockStatus> {
        let Wish { mode, flags, owner: party, deadline_ms } = wish;
        if self.is_stopped {
            return Err(LockStatus::Stopped);
        }
        let owner = self.sessions.get(&session).ok_or(LockStatus::NotFound)?;
        if !owner.lockspaces.contains(&lockspace) {
            return Err(LockStatus::NotFound);
        }
        if owner.locks.len() >= SESSION_LOCKS_MAX {
            return Err(LockStatus::NoMemory);
        }
        let key = Key::new(lockspace, name.as_bytes()).filter(|_| check_lock(mode, flags).is_ok()).ok_or(LockStatus::Invalid)?;
        let pid = owner.info.pid;
        if flags.has(Flags::ORPHAN) {
            return self.adopt(session, serial, (&key, mode), party);
        }
        let place = self.places.intern(&key);
        let is_first = self.is_first(place, &key);
        let id = self.add_lock(session, place, pid)?;
        if let Some(lock) = self.locks.get_mut(id) {
            lock.is_persistent = flags.has(Flags::PERSISTENT);
            lock.set_owner(party);
        }
        if is_first {
            self.grant_alone(id, serial, (mode, flags));
        } else {
            self.begin_new(id, Pending { deadline_ms, ..Pending::new(OpKind::New, Some(serial), mode, flags, None) });
        }
        Ok(())
    }

    /// Asks for a new lock at the resource's master.
    pub(super) fn begin_new(&mut self, id: u32, pending: Pending) {
        let Some(lock) = self.locks.get_mut(id) else { return };
        self.deadlines.add(pending.deadline_ms, lock.op, id);
        lock.pending = Some(Box::new(pending));
        self.advance(id);
    }

    pub(super) fn own_lock(&mut self, session: u64, id: u32) -> Result<&mut LocalLock, LockStatus> {
        self.locks.get_mut(id).filter(|lock| lock.session == session && !lock.is_in_many()).ok_or(LockStatus::NotFound)
    }

    fn convert(&mut self, session: u64, serial: u64, id: u32, wish: Wish, lvb: Option<Lvb>) -> Result<(), LockStatus> {
        let Wish { mode, flags, owner, deadline_ms } = wish;
        let op = self.locks.next_op();
        let lock = self.own_lock(session, id)?;
        let granted = lock.granted.filter(|_| lock.pending.is_none()).ok_or(LockStatus::Busy)?;
        if check_convert(granted, mode, flags, lvb.as_ref()).is_err() {
            return Err(LockStatus::Invalid);
        }
        let is_down = mode < granted && granted.is_down(mode);
        if serial == 0 && !is_down {
            return Err(LockStatus::Invalid);
        }
        lock.is_renamed |= lock.owner() != owner;
        lock.is_persistent = flags.has(Flags::PERSISTENT);
        lock.set_owner(owner);
        if self.convert_alone(id, answered(serial), mode, flags) {
            return Ok(());
        }
        let is_silent = !flags.has(Flags::VALBLK) && !flags.has(Flags::IVVALBLK);
        let at = self.own_lock(session, id)?.at;
        let is_lost = at.is_none_or(|at| !self.is_peer_member(at));
        let lock = self.own_lock(session, id)?;
        lock.op = op;
        lock.pending = Some(Box::new(Pending { deadline_ms, ..Pending::new(OpKind::Convert, answered(serial), mode, flags, lvb) }));
        self.deadlines.add(deadline_ms, op, id);
        if is_lost && is_down && is_silent && self.view.is_member {
            // Whoever becomes master hears of it; nobody has to wait for that.
            self.end_given_up(id, mode);
        } else {
            self.advance(id);
        }
        Ok(())
    }

    fn unlock(&mut self, session: u64, serial: u64, id: u32, flags: Flags, lvb: Option<Lvb>) -> Result<(), LockStatus> {
        let has_range_ops = self.has_range_ops(session, id);
        let lock = self.own_lock(session, id)?;
        if check_unlock(lock.granted, flags, lvb.as_ref()).is_err() {
            return Err(LockStatus::Invalid);
        }
        if (lock.pending.is_some() || has_range_ops) && !flags.has(Flags::FORCEUNLOCK) {
            return Err(LockStatus::Busy);
        }
        if let Some(unlocking) = lock.pending.as_mut().filter(|pending| pending.kind == OpKind::Unlock) {
            // It is on its way back already: what is forced succeeds with that.
            if unlocking.cancels.len() >= OPERATION_CANCELS_MAX {
                return Err(LockStatus::Busy);
            }
            unlocking.cancels.extend(answered(serial));
            return Ok(());
        }
        self.begin_unlock(id, answered(serial), flags, lvb);
        Ok(())
    }

    /// The lock whose operation a client knows by this serial. Locks that wait are mostly the newest ones; when as many were seen as there are
    /// requests without an answer, the others, often far more, are not looked at.
    fn find_request(&self, session: u64, request: u64) -> Option<u32> {
        let asker = self.sessions.get(&session)?;
        let serial = |id: u32| self.locks.get(id)?.pending.as_ref()?.serial.map(|serial| (id, serial));
        // The cancel itself has no answer yet either.
        let mut under_way = self.locks.list(&asker.locks).filter_map(serial).take(asker.unanswered.saturating_sub(1));
        under_way.find(|(_, serial)| *serial == request).map(|(id, _)| id)
    }

    fn cancel(&mut self, session: u64, serial: u64, id: Option<u32>) {
        let id = id.unwrap_or(0);
        let Ok(lock) = self.own_lock(session, id) else {
            return self.reply(session, Self::simple_reply(serial, id, LockStatus::NotFound, None));
        };
        let granted = lock.granted;
        let Some(pending) = lock.pending.as_mut().filter(|pending| pending.kind != OpKind::Unlock) else {
            return self.reply_about(session, id, false, Self::simple_reply(serial, id, LockStatus::Success, granted));
        };
        if pending.cancels.len() >= OPERATION_CANCELS_MAX {
            return self.reply(session, Self::simple_reply(serial, id, LockStatus::Busy, granted));
        }
        pending.cancels.push(serial);
        self.take_back(id, LockStatus::Cancelled);
    }

    pub(super) fn close_session(&mut self, id: u64) {
        let Some(session) = self.sessions.remove(&id) else { return };
        self.forget_asks(id);
        self.forget_manies(id);
        let is_idle = |id: &u32| self.locks.get(*id).is_none_or(|lock| lock.pending.is_none());
        let (idle, waiting): (Vec<u32>, Vec<u32>) = self.locks.list(&session.locks).partition(is_idle);
        // What waits goes first: nothing is granted to the dead, and no value block comes in doubt by it.
        for lock in waiting.into_iter().chain(idle) {
            self.leave_behind(lock);
        }
        for lockspace in session.lockspaces {
            if let Some(lockspace) = self.lockspaces.get_mut(&lockspace) {
                lockspace.sessions.remove(&id);
            }
            self.leave_if_unused(lockspace);
        }
        for number in session.joining {
            if let Some(lockspace) = self.lockspaces.get_mut(&number) {
                lockspace.asked.retain(|(session, _)| *session != id);
            }
            self.leave_if_unused(number);
        }
    }

    fn join_lockspace(&mut self, session: u64, serial: u64, name: Vec<u8>) {
        // What is left of the dead in a lockspace that the node has must stay within reach: a node does not stop before it is purged.
        if self.is_stopped && !self.lockspaces.get(&lockspace_number(&name)).is_some_and(|lockspace| lockspace.is_joined) {
            return self.refuse(session, serial, LockStatus::Stopped, "the node stops; nothing new is begun");
        }
        if name.is_empty() || name.len() > LOCKSPACE_BYTES_MAX {
            return self.refuse(session, serial, LockStatus::Invalid, "a lockspace name has 1 to 64 bytes");
        }
        let number = lockspace_number(&name);
        if self.names.get(&number).is_some_and(|known| *known != name) {
            return self.refuse(session, serial, LockStatus::Invalid, "another lockspace has the same number; choose another name");
        }
        if let Err((status, reason)) = self.may_join(session, number) {
            return self.refuse(session, serial, status, reason);
        }
        if let Some(asker) = self.sessions.get_mut(&session) {
            asker.joining.insert(number);
        }
        self.names.insert(number, name.clone());
        let lockspace = self.lockspaces.entry(number).or_insert_with(|| Lockspace {
            name: name.clone(),
            is_joined: false,
            announced_in: None,
            announcement: 0,
            confirmed: BTreeSet::new(),
            sessions: BTreeSet::new(),
            uses: 0,
            asked: Vec::new(),
        });
        lockspace.asked.push((session, serial));
        self.joins.entry(self.me).or_default().insert(number);
        self.announce(number);
        self.finish_join(number);
    }

    fn may_join(&self, session: u64, number: u32) -> Result<(), (LockStatus, &'static str)> {
        let Some(asker) = self.sessions.get(&session) else { return Ok(()) };
        if asker.joining.contains(&number) {
            return Err((LockStatus::Busy, "this session waits for that lockspace already"));
        }
        if !asker.lockspaces.contains(&number) && asker.lockspaces.len() + asker.joining.len() >= SESSION_LOCKSPACES_MAX {
            return Err((LockStatus::NoMemory, "this session has too many lockspaces; leave one"));
        }
        if !self.lockspaces.contains_key(&number) && self.lockspaces.len() >= NODE_LOCKSPACES_MAX {
            return Err((LockStatus::NoMemory, "this node has too many lockspaces; leave one"));
        }
        Ok(())
    }

    /// Tells the members that this node will use the lockspace, once per view.
    pub(super) fn announce(&mut self, number: u32) {
        if !self.is_running() {
            return;
        }
        let view = self.view.number;
        let Some(lockspace) = self.lockspaces.get_mut(&number) else { return };
        if lockspace.is_joined || lockspace.announced_in == Some(view) {
            return;
        }
        lockspace.announced_in = Some(view);
        lockspace.confirmed.clear();
        self.last_announcement += 1;
        lockspace.announcement = self.last_announcement;
        let record = Record::Join { announcement: lockspace.announcement, name: lockspace.name.clone() };
        self.send_others(&record);
    }

    /// Joined when every member has confirmed in this view; then whoever asked is told.
    pub(super) fn finish_join(&mut self, number: u32) {
        let others = self.others();
        let (is_running, view) = (self.is_running(), self.view.number);
        let Some(lockspace) = self.lockspaces.get_mut(&number) else { return };
        if !lockspace.is_joined {
            let is_announced = is_running && lockspace.announced_in == Some(view);
            lockspace.is_joined = is_announced && others.iter().all(|life| lockspace.confirmed.contains(life));
        }
        if !lockspace.is_joined {
            return;
        }
        for (session, serial) in core::mem::take(&mut lockspace.asked) {
            let Some(asker) = self.sessions.get_mut(&session) else { continue };
            asker.joining.remove(&number);
            asker.lockspaces.insert(number);
            if let Some(lockspace) = self.lockspaces.get_mut(&number) {
                lockspace.sessions.insert(session);
            }
            self.reply(session, ClientReply::Joined { serial, lockspace: number });
        }
    }

    pub(super) fn handle_join(&mut self, from: Life, announcement: u64, name: Vec<u8>) {
        let lockspace = lockspace_number(&name);
        let is_refused = *self.names.entry(lockspace).or_insert_with(|| name.clone()) != name;
        if !is_refused {
            self.joins.entry(from).or_default().insert(lockspace);
        }
        if announcement != 0 {
            self.send(from, Record::JoinAnswer { lockspace, announcement, is_refused });
        }
    }

    pub(super) fn handle_join_answer(&mut self, from: Life, number: u32, announcement: u64, is_refused: bool) {
        let Some(lockspace) = self.lockspaces.get_mut(&number) else { return };
        let is_other = lockspace.announcement != announcement;
        if is_other {
            return;
        }
        if !is_refused {
            lockspace.confirmed.insert(from);
            return self.finish_join(number);
        }
        let asked = core::mem::take(&mut lockspace.asked);
        for (session, serial) in asked {
            if let Some(asker) = self.sessions.get_mut(&session) {
                asker.joining.remove(&number);
            }
            self.refuse(session, serial, LockStatus::Invalid, "another lockspace has the same number; choose another name");
        }
        self.leave_if_unused(number);
    }

    fn leave_lockspace(&mut self, session: u64, serial: u64, number: u32) {
        let Some(owner) = self.sessions.get_mut(&session) else { return };
        let places = &self.places;
        // What is on its way back is no use of it: its client may never have heard of it.
        let is_kept = |lock: &&LocalLock| lock.pending.as_ref().is_none_or(|pending| pending.kind != OpKind::Unlock);
        let is_in = |id: u32| {
            let place = self.locks.get(id).filter(is_kept).and_then(|lock| places.get(lock.place));
            place.is_some_and(|place| place.lockspace == number)
        };
        if self.locks.list(&owner.locks).any(is_in) {
            return self.refuse(session, serial, LockStatus::Busy, "this session has locks in the lockspace; unlock them first");
        }
        if !owner.lockspaces.remove(&number) {
            return self.refuse(session, serial, LockStatus::NotFound, "this session has not joined that lockspace");
        }
        if let Some(lockspace) = self.lockspaces.get_mut(&number) {
            lockspace.sessions.remove(&session);
        }
        self.reply(session, ClientReply::LockspaceLeft { serial });
        self.leave_if_unused(number);
    }

    /// Nobody here uses the lockspace and nothing of it is here: the others may forget that this node had joined it.
    pub(super) fn leave_if_unused(&mut self, number: u32) {
        let is_unused = |lockspace: &Lockspace| lockspace.sessions.is_empty() && lockspace.asked.is_empty() && lockspace.uses == 0;
        if !self.lockspaces.get(&number).is_some_and(is_unused) {
            return;
        }
        self.give_kept_back(Some(number));
        self.lockspaces.remove(&number);
        self.joins.entry(self.me).or_default().remove(&number);
        if self.is_running() {
            self.send_others(&Record::Leave { lockspace: number });
        }
        self.forget_name(number);
    }

    /// A name is kept while somebody has joined its lockspace.
    pub(super) fn forget_name(&mut self, number: u32) {
        let is_joined = self.lockspaces.contains_key(&number) || self.joins.values().any(|joined| joined.contains(&number));
        if !is_joined {
            self.names.remove(&number);
        }
    }
}
