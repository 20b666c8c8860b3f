//! What: the service as holder: the locks of this node's sessions and their operations under way.
//! Owns: local locks, their operation numbers, which master each resource has.
//! Invariants: one operation per lock at a time; each is sent to one master per view and answered to its client exactly once.
//! Does not: decide grants.
//! Called by: `service`, its sessions and its recovery.

use super::locks::{LockList, NODE_LOCKS_MAX, Near};
use super::{LockService, authority};
use crate::client::{ClientReply, Lvb};
use crate::mode::{Flags, LockStatus, LvbTransfer, Mode, ResultFlags, Token};
use crate::name::Key;
use crate::peers::{ME, PeerId};
use crate::wire::{LvbCopy, NO_SESSION, OpKind, OpResult, Party, Record};
use alloc::boxed::Box;
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;

/// Where an operation under way is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sent {
    /// No node has it.
    Unsent,
    /// The request went to the home, which may be master and have taken it.
    ToHome,
    /// The master has it, or will have it by this recovery.
    ToMaster,
}

/// Locks of a resource that wait to hear who is master.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    /// The one that has asked the home; 0: none.
    asking: u32,
    waiting: Vec<u32>,
}

impl Lookups {
    pub(super) fn locks(self) -> impl Iterator<Item = u32> {
        [self.asking].into_iter().filter(|id| *id != 0).chain(self.waiting)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) kind: OpKind,
    /// `None`: nobody waits for the answer.
    pub(super) serial: Option<u64>,
    pub(super) mode: Mode,
    pub(super) flags: Flags,
    pub(super) lvb: Option<Box<Lvb>>,
    pub(super) sent: Sent,
    pub(super) is_cancelled: bool,
    pub(super) is_cancel_sent: bool,
    /// How it ends when it was taken back.
    pub(super) ends_as: LockStatus,
    /// When it is taken back; 0: never.
    pub(super) deadline_ms: u64,
    /// The master that it was told of was none.
    pub(super) is_retry: bool,
    /// Cancel requests to answer when the operation has ended.
    pub(super) cancels: Vec<u64>,
}

impl Pending {
    pub(super) fn new(kind: OpKind, serial: Option<u64>, mode: Mode, flags: Flags, lvb: Option<Lvb>) -> Self {
        let sent = Sent::Unsent;
        let ends_as = LockStatus::Cancelled;
        Self {
            kind,
            serial,
            mode,
            flags,
            lvb: lvb.map(Box::new),
            sent,
            is_cancelled: false,
            is_cancel_sent: false,
            ends_as,
            deadline_ms: 0,
            is_retry: false,
            cancels: Vec::new(),
        }
    }

    pub(super) fn lvb(&self) -> Option<Lvb> {
        self.lvb.as_deref().copied()
    }
}

#[derive(Clone, Debug)]
pub(super) struct LocalLock {
    pub(super) session: u64,
    /// Of its resource.
    pub(super) place: u32,
    pub(super) pid: u32,
    pub(super) op: u64,
    pub(super) granted: Option<Mode>,
    pub(super) token: Token,
    /// None: as by default.
    rare: Option<Box<Rare>>,
    pub(super) pending: Option<Box<Pending>>,
    /// The node that has the lock or its request: everything about this lock goes there, whoever becomes master after it.
    pub(super) at: Option<PeerId>,
    /// Last mode of a blocking callback since the last completion.
    pub(super) told: Option<Mode>,
    pub(super) since_ms: u64,
    /// It outlives its process (so its last request or conversion said).
    pub(super) is_persistent: bool,
    /// Its master knows it under another process or owner.
    pub(super) is_renamed: bool,
    /// It was converted down since it was reported, and its master may not know that yet.
    pub(super) is_lowered: bool,
    pub(super) round: u8,
    pub(super) near: Near,
}

/// There are millions of them.
const _: () = assert!(size_of::<Option<LocalLock>>() == 80);

/// What most locks do without.
#[derive(Clone, Default, Debug)]
struct Rare {
    /// Number of the transaction that it is for; 0: the session.
    owner: u64,
    /// It was asked for with others, and its session has not been told of it.
    is_in_many: bool,
    lvb: LvbCopy,
}

impl LocalLock {
    /// Not on its session's list yet, and without a number for itself or its operation.
    pub(super) fn new(session: u64, place: u32, pid: u32, now_ms: u64) -> Self {
        Self {
            session,
            place,
            pid,
            op: 0,
            granted: None,
            token: Token::default(),
            rare: None,
            pending: None,
            at: None,
            told: None,
            since_ms: now_ms,
            is_persistent: false,
            is_renamed: false,
            is_lowered: false,
            round: 0,
            near: Near::default(),
        }
    }

    pub(super) fn lvb(&self) -> LvbCopy {
        self.rare.as_ref().map(|rare| rare.lvb).unwrap_or_default()
    }

    fn set_lvb(&mut self, lvb: LvbCopy) {
        if self.lvb() != lvb {
            self.rare_mut().lvb = lvb;
        }
    }

    pub(super) fn owner(&self) -> u64 {
        self.rare.as_ref().map_or(0, |rare| rare.owner)
    }

    pub(super) fn set_owner(&mut self, owner: u64) {
        if self.owner() != owner {
            self.rare_mut().owner = owner;
        }
    }

    pub(super) fn is_in_many(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.is_in_many)
    }

    pub(super) fn set_in_many(&mut self, is_in_many: bool) {
        if self.is_in_many() != is_in_many {
            self.rare_mut().is_in_many = is_in_many;
        }
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub(super) fn party(&self) -> Party {
        match self.owner() {
            0 => Party::Session(self.session),
            owner => Party::Transaction(owner),
        }
    }

    /// A home, or a new master, may have its report.
    fn is_reported(&self) -> bool {
        self.at.is_none() && self.pending.as_ref().is_some_and(|pending| pending.sent == Sent::ToMaster)
    }

    /// Its client is done with it; only its next master is still to hear that.
    pub(super) fn is_left(&self) -> bool {
        self.session == NO_SESSION && self.granted.is_none() && self.is_reported()
    }

    /// The number under which its master hears that it was converted down while that master was not known: of an operation that nobody waits
    /// for.
    pub(super) fn lowered_by(&self) -> Option<u64> {
        let op = if self.pending.is_some() { self.op.saturating_sub(1) } else { self.op };
        self.is_lowered.then_some(op)
    }

    /// What only gives up is as good as done: it is never taken back.
    fn is_giving_up(&self) -> bool {
        let pending = self.pending.as_ref().filter(|pending| pending.kind == OpKind::Convert);
        pending.zip(self.granted).is_some_and(|(pending, granted)| pending.mode < granted && granted.is_down(pending.mode))
    }
}

impl LockService {
    /// Sends what can be sent of a lock's operation.
    pub(super) fn advance(&mut self, id: u32) {
        if !self.is_running() {
            return self.stalled.push(id);
        }
        self.tell_name(id);
        let (peers, members) = (&self.peers, &self.view.members);
        let is_member = |peer: &PeerId| peers.life(*peer).is_some_and(|life| members.contains(&life));
        let Some(lock) = self.locks.get_mut(id) else { return };
        let (op, pid, party) = (lock.op, lock.pid, lock.party());
        let Some(pending) = &mut lock.pending else { return };
        let Some(key) = self.places.key(lock.place) else { return };
        let Some(place) = self.places.get_mut(lock.place) else { return };
        if place.is_master() {
            place.master = Some(ME);
        }
        let (mode, flags, is_retry) = (pending.mode, pending.flags, pending.is_retry);
        let request = |is_lookup| Record::Request { key, lock: id, pid, party, op, mode, flags, is_lookup, is_retry };
        let mut records = Vec::new();
        // What is held belongs to the master that has it, and to nobody else that may be named.
        let named = place.master.filter(|_| lock.granted.is_none());
        let to = match (lock.at.or(named).filter(is_member), pending.sent) {
            (Some(master), Sent::Unsent) => {
                pending.sent = Sent::ToMaster;
                records.push(match pending.kind {
                    OpKind::New => request(false),
                    OpKind::Convert => Record::Convert { lock: id, op, mode: pending.mode, flags: pending.flags, lvb: pending.lvb() },
                    OpKind::Unlock => Record::Unlock { lock: id, op, flags: pending.flags, lvb: pending.lvb() },
                });
                master
            }
            (Some(to), Sent::ToMaster | Sent::ToHome) if lock.at == Some(to) => to,
            (None, Sent::Unsent)
                if pending.kind == OpKind::New && lock.at.is_none() && self.lookups.entry(lock.place).or_default().asking == 0 =>
            {
                let Some(home) = authority::home_among(members, &key).and_then(|home| self.peers.find(&home)) else { return };
                records.push(request(true));
                pending.sent = Sent::ToHome;
                self.lookups.entry(lock.place).or_default().asking = id;
                home
            }
            (None, Sent::Unsent) if lock.at.is_none() => return self.lookups.entry(lock.place).or_default().waiting.push(id),
            // Its master is lost: the slice of the answers that meets it reports it; or it was reported.
            _ => return,
        };
        lock.at = Some(to);
        if pending.is_cancelled && !pending.is_cancel_sent && pending.kind != OpKind::Unlock {
            pending.is_cancel_sent = true;
            records.push(Record::Cancel { lock: id, op });
        }
        if to != ME || pending.sent == Sent::ToHome {
            self.underway.insert(id);
        }
        for record in records {
            self.send_to(to, record);
        }
    }

    /// Tells the master that a granted lock has changed hands.
    pub(super) fn tell_name(&mut self, id: u32) {
        let Some(lock) = self.locks.get_mut(id).filter(|lock| lock.is_renamed && lock.granted.is_some()) else { return };
        // Between two masters it waits for the next one, who may have been told by the lock's report.
        let Some(master) = lock.at.and_then(|master| self.peers.life(master)) else { return };
        lock.is_renamed = false;
        self.renamed.insert(id);
        let record = Record::Whose { lock: id, pid: lock.pid, party: lock.party() };
        self.send(master, record);
    }

    /// The home says who is master.
    pub(super) fn handle_master_is(&mut self, key: Key, master: Life, (counter, stamp): (u64, u32), is_taken: bool) {
        if master == self.me && self.is_running() {
            self.become_master(&key, counter, stamp);
        }
        let master = self.peers.id(master);
        let Some(number) = self.places.find(&key) else { return };
        if let Some(place) = self.places.get_mut(number)
            && place.locks != 0
        {
            place.master = Some(master);
            for id in self.lookups.remove(&number).unwrap_or_default().locks() {
                self.learn_master(id, is_taken.then_some(master));
            }
        }
        // When this turn's requests have arrived: before them there is nothing on it.
        self.release_later.push(number);
    }

    fn learn_master(&mut self, id: u32, taken_by: Option<PeerId>) {
        let Some(lock) = self.locks.get_mut(id) else { return };
        let is_new = lock.granted.is_none();
        let Some(pending) = &mut lock.pending else { return };
        if pending.sent == Sent::ToHome {
            lock.at = taken_by;
            pending.is_cancel_sent = false;
            pending.sent = if taken_by.is_some() { Sent::ToMaster } else { Sent::Unsent };
            if taken_by.is_none_or(|master| master == ME) {
                self.underway.remove(&id);
            }
            if taken_by.is_none() && is_new && pending.is_cancelled {
                return self.end_unsent(id);
            }
        }
        self.advance(id);
    }

    /// A request that no master has is taken back.
    pub(super) fn end_unsent(&mut self, id: u32) {
        let Some(lock) = self.locks.get(id) else { return };
        let Some(pending) = &lock.pending else { return };
        let (status, mode) = match pending.kind {
            OpKind::Unlock => (LockStatus::Unlocked, None),
            OpKind::New | OpKind::Convert => (LockStatus::Cancelled, lock.granted),
        };
        let is_reported = lock.is_reported();
        let left = if pending.kind == OpKind::Unlock { pending.flags.with(Flags::FORCEUNLOCK) } else { Flags::FORCEUNLOCK };
        let flags = ResultFlags::default();
        let lvb = LvbCopy { value: None, ..lock.lvb() };
        let result = OpResult { op: lock.op, status, mode, flags, token: Token::default(), lvb };
        if is_reported && mode.is_none() {
            self.conclude(id, &result);
            self.leave_word(id, left);
        } else {
            self.handle_completed(id, &result);
        }
    }

    /// Its client is done with it, and the report that is on its way may yet become a lock at a master: that one hears that it is given back.
    fn leave_word(&mut self, id: u32, flags: Flags) {
        let op = self.locks.next_op();
        let Some(lock) = self.locks.get_mut(id) else { return };
        let mut unlock = Pending::new(OpKind::Unlock, None, Mode::Nl, flags, None);
        unlock.sent = Sent::ToMaster;
        (lock.op, lock.pending) = (op, Some(Box::new(unlock)));
        let (place, session) = (lock.place, core::mem::replace(&mut lock.session, NO_SESSION));
        self.locks.unlink(id, self.sessions.get_mut(&session).map(|session| &mut session.locks));
        self.orphans.remove(place, id);
    }

    /// A down-conversion of a lock whose master is lost.
    pub(super) fn end_given_up(&mut self, id: u32, mode: Mode) {
        let Some(lock) = self.locks.get_mut(id) else { return };
        lock.is_lowered = true;
        let lvb = LvbCopy { value: None, ..lock.lvb() };
        let (op, token, flags) = (lock.op, lock.token, ResultFlags::default());
        self.handle_completed(id, &OpResult { op, status: LockStatus::Success, mode: Some(mode), flags, token, lvb });
    }

    pub(super) fn handle_not_master(&mut self, id: u32, op: u64) {
        let Some(lock) = self.locks.get_mut(id) else { return };
        if lock.is_left() {
            return self.remove_lock(id);
        }
        let Some(pending) = &mut lock.pending else { return };
        if lock.op != op || pending.kind != OpKind::New || pending.sent != Sent::ToMaster {
            return;
        }
        pending.sent = Sent::Unsent;
        (pending.is_cancel_sent, pending.is_retry) = (false, true);
        lock.at = None;
        self.underway.remove(&id);
        if pending.is_cancelled {
            return self.end_unsent(id);
        }
        if let Some(place) = self.places.get_mut(lock.place) {
            place.master = None;
        }
        let number = lock.place;
        if let Some(lookups) = self.lookups.get_mut(&number).filter(|lookups| lookups.asking == id) {
            lookups.asking = 0;
        }
        self.advance(id);
    }

    /// The master's answer.
    pub(super) fn handle_completed(&mut self, id: u32, result: &OpResult) {
        if self.conclude(id, result) && result.mode.is_none() {
            self.remove_lock(id);
        }
    }

    /// An operation has ended; was it under way?
    fn conclude(&mut self, id: u32, result: &OpResult) -> bool {
        let Some(lock) = self.locks.get_mut(id).filter(|lock| lock.op == result.op) else { return false };
        let Some(pending) = lock.pending.take() else { return false };
        #[cfg(any(test, feature = "planted"))]
        let is_kept = self.mistake == Some(super::Mistake::KeepDeadline);
        #[cfg(not(any(test, feature = "planted")))]
        let is_kept = false;
        if !is_kept {
            self.deadlines.remove(pending.deadline_ms, lock.op, id);
        }
        self.underway.remove(&id);
        let granted = lock.granted;
        let status = if result.status == LockStatus::Cancelled { pending.ends_as } else { result.status };
        let is_success = result.status == LockStatus::Success;
        lock.granted = result.mode;
        lock.told = None;
        lock.since_ms = self.now_ms;
        if is_success {
            lock.token = result.token;
        }
        let is_written = is_success
            && pending.flags.has(Flags::VALBLK)
            && !pending.flags.has(Flags::IVVALBLK)
            && result.mode.is_some_and(|mode| mode.lvb_transfer(granted) == LvbTransfer::Write);
        // Number 0: others may have written since.
        let written = if is_written && result.lvb.sequence != 0 { pending.lvb() } else { None };
        let last = lock.lvb();
        let known = if last.sequence == result.lvb.sequence { last.value } else { None };
        lock.set_lvb(LvbCopy { value: result.lvb.value.or(written).or(known), ..result.lvb });
        let is_given_up = granted.zip(result.mode).is_some_and(|(from, to)| to < from && from.is_down(to));
        let session = lock.session;
        if lock.is_in_many() {
            self.many_went_on((session, pending.serial.unwrap_or(0)), id, status);
        } else if let Some(serial) = pending.serial {
            let reply = ClientReply::Completed {
                serial,
                lock: id,
                status,
                mode: result.mode,
                flags: result.flags,
                lvb: result.lvb.value,
                token: result.token,
            };
            if let Some(before) = granted.filter(|_| is_success && !is_given_up && !self.may_deliver()) {
                self.held_before.insert(id, before);
            }
            self.reply_about(session, id, is_success && !is_given_up, reply);
        }
        for serial in pending.cancels {
            let reply = Self::simple_reply(serial, id, LockStatus::Success, result.mode);
            self.reply_about(session, id, false, reply);
        }
        true
    }

    pub(super) fn simple_reply(serial: u64, lock: u32, status: LockStatus, mode: Option<Mode>) -> ClientReply {
        ClientReply::Completed { serial, lock, status, mode, flags: ResultFlags::default(), lvb: None, token: Token::default() }
    }

    pub(super) fn remove_lock(&mut self, id: u32) {
        let session = self.locks.get(id).and_then(|lock| self.sessions.get_mut(&lock.session));
        let Some(lock) = self.locks.remove(id, session.map(|session| &mut session.locks)) else { return };
        self.look_up_for_others(id, lock.place);
        let Some(place) = self.places.get_mut(lock.place) else { return };
        place.locks = place.locks.saturating_sub(1);
        let (is_last, lockspace) = (place.locks == 0, place.lockspace);
        if is_last {
            self.lookups.remove(&lock.place);
            self.remember_master(lock.place);
        }
        self.renamed.remove(&id);
        if lock.session == NO_SESSION {
            self.orphans.remove(lock.place, id);
        }
        self.forget_place(lock.place);
        self.uses_fewer(lockspace);
    }

    /// Takes an operation back that is under way, unless it is granted before its master hears of this; it ends as `status`.
    pub(super) fn take_back(&mut self, id: u32, status: LockStatus) {
        let Some(lock) = self.locks.get_mut(id) else { return };
        let is_giving_up = lock.is_giving_up();
        // With a lost master it is as good as nowhere, unless something is held that it may have changed.
        let is_nowhere = lock.granted.is_none() && lock.at.is_none();
        let Some(pending) = lock.pending.as_mut().filter(|pending| pending.kind != OpKind::Unlock) else { return };
        if pending.is_cancelled || is_giving_up {
            return;
        }
        (pending.is_cancelled, pending.ends_as) = (true, status);
        let is_here = pending.sent == Sent::Unsent || is_nowhere;
        #[cfg(any(test, feature = "planted"))]
        let is_here = is_here || self.mistake == Some(super::Mistake::CancelHere);
        if is_here {
            self.end_unsent(id);
        } else {
            self.advance(id);
        }
    }

    /// The lock that asked the home is gone without an answer: another one asks.
    fn look_up_for_others(&mut self, id: u32, place: u32) {
        if self.lookups.get(&place).is_some_and(|lookups| lookups.asking == id) {
            for other in self.lookups.remove(&place).unwrap_or_default().waiting {
                self.advance(other);
            }
        }
    }

    /// A new lock of a session, not granted and not asked for.
    pub(super) fn add_lock(&mut self, session: u64, place: u32, pid: u32) -> Result<u32, LockStatus> {
        if place == 0 || self.locks.len() >= NODE_LOCKS_MAX {
            self.places.forget_if_unused(place);
            return Err(LockStatus::NoMemory);
        }
        let mut orphans = LockList::default();
        let list = self.sessions.get_mut(&session).map_or(&mut orphans, |session| &mut session.locks);
        let id = self.locks.add(LocalLock::new(session, place, pid, self.now_ms), list);
        if let Some(place) = self.places.get_mut(place) {
            place.locks += 1;
            let lockspace = place.lockspace;
            self.uses_more(lockspace);
        }
        Ok(id)
    }

    /// A blocking callback, unless the client knows it already or it no longer concerns what the client has.
    pub(super) fn handle_blocking(&mut self, id: u32, mode: Mode) {
        let Some(lock) = self.locks.get_mut(id) else { return };
        let is_known = lock.told.is_some_and(|told| told == mode || (told > mode && told > Mode::Pr));
        if is_known || lock.granted.is_none_or(|granted| granted.is_compatible(mode)) {
            return;
        }
        lock.told = Some(mode);
        if lock.is_in_many() {
            return;
        }
        let session = lock.session;
        self.reply_about(session, id, false, ClientReply::Blocking { lock: id, mode });
    }

    /// Gives a lock back from whatever state it is in; an operation under way ends as cancelled.
    pub(super) fn begin_unlock(&mut self, id: u32, serial: Option<u64>, flags: Flags, lvb: Option<Lvb>) {
        self.drop_ranges(id);
        self.cancel_held(id);
        if self.unlock_alone(id, serial) {
            return;
        }
        let Some(lock) = self.locks.get_mut(id) else { return };
        let (session, granted) = (lock.session, lock.granted);
        let mut unlock = Pending::new(OpKind::Unlock, serial, Mode::Nl, flags, lvb);
        let previous = lock.pending.take();
        if previous.as_ref().is_some_and(|previous| previous.kind == OpKind::Unlock) {
            lock.pending = previous;
            return;
        }
        let op = self.locks.next_op();
        let (peers, members) = (&self.peers, &self.view.members);
        let is_member = |at| peers.life(at).is_some_and(|life| members.contains(&life));
        let Some(lock) = self.locks.get_mut(id) else { return };
        self.deadlines.remove(previous.as_ref().map_or(0, |previous| previous.deadline_ms), lock.op, id);
        // With a lost master it is as good as nowhere: a new one that has heard of it hears that it is given back.
        let is_lost = lock.at.is_none_or(|at| self.view.is_member && !is_member(at));
        // What it says of the value block has to arrive before anybody is told.
        let is_nowhere = is_lost && (granted.is_none() || !(flags.has(Flags::VALBLK) || flags.has(Flags::IVVALBLK)));
        lock.op = op;
        let was_sent = previous.as_ref().is_some_and(|previous| previous.sent == Sent::ToMaster);
        if lock.at.is_none() && (granted.is_some() || was_sent) {
            // It was reported.
            unlock.sent = Sent::ToMaster;
        }
        lock.pending = Some(Box::new(unlock));
        if let Some(previous) = previous {
            if let Some(serial) = previous.serial {
                self.reply(session, Self::simple_reply(serial, id, LockStatus::Cancelled, granted));
            }
            for serial in previous.cancels {
                self.reply(session, Self::simple_reply(serial, id, LockStatus::Success, granted));
            }
        }
        if is_nowhere { self.end_unsent(id) } else { self.advance(id) }
    }

    /// Grants that the client was not told yet are never told: the lock is on its way back.
    fn cancel_held(&mut self, id: u32) {
        if !self.held.iter().any(|(_, lock, _)| *lock == id) {
            return;
        }
        let (mine, others) = core::mem::take(&mut self.held).into_iter().partition(|(_, lock, _)| *lock == id);
        self.held = others;
        let before = self.held_before.remove(&id);
        for (session, lock, reply) in mine {
            if let ClientReply::Completed { serial, .. } = reply {
                self.reply(session, Self::simple_reply(serial, lock, LockStatus::Cancelled, before));
            }
        }
    }
}
