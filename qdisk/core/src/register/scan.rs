//! What: the tables of all nodes' vote units and views records as one read showed them.
//! Owns: the judgement of a table: newest unit per slot, what could not be read.
//! Invariants: the whole table is judged, configured or not; an unreadable vote unit is an unknown promise, never empty; an unreadable
//! record is no news.
//! Does not: decide what follows from it.
//! Called by: the register.

use alloc::vec::Vec;
use deadbolt_disk_format::{Ballot, ByteOffset, ClusterUuid, Layout, Place, RecordError, SlotIndex, UNIT_BYTES, ViewRecord};

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

type Decode<T> = dyn Fn(&[u8], &Place) -> Result<T, RecordError>;

struct Reader<'a, T> {
    bytes: &'a [u8],
    start: ByteOffset,
    cluster: ClusterUuid,
    offset_of: &'a dyn Fn(SlotIndex, u8) -> ByteOffset,
    decode: &'a Decode<T>,
    /// The unit with the higher key speaks for its slot.
    key: fn(&T) -> (u64, u64),
}

impl<T> Reader<'_, T> {
    fn unit(&self, slot: SlotIndex, index: u8) -> Result<T, (ByteOffset, RecordError)> {
        let offset = (self.offset_of)(slot, index);
        let from = offset.0.checked_sub(self.start.0).and_then(|from| usize::try_from(from).ok());
        let bytes = from.and_then(|from| self.bytes.get(from..from.checked_add(UNIT_BYTES)?)).unwrap_or_default();
        (self.decode)(bytes, &Place { cluster: self.cluster, offset, slot }).map_err(|error| (offset, error))
    }

    fn table(&self, slots: u16, own: SlotIndex) -> Table<T> {
        let mut table = Table {
            own: [0, 1].map(|index| self.unit(own, index).map_err(|(_, error)| error)),
            others: Vec::new(),
            unreadable: Vec::new(),
        };
        for slot in (0..slots).map(SlotIndex).filter(|slot| *slot != own) {
            let mut newest: Option<T> = None;
            for index in 0..2 {
                match self.unit(slot, index) {
                    Ok(unit) if newest.as_ref().is_none_or(|best| (self.key)(best) < (self.key)(&unit)) => {
                        newest = Some(unit);
                    }
                    Ok(_) => {}
                    Err((offset, _)) => table.unreadable.push(offset),
                }
            }
            table.others.extend(newest);
        }
        table
    }
}

/// Judges a read of the whole vote area.
pub(super) fn vote_table(bytes: &[u8], layout: &Layout, cluster: ClusterUuid, own: SlotIndex) -> Table<Ballot> {
    Reader {
        bytes,
        start: layout.votes,
        cluster,
        offset_of: &|slot, index| layout.vote(slot, index),
        decode: &Ballot::decode,
        key: |ballot| (ballot.sequence, 0),
    }
    .table(layout.slots, own)
}

/// Judges a read of the whole area of views records.
pub(super) fn record_table(bytes: &[u8], layout: &Layout, cluster: ClusterUuid, own: SlotIndex) -> Table<ViewRecord> {
    Reader {
        bytes,
        start: layout.records,
        cluster,
        offset_of: &|slot, index| layout.record(slot, index),
        decode: &ViewRecord::decode,
        // Both units of a slot are true; the later view is the news, whatever an earlier life left in the other unit.
        key: |record| (record.view.0, record.sequence),
    }
    .table(layout.slots, own)
}
