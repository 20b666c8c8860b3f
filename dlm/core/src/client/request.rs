//! What: what a client asks, and the bytes of it.
//! Owns: the kinds below 128 and their field order.
//! Invariants: every request with a serial that is not posted is answered exactly once with this serial, or by `Lost`.
//! Does not: judge a request.
//! Called by: `client`'s users.

use super::{LOCKSPACE_BYTES_MAX, Lvb, MANY_LOCKS_MAX, RangeKind, ResourceName, check_length, checked_count, read_resource};
use crate::bytes::{DecodeError, Reader, Writer};
use crate::fields::{read_lvb, some_mode, write_lvb};
use crate::mode::{Flags, Mode};
use alloc::vec::Vec;

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientRequest {
    /// First frame of a connection.
    Hello {
        /// [`CLIENT_VERSION`](super::CLIENT_VERSION) of the client.
        version: u16,
        /// The client knows that it runs outside the node's process tree and does not die with it.
        is_unprotected: bool,
    },
    /// Use a lockspace; answered by `Joined`.
    JoinLockspace {
        /// Chosen by the client, unique among its unanswered requests.
        serial: u64,
        /// 1..=64 bytes.
        name: Vec<u8>,
    },
    /// Stop using a lockspace; answered by `LockspaceLeft`, or `Refused` (`Busy`) while this session has locks in it.
    LeaveLockspace {
        /// As above.
        serial: u64,
        /// From `Joined`.
        lockspace: u32,
    },
    /// A new lock; answered by `Completed` when it is granted or fails.
    Lock {
        /// As above; `CancelRequest` names it.
        serial: u64,
        /// From `Joined`.
        lockspace: u32,
        /// Its name.
        resource: ResourceName,
        /// Wanted mode.
        mode: Mode,
        /// Request flags.
        flags: Flags,
        /// For whom, as the search for deadlocks sees it: a transaction whose number the client chose and which may wait on several
        /// nodes at once; 0 for the session itself.
        owner: u64,
        /// Longest wait; 0 for ever.
        timeout_ms: u32,
        /// Needed with VALBLK (content does not matter for a new lock).
        lvb: Option<Lvb>,
    },
    /// Change a granted lock's mode; answered by `Completed`. A down-conversion with serial 0 is posted: it has no answer.
    Convert {
        /// As above, or 0.
        serial: u64,
        /// From `Completed`.
        lock: u32,
        /// Wanted mode.
        mode: Mode,
        /// Request flags.
        flags: Flags,
        /// As above.
        owner: u64,
        /// As above.
        timeout_ms: u32,
        /// Needed with VALBLK: what to write where the transfer table says so.
        lvb: Option<Lvb>,
    },
    /// Give a lock back; answered by `Completed` with `Unlocked`. With serial 0 it is posted: it has no answer.
    Unlock {
        /// As above, or 0.
        serial: u64,
        /// From `Completed`.
        lock: u32,
        /// VALBLK, IVVALBLK, FORCEUNLOCK.
        flags: Flags,
        /// What to write from PW or EX with VALBLK.
        lvb: Option<Lvb>,
    },
    /// Take back the conversion under way on a lock. The conversion completes with `Cancelled` unless it was granted first; the cancel
    /// itself completes with `Success` afterwards, either way.
    Cancel {
        /// As above.
        serial: u64,
        /// From `Completed`.
        lock: u32,
    },
    /// Take back whatever request was sent with serial `request` and is not answered yet (for `Lock` and `LockMany`, whose lock numbers
    /// are not known yet). Completes as `Cancel` does.
    CancelRequest {
        /// As above.
        serial: u64,
        /// Serial of the request to cancel.
        request: u64,
    },
    /// New locks, all or none; answered by `ManyCompleted`.
    LockMany {
        /// As above; `CancelRequest` names it.
        serial: u64,
        /// From `Joined`.
        lockspace: u32,
        /// 1..=32 different resources and the wanted modes.
        items: Vec<(ResourceName, Mode)>,
        /// Request flags, for all.
        flags: Flags,
        /// As above, for all.
        owner: u64,
        /// Longest wait for all together; 0 for ever.
        timeout_ms: u32,
    },
    /// Who has and who wants the resource of a lock of this session? Answered by `Queried`.
    Query {
        /// As above.
        serial: u64,
        /// From `Completed`.
        lock: u32,
    },
    /// Who has and who wants a resource? Answered by `Queried`.
    QueryResource {
        /// As above.
        serial: u64,
        /// From `Joined`.
        lockspace: u32,
        /// Its name.
        resource: ResourceName,
    },
    /// Give orphans back; answered by `Completed` when every node asked has begun to.
    Purge {
        /// As above.
        serial: u64,
        /// From `Joined`.
        lockspace: u32,
        /// Of which node; [`ALL_SLOTS`](super::ALL_SLOTS) for every one.
        slot: u16,
        /// Of which process; 0 for every one.
        pid: u32,
    },
    /// Take, change or give back a byte range of a resource, by a lock on it that is held in NL; answered by `Completed`.
    Range {
        /// As above.
        serial: u64,
        /// The lock held in NL.
        lock: u32,
        /// Whose range: ranges of one owner never conflict. 0 for the session itself.
        owner: u64,
        /// What is wanted.
        kind: RangeKind,
        /// First byte.
        start: u64,
        /// Last byte.
        end: u64,
        /// NOQUEUE.
        flags: Flags,
        /// As above.
        timeout_ms: u32,
    },
    /// Would a range be granted? Answered by `RangeConflict`.
    RangeQuery {
        /// As above.
        serial: u64,
        /// The lock held in NL.
        lock: u32,
        /// As above.
        owner: u64,
        /// Read or write.
        kind: RangeKind,
        /// First byte.
        start: u64,
        /// Last byte.
        end: u64,
    },
}

impl ClientRequest {
    /// The serial, where there is one.
    #[must_use]
    pub fn serial(&self) -> u64 {
        match self {
            Self::Hello { .. } => 0,
            Self::JoinLockspace { serial, .. }
            | Self::LeaveLockspace { serial, .. }
            | Self::Lock { serial, .. }
            | Self::Convert { serial, .. }
            | Self::Unlock { serial, .. }
            | Self::Cancel { serial, .. }
            | Self::CancelRequest { serial, .. }
            | Self::LockMany { serial, .. }
            | Self::Query { serial, .. }
            | Self::QueryResource { serial, .. }
            | Self::Purge { serial, .. }
            | Self::Range { serial, .. }
            | Self::RangeQuery { serial, .. } => *serial,
        }
    }

    /// Nobody waits for an answer, and none comes.
    #[must_use]
    pub fn is_posted(&self) -> bool {
        matches!(self, Self::Unlock { serial: 0, .. } | Self::Convert { serial: 0, .. })
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
            Self::Hello { version, is_unprotected } => {
                w.u8(1).u16(*version).u8((*is_unprotected).into());
            }
            Self::JoinLockspace { serial, name } => {
                w.u8(2).u64(*serial).name(name);
            }
            Self::LeaveLockspace { serial, lockspace } => {
                w.u8(3).u64(*serial).u32(*lockspace);
            }
            Self::Lock { serial, lockspace, resource, mode, flags, owner, timeout_ms, lvb } => {
                w.u8(4).u64(*serial).u32(*lockspace).name(resource.as_bytes());
                w.u8(mode.number()).u32(flags.0).u64(*owner).u32(*timeout_ms);
                write_lvb(&mut w, lvb.as_ref());
            }
            Self::Convert { serial, lock, mode, flags, owner, timeout_ms, lvb } => {
                w.u8(5).u64(*serial).u32(*lock).u8(mode.number()).u32(flags.0).u64(*owner).u32(*timeout_ms);
                write_lvb(&mut w, lvb.as_ref());
            }
            Self::Unlock { serial, lock, flags, lvb } => {
                w.u8(6).u64(*serial).u32(*lock).u32(flags.0);
                write_lvb(&mut w, lvb.as_ref());
            }
            Self::Cancel { serial, lock } => {
                w.u8(7).u64(*serial).u32(*lock);
            }
            Self::CancelRequest { serial, request } => {
                w.u8(8).u64(*serial).u64(*request);
            }
            more => more.encode_more(&mut w),
        }
        *bytes = w.0;
    }

    /// The kinds that are not needed for every lock.
    fn encode_more(&self, w: &mut Writer) {
        match self {
            Self::LockMany { serial, lockspace, items, flags, owner, timeout_ms } => {
                w.u8(9).u64(*serial).u32(*lockspace).u32(flags.0).u64(*owner).u32(*timeout_ms);
                w.u8(u8::try_from(items.len()).unwrap_or(u8::MAX));
                for (resource, mode) in items {
                    w.name(resource.as_bytes()).u8(mode.number());
                }
            }
            Self::Query { serial, lock } => {
                w.u8(10).u64(*serial).u32(*lock);
            }
            Self::QueryResource { serial, lockspace, resource } => {
                w.u8(11).u64(*serial).u32(*lockspace).name(resource.as_bytes());
            }
            Self::Purge { serial, lockspace, slot, pid } => {
                w.u8(12).u64(*serial).u32(*lockspace).u16(*slot).u32(*pid);
            }
            Self::Range { serial, lock, owner, kind, start, end, flags, timeout_ms } => {
                w.u8(13).u64(*serial).u32(*lock).u64(*owner).u8(kind.number()).u64(*start).u64(*end);
                w.u32(flags.0).u32(*timeout_ms);
            }
            Self::RangeQuery { serial, lock, owner, kind, start, end } => {
                w.u8(14).u64(*serial).u32(*lock).u64(*owner).u8(kind.number()).u64(*start).u64(*end);
            }
            // The others are written by `encode_into`.
            _ => {}
        }
    }

    /// Reads a frame (without its length field).
    ///
    /// # Errors
    /// The bytes are no request of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        check_length(bytes)?;
        let mut r = Reader(bytes);
        let kind = r.u8()?;
        let request = match kind {
            1 => Self::Hello { version: r.u16()?, is_unprotected: r.bool("is_unprotected")? },
            2 => Self::JoinLockspace { serial: r.u64()?, name: r.name("lockspace name length", LOCKSPACE_BYTES_MAX)?.to_vec() },
            3 => Self::LeaveLockspace { serial: r.u64()?, lockspace: r.u32()? },
            4 => Self::Lock {
                serial: r.u64()?,
                lockspace: r.u32()?,
                resource: read_resource(&mut r)?,
                mode: some_mode(&mut r)?,
                flags: Flags(r.u32()?),
                owner: r.u64()?,
                timeout_ms: r.u32()?,
                lvb: read_lvb(&mut r)?,
            },
            5 => Self::Convert {
                serial: r.u64()?,
                lock: r.u32()?,
                mode: some_mode(&mut r)?,
                flags: Flags(r.u32()?),
                owner: r.u64()?,
                timeout_ms: r.u32()?,
                lvb: read_lvb(&mut r)?,
            },
            6 => Self::Unlock { serial: r.u64()?, lock: r.u32()?, flags: Flags(r.u32()?), lvb: read_lvb(&mut r)? },
            7 => Self::Cancel { serial: r.u64()?, lock: r.u32()? },
            8 => Self::CancelRequest { serial: r.u64()?, request: r.u64()? },
            kind => Self::decode_more(kind, &mut r)?,
        };
        r.end(kind)?;
        Ok(request)
    }

    fn decode_more(kind: u8, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match kind {
            9 => {
                let (serial, lockspace, flags, owner, timeout_ms) = (r.u64()?, r.u32()?, Flags(r.u32()?), r.u64()?, r.u32()?);
                let count = checked_count("item count", r.u8()?.into(), 1..=MANY_LOCKS_MAX)?;
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push((read_resource(r)?, some_mode(r)?));
                }
                Self::LockMany { serial, lockspace, items, flags, owner, timeout_ms }
            }
            10 => Self::Query { serial: r.u64()?, lock: r.u32()? },
            11 => Self::QueryResource { serial: r.u64()?, lockspace: r.u32()?, resource: read_resource(r)? },
            12 => Self::Purge { serial: r.u64()?, lockspace: r.u32()?, slot: r.u16()?, pid: r.u32()? },
            13 => Self::Range {
                serial: r.u64()?,
                lock: r.u32()?,
                owner: r.u64()?,
                kind: RangeKind::from_number(r.u8()?)?,
                start: r.u64()?,
                end: r.u64()?,
                flags: Flags(r.u32()?),
                timeout_ms: r.u32()?,
            },
            14 => Self::RangeQuery {
                serial: r.u64()?,
                lock: r.u32()?,
                owner: r.u64()?,
                kind: RangeKind::from_number(r.u8()?)?,
                start: r.u64()?,
                end: r.u64()?,
            },
            kind => return Err(DecodeError::UnknownKind { kind }),
        })
    }
}
