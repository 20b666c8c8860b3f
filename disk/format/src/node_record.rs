//! What: a node's own part of its beat on a device without our superblock: in the unused tail of its node sector.
//! Owns: where it stands there, and how a beat unit is folded into it.
//! Invariants: the bytes that stock tools read are untouched; what is read passes every check that a beat unit passes.
//! Does not: carry a daemon's part; a node of ours has a unit for that.
//! Called by: sbd (the drop-in watcher and every sender), fsck.

use crate::head::{Place, RecordError, fields};
use crate::sbd::{SbdNode, node_offset};
use crate::types::{Beat, ByteOffset, ClusterUuid, DAEMON_PART_BYTES, SlotIndex, UNIT_BYTES};
use alloc::{boxed::Box, vec::Vec};

fields! {
    /// The record in a node sector. A beat unit without its zeros: head and own part, then the checksum of the whole 512 bytes.
    pub mod node_record_fields from 128 to 260 {
        HEAD: 128, 88;
        OWN: 216, 40;
        CHECKSUM: 256, 4;
    }
}
/// Bytes of a beat unit before the daemon's part.
const FRONT_BYTES: usize = node_record_fields::HEAD.size + node_record_fields::OWN.size;
const _: () = assert!(FRONT_BYTES == crate::beat::beat_fields::DAEMON.offset);
const _: () = assert!(node_record_fields::HEAD.offset > crate::sbd::node_fields::NAME.offset + crate::sbd::node_fields::NAME.size);
/// Where the checksum stands in the first 512 bytes of a beat unit.
const UNIT_CHECKSUM: usize = 508;

/// What the tail of a node sector shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeRecord {
    /// All zero: a stock program wrote the sector last, or nobody lives here yet.
    Absent,
    /// Neither zero nor a record of this place: no news.
    Damaged(RecordError),
    /// A beat; its daemon's part is empty.
    Beat(Box<Beat>),
}

/// The place of the record, as its own head names it. A stock area's uuid stands for the cluster's.
#[must_use]
pub fn node_record_place(area_uuid: [u8; 16], slot: SlotIndex, sector_bytes: u32) -> Place {
    let offset = node_offset(slot, sector_bytes) + node_record_fields::HEAD.offset as u64;
    Place { cluster: ClusterUuid(area_uuid), offset: ByteOffset(offset), slot }
}

/// A node sector with its record.
#[must_use]
pub fn encode_node_sector(node: &SbdNode, beat: &Beat, place: &Place, sector_bytes: u32) -> Vec<u8> {
    let mut sector = node.encode(sector_bytes);
    let unit = beat.encode_with_part(place, &[0; DAEMON_PART_BYTES]);
    let start = node_record_fields::HEAD.offset;
    let checksum = node_record_fields::CHECKSUM;
    sector[start..start + FRONT_BYTES].copy_from_slice(&unit[..FRONT_BYTES]);
    sector[checksum.offset..checksum.offset + checksum.size].copy_from_slice(&unit[UNIT_CHECKSUM..UNIT_CHECKSUM + checksum.size]);
    sector
}

/// Reads the record of a node sector.
#[must_use]
pub fn decode_node_record(sector: &[u8], place: &Place) -> NodeRecord {
    let checksum = node_record_fields::CHECKSUM;
    let start = node_record_fields::HEAD.offset;
    let Some(bytes) = sector.get(start..checksum.offset + checksum.size) else {
        return NodeRecord::Damaged(RecordError::TooShort { found: sector.len(), needed: checksum.offset + checksum.size });
    };
    if bytes.iter().all(|byte| *byte == 0) {
        return NodeRecord::Absent;
    }
    let (front, code) = bytes.split_at(FRONT_BYTES);
    let mut unit = [0; UNIT_BYTES];
    unit[..FRONT_BYTES].copy_from_slice(front);
    unit[UNIT_CHECKSUM..UNIT_CHECKSUM + checksum.size].copy_from_slice(code);
    match Beat::decode(&unit, place) {
        Ok(beat) => NodeRecord::Beat(Box::new(beat)),
        Err(error) => NodeRecord::Damaged(error),
    }
}
