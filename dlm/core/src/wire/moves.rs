//! What: the records by which a resource moves to another master, and their bytes.
//! Owns: kinds 80 to 86.
//! Invariants: as `wire`.
//! Does not: move anything.
//! Called by: `wire`.

use super::{Report, read_key, read_life, read_report, write_key, write_life, write_report};
use crate::bytes::{DecodeError, Reader, Writer};
use crate::fields::{LvbCopy, read_copy, write_copy};
use crate::name::Key;
use deadbolt_disk_format::types::Life;

/// A record of a move. `number`: of the move, given by the old master.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum MoveRecord {
    /// Master to home: `to` is to be master.
    MoveAsk { key: Key, number: u64, to: Life, stamp: u32 },
    /// Back: may it begin?
    MoveAnswer { key: Key, number: u64, is_begun: bool },
    /// Master to holder: say all of this lock, and nothing more to this master.
    Reseat { key: Key, lock: u32 },
    /// Back. None: there is no such lock (any more).
    Reseated { key: Key, lock: u32, report: Option<Report> },
    /// Master to home: a lock, in the order of the queues.
    MoveHeld { key: Key, number: u64, origin: Life, report: Report },
    /// Master to home: that were all, and it is not master any more; or (none) it stays.
    GivenUp { key: Key, number: u64, with: Option<(u64, LvbCopy)> },
    /// Home to new master: all locks of the resource were sent, and this is its value block.
    MoveTakeEnd { key: Key, lvb: LvbCopy },
}

impl MoveRecord {
    pub(super) fn write(&self, w: &mut Writer) {
        match self {
            Self::MoveAsk { key, number, to, stamp } => {
                write_key(w.u8(80), key);
                write_life(w.u64(*number), to);
                w.u32(*stamp);
            }
            Self::MoveAnswer { key, number, is_begun } => {
                write_key(w.u8(81), key);
                w.u64(*number).u8((*is_begun).into());
            }
            Self::Reseat { key, lock } => {
                write_key(w.u8(82), key);
                w.u32(*lock);
            }
            Self::Reseated { key, lock, report } => {
                write_key(w.u8(83), key);
                w.u32(*lock).u8(report.is_some().into());
                if let Some(report) = report {
                    write_report(w, report);
                }
            }
            Self::MoveHeld { key, number, origin, report } => {
                write_key(w.u8(84), key);
                write_life(w.u64(*number), origin);
                write_report(w, report);
            }
            Self::GivenUp { key, number, with } => {
                write_key(w.u8(85), key);
                w.u64(*number).u8(with.is_some().into());
                if let Some((counter, lvb)) = with {
                    write_copy(w.u64(*counter), lvb);
                }
            }
            Self::MoveTakeEnd { key, lvb } => {
                write_key(w.u8(86), key);
                write_copy(w, lvb);
            }
        }
    }

    pub(super) fn read(kind: u8, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let key = read_key(r)?;
        Ok(match kind {
            80 => Self::MoveAsk { key, number: r.u64()?, to: read_life(r)?, stamp: r.u32()? },
            81 => Self::MoveAnswer { key, number: r.u64()?, is_begun: r.bool("is_begun")? },
            82 => Self::Reseat { key, lock: r.u32()? },
            83 => {
                let (lock, is_there) = (r.u32()?, r.bool("has_report")?);
                Self::Reseated { key, lock, report: if is_there { Some(read_report(r)?) } else { None } }
            }
            84 => Self::MoveHeld { key, number: r.u64()?, origin: read_life(r)?, report: read_report(r)? },
            85 => {
                let (number, is_given_up) = (r.u64()?, r.bool("is_given_up")?);
                Self::GivenUp { key, number, with: if is_given_up { Some((r.u64()?, read_copy(r)?)) } else { None } }
            }
            86 => Self::MoveTakeEnd { key, lvb: read_copy(r)? },
            kind => return Err(DecodeError::UnknownKind { kind }),
        })
    }
}

/// One of each, with and without what may be left out.
#[cfg(test)]
pub(super) fn samples(life: Life, report: Report) -> alloc::vec::Vec<MoveRecord> {
    let (key, number, lock, lvb) = (report.key, 3, report.lock, report.lvb);
    alloc::vec![
        MoveRecord::MoveAsk { key, number, to: life, stamp: 4 },
        MoveRecord::MoveAnswer { key, number, is_begun: true },
        MoveRecord::Reseat { key, lock },
        MoveRecord::Reseated { key, lock, report: None },
        MoveRecord::Reseated { key, lock, report: Some(report) },
        MoveRecord::MoveHeld { key, number, origin: life, report },
        MoveRecord::GivenUp { key, number, with: None },
        MoveRecord::GivenUp { key, number, with: Some((5, lvb)) },
        MoveRecord::MoveTakeEnd { key, lvb },
    ]
}
