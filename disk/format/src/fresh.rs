//! What: the bytes of a fresh device, and the order in which they are written.
//! Owns: the sequence mark, wipe, fill, copies, commit.
//! Invariants: after the mark and before the commit no reader takes the device for a formatted one; the commit is one unit.
//! Does not: open, read back or refuse; the tool does.
//! Called by: `deadbolt format`, tests that need a device.

use crate::head::{EncodeError, Place};
use crate::layout::SBD_AREA_BYTES;
use crate::records::{Tool, ToolClaim};
use crate::sbd::SbdHeader;
use crate::types::{Ballot, BootId, ByteOffset, Incarnation, SlotIndex, Superblock, UNIT_BYTES, ViewRecord};
use alloc::{collections::BTreeMap, string::String, vec, vec::Vec};

/// Longest piece that is written at once: chosen, large enough to be quick and small enough for any device.
const PIECE_BYTES: u64 = 1 << 20;

/// Why a piece is written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Step {
    /// Superblock copy 0 becomes the mark of a format.
    Mark,
    /// Old superblocks and foreign signatures become zero.
    Wipe,
    /// The areas get their first content.
    Fill,
    /// Superblock copies 3, 2, 1.
    Copy,
    /// Superblock copy 0: now the device is valid.
    Commit,
}

/// One write, complete before the next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// Why.
    pub step: Step,
    /// Where.
    pub offset: ByteOffset,
    /// What.
    pub data: Vec<u8>,
}

/// A device as `format` leaves it.
#[derive(Clone, Debug)]
pub struct Fresh {
    superblock: Superblock,
    mark: ToolClaim,
    wipe: Vec<ByteOffset>,
    /// What is not zero in the areas.
    content: BTreeMap<u64, Vec<u8>>,
}

impl Fresh {
    /// Plans a device. `wipe` names further units to be made zero: old superblocks, foreign signatures; `host` is for people.
    ///
    /// # Errors
    /// Values that a reader would refuse.
    pub fn new(superblock: Superblock, header: &SbdHeader, wipe: Vec<ByteOffset>, host: &str) -> Result<Self, EncodeError> {
        superblock.encode(0)?;
        let mark = ToolClaim {
            boot: BootId::NONE,
            run: Incarnation(superblock.device.0),
            sequence: 1,
            tool: Tool::Format,
            wall_ms: superblock.formatted_wall_ms,
            host: String::from(host),
        };
        mark.encode(&mark_place(&superblock))?;
        let layout = &superblock.layout;
        let mut content = BTreeMap::new();
        content.insert(0, header.encode());
        for slot in (0..layout.slots).map(SlotIndex) {
            for index in 0..2 {
                let at = |offset| Place { cluster: superblock.cluster, offset, slot };
                let vote = at(layout.vote(slot, index));
                content.insert(vote.offset.0, Ballot::empty(slot, index).encode(&vote).to_vec());
                let record = at(layout.record(slot, index));
                content.insert(record.offset.0, ViewRecord::empty(slot, index).encode(&record).to_vec());
            }
        }
        Ok(Self { superblock, mark, wipe, content })
    }

    /// What it is a device of.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The mark: written first; whoever reads another one back has two paths of one device.
    ///
    /// # Errors
    /// Values that a reader would refuse; checked by [`Fresh::new`].
    pub fn mark(&self) -> Result<Write, EncodeError> {
        let place = mark_place(&self.superblock);
        Ok(Write { step: Step::Mark, offset: place.offset, data: self.mark.encode(&place)?.to_vec() })
    }

    /// All writes between mark and commit, in order. The data of each is made when it is asked for.
    ///
    /// # Errors
    /// As for [`Fresh::mark`].
    pub fn body(&self) -> Result<impl Iterator<Item = Write> + '_, EncodeError> {
        let [_, second, third, fourth] = self.superblock.layout.superblocks;
        let mut wiped = vec![second, third, fourth];
        wiped.extend(self.wipe.iter().filter(|offset| **offset != mark_place(&self.superblock).offset));
        let copies: Result<Vec<Write>, EncodeError> = [3, 2, 1].into_iter().map(|copy| self.copy(copy, Step::Copy)).collect();
        let wipes = wiped.into_iter().map(|offset| Write { step: Step::Wipe, offset, data: vec![0; UNIT_BYTES] });
        let fills = self.pieces().into_iter().map(|(offset, bytes)| Write {
            step: Step::Fill,
            offset: ByteOffset(offset),
            data: self.fill(offset, bytes),
        });
        Ok(wipes.chain(fills).chain(copies?))
    }

    /// The last write.
    ///
    /// # Errors
    /// As for [`Fresh::mark`].
    pub fn commit(&self) -> Result<Write, EncodeError> {
        self.copy(0, Step::Commit)
    }

    /// All writes in order.
    ///
    /// # Errors
    /// As for [`Fresh::mark`].
    pub fn writes(&self) -> Result<impl Iterator<Item = Write> + '_, EncodeError> {
        let (mark, commit) = (self.mark()?, self.commit()?);
        Ok(core::iter::once(mark).chain(self.body()?).chain(core::iter::once(commit)))
    }

    fn copy(&self, copy: usize, step: Step) -> Result<Write, EncodeError> {
        let offset = self.superblock.layout.superblocks.get(copy).copied().unwrap_or_default();
        Ok(Write { step, offset, data: self.superblock.encode(copy)?.to_vec() })
    }

    /// Offsets and lengths of everything from 0 to the end of the areas, without superblock copy 0.
    fn pieces(&self) -> Vec<(u64, u64)> {
        let mut pieces = Vec::new();
        let behind_mark = SBD_AREA_BYTES + UNIT_BYTES as u64;
        for (mut from, to) in [(0, SBD_AREA_BYTES), (behind_mark, self.superblock.layout.end.0)] {
            while from < to {
                let bytes = PIECE_BYTES.min(to - from);
                pieces.push((from, bytes));
                from += bytes;
            }
        }
        pieces
    }

    fn fill(&self, offset: u64, bytes: u64) -> Vec<u8> {
        let mut data = vec![0; usize::try_from(bytes).unwrap_or_default()];
        for (start, unit) in self.content.range(offset..offset + bytes) {
            let inside = usize::try_from(start - offset).unwrap_or_default();
            for (to, from) in data.iter_mut().skip(inside).zip(unit) {
                *to = *from;
            }
        }
        data
    }
}

fn mark_place(superblock: &Superblock) -> Place {
    Place { cluster: superblock.cluster, offset: ByteOffset(SBD_AREA_BYTES), slot: SlotIndex::NONE }
}

/// Whole seconds for the SBD header, derived from our times, so that stock tools wait long enough: the watchdog rounded up, a
/// message wait of at least twice that and at least W + D.
#[must_use]
pub fn sbd_header_of(superblock: &Superblock) -> SbdHeader {
    let timings = &superblock.timings;
    let watchdog_s = timings.watchdog_ms.div_ceil(1000).max(1);
    let gone_s = timings.expiry_ms.saturating_add(timings.storage_delay_ms).div_ceil(1000);
    SbdHeader {
        slots: 255,
        sector_bytes: superblock.sector_bytes,
        watchdog_s,
        // The reference's own defaults.
        allocate_s: 2,
        loop_s: 1,
        msgwait_s: watchdog_s.saturating_mul(2).max(gone_s),
        minor: crate::sbd::SBD_MINOR,
        uuid: superblock.device.0,
    }
}
