//! What: the byte ranges of this node's sessions, and the way of range operations to masters and back.
//! Owns: what each lock here has and waits for; timeouts of these waits.
//! Invariants: a holder never counts itself as having more than its master knows of; every request is answered exactly once; what has been
//! given up is reported as given up, though its master's answer is still to come.
//! Does not: judge ranges; `queue` does.
//! Called by: `service`, its sessions and its recovery.

mod reports;
mod shown;

use super::{LockService, OPERATION_CANCELS_MAX};
use crate::client::{ClientReply, ClientRequest, RangeHolder, RangeKind};
use crate::mode::{Flags, LockStatus};
use crate::peers::PeerId;
use crate::queue::Owner;
use crate::ranges::{Change, RangeMode, RangeOwner, RangeWait, Span, Spans};
use crate::wire::{OpKind, RangeRecord, Record};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
pub(super) use reports::Reports;

/// Most pieces of ranges that one session has (bounds memory and what a recovery sends; chosen, no strong reason).
pub const SESSION_RANGES_MAX: usize = 1 << 18;
/// Legal on requests for ranges.
const FOR_RANGE: Flags = Flags::NOQUEUE.with(Flags::NODLCKWT).with(Flags::NODLCKBLK).with(Flags::TIMEOUT);

/// What an operation on ranges does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// To have at least this.
    Ask(Span),
    /// To have no more than this; counts here already.
    Lower { bytes: (u64, u64), mode: Option<RangeMode> },
    /// To be told who is in the way.
    Query(Span),
}

/// An operation under way.
#[derive(Clone, Debug)]
struct RangeOp {
    session: u64,
    /// 0: nobody waits for the answer.
    serial: u64,
    number: u64,
    step: Step,
    flags: Flags,
    timeout_at: Option<u64>,
    is_sent: bool,
    /// What it ends with when it is taken back in time.
    ends_as: Option<LockStatus>,
    /// Cancel requests to answer when it has ended.
    cancels: Vec<u64>,
}

/// The ranges of one lock.
#[derive(Clone, Debug, Default)]
struct LocalRanges {
    held: BTreeMap<u64, Spans>,
    ops: BTreeMap<u64, RangeOp>,
}

/// The ranges of all locks here.
#[derive(Debug, Default)]
pub(super) struct RangeBook {
    locks: BTreeMap<u32, LocalRanges>,
    /// Operations by session and serial.
    serials: BTreeMap<(u64, u64), (u32, u64)>,
    /// Time, operation and lock: who asked first ends first.
    timeouts: BTreeSet<(u64, u64, u32)>,
    /// Pieces by session.
    pieces: BTreeMap<u64, usize>,
}

impl RangeBook {
    pub(super) fn next_timeout(&self) -> Option<u64> {
        self.timeouts.first().map(|(at, _, _)| *at)
    }

    /// Are there records of so many locks at the most, and of nothing else?
    #[cfg(test)]
    pub(super) fn is_within(&self, locks: usize) -> bool {
        self.locks.len() <= locks && self.pieces.len() <= locks && self.serials.is_empty() && self.timeouts.is_empty()
    }

    fn held(&self, lock: u32, number: u64) -> Option<&Spans> {
        self.locks.get(&lock)?.held.get(&number)
    }

    fn change(&mut self, session: u64, lock: u32, number: u64, change: impl FnOnce(&mut Spans) -> Change) {
        let ranges = self.locks.entry(lock).or_default();
        let spans = ranges.held.entry(number).or_default();
        let change = change(spans);
        if spans.is_empty() {
            ranges.held.remove(&number);
        }
        let pieces = self.pieces.entry(session).or_default();
        *pieces = (*pieces + change.after.len()).saturating_sub(change.before.len());
        if *pieces == 0 {
            self.pieces.remove(&session);
        }
    }

    fn op_mut(&mut self, lock: u32, op: u64) -> Option<&mut RangeOp> {
        self.locks.get_mut(&lock)?.ops.get_mut(&op)
    }

    fn begin(&mut self, lock: u32, op: u64, what: RangeOp) {
        if what.serial != 0 {
            self.serials.insert((what.session, what.serial), (lock, op));
        }
        if let Some(at) = what.timeout_at {
            self.timeouts.insert((at, op, lock));
        }
        self.locks.entry(lock).or_default().ops.insert(op, what);
    }

    fn end(&mut self, lock: u32, op: u64) -> Option<RangeOp> {
        let what = self.locks.get_mut(&lock)?.ops.remove(&op)?;
        self.serials.remove(&(what.session, what.serial));
        if let Some(at) = what.timeout_at {
            self.timeouts.remove(&(at, op, lock));
        }
        Some(what)
    }

    /// What an owner has given up since it asked by `op`, and what its master has not answered.
    fn lowered_since(&self, lock: u32, number: u64, op: u64) -> Vec<((u64, u64), Option<RangeMode>)> {
        let later = self.locks.get(&lock).into_iter().flat_map(|ranges| ranges.ops.range(op..));
        let its = later.filter(|(_, what)| what.number == number);
        its.filter_map(|(_, what)| if let Step::Lower { bytes, mode } = what.step { Some((bytes, mode)) } else { None }).collect()
    }

    /// No lock is kept in mind that has and wants nothing.
    fn forget_if_unused(&mut self, lock: u32) {
        if self.locks.get(&lock).is_some_and(|ranges| ranges.held.is_empty() && ranges.ops.is_empty()) {
            self.locks.remove(&lock);
        }
    }
}

impl LockService {
    /// `Range` and `RangeQuery`.
    pub(super) fn handle_range_request(&mut self, session: u64, request: ClientRequest) {
        let (begun, serial, lock, is_query) = match request {
            ClientRequest::Range { serial, lock, owner, kind, start, end, flags, timeout_ms } => {
                (self.begin_range(session, (serial, lock, owner), kind, (start, end), (flags, timeout_ms)), serial, lock, false)
            }
            ClientRequest::RangeQuery { serial, lock, owner, kind, start, end } => {
                (self.begin_range_query(session, (serial, lock, owner), kind, (start, end)), serial, lock, true)
            }
            _ => return,
        };
        match begun {
            Err(status) if is_query => self.reply(session, ClientReply::RangeConflict { serial, status, conflict: None }),
            begun => self.reply_unless_begun(session, Some(serial), lock, begun),
        }
    }

    /// May this session do something with the ranges of this lock?
    fn check_range(&self, session: u64, (serial, id): (u64, u32), (start, end): (u64, u64)) -> Result<(), LockStatus> {
        let lock = self.locks.get(id).filter(|lock| lock.session == session && !lock.is_in_many()).ok_or(LockStatus::NotFound)?;
        let is_going = lock.pending.as_ref().is_some_and(|pending| pending.kind == OpKind::Unlock);
        if lock.granted.is_none() || is_going || self.ranges.serials.contains_key(&(session, serial)) {
            return Err(LockStatus::Busy);
        }
        if serial == 0 || end < start { Err(LockStatus::Invalid) } else { Ok(()) }
    }

    fn begin_range(
        &mut self,
        session: u64,
        (serial, id, number): (u64, u32, u64),
        kind: RangeKind,
        (start, end): (u64, u64),
        (flags, timeout_ms): (Flags, u32),
    ) -> Result<(), LockStatus> {
        self.check_range(session, (serial, id), (start, end))?;
        if !flags.is_within(FOR_RANGE) {
            return Err(LockStatus::Invalid);
        }
        let mode = kind.mode();
        if self.is_stopped && mode.is_some() {
            return Err(LockStatus::Stopped);
        }
        let held = self.ranges.held(id, number);
        let covers = mode.is_none_or(|kind| held.is_some_and(|held| held.covers(&Span { start, end, kind })));
        let exceeds = held.is_some_and(|held| held.exceeds(start, end, mode));
        let is_cut = held.is_some_and(|held| held.is_cut(start, end, mode));
        if (!covers || is_cut) && self.ranges.pieces.get(&session).is_some_and(|pieces| *pieces >= SESSION_RANGES_MAX) {
            return Err(LockStatus::NoMemory);
        }
        let step = match mode {
            Some(kind) if !covers => Step::Ask(Span { start, end, kind }),
            _ if exceeds => {
                self.ranges.change(session, id, number, |spans| spans.lower(start, end, mode));
                Step::Lower { bytes: (start, end), mode }
            }
            _ => {
                let granted = self.locks.get(id).and_then(|lock| lock.granted);
                self.reply_about(session, id, false, Self::simple_reply(serial, id, LockStatus::Success, granted));
                return Ok(());
            }
        };
        let timeout_at = (timeout_ms != 0).then(|| self.now_ms.saturating_add(timeout_ms.into()));
        let what = RangeOp { session, serial, number, step, flags, timeout_at, is_sent: false, ends_as: None, cancels: Vec::new() };
        self.start_range(id, what);
        Ok(())
    }

    fn begin_range_query(
        &mut self,
        session: u64,
        (serial, id, number): (u64, u32, u64),
        kind: RangeKind,
        (start, end): (u64, u64),
    ) -> Result<(), LockStatus> {
        self.check_range(session, (serial, id), (start, end))?;
        let step = Step::Query(Span { start, end, kind: kind.mode().ok_or(LockStatus::Invalid)? });
        let (flags, cancels) = (Flags::NONE, Vec::new());
        self.start_range(id, RangeOp { session, serial, number, step, flags, timeout_at: None, is_sent: false, ends_as: None, cancels });
        Ok(())
    }

    fn start_range(&mut self, id: u32, what: RangeOp) {
        let op = self.locks.next_op();
        self.ranges.begin(id, op, what);
        self.advance_range(id, op);
    }

    /// Sends what can be sent of an operation.
    fn advance_range(&mut self, id: u32, op: u64) {
        if !self.is_running() {
            return;
        }
        let Some(lock) = self.locks.get(id) else { return };
        // With a lost master it waits: it is reported, or sent when there is a new one.
        let Some(to) = lock.at.filter(|at| self.is_peer_member(*at)).and_then(|at| self.peers.life(at)) else {
            return self.answer_lowered(id, op);
        };
        let Some(what) = self.ranges.op_mut(id, op) else { return };
        let number = what.number;
        let mut records = Vec::new();
        if !what.is_sent {
            what.is_sent = true;
            records.push(match what.step {
                Step::Ask(span) => RangeRecord::AskRange { lock: id, op, number, span, flags: what.flags },
                Step::Lower { bytes, mode } => RangeRecord::LowerRange { lock: id, op, number, bytes, mode },
                Step::Query(span) => RangeRecord::QueryRange { lock: id, op, number, span },
            });
        }
        if what.ends_as.is_some() {
            records.push(RangeRecord::CancelRange { lock: id, op, number });
        }
        for record in records {
            self.send(to, Record::Range(record));
        }
    }

    /// What only gives up need not wait for a new master, which hears of it later.
    fn answer_lowered(&mut self, id: u32, op: u64) {
        let granted = self.locks.get(id).and_then(|lock| lock.granted);
        let Some(what) = self.ranges.op_mut(id, op).filter(|what| matches!(what.step, Step::Lower { .. })) else { return };
        let (session, serial) = (what.session, core::mem::take(&mut what.serial));
        if serial != 0 {
            self.ranges.serials.remove(&(session, serial));
            self.reply_about(session, id, false, Self::simple_reply(serial, id, LockStatus::Success, granted));
        }
    }

    /// Takes back the request with this serial, if it is one for a range.
    pub(super) fn cancel_range(&mut self, session: u64, serial: u64, request: u64) -> bool {
        let Some((id, op)) = self.ranges.serials.get(&(session, request)).copied() else { return false };
        let Some(what) = self.ranges.op_mut(id, op) else { return false };
        if what.cancels.len() >= OPERATION_CANCELS_MAX {
            self.reply(session, Self::simple_reply(serial, id, LockStatus::Busy, None));
            return true;
        }
        what.cancels.push(serial);
        self.take_back_range(id, op, LockStatus::Cancelled);
        true
    }

    /// Only what waits can be taken back.
    fn take_back_range(&mut self, id: u32, op: u64, status: LockStatus) {
        let Some(what) = self.ranges.op_mut(id, op).filter(|what| what.ends_as.is_none() && matches!(what.step, Step::Ask(_))) else {
            return;
        };
        what.ends_as = Some(status);
        if what.is_sent { self.advance_range(id, op) } else { self.finish_range(id, op, LockStatus::Cancelled) }
    }

    /// Ends waits whose time is over.
    pub(super) fn expire_ranges(&mut self) {
        while let Some((at, op, id)) = self.ranges.timeouts.first().copied().filter(|(at, _, _)| *at <= self.now_ms) {
            self.ranges.timeouts.remove(&(at, op, id));
            self.take_back_range(id, op, LockStatus::TimedOut);
        }
    }

    /// An operation has ended at its master.
    fn finish_range(&mut self, id: u32, op: u64, status: LockStatus) {
        let granted = self.locks.get(id).and_then(|lock| lock.granted);
        let Some(mut what) = self.ranges.end(id, op) else { return };
        let session = what.session;
        let status = if status == LockStatus::Cancelled { what.ends_as.unwrap_or(status) } else { status };
        if let Step::Ask(span) = what.step
            && status == LockStatus::Success
        {
            self.ranges.change(session, id, what.number, |spans| spans.raise(&span));
            // Its master hears of these after it has granted.
            for (bytes, mode) in self.ranges.lowered_since(id, what.number, op) {
                self.ranges.change(session, id, what.number, |spans| spans.lower(bytes.0, bytes.1, mode));
            }
            // Nobody is there any more to have it.
            let is_alive = self.sessions.contains_key(&session);
            let (bytes, mode) = ((span.start, span.end), is_alive.then_some(span.kind));
            if self.ranges.held(id, what.number).is_some_and(|held| held.exceeds(span.start, span.end, mode)) {
                self.ranges.change(session, id, what.number, |spans| spans.lower(span.start, span.end, mode));
                (what.step, what.is_sent, what.ends_as, what.timeout_at) = (Step::Lower { bytes, mode }, false, None, None);
                return self.start_range(id, what);
            }
        }
        self.ranges.forget_if_unused(id);
        let is_grant = status == LockStatus::Success && matches!(what.step, Step::Ask(_));
        match what.step {
            Step::Query(_) => {
                self.reply_about(session, id, false, ClientReply::RangeConflict { serial: what.serial, status, conflict: None });
            }
            _ if what.serial == 0 => {}
            _ => self.reply_about(session, id, is_grant, Self::simple_reply(what.serial, id, status, granted)),
        }
        self.answer_range_cancels(session, id, what.cancels);
    }

    fn answer_range_cancels(&mut self, session: u64, id: u32, cancels: Vec<u64>) {
        let granted = self.locks.get(id).and_then(|lock| lock.granted);
        for serial in cancels {
            self.reply_about(session, id, false, Self::simple_reply(serial, id, LockStatus::Success, granted));
        }
    }

    fn finish_query(&mut self, id: u32, op: u64, conflict: Option<RangeHolder>) {
        let Some(what) = self.ranges.end(id, op) else { return };
        self.ranges.forget_if_unused(id);
        let (session, status) = (what.session, LockStatus::Success);
        self.reply(session, ClientReply::RangeConflict { serial: what.serial, status, conflict });
        self.answer_range_cancels(session, id, what.cancels);
    }

    /// Does a request of this session for a range of this lock wait for its answer?
    pub(super) fn has_range_ops(&self, session: u64, id: u32) -> bool {
        self.ranges.locks.get(&id).is_some_and(|ranges| ranges.ops.values().any(|what| what.session == session && what.serial != 0))
    }

    /// The lock is on its way back, and its ranges with it.
    pub(super) fn drop_ranges(&mut self, id: u32) {
        let Some(session) = self.locks.get(id).map(|lock| lock.session) else { return };
        let ops: Vec<u64> = self.ranges.locks.get(&id).into_iter().flat_map(|ranges| ranges.ops.keys().copied()).collect();
        for op in ops {
            let is_given_up = self.ranges.op_mut(id, op).is_some_and(|what| matches!(what.step, Step::Lower { .. }));
            self.finish_range(id, op, if is_given_up { LockStatus::Success } else { LockStatus::Cancelled });
        }
        let numbers: Vec<u64> = self.ranges.locks.get(&id).into_iter().flat_map(|ranges| ranges.held.keys().copied()).collect();
        for number in numbers {
            self.ranges.change(session, id, number, |spans| spans.lower(0, u64::MAX, None));
        }
        self.ranges.forget_if_unused(id);
    }

    /// The process is gone and the lock stays: it keeps no ranges.
    pub(super) fn abandon_ranges(&mut self, id: u32, session: u64) {
        let Some(ranges) = self.ranges.locks.get(&id) else { return };
        let (ops, numbers): (Vec<u64>, Vec<u64>) = (ranges.ops.keys().copied().collect(), ranges.held.keys().copied().collect());
        for op in ops {
            self.take_back_range(id, op, LockStatus::Cancelled);
        }
        let (bytes, mode) = ((0, u64::MAX), None);
        for number in numbers {
            self.ranges.change(session, id, number, |spans| spans.lower(bytes.0, bytes.1, mode));
            let (step, flags, cancels) = (Step::Lower { bytes, mode }, Flags::NONE, Vec::new());
            self.start_range(
                id,
                RangeOp { session, serial: 0, number, step, flags, timeout_at: None, is_sent: false, ends_as: None, cancels },
            );
        }
    }

    /// The serial of an operation under way.
    pub(super) fn range_serial(&self, id: u32, op: u64) -> Option<u64> {
        Some(self.ranges.locks.get(&id)?.ops.get(&op)?.serial)
    }

    fn tell_peer(&mut self, peer: PeerId, record: RangeRecord) {
        if let Some(life) = self.peers.life(peer) {
            self.send(life, Record::Range(record));
        }
    }

    /// As master and as holder.
    pub(super) fn handle_range(&mut self, peer: PeerId, record: RangeRecord) {
        let owner = |lock| Owner { peer, lock };
        if let RangeRecord::AskRange { lock, op, .. } | RangeRecord::LowerRange { lock, op, .. } = record
            && self.place_of(&owner(lock)).is_none()
        {
            let status = LockStatus::NotFound;
            return self.tell_peer(peer, RangeRecord::RangeEnded { lock, op, status });
        }
        let asker = |lock, number| RangeOwner { owner: owner(lock), number };
        match record {
            RangeRecord::AskRange { lock, op, number, span, flags } => {
                let wait = RangeWait { owner: asker(lock, number), op, span, flags, since_ms: self.now_ms };
                self.operate(owner(lock), |resource, _, gate, out| resource.ask_range(wait, gate, out));
            }
            RangeRecord::LowerRange { lock, op, number, bytes, mode } => {
                self.operate(owner(lock), |resource, _, gate, out| resource.lower_range(asker(lock, number), op, bytes, mode, gate, out));
            }
            RangeRecord::CancelRange { lock, op, number } => {
                let status = LockStatus::Cancelled;
                self.operate(owner(lock), |resource, _, gate, out| resource.end_range(asker(lock, number), op, status, gate, out));
            }
            RangeRecord::QueryRange { lock, op, number, span } => {
                let place = self.place_of(&owner(lock)).and_then(|place| self.places.get(place));
                let found = place.and_then(|place| self.mastered.get(place.mastered)?.range_conflict(asker(lock, number), &span));
                let conflict = found.map(|(other, piece, pid)| RangeHolder {
                    owner: other.number,
                    kind: RangeKind::from(Some(piece.kind)),
                    start: piece.start,
                    end: piece.end,
                    slot: self.peers.life(other.owner.peer).map_or(0, |life| life.slot.0),
                    pid,
                });
                self.tell_peer(peer, RangeRecord::RangeFound { lock, op, conflict });
            }
            RangeRecord::RangeEnded { lock, op, status } => self.finish_range(lock, op, status),
            RangeRecord::RangeFound { lock, op, conflict } => self.finish_query(lock, op, conflict),
            report => self.take_range_report(peer, report),
        }
    }
}
