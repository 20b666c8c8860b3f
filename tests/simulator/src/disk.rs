//! What: one shared block device: what stands on it, and what it does to requests.
//! Owns: the bytes of every unit, which of them nobody rightly wrote there, the values of the protected data beside them.
//! Invariants: a write lands as a whole, in sectors, or not at all; what stands where nobody wrote it is marked.
//! Does not: know nodes, or when something happens; paths and delays are the world's.
//! Called by: the world.
//!
//! # Which faults of which area must be survived
//!
//! Random seeds draw fair faults only, so that every broken promise is a bug. A fault is fair where the design says how it is seen or
//! why it does no harm; it is unfair where one device lies about the only copy of something and nobody can know. Unfair ones are
//! options of their own, never drawn; `tests/unfair.rs` shows for each how it ends. Everywhere fair: slow, hung for a while or for
//! ever, late, failing operations, whatever came of them; a torn write, in sectors; single reads of other bytes or with flipped bits,
//! for every record names its place and carries a checksum.
//!
//! **SBD area** (names, mailboxes). Everything is fair but a name that turns into another name: its node is refused at its next start,
//! for somebody may have given the slot away. A name that is lost or damaged is written again. No promise hangs on a pill: it is read
//! back by who wrote it, written again while nothing is proved, and a node is gone by other evidence. The format is another's and has
//! no checksum: flipped bits may look like a pill of a stock tool, and cost a reset. That is why the checker of foreign records (S6)
//! leaves the area out.
//!
//! **Superblock.** Read when a node starts. Fair: up to two of four copies, for two equal ones decide. Unfair: three or all; the node
//! refuses to start.
//!
//! **Beats.** Fair: rot, and anything written over one: an unreadable beat is no news and no silence, and its owner writes the next one.
//! Fair: reads of the whole table as it was earlier: they do not show the reader's own newest beat and prove nothing. Unfair: a beat
//! acknowledged and lost: its writer's lease runs from it, and nobody has seen it. Seen within a second, when the writer reads its own
//! beat back and finds an older one, unless its path fails before that.
//!
//! **Votes.** Fair: a ballot lost or written elsewhere: the scan after it shows the writer its own older unit, and the device is put
//! aside (the only one: the node resets itself). Fair: one of the two units of a node that lives rots: an unknown promise, no scan
//! counts until its owner has rewritten it. Unfair (design, section 10): a ballot acknowledged and lost after its own scan saw it; a
//! scan that does not show another's ballot; both units of a living node rotten. Unfair, but only a stop: a unit of a dead node rots:
//! nothing may be decided any more until a person acts.
//!
//! **Views records, bodies.** Fair: a torn body, for nothing names a place before it is complete. Fair: rot of a record or a body whose
//! owner lives, or which another node has too: the owner finds it at its next look (a body: within a second) and writes it again, and
//! meanwhile nothing else happens to it. Unfair where it was the only one and its owner is dead, or dies before that look: who does not
//! know the view cannot learn it, and nothing can be decided any more.
//!
//! **Journal, requests, tool.** Everything is fair: no decision reads them.
//!
//! **Three devices.** One of them may do all of this, going back in time included, while the paths to the two others are well: no
//! majority needs it. It may go back only where both others have what it forgets: of two that took part in a decision one must not
//! forget it (design, section 6).
//!
//! **The machine's side.** Unfair: a clock beyond its bound, or stopped together with the watchdog (a paused guest; no clock shows it,
//! only reservations help); a watchdog later than its table; a write that lands later than D after the reset; two copies of one node
//! that start in the same moment, or one while the other's path is stalled; another device under a running node's only path; an older
//! image of the only device under a cluster that is down as a whole.

use crate::random::Random;
use deadbolt_disk_format::{
    BootId, ByteOffset, ClusterUuid, DeviceUuid, Layout, SlotIndex, Superblock, Timings, UNIT_BYTES,
    fresh::{Fresh, sbd_header_of},
    layout::Area,
    sbd::{SbdHeader, SbdNode, area_bytes, node_offset},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

/// What must be atomic is one sector.
pub const SECTOR_BYTES: usize = 512;
const DEVICE_BYTES: u64 = 8 << 20;

/// Bytes by offset and length.
type Reads = BTreeMap<(u64, usize), Arc<[u8]>>;
type UnitBytes = [u8; UNIT_BYTES];

/// A set of kinds of area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Areas(u16);

impl Areas {
    pub(crate) const SBD: Self = Self(1);
    pub(crate) const SUPERBLOCK: Self = Self(1 << 1);
    pub(crate) const BEAT: Self = Self(1 << 2);
    pub(crate) const VOTE: Self = Self(1 << 3);
    pub(crate) const RECORD: Self = Self(1 << 4);
    pub(crate) const BODY: Self = Self(1 << 5);
    pub(crate) const REQUESTS: Self = Self(1 << 6);
    pub(crate) const JOURNAL: Self = Self(1 << 7);
    pub(crate) const TOOL: Self = Self(1 << 8);
    pub(crate) const ALL: Self = Self(u16::MAX);

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn of(area: Option<Area>) -> Self {
        match area {
            None => Self::SBD,
            Some(Area::Superblock(_)) => Self::SUPERBLOCK,
            Some(Area::Beat(_)) => Self::BEAT,
            Some(Area::Vote(..)) => Self::VOTE,
            Some(Area::Record(..)) => Self::RECORD,
            Some(Area::Body(..)) => Self::BODY,
            Some(Area::Requests(_)) => Self::REQUESTS,
            Some(Area::Journal(..)) => Self::JOURNAL,
            Some(Area::Tool) => Self::TOOL,
        }
    }

    /// Does an offset lie in one of them?
    pub(crate) fn has(self, disk: &Disk, offset: ByteOffset) -> bool {
        self.0 & Self::of(disk.info_at(offset).map(|(area, _, _)| area)).0 != 0
    }
}

/// One unit or place of a device: what it is, where it begins, how long it is.
pub type UnitInfo = (Area, ByteOffset, usize);

/// A device.
#[derive(Debug, Clone)]
pub struct Disk {
    layout: Layout,
    infos: Rc<Vec<UnitInfo>>,
    units: Vec<Option<Rc<UnitBytes>>>,
    /// Units whose bytes nobody who may has written there.
    tainted: BTreeSet<usize>,
    /// What was read before, by offset and length, kept up to date.
    reads: RefCell<Reads>,
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
        // One more than there are nodes: tables are read whole, and a slot that nobody has belongs to them.
        let slots = u16::try_from(names.len() + 1).unwrap_or(u16::MAX);
        let layout = Layout::new(DEVICE_BYTES, 512, slots).expect("8 MiB hold a slot for every node");
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
            slots,
            device_bytes: DEVICE_BYTES,
            timings,
            layout,
            formatted_wall_ms: 1,
        };
        let header = sbd_header_of(&superblock);
        let infos = Rc::new(layout.units());
        let units = vec![None; index(DEVICE_BYTES)];
        let mut disk = Self { layout, infos, units, tainted: BTreeSet::new(), reads: RefCell::default(), data: vec![0; cells] };
        let fresh = Fresh::new(superblock, &header, Vec::new(), "simulator").expect("a valid superblock");
        for write in fresh.body().expect("a valid superblock") {
            disk.write(write.offset, &write.data);
        }
        let commit = fresh.commit().expect("a valid superblock");
        disk.write(commit.offset, &commit.data);
        disk.write_names(names);
        disk
    }

    /// A device as stock's `create` leaves it, with the names of the nodes.
    ///
    /// # Panics
    /// Never: the layout of a device of this size is a constant.
    #[must_use]
    pub fn stock(header: &SbdHeader, names: &[String]) -> Self {
        let layout = Layout::new(DEVICE_BYTES, 512, 1).expect("8 MiB hold a slot");
        let units = vec![None; index(area_bytes(512))];
        let (tainted, reads) = (BTreeSet::new(), RefCell::default());
        let mut disk = Self { layout, infos: Rc::default(), units, tainted, reads, data: Vec::new() };
        disk.write(ByteOffset(0), &header.encode());
        disk.write_names(names);
        disk
    }

    fn write_names(&mut self, names: &[String]) {
        for (slot, name) in names.iter().enumerate() {
            let slot = SlotIndex(u16::try_from(slot).unwrap_or(u16::MAX));
            let node = SbdNode { is_in_use: true, name: name.clone() };
            self.write(ByteOffset(node_offset(slot, 512)), &node.encode(512));
        }
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

    /// Every unit behind the SBD area, by offset.
    #[must_use]
    pub fn infos(&self) -> &Rc<Vec<UnitInfo>> {
        &self.infos
    }

    /// The unit or place that an offset lies in; none in the SBD area and between the areas.
    #[must_use]
    pub fn info_at(&self, offset: ByteOffset) -> Option<UnitInfo> {
        let after = self.infos.partition_point(|(_, start, _)| *start <= offset);
        let (area, start, bytes) = *self.infos.get(after.checked_sub(1)?)?;
        (offset.0 < start.0 + bytes as u64).then_some((area, start, bytes))
    }

    /// Does something stand there that nobody who may has written?
    #[must_use]
    pub fn is_tainted(&self, offset: ByteOffset, bytes: usize) -> bool {
        let end = offset.0 + bytes as u64;
        self.tainted.range(index(offset.0)..index(end.next_multiple_of(UNIT_BYTES as u64))).next().is_some()
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

    /// What stands there; the same allocation until a write lands there.
    #[must_use]
    pub fn read_shared(&self, offset: ByteOffset, bytes: usize) -> Arc<[u8]> {
        let mut reads = self.reads.borrow_mut();
        Arc::clone(reads.entry((offset.0, bytes)).or_insert_with(|| self.read(offset, bytes).into()))
    }

    /// Lets a write land.
    pub fn write(&mut self, offset: ByteOffset, data: &[u8]) {
        self.change_reads(offset.0, data);
        let mut at = offset.0;
        let mut rest = data;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(UNIT_BYTES - within(at)));
            if let Some(unit) = self.units.get_mut(index(at)) {
                let is_empty = unit.is_none() && piece.iter().fold(0, |sum, byte| sum | byte) == 0;
                if !is_empty {
                    let bytes = Rc::make_mut(unit.get_or_insert_with(|| Rc::new([0; UNIT_BYTES])));
                    bytes[within(at)..within(at) + piece.len()].copy_from_slice(piece);
                }
            }
            if piece.len() == UNIT_BYTES {
                self.tainted.remove(&index(at));
            }
            at += piece.len() as u64;
            rest = after;
        }
    }

    /// Remembered reads show what is written; who was given one keeps it as it was.
    fn change_reads(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        for ((from, length), bytes) in self.reads.get_mut() {
            let (low, high) = (offset.max(*from), end.min(from + *length as u64));
            if low < high {
                let at = |offset: u64, from: u64| usize::try_from(offset - from).unwrap_or(usize::MAX);
                Arc::make_mut(bytes)[at(low, *from)..at(high, *from)].copy_from_slice(&data[at(low, offset)..at(high, offset)]);
            }
        }
    }

    /// Lets some sectors of a write land, in no order, and the others not.
    pub fn write_torn(&mut self, offset: ByteOffset, data: &[u8], random: &mut Random) {
        for (number, sector) in (0u64..).zip(data.chunks(SECTOR_BYTES)) {
            if random.chance(500) {
                self.write_astray(ByteOffset(offset.0 + number * SECTOR_BYTES as u64), sector);
            }
        }
    }

    /// Lets a write land where it does not belong.
    pub fn write_astray(&mut self, offset: ByteOffset, data: &[u8]) {
        self.write(offset, data);
        let end = offset.0 + data.len() as u64;
        self.tainted.extend(index(offset.0)..index(end.next_multiple_of(UNIT_BYTES as u64)));
    }

    /// Turns some bits of what stands there.
    pub fn rot(&mut self, offset: ByteOffset, bytes: usize, random: &mut Random) {
        let mut found = self.read(offset, bytes);
        turn_bits(&mut found, random);
        self.write_astray(offset, &found);
    }

    /// Becomes what it was; the protected values are elsewhere and stay.
    pub fn put_back(&mut self, image: Self) {
        let data = std::mem::take(&mut self.data);
        *self = Self { data, ..image };
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

/// Turns one to eight bits.
pub fn turn_bits(bytes: &mut [u8], random: &mut Random) {
    for _ in 0..random.range(1, 8) {
        let at = random.index(bytes.len());
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << random.below(8);
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
