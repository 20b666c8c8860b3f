//! What: what a client is told, and the bytes of it.
//! Owns: the kinds from 129 and their field order.
//! Invariants: every reply fits in one frame.
//! Does not: decide what is told.
//! Called by: `client`'s users.

use super::{
    Lvb, MANY_LOCKS_MAX, QUERIED_LOCKS_MAX, RangeKind, ResourceName, check_length, checked_count, read_resource, read_text, write_text,
};
use crate::bytes::{DecodeError, Reader, Writer};
use crate::cycle::{Cycle, read_cycle, write_cycle};
use crate::fields::{LvbCopy, read_copy, read_lvb, read_mode, read_token, some_mode, write_copy, write_lvb, write_mode, write_token};
use crate::mode::{LockStatus, Mode, ResultFlags, Token};
use alloc::string::String;
use alloc::vec::Vec;

/// One lock of a resource, as its master sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueriedLock {
    /// Node that has it.
    pub slot: u16,
    /// Process on that node; of an orphan, the process that is gone.
    pub pid: u32,
    /// Its number on that node.
    pub lock: u32,
    /// For whom, as it was asked for; 0 for the session.
    pub owner: u64,
    /// Mode held.
    pub granted: Option<Mode>,
    /// Mode waited for.
    pub wanted: Option<Mode>,
    /// Time since it came into this state.
    pub age_ms: u64,
}

/// Who holds a byte range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RangeHolder {
    /// For whom, as it was asked for; 0 for the session.
    pub owner: u64,
    /// How.
    pub kind: RangeKind,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// Node that has it.
    pub slot: u16,
    /// Process on that node.
    pub pid: u32,
}

/// What a client is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientReply {
    /// Answer to `Hello`.
    Welcome {
        /// Version that the server speaks.
        version: u16,
        /// The node's slot.
        slot: u16,
        /// The view at the time.
        view: u64,
    },
    /// The lockspace can be used.
    Joined {
        /// Of the request.
        serial: u64,
        /// Its number, the same on every node.
        lockspace: u32,
    },
    /// The lockspace is not used by this session any more.
    LockspaceLeft {
        /// Of the request.
        serial: u64,
    },
    /// An operation ended.
    Completed {
        /// Of the request.
        serial: u64,
        /// The lock's number in this session's node; 0 where there is none.
        lock: u32,
        /// How.
        status: LockStatus,
        /// The granted mode now; `None` when the lock does not exist (any more).
        mode: Option<Mode>,
        /// DEMOTED, VALNOTVALID, ALTMODE, SYNCH.
        flags: ResultFlags,
        /// The value block, when it was asked for and the resource has one.
        lvb: Option<Lvb>,
        /// The grant's number; zero unless something was granted.
        token: Token,
    },
    /// A lock held stands in the way of somebody who wants `mode`. A hint: the lock may be gone already.
    Blocking {
        /// The lock held.
        lock: u32,
        /// What is wanted.
        mode: Mode,
    },
    /// The node lost its membership: everything of this session is void, and nothing more follows.
    Lost {
        /// For people.
        reason: String,
    },
    /// A request is refused before it became an operation.
    Refused {
        /// Of the request; 0 for a frame without one.
        serial: u64,
        /// For programs.
        status: LockStatus,
        /// For people.
        reason: String,
    },
    /// All locks of a `LockMany` are granted, or none is.
    ManyCompleted {
        /// Of the request.
        serial: u64,
        /// How.
        status: LockStatus,
        /// Which item failed, counted from 0; [`NONE_FAILED`](super::NONE_FAILED) when that cannot be said of one.
        failed: u16,
        /// Number and grant of each lock, in the order asked; empty unless all are granted.
        locks: Vec<(u32, Token)>,
    },
    /// Who has and who wants a resource, as its master sees it.
    Queried {
        /// Of the request.
        serial: u64,
        /// How; nothing below means anything unless `Success`.
        status: LockStatus,
        /// Which.
        resource: Option<ResourceName>,
        /// Its value block.
        lvb: LvbCopy,
        /// How many locks found no place in the list.
        left_out: u32,
        /// Holders, then those that convert, then those that wait, each in their order.
        locks: Vec<QueriedLock>,
    },
    /// Answer to `RangeQuery`.
    RangeConflict {
        /// Of the request.
        serial: u64,
        /// How; the conflict means nothing unless `Success`.
        status: LockStatus,
        /// One range that stands in the way; none: the range would be granted.
        conflict: Option<RangeHolder>,
    },
    /// A request is about to complete with `Deadlock`: who waits for whom. No answer by itself.
    DeadlockCycle {
        /// Of the request.
        serial: u64,
        /// Beginning with this request.
        cycle: Cycle,
    },
}

fn write_lock(w: &mut Writer, lock: &QueriedLock) {
    w.u16(lock.slot).u32(lock.pid).u32(lock.lock).u64(lock.owner);
    write_mode(w, lock.granted);
    write_mode(w, lock.wanted);
    w.u64(lock.age_ms);
}

fn read_lock(r: &mut Reader<'_>) -> Result<QueriedLock, DecodeError> {
    Ok(QueriedLock {
        slot: r.u16()?,
        pid: r.u32()?,
        lock: r.u32()?,
        owner: r.u64()?,
        granted: read_mode(r)?,
        wanted: read_mode(r)?,
        age_ms: r.u64()?,
    })
}

/// The list of `Queried` and of the message that brings it.
pub(crate) fn write_locks(w: &mut Writer, locks: &[QueriedLock]) {
    w.u16(u16::try_from(locks.len()).unwrap_or(u16::MAX));
    for lock in locks {
        write_lock(w, lock);
    }
}

pub(crate) fn read_locks(r: &mut Reader<'_>) -> Result<Vec<QueriedLock>, DecodeError> {
    let count = checked_count("lock count", r.u16()?.into(), 0..=QUERIED_LOCKS_MAX)?;
    let mut locks = Vec::with_capacity(count);
    for _ in 0..count {
        locks.push(read_lock(r)?);
    }
    Ok(locks)
}

pub(crate) fn write_holder(w: &mut Writer, holder: Option<&RangeHolder>) {
    match holder {
        None => w.u8(0),
        Some(holder) => {
            let w = w.u8(1).u64(holder.owner).u8(holder.kind.number());
            w.u64(holder.start).u64(holder.end).u16(holder.slot).u32(holder.pid)
        }
    };
}

pub(crate) fn read_holder(r: &mut Reader<'_>) -> Result<Option<RangeHolder>, DecodeError> {
    if !r.bool("has_conflict")? {
        return Ok(None);
    }
    let (owner, kind) = (r.u64()?, RangeKind::from_number(r.u8()?)?);
    Ok(Some(RangeHolder { owner, kind, start: r.u64()?, end: r.u64()?, slot: r.u16()?, pid: r.u32()? }))
}

fn read_status(r: &mut Reader<'_>) -> Result<LockStatus, DecodeError> {
    LockStatus::from_number(r.u8()?)
}

impl ClientReply {
    /// It answers a request with a serial.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        self.answers().is_some()
    }

    /// A client may rely on something by this: it has it, or keeps it.
    #[must_use]
    pub fn is_grant(&self) -> bool {
        match self {
            Self::Completed { mode, .. } => mode.is_some(),
            Self::ManyCompleted { locks, .. } => !locks.is_empty(),
            _ => false,
        }
    }

    /// The serial of the request that this ends; none for what is no answer.
    #[must_use]
    pub fn answers(&self) -> Option<u64> {
        match self {
            Self::Joined { serial, .. }
            | Self::LockspaceLeft { serial }
            | Self::Completed { serial, .. }
            | Self::Refused { serial, .. }
            | Self::ManyCompleted { serial, .. }
            | Self::Queried { serial, .. }
            | Self::RangeConflict { serial, .. } => Some(*serial),
            Self::Welcome { .. } | Self::Blocking { .. } | Self::Lost { .. } | Self::DeadlockCycle { .. } => None,
        }
    }

    /// The bytes of the frame, without its length field.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode_into(&mut bytes);
        bytes
    }

    /// Appends the bytes of the frame, without its length field.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        let mut w = Writer(core::mem::take(bytes));
        match self {
            Self::Welcome { version, slot, view } => {
                w.u8(129).u16(*version).u16(*slot).u64(*view);
            }
            Self::Joined { serial, lockspace } => {
                w.u8(130).u64(*serial).u32(*lockspace);
            }
            Self::LockspaceLeft { serial } => {
                w.u8(131).u64(*serial);
            }
            Self::Completed { serial, lock, status, mode, flags, lvb, token } => {
                w.u8(132).u64(*serial).u32(*lock).u8(status.number());
                write_mode(&mut w, *mode);
                w.u8(flags.0);
                write_token(&mut w, *token);
                write_lvb(&mut w, lvb.as_ref());
            }
            Self::Blocking { lock, mode } => {
                w.u8(133).u32(*lock).u8(mode.number());
            }
            Self::Lost { reason } => {
                w.u8(134);
                write_text(&mut w, reason);
            }
            Self::Refused { serial, status, reason } => {
                w.u8(135).u64(*serial).u8(status.number());
                write_text(&mut w, reason);
            }
            more => more.encode_more(&mut w),
        }
        *bytes = w.0;
    }

    /// The kinds that are not needed for every lock.
    fn encode_more(&self, w: &mut Writer) {
        match self {
            Self::ManyCompleted { serial, status, failed, locks } => {
                w.u8(136).u64(*serial).u8(status.number()).u16(*failed);
                w.u8(u8::try_from(locks.len()).unwrap_or(u8::MAX));
                for (lock, token) in locks {
                    w.u32(*lock);
                    write_token(w, *token);
                }
            }
            Self::Queried { serial, status, resource, lvb, left_out, locks } => {
                w.u8(137).u64(*serial).u8(status.number()).u8(resource.is_some().into());
                if let Some(resource) = resource {
                    w.name(resource.as_bytes());
                }
                write_copy(w, lvb);
                w.u32(*left_out);
                write_locks(w, locks);
            }
            Self::RangeConflict { serial, status, conflict } => {
                w.u8(138).u64(*serial).u8(status.number());
                write_holder(w, conflict.as_ref());
            }
            Self::DeadlockCycle { serial, cycle } => write_cycle(w.u8(139).u64(*serial), cycle),
            // The others are written by `encode_into`.
            _ => {}
        }
    }

    /// Reads a frame (without its length field).
    ///
    /// # Errors
    /// The bytes are no reply of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        check_length(bytes)?;
        let mut r = Reader(bytes);
        let kind = r.u8()?;
        let reply = match kind {
            129 => Self::Welcome { version: r.u16()?, slot: r.u16()?, view: r.u64()? },
            130 => Self::Joined { serial: r.u64()?, lockspace: r.u32()? },
            131 => Self::LockspaceLeft { serial: r.u64()? },
            132 => {
                let (serial, lock, status, mode) = (r.u64()?, r.u32()?, read_status(&mut r)?, read_mode(&mut r)?);
                let (flags, token) = (ResultFlags(r.u8()?), read_token(&mut r)?);
                Self::Completed { serial, lock, status, mode, flags, lvb: read_lvb(&mut r)?, token }
            }
            133 => Self::Blocking { lock: r.u32()?, mode: some_mode(&mut r)? },
            134 => Self::Lost { reason: read_text(&mut r)? },
            135 => Self::Refused { serial: r.u64()?, status: read_status(&mut r)?, reason: read_text(&mut r)? },
            kind => Self::decode_more(kind, &mut r)?,
        };
        r.end(kind)?;
        Ok(reply)
    }

    fn decode_more(kind: u8, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match kind {
            136 => {
                let (serial, status, failed) = (r.u64()?, read_status(r)?, r.u16()?);
                let count = checked_count("lock count", r.u8()?.into(), 0..=MANY_LOCKS_MAX)?;
                let mut locks = Vec::with_capacity(count);
                for _ in 0..count {
                    locks.push((r.u32()?, read_token(r)?));
                }
                Self::ManyCompleted { serial, status, failed, locks }
            }
            137 => {
                let (serial, status, has_resource) = (r.u64()?, read_status(r)?, r.bool("has_resource")?);
                let resource = if has_resource { Some(read_resource(r)?) } else { None };
                Self::Queried { serial, status, resource, lvb: read_copy(r)?, left_out: r.u32()?, locks: read_locks(r)? }
            }
            138 => Self::RangeConflict { serial: r.u64()?, status: read_status(r)?, conflict: read_holder(r)? },
            139 => Self::DeadlockCycle { serial: r.u64()?, cycle: read_cycle(r)? },
            kind => return Err(DecodeError::UnknownKind { kind }),
        })
    }
}
