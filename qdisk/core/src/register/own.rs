//! What: what one pair of own units on one device may hold.
//! Owns: the choice of the unit to write next; the judgement of an own unit that was read back.
//! Invariants: a write whose completion was not seen as good stays "may be there" until a later write of that unit completes.
//! Does not: encode, decode or write.
//! Called by: the lane of a device.

use alloc::vec::Vec;
use deadbolt_disk_format::{Ballot, Life, RecordError, ViewRecord};

/// A record that has a sequence and a writer.
pub(super) trait Sequenced: Copy + PartialEq {
    fn sequence(&self) -> u64;
    fn life(&self) -> Life;
}
impl Sequenced for Ballot {
    fn sequence(&self) -> u64 {
        self.sequence
    }
    fn life(&self) -> Life {
        self.life
    }
}
impl Sequenced for ViewRecord {
    fn sequence(&self) -> u64 {
        self.sequence
    }
    fn life(&self) -> Life {
        self.life
    }
}

/// One unit.
#[derive(Clone, Debug)]
struct OwnUnit<T> {
    /// Last content known to be there; none: it was unreadable when this life read it first.
    sure: Option<T>,
    /// Written since, outcome unknown.
    maybe: Vec<T>,
    /// Read back unreadable since it was written.
    is_damaged: bool,
}

/// Two units written in turn.
#[derive(Clone, Debug)]
pub(super) struct OwnPair<T> {
    units: [OwnUnit<T>; 2],
}

/// What a read of an own unit showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OwnVerdict {
    /// What this life left there.
    Expected,
    /// Not readable: this life rewrites it.
    Damaged,
    /// Older than this life's last completed write: the device went back in time.
    WentBack,
    /// Something this life did not write: a clone, or a second life of this node.
    Foreign,
}

impl<T: Sequenced> OwnPair<T> {
    /// From the first read of a life.
    pub(super) fn restore(read: [Option<T>; 2]) -> Self {
        Self { units: read.map(|sure| OwnUnit { is_damaged: sure.is_none(), sure, maybe: Vec::new() }) }
    }

    /// The newest content known to be there.
    pub(super) fn newest(&self) -> Option<&T> {
        self.units.iter().filter_map(|unit| unit.sure.as_ref()).max_by_key(|record| record.sequence())
    }

    /// The newest content, if it can be read there, too.
    pub(super) fn newest_readable(&self) -> Option<&T> {
        let newest = self.newest()?;
        self.units.iter().any(|unit| !unit.is_damaged && unit.maybe.is_empty() && unit.sure.as_ref() == Some(newest)).then_some(newest)
    }

    /// The unit that does not hold the newest content, a damaged one first.
    pub(super) fn next_index(&self) -> u8 {
        let sequence = |index: usize| self.units[index].sure.as_ref().map(Sequenced::sequence);
        match (self.units[0].is_damaged, self.units[1].is_damaged) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => u8::from(sequence(0) > sequence(1)),
        }
    }

    /// Is there a unit that was read back unreadable?
    pub(super) fn is_damaged(&self) -> bool {
        self.units.iter().any(|unit| unit.is_damaged)
    }

    /// Everything that a reader may find, now or later.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.units.iter().flat_map(|unit| unit.sure.iter().chain(&unit.maybe))
    }

    /// What may be there without the completion having been seen.
    pub(super) fn unsure(&self) -> impl Iterator<Item = &T> {
        self.units.iter().flat_map(|unit| &unit.maybe)
    }

    pub(super) fn note_issued(&mut self, index: u8, record: T) {
        let unit = &mut self.units[usize::from(index)];
        if !unit.maybe.contains(&record) {
            unit.maybe.push(record);
        }
    }

    pub(super) fn note_completed(&mut self, index: u8, record: T) {
        self.units[usize::from(index)] = OwnUnit { sure: Some(record), maybe: Vec::new(), is_damaged: false };
    }

    /// Judges a later read of an own unit; no write of it may be on its way.
    pub(super) fn judge(&mut self, index: u8, read: &Result<T, RecordError>, me: &Life, sequence_last: u64) -> OwnVerdict {
        let unit = &mut self.units[usize::from(index)];
        let Ok(record) = read else {
            unit.is_damaged = true;
            return OwnVerdict::Damaged;
        };
        if unit.sure.as_ref() == Some(record) || unit.maybe.contains(record) {
            unit.is_damaged = false;
            return OwnVerdict::Expected;
        }
        if record.life() != *me && unit.sure.is_none() {
            // Unreadable at first, readable now: an earlier life's, as the caller's rule of one writer says.
            unit.sure = Some(*record);
            unit.is_damaged = false;
            return OwnVerdict::Expected;
        }
        if record.life() != *me || record.sequence() > sequence_last {
            return OwnVerdict::Foreign;
        }
        OwnVerdict::WentBack
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk_format::{BootId, Digest, Incarnation, SlotIndex, ViewNumber};

    fn life(number: u8) -> Life {
        Life { slot: SlotIndex(1), boot: BootId([number; 16]), incarnation: Incarnation([number; 16]) }
    }
    fn ballot(life_number: u8, sequence: u64) -> Ballot {
        Ballot { life: life(life_number), sequence, view: ViewNumber(1), entered: sequence, accepted: 0, digest: Digest::NONE, place: 0 }
    }
    const BAD: RecordError = RecordError::ReservedNotZero { offset: 9 };

    #[test]
    fn units_are_written_in_turn_and_a_failed_write_stays_possible() {
        let mut pair = OwnPair::restore([Some(ballot(1, 0)), Some(ballot(1, 1))]);
        assert_eq!(pair.next_index(), 0);
        pair.note_issued(0, ballot(2, 2));
        assert_eq!(pair.next_index(), 0, "the newest stays until the write is complete");
        assert_eq!(pair.all().count(), 3);
        pair.note_completed(0, ballot(2, 2));
        assert_eq!((pair.next_index(), pair.all().count()), (1, 2));
        assert_eq!(pair.newest().map(|ballot| ballot.sequence), Some(2));
    }

    #[test]
    fn verdicts() {
        let me = life(2);
        let pair = || {
            let mut pair = OwnPair::restore([Some(ballot(1, 4)), Some(ballot(1, 5))]);
            pair.note_completed(0, ballot(2, 6));
            pair
        };
        let table = [
            ("own last", 0, Ok(ballot(2, 6)), OwnVerdict::Expected),
            ("of the life before, not overwritten yet", 1, Ok(ballot(1, 5)), OwnVerdict::Expected),
            ("unreadable", 0, Err(BAD), OwnVerdict::Damaged),
            ("another life's", 0, Ok(ballot(3, 7)), OwnVerdict::Foreign),
            ("own, from the future", 0, Ok(ballot(2, 9)), OwnVerdict::Foreign),
            ("own, older", 0, Ok(ballot(2, 5)), OwnVerdict::WentBack),
        ];
        for (name, index, read, expected) in table {
            assert_eq!(pair().judge(index, &read, &me, 6), expected, "{name}");
        }
        let mut damaged = pair();
        damaged.judge(0, &Err(BAD), &me, 6);
        assert_eq!((damaged.next_index(), damaged.is_damaged(), damaged.newest_readable()), (0, true, None));
        let mut late = pair();
        late.note_issued(1, ballot(2, 7));
        assert_eq!(late.judge(1, &Ok(ballot(2, 7)), &me, 7), OwnVerdict::Expected, "failed, and yet there");
    }
}
