//! What: the floor of a node at rest: the reads and the write that every poll of the disk needs, and nothing else.
//! Owns: what such a poll is: the own beat written, the own mailbox read, the beats of all slots read.
//! Invariants: direct and durable, as the daemons do it; on a device of its own.
//! Does not: look at what it reads.
//! Called by: the floors, and the measurement of a cluster at rest.

use crate::clock::used;
use anyhow::Result;
use deadbolt_disk::{Access, AlignedBuf, ByteOffset, Device};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Interval of polls: the default of a node.
const POLL: Duration = Duration::from_millis(250);
/// Bytes of a unit.
const UNIT_BYTES: usize = 4096;
/// Slots of a device as it is formatted by default.
const SLOTS: usize = 32;

/// Polls for this long; answers with the percentage of a core that it took.
pub(crate) fn poll(device: &Path, time: Duration) -> Result<f64> {
    let device = Device::open(device, Access::ReadWrite)?;
    let mut unit = AlignedBuf::zeroed(UNIT_BYTES);
    let mut beats = AlignedBuf::zeroed(UNIT_BYTES * SLOTS);
    let (begin, before) = (Instant::now(), used()?);
    let mut next = begin;
    while begin.elapsed() < time {
        device.write_at(ByteOffset(0), &unit)?;
        device.read_at(ByteOffset(0), &mut unit)?;
        device.read_at(ByteOffset(0), &mut beats)?;
        next += POLL;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let used = used()?.saturating_sub(before);
    Ok(used.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0)
}
