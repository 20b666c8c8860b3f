//! What: the frames between a client and its node's daemon: their limits, the fields they share, and how frames follow each other.
//! Owns: limits and field types (drawn in docs/formats/client-protocol.md); the frames themselves are in `request` and `reply`.
//! Invariants: decoding never panics, and takes no memory for `Lock`, `Convert` and `Unlock`.
//! Does not: read or write sockets, keep sessions.
//! Called by: `LockService`, the daemon's server, both client libraries.

mod reply;
mod request;
#[cfg(test)]
mod tests;

use crate::bytes::{DecodeError, Reader, Writer};
use alloc::string::String;
use alloc::vec::Vec;

pub use reply::{ClientReply, QueriedLock, RangeHolder};
pub(crate) use reply::{read_holder, read_locks, write_holder, write_locks};
pub use request::ClientRequest;

/// Version of this protocol; a server refuses a `Hello` of another.
pub const CLIENT_VERSION: u16 = 2;
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
/// Longest text of a reply, in bytes (chosen, no strong reason).
pub const TEXT_BYTES_MAX: usize = 1024;
/// Most locks that one request asks for (chosen: renames and the like need a few).
pub const MANY_LOCKS_MAX: usize = 32;
/// Most locks that one `Queried` lists (what fits in a frame beside the other fields).
pub const QUERIED_LOCKS_MAX: usize = 140;
/// A slot of `Purge`: every node.
pub const ALL_SLOTS: u16 = u16::MAX;
/// `ManyCompleted.failed`: none did.
pub const NONE_FAILED: u16 = u16::MAX;

/// A lock value block.
pub type Lvb = [u8; LVB_BYTES];

/// A resource's name: 1 to 64 bytes of any content, kept in place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceName {
    bytes: [u8; RESOURCE_BYTES_MAX],
    length: u8,
}

impl ResourceName {
    /// `None` when the name is empty or too long.
    #[must_use]
    pub fn new(name: &[u8]) -> Option<Self> {
        let mut bytes = [0; RESOURCE_BYTES_MAX];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        let length = u8::try_from(name.len()).ok().filter(|length| *length > 0)?;
        Some(Self { bytes, length })
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or(&self.bytes)
    }
}

impl core::fmt::Debug for ResourceName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

/// What is asked of a byte range, or held of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RangeKind {
    /// Others may read it too.
    Read,
    /// Nobody else may have any of it.
    Write,
    /// Given back.
    Unlock,
}

impl RangeKind {
    /// Its number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Unlock => 2,
        }
    }

    /// The kind of a number on the wire.
    ///
    /// # Errors
    /// An unknown number.
    pub fn from_number(number: u8) -> Result<Self, DecodeError> {
        match number {
            0 => Ok(Self::Read),
            1 => Ok(Self::Write),
            2 => Ok(Self::Unlock),
            number => Err(DecodeError::BadField { field: "range kind", value: number.into() }),
        }
    }
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

fn check_length(bytes: &[u8]) -> Result<(), DecodeError> {
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(DecodeError::TooLong { found: bytes.len(), limit: FRAME_BYTES_MAX });
    }
    Ok(())
}

pub(crate) fn read_resource(r: &mut Reader<'_>) -> Result<ResourceName, DecodeError> {
    let field = "resource name length";
    ResourceName::new(r.name(field, RESOURCE_BYTES_MAX)?).ok_or(DecodeError::BadField { field, value: 0 })
}

/// A count that is in its range.
pub(crate) fn checked_count(field: &'static str, count: u64, range: core::ops::RangeInclusive<usize>) -> Result<usize, DecodeError> {
    usize::try_from(count).ok().filter(|count| range.contains(count)).ok_or(DecodeError::BadField { field, value: count })
}

pub(crate) fn write_text(writer: &mut Writer, text: &str) {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let cut = text.get(..end).unwrap_or_default().as_bytes();
    writer.u16(u16::try_from(cut.len()).unwrap_or_default()).bytes(cut);
}

pub(crate) fn read_text(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    let length = reader.u16()?;
    if usize::from(length) > TEXT_BYTES_MAX {
        return Err(DecodeError::BadField { field: "text length", value: length.into() });
    }
    let text = core::str::from_utf8(reader.take(length.into())?);
    text.map(String::from).map_err(|error| DecodeError::BadField { field: "text", value: error.valid_up_to() as u64 })
}
