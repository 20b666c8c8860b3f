//! What: the records beside the register: fencing requests, journal entries, tool claims.
//! Owns: their payload fields; the types `Requests` and `ToolClaim`.
//! Invariants: each fits the first 512 bytes of its unit.
//! Does not: decide whom to fence or who may repair.
//! Called by: the daemon (requests, journal), tools (claims), fsck and `deadbolt why` (all).

use crate::head::{Cursor, EncodeError, Field, Head, Place, RecordError, RecordType, Unit, fields, open_short, put, put_string};
use crate::head::{check_reserved, check_zero, seal_short, string_of, u8_of, u16_of, u64_of};
use crate::register::{head_of, life_of};
use crate::types::{BootId, FenceRequest, Incarnation, JournalEntry, Life, SLOTS_MAX, SlotIndex, ViewNumber};
use alloc::{string::String, vec::Vec};

/// The most requests that a node keeps: more victims than a view can lose at once in a cluster of its usual size.
pub const REQUESTS_MAX: usize = 8;
/// Bytes of one request.
pub const REQUEST_BYTES: usize = 52;
/// Longest text of a journal entry.
pub const JOURNAL_TEXT_BYTES_MAX: usize = 384;

fields! {
    /// Payload of a requests unit.
    pub mod requests_fields from 88 to 508 {
        COUNT: 88, 1;
        RESERVED: 89, 3;
        REQUESTS: 92, 416;
    }
}
fields! {
    /// One request; offsets from its own start.
    pub mod request_fields from 0 to 52 {
        VICTIM_SLOT: 0, 2;
        RESERVED: 2, 2;
        VICTIM_BOOT: 4, 16;
        VICTIM_INCARNATION: 20, 16;
        VIEW: 36, 8;
        SERIAL: 44, 8;
    }
}
fields! {
    /// Payload of a journal unit.
    pub mod journal_fields from 88 to 508 {
        VIEW: 88, 8;
        WALL_MS: 96, 8;
        BOOTTIME_MS: 104, 8;
        TEXT_BYTES: 112, 2;
        RESERVED: 114, 10;
        TEXT: 124, 384;
    }
}
fields! {
    /// Payload of a tool's claim.
    pub mod tool_fields from 88 to 508 {
        TOOL: 88, 1;
        RESERVED_A: 89, 7;
        WALL_MS: 96, 8;
        HOST: 104, 64;
        RESERVED_B: 168, 340;
    }
}
const _: () = assert!(requests_fields::REQUESTS.size == REQUESTS_MAX * REQUEST_BYTES);
const _: () = assert!(journal_fields::TEXT.size == JOURNAL_TEXT_BYTES_MAX);

/// A node's fencing requests. One writer: its daemon. A request stands until its victim is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Requests {
    /// The life that wrote them.
    pub life: Life,
    /// Record sequence.
    pub sequence: u64,
    /// At most [`REQUESTS_MAX`].
    pub requests: Vec<FenceRequest>,
}

impl Requests {
    /// The bytes of a requests unit.
    ///
    /// # Errors
    /// More requests than fit.
    ///
    /// # Panics
    /// When the slot is not the place's.
    pub fn encode(&self, place: &Place) -> Result<Unit, EncodeError> {
        use request_fields as entry;
        use requests_fields as at;
        assert_eq!(self.life.slot, place.slot, "requests belong into their own slot");
        let count = match u8::try_from(self.requests.len()) {
            Ok(count) if self.requests.len() <= REQUESTS_MAX => count,
            _ => return Err(EncodeError::TooLong { what: "requests", found: self.requests.len(), most: REQUESTS_MAX }),
        };
        Ok(seal_short(&head_of(RecordType::Requests, place, &self.life, self.sequence), |unit| {
            put(unit, at::COUNT, &[count]);
            for (index, request) in self.requests.iter().enumerate() {
                let base = at::REQUESTS.offset + index * REQUEST_BYTES;
                let inside = |field: Field| Field { offset: base + field.offset, ..field };
                put(unit, inside(entry::VICTIM_SLOT), &request.victim.slot.0.to_le_bytes());
                put(unit, inside(entry::VICTIM_BOOT), &request.victim.boot.0);
                put(unit, inside(entry::VICTIM_INCARNATION), &request.victim.incarnation.0);
                put(unit, inside(entry::VIEW), &request.view.0.to_le_bytes());
                put(unit, inside(entry::SERIAL), &request.serial.to_le_bytes());
            }
        }))
    }
    /// Judges a requests unit.
    ///
    /// # Errors
    /// Whatever makes it no news.
    pub fn decode(bytes: &[u8], place: &Place) -> Result<Self, RecordError> {
        use requests_fields as at;
        let head = open_short(bytes, place, RecordType::Requests, at::FIELDS)?;
        let count = usize::from(u8_of(bytes, at::COUNT));
        if count > REQUESTS_MAX {
            return Err(RecordError::BadField { field: "COUNT", value: count as u64 });
        }
        let end = at::REQUESTS.offset + count * REQUEST_BYTES;
        check_zero(bytes, end, at::REQUESTS.offset + at::REQUESTS.size)?;
        let mut requests = Vec::with_capacity(count);
        let entries = bytes.get(at::REQUESTS.offset..end).unwrap_or_default();
        for entry in entries.chunks_exact(REQUEST_BYTES) {
            requests.push(decode_request(entry)?);
        }
        Ok(Self { life: life_of(&head), sequence: head.sequence, requests })
    }
}

fn decode_request(entry: &[u8]) -> Result<FenceRequest, RecordError> {
    check_reserved(entry, request_fields::FIELDS)?;
    let mut cursor = Cursor::new(entry);
    let slot = SlotIndex(cursor.u16()?);
    if slot.0 >= SLOTS_MAX {
        return Err(RecordError::BadField { field: "VICTIM_SLOT", value: u64::from(slot.0) });
    }
    cursor.take(request_fields::RESERVED.size)?;
    Ok(FenceRequest {
        victim: Life { slot, boot: BootId(cursor.array()?), incarnation: Incarnation(cursor.array()?) },
        view: ViewNumber(cursor.u64()?),
        serial: cursor.u64()?,
    })
}

impl JournalEntry {
    /// The bytes of a journal unit. A longer text is cut at a character: last words are for people.
    ///
    /// # Panics
    /// When the slot is not the place's.
    #[must_use]
    pub fn encode(&self, place: &Place) -> Unit {
        use journal_fields as at;
        assert_eq!(self.life.slot, place.slot, "a journal entry belongs into its own slot");
        let mut length = self.text.len().min(JOURNAL_TEXT_BYTES_MAX);
        while !self.text.is_char_boundary(length) {
            length -= 1;
        }
        let text = self.text.as_bytes().get(..length).unwrap_or_default();
        seal_short(&head_of(RecordType::Journal, place, &self.life, self.sequence), |unit| {
            put(unit, at::VIEW, &self.view.0.to_le_bytes());
            put(unit, at::WALL_MS, &self.wall_ms.to_le_bytes());
            put(unit, at::BOOTTIME_MS, &self.boottime_ms.to_le_bytes());
            put(unit, at::TEXT_BYTES, &u16::try_from(length).unwrap_or(0).to_le_bytes());
            put(unit, at::TEXT, text);
        })
    }
    /// Judges a journal unit.
    ///
    /// # Errors
    /// Whatever makes it no news.
    pub fn decode(bytes: &[u8], place: &Place) -> Result<Self, RecordError> {
        use journal_fields as at;
        let head = open_short(bytes, place, RecordType::Journal, at::FIELDS)?;
        let length = usize::from(u16_of(bytes, at::TEXT_BYTES));
        if length > JOURNAL_TEXT_BYTES_MAX {
            return Err(RecordError::BadField { field: "TEXT_BYTES", value: length as u64 });
        }
        check_zero(bytes, at::TEXT.offset + length, at::TEXT.offset + at::TEXT.size)?;
        let text = bytes.get(at::TEXT.offset..at::TEXT.offset + length).unwrap_or_default();
        let Ok(text) = core::str::from_utf8(text) else {
            return Err(RecordError::BadField { field: "TEXT", value: length as u64 });
        };
        Ok(Self {
            life: life_of(&head),
            sequence: head.sequence,
            view: ViewNumber(u64_of(bytes, at::VIEW)),
            wall_ms: u64_of(bytes, at::WALL_MS),
            boottime_ms: u64_of(bytes, at::BOOTTIME_MS),
            text: text.into(),
        })
    }
}

/// Which tool has claimed a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tool {
    /// A repair.
    Fsck,
    /// A format; in the place of superblock copy 0 it is the mark of one that has not ended.
    Format,
    /// A change of size.
    Resize,
}

impl Tool {
    /// Its name, as people type it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fsck => "fsck",
            Self::Format => "format",
            Self::Resize => "resize",
        }
    }
}

/// A tool's claim on the whole device: in the tool slot, or as the mark of a format.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ToolClaim {
    /// The machine's boot.
    pub boot: BootId,
    /// Random for a run; for a format the uuid of the device, so that two paths of one device are told apart.
    pub run: Incarnation,
    /// Grows while the tool works.
    pub sequence: u64,
    /// Which.
    pub tool: Tool,
    /// For people only, ms since 1970.
    pub wall_ms: u64,
    /// Name of the host, for people; at most 63 bytes.
    pub host: String,
}

impl ToolClaim {
    /// The bytes of a claim.
    ///
    /// # Errors
    /// A host name that is too long.
    pub fn encode(&self, place: &Place) -> Result<Unit, EncodeError> {
        use tool_fields as at;
        let head = Head {
            record: RecordType::ToolClaim,
            body_bytes: 0,
            body_checksum: 0,
            place: *place,
            boot: self.boot,
            incarnation: self.run,
            sequence: self.sequence,
        };
        let tool = match self.tool {
            Tool::Fsck => 1,
            Tool::Format => 2,
            Tool::Resize => 3,
        };
        let mut named = Ok(());
        let unit = seal_short(&head, |unit| {
            put(unit, at::TOOL, &[tool]);
            put(unit, at::WALL_MS, &self.wall_ms.to_le_bytes());
            named = put_string(unit, at::HOST, &self.host);
        });
        named.map(|()| unit)
    }
    /// Judges a claim.
    ///
    /// # Errors
    /// Whatever makes it no news.
    pub fn decode(bytes: &[u8], place: &Place) -> Result<Self, RecordError> {
        use tool_fields as at;
        let head = open_short(bytes, place, RecordType::ToolClaim, at::FIELDS)?;
        let tool = match u8_of(bytes, at::TOOL) {
            1 => Tool::Fsck,
            2 => Tool::Format,
            3 => Tool::Resize,
            value => return Err(RecordError::BadField { field: "TOOL", value: u64::from(value) }),
        };
        Ok(Self {
            boot: head.boot,
            run: head.incarnation,
            sequence: head.sequence,
            tool,
            wall_ms: u64_of(bytes, at::WALL_MS),
            host: string_of(bytes, at::HOST)?,
        })
    }
}
