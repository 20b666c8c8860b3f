//! What: looks at the beats of the other nodes now and then, so that a sender on this machine knows since when one is silent; and at the
//! header, whose times may be changed.
//! Owns: when which slots are read, the file of what was seen, and the times that all devices name.
//! Invariants: one read at a time on each device; a device that hangs is not asked again.
//! Does not: judge silence, or hold up the life that lends it its engines.
//! Called by: the shell of the lifeline, for a watcher.

use std::collections::BTreeSet;

use deadbolt_disk::Operation;
use deadbolt_disk_format::sbd::SbdHeader;
use deadbolt_disk_format::{ByteOffset, DeviceUuid, SLOTS_MAX, SlotIndex};
use deadbolt_sbd_core::{BeatVersion, OwnPlace};

use crate::fence::History;
use crate::placement::Placement;

/// How often there is a look. Chosen: a node counts as silent up to two looks later than it was; small beside any W.
const LOOK_MS: u64 = 1000;
/// Every fourth look is at the header instead of the nodes. Chosen: other times are seldom, and who changes them waits.
const HEADER_EVERY: u32 = 4;
/// Slots in one read. Chosen: more than most clusters have nodes; 128 KiB with sectors of 4096 bytes.
const SLOTS: u16 = 16;

struct AreaSampler {
    area: DeviceUuid,
    placement: Placement,
    /// Slots from here on are free, as far as was seen.
    end: u16,
    next: u16,
    is_busy: bool,
    /// Reads so far, with the one under way.
    looks: u32,
    times: Option<SbdTimes>,
    history: History,
    /// Slots whose beat was seen once.
    fresh: BTreeSet<SlotIndex>,
}

/// The times of a header that a watcher lives by, s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SbdTimes {
    /// Time of the watchdog.
    pub watchdog_s: u32,
    /// Interval of the loop.
    pub loop_s: u32,
}

impl SbdTimes {
    pub(crate) fn of(header: &SbdHeader) -> Self {
        Self { watchdog_s: header.watchdog_s, loop_s: header.loop_s }
    }
}

/// The looks at all devices.
pub struct Sampler {
    areas: Vec<AreaSampler>,
    adopted: Option<SbdTimes>,
    due_ms: u64,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler").field("areas", &self.areas.len()).finish_non_exhaustive()
    }
}

impl Sampler {
    /// By device: its area, this node's place there, and the number of slots up to the last one in use. `adopted` are the times that this
    /// watcher lives by.
    pub(crate) fn new(areas: impl Iterator<Item = (DeviceUuid, Placement, u16)>, adopted: Option<SbdTimes>) -> Self {
        let one = |(area, placement, end)| AreaSampler {
            area,
            placement,
            end,
            next: 0,
            is_busy: false,
            looks: 0,
            times: None,
            history: History::default(),
            fresh: BTreeSet::new(),
        };
        Self { areas: areas.map(one).collect(), adopted, due_ms: 0 }
    }

    /// Other times than this watcher lives by, once every device names them.
    pub(crate) fn poll_times(&mut self) -> Option<SbdTimes> {
        let times = self.areas.first()?.times?;
        let is_agreed = self.areas.iter().all(|area| area.times == Some(times));
        let is_new = is_agreed && self.adopted != Some(times);
        is_new.then(|| *self.adopted.insert(times))
    }

    /// The reads that are due now, by device.
    pub(crate) fn poll_reads(&mut self, now_ms: u64) -> Vec<(usize, Operation)> {
        if now_ms < self.due_ms {
            return Vec::new();
        }
        self.due_ms = now_ms + LOOK_MS;
        let free = self.areas.iter_mut().enumerate().filter(|(_, area)| !area.is_busy);
        free.filter_map(|(device, area)| area.begin().map(|read| (device, read))).collect()
    }

    /// A read has come back.
    pub(crate) fn handle_read(&mut self, device: usize, bytes: Option<&[u8]>, now_ms: u64) {
        let Some(area) = self.areas.get_mut(device) else { return };
        area.is_busy = false;
        if area.is_header() {
            area.times = bytes.and_then(|bytes| area.times_of(bytes));
        } else if let Some(bytes) = bytes
            && area.take(bytes, now_ms)
        {
            // A machine without a run directory fences without a history: it waits longer.
            let _ = area.history.write(area.area);
        }
    }
}

impl AreaSampler {
    fn slots(&self) -> std::ops::Range<u16> {
        self.next..(self.next + SLOTS).min(SLOTS_MAX)
    }

    fn span(&self) -> Option<(u64, u64)> {
        let (first, last) = (self.slots().start, self.slots().end.checked_sub(1)?);
        let (start, end) = (self.placement.of(SlotIndex(first))?.beat(), self.placement.of(SlotIndex(last))?.beat());
        Some((start.0.0, end.0.0 + u64::try_from(end.1).ok()?))
    }

    /// A header of another area, or one that cannot be read, names no times.
    fn times_of(&self, bytes: &[u8]) -> Option<SbdTimes> {
        let header = SbdHeader::decode(bytes, self.placement.sector_bytes()).ok()?;
        (DeviceUuid(header.uuid) == self.area).then(|| SbdTimes::of(&header))
    }

    /// The read under way is that of the header.
    fn is_header(&self) -> bool {
        self.looks.is_multiple_of(HEADER_EVERY)
    }

    fn begin(&mut self) -> Option<Operation> {
        self.looks = self.looks.wrapping_add(1);
        if self.is_header() {
            self.is_busy = true;
            return Some(Operation::Read { offset: ByteOffset(0), bytes: usize::try_from(self.placement.sector_bytes()).ok()? });
        }
        let (start, end) = self.span()?;
        self.is_busy = true;
        Some(Operation::Read { offset: ByteOffset(start), bytes: usize::try_from(end - start).ok()? })
    }

    /// Takes in the beats of one read; true: a beat stands still that is not in the file yet. One that goes on would be old in the file
    /// before anybody reads it.
    fn take(&mut self, bytes: &[u8], now_ms: u64) -> bool {
        let Some((start, _)) = self.span() else { return false };
        let mut is_still = false;
        for slot in self.slots().map(SlotIndex) {
            let Some(placement) = self.placement.of(slot) else { continue };
            let (offset, length) = placement.beat();
            let Some(from) = usize::try_from(offset.0 - start).ok() else { continue };
            if let Some(bytes) = bytes.get(from..from + length)
                && let (OwnPlace::Beat(beat), _) = placement.decode(bytes)
            {
                if self.history.handle_seen(slot, BeatVersion::of(&beat), now_ms) {
                    self.fresh.insert(slot);
                } else {
                    is_still |= self.fresh.remove(&slot);
                }
                self.end = self.end.max(slot.0 + 1);
            }
        }
        // The slot behind the last one in use is the next one that is given away.
        self.next = if self.next + SLOTS <= self.end.min(SLOTS_MAX - 1) { self.next + SLOTS } else { 0 };
        is_still
    }
}
