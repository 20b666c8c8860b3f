//! What: the cluster's devices as a node or a tool finds them: opened, identified, read once.
//! Owns: the checks that the given paths are the devices of one cluster, each once; the search for the newest decided view.
//! Invariants: reads only; a record is believed only where its decoder accepts it and its digest matches.
//! Does not: drive the register (a tool needs no vote to read what is decided).
//! Called by: corosync's quorum device, the supervisor before it starts anything, the daemon, `join`, `why`, `status` without a daemon.

use deadbolt_disk::{Access, AlignedBuf, Device, OpenError, same_storage};
use deadbolt_disk_format::{
    Beat, ByteOffset, ClusterUuid, Digest, JournalEntry, Layout, Place, SlotIndex, Superblock, SuperblockChoice, UNIT_BYTES, ViewBody,
    ViewNumber, ViewRecord, choose_superblock, decode_body_place, read_superblocks, sbd::SbdNode,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The SBD area and two copies of the superblock: nothing shorter is ours.
const SMALLEST_BYTES: u64 = 2 * (2 << 20);

/// One device, open and identified.
#[derive(Clone, Debug)]
pub struct ClusterDevice {
    /// As given.
    pub path: PathBuf,
    /// Open.
    pub device: Arc<Device>,
    /// What it says it is.
    pub superblock: Superblock,
}

/// Why the devices cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevicesError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: deadbolt_disk::IoError,
    },
    /// It carries no cluster.
    #[error("{}: no Deadbolt superblock was found ({found}); `deadbolt format` makes one, `fsck-deadbolt` looks closer", path.display())]
    NotOurs {
        /// Which.
        path: PathBuf,
        /// What the four copies said.
        found: String,
    },
    /// A view is decided, and no device has its body.
    #[error("view {view} is decided and its body is not readable on any device; run fsck-deadbolt")]
    NoBody {
        /// Which.
        view: ViewNumber,
    },
    /// Devices of two clusters.
    #[error("{} belongs to cluster {first}, {} to cluster {second}; a node's devices must be those of one cluster", first_path.display(), second_path.display())]
    TwoClusters {
        /// One path.
        first_path: PathBuf,
        /// Its cluster.
        first: ClusterUuid,
        /// The other path.
        second_path: PathBuf,
        /// Its cluster.
        second: ClusterUuid,
    },
    /// The node belongs to another cluster.
    #[error("{} carries cluster {found}; node {node} belongs to cluster {expected}: correct the devices in its node.toml, or `deadbolt join` this cluster with another --dir", path.display())]
    AnotherCluster {
        /// The path.
        path: PathBuf,
        /// Whose device it is.
        found: ClusterUuid,
        /// This node.
        node: String,
        /// Where it belongs.
        expected: String,
    },
    /// One device by two paths.
    #[error("{} and {} are the same device ({reason}); a cluster that votes on several devices needs different ones", first.display(), second.display())]
    SameDevice {
        /// One path.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// How it shows.
        reason: String,
    },
    /// Too few or too many.
    #[error("the cluster was formatted with {expected} device(s), {found} given; name each of them once in node.toml")]
    Count {
        /// Formatted with.
        expected: u16,
        /// Given.
        found: usize,
    },
    /// The sector size changed.
    #[error("{}: sectors of {found} bytes, formatted with {expected}; all ends must present the same sector size", path.display())]
    SectorSize {
        /// Which.
        path: PathBuf,
        /// Formatted with.
        expected: u32,
        /// Found.
        found: u32,
    },
    /// The device shrank.
    #[error("{}: {found} bytes, formatted with {expected}; the device is too short for its areas", path.display())]
    TooShort {
        /// Which.
        path: PathBuf,
        /// Formatted with.
        expected: u64,
        /// Found.
        found: u64,
    },
}

/// Opens the devices and checks that they are those of one cluster. Sorted by device number.
///
/// # Errors
/// The first check that fails.
pub fn open(paths: &[PathBuf], access: Access) -> Result<Vec<ClusterDevice>, DevicesError> {
    let mut devices = Vec::new();
    for path in paths {
        devices.push(open_one(path, access)?);
    }
    check_together(&devices)?;
    devices.sort_by_key(|device| device.superblock.device_number);
    Ok(devices)
}

fn open_one(path: &Path, access: Access) -> Result<ClusterDevice, DevicesError> {
    let device = Device::open(path, access)?;
    let geometry = device.geometry().clone();
    if geometry.size_bytes < SMALLEST_BYTES {
        return Err(DevicesError::NotOurs { path: path.to_path_buf(), found: format!("it has only {} bytes", geometry.size_bytes) });
    }
    let mut failure = None;
    let copies = read_superblocks(geometry.size_bytes, |offset| match read(&device, offset, UNIT_BYTES) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            failure.get_or_insert(error);
            None
        }
    });
    let found =
        || copies.iter().map(|copy| copy.as_ref().map_or_else(ToString::to_string, |_| "good".into())).collect::<Vec<_>>().join("; ");
    let superblock = match choose_superblock(&copies) {
        SuperblockChoice::Agreed { superblock, .. } => superblock,
        SuperblockChoice::Alone { superblock, .. } if access == Access::Read => superblock,
        SuperblockChoice::Unfinished { .. }
        | SuperblockChoice::Forked { .. }
        | SuperblockChoice::Damaged
        | SuperblockChoice::Absent
        | SuperblockChoice::Alone { .. } => {
            return Err(match failure {
                Some(source) => DevicesError::Read { path: path.to_path_buf(), source },
                None => DevicesError::NotOurs { path: path.to_path_buf(), found: found() },
            });
        }
    };
    let path = path.to_path_buf();
    if geometry.logical_sector_bytes != superblock.sector_bytes && matches!(geometry.kind, deadbolt_disk::DeviceKind::Block { .. }) {
        return Err(DevicesError::SectorSize { path, expected: superblock.sector_bytes, found: geometry.logical_sector_bytes });
    }
    if geometry.size_bytes < superblock.device_bytes {
        return Err(DevicesError::TooShort { path, expected: superblock.device_bytes, found: geometry.size_bytes });
    }
    Ok(ClusterDevice { path, device: Arc::new(device), superblock })
}

fn check_together(devices: &[ClusterDevice]) -> Result<(), DevicesError> {
    for (index, first) in devices.iter().enumerate() {
        for second in devices.iter().skip(index + 1) {
            if first.superblock.cluster != second.superblock.cluster {
                return Err(DevicesError::TwoClusters {
                    first_path: first.path.clone(),
                    first: first.superblock.cluster,
                    second_path: second.path.clone(),
                    second: second.superblock.cluster,
                });
            }
            let same = |reason: String| DevicesError::SameDevice { first: first.path.clone(), second: second.path.clone(), reason };
            if first.superblock.device == second.superblock.device {
                return Err(same(format!("both carry the device uuid {}", first.superblock.device)));
            }
        }
    }
    let paths: Vec<&Path> = devices.iter().map(|device| device.path.as_path()).collect();
    if let Some(finding) = same_storage(&paths).first() {
        let path = |index: usize| devices.get(index).map(|device| device.path.clone()).unwrap_or_default();
        return Err(DevicesError::SameDevice { first: path(0), second: path(1), reason: finding.to_string() });
    }
    match devices.first() {
        Some(device) if usize::from(device.superblock.device_count) != devices.len() => {
            Err(DevicesError::Count { expected: device.superblock.device_count, found: devices.len() })
        }
        _ => Ok(()),
    }
}

fn read(device: &Device, offset: ByteOffset, bytes: usize) -> Result<Vec<u8>, deadbolt_disk::IoError> {
    let mut buffer = AlignedBuf::zeroed(bytes);
    device.read_at(offset, &mut buffer)?;
    Ok(buffer.to_vec())
}

impl ClusterDevice {
    /// Reads bytes of the device.
    ///
    /// # Errors
    /// The device fails.
    pub fn read(&self, offset: ByteOffset, bytes: usize) -> Result<Vec<u8>, DevicesError> {
        read(&self.device, offset, bytes).map_err(|source| DevicesError::Read { path: self.path.clone(), source })
    }

    fn layout(&self) -> &Layout {
        &self.superblock.layout
    }

    fn place(&self, offset: ByteOffset, slot: SlotIndex) -> Place {
        Place { cluster: self.superblock.cluster, offset, slot }
    }

    /// Every decided view that stands in some node's record, newest first, with the readable bodies.
    ///
    /// # Errors
    /// The device fails.
    pub fn views(&self) -> Result<Vec<(ViewRecord, Option<ViewBody>)>, DevicesError> {
        let layout = *self.layout();
        let table = self.read(layout.records, usize::try_from(layout.records_bytes()).unwrap_or(0))?;
        let mut records: Vec<ViewRecord> = Vec::new();
        for slot in (0..layout.slots).map(SlotIndex) {
            for index in 0..2 {
                let offset = layout.record(slot, index);
                let at = usize::try_from(offset.0 - layout.records.0).unwrap_or(usize::MAX);
                let Some(unit) = table.get(at..at.saturating_add(UNIT_BYTES)) else { continue };
                if let Ok(record) = ViewRecord::decode(unit, &self.place(offset, slot)) {
                    records.push(record);
                }
            }
        }
        records.sort_by_key(|record| std::cmp::Reverse((record.view, record.sequence)));
        let mut views: Vec<(ViewRecord, Option<ViewBody>)> = Vec::new();
        for record in records.into_iter().filter(|record| record.view > ViewNumber(0)) {
            match views.iter_mut().find(|(known, _)| known.view == record.view && known.digest == record.digest) {
                Some((_, Some(_))) => {}
                Some((known, body)) => {
                    *known = record;
                    *body = self.body(&record)?;
                }
                None => {
                    let body = self.body(&record)?;
                    views.push((record, body));
                }
            }
        }
        Ok(views)
    }

    fn body(&self, record: &ViewRecord) -> Result<Option<ViewBody>, DevicesError> {
        let layout = self.layout();
        if !layout.has_slot(record.life.slot) || record.place >= layout.places || record.digest == Digest::NONE {
            return Ok(None);
        }
        let offset = layout.body(record.life.slot, record.place);
        let bytes = self.read(offset, usize::try_from(layout.place_bytes).unwrap_or(0))?;
        let value = decode_body_place(&bytes, &self.place(offset, record.life.slot)).ok().map(|(_, _, value)| value);
        Ok(value.and_then(|value| ViewBody::decode_value(&value).ok()).filter(|body| body.digest() == record.digest))
    }

    /// Every good beat.
    ///
    /// # Errors
    /// The device fails.
    pub fn beats(&self) -> Result<Vec<Beat>, DevicesError> {
        let layout = *self.layout();
        let table = self.read(layout.beats, usize::try_from(layout.beats_bytes()).unwrap_or(0))?;
        let units = (0..layout.slots).map(SlotIndex).zip(table.chunks_exact(UNIT_BYTES));
        Ok(units.filter_map(|(slot, unit)| Beat::decode(unit, &self.place(layout.beat(slot), slot)).ok()).collect())
    }

    /// Every journal entry of every node, oldest first.
    ///
    /// # Errors
    /// The device fails.
    pub fn journal(&self) -> Result<Vec<JournalEntry>, DevicesError> {
        let layout = *self.layout();
        let table = self.read(layout.journal, usize::try_from(layout.journals_bytes()).unwrap_or(0))?;
        let mut units = table.chunks_exact(UNIT_BYTES);
        let mut entries = Vec::new();
        for slot in (0..layout.slots).map(SlotIndex) {
            for index in 0..layout.journal_units {
                let Some(unit) = units.next() else { break };
                entries.extend(JournalEntry::decode(unit, &self.place(layout.journal(slot, index), slot)));
            }
        }
        entries.sort_by_key(|entry| (entry.wall_ms, entry.life.slot, entry.sequence));
        Ok(entries)
    }

    /// Names in the SBD area by slot.
    ///
    /// # Errors
    /// The device fails.
    pub fn sbd_names(&self) -> Result<Vec<(SlotIndex, String)>, DevicesError> {
        let sector = usize::try_from(self.superblock.sector_bytes).unwrap_or(512);
        let area =
            self.read(ByteOffset(0), usize::try_from(deadbolt_disk_format::sbd::area_bytes(self.superblock.sector_bytes)).unwrap_or(0))?;
        let mut names = Vec::new();
        for slot in (0..self.superblock.slots).map(SlotIndex) {
            let at = usize::try_from(deadbolt_disk_format::sbd::node_offset(slot, self.superblock.sector_bytes)).unwrap_or(usize::MAX);
            let Some(bytes) = area.get(at..at.saturating_add(sector)) else { continue };
            if let Ok(node) = SbdNode::decode(bytes)
                && node.is_in_use
            {
                names.push((slot, node.name));
            }
        }
        Ok(names)
    }
}
