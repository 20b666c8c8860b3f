//! What: where every area of a device lies.
//! Owns: the arithmetic of offsets; nobody else adds two of them.
//! Invariants: areas lie one behind the other, aligned to 64 KiB, inside the device, and never overlap.
//! Does not: read or write; see `superblock` for the table on the medium.
//! Called by: format, fsck, and every machine that names a unit.

use crate::types::{ByteOffset, Layout, SLOTS_MAX, SlotIndex, UNIT_BYTES};
use alloc::vec::Vec;

/// Size of the area in which stock SBD works: 511 sectors of 4096 bytes, rounded up (compatibility).
pub const SBD_AREA_BYTES: u64 = 2 * 1024 * 1024;
/// Alignment of every area: chosen so that an area starts on a stripe or erase-block boundary of most devices.
pub const AREA_ALIGN_BYTES: u64 = 64 * 1024;
/// Places for view bodies per slot. Two votes and one record may name one each, one more is being written; six leaves room for the
/// two places of a record in turn.
pub const PLACES: u8 = 6;
/// Journal units per slot: chosen, a few hours of events of a calm node.
pub const JOURNAL_UNITS: u16 = 32;
/// Slots that `format` reserves when it is not told.
pub const SLOTS_DEFAULT: u16 = 32;

const UNIT: u64 = UNIT_BYTES as u64;

/// Why a device cannot carry a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// No slots, or more than the SBD area has.
    #[error("{found} slots asked for; 1 to {most} are possible")]
    Slots {
        /// Asked for.
        found: u16,
        /// Possible.
        most: u16,
    },
    /// Neither 512 nor 4096.
    #[error("logical sectors of {found} bytes; only 512 and 4096 are supported")]
    Sector {
        /// Found.
        found: u32,
    },
    /// The device is too small.
    #[error("the device has {found} bytes, {needed} are needed for that many slots; take a larger device or fewer slots")]
    TooSmall {
        /// Bytes it has.
        found: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// An area of a table from a medium is misaligned, overlaps another or leaves the device.
    #[error("area {area} at {} does not fit: misaligned, overlapping or outside the device", .offset.0)]
    Area {
        /// Its name.
        area: &'static str,
        /// Where it begins.
        offset: ByteOffset,
    },
    /// Places or journal units of a table from a medium are impossible.
    #[error("{field} cannot be {value}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

const fn align_up(offset: u64) -> u64 {
    offset.next_multiple_of(AREA_ALIGN_BYTES)
}
/// Size of a body's place for so many slots: 512 bytes of head and some for the fixed part, and room for a node with four
/// addresses, a member, an owed and a released entry per slot.
const fn place_bytes_for(slots: u64) -> u64 {
    let bytes = (4096 + 512 * slots).next_multiple_of(UNIT);
    if bytes < 8192 { 8192 } else { bytes }
}

/// What an offset inside the areas belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Area {
    /// A superblock copy.
    Superblock(usize),
    /// A beat.
    Beat(SlotIndex),
    /// A vote unit, 0 or 1.
    Vote(SlotIndex, u8),
    /// A view record, 0 or 1.
    Record(SlotIndex, u8),
    /// A place for a body.
    Body(SlotIndex, u8),
    /// Fencing requests.
    Requests(SlotIndex),
    /// A journal unit.
    Journal(SlotIndex, u16),
    /// The tool slot.
    Tool,
}

impl Layout {
    /// Plans a device.
    ///
    /// # Errors
    /// Too small, impossible number of slots or sector size.
    pub const fn new(device_bytes: u64, sector_bytes: u32, slots: u16) -> Result<Self, LayoutError> {
        if slots == 0 || slots > SLOTS_MAX {
            return Err(LayoutError::Slots { found: slots, most: SLOTS_MAX });
        }
        if sector_bytes != 512 && sector_bytes != 4096 {
            return Err(LayoutError::Sector { found: sector_bytes });
        }
        let count = slots as u64;
        let place_bytes = place_bytes_for(count);
        let beats = SBD_AREA_BYTES + 2 * AREA_ALIGN_BYTES;
        let votes = align_up(beats + count * UNIT);
        let records = align_up(votes + 2 * count * UNIT);
        let bodies = align_up(records + 2 * count * UNIT);
        let middle = align_up(bodies + PLACES as u64 * place_bytes * count);
        let requests = middle + AREA_ALIGN_BYTES;
        let journal = align_up(requests + count * UNIT);
        let tool = align_up(journal + JOURNAL_UNITS as u64 * count * UNIT);
        let end = tool + AREA_ALIGN_BYTES;
        let needed = end + AREA_ALIGN_BYTES;
        if device_bytes < needed {
            return Err(LayoutError::TooSmall { found: device_bytes, needed });
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 4096 + 512 * 255 rounded up, far below 2^32")]
        let place_bytes = place_bytes as u32;
        Ok(Self {
            slots,
            sector_bytes,
            superblocks: [
                ByteOffset(SBD_AREA_BYTES),
                ByteOffset(SBD_AREA_BYTES + AREA_ALIGN_BYTES),
                ByteOffset(middle),
                last_superblock(device_bytes),
            ],
            beats: ByteOffset(beats),
            votes: ByteOffset(votes),
            records: ByteOffset(records),
            bodies: ByteOffset(bodies),
            places: PLACES,
            place_bytes,
            requests: ByteOffset(requests),
            journal: ByteOffset(journal),
            journal_units: JOURNAL_UNITS,
            tool: ByteOffset(tool),
            end: ByteOffset(end),
        })
    }

    /// Is a slot one of this device's?
    #[must_use]
    pub const fn has_slot(&self, slot: SlotIndex) -> bool {
        slot.0 < self.slots
    }
    const fn unit(&self, area: ByteOffset, slot: SlotIndex, per_slot: u64, index: u64, bytes: u64) -> ByteOffset {
        // A wrong slot would be somebody else's unit: writing there must never happen, so this stays on in release builds.
        assert!(slot.0 < self.slots, "slot outside the device's table");
        assert!(index < per_slot, "unit outside the slot's own");
        ByteOffset(area.0 + (slot.0 as u64 * per_slot + index) * bytes)
    }
    /// A node's beat unit.
    ///
    /// # Panics
    /// When the slot is not one of [`Layout::has_slot`]; so do all functions below that take one.
    #[must_use]
    pub const fn beat(&self, slot: SlotIndex) -> ByteOffset {
        self.unit(self.beats, slot, 1, 0, UNIT)
    }
    /// One of a node's two vote units.
    #[must_use]
    pub const fn vote(&self, slot: SlotIndex, index: u8) -> ByteOffset {
        self.unit(self.votes, slot, 2, index as u64, UNIT)
    }
    /// One of a node's two view records.
    #[must_use]
    pub const fn record(&self, slot: SlotIndex, index: u8) -> ByteOffset {
        self.unit(self.records, slot, 2, index as u64, UNIT)
    }
    /// One of a node's places for bodies; `place_bytes` long.
    #[must_use]
    pub const fn body(&self, slot: SlotIndex, place: u8) -> ByteOffset {
        self.unit(self.bodies, slot, self.places as u64, place as u64, self.place_bytes as u64)
    }
    /// A node's fencing requests.
    #[must_use]
    pub const fn request(&self, slot: SlotIndex) -> ByteOffset {
        self.unit(self.requests, slot, 1, 0, UNIT)
    }
    /// One of a node's journal units.
    #[must_use]
    pub const fn journal(&self, slot: SlotIndex, index: u16) -> ByteOffset {
        self.unit(self.journal, slot, self.journal_units as u64, index as u64, UNIT)
    }
    /// Length of the beat area.
    #[must_use]
    pub const fn beats_bytes(&self) -> u64 {
        self.slots as u64 * UNIT
    }
    /// Length of the vote area: the scan reads all of it at once.
    #[must_use]
    pub const fn votes_bytes(&self) -> u64 {
        2 * self.slots as u64 * UNIT
    }
    /// Length of the area of view records.
    #[must_use]
    pub const fn records_bytes(&self) -> u64 {
        2 * self.slots as u64 * UNIT
    }
    /// Length of the area of bodies.
    #[must_use]
    pub const fn bodies_bytes(&self) -> u64 {
        self.places as u64 * self.place_bytes as u64 * self.slots as u64
    }
    /// Length of the area of requests.
    #[must_use]
    pub const fn requests_bytes(&self) -> u64 {
        self.slots as u64 * UNIT
    }
    /// Length of all journals.
    #[must_use]
    pub const fn journals_bytes(&self) -> u64 {
        self.journal_units as u64 * self.slots as u64 * UNIT
    }

    /// Areas by offset: name, start, length.
    #[must_use]
    pub const fn areas(&self) -> [(&'static str, ByteOffset, u64); 11] {
        let [first, second, third, fourth] = self.superblocks;
        [
            ("superblock 0", first, UNIT),
            ("superblock 1", second, UNIT),
            ("beats", self.beats, self.beats_bytes()),
            ("votes", self.votes, self.votes_bytes()),
            ("records", self.records, self.records_bytes()),
            ("bodies", self.bodies, self.bodies_bytes()),
            ("superblock 2", third, UNIT),
            ("requests", self.requests, self.requests_bytes()),
            ("journal", self.journal, self.journals_bytes()),
            ("tool", self.tool, UNIT),
            ("superblock 3", fourth, UNIT),
        ]
    }

    /// Does a table, from a medium perhaps, describe areas that lie one behind the other inside the device?
    ///
    /// # Errors
    /// The first area that does not fit.
    pub fn check(&self, device_bytes: u64) -> Result<(), LayoutError> {
        if self.slots == 0 || self.slots > SLOTS_MAX {
            return Err(LayoutError::Slots { found: self.slots, most: SLOTS_MAX });
        }
        if self.sector_bytes != 512 && self.sector_bytes != 4096 {
            return Err(LayoutError::Sector { found: self.sector_bytes });
        }
        if self.places < 4 {
            return Err(LayoutError::Field { field: "PLACES", value: u64::from(self.places) });
        }
        let place_bytes = u64::from(self.place_bytes);
        if place_bytes < 2 * UNIT || place_bytes % UNIT != 0 || place_bytes > (1 << 24) {
            return Err(LayoutError::Field { field: "PLACE_BYTES", value: place_bytes });
        }
        if self.journal_units == 0 {
            return Err(LayoutError::Field { field: "JOURNAL_UNITS", value: 0 });
        }
        let mut next = SBD_AREA_BYTES;
        for (area, offset, bytes) in self.areas() {
            let end = offset.0.checked_add(bytes);
            match end {
                Some(end) if offset.0 % UNIT == 0 && offset.0 >= next && end <= device_bytes => next = end,
                _ => return Err(LayoutError::Area { area, offset }),
            }
            if area == "tool" && self.end.0 < next || area == "superblock 3" && offset.0 < self.end.0 {
                return Err(LayoutError::Area { area: "end", offset: self.end });
            }
        }
        Ok(())
    }

    /// Every unit (for bodies: every place) of the device with its length, by offset. The used area, and nothing else.
    #[must_use]
    pub fn units(&self) -> Vec<(Area, ByteOffset, usize)> {
        let slots = || (0..self.slots).map(SlotIndex);
        let mut units = Vec::new();
        for (copy, offset) in self.superblocks.iter().enumerate() {
            units.push((Area::Superblock(copy), *offset, UNIT_BYTES));
        }
        for slot in slots() {
            units.push((Area::Beat(slot), self.beat(slot), UNIT_BYTES));
            for index in 0..2 {
                units.push((Area::Vote(slot, index), self.vote(slot, index), UNIT_BYTES));
                units.push((Area::Record(slot, index), self.record(slot, index), UNIT_BYTES));
            }
            for place in 0..self.places {
                let bytes = usize::try_from(self.place_bytes).unwrap_or(UNIT_BYTES);
                units.push((Area::Body(slot, place), self.body(slot, place), bytes));
            }
            units.push((Area::Requests(slot), self.request(slot), UNIT_BYTES));
            for index in 0..self.journal_units {
                units.push((Area::Journal(slot, index), self.journal(slot, index), UNIT_BYTES));
            }
        }
        units.push((Area::Tool, self.tool, UNIT_BYTES));
        units.sort_by_key(|(_, offset, _)| *offset);
        units
    }
}

/// Where copy 3 of the superblock stands on a device of this size: at the start of its last whole 64 KiB.
#[must_use]
pub const fn last_superblock(device_bytes: u64) -> ByteOffset {
    ByteOffset((device_bytes / AREA_ALIGN_BYTES).saturating_sub(1) * AREA_ALIGN_BYTES)
}

// The default device, spelled out: a change of any of these numbers is a change of the format.
const DEFAULT: Layout = match Layout::new(16 << 20, 512, SLOTS_DEFAULT) {
    Ok(layout) => layout,
    Err(_) => panic!("16 MiB carry 32 slots"),
};
const _: () = {
    const KIB: u64 = 1024;
    assert!(DEFAULT.superblocks[0].0 == 2048 * KIB);
    assert!(DEFAULT.superblocks[1].0 == 2112 * KIB);
    assert!(DEFAULT.beats.0 == 2176 * KIB);
    assert!(DEFAULT.votes.0 == 2304 * KIB);
    assert!(DEFAULT.records.0 == 2560 * KIB);
    assert!(DEFAULT.bodies.0 == 2816 * KIB);
    assert!(DEFAULT.superblocks[2].0 == 6656 * KIB);
    assert!(DEFAULT.requests.0 == 6720 * KIB);
    assert!(DEFAULT.journal.0 == 6848 * KIB);
    assert!(DEFAULT.tool.0 == 10944 * KIB);
    assert!(DEFAULT.end.0 == 11008 * KIB);
    assert!(DEFAULT.superblocks[3].0 == (16 * 1024 - 64) * KIB);
    assert!(DEFAULT.place_bytes == 20480);
    // The largest table still has every area in order.
    let largest = match Layout::new(1 << 30, 4096, SLOTS_MAX) {
        Ok(layout) => layout,
        Err(_) => panic!("1 GiB carries 255 slots"),
    };
    let areas = largest.areas();
    let mut index = 1;
    while index < areas.len() {
        assert!(areas[index - 1].1.0 + areas[index - 1].2 <= areas[index].1.0);
        assert!(areas[index].1.0 % AREA_ALIGN_BYTES == 0);
        index += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_all_sizes_never_overlap_and_stay_inside() {
        for slots in [1, 2, 31, 32, 33, 128, 255] {
            let bytes = 1 << 28;
            let layout = Layout::new(bytes, 512, slots).unwrap();
            layout.check(bytes).unwrap();
            let mut next = SBD_AREA_BYTES;
            for (area, offset, length) in layout.units() {
                assert!(offset.0 >= next, "{area:?} at {} overlaps, slots {slots}", offset.0);
                assert_eq!(offset.0 % UNIT, 0);
                next = offset.0 + length as u64;
            }
            assert!(next <= bytes);
        }
    }

    #[test]
    fn the_smallest_device_is_exactly_the_size_that_the_error_names() {
        for slots in [1, 32, 255] {
            let Err(LayoutError::TooSmall { needed, .. }) = Layout::new(0, 512, slots) else { panic!() };
            assert!(Layout::new(needed - 1, 512, slots).is_err());
            Layout::new(needed, 512, slots).unwrap().check(needed).unwrap();
        }
    }

    #[test]
    fn impossible_tables_are_refused() {
        let bytes = 16 << 20;
        let good = Layout::new(bytes, 512, 32).unwrap();
        assert_eq!(good.check(good.end.0), Err(LayoutError::Area { area: "superblock 3", offset: good.superblocks[3] }));
        assert!(Layout { votes: good.beats, ..good }.check(bytes).is_err());
        assert!(Layout { beats: ByteOffset(u64::MAX - 4095), ..good }.check(bytes).is_err());
        assert!(Layout { beats: ByteOffset(good.beats.0 + 512), ..good }.check(bytes).is_err());
        assert!(Layout { slots: 255, ..good }.check(bytes).is_err());
        assert!(Layout { end: good.tool, ..good }.check(bytes).is_err());
        assert!(Layout { places: 1, ..good }.check(bytes).is_err());
    }

    #[test]
    #[should_panic(expected = "slot outside")]
    fn a_slot_outside_the_table_has_no_unit() {
        let _ = Layout::new(16 << 20, 512, 32).unwrap().vote(SlotIndex(32), 0);
    }
}
