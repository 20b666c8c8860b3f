//! The product and the plain byte ranges side by side: what they say and who has and wants which bytes must be the same after each step.

use super::{Ask, Bytes, Cells, Id, Row, Told, bytes};
use crate::node::Node;
use deadbolt_dlm_core::client::{RangeHolder, RangeKind};
use deadbolt_dlm_core::service::RangeSnapshot;
use deadbolt_dlm_core::{ClientReply, ClientRequest, Flags, Input, LockStatus, Mode, RangeMode, ResourceName, Span};
use std::collections::BTreeMap;

/// No lock has this number.
const NO_LOCK: u32 = u32::MAX;

/// So long a deadlock may last while nothing else happens (docs/locks.md).
const DEADLOCK_MS: u64 = 1000;

/// One thing that happens to the node.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A session's request with its serial.
    Ask(u64, u64, Ask),
    /// A session's process dies.
    Die(u64),
    /// Time passes. (Each step takes a millisecond, too.)
    Pass(u64),
}

pub(crate) struct Lockstep {
    node: Node,
    pub(crate) bytes: Bytes,
    numbers: BTreeMap<Id, u32>,
    /// When something happened last.
    changed: u64,
}

/// Lock, owner's number, bytes, and whether they are had.
type Shown = (u32, u64, Span, bool);

fn kind_of(kind: Option<RangeMode>) -> RangeKind {
    match kind {
        None => RangeKind::Unlock,
        Some(RangeMode::Read) => RangeKind::Read,
        Some(RangeMode::Write) => RangeKind::Write,
    }
}

/// The pieces of a row: cells that touch and are had alike are one.
pub(crate) fn pieces(row: &Row) -> Vec<Cells> {
    let mut pieces: Vec<Cells> = Vec::new();
    for (cell, kind) in row.iter().enumerate().filter(|(_, kind)| kind.is_some()) {
        match pieces.last_mut() {
            Some(before) if before.last + 1 == cell && before.kind == *kind => before.last = cell,
            _ => pieces.push(Cells { first: cell, last: cell, kind: *kind }),
        }
    }
    pieces
}

fn span(cells: Cells) -> Span {
    let (start, end) = bytes(cells.first, cells.last);
    Span { start, end, kind: cells.kind.unwrap() }
}

impl Lockstep {
    pub(crate) fn new() -> Self {
        Self { node: Node::new(), bytes: Bytes::default(), numbers: BTreeMap::new(), changed: 0 }
    }

    /// Does it in both; what it brings, or how they differ.
    pub(crate) fn take(&mut self, step: &Step) -> Result<Vec<Told>, String> {
        let until = self.node.now + if let Step::Pass(time) = step { *time } else { 1 };
        let mut told = Vec::new();
        // Whenever it wants to wake.
        while self.node.service.next_deadline().is_some_and(|at| at <= until) {
            self.node.now = self.node.now.max(self.node.service.next_deadline().unwrap());
            told.extend(self.tick()?);
        }
        self.node.now = until;
        told.extend(self.tick()?);
        match step {
            Step::Ask(session, serial, ask) => {
                self.node.open(*session);
                let request = self.request(*serial, ask);
                let replies = self.node.ask(*session, request);
                self.check_conflict(ask, &replies)?;
                let rank = |id: Id| self.numbers.get(&id).copied().unwrap_or_default();
                let expected = self.bytes.ask(self.node.now, *session, *serial, *ask, rank);
                self.learn(*serial, ask, &replies);
                told.extend(self.compare(&replies, expected)?);
            }
            Step::Die(session) => {
                let (replies, expected) = (self.node.close(*session), self.bytes.die(*session));
                told.extend(self.compare(&replies, expected)?);
            }
            Step::Pass(_) => {
                if let Some(serial) = self.bytes.deadlocked().filter(|_| self.node.now > self.changed + DEADLOCK_MS) {
                    return Err(format!("{serial} is in a deadlock that nobody has found since {}", self.changed));
                }
                return Ok(told);
            }
        }
        self.changed = self.node.now;
        Ok(told)
    }

    fn tick(&mut self) -> Result<Vec<Told>, String> {
        let replies = self.node.input(Input::Tick);
        let mut expected = self.bytes.expire(self.node.now);
        let victims: Vec<u64> =
            replies.iter().filter_map(told_of).filter(|told| told.2 == LockStatus::Deadlock).map(|told| told.1).collect();
        let warned = replies.iter().filter_map(|(_, reply)| match reply {
            ClientReply::DeadlockCycle { serial, cycle } if !cycle.steps.is_empty() => Some(*serial),
            _ => None,
        });
        if !warned.eq(victims.iter().copied()) {
            return Err(format!("who fails hears why first: {replies:?}"));
        }
        expected.extend(self.bytes.fail(&victims)?);
        if !expected.is_empty() {
            self.changed = self.node.now;
        }
        self.compare(&replies, expected)
    }

    fn request(&self, serial: u64, ask: &Ask) -> ClientRequest {
        let number = |id: Id| self.numbers.get(&id).copied().unwrap_or(NO_LOCK);
        let ends = |cells: Cells| (bytes(cells.first, cells.first).0, bytes(cells.last, cells.last).1);
        let with = |is_set, flag| if is_set { flag } else { Flags::NONE };
        let lock = |file, owner, flags| {
            let (lockspace, resource) = (self.node.lockspace, ResourceName::new(&[file]).unwrap());
            ClientRequest::Lock { serial, lockspace, resource, mode: Mode::Nl, flags, owner, timeout_ms: 0, lvb: None }
        };
        match *ask {
            Ask::Open { file, transaction, is_persistent } => lock(file, transaction, with(is_persistent, Flags::PERSISTENT)),
            Ask::Adopt { file, transaction } => lock(file, transaction, Flags::ORPHAN),
            Ask::Close { lock, is_forced } => {
                ClientRequest::Unlock { serial, lock: number(lock), flags: with(is_forced, Flags::FORCEUNLOCK), lvb: None }
            }
            Ask::Range { owner, cells, is_try, is_spared, timeout } => {
                let flags = with(is_try, Flags::NOQUEUE).with(with(is_spared, Flags::NODLCKWT));
                let ((start, end), timeout_ms) = (ends(cells), u32::try_from(timeout).unwrap());
                let (lock, kind) = (number(owner.lock), kind_of(cells.kind));
                ClientRequest::Range { serial, lock, owner: owner.number, kind, start, end, flags, timeout_ms }
            }
            Ask::Query { owner, cells } => {
                let ((start, end), lock, kind) = (ends(cells), number(owner.lock), kind_of(cells.kind));
                ClientRequest::RangeQuery { serial, lock, owner: owner.number, kind, start, end }
            }
            Ask::Cancel { request } => ClientRequest::CancelRequest { serial, request },
        }
    }

    /// The number of a new lock.
    fn learn(&mut self, serial: u64, ask: &Ask, replies: &[(u64, ClientReply)]) {
        if let (Ask::Open { .. }, [(_, ClientReply::Completed { lock, .. })]) = (ask, replies) {
            self.numbers.insert(serial, *lock);
        }
    }

    /// Whatever stands in the way will do as an answer, and nothing else.
    fn check_conflict(&self, ask: &Ask, replies: &[(u64, ClientReply)]) -> Result<(), String> {
        let (Ask::Query { owner, cells }, [(_, ClientReply::RangeConflict { status: LockStatus::Success, conflict, .. })]) = (ask, replies)
        else {
            return Ok(());
        };
        let shown = |holder: super::Owner| {
            let session = self.bytes.lock(holder.lock).unwrap().session;
            let in_the_way = pieces(&self.bytes.rows[&holder]).into_iter().filter(|piece| cells.exclude(&piece.as_row()));
            in_the_way.map(move |piece| {
                let Span { start, end, .. } = span(piece);
                let (slot, pid) = (0, crate::node::pid(session));
                RangeHolder { owner: holder.number, kind: kind_of(piece.kind), start, end, slot, pid }
            })
        };
        let wanted: Vec<RangeHolder> = self.bytes.holders(*owner, *cells).flat_map(shown).collect();
        let is_right = conflict.map_or(wanted.is_empty(), |conflict| wanted.contains(&conflict));
        if is_right { Ok(()) } else { Err(format!("product says {conflict:?} is in the way, reference: {wanted:?}")) }
    }

    fn compare(&self, replies: &[(u64, ClientReply)], mut expected: Vec<Told>) -> Result<Vec<Told>, String> {
        if let Some(other) = replies.iter().find(|reply| told_of(reply).is_none() && !matches!(reply.1, ClientReply::DeadlockCycle { .. }))
        {
            return Err(format!("unexpected {other:?}"));
        }
        let mut found: Vec<Told> = replies.iter().filter_map(told_of).collect();
        // What is taken back ends before the request that took it back; else one step's answers have no order.
        let is_behind = |told: &[Told]| {
            let place = |status| told.iter().position(|told| told.2 == status);
            place(LockStatus::Cancelled).zip(place(LockStatus::Success)).is_none_or(|(taken_back, done)| taken_back < done)
        };
        if found.len() == 2 && !is_behind(&found) {
            return Err(format!("the cancel is answered first: {found:?}"));
        }
        found.sort_by_key(|told| (told.0, told.1));
        expected.sort_by_key(|told| (told.0, told.1));
        if found != expected {
            return Err(format!("product: {found:?}\nreference: {expected:?}"));
        }
        self.compare_bytes()?;
        let (found_at, wanted_at) = (self.node.service.next_deadline(), self.bytes.next_deadline());
        if wanted_at.is_some_and(|wanted| found_at.is_none_or(|found| found > wanted)) {
            return Err(format!("the product wants to wake at {found_at:?}, the reference at {wanted_at:?}"));
        }
        Ok(found)
    }

    fn compare_bytes(&self) -> Result<(), String> {
        let (mut found, mut wanted): (BTreeMap<u8, Vec<Shown>>, BTreeMap<u8, Vec<Shown>>) = Default::default();
        let mut locks = Vec::new();
        for resource in self.node.service.snapshot() {
            let file = resource.resource[0];
            locks.extend(resource.locks.iter().map(|lock| (file, lock.who.lock, lock.who.is_orphan)));
            let shown = |range: &RangeSnapshot| (range.who.lock, range.part, range.bytes, range.is_held);
            found.entry(file).or_default().extend(resource.ranges.iter().map(shown));
        }
        let mut wanted_locks: Vec<_> =
            self.bytes.locks.iter().map(|lock| (lock.file, self.numbers[&lock.id], lock.is_shown_as_orphan())).collect();
        locks.sort_unstable();
        wanted_locks.sort_unstable();
        if locks != wanted_locks {
            return Err(format!("product's locks: {locks:?}\nreference: {wanted_locks:?}"));
        }
        for (owner, row) in &self.bytes.rows {
            let lock = self.bytes.lock(owner.lock).unwrap();
            let number = self.numbers[&owner.lock];
            wanted.entry(lock.file).or_default().extend(pieces(row).into_iter().map(|piece| (number, owner.number, span(piece), true)));
        }
        for list in found.values_mut().chain(wanted.values_mut()) {
            // What is had has no order; those that wait have one.
            list.sort_by_key(|(lock, number, bytes, is_held)| (!is_held, is_held.then_some((*lock, *number, *bytes))));
        }
        for wait in &self.bytes.waits {
            let lock = self.bytes.lock(wait.owner.lock).unwrap();
            wanted.entry(lock.file).or_default().push((self.numbers[&lock.id], wait.owner.number, span(wait.cells), false));
        }
        found.retain(|_, list| !list.is_empty());
        if found == wanted { Ok(()) } else { Err(format!("product's bytes: {found:?}\nreference: {wanted:?}")) }
    }
}

fn told_of((session, reply): &(u64, ClientReply)) -> Option<Told> {
    match reply {
        ClientReply::Completed { serial, status, .. } | ClientReply::RangeConflict { serial, status, .. } => {
            Some((*session, *serial, *status))
        }
        _ => None,
    }
}
