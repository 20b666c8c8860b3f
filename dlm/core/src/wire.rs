//! What: the records between lock services of two nodes, and their bytes.
//! Owns: record kinds and field order (drawn in docs/formats/lock-messages.md).
//! Invariants: a message names one view and carries whole records; decoding never panics and allocates no more than the input is long.
//! Does not: judge who sent a message or whether its view is the present one.
//! Called by: `service`.

mod ranges;
mod waits;

use crate::bytes::{DecodeError, Reader, Writer};
use crate::client::{LOCKSPACE_BYTES_MAX, Lvb, QueriedLock, RESOURCE_BYTES_MAX, read_locks, write_locks};
pub(crate) use crate::fields::LvbCopy;
use crate::fields::{read_copy, read_lvb, read_mode, read_token, some_mode, write_copy, write_lvb, write_mode, write_token};
use crate::mode::{Flags, LockStatus, Mode, ResultFlags, Token};
use crate::name::Key;
use alloc::vec::Vec;
use deadbolt_disk_format::types::{BootId, Incarnation, Life, SlotIndex};
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
        is_taken: bool,
    },
    /// Master to home: no locks are left; tokens went up to `counter`.
    Released {
        key: Key,
        counter: u64,
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
    /// Recovery: what a life has joined; complete when `HomeEnd` follows.
    JoinedBy {
        life: Life,
        lockspaces: Vec<u32>,
    },
    /// Recovery: the sender is master, established in view `firm`.
    Claim {
        key: Key,
        firm: u64,
    },
    /// Recovery: the sender has this lock.
    Report(Report),
    /// Recovery: everything for the receiver as home was sent.
    HomeEnd,
    /// Recovery, home to master: be (or stay) master.
    Take {
        key: Key,
    },
    /// Recovery, home to master: a report.
    Forward {
        origin: Life,
        report: Report,
    },
    /// Recovery: everything for the receiver as master was sent.
    MasterEnd,
    Range(RangeRecord),
    Waits(WaitRecord),
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
    /// Part of the rebuild: taken while recovery runs.
    pub(crate) fn is_recovery(&self) -> bool {
        matches!(
            self,
            Self::JoinedBy { .. }
                | Self::Claim { .. }
                | Self::Report(_)
                | Self::HomeEnd
                | Self::Take { .. }
                | Self::Forward { .. }
                | Self::MasterEnd
        ) || matches!(self, Self::Range(record) if record.is_recovery())
    }

    /// Appends the record to a message.
    pub(crate) fn append(&self, message: Vec<u8>) -> Vec<u8> {
        let mut w = Writer(message);
        match self {
            Self::Request { key, lock, pid, party, op, mode, flags, is_lookup } => {
                write_key(w.u8(1), key);
                w.u32(*lock).u32(*pid);
                write_party(&mut w, *party);
                w.u64(*op).u8(mode.number()).u32(flags.0).u8((*is_lookup).into());
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
            Self::MasterIs { key, master, counter, is_taken } => {
                write_key(w.u8(7), key);
                write_life(&mut w, master);
                w.u64(*counter).u8((*is_taken).into());
            }
            Self::Released { key, counter } => {
                write_key(w.u8(8), key);
                w.u64(*counter);
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
            recovery => recovery.append_recovery(&mut w),
        }
        w.0
    }

    fn append_recovery(&self, w: &mut Writer) {
        match self {
            Self::JoinedBy { life, lockspaces } => {
                write_life(w.u8(13), life);
                w.u32(u32::try_from(lockspaces.len()).unwrap_or(u32::MAX));
                for lockspace in lockspaces {
                    w.u32(*lockspace);
                }
            }
            Self::Claim { key, firm } => {
                write_key(w.u8(14), key);
                w.u64(*firm);
            }
            Self::Report(report) => write_report(w.u8(15), report),
            Self::Take { key } => write_key(w.u8(17), key),
            Self::Forward { origin, report } => {
                write_life(w.u8(18), origin);
                write_report(w, report);
            }
            Self::MasterEnd => {
                w.u8(19);
            }
            // Only `HomeEnd` is left: the others are written by `append`.
            _ => {
                w.u8(16);
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
            },
            2 => Self::Convert { lock: r.u32()?, op: r.u64()?, mode: some_mode(r)?, flags: Flags(r.u32()?), lvb: read_lvb(r)? },
            3 => Self::Unlock { lock: r.u32()?, op: r.u64()?, flags: Flags(r.u32()?), lvb: read_lvb(r)? },
            4 => Self::Cancel { lock: r.u32()?, op: r.u64()? },
            5 => Self::Completed { lock: r.u32()?, result: read_result(r)? },
            6 => Self::Blocking { lock: r.u32()?, mode: some_mode(r)? },
            7 => Self::MasterIs { key: read_key(r)?, master: read_life(r)?, counter: r.u64()?, is_taken: r.bool("is_taken")? },
            8 => Self::Released { key: read_key(r)?, counter: r.u64()? },
            9 => Self::NotMaster { lock: r.u32()?, op: r.u64()? },
            10 => Self::Join { announcement: r.u64()?, name: r.name("lockspace name length", LOCKSPACE_BYTES_MAX)?.to_vec() },
            11 => Self::JoinAnswer { lockspace: r.u32()?, announcement: r.u64()?, is_refused: r.bool("is_refused")? },
            12 => Self::Leave { lockspace: r.u32()? },
            13 => {
                let life = read_life(r)?;
                let count = r.u32()?;
                let mut lockspaces = Vec::new();
                for _ in 0..count {
                    lockspaces.push(r.u32()?);
                }
                Self::JoinedBy { life, lockspaces }
            }
            14 => Self::Claim { key: read_key(r)?, firm: r.u64()? },
            15 => Self::Report(read_report(r)?),
            16 => Self::HomeEnd,
            17 => Self::Take { key: read_key(r)? },
            18 => Self::Forward { origin: read_life(r)?, report: read_report(r)? },
            19 => Self::MasterEnd,
            20 => Self::Whose { lock: r.u32()?, pid: r.u32()?, party: read_party(r)? },
            21 => Self::Query { key: read_key(r)?, request: r.u64()?, asker: read_life(r)? },
            22 => Self::Queried { request: r.u64()?, lvb: read_copy(r)?, left_out: r.u32()?, locks: read_locks(r)? },
            23 => Self::Purge { request: r.u64()?, lockspace: r.u32()?, pid: r.u32()? },
            24 => Self::Purged { request: r.u64()? },
            kind @ 40..=47 => Self::Range(RangeRecord::read(kind, r)?),
            kind @ 50..=55 => Self::Waits(WaitRecord::read(kind, r)?),
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
            Record::Request { key, lock: 1, pid: 2, party: Party::Session(8), op: 3, mode, flags, is_lookup: true },
            Record::Convert { lock: 1, op: 2, mode, flags, lvb },
            Record::Unlock { lock: 1, op: 2, flags, lvb: None },
            Record::Unlock { lock: 1, op: 2, flags, lvb },
            Record::Cancel { lock: 1, op: 2 },
            Record::Completed { lock: 1, result },
            Record::Blocking { lock: 1, mode },
            Record::MasterIs { key, master: life(3), counter: 9, is_taken: true },
            Record::Released { key, counter: 9 },
            Record::NotMaster { lock: 1, op: 2 },
            Record::Join { announcement: 8, name: b"space".to_vec() },
            Record::JoinAnswer { lockspace: 1, announcement: 8, is_refused: true },
            Record::Leave { lockspace: 1 },
            Record::JoinedBy { life: life(1), lockspaces: vec![1, 2, 3] },
            Record::Claim { key, firm: 7 },
            Record::Report(report(None)),
            Record::Report(report(Some(OpKind::New))),
            Record::HomeEnd,
            Record::Take { key },
            Record::Forward { origin: life(2), report: report(Some(OpKind::Unlock)) },
            Record::MasterEnd,
            Record::Whose { lock: 1, pid: 2, party: Party::Transaction(8) },
            Record::Query { key, request: 1, asker: life(1) },
            Record::Queried { request: 1, lvb: copy, left_out: 2, locks: vec![queried; 3] },
            Record::Purge { request: 1, lockspace: 2, pid: 3 },
            Record::Purged { request: 1 },
        ]
        .into_iter()
        .chain(ranges::samples(key, life(2)).into_iter().map(Record::Range))
        .chain(waits::samples(life(2)).into_iter().map(Record::Waits))
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
        });
        let name = |record: &Record| match record {
            Record::Range(record) => std::format!("{record:?}"),
            Record::Waits(record) => std::format!("{record:?}"),
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
        fn arbitrary_bytes_never_panic(kind in 0u8..60, mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = open_message(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            let _ = Record::read_all(&bytes);
        }
    }
}
