//! What: reads a Deadbolt device and reports every finding.
//! Owns: the finding codes, the checks across records, the report.
//! Invariants: nothing is ever written; a unit that a living node is just writing is no finding; the used area is read, no more.
//! Does not: repair, or judge whether a node lives beyond "its beat advanced while we read".
//! Called by: the program `fsck-deadbolt`, the `fsck` verb of the front door, the demo's last step.

mod areas;
mod codes;
mod program;
mod report;
mod sbd_area;
mod source;
mod superblock;
mod views;

pub use codes::{CODES, Code, Severity, code};
pub use program::main_from;
pub use report::{Finding, Report};
pub use source::{Source, SourceError};

use deadbolt_disk_format::{Permission, SlotIndex, Superblock};
use source::Reader;
use std::time::Duration;

/// How often a suspicious unit is read before it counts: a living node may be writing it.
pub const LOOKS: u32 = 3;

/// How to check.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Pause before a suspicious unit is read again. Chosen: longer than a write on a healthy device.
    pub pause: Duration,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self { pause: Duration::from_millis(50) }
    }
}

/// Reads the used area of a device and reports.
#[must_use]
pub fn check(source: &Source, options: CheckOptions) -> Report {
    let mut checker = Checker { reader: Reader::new(source, options.pause), report: Report::new(source) };
    checker.run();
    let Checker { reader, mut report } = checker;
    report.bytes_read = reader.bytes_read();
    report.finish();
    report
}

/// One check in progress.
struct Checker<'a> {
    reader: Reader<'a>,
    report: Report,
}

impl Checker<'_> {
    fn run(&mut self) {
        let Some(superblock) = self.check_superblocks() else { return };
        if superblock.permission() == Permission::None {
            return;
        }
        let beats_before = self.read_beat_area(&superblock);
        let units = self.read_units(&superblock);
        self.check_units(&superblock, &units);
        let newest = self.check_views(&superblock, &units);
        self.check_sbd_area(&superblock, newest.as_ref());
        let beats_after = self.read_beat_area(&superblock);
        self.report.live = live_slots(&superblock, &beats_before, &beats_after);
    }
}

/// Slots whose beat unit changed while the rest was read.
fn live_slots(superblock: &Superblock, before: &[u8], after: &[u8]) -> Vec<SlotIndex> {
    let unit = deadbolt_disk_format::UNIT_BYTES;
    let pairs = before.chunks(unit).zip(after.chunks(unit));
    let slots = (0..superblock.slots).map(SlotIndex);
    slots.zip(pairs).filter(|(_, (before, after))| before != after).map(|(slot, _)| slot).collect()
}
