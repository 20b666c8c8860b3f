//! What: the tables of all nodes' vote units and views records as one read showed them.
//! Owns: the judgement of a table: newest unit per slot, what could not be read.
//! Invariants: the whole table is judged, configured or not; an unreadable vote unit is an unknown promise, never empty; an unreadable
//! record is no news.
//! Does not: decide what follows from it.
//! Called by: the register.

use crate::units::Units;
use alloc::{sync::Arc, vec::Vec};
use deadbolt_disk_format::{Ballot, ByteOffset, ClusterUuid, Layout, Place, RecordError, SlotIndex, ViewRecord};

/// One read of a table.
#[derive(Clone, Debug)]
pub(super) struct Table<T> {
    /// Both own units.
    pub(super) own: [Result<T, RecordError>; 2],
    /// The newest of every other slot.
    pub(super) others: Vec<T>,
    /// Units of others that could not be read.
    pub(super) unreadable: Vec<ByteOffset>,
}

/// A record that stands in two units per slot.
pub(super) trait Paired: Copy {
    fn decode(bytes: &[u8], place: &Place) -> Result<Self, RecordError>;
    fn offset(layout: &Layout, slot: SlotIndex, index: u8) -> ByteOffset;
    /// The unit with the higher key speaks for its slot.
    fn key(&self) -> (u64, u64);
}

impl Paired for Ballot {
    fn decode(bytes: &[u8], place: &Place) -> Result<Self, RecordError> {
        Self::decode(bytes, place)
    }
    fn offset(layout: &Layout, slot: SlotIndex, index: u8) -> ByteOffset {
        layout.vote(slot, index)
    }
    fn key(&self) -> (u64, u64) {
        (self.sequence, 0)
    }
}

impl Paired for ViewRecord {
    fn decode(bytes: &[u8], place: &Place) -> Result<Self, RecordError> {
        Self::decode(bytes, place)
    }
    fn offset(layout: &Layout, slot: SlotIndex, index: u8) -> ByteOffset {
        layout.record(slot, index)
    }
    /// Both units of a slot are true; the later view is the news, whatever an earlier life left in the other unit.
    fn key(&self) -> (u64, u64) {
        (self.view.0, self.sequence)
    }
}

/// Judges reads of one table; what has not changed since the last one is not decoded again.
#[derive(Debug)]
pub(super) struct Reader<T> {
    units: Units<Result<T, RecordError>>,
    last: Option<Arc<Table<T>>>,
}

impl<T> Default for Reader<T> {
    fn default() -> Self {
        Self { units: Units::default(), last: None }
    }
}

/// Slot and number of a unit of a table.
fn pair_of(unit: usize) -> (SlotIndex, u8) {
    (SlotIndex(u16::try_from(unit / 2).unwrap_or(u16::MAX)), u8::from(!unit.is_multiple_of(2)))
}

impl<T: Paired> Reader<T> {
    /// Judges a read of the whole area.
    pub(super) fn read(&mut self, bytes: &Arc<[u8]>, layout: &Layout, cluster: ClusterUuid, own: SlotIndex) -> Arc<Table<T>> {
        let decode = |unit: usize, bytes: &[u8]| {
            let (slot, index) = pair_of(unit);
            T::decode(bytes, &Place { cluster, offset: T::offset(layout, slot, index), slot })
        };
        let has_changed = self.units.update(bytes, 2 * usize::from(layout.slots), decode);
        match &self.last {
            Some(last) if !has_changed => Arc::clone(last),
            _ => Arc::clone(self.last.insert(Arc::new(self.table(layout, own)))),
        }
    }

    fn table(&self, layout: &Layout, own: SlotIndex) -> Table<T> {
        let own_unit = |index: usize| {
            let unit = self.units.values().get(2 * usize::from(own.0) + index);
            unit.cloned().unwrap_or(Err(RecordError::TooShort { found: 0, needed: deadbolt_disk_format::UNIT_BYTES }))
        };
        let mut table = Table { own: [0, 1].map(own_unit), others: Vec::new(), unreadable: Vec::new() };
        for (number, units) in self.units.values().chunks(2).enumerate().filter(|(number, _)| *number != usize::from(own.0)) {
            let mut newest: Option<T> = None;
            for (index, unit) in units.iter().enumerate() {
                match unit {
                    Ok(unit) if newest.as_ref().is_none_or(|best| best.key() < unit.key()) => newest = Some(*unit),
                    Ok(_) => {}
                    Err(_) => {
                        let (slot, index) = pair_of(2 * number + index);
                        table.unreadable.push(T::offset(layout, slot, index));
                    }
                }
            }
            table.others.extend(newest);
        }
        table
    }
}
