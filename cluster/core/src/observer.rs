//! What: one node's watch over the beats of all others.
//! Owns: per slot, the last change seen and the end of the read that showed it (r0).
//! Invariants: silence counts only from the end of a read, and only a read issued after the whole wait, which also returned the
//!   observer's own newest beat, on a majority of devices, confirms it (design section 5).
//! Does not: read devices or decide what silence means.
//! Called by: the membership machine.

use alloc::{collections::BTreeMap, vec::Vec};
use deadbolt_disk_format::{Beat, BootId, Incarnation, SlotIndex};

/// One read of the whole beat table of one device.
#[derive(Clone, Debug)]
pub struct BeatsRead {
    /// Which device.
    pub device: usize,
    /// When the read was issued.
    pub issued_ms: u64,
    /// When it ended.
    pub ended_ms: u64,
    /// The newest beat of the own node that was complete on this device before the read was issued; 0 if none.
    pub own_beat: u64,
    /// What was read, by slot; a bad unit is no news and is left out.
    pub beats: BTreeMap<SlotIndex, Beat>,
}

/// What changed in one slot, as an identity of the beat seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Version {
    boot: BootId,
    writer: Incarnation,
    beat: u64,
}

impl Version {
    fn of(beat: &Beat) -> Self {
        Self { boot: beat.boot, writer: beat.writer, beat: beat.beat }
    }
}

/// What is known of one slot.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The newest beat seen on any device; none: never a good one.
    pub beat: Option<Beat>,
    /// End of the read that showed the last change; the start of observation if there was none.
    pub changed_ms: u64,
    /// Issue of that read.
    pub shown_ms: u64,
    /// End of the read that first showed the present daemon number.
    pub daemon_changed_ms: u64,
    /// Newest issue of a current read of the slot.
    pub looked_ms: u64,
    /// Per device: what it showed last.
    versions: Vec<Option<Version>>,
    /// Per device: the last read showed a good unit.
    readable: Vec<bool>,
    /// Per device: issue of the newest valid read that showed no change since `changed_ms`.
    silent_until_ms: Vec<u64>,
}

/// The watch over all slots.
#[derive(Clone, Debug)]
pub struct Observer {
    own: SlotIndex,
    devices: usize,
    started_ms: Option<u64>,
    slots: BTreeMap<SlotIndex, Watched>,
    /// By voucher and whom it vouches for: the serial that each device showed last.
    vouches: BTreeMap<(SlotIndex, SlotIndex), Vec<Option<u32>>>,
}

impl Observer {
    /// A watch that has seen nothing.
    #[must_use]
    pub fn new(own: SlotIndex, devices: usize) -> Self {
        Self { own, devices, started_ms: None, slots: BTreeMap::new(), vouches: BTreeMap::new() }
    }

    /// Devices that are watched.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.devices
    }

    /// What is known of a slot; none before the first read.
    #[must_use]
    pub fn watched(&self, slot: SlotIndex) -> Option<&Watched> {
        self.slots.get(&slot)
    }

    /// All slots with a good beat.
    pub fn beats(&self) -> impl Iterator<Item = (&SlotIndex, &Beat)> {
        self.slots.iter().filter_map(|(slot, watched)| watched.beat.as_ref().map(|beat| (slot, beat)))
    }

    /// Does the read prove that its path shows what was written? (A stale path proves nothing.)
    #[must_use]
    pub fn is_current(&self, read: &BeatsRead) -> bool {
        read.own_beat > 0 && read.beats.get(&self.own).is_some_and(|own| own.beat >= read.own_beat)
    }

    /// Takes a read. News counts from any read; silence only from a current one.
    pub fn handle_read(&mut self, read: &BeatsRead, watched_slots: impl Iterator<Item = SlotIndex>) {
        if read.device >= self.devices {
            return;
        }
        let started_ms = *self.started_ms.get_or_insert(read.ended_ms);
        let is_current = self.is_current(read);
        let slots: Vec<SlotIndex> = read.beats.keys().copied().chain(watched_slots).collect();
        for slot in slots {
            let devices = self.devices;
            let watched = self.slots.entry(slot).or_insert_with(|| Watched {
                beat: None,
                changed_ms: started_ms.max(read.ended_ms),
                shown_ms: read.issued_ms,
                daemon_changed_ms: read.ended_ms,
                looked_ms: 0,
                versions: alloc::vec![None; devices],
                readable: alloc::vec![false; devices],
                silent_until_ms: alloc::vec![0; devices],
            });
            watched.handle_slot(read, read.beats.get(&slot), is_current);
        }
        self.handle_vouches(read);
    }

    /// A new vouch for a life is a sign of it as its own beat is. Behind a unit that has become unreadable there may have been any.
    fn handle_vouches(&mut self, read: &BeatsRead) {
        let mut has_lost_one = false;
        for (slot, watched) in &mut self.slots {
            has_lost_one |= watched.has_turned_unreadable(read.device, read.beats.contains_key(slot));
        }
        if has_lost_one {
            self.slots.values_mut().for_each(|watched| watched.handle_sign(read));
        }
        for (voucher, beat) in &read.beats {
            for vouch in &beat.daemon.vouches {
                let shown = self.vouches.entry((*voucher, vouch.slot)).or_insert_with(|| alloc::vec![None; self.devices]);
                // The same vouch seen on a second device is no change.
                let is_known = shown.contains(&Some(vouch.serial));
                if let Some(known) = shown.get_mut(read.device) {
                    *known = Some(vouch.serial);
                }
                if let Some(watched) = self.slots.get_mut(&vouch.slot).filter(|_| !is_known) {
                    watched.handle_sign(read);
                }
            }
        }
    }

    /// Was the slot silent for `wait_ms` since its last change and since `from_ms`, confirmed by a majority of devices?
    #[must_use]
    pub fn is_silent_for(&self, slot: SlotIndex, from_ms: u64, wait_ms: u64) -> bool {
        self.is_silent_until(slot, from_ms, wait_ms, 0)
    }

    /// The same, confirmed by reads issued at `confirmed_ms` or later.
    #[must_use]
    pub fn is_silent_until(&self, slot: SlotIndex, from_ms: u64, wait_ms: u64, confirmed_ms: u64) -> bool {
        let Some(watched) = self.slots.get(&slot) else {
            return false;
        };
        let due = watched.changed_ms.max(from_ms).saturating_add(wait_ms).max(confirmed_ms);
        let confirmed = watched.silent_until_ms.iter().filter(|issued| **issued >= due).count();
        confirmed * 2 > self.devices
    }
}

impl Watched {
    /// Something else than its own beat shows that it may live.
    fn handle_sign(&mut self, read: &BeatsRead) {
        self.changed_ms = read.ended_ms;
        self.daemon_changed_ms = read.ended_ms;
        self.silent_until_ms.iter_mut().for_each(|issued| *issued = 0);
    }

    fn has_turned_unreadable(&mut self, device: usize, is_readable: bool) -> bool {
        self.readable.get_mut(device).is_some_and(|was_readable| core::mem::replace(was_readable, is_readable)) && !is_readable
    }

    fn handle_slot(&mut self, read: &BeatsRead, beat: Option<&Beat>, is_current: bool) {
        let Some(known) = self.versions.get_mut(read.device) else {
            return;
        };
        if is_current {
            self.looked_ms = self.looked_ms.max(read.issued_ms);
        }
        if let Some(beat) = beat {
            let version = Version::of(beat);
            if *known != Some(version) {
                let is_first_look = known.is_none();
                *known = Some(version);
                let is_newer =
                    self.beat.as_ref().is_none_or(|old| (old.boot, old.writer) != (beat.boot, beat.writer) || beat.beat > old.beat);
                // A device that lags behind another one shows news only to itself; the same beat seen on a second device is no change.
                if is_newer {
                    let daemon_changed = self
                        .beat
                        .as_ref()
                        .is_none_or(|old| old.daemon.number != beat.daemon.number || old.daemon.incarnation != beat.daemon.incarnation);
                    if daemon_changed {
                        self.daemon_changed_ms = read.ended_ms;
                    }
                    self.beat = Some(beat.clone());
                }
                if is_newer || !is_first_look {
                    self.changed_ms = read.ended_ms;
                    self.shown_ms = read.issued_ms;
                    self.silent_until_ms.iter_mut().for_each(|issued| *issued = 0);
                    return;
                }
            }
        }
        // A unit that was good before and cannot be read now is no news, and no silence either.
        let is_unreadable = beat.is_none() && known.is_some();
        if is_current
            && !is_unreadable
            && let Some(silent) = self.silent_until_ms.get_mut(read.device)
        {
            *silent = (*silent).max(read.issued_ms);
        }
    }

    /// Time since the last change, as of `now_ms`.
    #[must_use]
    pub fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.changed_ms)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use deadbolt_disk_format::{DaemonPart, Rule, WatchdogKind};

    pub(crate) fn beat(slot: u16, number: u64) -> Beat {
        Beat {
            slot: SlotIndex(slot),
            boot: BootId([1; 16]),
            writer: Incarnation([2; 16]),
            beat: number,
            lease_ms: 3000,
            reset_ms: 1200,
            rule: Rule::Disk,
            watchdog: WatchdogKind::Process,
            is_stopped: false,
            is_idle: false,
            acknowledged: None,
            wall_ms: 0,
            boottime_ms: 0,
            outlive_ms: 0,
            daemon: DaemonPart { number, incarnation: Incarnation([3; 16]), ..DaemonPart::default() },
        }
    }

    fn read(device: usize, issued_ms: u64, own: (u64, u64), peer: Option<u64>) -> BeatsRead {
        let mut beats = BTreeMap::new();
        beats.insert(SlotIndex(0), beat(0, own.1));
        if let Some(number) = peer {
            beats.insert(SlotIndex(1), beat(1, number));
        }
        BeatsRead { device, issued_ms, ended_ms: issued_ms + 5, own_beat: own.0, beats }
    }

    const PEER: SlotIndex = SlotIndex(1);

    #[test]
    fn silence_needs_a_read_issued_after_the_whole_wait() {
        let mut observer = Observer::new(SlotIndex(0), 1);
        observer.handle_read(&read(0, 0, (1, 1), Some(7)), core::iter::once(PEER));
        observer.handle_read(&read(0, 1004, (1, 1), Some(7)), core::iter::once(PEER));
        assert!(!observer.is_silent_for(PEER, 0, 1000), "issued 1 ms too early: the first read ended at 5");
        observer.handle_read(&read(0, 1005, (1, 1), Some(7)), core::iter::once(PEER));
        assert!(observer.is_silent_for(PEER, 0, 1000));
    }

    #[test]
    fn a_change_starts_the_wait_again() {
        let mut observer = Observer::new(SlotIndex(0), 1);
        observer.handle_read(&read(0, 0, (1, 1), Some(7)), core::iter::once(PEER));
        observer.handle_read(&read(0, 2000, (1, 1), Some(8)), core::iter::once(PEER));
        assert!(!observer.is_silent_for(PEER, 0, 1000));
        observer.handle_read(&read(0, 3004, (1, 1), Some(8)), core::iter::once(PEER));
        assert!(!observer.is_silent_for(PEER, 0, 1000));
    }

    #[test]
    fn a_stale_path_and_an_unreadable_unit_prove_nothing() {
        let mut observer = Observer::new(SlotIndex(0), 1);
        observer.handle_read(&read(0, 0, (1, 1), Some(7)), core::iter::once(PEER));
        observer.handle_read(&read(0, 9000, (5, 4), Some(7)), core::iter::once(PEER));
        assert!(!observer.is_silent_for(PEER, 0, 1000), "own beat 5 was complete, the path still shows 4");
        observer.handle_read(&read(0, 9000, (0, 4), Some(7)), core::iter::once(PEER));
        assert!(!observer.is_silent_for(PEER, 0, 1000), "an observer without an own beat cannot tell");
    }

    #[test]
    fn an_unreadable_unit_is_not_silence() {
        let mut observer = Observer::new(SlotIndex(0), 1);
        observer.handle_read(&read(0, 0, (1, 1), Some(7)), core::iter::once(PEER));
        observer.handle_read(&read(0, 9000, (1, 1), None), core::iter::once(PEER));
        assert!(!observer.is_silent_for(PEER, 0, 1000));
        observer.handle_read(&read(0, 9100, (1, 1), Some(7)), core::iter::once(PEER));
        assert!(!observer.is_silent_for(PEER, 0, 1000), "it may have been anything");
        observer.handle_read(&read(0, 10_005, (1, 1), Some(7)), core::iter::once(PEER));
        assert!(observer.is_silent_for(PEER, 0, 1000));
    }

    #[test]
    fn three_devices_need_a_majority() {
        let mut observer = Observer::new(SlotIndex(0), 3);
        for device in 0..3 {
            observer.handle_read(&read(device, 0, (1, 1), Some(7)), core::iter::once(PEER));
        }
        observer.handle_read(&read(0, 2000, (1, 1), Some(7)), core::iter::once(PEER));
        assert!(!observer.is_silent_for(PEER, 0, 1000));
        observer.handle_read(&read(2, 2000, (1, 1), Some(7)), core::iter::once(PEER));
        assert!(observer.is_silent_for(PEER, 0, 1000));
        observer.handle_read(&read(1, 2000, (1, 1), Some(8)), core::iter::once(PEER));
        assert!(!observer.is_silent_for(PEER, 0, 1000), "news on one device is news");
    }

    /// A read in which the peer's beat stands still and the voucher's shows this.
    fn vouched(device: usize, issued_ms: u64, serial: Option<u32>) -> BeatsRead {
        let mut voucher = beat(2, issued_ms + 1);
        voucher.daemon.vouches = serial.map(|serial| deadbolt_disk_format::Vouch { slot: PEER, serial }).into_iter().collect();
        let mut read = read(device, issued_ms, (1, 1), Some(7));
        read.beats.insert(SlotIndex(2), voucher);
        read
    }

    #[test]
    fn a_new_vouch_is_a_change_and_the_same_one_again_is_none() {
        let mut observer = Observer::new(SlotIndex(0), 1);
        let mut is_silent_after = |issued_ms: u64, serial: Option<u32>| {
            observer.handle_read(&vouched(0, issued_ms, serial), core::iter::once(PEER));
            observer.is_silent_for(PEER, 0, 1000)
        };
        assert!(!is_silent_after(0, None));
        assert!(!is_silent_after(900, Some(4)));
        assert!(!is_silent_after(1800, Some(4)));
        assert!(is_silent_after(1905, Some(4)), "the voucher's own beats are none of the peer's");
        assert!(!is_silent_after(2000, Some(3)), "any other serial is a new one");
        assert!(is_silent_after(3005, None), "and its end is no sign of life");
    }

    #[test]
    fn a_vouch_on_a_second_device_is_the_same_one() {
        let mut observer = Observer::new(SlotIndex(0), 3);
        for (device, issued_ms) in [(0, 0), (1, 500), (2, 900), (0, 1005), (1, 1005)] {
            observer.handle_read(&vouched(device, issued_ms, Some(4)), core::iter::once(PEER));
        }
        assert!(observer.is_silent_for(PEER, 0, 1000));
    }

    #[test]
    fn a_unit_that_becomes_unreadable_may_have_held_a_vouch_for_anybody() {
        let mut observer = Observer::new(SlotIndex(0), 1);
        observer.handle_read(&vouched(0, 0, None), core::iter::once(PEER));
        let gap = |issued_ms| read(0, issued_ms, (1, 1), Some(7));
        observer.handle_read(&gap(900), core::iter::once(PEER));
        observer.handle_read(&gap(1100), core::iter::once(PEER));
        assert!(!observer.is_silent_for(PEER, 0, 1000));
        observer.handle_read(&gap(1905), core::iter::once(PEER));
        assert!(observer.is_silent_for(PEER, 0, 1000), "once, not for as long as it stays so");
    }

    #[test]
    fn a_slot_that_never_beat_is_silent_from_the_first_read_on() {
        let mut observer = Observer::new(SlotIndex(0), 1);
        observer.handle_read(&read(0, 10, (1, 1), None), core::iter::once(PEER));
        observer.handle_read(&read(0, 1015, (1, 1), None), core::iter::once(PEER));
        assert!(observer.is_silent_for(PEER, 0, 1000));
    }
}
