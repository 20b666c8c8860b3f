//! What: the cycles in flight: which beat went to which device, and which cycle is complete on a majority.
//! Owns: tags, and the rule of one operation per device at a time.
//! Invariants: a cycle's issue is the instant at which its first write was handed out, so never later than any of its writes.
//! Does not: judge a mailbox or know a lease.
//! Called by: the lifeline machine.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use deadbolt_disk_format::{Beat, DaemonPart};

use crate::mailbox::MailboxWatch;
use crate::name::NameWatch;
use crate::words::DeviceWork;

/// What a device is busy with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    ReadOwn,
    ReadMailbox,
    Cycle(u64),
    Clear,
    Rename,
}

impl Work {
    pub(crate) fn name(self) -> DeviceWork {
        match self {
            Self::ReadOwn => DeviceWork::ReadOwn,
            Self::ReadMailbox => DeviceWork::ReadMailbox,
            Self::Cycle(beat) => DeviceWork::Cycle { beat },
            Self::Clear => DeviceWork::Clear,
            Self::Rename => DeviceWork::Rename,
        }
    }
}

/// One device as the lifeline sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeviceState {
    pub(crate) busy: Option<(u64, Work)>,
    pub(crate) busy_since_ms: u64,
    /// Its last operation failed.
    pub(crate) has_failed: bool,
    pub(crate) mailbox: MailboxWatch,
    pub(crate) name: NameWatch,
    /// It went back in time: it does not count until the node starts anew.
    pub(crate) is_away: bool,
    pub(crate) needs_clear: bool,
    /// Its mailbox was not read yet since this boot began: a pill there that names no boot was meant for the boot before. A newer one
    /// stands on one of the others, too.
    pub(crate) is_unread: bool,
    /// Last beat whose write to this device was seen complete, and last one handed out.
    pub(crate) completed_beat: u64,
    pub(crate) issued_beat: u64,
    pub(crate) checked_ms: u64,
    /// The last beat of this life stands on it.
    pub(crate) is_final_done: bool,
}

/// One cycle.
#[derive(Clone, Debug)]
pub(crate) struct Cycle {
    pub(crate) issued_ms: u64,
    pub(crate) part: DaemonPart,
    /// The lease that its beat publishes, ms: it gives no longer one.
    pub(crate) lease_ms: u32,
    pub(crate) idle_generation: Option<u64>,
    done: u32,
}

/// The cycles in flight, by beat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cycles {
    open: BTreeMap<u64, Cycle>,
}

impl Cycles {
    pub(crate) fn open(&mut self, beat: &Beat, now_ms: u64, part: DaemonPart, idle_generation: Option<u64>) {
        self.open.insert(beat.beat, Cycle { issued_ms: now_ms, part, lease_ms: beat.lease_ms, idle_generation, done: 0 });
    }

    /// One more device has completed this beat. Answers the cycle when that made it complete and no newer one is.
    pub(crate) fn handle_done(&mut self, beat: u64, quorum: u32) -> Option<Cycle> {
        let cycle = self.open.get_mut(&beat)?;
        cycle.done += 1;
        if cycle.done < quorum {
            return None;
        }
        let complete = cycle.clone();
        // Whatever is older can add nothing: its lease would end earlier.
        self.open = self.open.split_off(&(beat + 1));
        Some(complete)
    }

    /// Forgets cycles that no device is busy with any more: they can not become complete.
    pub(crate) fn prune(&mut self, devices: &[DeviceState]) {
        let busy: Vec<u64> = devices
            .iter()
            .filter_map(|device| device.busy)
            .filter_map(|(_, work)| if let Work::Cycle(beat) = work { Some(beat) } else { None })
            .collect();
        self.open.retain(|beat, _| busy.contains(beat));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk_format::{BootId, Incarnation, Rule, SlotIndex, WatchdogKind};

    fn open(cycles: &mut Cycles, number: u64, now_ms: u64, part: DaemonPart) {
        let beat = Beat { beat: number, ..beat() };
        cycles.open(&beat, now_ms, part, None);
    }

    fn beat() -> Beat {
        Beat {
            slot: SlotIndex(0),
            boot: BootId([1; 16]),
            writer: Incarnation([1; 16]),
            beat: 0,
            lease_ms: 1000,
            reset_ms: 100,
            rule: Rule::Disk,
            watchdog: WatchdogKind::Device,
            is_stopped: false,
            is_idle: false,
            acknowledged: None,
            wall_ms: 0,
            boottime_ms: 0,
            outlive_ms: 0,
            daemon: DaemonPart::default(),
        }
    }

    fn part(number: u64) -> DaemonPart {
        DaemonPart { number, ..DaemonPart::default() }
    }

    #[test]
    fn a_majority_completes_and_older_cycles_are_forgotten() {
        let mut cycles = Cycles::default();
        open(&mut cycles, 1, 100, part(7));
        open(&mut cycles, 2, 200, part(8));
        assert!(cycles.handle_done(1, 2).is_none());
        assert!(cycles.handle_done(2, 2).is_none());
        let complete = cycles.handle_done(2, 2).map(|cycle| (cycle.issued_ms, cycle.part.number));
        assert_eq!(complete, Some((200, 8)));
        assert!(cycles.handle_done(1, 2).is_none(), "an older one adds nothing");
        open(&mut cycles, 3, 300, part(8));
        cycles.prune(&[DeviceState::default()]);
        assert!(cycles.handle_done(3, 1).is_none());
    }
}
