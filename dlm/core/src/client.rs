//! What: the frames between a client and its node's daemon, and their bytes.
//! Owns: message kinds, limits, field order (drawn in docs/formats/client-protocol.md).
//! Invariants: every request with a serial is answered exactly once with this serial, or by `Lost`; decoding never panics.
//! Does not: read or write sockets, keep sessions.
//! Called by: `LockService`, the daemon's server, both client libraries.

use crate::bytes::{DecodeError, Reader, Writer};
use crate::mode::{Flags, LockStatus, Mode, ResultFlags, Token};
use alloc::string::String;
use alloc::vec::Vec;

/// Version of this protocol; a server refuses a `Hello` of another.
pub const CLIENT_VERSION: u16 = 1;
/// Longest frame after its length field, in bytes (compatibility: the Linux DLM's longest message).
pub const FRAME_BYTES_MAX: usize = 4096;
/// Size of the length field before each frame, in bytes.
pub const FRAME_HEAD_BYTES: usize = 4;
/// Longest resource name, in bytes; any bytes (compatibility).
pub const RESOURCE_BYTES_MAX: usize = 64;
/// Longest lockspace name, in bytes; any bytes (compatibility).
pub const LOCKSPACE_BYTES_MAX: usize = 64;
/// Size of a value block, in bytes (compatibility: user lockspaces).
pub const LVB_BYTES: usize = 32;
/// Longest text of a refusal, in bytes (chosen, no strong reason).
pub const TEXT_BYTES_MAX: usize = 1024;

/// A lock value block.
pub type Lvb = [u8; LVB_BYTES];

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientRequest {
    /// First frame of a connection.
    Hello {
        /// [`CLIENT_VERSION`] of the client.
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
        /// 1..=64 bytes.
        resource: Vec<u8>,
        /// Wanted mode.
        mode: Mode,
        /// Request flags.
        flags: Flags,
        /// Needed with VALBLK (content does not matter for a new lock).
        lvb: Option<Lvb>,
    },
    /// Change a granted lock's mode; answered by `Completed`.
    Convert {
        /// As above.
        serial: u64,
        /// From `Completed`.
        lock: u32,
        /// Wanted mode.
        mode: Mode,
        /// Request flags.
        flags: Flags,
        /// Needed with VALBLK: what to write where the transfer table says so.
        lvb: Option<Lvb>,
    },
    /// Give a lock back; answered by `Completed` with `Unlocked`.
    Unlock {
        /// As above.
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
    /// Take back whatever request was sent with serial `request` and is not answered yet (for `Lock`, whose lock number is not known
    /// yet). Completes as `Cancel` does.
    CancelRequest {
        /// As above.
        serial: u64,
        /// Serial of the request to cancel.
        request: u64,
    },
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
        /// DEMOTED, VALNOTVALID, ALTMODE.
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
}

/// Is there a whole frame at the front of `buffer`? Gives its bytes (after the length field) and how many bytes to consume.
///
/// # Errors
/// A length over [`FRAME_BYTES_MAX`]: the connection cannot be followed any further.
pub fn split_frame(buffer: &[u8]) -> Result<Option<(&[u8], usize)>, DecodeError> {
    let mut reader = Reader(buffer);
    let Ok(length) = reader.u32() else { return Ok(None) };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(DecodeError::TooLong { found: length, limit: FRAME_BYTES_MAX });
    }
    Ok(reader.take(length).ok().map(|frame| (frame, FRAME_HEAD_BYTES + length)))
}

/// The frame with its length field in front.
#[must_use]
pub fn frame(body: &[u8]) -> Vec<u8> {
    let mut writer = Writer(Vec::with_capacity(FRAME_HEAD_BYTES + body.len()));
    writer.u32(u32::try_from(body.len()).unwrap_or(u32::MAX)).bytes(body);
    writer.0
}

fn write_lvb(writer: &mut Writer, lvb: Option<&Lvb>) {
    match lvb {
        None => writer.u8(0),
        Some(lvb) => writer.u8(1).bytes(lvb),
    };
}

fn read_lvb(reader: &mut Reader<'_>) -> Result<Option<Lvb>, DecodeError> {
    Ok(if reader.bool("has_lvb")? { Some(reader.array()?) } else { None })
}

fn write_text(writer: &mut Writer, text: &str) {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let cut = text.get(..end).unwrap_or_default().as_bytes();
    writer.u16(u16::try_from(cut.len()).unwrap_or_default()).bytes(cut);
}

fn read_text(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    let length = reader.u16()?;
    if usize::from(length) > TEXT_BYTES_MAX {
        return Err(DecodeError::BadField { field: "text length", value: length.into() });
    }
    let text = core::str::from_utf8(reader.take(length.into())?);
    text.map(String::from).map_err(|error| DecodeError::BadField { field: "text", value: error.valid_up_to() as u64 })
}

fn read_mode(reader: &mut Reader<'_>) -> Result<Mode, DecodeError> {
    Mode::from_number(reader.u8()?)
}

const NO_MODE: u8 = 255;

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
            | Self::CancelRequest { serial, .. } => *serial,
        }
    }

    /// The bytes of the frame, without its length field.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
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
            Self::Lock { serial, lockspace, resource, mode, flags, lvb } => {
                w.u8(4).u64(*serial).u32(*lockspace).name(resource).u8(mode.number()).u32(flags.0);
                write_lvb(&mut w, lvb.as_ref());
            }
            Self::Convert { serial, lock, mode, flags, lvb } => {
                w.u8(5).u64(*serial).u32(*lock).u8(mode.number()).u32(flags.0);
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
        }
        w.0
    }

    /// Reads a frame (without its length field).
    ///
    /// # Errors
    /// The bytes are no request of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(DecodeError::TooLong { found: bytes.len(), limit: FRAME_BYTES_MAX });
        }
        let mut r = Reader(bytes);
        let kind = r.u8()?;
        let request = match kind {
            1 => Self::Hello { version: r.u16()?, is_unprotected: r.bool("is_unprotected")? },
            2 => Self::JoinLockspace { serial: r.u64()?, name: r.name("lockspace name length", LOCKSPACE_BYTES_MAX)?.to_vec() },
            3 => Self::LeaveLockspace { serial: r.u64()?, lockspace: r.u32()? },
            4 => Self::Lock {
                serial: r.u64()?,
                lockspace: r.u32()?,
                resource: r.name("resource name length", RESOURCE_BYTES_MAX)?.to_vec(),
                mode: read_mode(&mut r)?,
                flags: Flags(r.u32()?),
                lvb: read_lvb(&mut r)?,
            },
            5 => {
                Self::Convert { serial: r.u64()?, lock: r.u32()?, mode: read_mode(&mut r)?, flags: Flags(r.u32()?), lvb: read_lvb(&mut r)? }
            }
            6 => Self::Unlock { serial: r.u64()?, lock: r.u32()?, flags: Flags(r.u32()?), lvb: read_lvb(&mut r)? },
            7 => Self::Cancel { serial: r.u64()?, lock: r.u32()? },
            8 => Self::CancelRequest { serial: r.u64()?, request: r.u64()? },
            kind => return Err(DecodeError::UnknownKind { kind }),
        };
        r.end(kind)?;
        Ok(request)
    }
}

impl ClientReply {
    /// It answers a request with a serial.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Joined { .. } | Self::LockspaceLeft { .. } | Self::Completed { .. } | Self::Refused { .. })
    }

    /// The bytes of the frame, without its length field.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
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
                let mode = mode.map_or(NO_MODE, Mode::number);
                w.u8(132).u64(*serial).u32(*lock).u8(status.number()).u8(mode).u8(flags.0).u64(token.view).u64(token.counter);
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
        }
        w.0
    }

    /// Reads a frame (without its length field).
    ///
    /// # Errors
    /// The bytes are no reply of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(DecodeError::TooLong { found: bytes.len(), limit: FRAME_BYTES_MAX });
        }
        let mut r = Reader(bytes);
        let kind = r.u8()?;
        let reply = match kind {
            129 => Self::Welcome { version: r.u16()?, slot: r.u16()?, view: r.u64()? },
            130 => Self::Joined { serial: r.u64()?, lockspace: r.u32()? },
            131 => Self::LockspaceLeft { serial: r.u64()? },
            132 => {
                let (serial, lock, status) = (r.u64()?, r.u32()?, LockStatus::from_number(r.u8()?)?);
                let mode = match r.u8()? {
                    NO_MODE => None,
                    number => Some(Mode::from_number(number)?),
                };
                let flags = ResultFlags(r.u8()?);
                let token = Token { view: r.u64()?, counter: r.u64()? };
                Self::Completed { serial, lock, status, mode, flags, lvb: read_lvb(&mut r)?, token }
            }
            133 => Self::Blocking { lock: r.u32()?, mode: read_mode(&mut r)? },
            134 => Self::Lost { reason: read_text(&mut r)? },
            135 => Self::Refused { serial: r.u64()?, status: LockStatus::from_number(r.u8()?)?, reason: read_text(&mut r)? },
            kind => return Err(DecodeError::UnknownKind { kind }),
        };
        r.end(kind)?;
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::{MODES, STATUSES};
    use proptest::prelude::*;

    fn lvb() -> impl Strategy<Value = Option<Lvb>> {
        proptest::option::of(any::<[u8; 32]>())
    }

    fn mode() -> impl Strategy<Value = Mode> {
        (0..6usize).prop_map(|number| MODES[number])
    }

    fn request() -> impl Strategy<Value = ClientRequest> {
        let name = || proptest::collection::vec(any::<u8>(), 1..=64);
        prop_oneof![
            (any::<u16>(), any::<bool>()).prop_map(|(version, is_unprotected)| ClientRequest::Hello { version, is_unprotected }),
            (any::<u64>(), name()).prop_map(|(serial, name)| ClientRequest::JoinLockspace { serial, name }),
            (any::<u64>(), any::<u32>()).prop_map(|(serial, lockspace)| ClientRequest::LeaveLockspace { serial, lockspace }),
            (any::<u64>(), any::<u32>(), name(), mode(), any::<u32>(), lvb()).prop_map(
                |(serial, lockspace, resource, mode, flags, lvb)| ClientRequest::Lock {
                    serial,
                    lockspace,
                    resource,
                    mode,
                    flags: Flags(flags),
                    lvb
                }
            ),
            (any::<u64>(), any::<u32>(), mode(), any::<u32>(), lvb())
                .prop_map(|(serial, lock, mode, flags, lvb)| { ClientRequest::Convert { serial, lock, mode, flags: Flags(flags), lvb } }),
            (any::<u64>(), any::<u32>(), any::<u32>(), lvb()).prop_map(|(serial, lock, flags, lvb)| ClientRequest::Unlock {
                serial,
                lock,
                flags: Flags(flags),
                lvb
            }),
            (any::<u64>(), any::<u32>()).prop_map(|(serial, lock)| ClientRequest::Cancel { serial, lock }),
            (any::<u64>(), any::<u64>()).prop_map(|(serial, request)| ClientRequest::CancelRequest { serial, request }),
        ]
    }

    fn reply() -> impl Strategy<Value = ClientReply> {
        let status = || (0..STATUSES.len()).prop_map(|number| STATUSES[number]);
        prop_oneof![
            (any::<u16>(), any::<u16>(), any::<u64>()).prop_map(|(version, slot, view)| ClientReply::Welcome { version, slot, view }),
            (any::<u64>(), any::<u32>()).prop_map(|(serial, lockspace)| ClientReply::Joined { serial, lockspace }),
            any::<u64>().prop_map(|serial| ClientReply::LockspaceLeft { serial }),
            (any::<(u64, u32)>(), status(), proptest::option::of(mode()), any::<u8>(), lvb(), any::<(u64, u64)>()).prop_map(
                |((serial, lock), status, mode, flags, lvb, (view, counter))| ClientReply::Completed {
                    serial,
                    lock,
                    status,
                    mode,
                    flags: ResultFlags(flags),
                    lvb,
                    token: Token { view, counter }
                }
            ),
            (any::<u32>(), mode()).prop_map(|(lock, mode)| ClientReply::Blocking { lock, mode }),
            "[a-z\u{e9} ]{0,80}".prop_map(|reason| ClientReply::Lost { reason }),
            (any::<u64>(), status(), "[a-z ]{0,80}").prop_map(|(serial, status, reason)| ClientReply::Refused { serial, status, reason }),
        ]
    }

    proptest! {
        #[test]
        fn requests_come_back(request in request()) {
            let bytes = request.encode();
            prop_assert!(bytes.len() <= FRAME_BYTES_MAX);
            prop_assert_eq!(ClientRequest::decode(&bytes), Ok(request.clone()));
            let framed = frame(&bytes);
            prop_assert_eq!(split_frame(&framed), Ok(Some((bytes.as_slice(), framed.len()))));
            prop_assert_eq!(split_frame(&framed[..framed.len() - 1]), Ok(None));
            prop_assert!(ClientRequest::decode(&bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn replies_come_back(reply in reply()) {
            let bytes = reply.encode();
            prop_assert!(bytes.len() <= FRAME_BYTES_MAX);
            prop_assert_eq!(ClientReply::decode(&bytes), Ok(reply));
            let mut longer = bytes;
            longer.push(0);
            prop_assert!(ClientReply::decode(&longer).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(kind in any::<u8>(), mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = split_frame(&bytes);
            let _ = (ClientRequest::decode(&bytes), ClientReply::decode(&bytes));
            if let Some(first) = bytes.first_mut() {
                *first = kind % 9;
                let _ = ClientRequest::decode(&bytes);
                bytes[0] = 128 + kind % 9;
                let _ = ClientReply::decode(&bytes);
            }
        }
    }

    #[test]
    fn the_page_is_true() {
        let (serial, lockspace, lock, mode, flags, lvb) = (1, 2, 3, Mode::Pw, Flags::VALBLK, Some([4; 32]));
        let name = || b"names".to_vec();
        let requests = [
            ClientRequest::Hello { version: 1, is_unprotected: true },
            ClientRequest::JoinLockspace { serial, name: name() },
            ClientRequest::LeaveLockspace { serial, lockspace },
            ClientRequest::Lock { serial, lockspace, resource: name(), mode, flags, lvb },
            ClientRequest::Convert { serial, lock, mode, flags, lvb },
            ClientRequest::Unlock { serial, lock, flags, lvb },
            ClientRequest::Cancel { serial, lock },
            ClientRequest::CancelRequest { serial, request: 1 },
        ];
        let (status, token, reason) = (LockStatus::Again, Token::default(), || String::from("words"));
        let replies = [
            ClientReply::Welcome { version: 1, slot: 2, view: 3 },
            ClientReply::Joined { serial, lockspace },
            ClientReply::LockspaceLeft { serial },
            ClientReply::Completed { serial, lock, status, mode: None, flags: ResultFlags::DEMOTED, lvb, token },
            ClientReply::Blocking { lock, mode },
            ClientReply::Lost { reason: reason() },
            ClientReply::Refused { serial, status, reason: reason() },
        ];
        let requests = requests.iter().map(|request| (std::format!("{request:?}"), request.encode()));
        let replies = replies.iter().map(|reply| (std::format!("{reply:?}"), reply.encode()));
        let page = include_str!("../../../docs/formats/client-protocol.md");
        crate::documents::compare(page, &requests.chain(replies).collect::<Vec<_>>());
        for status in STATUSES {
            let row = std::format!("| {} | {status:?} | {} |", status.number(), status.errno());
            assert!(page.contains(&row), "{row}");
        }
    }

    #[test]
    fn a_frame_over_the_limit_ends_the_connection() {
        assert_eq!(split_frame(&[1, 16, 0, 0]), Err(DecodeError::TooLong { found: 4097, limit: 4096 }));
        assert_eq!(split_frame(&[0, 16, 0, 0]), Ok(None));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let reason: String = core::iter::repeat_n('\u{e9}', 1000).collect();
        let Ok(ClientReply::Lost { reason: back }) = ClientReply::decode(&ClientReply::Lost { reason: reason.clone() }.encode()) else {
            panic!("must decode")
        };
        assert_eq!(back.len(), TEXT_BYTES_MAX);
        assert!(reason.starts_with(&back));
        // One text has one encoding.
        assert_eq!(ClientReply::decode(&[134, 1, 0, 0xff]), Err(DecodeError::BadField { field: "text", value: 0 }));
    }
}
