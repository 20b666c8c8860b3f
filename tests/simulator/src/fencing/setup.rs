//! What: what a seed draws for a world of drop-in fencing: devices, times of the area, nodes and what ends them.
//! Owns: the draws.
//! Invariants: a seed draws the same for ever, as long as nothing is drawn in between.
//! Does not: draw anything that nodes need not survive.
//! Called by: the world.

use crate::random::Random;
use deadbolt_disk_format::sbd::SbdHeader;
use deadbolt_sbd_core::ClusterSay;

/// Times of an area, s: watchdog, allocation, loop, message. The last ones prove nothing: a sender must not go by them.
const AREAS: &[[u32; 4]] = &[[5, 0, 1, 10], [5, 0, 1, 15], [5, 0, 2, 30], [2, 0, 1, 8], [10, 0, 1, 20], [5, 0, 1, 6]];

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) devices: usize,
    pub(crate) nodes: Vec<NodeSetup>,
    pub(crate) times: [u32; 4],
    pub(crate) disk_us: u64,
    pub(crate) safety_s: u64,
    pub(crate) fault_gap_ms: u64,
    pub(crate) fault_ms: u64,
    pub(crate) fence_gap_ms: u64,
    pub(crate) reboot_ms: u64,
}

/// A node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeSetup {
    /// The stock program watches, and leaves no record.
    pub(crate) is_stock: bool,
    pub(crate) say: ClusterSay,
    pub(crate) has_watchdog: bool,
    /// The shortest time that its driver grants, s; a longer one is rounded up to a multiple of it.
    pub(crate) least_s: u32,
    pub(crate) rate_ppm: i64,
    /// How long its corosync may take to know that the others have lost it, ms; 0: not known.
    pub(crate) notice_ms: u32,
    /// Resets that do nothing, so that the watchdog has to fire, permille.
    pub(crate) reset_fails: u64,
}

impl Setup {
    pub(crate) fn drawn(mut random: Random) -> Self {
        let count = random.range(2, 4);
        Self {
            devices: pick(&mut random, &[1, 1, 2, 3, 3]),
            nodes: (0..count).map(|_| NodeSetup::drawn(&mut random)).collect(),
            times: pick(&mut random, AREAS),
            disk_us: pick(&mut random, &[200, 2000, 20_000]),
            safety_s: random.range(40, 100),
            fault_gap_ms: pick(&mut random, &[1500, 4000, 10_000]),
            fault_ms: pick(&mut random, &[500, 4000, 20_000, 40_000]),
            fence_gap_ms: pick(&mut random, &[5000, 15_000]),
            reboot_ms: pick(&mut random, &[500, 5000, 30_000]),
        }
    }

    /// The header of a device.
    pub(crate) fn header(&self, device: usize) -> SbdHeader {
        let [watchdog_s, allocate_s, loop_s, msgwait_s] = self.times;
        let uuid = [u8::try_from(device).unwrap_or(0) + 1; 16];
        SbdHeader { slots: 255, sector_bytes: 512, watchdog_s, allocate_s, loop_s, msgwait_s, minor: 1, uuid }
    }
}

impl NodeSetup {
    fn drawn(random: &mut Random) -> Self {
        Self {
            is_stock: random.chance(200),
            say: pick(random, &[ClusterSay::None, ClusterSay::None, ClusterSay::KeepsAlive, ClusterSay::KeepsAlive, ClusterSay::MustAgree]),
            has_watchdog: random.chance(850),
            least_s: pick(random, &[1, 1, 2, 8]),
            rate_ppm: i64::try_from(random.range(0, 20_000)).unwrap_or(0) - 10_000,
            notice_ms: pick(random, &[0, 1000, 4000]),
            reset_fails: pick(random, &[0, 0, 1000]),
        }
    }

    /// What the watchdog grants, ms, where so much is asked for.
    pub(crate) fn granted_ms(&self, wanted_ms: u32) -> u32 {
        wanted_ms.next_multiple_of(self.least_s * 1000)
    }
}

pub(crate) fn pick<T: Copy>(random: &mut Random, values: &[T]) -> T {
    values[random.index(values.len())]
}
