//! What: S6, no record is taken for one that nobody wrote there.
//! Owns: for every unit of every device, what those who may have written there.
//! Invariants: judged when a read completes, by the decoder that its reader uses.
//! Does not: judge the SBD area, whose format has no checksum; call an older record of the same unit a foreign one.
//! Called by: the disk operations of the world.

use super::Facts;
use crate::{
    disk::{SECTOR_BYTES, UnitInfo},
    random::mix,
};
use deadbolt_disk_format::{
    Area, Ballot, Beat, ByteOffset, ClusterUuid, JournalEntry, Place, Requests, SlotIndex, Superblock, ViewRecord, decode_body_place,
};
use std::collections::{BTreeMap, BTreeSet};

/// Hashes of everything that was rightly written, by device and offset.
#[derive(Debug, Default)]
pub struct Ledger(BTreeMap<(usize, ByteOffset), BTreeSet<u64>>);

/// Of the sectors that are not zero, and where they are: most units are empty behind their first sector.
fn hash(bytes: &[u8]) -> u64 {
    let sectors = (1u64..).zip(bytes.chunks(SECTOR_BYTES)).filter(|(_, sector)| sector.iter().fold(0, |sum, byte| sum | byte) != 0);
    sectors.fold(bytes.len() as u64, |sum, (number, sector)| {
        sector.chunks(8).fold(mix(sum ^ number), |sum, word| {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            mix(sum ^ u64::from_le_bytes(padded))
        })
    })
}

/// Would its reader take it?
fn is_taken(area: Area, bytes: &[u8], cluster: ClusterUuid, offset: ByteOffset) -> bool {
    let at = |slot: SlotIndex| Place { cluster, offset, slot };
    match area {
        Area::Superblock(_) => Superblock::decode(bytes, offset).is_ok_and(|found| found.cluster == cluster),
        Area::Beat(slot) => Beat::decode(bytes, &at(slot)).is_ok(),
        Area::Vote(slot, _) => Ballot::decode(bytes, &at(slot)).is_ok(),
        Area::Record(slot, _) => ViewRecord::decode(bytes, &at(slot)).is_ok(),
        Area::Body(slot, _) => decode_body_place(bytes, &at(slot)).is_ok(),
        Area::Requests(slot) => Requests::decode(bytes, &at(slot)).is_ok(),
        Area::Journal(slot, _) => JournalEntry::decode(bytes, &at(slot)).is_ok(),
        Area::Tool => false,
    }
}

impl Facts {
    /// Somebody who may writes this there.
    pub(crate) fn unit_written(&mut self, device: usize, offset: ByteOffset, bytes: &[u8]) {
        self.ledger.0.entry((device, offset)).or_default().insert(hash(bytes));
    }

    /// S6: a read has shown these bytes, and not all of them need be what was written there.
    pub(crate) fn suspicious_read(&mut self, device: usize, cluster: ClusterUuid, infos: &[UnitInfo], offset: ByteOffset, bytes: &[u8]) {
        for (area, start, length) in infos {
            let from = start.0.checked_sub(offset.0).and_then(|from| usize::try_from(from).ok());
            let Some(unit) = from.and_then(|from| bytes.get(from..from + length)) else { continue };
            let is_known = self.ledger.0.get(&(device, *start)).is_some_and(|known| known.contains(&hash(unit)));
            if !is_known && is_taken(*area, unit, cluster, *start) {
                self.breaks("S6", format!("{area:?} of device {device} is taken, and nobody wrote it there"));
            }
        }
    }
}
