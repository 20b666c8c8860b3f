//! What: the floor of a node at rest: the reads and the write that every poll of the disk needs, and nothing else.
//! Owns: what such a poll is: the own beat written, the own mailbox read; for a daemon, the beats of all slots read besides.
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

/// What a poll moves.
#[derive(Clone, Copy, Debug)]
pub struct Poll {
    write: usize,
    reads: &'static [usize],
}

/// The poll of a node of a cluster of ours.
pub(crate) const NODE: Poll = Poll { write: UNIT_BYTES, reads: &[UNIT_BYTES, UNIT_BYTES * SLOTS] };
/// The poll of a watcher on a device with sectors of 512 bytes.
pub const WATCHER: Poll = Poll { write: 512, reads: &[512] };

/// Polls for this long; answers with the percentage of a core that it took.
///
/// # Errors
/// The device failed.
pub fn poll(device: &Path, poll: &Poll, time: Duration) -> Result<f64> {
    let device = Device::open(device, Access::ReadWrite)?;
    let written = AlignedBuf::zeroed(poll.write);
    let mut read: Vec<AlignedBuf> = poll.reads.iter().map(|bytes| AlignedBuf::zeroed(*bytes)).collect();
    let (begin, before) = (Instant::now(), used()?);
    let mut next = begin;
    while begin.elapsed() < time {
        device.write_at(ByteOffset(0), &written)?;
        read.iter_mut().try_for_each(|buffer| device.read_at(ByteOffset(0), buffer))?;
        next += POLL;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let used = used()?.saturating_sub(before);
    Ok(used.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0)
}
