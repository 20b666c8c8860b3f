//! What: the value that this node puts to the register, and when.
//! Owns: settling, staggering, back-off; the making of the next view's body.
//! Invariants: every life that leaves the members is owed or released with its evidence; every owed life stays until released; the
//!   configuration changes only by a view that satisfies the old and the new quorum.
//! Does not: decide; two nodes may put different values, the register settles it.
//! Called by: the membership machine.

use super::{Choice, Membership, Output, Role, quorum, total_votes};
use crate::{hello::Hello, timing::FAST_POLL_MS};
use alloc::{
    collections::{BTreeMap, VecDeque},
    format,
    string::String,
    vec::Vec,
};
use deadbolt_disk_format::span::expiry_ms;
use deadbolt_disk_format::{Configuration, Life, Owed, Released, SlotIndex, Timings, ViewBody, ViewNumber, ViewReason};

/// Views that may follow each other within [`CHURN_WINDOW_MS`] before proposals are held back.
const CHURN_FREE: usize = 10;
/// See [`CHURN_FREE`]; chosen, no strong reason.
const CHURN_WINDOW_MS: u64 = 10_000;

/// A hello within so many polls shows that a member is still there. Chosen: two may be lost, and it is half of the detection time at most.
const HEARD_POLLS: u64 = 3;

/// What is being proposed, and since when it has been wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proposals {
    is_in_flight: bool,
    wanted: Option<Wanted>,
    /// Lives this life has been in a view with, from the first such view on.
    companions: BTreeMap<Life, Companion>,
    recent_views_ms: VecDeque<u64>,
}

/// Since when a life and this one are in views together.
#[derive(Clone, Copy, Debug)]
struct Companion {
    view: ViewNumber,
    /// From when on no freeze of an earlier view, to which this life was not asked to consent, can last; none: not known yet.
    unfrozen_ms: Option<u64>,
}

/// A membership that differs from the present one.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Wanted {
    members: Vec<Life>,
    since_ms: u64,
}

impl Proposals {
    pub(crate) fn handle_ended(&mut self) {
        self.is_in_flight = false;
    }

    pub(crate) fn handle_view(&mut self, body: &ViewBody, before: &ViewBody, is_member: bool, now_ms: u64) {
        self.is_in_flight = false;
        self.wanted = None;
        if is_member {
            // Whom this view lets in can have asked nobody before. Who was there already, or was removed and goes on, has to say what it
            // asked the others.
            let is_next = body.view.0 == before.view.0 + 1;
            for life in &body.members {
                let is_new = is_next && !before.names(life.slot, life.incarnation);
                let unfrozen_ms = is_new.then_some(0);
                self.companions.entry(*life).or_insert(Companion { view: body.view, unfrozen_ms });
            }
        } else {
            self.companions.clear();
        }
        self.recent_views_ms.push_back(now_ms);
        while self.recent_views_ms.front().is_some_and(|at| now_ms.saturating_sub(*at) > CHURN_WINDOW_MS) {
            self.recent_views_ms.pop_front();
        }
    }

    /// A life says, in a view with this one, how long what it asked for before may last. Each word is true by itself: the shortest counts.
    pub(crate) fn handle_hello(&mut self, hello: &Hello, now_ms: u64, timings: &Timings) {
        let Some(companion) = self.companions.get_mut(&hello.life) else { return };
        if hello.view >= companion.view {
            let left_ms = if hello.freeze_left_ms == 0 { 0 } else { expiry_ms(hello.freeze_left_ms, timings.drift_ppm) };
            let end_ms = now_ms + left_ms;
            companion.unfrozen_ms = Some(companion.unfrozen_ms.map_or(end_ms, |known_ms| known_ms.min(end_ms)));
        }
    }

    /// From when on a life that was with this one can live on no freeze that this one did not consent to; none: not known.
    pub(crate) fn unfrozen_ms(&self, life: &Life) -> Option<u64> {
        self.companions.get(life)?.unfrozen_ms
    }

    /// How long the wanted members have been the same.
    fn settled_ms(&mut self, members: Vec<Life>, now_ms: u64) -> u64 {
        match &self.wanted {
            Some(wanted) if wanted.members == members => now_ms.saturating_sub(wanted.since_ms),
            _ => {
                self.wanted = Some(Wanted { members, since_ms: now_ms });
                0
            }
        }
    }

    /// Doubles with every view beyond the free ones.
    fn back_off_ms(&self, poll_ms: u64) -> u64 {
        let over = self.recent_views_ms.len().saturating_sub(CHURN_FREE).min(6);
        if over == 0 { 0 } else { poll_ms << over }
    }
}

impl Membership {
    /// Proposes the next view if this node may and something has to change; fences what is owed.
    pub(crate) fn consider(&mut self, now_ms: u64) {
        if self.role == Role::Condemned {
            self.condemn(now_ms);
        }
        if self.role == Role::Member && self.known.may_act {
            self.fence_owed(now_ms);
        }
        self.fence_by_command(now_ms);
        // Who lives on a vouch or a freeze proposes nothing.
        if self.proposal.is_in_flight || now_ms >= self.own_end_ms {
            return;
        }
        let body = if self.is_restart() { self.restart_body(now_ms) } else { self.next_body(now_ms) };
        if let Some(body) = body {
            self.proposal.is_in_flight = true;
            self.outputs.push_back(Output::Propose(body));
        }
    }

    fn poll_ms(&self) -> u64 {
        u64::from(self.timings().poll_ms)
    }

    /// How long the wanted members have to be the same: two polls as they are made meanwhile, quick ones while somebody is missing.
    fn settle_ms(&self, wanted: &[Life]) -> u64 {
        let is_anybody_missing = self.known.body.members.iter().any(|life| !wanted.contains(life));
        2 * if is_anybody_missing { self.poll_ms().min(FAST_POLL_MS) } else { self.poll_ms() }
    }

    /// Is nobody among these who may have gone silent with the one that is missing already? A cut ends several edges at once, but each is
    /// seen to be gone a detection time after its last hello, up to some polls apart.
    fn is_sure_of(&self, wanted: &[Life]) -> bool {
        let lately_ms = HEARD_POLLS * self.poll_ms();
        let is_fresh = |life: &Life| {
            self.heard
                .get(&life.slot)
                .is_some_and(|heard| heard.hello.life == *life && self.now_ms.saturating_sub(heard.at_ms) <= lately_ms)
        };
        wanted.iter().all(|life| *life == self.setup.me || is_fresh(life))
    }

    /// Takes out of a choice who has to show first that it stays; not where the members have no quorum without it.
    fn hold_back(&mut self, choice: &mut Choice, now_ms: u64) {
        let configuration = &self.known.body.configuration;
        let members = configuration.nodes.iter().filter(|node| choice.members.contains(node.slot));
        let votes = members.fold(configuration.disk_votes, |sum, node| sum.saturating_add(node.votes));
        if votes < quorum(configuration) {
            return;
        }
        for held in self.returns.held_back(&choice.joiners, now_ms) {
            choice.joiners.remove(held.slot);
            if held.is_new {
                self.outputs.push_back(Output::Journal(format!(
                    "node {} was removed {} times of late: it is let in after {} ms without a gap",
                    self.name_of(held.slot),
                    held.removals,
                    held.wait_ms
                )));
            }
        }
    }

    /// A member's proposal.
    fn next_body(&mut self, now_ms: u64) -> Option<ViewBody> {
        let (mut choice, lives) = self.choose()?;
        self.hold_back(&mut choice, now_ms);
        if !choice.members.contains(self.setup.me.slot) {
            self.proposal.wanted = None;
            return None;
        }
        let wanted = chosen(&choice, &lives);
        let present = self.known.body.members.clone();
        // A member that left by its own word needs no settling: it will not come back.
        let without_left: Vec<Life> =
            present.iter().filter(|life| self.evidence_of(life, now_ms).is_none() || wanted.contains(life)).copied().collect();
        let settled_ms = self.proposal.settled_ms(wanted.clone(), now_ms);
        let wait_ms = self.settle_ms(&wanted) + self.proposal.back_off_ms(self.poll_ms());
        let is_settled = settled_ms >= wait_ms && self.is_sure_of(&wanted);
        let members = if wanted == present || is_settled { wanted } else { without_left };
        let body = self.body_with(members, now_ms)?;
        let rank = body.members.iter().filter(|life| present.contains(life)).position(|life| *life == self.setup.me)?;
        let stagger_ms = u64::try_from(rank).unwrap_or(u64::MAX) * 2 * self.poll_ms();
        (settled_ms >= stagger_ms).then_some(body)
    }

    /// The proposal of a node outside the view, once every member is proved gone or left.
    fn restart_body(&mut self, now_ms: u64) -> Option<ViewBody> {
        if self.known.body.view == ViewNumber(0) {
            return self.initial_body();
        }
        let members = self.known.body.members.clone();
        let is_gone = |life: &Life| self.evidence_of(life, now_ms).is_some();
        if !members.iter().all(is_gone) {
            return None;
        }
        let (choice, lives) = self.choose()?;
        if !choice.members.contains(self.setup.me.slot) {
            return None;
        }
        let chosen = chosen(&choice, &lives);
        let rank = chosen.iter().position(|life| *life == self.setup.me)?;
        let settled_ms = self.proposal.settled_ms(chosen.clone(), now_ms);
        let wait_ms = 2 * self.poll_ms() * (1 + u64::try_from(rank).unwrap_or(u64::MAX)) + self.proposal.back_off_ms(self.poll_ms());
        if settled_ms < wait_ms { None } else { self.body_with(chosen, now_ms) }
    }

    fn initial_body(&self) -> Option<ViewBody> {
        let configuration = self.setup.initial.clone()?;
        Some(ViewBody {
            view: ViewNumber(1),
            predecessor: self.known.digest,
            proposer: Some(self.setup.me),
            reason: ViewReason::Initial,
            members: alloc::vec![self.setup.me],
            owed: Vec::new(),
            released: Vec::new(),
            configuration,
        })
    }

    /// The successor of the known view with these members; none when it would say nothing new.
    fn body_with(&self, members: Vec<Life>, now_ms: u64) -> Option<ViewBody> {
        let present = &self.known.body;
        let view = ViewNumber(present.view.0 + 1);
        let mut owed: Vec<Owed> = Vec::new();
        let mut released: Vec<Released> = Vec::new();
        let removed = present.members.iter().filter(|life| !members.contains(life)).map(|life| Owed { life: *life, removed_in: view });
        // A condemned life that goes on (all who removed it are gone) is owed no more: it lives in the new view.
        let still_owed = present.owed.iter().filter(|owed| !members.contains(&owed.life)).copied();
        for entry in still_owed.chain(removed) {
            match self.evidence_of(&entry.life, now_ms) {
                Some(evidence) => released.push(Released {
                    life: entry.life,
                    evidence,
                    waited_ms: u32::try_from(now_ms.saturating_sub(self.known.since_ms)).unwrap_or(u32::MAX),
                    witness: self.setup.me.slot,
                }),
                None => owed.push(entry),
            }
        }
        #[cfg(feature = "planted")]
        if self.has_mistake(super::planted::Mistake::OwedForgotten) {
            owed.retain(|entry| entry.removed_in == view);
        }
        owed.sort_by_key(|entry| (entry.life.slot, entry.removed_in));
        released.sort_by_key(|entry| entry.life.slot);
        let configuration = self.next_configuration(&members, &owed);
        let is_changed = !self.known.may_act
            || members != present.members
            || !released.is_empty()
            || configuration.version != present.configuration.version;
        let reason = self.reason(&members, &owed, &configuration);
        is_changed.then_some(ViewBody {
            view,
            predecessor: self.known.digest,
            proposer: Some(self.setup.me),
            reason,
            members,
            owed,
            released,
            configuration,
        })
    }

    fn reason(&self, members: &[Life], owed: &[Owed], configuration: &Configuration) -> ViewReason {
        let present = &self.known.body;
        if self.is_restart() {
            ViewReason::Restart
        } else if owed.iter().any(|entry| entry.removed_in.0 > present.view.0) {
            ViewReason::Remove
        } else if present.members.iter().any(|life| !members.contains(life)) {
            ViewReason::Leave
        } else if members.iter().any(|life| !present.members.contains(life)) {
            ViewReason::Join
        } else if configuration.version != present.configuration.version {
            ViewReason::Configure
        } else {
            ViewReason::Release
        }
    }
}

fn chosen(choice: &Choice, lives: &BTreeMap<SlotIndex, Life>) -> Vec<Life> {
    lives.iter().filter(|(slot, _)| choice.members.contains(**slot) || choice.joiners.contains(**slot)).map(|(_, life)| *life).collect()
}

/// One line about a view, for the journal and the log.
pub(crate) fn describe(body: &ViewBody) -> String {
    let names: Vec<String> = body.members.iter().map(|life| name_in(body, life.slot)).collect();
    let names = if names.is_empty() { String::from("none") } else { names.join(" ") };
    let mut text = format!("view {} ({}): members {names}", body.view, body.reason.word());
    for owed in &body.owed {
        text.push_str(&format!(", owed {} since view {}", name_in(body, owed.life.slot), owed.removed_in));
    }
    for released in &body.released {
        text.push_str(&format!(", {} gone: {}", name_in(body, released.life.slot), released.evidence.word()));
    }
    text.push_str(&format!("; {} votes, quorum {}", total_votes(&body.configuration), quorum(&body.configuration)));
    text
}

fn name_in(body: &ViewBody, slot: SlotIndex) -> String {
    body.configuration.nodes.iter().find(|node| node.slot == slot).map_or_else(|| format!("slot {slot}"), |node| node.name.clone())
}
