//! What: the records between lock services of two nodes, and their bytes.
//! Owns: record kinds and field order (drawn in docs/formats/lock-messages.md).
//! Invariants: a message names one view and carries whole records; decoding never panics and allocates no more than the input is long.
//! Does not: judge who sent a message or whether its view is the present one.
//! Called by: `service`.

mod moves;
mod ranges;
mod waits;

use crate::bytes::{DecodeError, Reader, Writer};
use crate::client::{LOCKSPACE_BYTES_MAX, Lvb, QueriedLock, RESOURCE_BYTES_MAX, read_locks, write_locks};
pub(crate) use crate::fields::LvbCopy;
use crate::fields::{read_copy, read_lvb, read_mode, read_token, some_mode, write_copy, write_lvb, write_mode, write_token};
use crate::mode::{Flags, LockStatus, Mode, ResultFlags, Token};
use crate::name::Key;
use crate::service::{Condition, Part};
use alloc::vec::Vec;
use deadbolt_disk_format::types::{BootId, Incarnation, Life, SlotIndex};
pub(crate) use moves::MoveRecord;
pub(crate) use ranges::{RangeRecord, RangeReport, read_span, write_span};
pub(crate) use waits::WaitRecord;

/// Version of the messages between lock services.
pub(crate) const WIRE_VERSION: u8 = 2;

/// For whom a lock is, so that the search for deadlocks knows who waits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Party {
    /// A session of the holder's node; [`NO_SESSION`]: nobody, for it is an orphan.
    Session(u64),
    /// A transaction, whose number means the same on every node.
    Transaction(u64),
}

/// The session of an orphan.
pub(crate) const NO_SESSION: u64 = u64::MAX;

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OpKind {
    New,
    Convert,
    Unlock,
}

/// An operation under way, as its holder reports it in recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ReportOp {
    pub(crate) kind: OpKind,
    pub(crate) mode: Mode,
    pub(crate) flags: Flags,
    pub(crate) lvb: Option<Lvb>,
    pub(crate) is_cancelled: bool,
}

/// A lock, as its holder reports it in recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Report {
    pub(crate) key: Key,
    pub(crate) lock: u32,
    pub(crate) pid: u32,
    pub(crate) party: Party,
    /// Number of the lock's last operation.
    pub(crate) op: u64,
    pub(crate) granted: Option<Mode>,
    pub(crate) token: Token,
    pub(crate) lvb: LvbCopy,
    pub(crate) pending: Option<ReportOp>,
}

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpResult {
    pub(crate) op: u64,
    pub(crate) status: LockStatus,
    pub(crate) mode: Option<Mode>,
    pub(crate) flags: ResultFlags,
    pub(crate) token: Token,
    pub(crate) lvb: LvbCopy,
}

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// Holder to master, or to the home while the master is not known.
    Request {
        key: Key,
        lock: u32,
        pid: u32,
        party: Party,
        op: u64,
        mode: Mode,
        flags: Flags,
        /// The receiver is asked who is master; else it is taken for the master.
        is_lookup: bool,
        /// The master that it was told of before is none.
        is_retry: bool,
    },
    Convert {
        lock: u32,
        op: u64,
        mode: Mode,
        flags: Flags,
        lvb: Option<Lvb>,
    },
    Unlock {
        lock: u32,
        op: u64,
        flags: Flags,
        lvb: Option<Lvb>,
    },
    Cancel {
        lock: u32,
        op: u64,
    },
    /// Master to holder.
    Completed {
        lock: u32,
        result: OpResult,
    },
    Blocking {
        lock: u32,
        mode: Mode,
    },
    /// Home to holder. When the master is its receiver, tokens go on after `counter`. Taken: the sender is master and has taken the request.
    MasterIs {
        key: Key,
        master: Life,
        counter: u64,
        /// Number of the appointment, which comes back with mastery.
        stamp: u32,
        is_taken: bool,
        /// The home wants to hear whether it is master: `Claim` or `Released`.
        is_asked: bool,
    },
    /// Master to home: no locks are left; tokens went up to `counter`.
    Released {
        key: Key,
        counter: u64,
        stamp: u32,
    },
    /// Home to master: so many more `Released` of this view have arrived.
    ReleasesSeen {
        count: u32,
    },
    /// A request came to a node that is not master and was not asked as home.
    NotMaster {
        lock: u32,
        op: u64,
    },
    /// `announcement`: a number that the sender has never used before.
    Join {
        announcement: u64,
        name: Vec<u8>,
    },
    /// To the announcement of that number and to no other.
    JoinAnswer {
        lockspace: u32,
        announcement: u64,
        is_refused: bool,
    },
    Leave {
        lockspace: u32,
    },
    /// Holder to master: the lock is another process's, or for another party.
    Whose {
        lock: u32,
        pid: u32,
        party: Party,
    },
    /// Who has and wants this resource? For `asker`; handed on to the home and from there to the master.
    Query {
        key: Key,
        request: u64,
        asker: Life,
    },
    /// Master to asker.
    Queried {
        request: u64,
        lvb: LvbCopy,
        left_out: u32,
        locks: Vec<QueriedLock>,
    },
    /// Give back the orphans that a process left; 0: every process.
    Purge {
        request: u64,
        lockspace: u32,
        pid: u32,
    },
    /// Back: begun.
    Purged {
        request: u64,
    },
    /// Recovery: the view in which the sender has gathered all answers last.
    Standing {
        gathered: u64,
    },
    /// Recovery: the sender is master.
    Claim {
        key: Key,
        stamp: u32,
    },
    /// Recovery: the sender, home until now, had made this node master.
    Appointed {
        key: Key,
        master: Life,
        stamp: u32,
    },
    /// Recovery: authority that the sender had, for what the receiver is home of now; every `Appointed` of it was sent.
    Share {
        parts: Vec<Part>,
    },
    /// Recovery: the sender has this lock, whose master is lost.
    Report(Report),
    /// Recovery: everything for the receiver as home was sent.
    AnswersEnd,
    /// Recovery, home to master: be master when all locks have come.
    Take {
        key: Key,
        counter: u64,
        stamp: u32,
    },
    /// Recovery, home to master: a report.
    Forward {
        origin: Life,
        report: Report,
    },
    /// Recovery: all locks of the resource were sent.
    TakeEnd {
        key: Key,
    },
    /// Recovery, master to home: it is.
    Taken {
        key: Key,
    },
    /// Recovery, master to holder: the lock is here, as of operation `op`.
    Have {
        lock: u32,
        op: u64,
    },
    /// Recovery, holder to master: what was under way when the view changed.
    Again(Report),
    Range(RangeRecord),
    Waits(WaitRecord),
    Move(MoveRecord),
}

fn write_key(w: &mut Writer, key: &Key) {
    w.u32(key.lockspace).name(key.name());
}

fn read_key(r: &mut Reader<'_>) -> Result<Key, DecodeError> {
    let lockspace = r.u32()?;
    let name = r.name("resource name length", RESOURCE_BYTES_MAX)?;
    Key::new(lockspace, name).ok_or(DecodeError::BadField { field: "resource name length", value: 0 })
}

fn write_life(w: &mut Writer, life: &Life) {
    w.u16(life.slot.0).bytes(&life.boot.0).bytes(&life.incarnation.0);
}

fn read_life(r: &mut Reader<'_>) -> Result<Life, DecodeError> {
    Ok(Life { slot: SlotIndex(r.u16()?), boot: BootId(r.array()?), incarnation: Incarnation(r.array()?) })
}

fn write_party(w: &mut Writer, party: Party) {
    match party {
        Party::Session(number) => w.u8(0).u64(number),
        Party::Transaction(number) => w.u8(1).u64(number),
    };
}

fn read_party(r: &mut Reader<'_>) -> Result<Party, DecodeError> {
    Ok(if r.bool("is_transaction")? { Party::Transaction(r.u64()?) } else { Party::Session(r.u64()?) })
}

fn write_report(w: &mut Writer, report: &Report) {
    write_key(w, &report.key);
    w.u32(report.lock).u32(report.pid);
    write_party(w, report.party);
    w.u64(report.op);
    write_mode(w, report.granted);
    write_token(w, report.token);
    write_copy(w, &report.lvb);
    match &report.pending {
        None => {
            w.u8(0);
        }
        Some(pending) => {
            let kind = match pending.kind {
                OpKind::New => 1,
                OpKind::Convert => 2,
                OpKind::Unlock => 3,
            };
            w.u8(kind).u8(pending.mode.number()).u32(pending.flags.0).u8(pending.is_cancelled.into());
            write_lvb(w, pending.lvb.as_ref());
        }
    }
}

fn read_report(r: &mut Reader<'_>) -> Result<Report, DecodeError> {
    let (key, lock, pid, party, op) = (read_key(r)?, r.u32()?, r.u32()?, read_party(r)?, r.u64()?);
    let (granted, token, lvb) = (read_mode(r)?, read_token(r)?, read_copy(r)?);
    let kind = match r.u8()? {
        0 => None,
        1 => Some(OpKind::New),
        2 => Some(OpKind::Convert),
        3 => Some(OpKind::Unlock),
        value => return Err(DecodeError::BadField { field: "operation kind", value: value.into() }),
    };
    let pending = match kind {
        None => None,
        Some(kind) => {
            let (mode, flags, is_cancelled) = (some_mode(r)?, Flags(r.u32()?), r.bool("is_cancelled")?);
            Some(ReportOp { kind, mode, flags, lvb: read_lvb(r)?, is_cancelled })
        }
    };
    Ok(Report { key, lock, pid, party, op, granted, token, lvb, pending })
}

fn write_parts(w: &mut Writer, parts: &[Part]) {
    w.u8(u8::try_from(parts.len()).unwrap_or(u8::MAX));
    for part in parts {
        w.u8(u8::try_from(part.len()).unwrap_or(u8::MAX));
        for condition in part {
            write_life(w, &condition.home);
            w.u8(u8::try_from(condition.members.len()).unwrap_or(u8::MAX));
            for member in &condition.members {
                write_life(w, member);
            }
        }
    }
}

fn read_parts(r: &mut Reader<'_>) -> Result<Vec<Part>, DecodeError> {
    let mut parts = Vec::new();
    for _ in 0..r.u8()? {
        let mut part = Vec::new();
        for _ in 0..r.u8()? {
            let (home, mut members) = (read_life(r)?, Vec::new());
            for _ in 0..r.u8()? {
                members.push(read_life(r)?);
            }
            part.push(Condition { members, home });
        }
        parts.push(part);
    }
    Ok(parts)
}

fn write_result(w: &mut Writer, result: &OpResult) {
    w.u64(result.op).u8(result.status.number());
    write_mode(w, result.mode);
    w.u8(result.flags.0);
    write_token(w, result.token);
    write_copy(w, &result.lvb);
}

fn read_result(r: &mut Reader<'_>) -> Result<OpResult, DecodeError> {
    let (op, status, mode) = (r.u64()?, LockStatus::from_number(r.u8()?)?, read_mode(r)?);
    Ok(OpResult { op, status, mode, flags: ResultFlags(r.u8()?), token: read_token(r)?, lvb: read_copy(r)? })
}

/// A message with no records yet.
pub(crate) fn begin_message(view: u64) -> Vec<u8> {
    let mut w = Writer::default();
    w.u8(WIRE_VERSION).u64(view);
    w.0
}

/// The view that a message names, and its records' bytes.
pub(crate) fn open_message(message: &[u8]) -> Result<(u64, &[u8]), DecodeError> {
    let mut r = Reader(message);
    match r.u8()? {
        WIRE_VERSION => Ok((r.u64()?, r.0)),
        version => Err(DecodeError::BadField { field: "version", value: version.into() }),
    }
}

/// Reads a message and writes it again: the same bytes, for what is taken has one encoding. The daemon never needs this; checks
/// from outside do, which cannot see records.
///
/// # Errors
/// The bytes are no message of this version.
pub fn rewrite_message(message: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let (view, bytes) = open_message(message)?;
    let records = Record::read_all(bytes)?;
    Ok(records.iter().fold(begin_message(view), |message, record| record.append(message)))
}

impl Record {
    /// Appends the record to a message.
    pub(crate) fn append(&self, message: Vec<u8>) -> Vec<u8> {
        let mut w = Writer(message);
        match self {
            Self::Request { key, lock, pid, party, op, mode, flags, is_lookup, is_retry } => {
                write_key(w.u8(1), key);
                w.u32(*lock).u32(*pid);
                write_party(&mut w, *party);
                w.u64(*op).u8(mode.number()).u32(flags.0).u8((*is_lookup).into()).u8((*is_retry).into());
            }
            Self::Convert { lock, op, mode, flags, lvb } => {
                w.u8(2).u32(*lock).u64(*op).u8(mode.number()).u32(flags.0);
                write_lvb(&mut w, lvb.as_ref());
            }
            Self::Unlock { lock, op, flags, lvb } => {
                w.u8(3).u32(*lock).u64(*op).u32(flags.0);
                write_lvb(&mut w, lvb.as_ref());
            }
            Self::Cancel { lock, op } => {
                w.u8(4).u32(*lock).u64(*op);
            }
            Self::Completed { lock, result } => write_result(w.u8(5).u32(*lock), result),
            Self::Blocking { lock, mode } => {
                w.u8(6).u32(*lock).u8(mode.number());
            }
            Self::MasterIs { key, master, counter, stamp, is_taken, is_asked } => {
                write_key(w.u8(7), key);
                write_life(&mut w, master);
                w.u64(*counter).u32(*stamp).u8((*is_taken).into()).u8((*is_asked).into());
            }
            Self::Released { key, counter, stamp } => {
                write_key(w.u8(8), key);
                w.u64(*counter).u32(*stamp);
            }
            Self::NotMaster { lock, op } => {
                w.u8(9).u32(*lock).u64(*op);
            }
            Self::Join { announcement, name } => {
                w.u8(10).u64(*announcement).name(name);
            }
            Self::JoinAnswer { lockspace, announcement, is_refused } => {
                w.u8(11).u32(*lockspace).u64(*announcement).u8((*is_refused).into());
            }
            Self::Leave { lockspace } => {
                w.u8(12).u32(*lockspace);
            }
            Self::Whose { lock, pid, party } => {
                w.u8(20).u32(*lock).u32(*pid);
                write_party(&mut w, *party);
            }
            Self::Query { key, request, asker } => {
                write_key(w.u8(21), key);
                write_life(w.u64(*request), asker);
            }
            Self::Queried { request, lvb, left_out, locks } => {
                write_copy(w.u8(22).u64(*request), lvb);
                write_locks(w.u32(*left_out), locks);
            }
            Self::Purge { request, lockspace, pid } => {
                w.u8(23).u64(*request).u32(*lockspace).u32(*pid);
            }
            Self::Purged { request } => {
                w.u8(24).u64(*request);
            }
            Self::Range(record) => record.write(&mut w),
            Self::Waits(record) => record.write(&mut w),
            Self::Move(record) => record.write(&mut w),
            recovery => recovery.append_recovery(&mut w),
        }
        w.0
    }

    fn append_recovery(&self, w: &mut Writer) {
        match self {
            Self::Standing { gathered } => {
                w.u8(60).u64(*gathered);
            }
            Self::Claim { key, stamp } => {
                write_key(w.u8(61), key);
                w.u32(*stamp);
            }
            Self::Appointed { key, master, stamp } => {
                write_key(w.u8(62), key);
                write_life(w, master);
                w.u32(*stamp);
            }
            Self::Share { parts } => write_parts(w.u8(63), parts),
            Self::Report(report) => write_report(w.u8(64), report),
            Self::Take { key, counter, stamp } => {
                write_key(w.u8(66), key);
                w.u64(*counter).u32(*stamp);
            }
            Self::Forward { origin, report } => {
                write_life(w.u8(67), origin);
                write_report(w, report);
            }
            Self::TakeEnd { key } => write_key(w.u8(68), key),
            Self::Taken { key } => write_key(w.u8(69), key),
            Self::Have { lock, op } => {
                w.u8(70).u32(*lock).u64(*op);
            }
            Self::Again(report) => write_report(w.u8(71), report),
            Self::ReleasesSeen { count } => {
                w.u8(72).u32(*count);
            }
            // Only `AnswersEnd` is left: the others are written by `append`.
            _ => {
                w.u8(65);
            }
        }
    }

    /// Reads the record at the front.
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match r.u8()? {
            1 => Self::Request {
                key: read_key(r)?,
                lock: r.u32()?,
                pid: r.u32()?,
                party: read_party(r)?,
                op: r.u64()?,
                mode: some_mode(r)?,
                flags: Flags(r.u32()?),
                is_lookup: r.bool("is_lookup")?,
                is_retry: r.bool("is_retry")?,
            },
            2 => Self::Convert { lock: r.u32()?, op: r.u64()?, mode: some_mode(r)?, flags: Flags(r.u32()?), lvb: read_lvb(r)? },
            3 => Self::Unlock { lock: r.u32()?, op: r.u64()?, flags: Flags(r.u32()?), lvb: read_lvb(r)? },
            4 => Self::Cancel { lock: r.u32()?, op: r.u64()? },
            5 => Self::Completed { lock: r.u32()?, result: read_result(r)? },
            6 => Self::Blocking { lock: r.u32()?, mode: some_mode(r)? },
            7 => Self::MasterIs {
                key: read_key(r)?,
                master: read_life(r)?,
                counter: r.u64()?,
                stamp: r.u32()?,
                is_taken: r.bool("is_taken")?,
                is_asked: r.bool("is_asked")?,
            },
            8 => Self::Released { key: read_key(r)?, counter: r.u64()?, stamp: r.u32()? },
            9 => Self::NotMaster { lock: r.u32()?, op: r.u64()? },
            10 => Self::Join { announcement: r.u64()?, name: r.name("lockspace name length", LOCKSPACE_BYTES_MAX)?.to_vec() },
            11 => Self::JoinAnswer { lockspace: r.u32()?, announcement: r.u64()?, is_refused: r.bool("is_refused")? },
            12 => Self::Leave { lockspace: r.u32()? },
            20 => Self::Whose { lock: r.u32()?, pid: r.u32()?, party: read_party(r)? },
            21 => Self::Query { key: read_key(r)?, request: r.u64()?, asker: read_life(r)? },
            22 => Self::Queried { request: r.u64()?, lvb: read_copy(r)?, left_out: r.u32()?, locks: read_locks(r)? },
            23 => Self::Purge { request: r.u64()?, lockspace: r.u32()?, pid: r.u32()? },
            24 => Self::Purged { request: r.u64()? },
            kind @ 40..=48 => Self::Range(RangeRecord::read(kind, r)?),
            kind @ 50..=55 => Self::Waits(WaitRecord::read(kind, r)?),
            60 => Self::Standing { gathered: r.u64()? },
            61 => Self::Claim { key: read_key(r)?, stamp: r.u32()? },
            62 => Self::Appointed { key: read_key(r)?, master: read_life(r)?, stamp: r.u32()? },
            63 => Self::Share { parts: read_parts(r)? },
            64 => Self::Report(read_report(r)?),
            65 => Self::AnswersEnd,
            66 => Self::Take { key: read_key(r)?, counter: r.u64()?, stamp: r.u32()? },
            67 => Self::Forward { origin: read_life(r)?, report: read_report(r)? },
            68 => Self::TakeEnd { key: read_key(r)? },
            69 => Self::Taken { key: read_key(r)? },
            70 => Self::Have { lock: r.u32()?, op: r.u64()? },
            71 => Self::Again(read_report(r)?),
            72 => Self::ReleasesSeen { count: r.u32()? },
            kind @ 80..=86 => Self::Move(MoveRecord::read(kind, r)?),
            kind => return Err(DecodeError::UnknownKind { kind }),
        })
    }

    /// Reads all records of an opened message.
    pub(crate) fn read_all(bytes: &[u8]) -> Result<Vec<Self>, DecodeError> {
        let mut r = Reader(bytes);
        let mut records = Vec::new();
        while !r.0.is_empty() {
            records.push(Self::read(&mut r)?);
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    fn life(slot: u16) -> Life {
        Life { slot: SlotIndex(slot), boot: BootId([3; 16]), incarnation: Incarnation([4; 16]) }
    }

    fn every_record() -> Vec<Record> {
        let key = Key::new(9, b"names").unwrap();
        let (mode, flags, lvb) = (Mode::Pw, Flags(0x8), Some([5; 32]));
        let copy = LvbCopy { sequence: 6, is_invalid: true, value: lvb };
        let token = Token { view: 4, counter: 5 };
        let result = OpResult { op: 2, status: LockStatus::Again, mode: None, flags: ResultFlags(2), token, lvb: copy };
        let report = |kind: Option<OpKind>| Report {
            key,
            lock: 1,
            pid: 2,
            party: Party::Session(8),
            op: 3,
            granted: Some(mode),
            token,
            lvb: copy,
            pending: kind.map(|kind| ReportOp { kind, mode, flags, lvb, is_cancelled: true }),
        };
        let queried = QueriedLock { slot: 1, pid: 2, lock: 3, owner: 4, granted: Some(mode), wanted: None, age_ms: 5 };
        vec![
            Record::Request { key, lock: 1, pid: 2, party: Party::Session(8), op: 3, mode, flags, is_lookup: true, is_retry: false },
            Record::Convert { lock: 1, op: 2, mode, flags, lvb },
            Record::Unlock { lock: 1, op: 2, flags, lvb: None },
            Record::Unlock { lock: 1, op: 2, flags, lvb },
            Record::Cancel { lock: 1, op: 2 },
            Record::Completed { lock: 1, result },
            Record::Blocking { lock: 1, mode },
            Record::MasterIs { key, master: life(3), counter: 9, stamp: 1, is_taken: true, is_asked: false },
            Record::Released { key, counter: 9, stamp: 1 },
            Record::NotMaster { lock: 1, op: 2 },
            Record::Join { announcement: 8, name: b"space".to_vec() },
            Record::JoinAnswer { lockspace: 1, announcement: 8, is_refused: true },
            Record::Leave { lockspace: 1 },
            Record::Standing { gathered: 7 },
            Record::Claim { key, stamp: 7 },
            Record::Appointed { key, master: life(1), stamp: 7 },
            Record::Share { parts: vec![vec![Condition { members: vec![life(2)], home: life(2) }]] },
            Record::Report(report(None)),
            Record::Report(report(Some(OpKind::New))),
            Record::AnswersEnd,
            Record::Take { key, counter: 8, stamp: 9 },
            Record::Forward { origin: life(2), report: report(Some(OpKind::Unlock)) },
            Record::TakeEnd { key },
            Record::Taken { key },
            Record::Have { lock: 1, op: 2 },
            Record::Again(report(Some(OpKind::Convert))),
            Record::ReleasesSeen { count: 3 },
            Record::Whose { lock: 1, pid: 2, party: Party::Transaction(8) },
            Record::Query { key, request: 1, asker: life(1) },
            Record::Queried { request: 1, lvb: copy, left_out: 2, locks: vec![queried; 3] },
            Record::Purge { request: 1, lockspace: 2, pid: 3 },
            Record::Purged { request: 1 },
        ]
        .into_iter()
        .chain(ranges::samples(key, life(2)).into_iter().map(Record::Range))
        .chain(waits::samples(life(2)).into_iter().map(Record::Waits))
        .chain(moves::samples(life(2), report(Some(OpKind::New))).into_iter().map(Record::Move))
        .collect()
    }

    #[test]
    fn all_records_of_a_message_come_back() {
        let records = every_record();
        let message = records.iter().fold(begin_message(77), |message, record| record.append(message));
        let (view, bytes) = open_message(&message).unwrap();
        assert_eq!(view, 77);
        assert_eq!(Record::read_all(bytes), Ok(records));
        assert_eq!(rewrite_message(&message), Ok(message));
    }

    #[test]
    fn the_page_is_true() {
        let samples = every_record().into_iter().filter(|record| {
            // The page's sizes are those with everything present.
            !matches!(record, Record::Unlock { lvb: None, .. } | Record::Report(Report { pending: None, .. }))
                && !matches!(record, Record::Move(MoveRecord::Reseated { report: None, .. } | MoveRecord::GivenUp { with: None, .. }))
        });
        let name = |record: &Record| match record {
            Record::Range(record) => std::format!("{record:?}"),
            Record::Waits(record) => std::format!("{record:?}"),
            Record::Move(record) => std::format!("{record:?}"),
            record => std::format!("{record:?}"),
        };
        let samples: Vec<_> = samples.map(|record| (name(&record), record.append(Vec::new()))).collect();
        crate::documents::compare(include_str!("../../../docs/formats/lock-messages.md"), &samples);
    }

    #[test]
    fn a_cut_record_is_refused() {
        for record in every_record() {
            let bytes = record.append(Vec::new());
            for length in 1..bytes.len() {
                assert!(Record::read_all(&bytes[..length]).is_err(), "{record:?} cut to {length}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(kind in 0u8..90, mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = open_message(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            let _ = Record::read_all(&bytes);
        }
    }
}
