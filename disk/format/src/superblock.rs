//! What: the superblock: who a device is, and where its areas lie; and which of its four copies counts.
//! Owns: the payload fields, the rule of choice, feature words.
//! Invariants: a device whose copy 0 carries the mark of a format is never taken for a formatted one; two equal copies rule, one
//!   alone is for reading only.
//! Does not: open devices; the caller hands in what it read.
//! Called by: format, fsck, every start of a node.

use crate::head::Field;
use crate::head::{EncodeError, Head, Place, RecordError, RecordType, Unit, check_place, decode_head, fields, open_short_rest};
use crate::head::{bytes_of, put, put_string, seal_short, string_of, u8_of, u16_of, u32_of, u64_of};
use crate::layout::{AREA_ALIGN_BYTES, SBD_AREA_BYTES, last_superblock};
use crate::types::{BootId, ByteOffset, ClusterUuid, DEVICES_MAX, DeviceUuid, Incarnation, Layout, SlotIndex, Superblock, UNIT_BYTES};
use crate::view::{timings_of_words, timings_words};
use alloc::vec::Vec;

/// Features that this program knows and a reader must know: none yet.
pub const FEATURES_INCOMPATIBLE_KNOWN: u64 = 0;
/// Features that this program knows and a writer must know: none yet.
pub const FEATURES_READ_ONLY_KNOWN: u64 = 0;

fields! {
    /// Payload of a superblock copy.
    pub mod superblock_fields from 88 to 508 {
        DEVICE: 88, 16;
        DEVICE_NUMBER: 104, 2;
        DEVICE_COUNT: 106, 2;
        SECTOR_BYTES: 108, 4;
        NAME: 112, 64;
        FEATURES_INCOMPATIBLE: 176, 8;
        FEATURES_READ_ONLY: 184, 8;
        FEATURES_COMPATIBLE: 192, 8;
        DEVICE_BYTES: 200, 8;
        FORMATTED_WALL_MS: 208, 8;
        TIMINGS: 216, 56;
        SUPERBLOCKS: 272, 32;
        BEATS: 304, 8;
        VOTES: 312, 8;
        RECORDS: 320, 8;
        BODIES: 328, 8;
        REQUESTS: 336, 8;
        JOURNAL: 344, 8;
        TOOL: 352, 8;
        END: 360, 8;
        SLOTS: 368, 2;
        JOURNAL_UNITS: 370, 2;
        PLACE_BYTES: 372, 4;
        PLACES: 376, 1;
        COPY: 377, 1;
        RESERVED: 378, 130;
    }
}

fn word_of(field: Field, index: usize, size: usize) -> Field {
    Field { offset: field.offset + index * size, size, ..field }
}

impl Superblock {
    /// The bytes of copy `copy` (0 to 3).
    ///
    /// # Errors
    /// A name that is too long, or a value that a reader would refuse.
    pub fn encode(&self, copy: usize) -> Result<Unit, EncodeError> {
        use superblock_fields as at;
        let bad = |field, value| EncodeError::BadField { field, value };
        let offset = *self.layout.superblocks.get(copy).ok_or(bad("COPY", copy as u64))?;
        self.check().map_err(|error| match error {
            RecordError::BadField { field, value } => bad(field, value),
            _ => bad("SUPERBLOCK", self.generation),
        })?;
        let head = Head {
            record: RecordType::Superblock,
            body_bytes: 0,
            body_checksum: 0,
            place: Place { cluster: self.cluster, offset, slot: SlotIndex::NONE },
            boot: BootId::NONE,
            incarnation: Incarnation::NONE,
            sequence: self.generation,
        };
        let mut named = Ok(());
        let unit = seal_short(&head, |unit| {
            put(unit, at::DEVICE, &self.device.0);
            put(unit, at::DEVICE_NUMBER, &self.device_number.to_le_bytes());
            put(unit, at::DEVICE_COUNT, &self.device_count.to_le_bytes());
            put(unit, at::SECTOR_BYTES, &self.sector_bytes.to_le_bytes());
            named = put_string(unit, at::NAME, &self.name);
            put(unit, at::FEATURES_INCOMPATIBLE, &self.features_incompatible.to_le_bytes());
            put(unit, at::FEATURES_READ_ONLY, &self.features_read_only.to_le_bytes());
            put(unit, at::FEATURES_COMPATIBLE, &self.features_compatible.to_le_bytes());
            put(unit, at::DEVICE_BYTES, &self.device_bytes.to_le_bytes());
            put(unit, at::FORMATTED_WALL_MS, &self.formatted_wall_ms.to_le_bytes());
            for (index, word) in timings_words(&self.timings).iter().enumerate() {
                put(unit, word_of(at::TIMINGS, index, 4), &word.to_le_bytes());
            }
            put_layout(unit, &self.layout);
            put(unit, at::COPY, &[u8::try_from(copy).unwrap_or(u8::MAX)]);
        });
        named.map(|()| unit)
    }

    /// Judges whatever was read at `offset`. The cluster is not known yet: it is what a superblock tells.
    ///
    /// # Errors
    /// Whatever makes it no superblock; `FormatUnfinished` where a format has left its mark.
    pub fn decode(bytes: &[u8], offset: ByteOffset) -> Result<Self, RecordError> {
        use superblock_fields as at;
        if bytes.len() < UNIT_BYTES {
            return Err(RecordError::TooShort { found: bytes.len(), needed: UNIT_BYTES });
        }
        let head = decode_head(bytes)?;
        if head.record == RecordType::ToolClaim && head.place.offset == offset {
            return Err(RecordError::FormatUnfinished { cluster: head.place.cluster });
        }
        let place = Place { cluster: head.place.cluster, offset, slot: SlotIndex::NONE };
        check_place(&head, &place, RecordType::Superblock)?;
        open_short_rest(&head, bytes, at::FIELDS)?;
        if !head.boot.is_none() || !head.incarnation.is_none() {
            return Err(RecordError::BadField { field: "BOOT", value: u64::from(u8_of(bytes, crate::head::head_fields::BOOT)) });
        }
        let mut words = [0; 14];
        for (index, word) in words.iter_mut().enumerate() {
            *word = u32_of(bytes, word_of(at::TIMINGS, index, 4));
        }
        let superblock = Self {
            cluster: head.place.cluster,
            device: DeviceUuid(bytes_of(bytes, at::DEVICE)),
            device_number: u16_of(bytes, at::DEVICE_NUMBER),
            device_count: u16_of(bytes, at::DEVICE_COUNT),
            name: string_of(bytes, at::NAME)?,
            generation: head.sequence,
            features_incompatible: u64_of(bytes, at::FEATURES_INCOMPATIBLE),
            features_read_only: u64_of(bytes, at::FEATURES_READ_ONLY),
            features_compatible: u64_of(bytes, at::FEATURES_COMPATIBLE),
            sector_bytes: u32_of(bytes, at::SECTOR_BYTES),
            slots: u16_of(bytes, at::SLOTS),
            device_bytes: u64_of(bytes, at::DEVICE_BYTES),
            timings: timings_of_words(&words),
            layout: layout_of(bytes),
            formatted_wall_ms: u64_of(bytes, at::FORMATTED_WALL_MS),
        };
        superblock.check()?;
        let copy = u8_of(bytes, at::COPY);
        if superblock.layout.superblocks.get(usize::from(copy)) != Some(&offset) {
            return Err(RecordError::BadField { field: "COPY", value: u64::from(copy) });
        }
        Ok(superblock)
    }

    /// Would a reader accept its values?
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn check(&self) -> Result<(), RecordError> {
        let bad = |field, value| Err(RecordError::BadField { field, value });
        if self.cluster.is_none() {
            return bad("CLUSTER", 0);
        }
        if self.device.is_none() {
            return bad("DEVICE", 0);
        }
        if self.generation == 0 {
            return bad("SEQUENCE", 0);
        }
        if self.device_count == 0 || usize::from(self.device_count) > DEVICES_MAX {
            return bad("DEVICE_COUNT", u64::from(self.device_count));
        }
        if self.device_number >= self.device_count {
            return bad("DEVICE_NUMBER", u64::from(self.device_number));
        }
        if self.slots != self.layout.slots {
            return bad("SLOTS", u64::from(self.slots));
        }
        if self.sector_bytes != self.layout.sector_bytes {
            return bad("SECTOR_BYTES", u64::from(self.sector_bytes));
        }
        if !crate::view::is_name(&self.name) {
            return bad("NAME", self.name.len() as u64);
        }
        if self.layout.check(self.device_bytes).is_err() {
            return bad("AREAS", self.device_bytes);
        }
        Ok(())
    }

    /// May this program read the device, and may it write?
    #[must_use]
    pub fn permission(&self) -> Permission {
        if self.features_incompatible & !FEATURES_INCOMPATIBLE_KNOWN != 0 {
            Permission::None
        } else if self.features_read_only & !FEATURES_READ_ONLY_KNOWN != 0 {
            Permission::Read
        } else {
            Permission::ReadWrite
        }
    }
}

/// What the feature words leave to a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permission {
    /// A feature must be known to read, and is not.
    None,
    /// A feature must be known to write, and is not.
    Read,
    /// Everything is known.
    ReadWrite,
}

fn put_layout(unit: &mut [u8], layout: &Layout) {
    use superblock_fields as at;
    for (index, offset) in layout.superblocks.iter().enumerate() {
        put(unit, word_of(at::SUPERBLOCKS, index, 8), &offset.0.to_le_bytes());
    }
    let areas = [
        (at::BEATS, layout.beats),
        (at::VOTES, layout.votes),
        (at::RECORDS, layout.records),
        (at::BODIES, layout.bodies),
        (at::REQUESTS, layout.requests),
        (at::JOURNAL, layout.journal),
        (at::TOOL, layout.tool),
        (at::END, layout.end),
    ];
    for (field, offset) in areas {
        put(unit, field, &offset.0.to_le_bytes());
    }
    put(unit, at::SLOTS, &layout.slots.to_le_bytes());
    put(unit, at::JOURNAL_UNITS, &layout.journal_units.to_le_bytes());
    put(unit, at::PLACE_BYTES, &layout.place_bytes.to_le_bytes());
    put(unit, at::PLACES, &[layout.places]);
}

fn layout_of(bytes: &[u8]) -> Layout {
    use superblock_fields as at;
    let offset = |field| ByteOffset(u64_of(bytes, field));
    Layout {
        slots: u16_of(bytes, at::SLOTS),
        sector_bytes: u32_of(bytes, at::SECTOR_BYTES),
        superblocks: [0, 1, 2, 3].map(|index| offset(word_of(at::SUPERBLOCKS, index, 8))),
        beats: offset(at::BEATS),
        votes: offset(at::VOTES),
        records: offset(at::RECORDS),
        bodies: offset(at::BODIES),
        places: u8_of(bytes, at::PLACES),
        place_bytes: u32_of(bytes, at::PLACE_BYTES),
        requests: offset(at::REQUESTS),
        journal: offset(at::JOURNAL),
        journal_units: u16_of(bytes, at::JOURNAL_UNITS),
        tool: offset(at::TOOL),
        end: offset(at::END),
    }
}

/// What four copies say together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SuperblockChoice {
    /// At least two copies are equal; the newest such generation.
    Agreed {
        /// The one that counts.
        superblock: Superblock,
        /// Which copies carry it.
        copies: [bool; 4],
        /// A single copy is newer: its writer was interrupted. For people; the agreed one counts.
        newer_alone: Option<usize>,
    },
    /// One good copy and no second: for reading and for repair, never for writing as a node.
    Alone {
        /// The newest good copy.
        superblock: Superblock,
        /// Which.
        copy: usize,
    },
    /// A format was interrupted: the device is not formatted, whatever else stands there.
    Unfinished {
        /// The cluster that was being written.
        cluster: ClusterUuid,
    },
    /// Two different devices or two contents of one generation claim to be this one.
    Forked {
        /// One copy.
        one: usize,
        /// Another that contradicts it.
        two: usize,
    },
    /// Bytes of ours, but no good copy.
    Damaged,
    /// No trace of a superblock.
    Absent,
}

/// Which superblock counts: a pure function of the four copies, in the order of their numbers.
///
/// Mark of a format anywhere: unfinished. Else the newest generation that two copies carry alike. Else one alone, for reading.
#[must_use]
pub fn choose_superblock(copies: &[Result<Superblock, RecordError>; 4]) -> SuperblockChoice {
    for copy in copies {
        if let Err(RecordError::FormatUnfinished { cluster }) = copy {
            return SuperblockChoice::Unfinished { cluster: *cluster };
        }
    }
    let good: Vec<(usize, &Superblock)> =
        copies.iter().enumerate().filter_map(|(index, copy)| copy.as_ref().ok().map(|found| (index, found))).collect();
    let votes = |wanted: &Superblock| good.iter().filter(|(_, found)| *found == wanted).count();
    let newest_pair = good.iter().filter(|(_, found)| votes(found) >= 2).max_by_key(|(index, found)| (found.generation, 3 - index));
    let Some((first, agreed)) = newest_pair else {
        return choose_single(copies, &good);
    };
    let contradicts = |other: &Superblock| {
        let is_other_device = other.cluster != agreed.cluster || other.device != agreed.device;
        votes(other) >= 2 && other != *agreed && (is_other_device || other.generation == agreed.generation)
    };
    if let Some((two, _)) = good.iter().find(|(_, found)| contradicts(found)) {
        return SuperblockChoice::Forked { one: *first, two: *two };
    }
    let is_newer =
        |found: &Superblock| found.cluster == agreed.cluster && found.device == agreed.device && found.generation > agreed.generation;
    SuperblockChoice::Agreed {
        superblock: (*agreed).clone(),
        copies: [0, 1, 2, 3].map(|index| good.iter().any(|(other, found)| *other == index && found == agreed)),
        newer_alone: good.iter().find(|(_, found)| is_newer(found)).map(|(index, _)| *index),
    }
}

fn choose_single(copies: &[Result<Superblock, RecordError>; 4], good: &[(usize, &Superblock)]) -> SuperblockChoice {
    let Some((copy, newest)) = good.iter().max_by_key(|(index, found)| (found.generation, 3 - index)) else {
        let is_foreign = |copy: &Result<Superblock, RecordError>| matches!(copy, Err(RecordError::NotARecord { .. }));
        return if copies.iter().all(is_foreign) { SuperblockChoice::Absent } else { SuperblockChoice::Damaged };
    };
    let is_other =
        |found: &Superblock| found.cluster != newest.cluster || found.device != newest.device || found.generation == newest.generation;
    match good.iter().find(|(index, found)| index != copy && is_other(found)) {
        Some((two, _)) => SuperblockChoice::Forked { one: *copy, two: *two },
        None => SuperblockChoice::Alone { superblock: (*newest).clone(), copy: *copy },
    }
}

/// Finds and judges the four copies of a device. Copies 0, 1 and 3 have fixed places; copy 2 (and 3 of a device that was grown) is
/// found through the table of a good one. `read` returns the bytes of a unit, or nothing when they cannot be read.
pub fn read_superblocks(device_bytes: u64, mut read: impl FnMut(ByteOffset) -> Option<Vec<u8>>) -> [Result<Superblock, RecordError>; 4] {
    let mut judge = |offset: ByteOffset| match read(offset) {
        Some(bytes) => Superblock::decode(&bytes, offset),
        None => Err(RecordError::TooShort { found: 0, needed: UNIT_BYTES }),
    };
    let first = judge(ByteOffset(SBD_AREA_BYTES));
    let second = judge(ByteOffset(SBD_AREA_BYTES + AREA_ALIGN_BYTES));
    let mut last = judge(last_superblock(device_bytes));
    let known = [&first, &second, &last].into_iter().find_map(|copy| copy.as_ref().ok()).map(|found| found.layout.superblocks);
    let third = match known {
        Some([_, _, third, fourth]) => {
            if fourth != last_superblock(device_bytes) {
                last = judge(fourth);
            }
            judge(third)
        }
        None => Err(RecordError::NotARecord { found: [0; 8], is_all_zero: true }),
    };
    [first, second, third, last]
}
