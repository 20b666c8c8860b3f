//! What: the records about byte ranges, and their bytes.
//! Owns: kinds 40 to 47.
//! Invariants: as `wire`.
//! Does not: judge them.
//! Called by: `wire`.

use super::{read_key, read_life, write_key, write_life};
use crate::bytes::{DecodeError, Reader, Writer};
use crate::client::{RangeHolder, RangeKind, read_holder, write_holder};
use crate::mode::{Flags, LockStatus};
use crate::name::Key;
use crate::ranges::{RangeMode, Span};
use deadbolt_disk_format::types::Life;

/// A range that a lock has, or waits for, as its holder reports it in recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RangeReport {
    pub(crate) lock: u32,
    /// The operation that waits; 0: the range is held.
    pub(crate) op: u64,
    /// Whose, among the owners that the lock has.
    pub(crate) number: u64,
    pub(crate) span: Span,
    pub(crate) flags: Flags,
    pub(crate) is_cancelled: bool,
}

/// A record about ranges of a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RangeRecord {
    /// Holder to master: have at least this, or wait for it.
    AskRange { lock: u32, op: u64, number: u64, span: Span, flags: Flags },
    /// Holder to master: have no more than this.
    LowerRange { lock: u32, op: u64, number: u64, bytes: (u64, u64), mode: Option<RangeMode> },
    /// Holder to master: wait no longer.
    CancelRange { lock: u32, op: u64, number: u64 },
    /// Holder to master: who is in the way?
    QueryRange { lock: u32, op: u64, number: u64, span: Span },
    /// Master to holder.
    RangeEnded { lock: u32, op: u64, status: LockStatus },
    /// Master to holder.
    RangeFound { lock: u32, op: u64, conflict: Option<RangeHolder> },
    /// Recovery, holder to a master that lives: all ranges of the lock follow, and `Again` behind them.
    BeginRange { lock: u32, op: u64 },
    /// Recovery: holder to home, or to the master after `BeginRange`.
    ReportRange { key: Key, report: RangeReport },
    /// Recovery: home to master.
    ForwardRange { origin: Life, key: Key, report: RangeReport },
}

pub(crate) fn write_span(w: &mut Writer, span: &Span) {
    w.u64(span.start).u64(span.end).u8(RangeKind::from(Some(span.kind)).number());
}

pub(crate) fn read_span(r: &mut Reader<'_>) -> Result<Span, DecodeError> {
    let ((start, end), kind) = (read_bytes(r)?, RangeKind::from_number(r.u8()?)?);
    let kind = kind.mode().ok_or(DecodeError::BadField { field: "range kind", value: kind.number().into() })?;
    Ok(Span { start, end, kind })
}

/// First and last.
fn read_bytes(r: &mut Reader<'_>) -> Result<(u64, u64), DecodeError> {
    let (start, end) = (r.u64()?, r.u64()?);
    if end < start { Err(DecodeError::BadField { field: "range end", value: end }) } else { Ok((start, end)) }
}

fn write_report(w: &mut Writer, key: &Key, report: &RangeReport) {
    write_key(w, key);
    w.u32(report.lock).u64(report.op).u64(report.number);
    write_span(w, &report.span);
    w.u32(report.flags.0).u8(report.is_cancelled.into());
}

fn read_report(r: &mut Reader<'_>) -> Result<(Key, RangeReport), DecodeError> {
    let (key, lock, op, number, span) = (read_key(r)?, r.u32()?, r.u64()?, r.u64()?, read_span(r)?);
    Ok((key, RangeReport { lock, op, number, span, flags: Flags(r.u32()?), is_cancelled: r.bool("is_cancelled")? }))
}

impl RangeRecord {
    pub(super) fn write(&self, w: &mut Writer) {
        match self {
            Self::AskRange { lock, op, number, span, flags } => {
                write_span(w.u8(40).u32(*lock).u64(*op).u64(*number), span);
                w.u32(flags.0);
            }
            Self::LowerRange { lock, op, number, bytes: (start, end), mode } => {
                w.u8(41).u32(*lock).u64(*op).u64(*number).u64(*start).u64(*end).u8(RangeKind::from(*mode).number());
            }
            Self::CancelRange { lock, op, number } => {
                w.u8(42).u32(*lock).u64(*op).u64(*number);
            }
            Self::QueryRange { lock, op, number, span } => write_span(w.u8(43).u32(*lock).u64(*op).u64(*number), span),
            Self::RangeEnded { lock, op, status } => {
                w.u8(44).u32(*lock).u64(*op).u8(status.number());
            }
            Self::BeginRange { lock, op } => {
                w.u8(48).u32(*lock).u64(*op);
            }
            Self::RangeFound { lock, op, conflict } => write_holder(w.u8(45).u32(*lock).u64(*op), conflict.as_ref()),
            Self::ReportRange { key, report } => write_report(w.u8(46), key, report),
            Self::ForwardRange { origin, key, report } => {
                write_life(w.u8(47), origin);
                write_report(w, key, report);
            }
        }
    }

    pub(super) fn read(kind: u8, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if kind == 46 {
            let (key, report) = read_report(r)?;
            return Ok(Self::ReportRange { key, report });
        }
        if kind == 47 {
            let (origin, (key, report)) = (read_life(r)?, read_report(r)?);
            return Ok(Self::ForwardRange { origin, key, report });
        }
        let (lock, op) = (r.u32()?, r.u64()?);
        Ok(match kind {
            40 => Self::AskRange { lock, op, number: r.u64()?, span: read_span(r)?, flags: Flags(r.u32()?) },
            41 => {
                let (number, bytes) = (r.u64()?, read_bytes(r)?);
                Self::LowerRange { lock, op, number, bytes, mode: RangeKind::from_number(r.u8()?)?.mode() }
            }
            42 => Self::CancelRange { lock, op, number: r.u64()? },
            43 => Self::QueryRange { lock, op, number: r.u64()?, span: read_span(r)? },
            44 => Self::RangeEnded { lock, op, status: LockStatus::from_number(r.u8()?)? },
            45 => Self::RangeFound { lock, op, conflict: read_holder(r)? },
            48 => Self::BeginRange { lock, op },
            kind => return Err(DecodeError::UnknownKind { kind }),
        })
    }
}

#[cfg(test)]
pub(super) fn samples(key: Key, origin: Life) -> std::vec::Vec<RangeRecord> {
    let span = Span { start: 5, end: u64::MAX, kind: RangeMode::Write };
    let report = RangeReport { lock: 1, op: 2, number: 3, span, flags: Flags::NOQUEUE, is_cancelled: true };
    let conflict = RangeHolder { owner: 3, kind: RangeKind::Read, start: 1, end: 2, slot: 4, pid: 5 };
    std::vec![
        RangeRecord::AskRange { lock: 1, op: 2, number: 3, span, flags: Flags::NONE },
        RangeRecord::LowerRange { lock: 1, op: 2, number: 3, bytes: (4, 5), mode: None },
        RangeRecord::CancelRange { lock: 1, op: 2, number: 3 },
        RangeRecord::QueryRange { lock: 1, op: 2, number: 3, span },
        RangeRecord::RangeEnded { lock: 1, op: 2, status: LockStatus::Again },
        RangeRecord::RangeFound { lock: 1, op: 2, conflict: Some(conflict) },
        RangeRecord::ReportRange { key, report },
        RangeRecord::ForwardRange { origin, key, report },
        RangeRecord::BeginRange { lock: 1, op: 2 },
    ]
}
