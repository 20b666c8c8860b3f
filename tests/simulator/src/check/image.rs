//! What: S10: what `fsck` says of the simulated devices, and that it leaves them alone.
//! Owns: nothing.
//! Invariants: fsck gets a copy; what it finds on a device that no fault has damaged is a broken promise.
//! Does not: know what is on a device; fsck does.
//! Called by: the run, at its end.

use super::World;
use deadbolt_disk::MemoryDevice;
use deadbolt_disk_format::{ByteOffset, UNIT_BYTES};
use deadbolt_fsck::{CheckOptions, Severity, Source, check};
use std::{sync::Arc, time::Duration};

impl World {
    /// S10: fsck reads every device, changes nothing, and finds no error where nothing was damaged.
    pub(crate) fn check_images(&mut self) {
        let now_us = self.queue.now_us();
        let mut found = Vec::new();
        for (number, disk) in self.disks.iter().enumerate() {
            let bytes = usize::try_from(disk.bytes()).unwrap_or(0);
            let image = disk.read(ByteOffset(0), bytes);
            let device = Arc::new(MemoryDevice::new(bytes, 512));
            device.overwrite(ByteOffset(0), &image);
            let report = check(&Source::of_device("simulated", device.clone()), CheckOptions { pause: Duration::ZERO });
            if device.contents() != image {
                found.push(("S10", format!("fsck changed device {number}")));
            }
            let is_damaged = |offset: Option<ByteOffset>| {
                self.facts.damaged.contains(&number) || offset.is_some_and(|offset| disk.is_tainted(offset, UNIT_BYTES))
            };
            let mut errors = report.findings.iter().filter(|finding| finding.code.severity == Severity::Error);
            if let Some(error) = errors.find(|error| !is_damaged(error.offset)) {
                let (code, slot) = (error.code.code, error.slot.map_or(u16::MAX, |slot| slot.0));
                found.push(("S10", format!("fsck finds {code} on device {number}, slot {slot}: {}, {}", error.code.title, error.detail)));
            }
        }
        self.report(now_us, found);
        self.file_found();
    }
}
