//! What: the checks across records: bodies by digest, the chain of decided views, the owed.
//! Owns: VB findings, VR-004.
//! Invariants: a record and its body are judged together only when the record stood still around the read of the body.
//! Does not: decide which view is right.
//! Called by: the check, after every unit was read.

use crate::Checker;
use crate::areas::{Units, newest_record};
use deadbolt_disk_format::view::digest_of_value;
use deadbolt_disk_format::{
    Area, Ballot, ByteOffset, Digest, Life, Place, RecordError, SlotIndex, Superblock, UNIT_BYTES, ViewBody, ViewNumber, ViewRecord,
    decode_body_place,
};
use std::collections::{BTreeMap, BTreeSet};

/// Bodies that were found, by digest: a digest names one value for ever, so no instant matters.
type Bodies = BTreeMap<Digest, ViewBody>;
/// Which body stands in which place.
type Places = BTreeMap<(SlotIndex, u8), Digest>;

/// A vote unit or a view record that names a body.
struct Reference {
    unit: ByteOffset,
    is_vote: bool,
    slot: SlotIndex,
    digest: Digest,
    place: u8,
}

impl Checker<'_> {
    /// Returns the newest decided view whose body was found.
    pub(crate) fn check_views(&mut self, superblock: &Superblock, units: &Units) -> Option<ViewBody> {
        let references = references(superblock, units);
        let (mut bodies, places) = self.read_bodies(superblock, &references);
        for reference in &references {
            if places.get(&(reference.slot, reference.place)) != Some(&reference.digest) {
                self.check_missing(superblock, reference, &mut bodies);
            }
        }
        let decided = self.decided(superblock, units);
        for (view, digest) in &decided {
            if let Some(body) = bodies.get(digest) {
                self.check_body(superblock, *view, body);
                let before = view.0.checked_sub(1).and_then(|before| decided.get(&ViewNumber(before)));
                self.check_chain(body, before, &bodies);
            }
        }
        let newest = decided.iter().next_back().and_then(|(_, digest)| bodies.get(digest)).cloned();
        let members = |body: &ViewBody| body.members.iter().map(|life| life.slot.0).collect();
        let number = decided.keys().next_back().copied().unwrap_or_default();
        self.report.newest_view = Some((number.0, newest.as_ref().map(members).unwrap_or_default()));
        if let Some(body) = &newest {
            self.check_beating(superblock, units, body);
        }
        newest
    }

    fn read_bodies(&mut self, superblock: &Superblock, references: &[Reference]) -> (Bodies, Places) {
        let (mut bodies, mut places) = (Bodies::new(), Places::new());
        let layout = superblock.layout;
        let end = layout.bodies.0 + layout.bodies_bytes();
        for (area, offset, bytes) in layout.units() {
            let Area::Body(slot, index) = area else { continue };
            self.report.units += 1;
            let place = Place { cluster: superblock.cluster, offset, slot };
            let found = self.reader.settle(offset, bytes, end, |bytes| decode_body_place(bytes, &place));
            match found {
                Ok(Ok((_, _, value))) => match ViewBody::decode_value(&value) {
                    Ok(body) => {
                        let digest = digest_of_value(&value);
                        places.insert((slot, index), digest);
                        bodies.insert(digest, body);
                    }
                    Err(error) => self.report.add("VB-002", Some(offset), Some(slot), error),
                },
                Ok(Err(RecordError::NotARecord { is_all_zero: true, .. })) => {}
                Ok(Err(error)) => {
                    // Where a unit names this place the missing body is the finding.
                    if !references.iter().any(|reference| reference.slot == slot && reference.place == index) {
                        self.report.add("VB-003", Some(offset), Some(slot), error);
                    }
                }
                Err(error) => self.report.add("IO-001", Some(offset), Some(slot), error),
            }
        }
        (bodies, places)
    }

    /// A digest whose body is not in the place named, so far: unit and body are read together until the unit stands still.
    fn check_missing(&mut self, superblock: &Superblock, reference: &Reference, bodies: &mut Bodies) {
        let mut last = None;
        for _ in 0..crate::LOOKS {
            self.reader.wait();
            let Some((digest, place)) = self.read_reference(superblock, reference) else { return };
            if digest == Digest::NONE {
                return;
            }
            let found = self.read_body(superblock, reference.slot, place);
            if self.read_reference(superblock, reference) != Some((digest, place)) {
                last = None;
                continue;
            }
            match found {
                Ok((found, body)) if found == digest => {
                    bodies.insert(found, body);
                    return;
                }
                Ok((found, _)) => last = Some((digest, format!("place {place} carries the body {found:?}, named is {digest:?}"))),
                Err(error) => last = Some((digest, format!("place {place}: {error}"))),
            }
        }
        if let Some((digest, detail)) = last {
            let code = if bodies.contains_key(&digest) { "VB-010" } else { "VB-001" };
            let what = if reference.is_vote { "a ballot" } else { "a view record" };
            self.report.add(code, Some(reference.unit), Some(reference.slot), format!("named by {what}: {detail}"));
        }
    }

    fn read_reference(&mut self, superblock: &Superblock, reference: &Reference) -> Option<(Digest, u8)> {
        let place = Place { cluster: superblock.cluster, offset: reference.unit, slot: reference.slot };
        let bytes = self.reader.read_now(reference.unit, UNIT_BYTES).ok()?;
        if reference.is_vote {
            Ballot::decode(&bytes, &place).ok().map(|ballot| (ballot.digest, ballot.place))
        } else {
            ViewRecord::decode(&bytes, &place).ok().map(|record| (record.digest, record.place))
        }
    }

    fn read_body(&mut self, superblock: &Superblock, slot: SlotIndex, place: u8) -> Result<(Digest, ViewBody), String> {
        let layout = superblock.layout;
        if place >= layout.places {
            return Err(format!("there are only {} places", layout.places));
        }
        let place = Place { cluster: superblock.cluster, offset: layout.body(slot, place), slot };
        let bytes = self.reader.read_now(place.offset, usize::try_from(layout.place_bytes).unwrap_or(UNIT_BYTES))?;
        let (_, _, value) = decode_body_place(&bytes, &place).map_err(|error| error.to_string())?;
        let body = ViewBody::decode_value(&value).map_err(|error| error.to_string())?;
        Ok((digest_of_value(&value), body))
    }

    /// Decided views by number; two values for one number are the worst finding of all.
    fn decided(&mut self, superblock: &Superblock, units: &Units) -> BTreeMap<ViewNumber, Digest> {
        let mut decided = BTreeMap::new();
        for ((slot, index), record) in &units.records {
            if record.view == ViewNumber(0) {
                continue;
            }
            let known = *decided.entry(record.view).or_insert(record.digest);
            if known != record.digest {
                let detail = format!("view {}: {known:?} and {:?}", record.view, record.digest);
                self.report.add("VR-004", Some(superblock.layout.record(*slot, *index)), Some(*slot), detail);
            }
        }
        decided
    }

    fn check_body(&mut self, superblock: &Superblock, view: ViewNumber, body: &ViewBody) {
        let proposer = body.proposer.map(|life| life.slot);
        if body.view != view {
            self.report.add("VB-004", None, proposer, format!("recorded as view {view}, its body says {}", body.view));
        }
        let nodes = &body.configuration.nodes;
        let lives = body.members.iter().chain(body.owed.iter().map(|owed| &owed.life)).map(|life| life.slot);
        let outside = lives.chain(nodes.iter().map(|node| node.slot)).find(|slot| !superblock.layout.has_slot(*slot));
        if let Some(slot) = outside {
            self.report.add("VB-007", None, proposer, format!("view {view} names slot {slot} of {}", superblock.slots));
        }
        for member in &body.members {
            if body.owed.iter().any(|owed| owed.life.slot == member.slot) {
                self.report.add("VB-005", None, Some(member.slot), format!("in view {view}"));
            }
        }
        let (votes, most) = (usize::from(body.configuration.disk_votes), nodes.len().saturating_sub(1));
        if !nodes.is_empty() && (votes > most || votes == 0 && most > 0) {
            self.report.add("VB-006", None, proposer, format!("{votes} with {} nodes in view {view}", nodes.len()));
        }
    }

    /// Does a view follow the one before it, as far as that one is on the device?
    fn check_chain(&mut self, body: &ViewBody, before: Option<&Digest>, bodies: &Bodies) {
        let view = body.view;
        let proposer = body.proposer.map(|life| life.slot);
        if let Some(before) = before.filter(|before| **before != body.predecessor) {
            let detail = format!("view {view} follows {:?}, view before it is {before:?}", body.predecessor);
            self.report.add("VB-004", None, proposer, detail);
        }
        let Some(predecessor) = bodies.get(&body.predecessor) else { return };
        if predecessor.view >= view {
            self.report.add("VB-004", None, proposer, format!("view {view} follows view {}", predecessor.view));
            return;
        }
        if predecessor.configuration.version > body.configuration.version {
            let (old, new) = (predecessor.configuration.version, body.configuration.version);
            self.report.add("VB-008", None, proposer, format!("from {old} to {new} in view {view}"));
        }
        let named: BTreeSet<Life> = body
            .members
            .iter()
            .copied()
            .chain(body.owed.iter().map(|owed| owed.life))
            .chain(body.released.iter().map(|released| released.life))
            .collect();
        // An owed life may be a member again: a removed one whose judges are all gone goes on.
        let before = predecessor.members.iter().chain(predecessor.owed.iter().map(|owed| &owed.life));
        for life in before.filter(|life| !named.contains(life)) {
            let detail = format!("boot {} is in view {} and not in view {view}", life.boot, predecessor.view);
            self.report.add("VB-009", None, Some(life.slot), detail);
        }
    }

    fn check_beating(&mut self, superblock: &Superblock, units: &Units, body: &ViewBody) {
        for (slot, beat) in &units.beats {
            if !beat.is_stopped && !body.configuration.nodes.iter().any(|node| node.slot == *slot) {
                self.report.add("BT-003", Some(superblock.layout.beat(*slot)), Some(*slot), format!("beat {}", beat.beat));
            }
        }
    }
}

/// Which bodies are needed: those that a node's vote units and its newest view record name.
fn references(superblock: &Superblock, units: &Units) -> Vec<Reference> {
    let layout = &superblock.layout;
    let votes = units.votes.iter().filter(|(_, ballot)| ballot.digest != Digest::NONE).map(|((slot, index), ballot)| Reference {
        unit: layout.vote(*slot, *index),
        is_vote: true,
        slot: *slot,
        digest: ballot.digest,
        place: ballot.place,
    });
    let slots = (0..superblock.slots).map(SlotIndex);
    let records = slots.filter_map(|slot| {
        let record = newest_record(units, slot).filter(|record| record.digest != Digest::NONE)?;
        let index = u8::from(units.records.get(&(slot, 1)) == Some(record));
        Some(Reference { unit: layout.record(slot, index), is_vote: false, slot, digest: record.digest, place: record.place })
    });
    votes.chain(records).collect()
}
