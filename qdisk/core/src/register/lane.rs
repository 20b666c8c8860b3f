//! What: what the register knows of one device and what it is doing there.
//! Owns: own units and places on that device, the one operation on its way, the progress of the present round.
//! Invariants: at most one operation at a time, so no unit has two unfinished writes; a place that an own vote unit or the newest own
//! record may name is never written.
//! Does not: choose what to do; the register does.
//! Called by: the register.

use super::own::OwnPair;
use super::scan::{Reader, Table};
use alloc::{sync::Arc, vec, vec::Vec};
use deadbolt_disk_format::{Ballot, Digest, Layout, Life, SlotIndex, ViewNumber, ViewRecord};

/// One disk operation, as the register thinks of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    ReadVotes,
    ReadRecords,
    ReadBody {
        slot: SlotIndex,
        place: u8,
    },
    /// Is the body that the own record names still there?
    CheckBody {
        place: u8,
        digest: Digest,
    },
    WriteBody {
        place: u8,
        digest: Digest,
    },
    WriteRecord {
        index: u8,
        record: ViewRecord,
    },
    /// Write a ballot, then read the whole vote table.
    Cast {
        index: u8,
        ballot: Ballot,
    },
    /// Rewrite an unreadable own vote unit with what this node last said.
    Rewrite {
        index: u8,
        ballot: Ballot,
    },
}

impl Step {
    /// Does it change the device?
    pub(super) fn is_write(&self) -> bool {
        match self {
            Self::ReadVotes | Self::ReadRecords | Self::ReadBody { .. } | Self::CheckBody { .. } => false,
            Self::WriteBody { .. } | Self::WriteRecord { .. } | Self::Cast { .. } | Self::Rewrite { .. } => true,
        }
    }
}

/// Where somebody's unit says that a body stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Source {
    pub(super) digest: Digest,
    pub(super) slot: SlotIndex,
    pub(super) place: u8,
}

/// What this device has contributed to the present round.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) votes: Option<Arc<Table<Ballot>>>,
    pub(super) records: Option<Arc<Table<ViewRecord>>>,
    /// Bodies still to try.
    pub(super) sources: Vec<Source>,
    /// The ballot of this round is written and the table was read after it, perhaps with unreadable units.
    pub(super) is_cast: bool,
    /// Reads of the vote table with unreadable units.
    pub(super) bad_scans: u32,
    /// Nothing left to do here in this round.
    pub(super) is_done: bool,
}

/// One device.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) layout: Layout,
    /// The vote table and the table of records, as last read.
    pub(super) votes: Reader<Ballot>,
    pub(super) records: Reader<ViewRecord>,
    pub(super) outstanding: Option<Outstanding>,
    /// Own units; none until this life has read them here.
    pub(super) own: Option<Own>,
    /// Own vote units, read while the own records are not yet.
    pub(super) half_loaded: Option<[Ballot; 2]>,
    /// First reads of the own records that showed an unreadable one.
    pub(super) bad_loads: u32,
    /// It went back in time: not used any more by this life.
    pub(super) is_away: bool,
    /// What this life wrote completely, by place, and did not read back unreadable since.
    pub(super) places: Vec<Option<Digest>>,
    /// When the body of the own record was last looked at.
    pub(super) body_checked_ms: u64,
    pub(super) progress: Progress,
    /// No new operation before this time.
    pub(super) not_before_ms: u64,
    pub(super) failures: u32,
    /// Who names which body, by the last tables read.
    pub(super) named_by_votes: Vec<Source>,
    pub(super) named_by_records: Vec<Source>,
}

/// Own units of one device.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) votes: OwnPair<Ballot>,
    pub(super) records: OwnPair<ViewRecord>,
}

/// The operation on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outstanding {
    pub(super) tag: u64,
    pub(super) round: u64,
    pub(super) step: Step,
    pub(super) since_ms: u64,
}

impl Lane {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            votes: Reader::default(),
            records: Reader::default(),
            outstanding: None,
            own: None,
            half_loaded: None,
            bad_loads: 0,
            is_away: false,
            places: vec![None; usize::from(layout.places)],
            body_checked_ms: 0,
            progress: Progress::default(),
            not_before_ms: 0,
            failures: 0,
            named_by_votes: Vec::new(),
            named_by_records: Vec::new(),
        }
    }

    /// Where this life has written a body completely.
    pub(super) fn place_of(&self, digest: &Digest) -> Option<u8> {
        (0u8..).zip(&self.places).find(|(_, held)| held.as_ref() == Some(digest)).map(|(place, _)| place)
    }

    /// A place that nothing of this node names, now or when an unfinished write lands.
    pub(super) fn free_place(&self) -> Option<u8> {
        let own = self.own.as_ref()?;
        let mark = |marks: &mut Vec<bool>, place: u8| {
            if let Some(mark) = marks.get_mut(usize::from(place)) {
                *mark = true;
            }
        };
        let mut is_named = vec![false; self.places.len()];
        for ballot in own.votes.all().filter(|ballot| ballot.digest != Digest::NONE) {
            mark(&mut is_named, ballot.place);
        }
        for record in own.records.newest().into_iter().chain(own.records.unsure()) {
            if record.digest != Digest::NONE {
                mark(&mut is_named, record.place);
            }
        }
        // The older record, too, while there is room: should the newest rot, it is what the next life starts from.
        let mut is_better_kept = is_named.clone();
        for record in own.records.all().filter(|record| record.digest != Digest::NONE) {
            mark(&mut is_better_kept, record.place);
        }
        let first = |marks: &[bool]| marks.iter().position(|mark| !mark).and_then(|place| u8::try_from(place).ok());
        first(&is_better_kept).or_else(|| first(&is_named))
    }

    /// Does this life's own record here name this view, with a body?
    pub(super) fn has_record(&self, me: &Life, view: ViewNumber, digest: &Digest) -> bool {
        self.own.as_ref().and_then(|own| own.records.newest_readable()).is_some_and(|record| {
            // View 0 is what format left in every record; there is nothing to add to it.
            let has_body = *digest == Digest::NONE || self.places.get(usize::from(record.place)) == Some(&Some(*digest));
            record.view == view && record.digest == *digest && (record.life == *me && has_body || view == ViewNumber(0))
        })
    }

    pub(super) fn note_votes_read(&mut self, table: &Table<Ballot>) {
        let own = table.own.iter().filter_map(|unit| unit.as_ref().ok());
        self.named_by_votes = own
            .chain(&table.others)
            .filter(|ballot| ballot.digest != Digest::NONE)
            .map(|ballot| Source { digest: ballot.digest, slot: ballot.life.slot, place: ballot.place })
            .collect();
    }

    pub(super) fn note_records_read(&mut self, table: &Table<ViewRecord>) {
        let own = table.own.iter().filter_map(|unit| unit.as_ref().ok());
        self.named_by_records = own
            .chain(&table.others)
            .filter(|record| record.digest != Digest::NONE)
            .map(|record| Source { digest: record.digest, slot: record.life.slot, place: record.place })
            .collect();
    }

    /// Where the last tables say that a body stands, each place once.
    pub(super) fn sources_of(&self, digest: &Digest) -> Vec<Source> {
        let mut sources = Vec::new();
        for source in self.named_by_records.iter().chain(&self.named_by_votes) {
            let is_wanted = source.digest == *digest && source.place < self.layout.places;
            if is_wanted && !sources.contains(source) {
                sources.push(*source);
            }
        }
        sources
    }
}
