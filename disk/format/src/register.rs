//! What: the two records of the view register that stand in one unit each: ballots and view records.
//! Owns: their payload fields.
//! Invariants: what a ballot promises lies in the first 512 bytes of its unit, under one checksum.
//! Does not: decide which of two units counts; see qdisk core.
//! Called by: qdisk core, fsck, format.

use crate::head::{Head, Place, RecordError, RecordType, Unit, fields, open_short, put, seal_short};
use crate::head::{bytes_of, u8_of, u64_of};
use crate::types::{Ballot, BootId, Digest, Incarnation, Life, SlotIndex, ViewNumber, ViewRecord};

fields! {
    /// Payload of a vote unit.
    pub mod vote_fields from 88 to 508 {
        VIEW: 88, 8;
        ENTERED: 96, 8;
        ACCEPTED: 104, 8;
        DIGEST: 112, 32;
        PLACE: 144, 1;
        RESERVED: 145, 363;
    }
}
fields! {
    /// Payload of a view record.
    pub mod record_fields from 88 to 508 {
        VIEW: 88, 8;
        DIGEST: 96, 32;
        PLACE: 128, 1;
        RESERVED_A: 129, 7;
        WALL_MS: 136, 8;
        RESERVED_B: 144, 364;
    }
}

/// Head of a short record that a life writes at a place.
pub(crate) fn head_of(record: RecordType, place: &Place, life: &Life, sequence: u64) -> Head {
    Head { record, body_bytes: 0, body_checksum: 0, place: *place, boot: life.boot, incarnation: life.incarnation, sequence }
}
/// The life that a head names.
pub(crate) fn life_of(head: &Head) -> Life {
    Life { slot: head.place.slot, boot: head.boot, incarnation: head.incarnation }
}

/// Nobody's life: what `format` names as the writer.
fn no_life(slot: SlotIndex) -> Life {
    Life { slot, boot: BootId::NONE, incarnation: Incarnation::NONE }
}

impl Ballot {
    /// What `format` writes into vote unit `index`: nobody has ever voted here.
    #[must_use]
    pub fn empty(slot: SlotIndex, index: u8) -> Self {
        Self {
            life: no_life(slot),
            sequence: u64::from(index),
            view: ViewNumber(0),
            entered: 0,
            accepted: 0,
            digest: Digest::NONE,
            place: 0,
        }
    }
    /// The bytes of a vote unit.
    ///
    /// # Panics
    /// When the ballot's slot is not the place's: it would be written over another node's promise.
    #[must_use]
    pub fn encode(&self, place: &Place) -> Unit {
        use vote_fields as at;
        assert_eq!(self.life.slot, place.slot, "a ballot belongs into its own slot");
        seal_short(&head_of(RecordType::Vote, place, &self.life, self.sequence), |unit| {
            put(unit, at::VIEW, &self.view.0.to_le_bytes());
            put(unit, at::ENTERED, &self.entered.to_le_bytes());
            put(unit, at::ACCEPTED, &self.accepted.to_le_bytes());
            put(unit, at::DIGEST, &self.digest.0);
            put(unit, at::PLACE, &[self.place]);
        })
    }
    /// Judges a vote unit.
    ///
    /// # Errors
    /// Whatever makes it an unknown promise.
    pub fn decode(bytes: &[u8], place: &Place) -> Result<Self, RecordError> {
        use vote_fields as at;
        let head = open_short(bytes, place, RecordType::Vote, at::FIELDS)?;
        let ballot = Self {
            life: life_of(&head),
            sequence: head.sequence,
            view: ViewNumber(u64_of(bytes, at::VIEW)),
            entered: u64_of(bytes, at::ENTERED),
            accepted: u64_of(bytes, at::ACCEPTED),
            digest: Digest(bytes_of(bytes, at::DIGEST)),
            place: u8_of(bytes, at::PLACE),
        };
        if ballot.accepted > ballot.entered {
            return Err(RecordError::BadField { field: "ACCEPTED", value: ballot.accepted });
        }
        if (ballot.accepted == 0) != (ballot.digest == Digest::NONE) {
            return Err(RecordError::BadField { field: "DIGEST", value: ballot.accepted });
        }
        if ballot.view == ViewNumber(0) && ballot.entered != 0 {
            return Err(RecordError::BadField { field: "ENTERED", value: ballot.entered });
        }
        Ok(ballot)
    }
}

impl ViewRecord {
    /// What `format` writes into view record `index`: no view is known.
    #[must_use]
    pub fn empty(slot: SlotIndex, index: u8) -> Self {
        Self { life: no_life(slot), sequence: u64::from(index), view: ViewNumber(0), digest: Digest::NONE, place: 0, wall_ms: 0 }
    }
    /// The bytes of a view record.
    ///
    /// # Panics
    /// When the record's slot is not the place's.
    #[must_use]
    pub fn encode(&self, place: &Place) -> Unit {
        use record_fields as at;
        assert_eq!(self.life.slot, place.slot, "a view record belongs into its own slot");
        seal_short(&head_of(RecordType::ViewRecord, place, &self.life, self.sequence), |unit| {
            put(unit, at::VIEW, &self.view.0.to_le_bytes());
            put(unit, at::DIGEST, &self.digest.0);
            put(unit, at::PLACE, &[self.place]);
            put(unit, at::WALL_MS, &self.wall_ms.to_le_bytes());
        })
    }
    /// Judges a view record.
    ///
    /// # Errors
    /// Whatever makes it no news.
    pub fn decode(bytes: &[u8], place: &Place) -> Result<Self, RecordError> {
        use record_fields as at;
        let head = open_short(bytes, place, RecordType::ViewRecord, at::FIELDS)?;
        let record = Self {
            life: life_of(&head),
            sequence: head.sequence,
            view: ViewNumber(u64_of(bytes, at::VIEW)),
            digest: Digest(bytes_of(bytes, at::DIGEST)),
            place: u8_of(bytes, at::PLACE),
            wall_ms: u64_of(bytes, at::WALL_MS),
        };
        if (record.view == ViewNumber(0)) != (record.digest == Digest::NONE) {
            return Err(RecordError::BadField { field: "DIGEST", value: record.view.0 });
        }
        Ok(record)
    }
}
