//! What: the checks of the four superblock copies.
//! Owns: SB findings.
//! Invariants: what the copies decide is decided by `choose_superblock`, as everywhere.
//! Does not: read anything beyond the copies.
//! Called by: the check, first.

use crate::Checker;
use deadbolt_disk_format::layout::{AREA_ALIGN_BYTES, SBD_AREA_BYTES, last_superblock};
use deadbolt_disk_format::{
    ByteOffset, Permission, RecordError, Superblock, SuperblockChoice, UNIT_BYTES, choose_superblock, read_superblocks,
};

type Copies = [Result<Superblock, RecordError>; 4];

impl Checker<'_> {
    /// The superblock to go by, if there is one.
    pub(crate) fn check_superblocks(&mut self) -> Option<Superblock> {
        let mut copies = self.read_copies();
        for _ in 1..crate::LOOKS {
            // A tool may be rewriting them.
            if matches!(choose_superblock(&copies), SuperblockChoice::Agreed { copies: [true, true, true, true], .. }) {
                break;
            }
            self.reader.wait();
            copies = self.read_copies();
        }
        let superblock = match choose_superblock(&copies) {
            SuperblockChoice::Agreed { superblock, copies: agreeing, .. } => {
                self.report_copies(&copies, agreeing, &superblock);
                superblock
            }
            SuperblockChoice::Alone { superblock, copy } => {
                let mut agreeing = [false; 4];
                if let Some(place) = agreeing.get_mut(copy) {
                    *place = true;
                }
                self.report.add("SB-005", Some(place_of(copy, &superblock)), None, format!("only copy {copy} of 4 is good"));
                self.report_copies(&copies, agreeing, &superblock);
                superblock
            }
            other => {
                self.report_none(&other, &copies);
                return None;
            }
        };
        self.report.cluster = Some((superblock.cluster.to_string(), superblock.name.clone()));
        self.report.device_uuid = Some(superblock.device.to_string());
        self.report.generation = superblock.generation;
        self.report.slots = superblock.slots;
        self.check_device(&superblock);
        Some(superblock)
    }

    fn read_copies(&mut self) -> Copies {
        self.report.units += 4;
        let size_bytes = self.reader.source().size_bytes();
        read_superblocks(size_bytes, |offset| self.reader.read_now(offset, UNIT_BYTES).ok())
    }

    fn report_copies(&mut self, copies: &Copies, agreeing: [bool; 4], superblock: &Superblock) {
        for (copy, (found, is_equal)) in copies.iter().zip(agreeing).enumerate() {
            let offset = Some(place_of(copy, superblock));
            match found {
                Ok(_) if is_equal => {}
                Ok(other) => {
                    let detail =
                        format!("copy {copy} has generation {}, {} agree on {}", other.generation, count(agreeing), superblock.generation);
                    self.report.add("SB-004", offset, None, detail);
                }
                Err(error) => self.report.add("SB-003", offset, None, format!("copy {copy}: {error}")),
            }
        }
    }

    fn report_none(&mut self, choice: &SuperblockChoice, copies: &Copies) {
        match choice {
            SuperblockChoice::Unfinished { cluster } => {
                self.report.add("SB-002", Some(ByteOffset(SBD_AREA_BYTES)), None, format!("of cluster {cluster}"));
            }
            SuperblockChoice::Forked { one, two } => {
                self.report.add("SB-006", None, None, format!("copies {one} and {two}"));
            }
            _ => {
                let last = last_superblock(self.reader.source().size_bytes());
                let places = [ByteOffset(SBD_AREA_BYTES), ByteOffset(SBD_AREA_BYTES + AREA_ALIGN_BYTES), last];
                let [first, second, _, fourth] = copies;
                for (found, offset) in [first, second, fourth].into_iter().zip(places) {
                    if let Err(error) = found {
                        self.report.add("SB-001", Some(offset), None, error);
                    }
                }
            }
        }
    }

    fn check_device(&mut self, superblock: &Superblock) {
        let source = self.reader.source();
        let (size, expected) = (source.size_bytes(), superblock.device_bytes);
        if size < expected {
            self.report.add("SB-007", None, None, format!("{size} bytes, the superblock says {expected}"));
        } else if size > expected {
            self.report.add("SB-008", None, None, format!("{size} bytes, the superblock says {expected}"));
        }
        if let Some(sector) = source.sector_bytes().filter(|sector| *sector != superblock.sector_bytes) {
            self.report.add("SB-010", None, None, format!("{sector} bytes, the superblock says {}", superblock.sector_bytes));
        }
        if superblock.permission() != Permission::ReadWrite {
            let words = (superblock.features_incompatible, superblock.features_read_only);
            self.report.add("SB-009", None, None, format!("incompatible {:#x}, read-only {:#x}", words.0, words.1));
        }
    }
}

fn place_of(copy: usize, superblock: &Superblock) -> ByteOffset {
    superblock.layout.superblocks.get(copy).copied().unwrap_or_default()
}
fn count(agreeing: [bool; 4]) -> usize {
    agreeing.iter().filter(|is_equal| **is_equal).count()
}
