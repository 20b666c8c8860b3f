//! What: how this life lives beyond its own beat: it asks for vouches and freezes, and consents to those of others.
//! Owns: its questions and requests, the consents that it holds, its own last consent.
//! Invariants: a question is asked under the lease of an own cycle or a vouch, never under a freeze, and once per such lease; F counts
//!   from its issue, L from a request's; a consent answers one question and binds its giver, towards who asked, from the instant at which
//!   it is given.
//! Does not: vouch for others (see `vouching`), end a lease (sbd does).
//! Called by: the membership machine.

use super::{Membership, Output, Role};
use crate::hello::Beyond as Message;
use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};
use deadbolt_disk_format::span::expiry_ms;
use deadbolt_disk_format::{Life, SlotIndex, ViewNumber};

/// What keeps a life alive, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ground {
    /// Its own cycles.
    Own,
    /// A member's vouch.
    Vouch,
    /// A freeze.
    Freeze,
    /// Nothing.
    None,
}

#[derive(Debug, Default)]
pub(crate) struct Beyond {
    /// Of the newest question or request: never the same in two lives of a node.
    serial: u32,
    question: Option<Question>,
    /// When this life consented last, by who had asked.
    consents: BTreeMap<Life, u64>,
    /// The newest question of each other, while it is not answered.
    unanswered: BTreeMap<SlotIndex, (Life, ViewNumber, u32)>,
    /// Requests for a vouch that may still be granted: serial and issue.
    requests: VecDeque<(u32, u64)>,
    requested_ms: Option<u64>,
    /// Who granted last, and the issue of that request.
    voucher: Option<(Life, u64)>,
    vouched_until_ms: u64,
    frozen_until_ms: u64,
    said: (u64, u64),
}

#[derive(Debug)]
struct Question {
    serial: u32,
    view: ViewNumber,
    issued_ms: u64,
    /// End of the lease under which it was asked.
    ground_end_ms: u64,
    held: BTreeSet<Life>,
    is_answered: bool,
}

impl Beyond {
    pub(crate) fn new(first_serial: u32) -> Self {
        Self { serial: first_serial, ..Self::default() }
    }

    fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    /// Questions and consents name the view; a freeze that has begun goes on.
    pub(crate) fn handle_view(&mut self) {
        self.question = None;
        self.unanswered.clear();
    }
}

impl Membership {
    /// How old a lease must be before its ground counts as lost: well before it ends, and later than any ordinary cycle.
    fn lost_ms(&self) -> u64 {
        let timings = self.timings();
        u64::from(timings.stall_ms / 2).max(2 * u64::from(timings.poll_ms))
    }

    /// Was a lease that ends then renewed so long ago that its ground counts as lost?
    fn is_stale(&self, end_ms: u64) -> bool {
        self.now_ms + u64::from(self.timings().lease_ms) >= end_ms + self.lost_ms()
    }

    /// The own path carries cycles.
    pub(crate) fn has_own_path(&self) -> bool {
        !self.is_stale(self.own_end_ms)
    }

    /// End of the lease under which a question may be asked: of an own cycle, or of a vouch.
    fn ground_end_ms(&self) -> u64 {
        let by_vouch_ms = self.beyond.vouched_until_ms.min(self.lease_end_ms);
        self.own_end_ms.max(by_vouch_ms)
    }

    /// The ground is lost, and its lease still runs: the time to ask, and to consent.
    fn is_losing_ground(&self) -> bool {
        let end_ms = self.ground_end_ms();
        self.now_ms < end_ms && self.is_stale(end_ms)
    }

    fn freeze_ms(&self) -> u64 {
        u64::from(self.timings().freeze_ms)
    }

    /// Every other member of the view, if this life is one, and be it about to leave.
    fn other_members(&self) -> Option<Vec<Life>> {
        let me = self.setup.me;
        let members = &self.known.body.members;
        let is_in = self.role != Role::Left && members.contains(&me);
        is_in.then(|| members.iter().copied().filter(|life| *life != me).collect())
    }

    fn hears_all(&self, others: &[Life]) -> bool {
        let hears = self.hears();
        others.iter().all(|life| hears.contains(life.slot))
    }

    /// Whatever a poll brings: requests, questions, consents that have become possible.
    pub(crate) fn follow_beyond(&mut self) {
        if self.now_ms >= self.lease_end_ms {
            return;
        }
        self.consent();
        let Some(others) = self.other_members() else { return };
        self.request_vouches(&others);
        if self.has_own_path() {
            // What was asked meanwhile gives nothing any more.
            self.beyond.question = None;
        } else if self.freeze_ms() > 0 && self.hears_all(&others) {
            self.ask(&others);
        }
        self.say_extension();
    }

    fn ask(&mut self, others: &[Life]) {
        let ground_end_ms = self.ground_end_ms();
        if !self.is_losing_ground() {
            return;
        }
        let (now_ms, view) = (self.now_ms, self.known.body.view);
        let patience_ms = u64::from(self.timings().detect_ms);
        let has_asked = |question: &Question| {
            question.ground_end_ms == ground_end_ms && (question.is_answered || now_ms < question.issued_ms + patience_ms)
        };
        if self.beyond.question.as_ref().is_some_and(has_asked) {
            return;
        }
        let serial = self.beyond.next_serial();
        self.beyond.question = Some(Question { serial, view, issued_ms: now_ms, ground_end_ms, held: BTreeSet::new(), is_answered: false });
        for other in others {
            self.outputs.push_back(Output::Tell { peer: *other, message: Message::AskFreeze { view, serial } });
        }
        self.begin_freeze();
    }

    pub(crate) fn handle_question(&mut self, from: Life, view: ViewNumber, serial: u32) {
        self.beyond.unanswered.insert(from.slot, (from, view, serial));
        self.consent();
    }

    /// Answers what was asked, as soon as this life has lost its ground, too. Until then its disk can keep the others alive.
    fn consent(&mut self) {
        let (freeze_ms, now_ms) = (self.freeze_ms(), self.now_ms);
        if self.beyond.unanswered.is_empty() || !self.is_losing_ground() || freeze_ms == 0 {
            return;
        }
        let present = &self.known.body;
        let is_whole = self.other_members().is_some_and(|others| self.hears_all(&others));
        // Who has not learned the view that is named cannot say who is in it; the other can, and a consent binds nobody but its giver.
        let is_due =
            |life: &Life, view: ViewNumber| view > present.view || (view == present.view && is_whole && present.members.contains(life));
        let asked = self.beyond.unanswered.values().filter(|(life, view, _)| is_due(life, *view));
        let due: Vec<(Life, u32)> = asked.map(|(life, _, serial)| (*life, *serial)).collect();
        self.beyond.consents.retain(|_, at_ms| now_ms <= *at_ms + 2 * freeze_ms);
        for (life, serial) in due {
            self.beyond.unanswered.remove(&life.slot);
            if self.beyond.consents.insert(life, now_ms).is_none() {
                self.outputs.push_back(Output::Journal(alloc::format!("consents to a freeze of node {}", self.name_of(life.slot))));
            }
            self.outputs.push_back(Output::Tell { peer: life, message: Message::Consent { serial } });
        }
    }

    pub(crate) fn handle_consent(&mut self, from: Life, serial: u32) {
        let Some(question) = self.beyond.question.as_mut().filter(|question| question.serial == serial) else { return };
        question.held.insert(from);
        self.begin_freeze();
        self.say_extension();
    }

    /// The freeze begins when every consent is held.
    fn begin_freeze(&mut self) {
        let (Some(others), freeze_ms) = (self.other_members(), self.freeze_ms()) else { return };
        let Some(question) = self.beyond.question.as_mut().filter(|question| !question.is_answered) else { return };
        if question.view != self.known.body.view || !others.iter().all(|life| question.held.contains(life)) {
            return;
        }
        question.is_answered = true;
        let until_ms = question.issued_ms + freeze_ms;
        self.beyond.frozen_until_ms = self.beyond.frozen_until_ms.max(until_ms);
        let left_ms = until_ms.saturating_sub(self.now_ms);
        self.outputs.push_back(Output::Journal(alloc::format!(
            "the disk is lost for every member of view {}: frozen, for {left_ms} ms at most",
            self.known.body.view
        )));
    }

    /// Until when an observer may take no silence of a life for its end, since this one consents to its freezes.
    pub(crate) fn bound_until_ms(&self, life: &Life) -> u64 {
        #[cfg(feature = "planted")]
        if self.has_mistake(super::planted::Mistake::ConsentForgotten) {
            return 0;
        }
        let timings = self.timings();
        self.beyond.consents.get(life).map_or(0, |at_ms| at_ms + expiry_ms(timings.freeze_ms, timings.drift_ppm))
    }

    /// How long a freeze that this life has asked for may still last, for those who were not asked. A question that was given up counts no
    /// more: no consent to it does.
    pub(crate) fn freeze_left_ms(&self) -> u32 {
        let asked = self.beyond.question.as_ref().filter(|question| !question.is_answered);
        let asked_ms = asked.map_or(0, |question| question.issued_ms + self.freeze_ms());
        let end_ms = self.beyond.frozen_until_ms.max(asked_ms);
        u32::try_from(end_ms.saturating_sub(self.now_ms)).unwrap_or(u32::MAX)
    }

    // Vouches, on the side of who needs one.

    fn request_vouches(&mut self, others: &[Life]) {
        let now_ms = self.now_ms;
        let poll_ms = u64::from(self.timings().poll_ms);
        let is_due = self.beyond.requested_ms.is_none_or(|at_ms| now_ms >= at_ms + poll_ms);
        if !self.is_stale(self.own_end_ms) || !is_due {
            return;
        }
        let serial = self.beyond.next_serial();
        self.beyond.requested_ms = Some(now_ms);
        let lease_ms = u64::from(self.timings().lease_ms);
        self.beyond.requests.push_back((serial, now_ms));
        self.beyond.requests.retain(|(_, at_ms)| now_ms < at_ms + lease_ms);
        let lost_ms = self.lost_ms();
        let voucher = self.beyond.voucher.filter(|(life, at_ms)| now_ms < at_ms + lost_ms && others.contains(life));
        for other in others {
            if voucher.is_none_or(|(life, _)| life == *other) {
                self.outputs.push_back(Output::Tell { peer: *other, message: Message::AskVouch { serial } });
            }
        }
    }

    /// A grant names the request that it answers; L counts from the issue of that one.
    pub(crate) fn handle_grant(&mut self, from: Life, serial: u32) {
        let Some((_, at_ms)) = self.beyond.requests.iter().copied().find(|(asked, _)| *asked == serial) else { return };
        let until_ms = at_ms + u64::from(self.timings().lease_ms);
        let is_other = |(life, before_ms): (Life, u64)| life != from && self.now_ms >= before_ms + self.lost_ms();
        if self.now_ms >= self.beyond.vouched_until_ms || self.beyond.voucher.is_none_or(is_other) {
            let text = alloc::format!("no path to the disk: lives on the vouch of node {}", self.name_of(from.slot));
            self.outputs.push_back(Output::Journal(text));
        }
        self.beyond.voucher = Some((from, at_ms));
        self.beyond.vouched_until_ms = self.beyond.vouched_until_ms.max(until_ms);
        self.say_extension();
    }

    /// Leaves to sbd what is new.
    fn say_extension(&mut self) {
        let (vouched_until_ms, frozen_until_ms) = (self.beyond.vouched_until_ms, self.beyond.frozen_until_ms);
        if self.beyond.said != (vouched_until_ms, frozen_until_ms) {
            self.beyond.said = (vouched_until_ms, frozen_until_ms);
            self.outputs.push_back(Output::Extend { vouched_until_ms, frozen_until_ms });
        }
    }

    /// What this life lives on.
    pub(crate) fn ground(&self, now_ms: u64) -> Ground {
        match () {
            () if now_ms >= self.lease_end_ms => Ground::None,
            () if now_ms < self.own_end_ms => Ground::Own,
            () if now_ms < self.beyond.vouched_until_ms => Ground::Vouch,
            () => Ground::Freeze,
        }
    }
}
