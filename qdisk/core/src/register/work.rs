//! What: the disk work of a round: which operation a device does next, and what its completion changes.
//! Owns: the order body, record, ballot on each device.
//! Invariants: an operation's bytes are made when it is issued and never changed; own units are judged at every read.
//! Does not: choose rounds.
//! Called by: the register.

use super::lane::{Outstanding, Own, Step};
use super::own::{OwnPair, OwnVerdict};
use super::scan::Table;
use super::{DiskDone, DiskOp, DiskOpKind, Goal, Output, Register, RegisterBlock};
use alloc::{sync::Arc, vec::Vec};
use deadbolt_disk_format::{Ballot, ByteOffset, Digest, Layout, Place, ViewBody, ViewRecord, decode_body_place, encode_body_place};

/// Reads of a vote table with an unreadable unit before it is called blocked: a write on its way can tear a read. Chosen.
pub(super) const BAD_SCANS_MAX: u32 = 3;
/// Pause after a bad scan that may be such a tear. Chosen: several times the write of one unit.
const BAD_SCAN_PAUSE_MS: u64 = 2;
/// Pause while blocked by a unit: its owner looks at its units at every poll (50 ms while a ballot is in the air).
const BLOCKED_PAUSE_MS: u64 = 50;
/// How often the body of the own record is looked at: as often as sbd looks at the own beat. Who does not know the view yet needs it.
const BODY_CHECK_MS: u64 = 1000;
/// Longest pause after failed operations of a device. Chosen.
const FAILED_PAUSE_MS_MAX: u64 = 1000;

/// Length of an area as memory knows it; it was checked with the layout.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl Register {
    /// Gives every device that is free its next operation.
    pub(super) fn issue_all(&mut self) {
        for device in 0..self.lanes.len() {
            let lane = &self.lanes[device];
            let is_free = lane.outstanding.is_none() && !lane.is_away && lane.not_before_ms <= self.now_ms;
            if !is_free || !self.is_working() {
                continue;
            }
            if let Some(step) = self.next_step(device) {
                self.issue(device, step);
            }
        }
    }

    fn next_step(&mut self, device: usize) -> Option<Step> {
        let lane = &self.lanes[device];
        let Some(own) = &lane.own else {
            return Some(if lane.half_loaded.is_none() { Step::ReadVotes } else { Step::ReadRecords });
        };
        if own.votes.is_damaged() {
            // The last word, also where its write failed: it may stand there, and nothing said is taken back.
            let last = own.votes.all().max_by_key(|ballot| ballot.sequence)?;
            let ballot = Ballot { sequence: self.sequence.saturating_add(1), life: self.config.me, ..*last };
            return Some(Step::Rewrite { index: own.votes.next_index(), ballot });
        }
        if lane.progress.is_done {
            return None;
        }
        match self.goal {
            Goal::Survey if lane.progress.votes.is_none() => Some(Step::ReadVotes),
            Goal::Survey => Some(self.check_step(device).unwrap_or(Step::ReadRecords)),
            Goal::Fetch { .. } => lane.progress.sources.last().map(|source| Step::ReadBody { slot: source.slot, place: source.place }),
            Goal::Record => self.record_step(device).or_else(|| self.is_recorded().then_some(Step::ReadVotes)),
            Goal::Enter { .. } | Goal::Accept { .. } => self.ballot_step(device),
            Goal::Stopped | Goal::Idle | Goal::Wait { .. } | Goal::Halted => None,
        }
    }

    fn check_step(&self, device: usize) -> Option<Step> {
        let (known, lane) = (self.known?, &self.lanes[device]);
        let place = lane.place_of(&known.digest)?;
        (self.now_ms >= lane.body_checked_ms + BODY_CHECK_MS).then_some(Step::CheckBody { place, digest: known.digest })
    }

    /// Body and record of the known view, unless they are there.
    fn record_step(&mut self, device: usize) -> Option<Step> {
        let known = self.known?;
        let lane = &self.lanes[device];
        if lane.has_record(&self.config.me, known.view, &known.digest) {
            return None;
        }
        let place = if known.digest == Digest::NONE { Some(0) } else { lane.place_of(&known.digest) };
        let Some(place) = place else { return self.body_step(device, known.digest) };
        let record = ViewRecord {
            life: self.config.me,
            sequence: self.sequence.saturating_add(1),
            view: known.view,
            digest: known.digest,
            place,
            wall_ms: self.config.wall_offset_ms.saturating_add(self.now_ms),
        };
        let index = lane.own.as_ref()?.records.next_index();
        Some(Step::WriteRecord { index, record })
    }

    fn body_step(&mut self, device: usize, digest: Digest) -> Option<Step> {
        #[cfg(any(test, feature = "planted"))]
        if self.has_mistake(super::planted::Mistake::PlaceReused) {
            return Some(Step::WriteBody { place: 0, digest });
        }
        if let Some(place) = self.lanes[device].free_place() {
            return Some(Step::WriteBody { place, digest });
        }
        let offset = self.lanes[device].layout.body(self.me(), 0);
        self.report(device, offset, RegisterBlock::NoFreePlace);
        self.lanes[device].not_before_ms = self.now_ms + FAILED_PAUSE_MS_MAX;
        None
    }

    fn ballot_step(&mut self, device: usize) -> Option<Step> {
        if self.lanes[device].progress.is_cast {
            return Some(Step::ReadVotes);
        }
        #[cfg(any(test, feature = "planted"))]
        let has_mistake = self.has_mistake(super::planted::Mistake::BallotBeforeRecord);
        #[cfg(not(any(test, feature = "planted")))]
        let has_mistake = false;
        match self.record_step(device) {
            Some(step) if !has_mistake => Some(step),
            _ => self.cast_step(device),
        }
    }

    fn cast_step(&mut self, device: usize) -> Option<Step> {
        let spoken = self.spoken;
        let lane = &self.lanes[device];
        let place = match (spoken.digest, lane.place_of(&spoken.digest)) {
            (Digest::NONE, _) => 0,
            (_, Some(place)) => place,
            #[cfg(any(test, feature = "planted"))]
            (_, None) if self.has_mistake(super::planted::Mistake::BodyAfterBallot) => lane.free_place()?,
            (digest, None) => return self.body_step(device, digest),
        };
        let ballot = Ballot {
            life: self.config.me,
            sequence: self.sequence.saturating_add(1),
            view: spoken.view,
            entered: spoken.entered,
            accepted: spoken.accepted,
            digest: spoken.digest,
            place,
        };
        Some(Step::Cast { index: lane.own.as_ref()?.votes.next_index(), ballot })
    }

    fn issue(&mut self, device: usize, step: Step) {
        let Some(kind) = self.operation_of(device, step) else { return };
        self.tag += 1;
        let lane = &mut self.lanes[device];
        lane.outstanding = Some(Outstanding { tag: self.tag, round: self.round, step, since_ms: self.now_ms });
        match (step, &mut lane.own) {
            (Step::WriteRecord { index, record }, Some(own)) => {
                self.sequence = record.sequence;
                own.records.note_issued(index, record);
            }
            (Step::Cast { index, ballot } | Step::Rewrite { index, ballot }, Some(own)) => {
                self.sequence = ballot.sequence;
                own.votes.note_issued(index, ballot);
            }
            (Step::WriteBody { place, .. }, _) => lane.places[usize::from(place)] = None,
            (Step::CheckBody { .. }, _) => lane.body_checked_ms = self.now_ms,
            _ => {}
        }
        self.outputs.push_back(Output::Disk(DiskOp { tag: self.tag, device, kind }));
    }

    fn operation_of(&mut self, device: usize, step: Step) -> Option<DiskOpKind> {
        let layout = self.lanes[device].layout;
        let me = self.config.me;
        let place_at = |offset: ByteOffset| Place { cluster: self.config.cluster, offset, slot: me.slot };
        Some(match step {
            Step::ReadVotes => DiskOpKind::Read { offset: layout.votes, bytes: length(layout.votes_bytes()) },
            Step::ReadRecords => DiskOpKind::Read { offset: layout.records, bytes: length(layout.records_bytes()) },
            Step::CheckBody { place, .. } => {
                DiskOpKind::Read { offset: layout.body(me.slot, place), bytes: length(u64::from(layout.place_bytes)) }
            }
            Step::ReadBody { slot, place } => {
                DiskOpKind::Read { offset: layout.body(slot, place), bytes: length(u64::from(layout.place_bytes)) }
            }
            Step::WriteBody { place, digest } => {
                let offset = layout.body(me.slot, place);
                let value = self.values.get(&digest)?;
                self.sequence = self.sequence.saturating_add(1);
                // The size was checked when the value was proposed or read from a place of the same size.
                let data = encode_body_place(value, &place_at(offset), &me, self.sequence, layout.place_bytes);
                DiskOpKind::Write { offset, data: data.ok()? }
            }
            Step::WriteRecord { index, record } => {
                let offset = layout.record(me.slot, index);
                DiskOpKind::Write { offset, data: record.encode(&place_at(offset)).to_vec() }
            }
            Step::Cast { index, ballot } => {
                let write_offset = layout.vote(me.slot, index);
                DiskOpKind::WriteThenRead {
                    write_offset,
                    data: ballot.encode(&place_at(write_offset)).to_vec(),
                    read_offset: layout.votes,
                    read_bytes: length(layout.votes_bytes()),
                }
            }
            Step::Rewrite { index, ballot } => {
                let offset = layout.vote(me.slot, index);
                DiskOpKind::Write { offset, data: ballot.encode(&place_at(offset)).to_vec() }
            }
        })
    }

    pub(super) fn handle_disk(&mut self, done: DiskDone) {
        let device = done.device;
        let Some(lane) = self.lanes.get_mut(device) else { return };
        let Some(op) = lane.outstanding.filter(|op| op.tag == done.tag) else { return };
        lane.outstanding = None;
        let Ok(bytes) = done.result else {
            lane.failures += 1;
            lane.not_before_ms = self.now_ms + (10 << lane.failures.min(7)).min(FAILED_PAUSE_MS_MAX);
            let offset = self.offset_of(device, op.step);
            self.report(device, offset, RegisterBlock::DeviceFailed);
            return;
        };
        lane.failures = 0;
        let is_current = op.round == self.round;
        match op.step {
            Step::ReadVotes => self.votes_read(device, &bytes, is_current),
            Step::ReadRecords => self.records_read(device, &bytes, is_current),
            Step::ReadBody { slot, place } if is_current => self.body_read(device, slot, place, &bytes),
            Step::ReadBody { .. } => {}
            Step::CheckBody { place, digest } => self.body_checked(device, place, digest, &bytes),
            Step::WriteBody { place, digest } => lane.places[usize::from(place)] = Some(digest),
            Step::WriteRecord { index, record } => {
                if let Some(own) = &mut lane.own {
                    own.records.note_completed(index, record);
                }
            }
            Step::Rewrite { index, ballot } => {
                if let Some(own) = &mut lane.own {
                    own.votes.note_completed(index, ballot);
                }
            }
            Step::Cast { index, ballot } => {
                if let Some(own) = &mut lane.own {
                    own.votes.note_completed(index, ballot);
                }
                if is_current {
                    lane.progress.is_cast = true;
                }
                self.votes_read(device, &bytes, is_current);
            }
        }
    }

    fn offset_of(&self, device: usize, step: Step) -> ByteOffset {
        let layout: &Layout = &self.lanes[device].layout;
        match step {
            Step::ReadVotes => layout.votes,
            Step::ReadRecords => layout.records,
            Step::ReadBody { slot, place } => layout.body(slot, place),
            Step::WriteBody { place, .. } | Step::CheckBody { place, .. } => layout.body(self.me(), place),
            Step::WriteRecord { index, .. } => layout.record(self.me(), index),
            Step::Cast { index, .. } | Step::Rewrite { index, .. } => layout.vote(self.me(), index),
        }
    }

    fn votes_read(&mut self, device: usize, bytes: &Arc<[u8]>, is_current: bool) {
        let me = self.me();
        let lane = &mut self.lanes[device];
        let table = lane.votes.read(bytes, &lane.layout, self.config.cluster, me);
        lane.note_votes_read(&table);
        if !self.own_votes_are_fine(device, &table) || !is_current {
            return;
        }
        let is_scan = match self.goal {
            Goal::Record | Goal::Enter { .. } | Goal::Accept { .. } => self.lanes[device].own.is_some(),
            Goal::Survey => false,
            _ => return,
        };
        if is_scan && !table.unreadable.is_empty() {
            self.bad_scan(device, &table.unreadable);
            return;
        }
        let progress = &mut self.lanes[device].progress;
        if is_scan || self.goal == Goal::Survey {
            progress.votes = Some(table);
        }
        progress.is_done = is_scan;
    }

    /// An unknown promise: read again, soon at first.
    fn bad_scan(&mut self, device: usize, unreadable: &[ByteOffset]) {
        let lane = &mut self.lanes[device];
        lane.progress.bad_scans += 1;
        lane.not_before_ms = self.now_ms + BAD_SCAN_PAUSE_MS;
        if lane.progress.bad_scans >= BAD_SCANS_MAX {
            lane.not_before_ms = self.now_ms + BLOCKED_PAUSE_MS;
            for offset in unreadable {
                self.report(device, *offset, RegisterBlock::UnreadableVote);
            }
        }
    }

    /// First read of this life: keeps the own ballots. Later ones: are they what this life wrote?
    fn own_votes_are_fine(&mut self, device: usize, table: &Table<Ballot>) -> bool {
        let me = self.config.me;
        let lane = &mut self.lanes[device];
        let Some(own) = &mut lane.own else {
            if let [Ok(first), Ok(second)] = table.own {
                lane.half_loaded = Some([first, second]);
                return true;
            }
            // An unknown promise of an earlier life: this life must not speak over it.
            let index = u8::from(table.own[0].is_ok());
            let offset = lane.layout.vote(me.slot, index);
            self.bad_scan(device, &[offset]);
            return false;
        };
        for index in 0..2u8 {
            let verdict = own.votes.judge(index, &table.own[usize::from(index)], &me, self.sequence);
            let offset = lane.layout.vote(me.slot, index);
            match verdict {
                OwnVerdict::Expected | OwnVerdict::Damaged => {}
                OwnVerdict::WentBack => {
                    lane.is_away = true;
                    self.report(device, offset, RegisterBlock::WentBack);
                    return false;
                }
                OwnVerdict::Foreign => {
                    self.halt(device, offset, RegisterBlock::Foreign);
                    return false;
                }
            }
        }
        true
    }

    fn records_read(&mut self, device: usize, bytes: &Arc<[u8]>, is_current: bool) {
        let me = self.me();
        let lane = &mut self.lanes[device];
        let table = lane.records.read(bytes, &lane.layout, self.config.cluster, me);
        lane.note_records_read(&table);
        if !self.own_records_are_fine(device, &table) || !is_current || self.goal != Goal::Survey {
            return;
        }
        let progress = &mut self.lanes[device].progress;
        progress.is_done = progress.votes.is_some();
        progress.records = Some(table);
    }

    fn own_records_are_fine(&mut self, device: usize, table: &Table<ViewRecord>) -> bool {
        let me = self.config.me;
        let lane = &mut self.lanes[device];
        let read = table.own.iter().filter_map(|unit| unit.as_ref().ok()).map(|record| record.sequence);
        let highest = read.max().unwrap_or(0);
        let Some(own) = &mut lane.own else {
            if table.own.iter().any(Result::is_err) && lane.bad_loads < BAD_SCANS_MAX {
                // Taken for damaged, a record would not protect the place that it names: it may only have been a bad read.
                lane.bad_loads += 1;
                lane.not_before_ms = self.now_ms + BAD_SCAN_PAUSE_MS;
                return false;
            }
            let Some(votes) = lane.half_loaded.take() else { return false };
            let records = [0, 1].map(|index: usize| table.own[index].as_ref().ok().copied());
            lane.own = Some(Own { votes: OwnPair::restore(votes.map(Some)), records: OwnPair::restore(records) });
            self.sequence = self.sequence.max(highest);
            self.restore_ballots(&votes);
            return true;
        };
        for index in 0..2u8 {
            let verdict = own.records.judge(index, &table.own[usize::from(index)], &me, self.sequence);
            let offset = lane.layout.record(me.slot, index);
            match verdict {
                OwnVerdict::Expected | OwnVerdict::Damaged => {}
                OwnVerdict::WentBack => {
                    lane.is_away = true;
                    self.report(device, offset, RegisterBlock::WentBack);
                    return false;
                }
                OwnVerdict::Foreign => {
                    self.halt(device, offset, RegisterBlock::Foreign);
                    return false;
                }
            }
        }
        self.sequence = self.sequence.max(highest);
        true
    }

    /// Own ballots of an earlier life: this life is bound by them.
    fn restore_ballots(&mut self, ballots: &[Ballot; 2]) {
        for ballot in ballots {
            self.sequence = self.sequence.max(ballot.sequence);
            self.ballot_round = self.ballot_round.max(ballot.entered / 256);
        }
        #[cfg(any(test, feature = "planted"))]
        if self.has_mistake(super::planted::Mistake::ForgetPromise) {
            return;
        }
        let newest = if ballots[0].sequence > ballots[1].sequence { ballots[0] } else { ballots[1] };
        if !self.restored.contains(&newest) {
            self.restored.push(newest);
        }
    }

    /// An own body that is not there any more is forgotten, so that body and record are written anew.
    fn body_checked(&mut self, device: usize, place: u8, digest: Digest, bytes: &[u8]) {
        let slot = self.me();
        let lane = &mut self.lanes[device];
        let expected = Place { cluster: self.config.cluster, offset: lane.layout.body(slot, place), slot };
        if value_of(bytes, &expected, &digest).is_none() {
            lane.places[usize::from(place)] = None;
        }
    }

    fn body_read(&mut self, device: usize, slot: deadbolt_disk_format::SlotIndex, place: u8, bytes: &[u8]) {
        let Goal::Fetch { digest, .. } = self.goal else { return };
        let lane = &mut self.lanes[device];
        lane.progress.sources.pop();
        let offset = lane.layout.body(slot, place);
        let expected = Place { cluster: self.config.cluster, offset, slot };
        if let Some(value) = value_of(bytes, &expected, &digest) {
            self.values.insert(digest, value);
        }
    }
}

/// The value of a digest, if that is what stands in a body's place.
fn value_of(bytes: &[u8], expected: &Place, digest: &Digest) -> Option<Vec<u8>> {
    let (_, _, value) = decode_body_place(bytes, expected).ok()?;
    ViewBody::decode_value(&value).is_ok_and(|body| body.digest() == *digest).then_some(value)
}
