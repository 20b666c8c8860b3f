//! What: reads every unit of every slot once, and judges each by itself.
//! Owns: BT, VT, VR, RQ, JR and TL findings; the decoded units for the checks across records.
//! Invariants: a unit counts as bad only after it was read three times.
//! Does not: follow digests; see `views`.
//! Called by: the check, after the superblock.

use crate::Checker;
use crate::source::Settled;
use deadbolt_disk_format::{
    Area, Ballot, Beat, ByteOffset, JournalEntry, Place, RecordError, Requests, SlotIndex, Superblock, ToolClaim, UNIT_BYTES, ViewRecord,
};
use std::collections::BTreeMap;

/// What one pass read, as far as it is good.
#[derive(Default)]
pub(crate) struct Units {
    pub(crate) beats: BTreeMap<SlotIndex, Beat>,
    pub(crate) votes: BTreeMap<(SlotIndex, u8), Ballot>,
    pub(crate) records: BTreeMap<(SlotIndex, u8), ViewRecord>,
}

impl Checker<'_> {
    /// All beats at once, unjudged; empty where they cannot be read.
    pub(crate) fn read_beat_area(&mut self, superblock: &Superblock) -> Vec<u8> {
        let bytes = usize::try_from(superblock.layout.beats_bytes()).unwrap_or_default();
        self.reader.forget();
        self.reader.read_now(superblock.layout.beats, bytes).unwrap_or_default()
    }

    /// Reads and judges everything but superblocks and bodies. In the order of the device: a node writes its record before the
    /// beat that names it, and beats are read first, so a beat never looks newer than it was.
    pub(crate) fn read_units(&mut self, superblock: &Superblock) -> Units {
        let mut units = Units::default();
        let layout = superblock.layout;
        for (area, offset, _) in layout.units() {
            let slot = match area {
                Area::Beat(slot) | Area::Vote(slot, _) | Area::Record(slot, _) | Area::Requests(slot) | Area::Journal(slot, _) => slot,
                Area::Tool => SlotIndex::NONE,
                Area::Superblock(_) | Area::Body(..) => continue,
            };
            self.report.units += 1;
            let place = Place { cluster: superblock.cluster, offset, slot };
            let end = |start: ByteOffset, bytes: u64| start.0 + bytes;
            match area {
                Area::Beat(_) => {
                    let found = self.settle(&place, end(layout.beats, layout.beats_bytes()), Beat::decode);
                    if let Some(beat) = self.note(found, &place, "BT-001", None) {
                        units.beats.insert(slot, beat);
                    }
                }
                Area::Vote(_, index) => {
                    let found = self.settle(&place, end(layout.votes, layout.votes_bytes()), Ballot::decode);
                    if let Some(ballot) = self.note(found, &place, "VT-001", Some("VT-002")) {
                        units.votes.insert((slot, index), ballot);
                    }
                }
                Area::Record(_, index) => {
                    let found = self.settle(&place, end(layout.records, layout.records_bytes()), ViewRecord::decode);
                    if let Some(record) = self.note(found, &place, "VR-001", Some("VR-002")) {
                        units.records.insert((slot, index), record);
                    }
                }
                Area::Requests(_) => self.read_requests(&place, end(layout.requests, layout.requests_bytes())),
                Area::Journal(_, index) => {
                    let found = self.settle(&place, end(layout.journal, layout.journals_bytes()), JournalEntry::decode);
                    if let Some(entry) = self.note(found, &place, "JR-001", None)
                        && entry.sequence % u64::from(layout.journal_units) != u64::from(index)
                    {
                        self.report.add("JR-002", Some(offset), Some(slot), format!("sequence {} in unit {index}", entry.sequence));
                    }
                }
                Area::Tool => {
                    let found = self.settle(&place, end(offset, UNIT_BYTES as u64), ToolClaim::decode);
                    if let Some(claim) = self.note(found, &place, "TL-002", None) {
                        self.report.add("TL-001", Some(offset), None, format!("{} on host {}", claim.tool.name(), claim.host));
                    }
                }
                Area::Superblock(_) | Area::Body(..) => {}
            }
        }
        units
    }

    fn read_requests(&mut self, place: &Place, end: u64) {
        let found = self.settle(place, end, Requests::decode);
        let Some(unit) = self.note(found, place, "RQ-001", None) else { return };
        for request in unit.requests {
            let detail = format!("for slot {} (boot {}), by view {}", request.victim.slot, request.victim.boot, request.view);
            self.report.add("RQ-002", Some(place.offset), Some(place.slot), detail);
        }
    }

    fn settle<T>(&mut self, place: &Place, area_end: u64, decode: impl Fn(&[u8], &Place) -> Result<T, RecordError>) -> Settled<T> {
        self.reader.settle(place.offset, UNIT_BYTES, area_end, |bytes| decode(bytes, place))
    }

    /// The unit if it is good, else a finding; zero bytes are one only where `format` wrote something.
    pub(crate) fn note<T>(&mut self, found: Settled<T>, place: &Place, damaged: &'static str, wiped: Option<&'static str>) -> Option<T> {
        let (offset, slot) = (Some(place.offset), (place.slot != SlotIndex::NONE).then_some(place.slot));
        match found {
            Ok(Ok(unit)) => return Some(unit),
            Ok(Err(error @ RecordError::NotARecord { is_all_zero: true, .. })) => {
                if let Some(wiped) = wiped {
                    self.report.add(wiped, offset, slot, error);
                }
            }
            Ok(Err(error)) => self.report.add(damaged, offset, slot, error),
            Err(error) => self.report.add("IO-001", offset, slot, error),
        }
        None
    }

    /// What units of one slot say of each other.
    pub(crate) fn check_units(&mut self, superblock: &Superblock, units: &Units) {
        for slot in (0..superblock.slots).map(SlotIndex) {
            self.check_pairs(superblock, units, slot);
            let known = newest_record(units, slot).map(|record| record.view);
            let (Some(known), Some(vote_known)) = (known, both_records(units, slot)) else { continue };
            // A node acts once two of three devices have its record; the third may have been slow, and gets the next one.
            let vote_known = vote_known && superblock.device_count == 1;
            if let Some(beat) = units.beats.get(&slot).filter(|beat| beat.daemon.view > known && vote_known) {
                let detail = format!("beat says view {}, newest record {known}", beat.daemon.view);
                self.report.add("BT-002", Some(superblock.layout.beat(slot)), Some(slot), detail);
            }
        }
    }

    fn check_pairs(&mut self, superblock: &Superblock, units: &Units, slot: SlotIndex) {
        let layout = superblock.layout;
        let votes = [0, 1].map(|index| units.votes.get(&(slot, index)));
        if let [Some(one), Some(two)] = votes
            && one.sequence == two.sequence
            && !self.has_moved(superblock, slot)
        {
            self.report.add("VT-003", Some(layout.vote(slot, 0)), Some(slot), format!("sequence {}", one.sequence));
        }
        let records = [0, 1].map(|index| units.records.get(&(slot, index)));
        if let [Some(one), Some(two)] = records
            && one.sequence == two.sequence
            && !self.has_moved(superblock, slot)
        {
            self.report.add("VR-003", Some(layout.record(slot, 0)), Some(slot), format!("sequence {}", one.sequence));
        }
        for (index, ballot) in (0..).zip(votes).filter_map(|(index, ballot)| Some((index, ballot?))) {
            let offset = Some(layout.vote(slot, index));
            if ballot.entered != 0 && ballot.entered % 256 != u64::from(slot.0) {
                self.report.add("VT-005", offset, Some(slot), format!("ballot {}", ballot.entered));
            }
        }
        // A ballot may run ahead of the record by one; by two only where a number was given up.
        let is_ahead = |this: &mut Self| {
            let ahead = this.read_votes_then_records(superblock, slot)?;
            (ahead.0.saturating_sub(ahead.1) > 2).then_some(ahead)
        };
        let ballot = votes.into_iter().flatten().map(|ballot| ballot.view.0).max().unwrap_or(0);
        let looks_ahead = newest_record(units, slot).is_some_and(|record| ballot.saturating_sub(record.view.0) > 2);
        if looks_ahead && let Some((ballot, record)) = is_ahead(self) {
            let detail = format!("ballot for view {ballot}, newest record {record}");
            self.report.add("VT-004", Some(layout.vote(slot, 0)), Some(slot), detail);
        }
    }

    /// Has the node written votes or records since? Then two units read at two instants prove nothing.
    fn has_moved(&mut self, superblock: &Superblock, slot: SlotIndex) -> bool {
        let look = |this: &mut Self| {
            let votes = this.reader.read_now(superblock.layout.vote(slot, 0), 2 * UNIT_BYTES);
            (votes, this.reader.read_now(superblock.layout.record(slot, 0), 2 * UNIT_BYTES))
        };
        let first = look(self);
        self.reader.wait();
        first != look(self)
    }

    /// Newest ballot's view, read before the newest record's: a node writes the record first.
    fn read_votes_then_records(&mut self, superblock: &Superblock, slot: SlotIndex) -> Option<(u64, u64)> {
        let layout = superblock.layout;
        let at = |offset| Place { cluster: superblock.cluster, offset, slot };
        let (mut ballot, mut record) = (0, 0);
        for index in 0..2 {
            let place = at(layout.vote(slot, index));
            let bytes = self.reader.read_now(place.offset, UNIT_BYTES).ok()?;
            ballot = ballot.max(Ballot::decode(&bytes, &place).ok()?.view.0);
        }
        for index in 0..2 {
            let place = at(layout.record(slot, index));
            let bytes = self.reader.read_now(place.offset, UNIT_BYTES).ok()?;
            record = record.max(ViewRecord::decode(&bytes, &place).ok()?.view.0);
        }
        Some((ballot, record))
    }
}

/// The newer of a node's good view records.
pub(crate) fn newest_record(units: &Units, slot: SlotIndex) -> Option<&ViewRecord> {
    (0..2).filter_map(|index| units.records.get(&(slot, index))).max_by_key(|record| (record.sequence, record.view))
}

/// Are both records good? One alone may be the older one.
fn both_records(units: &Units, slot: SlotIndex) -> Option<bool> {
    Some((0..2).all(|index| units.records.contains_key(&(slot, index))))
}
