//! What: the rounds of the register: survey, fetch, record, enter, accept, and what follows from each.
//! Owns: the rules of Disk Paxos and of going from one instance to the next.
//! Invariants: a value accepted by anybody in a lower ballot is proposed on; a later ballot ends the instance; nothing is known to be
//! decided but by a completed second phase or by somebody's record.
//! Does not: touch bytes; see the disk work.
//! Called by: the register.

#[cfg(any(test, feature = "planted"))]
use super::planted::Mistake;
use super::work::BAD_SCANS_MAX;
use super::{Fetch, Goal, Known, Output, Proposal, ProposalError, Register, RegisterBlock, Spoken};
use alloc::vec::Vec;
use deadbolt_disk_format::{Ballot, ByteOffset, Digest, Place, ViewBody, ViewNumber, encode_body_place};

/// Longest search for one body. Chosen: far above a read; a device that hangs must not hold up the others for ever.
const FETCH_MS_MAX: u64 = 1000;
/// Pause between surveys while something is missing. Chosen: as for an unreadable vote unit.
const MISSING_PAUSE_MS: u64 = 50;
/// Contenders spread over up to this many lengths of an attempt: the largest number of nodes that contended in tests.
const BACK_OFF_SLOTS_MAX: u64 = 16;

/// A well mixed number from a seed (the finalizer of SplitMix64, public domain).
fn mix(mut number: u64) -> u64 {
    number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

impl Register {
    pub(super) fn handle_propose(&mut self, body: &ViewBody) {
        if let Err(reason) = self.check_proposal(body) {
            self.outputs.push_back(Output::ProposalRefused { reason });
            return;
        }
        if let Some(known) = self.known.filter(|known| body.view <= known.view) {
            self.outputs.push_back(Output::ProposalLost { winner: known.view });
            return;
        }
        let digest = body.digest();
        self.values.insert(digest, body.encode_value());
        self.proposal = Some(Proposal { view: body.view, digest });
        self.forget_values();
        self.attempts = 0;
        if self.goal == Goal::Idle {
            self.begin_attempt();
        }
    }

    fn check_proposal(&self, body: &ViewBody) -> Result<(), ProposalError> {
        if matches!(self.goal, Goal::Stopped | Goal::Halted) {
            return Err(ProposalError::NotRunning);
        }
        body.check().map_err(ProposalError::Value)?;
        let value = body.encode_value();
        for lane in &self.lanes {
            let place = Place { cluster: self.config.cluster, offset: lane.layout.body(self.me(), 0), slot: self.me() };
            encode_body_place(&value, &place, &self.config.me, 0, lane.layout.place_bytes).map_err(ProposalError::Size)?;
        }
        match self.known {
            Some(known) if body.view > known.next() => Err(ProposalError::NotNext { known: known.view }),
            _ => Ok(()),
        }
    }

    pub(super) fn handle_abandon(&mut self) {
        self.proposal = None;
        let is_proposing = match self.goal {
            Goal::Enter { .. } | Goal::Accept { .. } | Goal::Wait { .. } => true,
            Goal::Fetch { why, .. } => !matches!(why, Fetch::Learn(_)),
            Goal::Stopped | Goal::Idle | Goal::Survey | Goal::Record | Goal::Halted => false,
        };
        if is_proposing {
            self.begin(Goal::Survey);
        }
    }

    pub(super) fn handle_learn(&mut self) {
        // Blocked by a unit: look again, others may have gone on, and own units may want rewriting.
        let has_bad_scan = self.lanes.iter().any(|lane| lane.own.is_some() && lane.progress.bad_scans >= BAD_SCANS_MAX);
        let is_blocked = matches!(self.goal, Goal::Wait { .. }) && self.misses > 0 || has_bad_scan;
        if self.goal == Goal::Idle || is_blocked {
            self.begin(Goal::Survey);
        }
    }

    pub(super) fn begin(&mut self, goal: Goal) {
        self.round += 1;
        for lane in &mut self.lanes {
            lane.progress = super::lane::Progress::default();
            if lane.failures == 0 {
                lane.not_before_ms = 0;
            }
            if let Goal::Fetch { digest, .. } = &goal {
                lane.progress.sources = lane.sources_of(digest);
            }
        }
        self.goal = goal;
    }

    pub(super) fn halt(&mut self, device: usize, offset: ByteOffset, reason: RegisterBlock) {
        self.report(device, offset, reason);
        self.may_act = false;
        self.proposal = None;
        self.begin(Goal::Halted);
    }

    /// Concludes rounds until one needs the disk, then hands out disk work.
    pub(super) fn advance(&mut self) {
        loop {
            let round = self.round;
            self.conclude();
            if self.round == round {
                break;
            }
        }
        self.issue_all();
    }

    fn has_majority(&self) -> bool {
        self.lanes.iter().filter(|lane| lane.progress.is_done).count() >= self.majority()
    }

    fn conclude(&mut self) {
        match self.goal {
            Goal::Survey if self.has_majority() => self.after_survey(),
            Goal::Record if self.has_majority() => self.after_record(),
            Goal::Fetch { digest, why, until_ms } => self.conclude_fetch(digest, why, until_ms),
            Goal::Enter { ballot, since_ms } | Goal::Accept { ballot, since_ms } => {
                self.conclude_phase(ballot, since_ms);
            }
            Goal::Wait { until_ms } if until_ms <= self.now_ms => self.begin(Goal::Survey),
            _ => {}
        }
    }

    /// Is the known view in the own record on a majority of devices?
    pub(super) fn is_recorded(&self) -> bool {
        self.known.is_some_and(|known| {
            let has = |lane: &&super::lane::Lane| !lane.is_away && lane.has_record(&self.config.me, known.view, &known.digest);
            self.lanes.iter().filter(has).count() >= self.majority()
        })
    }

    /// Ballots of others that this round's reads showed.
    fn ballots_read(&self) -> Vec<Ballot> {
        let done = self.lanes.iter().filter(|lane| lane.progress.is_done);
        done.filter_map(|lane| lane.progress.votes.as_ref()).flat_map(|table| &table.others).copied().collect()
    }

    /// The latest view that anybody, an own earlier life included, has a ballot for.
    fn latest_ballot(&self) -> ViewNumber {
        let others = self.ballots_read();
        let all = others.iter().chain(&self.restored).map(|ballot| ballot.view);
        all.max().unwrap_or_default().max(self.spoken.view)
    }

    fn after_survey(&mut self) {
        let mut best = Known { view: ViewNumber(0), digest: Digest::NONE };
        let mut is_split = false;
        for lane in self.lanes.iter().filter(|lane| lane.progress.is_done) {
            let Some(table) = &lane.progress.records else { continue };
            for record in table.own.iter().filter_map(|unit| unit.as_ref().ok()).chain(&table.others) {
                if record.view > best.view {
                    (best, is_split) = (Known { view: record.view, digest: record.digest }, false);
                } else if record.view == best.view && record.digest != best.digest {
                    is_split = true;
                }
            }
        }
        let known = self.known.filter(|known| known.view >= best.view);
        if is_split || known.is_some_and(|known| known.view == best.view && known.digest != best.digest) {
            return self.halt(0, self.lanes[0].layout.records, RegisterBlock::Disagreement);
        }
        let latest = self.latest_ballot();
        match known {
            Some(known) if latest > known.next() => {
                self.missing(self.lanes[0].layout.records, RegisterBlock::MissingRecord);
            }
            Some(known) => self.settle(known),
            None if best.view == ViewNumber(0) || self.values.contains_key(&best.digest) => self.learn(best),
            None => self.fetch(best.digest, Fetch::Learn(best.view)),
        }
    }

    fn fetch(&mut self, digest: Digest, why: Fetch) {
        self.begin(Goal::Fetch { digest, why, until_ms: self.now_ms + FETCH_MS_MAX });
    }

    fn conclude_fetch(&mut self, digest: Digest, why: Fetch, until_ms: u64) {
        if let Some(value) = self.values.get(&digest) {
            let view = ViewBody::decode_value(value).map(|body| body.view).ok();
            let next = self.known.map(|known| known.next());
            return match why {
                Fetch::Learn(wanted) if view == Some(wanted) => self.learn(Known { view: wanted, digest }),
                Fetch::Own if view == next => self.begin_attempt(),
                Fetch::Adopt { ballot, since_ms } if view == next => self.accept(ballot, since_ms, digest),
                Fetch::Learn(_) | Fetch::Own | Fetch::Adopt { .. } => {
                    self.values.remove(&digest);
                    self.missing(self.lanes[0].layout.bodies, RegisterBlock::MissingBody);
                }
            };
        }
        let is_reading = |lane: &super::lane::Lane| lane.outstanding.is_some_and(|op| op.round == self.round);
        let is_exhausted = self.lanes.iter().all(|lane| lane.progress.sources.is_empty() && !is_reading(lane));
        if is_exhausted || until_ms <= self.now_ms {
            self.missing(self.lanes[0].layout.bodies, RegisterBlock::MissingBody);
        }
    }

    /// Named and not there: its owner may have gone on meanwhile, so everything is read again, the first time at once.
    fn missing(&mut self, offset: ByteOffset, reason: RegisterBlock) {
        self.misses += 1;
        if self.misses == 1 {
            return self.begin(Goal::Survey);
        }
        self.report(0, offset, reason);
        self.begin(Goal::Wait { until_ms: self.now_ms + MISSING_PAUSE_MS });
    }

    /// This view is decided and its body is in memory.
    fn learn(&mut self, known: Known) {
        self.known = Some(known);
        self.may_act = false;
        self.misses = 0;
        self.reported.clear();
        self.drop_lost_proposal(known);
        self.forget_values();
        self.restored.retain(|ballot| ballot.view > known.view);
        #[cfg(any(test, feature = "planted"))]
        if self.has_mistake(Mistake::BallotBeforeRecord) {
            let value = self.values.get(&known.digest).and_then(|value| ViewBody::decode_value(value).ok());
            let (body, digest, later) = (value.unwrap_or_default(), known.digest, known.view);
            self.outputs.push_back(Output::Contested { body, digest, later });
            return self.begin(Goal::Idle);
        }
        self.begin(Goal::Record);
    }

    fn drop_lost_proposal(&mut self, known: Known) {
        let past = self.proposal.take_if(|proposal| proposal.view != known.next());
        if past.is_some_and(|proposal| proposal.digest != known.digest) {
            self.outputs.push_back(Output::ProposalLost { winner: known.view });
        }
    }

    fn forget_values(&mut self) {
        let known = self.known.map(|known| known.digest);
        let proposed = self.proposal.as_ref().map(|proposal| proposal.digest);
        let spoken = self.spoken.digest;
        self.values.retain(|digest, _| Some(*digest) == known || Some(*digest) == proposed || *digest == spoken);
    }

    /// The record stands on a majority and the table was read after that.
    fn after_record(&mut self) {
        let Some(known) = self.known else { return };
        let latest = self.latest_ballot();
        #[cfg(any(test, feature = "planted"))]
        let latest = if self.has_mistake(Mistake::ActWithoutScan) { known.view } else { latest };
        if latest > known.next() {
            return self.begin(Goal::Survey);
        }
        let value = self.values.get(&known.digest).map(|value| ViewBody::decode_value(value));
        let body = match value {
            Some(Ok(body)) => body,
            _ if known.view == ViewNumber(0) => ViewBody::default(),
            _ => return self.missing(self.lanes[0].layout.bodies, RegisterBlock::MissingBody),
        };
        self.may_act = latest <= known.view || self.announced == Some((known.view, true));
        let digest = known.digest;
        if self.announced.replace((known.view, self.may_act)) != Some((known.view, self.may_act)) {
            self.outputs.push_back(if self.may_act {
                Output::Learned { body, digest }
            } else {
                Output::Contested { body, digest, later: latest }
            });
        }
        self.settle(known);
    }

    /// Nothing newer is known: go on with the proposal, if there is one.
    fn settle(&mut self, known: Known) {
        self.drop_lost_proposal(known);
        // An own record was read back unreadable, or the scan after it ended without a verdict.
        let is_announced = self.announced.is_some_and(|(view, _)| view == known.view);
        if !self.is_recorded() || !is_announced {
            return self.begin(Goal::Record);
        }
        if self.proposal.is_some() {
            return self.begin_attempt();
        }
        self.misses = 0;
        self.begin(Goal::Idle);
    }

    /// Enters a ballot for the view after the known one, higher than any seen.
    fn begin_attempt(&mut self) {
        let Some(known) = self.known else { return };
        let view = known.next();
        if self.spoken.view != view {
            let own = self.restored.iter().filter(|ballot| ballot.view == view).max_by_key(|ballot| ballot.sequence);
            self.spoken = own.map_or(Spoken { view, entered: 0, accepted: 0, digest: Digest::NONE }, |ballot| Spoken {
                view,
                entered: ballot.entered,
                accepted: ballot.accepted,
                digest: ballot.digest,
            });
        }
        if self.spoken.accepted != 0 && !self.values.contains_key(&self.spoken.digest) {
            return self.fetch(self.spoken.digest, Fetch::Own);
        }
        self.attempts = self.attempts.saturating_add(1);
        self.ballot_round = self.ballot_round.saturating_add(1);
        let ballot = self.ballot_round.checked_mul(256).and_then(|number| number.checked_add(u64::from(self.me().0)));
        let Some(ballot) = ballot else {
            return self.halt(0, self.lanes[0].layout.votes, RegisterBlock::NumbersExhausted);
        };
        assert!(ballot > self.spoken.entered, "ballot numbers of a node only grow");
        self.spoken.entered = ballot;
        self.begin(Goal::Enter { ballot, since_ms: self.now_ms });
    }

    fn conclude_phase(&mut self, ballot: u64, since_ms: u64) {
        let view = self.spoken.view;
        let ballots = self.ballots_read();
        let latest = ballots.iter().chain(&self.restored).map(|seen| seen.view).max().unwrap_or_default();
        #[cfg(any(test, feature = "planted"))]
        let latest = if self.has_mistake(Mistake::LaterReadAsEmpty) { view } else { latest };
        if latest > view {
            // Decided without this node: there is a record of it.
            return self.begin(Goal::Survey);
        }
        let same = ballots.iter().chain(&self.restored).filter(|seen| seen.view == view);
        let highest = same.clone().map(|seen| seen.entered).max().unwrap_or_default();
        if highest > ballot {
            return self.contend(highest, since_ms);
        }
        if !self.has_majority() {
            return;
        }
        if let Goal::Accept { .. } = self.goal {
            return self.learn(Known { view, digest: self.spoken.digest });
        }
        let accepted = same.map(|seen| (seen.accepted, seen.digest)).chain([(self.spoken.accepted, self.spoken.digest)]);
        let mut accepted: Vec<_> = accepted.filter(|(number, _)| *number != 0).collect();
        accepted.sort_unstable();
        accepted.dedup();
        #[cfg(any(test, feature = "planted"))]
        if self.has_mistake(Mistake::OwnValueFirst) {
            accepted.clear();
        }
        if accepted.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return self.halt(0, self.lanes[0].layout.votes, RegisterBlock::Disagreement);
        }
        let proposed = self.proposal.as_ref().map(|proposal| proposal.digest);
        match accepted.last().map(|(_, digest)| *digest).or(proposed) {
            None => self.begin(Goal::Survey),
            Some(digest) if self.values.contains_key(&digest) => self.accept(ballot, since_ms, digest),
            Some(digest) => self.fetch(digest, Fetch::Adopt { ballot, since_ms }),
        }
    }

    fn accept(&mut self, ballot: u64, since_ms: u64, digest: Digest) {
        self.misses = 0;
        self.spoken.accepted = ballot;
        self.spoken.digest = digest;
        #[cfg(any(test, feature = "planted"))]
        if self.has_mistake(Mistake::RecordBeforeDecided) {
            return self.learn(Known { view: self.spoken.view, digest });
        }
        self.begin(Goal::Accept { ballot, since_ms });
    }

    /// Somebody entered a higher ballot: let it finish, each contender waiting another time, in lengths of an attempt.
    fn contend(&mut self, highest: u64, since_ms: u64) {
        self.ballot_round = self.ballot_round.max(highest / 256);
        let length_ms = (self.now_ms - since_ms).clamp(1, MISSING_PAUSE_MS);
        let slots = (1 << self.attempts.min(4)).min(BACK_OFF_SLOTS_MAX);
        let draw = mix(self.config.seed ^ mix(u64::from(self.me().0) ^ (self.spoken.view.0 << 16) ^ highest));
        self.begin(Goal::Wait { until_ms: self.now_ms + length_ms * (1 + draw % slots) });
    }
}
