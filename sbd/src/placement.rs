//! What: where one device keeps this node's beat, name and mailbox: in our areas, or all of it in the area of a stock device.
//! Owns: the difference between the two; nobody else asks which it is.
//! Invariants: on a stock device a write of the beat carries the name, and changes nothing that a stock tool reads.
//! Does not: read or write.
//! Called by: the shell of the lifeline, the watcher, the fencer.

use deadbolt_disk_format::node_record::{NodeRecord, decode_node_record, encode_node_sector, node_record_place};
use deadbolt_disk_format::sbd::{SbdNode, mailbox_offset, node_offset};
use deadbolt_disk_format::{Beat, ByteOffset, ClusterUuid, Layout, Place, RecordError, SLOTS_MAX, SlotIndex, UNIT_BYTES};
use deadbolt_sbd_core::OwnPlace;

/// A node's place on one device.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    slot: SlotIndex,
    sector_bytes: u32,
    areas: Areas,
}

#[derive(Clone, Copy, Debug)]
enum Areas {
    Ours { cluster: ClusterUuid, layout: Layout },
    Stock { uuid: [u8; 16] },
}

/// What to read, or where to write.
pub(crate) type Span = (ByteOffset, usize);

impl Placement {
    /// On a device that we formatted.
    #[must_use]
    pub fn ours(cluster: ClusterUuid, layout: Layout, slot: SlotIndex) -> Self {
        Self { slot, sector_bytes: layout.sector_bytes, areas: Areas::Ours { cluster, layout } }
    }

    /// On a device that `sbd create` made; `uuid` is that of its header.
    #[must_use]
    pub fn stock(uuid: [u8; 16], sector_bytes: u32, slot: SlotIndex) -> Self {
        Self { slot, sector_bytes, areas: Areas::Stock { uuid } }
    }

    /// The same for another slot; none where there is no such slot.
    pub(crate) fn of(&self, slot: SlotIndex) -> Option<Self> {
        let exists = match &self.areas {
            Areas::Ours { layout, .. } => layout.has_slot(slot),
            Areas::Stock { .. } => slot.0 < SLOTS_MAX,
        };
        exists.then_some(Self { slot, ..*self })
    }

    /// The slot.
    #[must_use]
    pub fn slot(&self) -> SlotIndex {
        self.slot
    }

    /// Logical sector of the SBD area.
    #[must_use]
    pub fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    fn sector(&self) -> usize {
        usize::try_from(self.sector_bytes).unwrap_or(UNIT_BYTES)
    }

    /// The mailbox.
    pub(crate) fn mailbox(&self) -> Span {
        (ByteOffset(mailbox_offset(self.slot, self.sector_bytes)), self.sector())
    }

    /// The node's sector in the SBD area; it stands right before the mailbox.
    pub(crate) fn node_sector(&self) -> Span {
        (ByteOffset(node_offset(self.slot, self.sector_bytes)), self.sector())
    }

    /// Does the name stand apart from the beat, so that it has to be looked after?
    pub(crate) fn has_own_name(&self) -> bool {
        matches!(self.areas, Areas::Ours { .. })
    }

    /// Where the beat is read.
    pub(crate) fn beat(&self) -> Span {
        match &self.areas {
            Areas::Ours { layout, .. } => (layout.beat(self.slot), UNIT_BYTES),
            Areas::Stock { .. } => self.node_sector(),
        }
    }

    fn place(&self) -> Place {
        match &self.areas {
            Areas::Ours { cluster, layout } => Place { cluster: *cluster, offset: layout.beat(self.slot), slot: self.slot },
            Areas::Stock { uuid } => node_record_place(*uuid, self.slot, self.sector_bytes),
        }
    }

    /// The write of a beat.
    pub(crate) fn encode(&self, beat: Beat, node: &str) -> (ByteOffset, Vec<u8>) {
        let beat = Beat { slot: self.slot, ..beat };
        let (offset, _) = self.beat();
        let data = match &self.areas {
            Areas::Ours { .. } => beat.encode(&self.place()).to_vec(),
            Areas::Stock { .. } => {
                let node = SbdNode { is_in_use: true, name: node.to_owned() };
                encode_node_sector(&node, &beat, &self.place(), self.sector_bytes)
            }
        };
        (offset, data)
    }

    /// What a read of the beat shows; the error is for people, and no news.
    pub(crate) fn decode(&self, bytes: &[u8]) -> (OwnPlace, Option<RecordError>) {
        match &self.areas {
            Areas::Ours { .. } => match Beat::decode(bytes, &self.place()) {
                Ok(beat) => (OwnPlace::Beat(Box::new(beat)), None),
                Err(RecordError::NotARecord { is_all_zero: true, .. }) => (OwnPlace::NeverWritten, None),
                Err(error) => (OwnPlace::Unreadable, Some(error)),
            },
            Areas::Stock { .. } => match decode_node_record(bytes, &self.place()) {
                NodeRecord::Beat(beat) => (OwnPlace::Beat(beat), None),
                NodeRecord::Absent => (OwnPlace::NeverWritten, None),
                NodeRecord::Damaged(error) => (OwnPlace::Unreadable, Some(error)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk_format::{BootId, DaemonPart, Incarnation, Rule, WatchdogKind};

    #[test]
    fn a_beat_is_read_as_it_was_written() {
        let layout = Layout::new(16 << 20, 512, 8).unwrap();
        let beat = Beat {
            slot: SlotIndex(0),
            boot: BootId([1; 16]),
            writer: Incarnation([2; 16]),
            beat: 3,
            lease_ms: 4,
            reset_ms: 5,
            rule: Rule::Disk,
            watchdog: WatchdogKind::None,
            is_stopped: false,
            is_idle: false,
            acknowledged: None,
            wall_ms: 6,
            boottime_ms: 7,
            outlive_ms: 0,
            daemon: DaemonPart::default(),
        };
        let slot = SlotIndex(5);
        for placement in [
            Placement::ours(ClusterUuid([9; 16]), layout, slot),
            Placement::stock([9; 16], 512, slot),
            Placement::stock([9; 16], 4096, slot),
        ] {
            let (offset, data) = placement.encode(beat.clone(), "alpha");
            let (read_offset, bytes) = placement.beat();
            assert_eq!((offset, data.len()), (read_offset, bytes));
            let expected = OwnPlace::Beat(Box::new(Beat { slot, ..beat.clone() }));
            assert_eq!(placement.decode(&data).0, expected);
            assert_eq!(placement.decode(&vec![0; bytes]).0, OwnPlace::NeverWritten);
            let (node, mailbox) = (placement.node_sector(), placement.mailbox());
            assert_eq!(node.0.0 + u64::try_from(node.1).unwrap(), mailbox.0.0);
        }
    }
}
