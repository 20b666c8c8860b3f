//! What: the sectors of the SBD area, format v2.1, as stock tools read and write them; and the tail that ours add to a mailbox.
//! Owns: their byte offsets, big-endian as the reference has them; the tail is little-endian like everything else of ours.
//! Invariants: bytes that the reference does not define are written as zero, except the tail; the reference ignores them.
//! Does not: believe: these sectors carry no checksum. Who acts on a mailbox judges it in sbd core.
//! Called by: sbd, format, fsck.

use crate::head::{Field, fields, put};
use crate::types::{BootId, NAME_BYTES_MAX, SLOTS_MAX, SlotIndex};
use alloc::{string::String, vec, vec::Vec};

/// First eight bytes of an SBD header.
pub const SBD_MAGIC: [u8; 8] = *b"SBD_SBD_";
/// Major version.
pub const SBD_VERSION: u8 = 2;
/// Minor version: 1 has a uuid, 0 has none.
pub const SBD_MINOR: u8 = 1;
/// First bytes of the tail that our tools add to a mailbox.
pub const TAIL_MAGIC: [u8; 4] = *b"DBLT";
/// Version of the tail.
pub const TAIL_VERSION: u16 = 1;
/// What the tail's authentication code covers, from the start of the sector.
pub const TAIL_COVERED_BYTES: usize = 104;

fields! {
    /// The header sector.
    pub mod header_fields from 0 to 52 {
        MAGIC: 0, 8;
        VERSION: 8, 1;
        SLOTS: 9, 1;
        RESERVED_A: 10, 2;
        SECTOR_BYTES: 12, 4;
        WATCHDOG_S: 16, 4;
        ALLOCATE_S: 20, 4;
        LOOP_S: 24, 4;
        MSGWAIT_S: 28, 4;
        MINOR: 32, 1;
        UUID: 33, 16;
        RESERVED_B: 49, 3;
    }
}
fields! {
    /// A node sector.
    pub mod node_fields from 0 to 65 {
        IN_USE: 0, 1;
        NAME: 1, 64;
    }
}
fields! {
    /// A mailbox sector; from 72 on only where one of our tools wrote it.
    pub mod mailbox_fields from 0 to 512 {
        COMMAND: 0, 1;
        SENDER: 1, 64;
        RESERVED_A: 65, 7;
        TAIL_MAGIC: 72, 4;
        TAIL_VERSION: 76, 2;
        RESERVED_B: 78, 2;
        VICTIM_BOOT: 80, 16;
        SERIAL: 96, 8;
        MAC: 104, 16;
        RESERVED_C: 120, 392;
    }
}
const _: () = assert!(mailbox_fields::MAC.offset == TAIL_COVERED_BYTES);

/// Where a slot's node sector stands.
#[must_use]
pub const fn node_offset(slot: SlotIndex, sector_bytes: u32) -> u64 {
    (1 + 2 * slot.0 as u64) * sector_bytes as u64
}
/// Where a slot's mailbox stands.
#[must_use]
pub const fn mailbox_offset(slot: SlotIndex, sector_bytes: u32) -> u64 {
    (2 + 2 * slot.0 as u64) * sector_bytes as u64
}
/// Length of the area that stock tools use: 511 sectors.
#[must_use]
pub const fn area_bytes(sector_bytes: u32) -> u64 {
    (1 + 2 * SLOTS_MAX as u64) * sector_bytes as u64
}
const _: () = assert!(area_bytes(512) == 261_632 && area_bytes(4096) == 2_093_056);
const _: () = assert!(area_bytes(4096) <= crate::layout::SBD_AREA_BYTES);
const _: () = assert!(mailbox_offset(SlotIndex(1), 512) == 0x800 && node_offset(SlotIndex(1), 4096) == 0x3000);

/// Why a sector of the SBD area is not what was expected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SbdError {
    /// Fewer bytes than a sector has.
    #[error("only {found} of {needed} bytes were read")]
    TooShort {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// No header of SBD.
    #[error("no SBD header: the first bytes are {found:02x?}")]
    NotAHeader {
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// Another version.
    #[error("SBD header version {found}, supported is 2")]
    Version {
        /// Found.
        found: u8,
    },
    /// The header was written for another sector size.
    #[error("the SBD header says sectors of {found} bytes, the device has {expected}")]
    Sector {
        /// In the header.
        found: u32,
        /// The device's.
        expected: u32,
    },
    /// The in-use byte is neither 0 nor 1, or a name does not end.
    #[error("SBD field {field} has the impossible value {value}")]
    BadField {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// The header of an SBD device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SbdHeader {
    /// Slots; stock writes 255.
    pub slots: u8,
    /// Logical sector size.
    pub sector_bytes: u32,
    /// Watchdog timeout, s.
    pub watchdog_s: u32,
    /// How long `allocate` waits before it looks again, s.
    pub allocate_s: u32,
    /// Interval of the watcher's loop, s.
    pub loop_s: u32,
    /// How long a sender waits after a message, s.
    pub msgwait_s: u32,
    /// Minor version.
    pub minor: u8,
    /// Identity; all zero with minor version 0.
    pub uuid: [u8; 16],
}

fn be_u32(bytes: &[u8], field: Field) -> u32 {
    u32::from_be_bytes(crate::head::bytes_of(bytes, field))
}

impl SbdHeader {
    /// A sector with this header.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        use header_fields as at;
        let mut sector = sector_of(self.sector_bytes);
        put(&mut sector, at::MAGIC, &SBD_MAGIC);
        put(&mut sector, at::VERSION, &[SBD_VERSION]);
        put(&mut sector, at::SLOTS, &[self.slots]);
        put(&mut sector, at::SECTOR_BYTES, &self.sector_bytes.to_be_bytes());
        put(&mut sector, at::WATCHDOG_S, &self.watchdog_s.to_be_bytes());
        put(&mut sector, at::ALLOCATE_S, &self.allocate_s.to_be_bytes());
        put(&mut sector, at::LOOP_S, &self.loop_s.to_be_bytes());
        put(&mut sector, at::MSGWAIT_S, &self.msgwait_s.to_be_bytes());
        put(&mut sector, at::MINOR, &[self.minor]);
        put(&mut sector, at::UUID, &self.uuid);
        sector
    }
    /// Judges a header sector by what the reference judges: magic, version, sector size. The rest is trusted by stock tools.
    ///
    /// # Errors
    /// No header, another version, another sector size.
    pub fn decode(bytes: &[u8], sector_bytes: u32) -> Result<Self, SbdError> {
        use header_fields as at;
        let end = at::RESERVED_B.offset + at::RESERVED_B.size;
        if bytes.len() < end {
            return Err(SbdError::TooShort { found: bytes.len(), needed: end });
        }
        let magic: [u8; 8] = crate::head::bytes_of(bytes, at::MAGIC);
        if magic != SBD_MAGIC {
            return Err(SbdError::NotAHeader { found: magic });
        }
        let version = crate::head::u8_of(bytes, at::VERSION);
        if version != SBD_VERSION {
            return Err(SbdError::Version { found: version });
        }
        let found = be_u32(bytes, at::SECTOR_BYTES);
        if found != sector_bytes {
            return Err(SbdError::Sector { found, expected: sector_bytes });
        }
        Ok(Self {
            slots: crate::head::u8_of(bytes, at::SLOTS),
            sector_bytes: found,
            watchdog_s: be_u32(bytes, at::WATCHDOG_S),
            allocate_s: be_u32(bytes, at::ALLOCATE_S),
            loop_s: be_u32(bytes, at::LOOP_S),
            msgwait_s: be_u32(bytes, at::MSGWAIT_S),
            minor: crate::head::u8_of(bytes, at::MINOR),
            uuid: crate::head::bytes_of(bytes, at::UUID),
        })
    }
}

/// A node sector.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SbdNode {
    /// The slot is taken.
    pub is_in_use: bool,
    /// Its name; bytes that are not UTF-8 are shown as replacement characters.
    pub name: String,
}

impl SbdNode {
    /// A sector with this node; a longer name is cut at 63 bytes as the reference does.
    #[must_use]
    pub fn encode(&self, sector_bytes: u32) -> Vec<u8> {
        let mut sector = sector_of(sector_bytes);
        put(&mut sector, node_fields::IN_USE, &[u8::from(self.is_in_use)]);
        put_name(&mut sector, node_fields::NAME, &self.name);
        sector
    }
    /// Reads a node sector.
    ///
    /// # Errors
    /// Too short, an in-use byte other than 0 and 1, a name without an end.
    pub fn decode(bytes: &[u8]) -> Result<Self, SbdError> {
        use node_fields as at;
        let end = at::NAME.offset + at::NAME.size;
        if bytes.len() < end {
            return Err(SbdError::TooShort { found: bytes.len(), needed: end });
        }
        let is_in_use = match crate::head::u8_of(bytes, at::IN_USE) {
            0 => false,
            1 => true,
            value => return Err(SbdError::BadField { field: "IN_USE", value: u64::from(value) }),
        };
        Ok(Self { is_in_use, name: name_of(bytes, at::NAME)? })
    }
}

/// What a mailbox asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Command {
    /// Nothing.
    #[default]
    Clear,
    /// Log and clear.
    Test,
    /// Reset the machine.
    Reset,
    /// Power it off.
    Off,
    /// End the watcher.
    Exit,
    /// Reset with a crash dump.
    Crashdump,
    /// Over 5: logged and cleared by the reference. From 128 (negative there): ignored by it.
    Unknown(u8),
}

impl Command {
    /// The command of a byte.
    #[must_use]
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Clear,
            1 => Self::Test,
            2 => Self::Reset,
            3 => Self::Off,
            4 => Self::Exit,
            5 => Self::Crashdump,
            other => Self::Unknown(other),
        }
    }
    /// Its byte.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Clear => 0,
            Self::Test => 1,
            Self::Reset => 2,
            Self::Off => 3,
            Self::Exit => 4,
            Self::Crashdump => 5,
            Self::Unknown(other) => other,
        }
    }
    /// The word that stock tools print and take.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Clear => "clear",
            Self::Test => "test",
            Self::Reset => "reset",
            Self::Off => "off",
            Self::Exit => "exit",
            Self::Crashdump => "crashdump",
            Self::Unknown(_) => "undefined",
        }
    }
    /// Does it ask a node to die?
    #[must_use]
    pub fn is_deadly(self) -> bool {
        matches!(self, Self::Reset | Self::Off | Self::Crashdump)
    }
}

/// What our tools add to a mailbox: for whom exactly, and proof that a holder of the key wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MailboxTail {
    /// The boot that is meant; another one does not obey.
    pub victim_boot: BootId,
    /// Serial of the sender's request.
    pub serial: u64,
    /// Authentication code over the first [`TAIL_COVERED_BYTES`] of the sector; made and judged by sbd.
    pub mac: [u8; 16],
}

/// What stands behind the sender of a mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tail {
    /// Nothing of ours: a stock tool wrote it.
    #[default]
    Absent,
    /// Ours.
    Present(MailboxTail),
    /// Bytes that are neither zero nor a tail of a version that is known.
    Malformed,
}

/// A mailbox sector.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mailbox {
    /// What it asks.
    pub command: Command,
    /// Name of the sender.
    pub sender: String,
    /// The tail.
    pub tail: Tail,
}

impl Mailbox {
    /// A sector with this mailbox; `Tail::Malformed` is written as absent.
    #[must_use]
    pub fn encode(&self, sector_bytes: u32) -> Vec<u8> {
        use mailbox_fields as at;
        let mut sector = sector_of(sector_bytes);
        put(&mut sector, at::COMMAND, &[self.command.byte()]);
        put_name(&mut sector, at::SENDER, &self.sender);
        if let Tail::Present(tail) = &self.tail {
            put(&mut sector, at::TAIL_MAGIC, &TAIL_MAGIC);
            put(&mut sector, at::TAIL_VERSION, &TAIL_VERSION.to_le_bytes());
            put(&mut sector, at::VICTIM_BOOT, &tail.victim_boot.0);
            put(&mut sector, at::SERIAL, &tail.serial.to_le_bytes());
            put(&mut sector, at::MAC, &tail.mac);
        }
        sector
    }
    /// Reads a mailbox sector. A sender without an end is cut, not refused: the command before it still counts.
    ///
    /// # Errors
    /// Fewer bytes than a sector has.
    pub fn decode(bytes: &[u8]) -> Result<Self, SbdError> {
        use mailbox_fields as at;
        if bytes.len() < 512 {
            return Err(SbdError::TooShort { found: bytes.len(), needed: 512 });
        }
        let sender = bytes.get(at::SENDER.offset..at::SENDER.offset + NAME_BYTES_MAX).unwrap_or_default();
        let length = sender.iter().position(|byte| *byte == 0).unwrap_or(sender.len());
        let sender = String::from_utf8_lossy(sender.get(..length).unwrap_or_default()).into_owned();
        Ok(Self { command: Command::from_byte(crate::head::u8_of(bytes, at::COMMAND)), sender, tail: tail_of(bytes) })
    }
    /// The bytes that a tail's authentication code covers.
    #[must_use]
    pub fn covered(sector: &[u8]) -> &[u8] {
        sector.get(..TAIL_COVERED_BYTES).unwrap_or(sector)
    }
}

fn tail_of(bytes: &[u8]) -> Tail {
    use mailbox_fields as at;
    let rest = bytes.get(at::RESERVED_A.offset..).unwrap_or_default();
    if rest.iter().all(|byte| *byte == 0) {
        return Tail::Absent;
    }
    let magic: [u8; 4] = crate::head::bytes_of(bytes, at::TAIL_MAGIC);
    let is_known = magic == TAIL_MAGIC && crate::head::u16_of(bytes, at::TAIL_VERSION) == TAIL_VERSION;
    let is_clean = crate::head::check_reserved(bytes, at::FIELDS).is_ok() && crate::head::check_zero(bytes, 512, bytes.len()).is_ok();
    if !is_known || !is_clean {
        return Tail::Malformed;
    }
    Tail::Present(MailboxTail {
        victim_boot: BootId(crate::head::bytes_of(bytes, at::VICTIM_BOOT)),
        serial: crate::head::u64_of(bytes, at::SERIAL),
        mac: crate::head::bytes_of(bytes, at::MAC),
    })
}

fn sector_of(sector_bytes: u32) -> Vec<u8> {
    vec![0; usize::try_from(sector_bytes).unwrap_or(512).clamp(512, 4096)]
}
fn put_name(sector: &mut [u8], field: Field, name: &str) {
    let bytes = name.as_bytes();
    put(sector, field, bytes.get(..NAME_BYTES_MAX.min(bytes.len())).unwrap_or_default());
}
fn name_of(bytes: &[u8], field: Field) -> Result<String, SbdError> {
    let area = bytes.get(field.offset..field.offset + field.size).unwrap_or_default();
    match area.iter().position(|byte| *byte == 0) {
        Some(length) => Ok(String::from_utf8_lossy(area.get(..length).unwrap_or_default()).into_owned()),
        None => Err(SbdError::BadField { field: field.name, value: area.len() as u64 }),
    }
}
