//! What: a device or an image file as `deadbolt format` would leave it, for a test that needs no cluster.
//! Owns: the uuids of such devices, always the same.
//! Invariants: the sector size is that of the device.
//! Does not: refuse what stands there.
//! Called by: tests and benchmarks of the quorum disk.
#![allow(clippy::unwrap_used, reason = "part of tests: what cannot be made ends the test that wants it")]

use crate::disks::DISK_BYTES;
use deadbolt_cluster_core::timing::{Wishes, derive};
use deadbolt_disk::{Access, AlignedBuf, Device};
use deadbolt_disk_format::fresh::{Fresh, sbd_header_of};
use deadbolt_disk_format::{ClusterUuid, DeviceUuid, Layout, Superblock};
use std::path::Path;

/// The cluster of these devices.
pub const CLUSTER: ClusterUuid = ClusterUuid([9; 16]);

/// Formats what is [`DISK_BYTES`] long, with so many slots and the shortest stall tolerance.
pub fn format(path: &Path, slots: u16) {
    let device = Device::open(path, Access::ReadWrite).unwrap();
    let layout = Layout::new(DISK_BYTES, device.geometry().logical_sector_bytes, slots).unwrap();
    let superblock = Superblock {
        cluster: CLUSTER,
        device: DeviceUuid([8; 16]),
        device_number: 0,
        device_count: 1,
        name: "test".into(),
        generation: 1,
        features_incompatible: 0,
        features_read_only: 0,
        features_compatible: 0,
        sector_bytes: layout.sector_bytes,
        slots,
        device_bytes: DISK_BYTES,
        timings: derive(&Wishes::stall(500)).unwrap(),
        layout,
        formatted_wall_ms: 0,
    };
    let header = sbd_header_of(&superblock);
    let fresh = Fresh::new(superblock, &header, Vec::new(), "test").unwrap();
    for write in fresh.body().unwrap().chain([fresh.commit().unwrap()]) {
        device.write_at(write.offset, &AlignedBuf::copy_of(&write.data)).unwrap();
    }
}
