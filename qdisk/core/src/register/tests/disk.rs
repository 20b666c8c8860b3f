//! What: a device of the register's areas, as bytes.
//! Owns: the bytes, and what the checkers remember of them.
//! Invariants: none of its own.
//! Does not: judge.
//! Called by: `cargo test`.

use super::*;

/// A device of the register's areas only.
fn layout(slots: u16) -> Layout {
    let unit = UNIT_BYTES as u64;
    let areas = 2 * u64::from(slots) * unit;
    let good = Layout::new(64 << 20, 512, slots).unwrap();
    Layout {
        votes: ByteOffset(0),
        records: ByteOffset(areas),
        bodies: ByteOffset(2 * areas),
        places: good.places,
        place_bytes: PLACE_BYTES,
        ..good
    }
}

pub(super) struct Disk {
    pub(super) layout: Layout,
    pub(super) bytes: Vec<u8>,
    /// Its operations do not get on.
    pub(super) is_silent: bool,
    /// Highest view that ever landed in a record, per slot.
    pub(super) recorded: Vec<u64>,
    /// Highest view of all ballots that landed.
    pub(super) ballot_view_max: u64,
    /// `ballot_view_max` when the slot's newest record landed: (view, ballots).
    pub(super) ballots_at_record: Vec<(u64, u64)>,
    /// Sequence of the slot's newest record that landed.
    pub(super) record_sequence: Vec<u64>,
}

impl Disk {
    pub(super) fn formatted(slots: u16) -> Self {
        let layout = layout(slots);
        let end = layout.body(SlotIndex(slots - 1), layout.places - 1).0 + u64::from(PLACE_BYTES);
        let mut bytes = vec![0; usize::try_from(end).unwrap()];
        for slot in (0..slots).map(SlotIndex) {
            let life = Life { slot, boot: BootId::NONE, incarnation: Incarnation::NONE };
            for index in 0..2u8 {
                let sequence = u64::from(index);
                let view = ViewNumber(0);
                let digest = Digest::NONE;
                let ballot = Ballot { life, sequence, view, entered: 0, accepted: 0, digest, place: 0 };
                let at = place_at(layout.vote(slot, index), slot);
                put(&mut bytes, at.offset, &*ballot.encode(&at));
                let record = ViewRecord { life, sequence, view, digest, place: 0, wall_ms: 0 };
                let at = place_at(layout.record(slot, index), slot);
                put(&mut bytes, at.offset, &*record.encode(&at));
            }
        }
        let count = usize::from(slots);
        Self {
            layout,
            bytes,
            is_silent: false,
            recorded: vec![0; count],
            ballot_view_max: 0,
            ballots_at_record: vec![(0, 0); count],
            record_sequence: vec![0; count],
        }
    }
    pub(super) fn get(&self, offset: ByteOffset, bytes: usize) -> &[u8] {
        let from = usize::try_from(offset.0).unwrap();
        &self.bytes[from..from + bytes]
    }
    pub(super) fn body_digest(&self, slot: SlotIndex, place: u8) -> Option<Digest> {
        let at = place_at(self.layout.body(slot, place), slot);
        let (_, _, value) = decode_body_place(self.get(at.offset, PLACE_BYTES as usize), &at).ok()?;
        Some(ViewBody::decode_value(&value).ok()?.digest())
    }
    pub(super) fn ballot(&self, slot: SlotIndex, index: u8) -> Option<Ballot> {
        let at = place_at(self.layout.vote(slot, index), slot);
        Ballot::decode(self.get(at.offset, UNIT_BYTES), &at).ok()
    }
    pub(super) fn record(&self, slot: SlotIndex, index: u8) -> Option<ViewRecord> {
        let at = place_at(self.layout.record(slot, index), slot);
        ViewRecord::decode(self.get(at.offset, UNIT_BYTES), &at).ok()
    }
}

pub(super) fn place_at(offset: ByteOffset, slot: SlotIndex) -> Place {
    Place { cluster: CLUSTER, offset, slot }
}
pub(super) fn put(bytes: &mut [u8], offset: ByteOffset, data: &[u8]) {
    let from = usize::try_from(offset.0).unwrap();
    bytes[from..from + data.len()].copy_from_slice(data);
}
