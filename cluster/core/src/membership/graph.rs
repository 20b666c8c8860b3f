//! What: who hears whom, as this node can know it from hellos and beats.
//! Owns: the edges, the question put to the arbiter, whether this node may act as part of a quorum.
//! Invariants: an edge needs both directions, of members whom no read has shown silent, of others fresh beats; a life that is not the
//! view's own has no member edge.
//! Does not: rank cliques (the arbiter does), propose.
//! Called by: the membership machine.

use super::{Membership, Output, OwnStanding, Role};
use alloc::{collections::BTreeMap, vec::Vec};
use deadbolt_disk_format::{Beat, Life, NodeState, SlotIndex, SlotSet};

/// One node of the graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArbitrationNode {
    /// Its place.
    pub slot: SlotIndex,
    /// In the present view with this life? (False for those who want in.)
    pub is_member: bool,
    /// Heuristics score, in steps and settled.
    pub score: u8,
    /// The administrator's order: 1 is best, 0 is none.
    pub preference: u8,
}

/// The question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArbitrationInput {
    /// Members whom no read has shown silent, joiners with fresh beats; ascending by slot.
    pub nodes: Vec<ArbitrationNode>,
    /// Who hears whom both ways; symmetric.
    pub edges: BTreeMap<SlotIndex, SlotSet>,
    /// Votes of every configured node, present or not.
    pub configured_votes: BTreeMap<SlotIndex, u16>,
    /// Votes of the disk.
    pub disk_votes: u16,
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Choice {
    /// Members of the present view that go on.
    pub members: SlotSet,
    /// Who is let in besides.
    pub joiners: SlotSet,
}

/// Chooses the clique that goes on; none when no eligible one exists. The same question has the same answer.
pub type Arbiter = fn(&ArbitrationInput) -> Option<Choice>;

impl Membership {
    /// Slots heard on the network within the detection time: by hellos, and by a stream with the same life that stands. Where only one
    /// of the two passes, nothing that needs the other could go on.
    pub(crate) fn hears(&self) -> SlotSet {
        self.heard.keys().copied().filter(|slot| self.does_hear(*slot)).collect()
    }

    fn does_hear(&self, slot: SlotIndex) -> bool {
        let Some(heard) = self.heard.get(&slot).filter(|heard| self.is_heard(heard.at_ms)) else { return false };
        match self.linked.get(&heard.hello.life) {
            Some(None) => true,
            Some(Some(lost_ms)) => self.is_heard(*lost_ms),
            None => false,
        }
    }

    fn is_heard(&self, at_ms: u64) -> bool {
        self.now_ms.saturating_sub(at_ms) <= u64::from(self.timings().detect_ms)
    }

    /// Does nothing that was read say that this member of the view does not go on? Silence is what reads have shown, not what they have
    /// not: a node whose reads are late knows nothing against anybody.
    fn seems_alive(&self, member: &Life) -> bool {
        if *member == self.setup.me {
            return self.now_ms < self.lease_end_ms;
        }
        let Some(watched) = self.observer.watched(member.slot) else {
            return true;
        };
        let window_ms = u64::from(self.timings().lease_ms);
        let named_ms = self.named_ms(member);
        match &watched.beat {
            Some(beat) if beat.life() == *member => {
                let is_silent = self.observer.is_silent_for(member.slot, 0, window_ms)
                    || watched.looked_ms >= watched.daemon_changed_ms.saturating_add(window_ms);
                can_act(beat) && (!is_silent || self.may_be_frozen(member))
            }
            // Another life in its place counts where the read is newer than the member's name.
            Some(_) if watched.shown_ms >= named_ms => false,
            _ => !self.observer.is_silent_for(member.slot, named_ms, window_ms),
        }
    }

    /// This node consented to a freeze that may still last, and hears the member: its path is only not back yet.
    fn may_be_frozen(&self, member: &Life) -> bool {
        let is_it = self.heard.get(&member.slot).is_some_and(|heard| heard.hello.life == *member);
        is_it && self.now_ms < self.bound_until_ms(member) && self.does_hear(member.slot)
    }

    /// The life that the newest beat in a slot shows, if the beat and its daemon part are fresh.
    pub(crate) fn fresh_life(&self, slot: SlotIndex) -> Option<Life> {
        if slot == self.setup.me.slot {
            return (self.now_ms < self.lease_end_ms).then_some(self.setup.me);
        }
        let watched = self.observer.watched(slot)?;
        let beat = watched.beat.as_ref()?;
        let now_ms = self.now_ms;
        let window_ms = u64::from(self.timings().lease_ms);
        let is_fresh = watched.age_ms(now_ms) <= window_ms && now_ms.saturating_sub(watched.daemon_changed_ms) <= window_ms;
        (is_fresh && can_act(beat)).then(|| beat.life())
    }

    /// State that the newest beat or hello of this life shows.
    fn state_of(&self, life: &Life) -> Option<NodeState> {
        if *life == self.setup.me {
            return Some(match self.role {
                Role::Member => NodeState::Member,
                Role::Joining => NodeState::Joining,
                Role::Leaving | Role::Recording { .. } | Role::Left => NodeState::Left,
                Role::Condemned => NodeState::Condemned,
            });
        }
        let on_disk = self.beat_of(life).map(|beat| beat.daemon.state);
        let said = self.heard.get(&life.slot).filter(|heard| heard.hello.life == *life && self.is_heard(heard.at_ms));
        match (on_disk, said) {
            (Some(NodeState::Left | NodeState::Condemned), _) => on_disk,
            (_, Some(heard)) => Some(heard.hello.state),
            _ => on_disk,
        }
    }

    fn hears_of(&self, life: &Life) -> SlotSet {
        if *life == self.setup.me {
            return self.hears();
        }
        if let Some(heard) = self.heard.get(&life.slot)
            && heard.hello.life == *life
            && self.is_heard(heard.at_ms)
        {
            return heard.hello.hears;
        }
        self.beat_of(life).map_or_else(SlotSet::default, |beat| beat.daemon.hears)
    }

    /// The newest beat, if this life wrote it.
    pub(crate) fn beat_of(&self, life: &Life) -> Option<&Beat> {
        self.observer.watched(life.slot)?.beat.as_ref().filter(|beat| beat.life() == *life)
    }

    /// What a life says of itself; of others by the newest beat. None: nothing was read of it.
    pub(crate) fn said_by(&self, life: &Life) -> Option<OwnStanding> {
        if *life == self.setup.me {
            return Some(self.standing);
        }
        self.beat_of(life).map(|beat| OwnStanding { score: beat.daemon.score, preference: beat.daemon.preference })
    }

    /// Takes every configured node's word of how it fares.
    pub(crate) fn take_scores(&mut self, now_ms: u64) {
        let poll_ms = u64::from(self.timings().poll_ms);
        let nodes = &self.known.body.configuration.nodes;
        let lives = nodes.iter().filter_map(|node| self.fresh_life(node.slot));
        let said: Vec<(Life, OwnStanding)> = lives.filter_map(|life| Some((life, self.said_by(&life)?))).collect();
        for (life, said) in said {
            self.scores.handle(life.slot, life.incarnation, said.score, (now_ms, poll_ms));
        }
    }

    /// Lives that carry the next view: members whom no read has shown silent or another life in their place, and those with fresh beats
    /// who ask to be let in. The latter's votes count also where an earlier life of them has to be released first; else a member that lost too many others could never release
    /// them, though all of them have come back.
    fn candidates(&self) -> Vec<(Life, bool)> {
        let body = &self.known.body;
        let mut candidates = Vec::new();
        for node in &body.configuration.nodes {
            let member = body.members.iter().find(|life| life.slot == node.slot && !self.is_restart() && self.seems_alive(life));
            let Some(life) = member.copied().or_else(|| self.fresh_life(node.slot)) else {
                continue;
            };
            let is_member = body.members.contains(&life);
            let state = self.state_of(&life);
            // A member whose state on disk is still `Joining` has not read the view that let it in yet; nothing may have been read of it.
            let is_willing = match state {
                Some(NodeState::Member | NodeState::Joining) => !self.forced.contains(&life),
                Some(NodeState::None | NodeState::Left | NodeState::Condemned) => false,
                None => is_member && !self.forced.contains(&life),
            };
            if is_willing && (is_member || !self.is_restart() || self.may_be_let_in(&life)) {
                candidates.push((life, is_member));
            }
        }
        candidates
    }

    /// No life is let in while an earlier life of its node is in the view or owed, or while anybody still recovers from its end. In a
    /// restart the same view releases what is proved gone, and no member is left whose share would have to be rebuilt.
    fn may_be_let_in(&self, life: &Life) -> bool {
        let body = &self.known.body;
        let mut owed = body.owed.iter().filter(|owed| owed.life.slot == life.slot && owed.life != *life);
        if self.is_restart() {
            return owed.all(|owed| self.evidence_of(&owed.life, self.now_ms).is_some());
        }
        owed.next().is_none() && !body.members.iter().any(|member| member.slot == life.slot) && self.is_recovered_everywhere()
    }

    /// Every member has finished recovery in the present view.
    fn is_recovered_everywhere(&self) -> bool {
        let view = self.known.body.view;
        self.known.body.members.iter().all(|member| {
            if *member == self.setup.me {
                return self.recovered >= view;
            }
            self.heard.get(&member.slot).is_some_and(|heard| heard.hello.life == *member && heard.hello.recovered >= view)
        })
    }

    /// This life is not in the view and may only propose once everybody in it is gone.
    pub(crate) fn is_restart(&self) -> bool {
        !self.known.body.members.contains(&self.setup.me)
    }

    /// Asks the arbiter who goes on, with the lives behind the answer.
    pub(crate) fn choose(&mut self) -> Option<(Choice, BTreeMap<SlotIndex, Life>)> {
        let candidates = self.candidates();
        let lives: BTreeMap<SlotIndex, Life> = candidates.iter().map(|(life, _)| (life.slot, *life)).collect();
        let mut choice = self.arbitrate(self.arbitration(&candidates))?;
        for (slot, life) in &lives {
            if choice.joiners.contains(*slot) && !self.may_be_let_in(life) {
                choice.joiners.remove(*slot);
            }
        }
        Some((choice, lives))
    }

    /// Nothing is asked twice in a row: while nothing happens, every poll has the same question.
    fn arbitrate(&mut self, question: ArbitrationInput) -> Option<Choice> {
        match &self.arbitrated {
            Some((asked, answer)) if *asked == question => *answer,
            _ => {
                let answer = (self.setup.arbiter)(&question);
                self.arbitrated = Some((question, answer));
                answer
            }
        }
    }

    fn arbitration(&self, candidates: &[(Life, bool)]) -> ArbitrationInput {
        let mut edges: BTreeMap<SlotIndex, SlotSet> = BTreeMap::new();
        let hears: Vec<(SlotIndex, SlotSet)> = candidates.iter().map(|(life, _)| (life.slot, self.hears_of(life))).collect();
        for (a, heard_by_a) in &hears {
            let both_ways = hears.iter().filter(|(b, heard_by_b)| a != b && heard_by_a.contains(*b) && heard_by_b.contains(*a));
            edges.insert(*a, both_ways.map(|(b, _)| *b).collect());
        }
        let configuration = &self.known.body.configuration;
        let nodes = candidates
            .iter()
            .map(|(life, is_member)| ArbitrationNode {
                slot: life.slot,
                // In a restart nobody is a member any more: all candidates stand on the same foot.
                is_member: *is_member || self.is_restart(),
                score: self.scores.step(life.slot),
                preference: self.said_by(life).map_or(0, |said| said.preference),
            })
            .collect();
        let configured_votes = configuration.nodes.iter().map(|node| (node.slot, node.votes)).collect();
        ArbitrationInput { nodes, edges, configured_votes, disk_votes: configuration.disk_votes }
    }

    /// When a member that is heard would be heard no more if nothing came of it: looked at then, not a poll later.
    pub(crate) fn next_silence_ms(&self) -> Option<u64> {
        let others = self.known.body.members.iter().filter(|member| **member != self.setup.me && self.does_hear(member.slot));
        let silent_ms = |member: &Life| {
            let heard = self.heard.get(&member.slot)?;
            let since_ms = self.linked.get(&heard.hello.life).copied().flatten().map_or(heard.at_ms, |lost_ms| lost_ms.min(heard.at_ms));
            Some(since_ms + u64::from(self.timings().detect_ms) + 1)
        };
        others.filter_map(silent_ms).min().filter(|_| self.role == Role::Member)
    }

    /// A configured member that was in the view is not heard or not fresh: poll faster until the matter is settled.
    pub(crate) fn is_edge_missing(&self) -> bool {
        let mut others = self.known.body.members.iter().filter(|member| **member != self.setup.me);
        self.role == Role::Member && others.any(|member| !self.does_hear(member.slot))
    }

    /// May new locks be granted? Only a member of the newest known view whose clique is the one that goes on.
    pub(crate) fn update_permit(&mut self, _now_ms: u64) {
        let may_grant = self.role == Role::Member
            && self.known.may_act
            && self.choose().is_some_and(|(choice, _)| choice.members.contains(self.setup.me.slot));
        if self.permit != Some(may_grant) {
            self.permit = Some(may_grant);
            self.outputs.push_back(Output::Permit(may_grant));
        }
    }
}

/// Its sbd lives, and no pill has ended it.
fn can_act(beat: &Beat) -> bool {
    beat.acknowledged.is_none() && !beat.is_stopped && !beat.is_idle
}

/// Total of the configured votes, the disk's included.
#[must_use]
pub fn total_votes(configuration: &deadbolt_disk_format::Configuration) -> u16 {
    configuration.nodes.iter().fold(configuration.disk_votes, |sum, node| sum.saturating_add(node.votes))
}

/// Votes needed: more than half of the total.
#[must_use]
pub fn quorum(configuration: &deadbolt_disk_format::Configuration) -> u16 {
    total_votes(configuration) / 2 + 1
}
