//! What: the head that every record shares, the error of every decoder, and the tools to describe fields.
//! Owns: magic, record types, head fields, checksums, `Place`, `RecordError`.
//! Invariants: nothing of a record is believed before its checksum, type, cluster, offset and slot were compared.
//! Does not: know what a payload means.
//! Called by: the record modules beside it.

use crate::types::{BootId, ByteOffset, ClusterUuid, Incarnation, SlotIndex, UNIT_BYTES};
use alloc::{boxed::Box, vec::Vec};

/// First eight bytes of every record of ours.
pub const MAGIC: [u8; 8] = *b"DEADBOLT";
/// Version of every record that this code writes and reads.
pub const VERSION: u16 = 1;
/// What is written atomically: the smallest logical sector that exists (a property of block devices).
pub const HEAD_BYTES: usize = 512;
/// Where a record's own part of the head begins.
pub const PAYLOAD_OFFSET: usize = 88;
/// Size of a record's own part of the head.
pub const PAYLOAD_BYTES: usize = 420;
/// Where the head's checksum stands, behind everything it covers.
pub const CHECKSUM_OFFSET: usize = 508;

/// One unit, as it is written.
pub type Unit = Box<[u8; UNIT_BYTES]>;

/// What kind of record a unit carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum RecordType {
    /// Who the device is, where everything lies.
    Superblock = 1,
    /// A node's beat.
    Beat = 2,
    /// A node's ballot.
    Vote = 3,
    /// The newest decided view that a node knows.
    ViewRecord = 4,
    /// The body of a view.
    ViewBody = 5,
    /// A node's fencing requests.
    Requests = 6,
    /// An event of a node.
    Journal = 7,
    /// A tool's claim on the whole device.
    ToolClaim = 8,
}

impl RecordType {
    /// The type of a number from a medium.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Superblock,
            2 => Self::Beat,
            3 => Self::Vote,
            4 => Self::ViewRecord,
            5 => Self::ViewBody,
            6 => Self::Requests,
            7 => Self::Journal,
            8 => Self::ToolClaim,
            _ => return None,
        })
    }
    /// The number on the medium.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Superblock => 1,
            Self::Beat => 2,
            Self::Vote => 3,
            Self::ViewRecord => 4,
            Self::ViewBody => 5,
            Self::Requests => 6,
            Self::Journal => 7,
            Self::ToolClaim => 8,
        }
    }
    /// Its name in messages and documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Beat => "beat",
            Self::Vote => "vote",
            Self::ViewRecord => "view-record",
            Self::ViewBody => "view-body",
            Self::Requests => "requests",
            Self::Journal => "journal",
            Self::ToolClaim => "tool-claim",
        }
    }
}

/// Where a reader expects a record to stand. Everything is compared with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The cluster that the device belongs to.
    pub cluster: ClusterUuid,
    /// The byte offset that was read.
    pub offset: ByteOffset,
    /// Whose unit this is; `SlotIndex::NONE` for nobody's.
    pub slot: SlotIndex,
}

/// Why bytes are not the record that was expected. To a machine every one of them is "no news", never "empty".
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Fewer bytes than the record has.
    #[error("only {found} of {needed} bytes were read; read the whole unit again")]
    TooShort {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The magic is not ours.
    #[error("{}", if *.is_all_zero { "never written (all zero)" } else { "not a record of Deadbolt (other magic): foreign or damaged bytes" })]
    NotARecord {
        /// The first eight bytes.
        found: [u8; 8],
        /// Every byte of the unit is zero: never written.
        is_all_zero: bool,
    },
    /// The checksum of the head or of the body does not fit.
    #[error("checksum {found:#010x} stands, {computed:#010x} computed: torn or damaged; read again, then let its owner rewrite it")]
    Checksum {
        /// In the record.
        found: u32,
        /// Over its bytes.
        computed: u32,
    },
    /// A version that this program does not know.
    #[error("record version {found}, this program knows {known}; use a newer program")]
    UnknownVersion {
        /// In the record.
        found: u16,
        /// The one this program knows.
        known: u16,
    },
    /// Another type of record.
    #[error("record type {found} where {} was expected: misdirected", .expected.name())]
    WrongType {
        /// In the record.
        found: u16,
        /// What the reader wanted.
        expected: RecordType,
    },
    /// A record of another cluster.
    #[error("belongs to cluster {found}, expected {expected}: a foreign record")]
    WrongCluster {
        /// In the record.
        found: ClusterUuid,
        /// What the reader wanted.
        expected: ClusterUuid,
    },
    /// A record that was meant for another place.
    #[error("was written for offset {}, read at {}: a misdirected write or read", .found.0, .expected.0)]
    WrongOffset {
        /// In the record.
        found: ByteOffset,
        /// Where it was read.
        expected: ByteOffset,
    },
    /// A record of another slot.
    #[error("belongs to slot {found}, expected {expected}")]
    WrongSlot {
        /// In the record.
        found: SlotIndex,
        /// What the reader wanted.
        expected: SlotIndex,
    },
    /// A reserved byte is set in a version that has it reserved.
    #[error("reserved byte at {offset} of the record is not zero: written by a newer program, or damaged")]
    ReservedNotZero {
        /// Offset inside the record.
        offset: usize,
    },
    /// A field has a value that its writer never writes.
    #[error("field {field} has the impossible value {value}")]
    BadField {
        /// Which.
        field: &'static str,
        /// Its value (a length, a number, an offset).
        value: u64,
    },
    /// The unit of a superblock carries the mark of a format that has not ended.
    #[error("a format of cluster {cluster} was begun here and has not ended; run the format again")]
    FormatUnfinished {
        /// The cluster that was being written.
        cluster: ClusterUuid,
    },
}

/// Why a value cannot be written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Longer than its place.
    #[error("{what} has {found} bytes, the place takes {most}")]
    TooLong {
        /// What.
        what: &'static str,
        /// Bytes it has.
        found: usize,
        /// Bytes that fit.
        most: usize,
    },
    /// A value that a reader would refuse.
    #[error("{field} cannot be {value}")]
    BadField {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// Where a field stands in its record. The tables of `docs/formats` are compared with these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Name in capital letters; `RESERVED` ones are zero and checked.
    pub name: &'static str,
    /// Bytes from the start of the record.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// Do the fields stand one behind the other without hole or overlap, from `start` to `end`?
#[must_use]
pub const fn is_gapless(fields: &[Field], start: usize, end: usize) -> bool {
    let mut index = 0;
    let mut next = start;
    while index < fields.len() {
        if fields[index].offset != next || fields[index].size == 0 {
            return false;
        }
        next = fields[index].offset + fields[index].size;
        index += 1;
    }
    next == end
}

/// Declares the fields of a record and proves at compile time that they leave no hole.
macro_rules! fields {
    ($(#[$doc:meta])* $vis:vis mod $module:ident from $start:literal to $end:literal { $($name:ident: $offset:literal, $size:literal;)* }) => {
        $(#[$doc])*
        $vis mod $module {
            use $crate::head::{Field, is_gapless};
            $(
                #[doc = concat!("Offset ", stringify!($offset), ", ", stringify!($size), " bytes.")]
                pub const $name: Field = Field { name: stringify!($name), offset: $offset, size: $size };
            )*
            /// All of them, by offset.
            pub const FIELDS: &[Field] = &[$($name),*];
            const _: () = assert!(is_gapless(FIELDS, $start, $end));
        }
    };
}
pub(crate) use fields;

fields! {
    /// The fields that every record begins with, and the checksum it ends its first 512 bytes with.
    pub mod head_fields from 0 to 512 {
        MAGIC: 0, 8;
        TYPE: 8, 2;
        VERSION: 10, 2;
        BODY_BYTES: 12, 4;
        CLUSTER: 16, 16;
        OFFSET: 32, 8;
        SLOT: 40, 2;
        RESERVED_HEAD: 42, 2;
        BODY_CHECKSUM: 44, 4;
        BOOT: 48, 16;
        INCARNATION: 64, 16;
        SEQUENCE: 80, 8;
        PAYLOAD: 88, 420;
        CHECKSUM: 508, 4;
    }
}
const _: () = assert!(head_fields::PAYLOAD.offset == PAYLOAD_OFFSET && head_fields::PAYLOAD.size == PAYLOAD_BYTES);
const _: () = assert!(head_fields::CHECKSUM.offset == CHECKSUM_OFFSET && HEAD_BYTES <= UNIT_BYTES);

/// The common part of a record, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// What it is.
    pub record: RecordType,
    /// Bytes of the body; 0 for a short record.
    pub body_bytes: u32,
    /// Checksum of the body; 0 for a short record.
    pub body_checksum: u32,
    /// Cluster, offset and slot.
    pub place: Place,
    /// The life of the machine that wrote it.
    pub boot: BootId,
    /// The life of the program that wrote it.
    pub incarnation: Incarnation,
    /// Grows with every write of its unit's owner.
    pub sequence: u64,
}

/// Reads `N` bytes of a field. The field lies inside the slice by the proofs beside its declaration; outside of it: zero.
pub(crate) fn bytes_of<const N: usize>(record: &[u8], field: Field) -> [u8; N] {
    let mut value = [0; N];
    if let Some(found) = record.get(field.offset..field.offset + N) {
        value.copy_from_slice(found);
    }
    value
}
pub(crate) fn u8_of(record: &[u8], field: Field) -> u8 {
    u8::from_le_bytes(bytes_of(record, field))
}
pub(crate) fn u16_of(record: &[u8], field: Field) -> u16 {
    u16::from_le_bytes(bytes_of(record, field))
}
pub(crate) fn u32_of(record: &[u8], field: Field) -> u32 {
    u32::from_le_bytes(bytes_of(record, field))
}
pub(crate) fn u64_of(record: &[u8], field: Field) -> u64 {
    u64::from_le_bytes(bytes_of(record, field))
}
/// Writes the leading bytes of a field; shorter values leave the rest as it is (zero).
pub(crate) fn put(record: &mut [u8], field: Field, value: &[u8]) {
    debug_assert!(value.len() <= field.size, "{} takes {} bytes", field.name, field.size);
    for (to, from) in record.iter_mut().skip(field.offset).take(field.size).zip(value) {
        *to = *from;
    }
}
/// Are all reserved fields of a table zero?
pub(crate) fn check_reserved(record: &[u8], fields: &[Field]) -> Result<(), RecordError> {
    for field in fields.iter().filter(|field| field.name.starts_with("RESERVED")) {
        check_zero(record, field.offset, field.offset + field.size)?;
    }
    Ok(())
}
/// Are the bytes `from..to` zero (as far as they exist)?
pub(crate) fn check_zero(record: &[u8], from: usize, to: usize) -> Result<(), RecordError> {
    let area = record.get(from..to.min(record.len())).unwrap_or_default();
    if is_zero(area) {
        return Ok(());
    }
    let index = area.iter().position(|byte| *byte != 0).unwrap_or(0);
    Err(RecordError::ReservedNotZero { offset: from + index })
}
/// Are all bytes zero? Without a way out in between, so that many bytes are looked at in one step.
fn is_zero(area: &[u8]) -> bool {
    area.iter().fold(0, |sum, byte| sum | byte) == 0
}
/// A string with a length byte in front, zero behind.
pub(crate) fn put_string(record: &mut [u8], field: Field, text: &str) -> Result<(), EncodeError> {
    let most = field.size - 1;
    let length = match u8::try_from(text.len()) {
        Ok(length) if text.len() <= most => length,
        _ => return Err(EncodeError::TooLong { what: field.name, found: text.len(), most }),
    };
    put(record, field, &[length]);
    put(record, Field { offset: field.offset + 1, size: most, ..field }, text.as_bytes());
    Ok(())
}
/// The opposite of [`put_string`].
pub(crate) fn string_of(record: &[u8], field: Field) -> Result<alloc::string::String, RecordError> {
    let area = record.get(field.offset..field.offset + field.size).unwrap_or_default();
    let (length, rest) = match area.split_first() {
        Some((length, rest)) => (usize::from(*length), rest),
        None => return Err(RecordError::TooShort { found: record.len(), needed: field.offset + field.size }),
    };
    let Some(text) = rest.get(..length) else {
        return Err(RecordError::BadField { field: field.name, value: length as u64 });
    };
    check_zero(record, field.offset + 1 + length, field.offset + field.size)?;
    match core::str::from_utf8(text) {
        Ok(text) => Ok(text.into()),
        Err(error) => Err(RecordError::BadField { field: field.name, value: error.valid_up_to() as u64 }),
    }
}

/// Makes the first 512 bytes of a record: fields of the head, then the payload, then the checksum.
pub(crate) fn seal_head(head: &Head, record: &mut [u8], payload: impl FnOnce(&mut [u8])) {
    use head_fields as at;
    put(record, at::MAGIC, &MAGIC);
    put(record, at::TYPE, &head.record.number().to_le_bytes());
    put(record, at::VERSION, &VERSION.to_le_bytes());
    put(record, at::BODY_BYTES, &head.body_bytes.to_le_bytes());
    put(record, at::CLUSTER, &head.place.cluster.0);
    put(record, at::OFFSET, &head.place.offset.0.to_le_bytes());
    put(record, at::SLOT, &head.place.slot.0.to_le_bytes());
    put(record, at::BODY_CHECKSUM, &head.body_checksum.to_le_bytes());
    put(record, at::BOOT, &head.boot.0);
    put(record, at::INCARNATION, &head.incarnation.0);
    put(record, at::SEQUENCE, &head.sequence.to_le_bytes());
    payload(record);
    let checksum = crc32fast::hash(record.get(..CHECKSUM_OFFSET).unwrap_or_default());
    put(record, at::CHECKSUM, &checksum.to_le_bytes());
}

/// Makes a short record: everything in the first 512 bytes, the rest of the unit zero.
pub(crate) fn seal_short(head: &Head, payload: impl FnOnce(&mut [u8])) -> Unit {
    let mut unit: Unit = Box::new([0; UNIT_BYTES]);
    seal_head(head, unit.as_mut_slice(), payload);
    unit
}

/// Judges the head of whatever stands in `bytes`: magic, checksum, version and reserved bytes; not yet its place.
///
/// # Errors
/// Every way in which the bytes are no record of ours.
pub fn decode_head(bytes: &[u8]) -> Result<Head, RecordError> {
    use head_fields as at;
    let Some(record) = bytes.get(..HEAD_BYTES) else {
        return Err(RecordError::TooShort { found: bytes.len(), needed: HEAD_BYTES });
    };
    let magic: [u8; 8] = bytes_of(record, at::MAGIC);
    if magic != MAGIC {
        let is_all_zero = is_zero(bytes);
        return Err(RecordError::NotARecord { found: magic, is_all_zero });
    }
    let found = u32_of(record, at::CHECKSUM);
    let computed = crc32fast::hash(record.get(..CHECKSUM_OFFSET).unwrap_or_default());
    if found != computed {
        return Err(RecordError::Checksum { found, computed });
    }
    let version = u16_of(record, at::VERSION);
    if version != VERSION {
        return Err(RecordError::UnknownVersion { found: version, known: VERSION });
    }
    check_reserved(record, at::FIELDS)?;
    let number = u16_of(record, at::TYPE);
    let Some(record_type) = RecordType::from_number(number) else {
        return Err(RecordError::BadField { field: "TYPE", value: u64::from(number) });
    };
    Ok(Head {
        record: record_type,
        body_bytes: u32_of(record, at::BODY_BYTES),
        body_checksum: u32_of(record, at::BODY_CHECKSUM),
        place: Place {
            cluster: ClusterUuid(bytes_of(record, at::CLUSTER)),
            offset: ByteOffset(u64_of(record, at::OFFSET)),
            slot: SlotIndex(u16_of(record, at::SLOT)),
        },
        boot: BootId(bytes_of(record, at::BOOT)),
        incarnation: Incarnation(bytes_of(record, at::INCARNATION)),
        sequence: u64_of(record, at::SEQUENCE),
    })
}

/// Compares a head with the place where it was read.
pub(crate) fn check_place(head: &Head, place: &Place, expected: RecordType) -> Result<(), RecordError> {
    if head.record != expected {
        return Err(RecordError::WrongType { found: head.record.number(), expected });
    }
    if head.place.cluster != place.cluster {
        return Err(RecordError::WrongCluster { found: head.place.cluster, expected: place.cluster });
    }
    if head.place.offset != place.offset {
        return Err(RecordError::WrongOffset { found: head.place.offset, expected: place.offset });
    }
    if head.place.slot != place.slot {
        return Err(RecordError::WrongSlot { found: head.place.slot, expected: place.slot });
    }
    Ok(())
}

/// Judges a short record at its place; returns its head. The payload's reserved fields are checked by the given table.
pub(crate) fn open_short(bytes: &[u8], place: &Place, expected: RecordType, payload: &[Field]) -> Result<Head, RecordError> {
    if bytes.len() < UNIT_BYTES {
        return Err(RecordError::TooShort { found: bytes.len(), needed: UNIT_BYTES });
    }
    let head = decode_head(bytes)?;
    check_place(&head, place, expected)?;
    open_short_rest(&head, bytes, payload)?;
    Ok(head)
}

/// The part of [`open_short`] behind the comparison of the place.
pub(crate) fn open_short_rest(head: &Head, bytes: &[u8], payload: &[Field]) -> Result<(), RecordError> {
    if head.body_bytes != 0 {
        return Err(RecordError::BadField { field: "BODY_BYTES", value: u64::from(head.body_bytes) });
    }
    if head.body_checksum != 0 {
        return Err(RecordError::BadField { field: "BODY_CHECKSUM", value: u64::from(head.body_checksum) });
    }
    check_reserved(bytes, payload)?;
    check_zero(bytes, HEAD_BYTES, UNIT_BYTES)
}

/// Grows a byte string; the counterpart of [`Cursor`].
pub(crate) fn push(value: &mut Vec<u8>, bytes: &[u8]) {
    value.extend_from_slice(bytes);
}

/// Reads a byte string from its start; it can only get shorter.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    read: usize,
}
impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, read: 0 }
    }
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], RecordError> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                self.read += count;
                Ok(taken)
            }
            None => Err(RecordError::TooShort { found: self.read + self.rest.len(), needed: self.read.saturating_add(count) }),
        }
    }
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let mut value = [0; N];
        value.copy_from_slice(self.take(N)?);
        Ok(value)
    }
    pub(crate) fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(u8::from_le_bytes(self.array()?))
    }
    pub(crate) fn u16(&mut self) -> Result<u16, RecordError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// Bytes not read yet.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }
}
