//! What: what a node proposes as the next view, and whose turn it is.
//! Owns: nothing; a question with everything in it, and its answer.
//! Invariants: only members propose a view's successor, and a starter only when every member is proved gone; a member is removed only
//!   when it is not in the ring, and is owed unless what proves it gone lasts for ever.
//! Does not: rank sides (candidates does), wait, or remember.
//! Called by: the bridge.

use alloc::{collections::BTreeMap, vec::Vec};
use deadbolt_disk_format::{Configuration, Digest, Evidence, Life, Owed, Released, SlotIndex, SlotSet, ViewBody, ViewNumber, ViewReason};
use deadbolt_qdisk_core::candidates::{DiskVotes, Graph, Standing, choose};

/// What a slot's beat shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    /// The newest life there.
    pub life: Life,
    /// Its beat changed lately.
    pub is_fresh: bool,
    /// The ring that it is in.
    pub hears: SlotSet,
}

/// Everything that the answer hangs on.
#[derive(Debug)]
pub struct Question<'a> {
    /// This life.
    pub me: Life,
    /// The newest decided view, and its digest.
    pub view: &'a ViewBody,
    /// See `view`.
    pub digest: Digest,
    /// Members of the ring.
    pub ring: SlotSet,
    /// Per slot, without the own one.
    pub shown: &'a BTreeMap<SlotIndex, Shown>,
    /// Lives that are proved gone: members by what is seen now, the owed for good.
    pub gone: &'a BTreeMap<Life, Evidence>,
    /// Votes.
    pub standing: &'a Standing,
    /// For the view.
    pub configuration: &'a Configuration,
}

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// This node's.
    Now,
    /// Another's: this node's only when that one does not act.
    Later,
}

/// Left, and a machine that was reset, never come back; silence may end.
fn is_for_ever(evidence: Evidence) -> bool {
    match evidence {
        Evidence::Left | Evidence::Rebooted | Evidence::IdleRestart | Evidence::Ejected => true,
        Evidence::Acknowledged | Evidence::Expired | Evidence::Agent | Evidence::Operator => false,
    }
}

impl Question<'_> {
    fn is_over(&self, life: &Life) -> bool {
        self.gone.get(life).is_some_and(|evidence| is_for_ever(*evidence))
    }

    /// Is this member's place taken on by the life that asks? The same machine's process took over from an earlier one.
    fn is_me(&self, life: &Life) -> bool {
        life.slot == self.me.slot && life.boot == self.me.boot && !self.is_over(life)
    }

    /// Members that stay members as long as they are in the ring.
    fn lasting(&self) -> impl Iterator<Item = &Life> {
        self.view.members.iter().filter(|life| !self.is_over(life))
    }

    fn lasting_slots(&self) -> SlotSet {
        self.lasting().map(|life| life.slot).collect()
    }

    /// Fresh lives of this ring that may come in.
    fn joiners(&self) -> SlotSet {
        let lasting = self.lasting_slots();
        let others = self.shown.values().filter(|shown| shown.is_fresh && shown.hears == self.ring && !self.is_over(&shown.life));
        others
            .map(|shown| shown.life.slot)
            .chain([self.me.slot])
            .filter(|slot| self.ring.contains(*slot) && !lasting.contains(*slot))
            .collect()
    }

    /// The ring is a clique; the others are what their beats say.
    fn graph(&self, is_whole: bool) -> Graph {
        let mut hears: BTreeMap<SlotIndex, SlotSet> = self.ring.iter().map(|slot| (slot, self.ring)).collect();
        if is_whole {
            let others = self.shown.values().filter(|shown| shown.is_fresh && !self.ring.contains(shown.life.slot));
            hears.extend(others.map(|shown| (shown.life.slot, shown.hears)));
        }
        Graph::from_hears(&hears)
    }

    /// Who is in the next view by the better side's choice, and whose turn it is; none: nothing to propose, or not by this node.
    #[must_use]
    pub fn answer(&self) -> Option<(ViewBody, Turn)> {
        if !self.ring.contains(self.me.slot) {
            return None;
        }
        let members = self.lasting_slots();
        let is_member = self.view.members.iter().any(|life| self.is_me(life));
        let are_all_gone = self.view.members.iter().all(|life| self.gone.contains_key(life));
        if !is_member && !are_all_gone {
            return None;
        }
        let members = if is_member { members } else { SlotSet::default() };
        let joiners = if is_member { self.joiners() } else { self.joiners_of_start() };
        let best = choose(&self.graph(true), &members, &joiners, self.standing, DiskVotes::Counted);
        let is_mine = best.is_some_and(|choice| choice.members().contains(self.me.slot));
        let choice = if is_mine { best } else { choose(&self.graph(false), &members, &joiners, self.standing, DiskVotes::Counted) }?;
        let chosen = choice.members();
        if !chosen.contains(self.me.slot) {
            return None;
        }
        let body = self.body(&chosen);
        if body.members == self.view.members && body.owed == self.view.owed {
            return None;
        }
        let may_propose = |slot: &SlotIndex| !is_member || members.contains(*slot);
        let first = chosen.iter().filter(may_propose).find(|slot| self.is_awake(*slot));
        let turn = if is_mine && first == Some(self.me.slot) { Turn::Now } else { Turn::Later };
        Some((body, turn))
    }

    fn is_awake(&self, slot: SlotIndex) -> bool {
        slot == self.me.slot || self.shown.get(&slot).is_some_and(|shown| shown.is_fresh)
    }

    /// Nobody is a member any more: whoever is fresh in this ring.
    fn joiners_of_start(&self) -> SlotSet {
        let others = self.shown.values().filter(|shown| shown.is_fresh && shown.hears == self.ring && !self.is_over(&shown.life));
        others.map(|shown| shown.life.slot).chain([self.me.slot]).filter(|slot| self.ring.contains(*slot)).collect()
    }

    /// A process that took over from another one on the same machine goes on under the life that the view names.
    fn life_of(&self, slot: SlotIndex) -> Option<Life> {
        let member = self.lasting().find(|life| life.slot == slot && (self.is_me(life) || !self.gone.contains_key(life)));
        let newest = || if slot == self.me.slot { Some(self.me) } else { self.shown.get(&slot).map(|shown| shown.life) };
        member.copied().or_else(newest)
    }

    fn body(&self, chosen: &SlotSet) -> ViewBody {
        let members: Vec<Life> = chosen.iter().filter_map(|slot| self.life_of(slot)).collect();
        let view = ViewNumber(self.view.view.0 + 1);
        let stays = |life: &Life| members.contains(life);
        let removed = self.view.members.iter().filter(|life| !stays(life)).map(|life| Owed { life: *life, removed_in: view });
        let (mut owed, mut released) = (Vec::new(), Vec::new());
        for entry in self.view.owed.iter().copied().chain(removed) {
            match self.gone.get(&entry.life) {
                Some(evidence) if is_for_ever(*evidence) || entry.removed_in != view => {
                    released.push(Released { life: entry.life, evidence: *evidence, waited_ms: 0, witness: self.me.slot });
                }
                _ => owed.push(entry),
            }
        }
        owed.sort_by_key(|entry| entry.life);
        released.sort_by_key(|entry| entry.life);
        let reason = match () {
            () if self.view.view.0 == 0 => ViewReason::Initial,
            () if owed.len() > self.view.owed.len() || members.len() < self.view.members.len() => ViewReason::Remove,
            () if members.len() > self.view.members.len() => ViewReason::Join,
            () => ViewReason::Release,
        };
        let configuration = self.configuration.clone();
        ViewBody { view, predecessor: self.digest, proposer: Some(self.me), reason, members, owed, released, configuration }
    }
}
