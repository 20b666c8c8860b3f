//! What: one shared block device: what stands on it, and what it does to requests.
//! Owns: the bytes of every unit, the values of the protected data beside them.
//! Invariants: a write lands as a whole, in sectors, or not at all; nothing lands that nobody sent.
//! Does not: know nodes, or when something happens; paths and delays are the world's.
//! Called by: the world.

use crate::random::Random;
use deadbolt_disk_format::{
    BootId, ByteOffset, ClusterUuid, DeviceUuid, Layout, SlotIndex, Superblock, Timings, UNIT_BYTES,
    fresh::Fresh,
    sbd::{SbdHeader, SbdNode, node_offset},
};
use std::rc::Rc;

/// What must be atomic is one sector.
pub const SECTOR_BYTES: usize = 512;
/// Slots of a simulated device: more than any world has nodes, few enough that a table is read quickly.
pub const SLOTS: u16 = 8;
const DEVICE_BYTES: u64 = 8 << 20;

type UnitBytes = [u8; UNIT_BYTES];

/// A device.
#[derive(Debug, Clone)]
pub struct Disk {
    layout: Layout,
    units: Vec<Option<Rc<UnitBytes>>>,
    /// Values that applications protect by locks.
    data: Vec<u64>,
}

fn index(offset: u64) -> usize {
    usize::try_from(offset / UNIT_BYTES as u64).unwrap_or(usize::MAX)
}

fn within(offset: u64) -> usize {
    usize::try_from(offset % UNIT_BYTES as u64).unwrap_or(0)
}

impl Disk {
    /// A device as `format` leaves it, with the names of the nodes in the SBD area.
    ///
    /// # Panics
    /// Never: the layout of a device of this size is a constant.
    #[must_use]
    pub fn formatted(cluster: ClusterUuid, number: u16, count: u16, timings: Timings, names: &[String], cells: usize) -> Self {
        let layout = Layout::new(DEVICE_BYTES, 512, SLOTS).expect("8 MiB hold 8 slots");
        let mut device = [0xd0; 16];
        device[15] = u8::try_from(number).unwrap_or(0) + 1;
        let superblock = Superblock {
            cluster,
            device: DeviceUuid(device),
            device_number: number,
            device_count: count,
            name: "simulated".into(),
            generation: 1,
            features_incompatible: 0,
            features_read_only: 0,
            features_compatible: 0,
            sector_bytes: 512,
            slots: SLOTS,
            device_bytes: DEVICE_BYTES,
            timings,
            layout,
            formatted_wall_ms: 1,
        };
        let seconds = |ms: u32| ms.div_ceil(1000);
        let header = SbdHeader {
            slots: 255,
            sector_bytes: 512,
            watchdog_s: seconds(timings.watchdog_ms),
            allocate_s: 2,
            loop_s: 1,
            msgwait_s: seconds(2 * timings.watchdog_ms),
            minor: deadbolt_disk_format::sbd::SBD_MINOR,
            uuid: device,
        };
        let mut disk = Self { layout, units: vec![None; index(DEVICE_BYTES)], data: vec![0; cells] };
        let fresh = Fresh::new(superblock, &header, Vec::new(), "simulator").expect("a valid superblock");
        for write in fresh.body().expect("a valid superblock") {
            disk.write(write.offset, &write.data);
        }
        let commit = fresh.commit().expect("a valid superblock");
        disk.write(commit.offset, &commit.data);
        for (slot, name) in names.iter().enumerate() {
            let slot = SlotIndex(u16::try_from(slot).unwrap_or(u16::MAX));
            let node = SbdNode { is_in_use: true, name: name.clone() };
            disk.write(ByteOffset(node_offset(slot, 512)), &node.encode(512));
        }
        disk
    }

    /// Where its areas lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        DEVICE_BYTES
    }

    /// What stands there.
    #[must_use]
    pub fn read(&self, offset: ByteOffset, bytes: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes);
        let mut at = offset.0;
        while out.len() < bytes {
            let take = (bytes - out.len()).min(UNIT_BYTES - within(at));
            match self.units.get(index(at)) {
                Some(Some(unit)) => out.extend_from_slice(&unit[within(at)..within(at) + take]),
                _ => out.resize(out.len() + take, 0),
            }
            at += take as u64;
        }
        out
    }

    /// Lets a write land.
    pub fn write(&mut self, offset: ByteOffset, data: &[u8]) {
        let mut at = offset.0;
        let mut rest = data;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(UNIT_BYTES - within(at)));
            if let Some(unit) = self.units.get_mut(index(at)) {
                let is_empty = unit.is_none() && piece.iter().all(|byte| *byte == 0);
                if !is_empty {
                    let bytes = Rc::make_mut(unit.get_or_insert_with(|| Rc::new([0; UNIT_BYTES])));
                    bytes[within(at)..within(at) + piece.len()].copy_from_slice(piece);
                }
            }
            at += piece.len() as u64;
            rest = after;
        }
    }

    /// Lets some sectors of a write land, in no order, and the others not.
    pub fn write_torn(&mut self, offset: ByteOffset, data: &[u8], random: &mut Random) {
        for (number, sector) in (0u64..).zip(data.chunks(SECTOR_BYTES)) {
            if random.chance(500) {
                self.write(ByteOffset(offset.0 + number * SECTOR_BYTES as u64), sector);
            }
        }
    }

    /// A protected value.
    #[must_use]
    pub fn cell(&self, cell: usize) -> u64 {
        self.data.get(cell).copied().unwrap_or(0)
    }

    /// Lets a protected value change.
    pub fn set_cell(&mut self, cell: usize, value: u64) {
        if let Some(known) = self.data.get_mut(cell) {
            *known = value;
        }
    }
}

/// The boot of a machine's n-th life.
#[must_use]
pub fn boot_id(machine: usize, number: u64) -> BootId {
    let mut bytes = [0xb0; 16];
    bytes[0] = u8::try_from(machine).unwrap_or(u8::MAX);
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    BootId(bytes)
}
