//! What: S1, S4, S7: what nodes learn of views.
//! Owns: the newest decided view.
//! Invariants: a view that any node learned was decided.
//! Does not: read disks.
//! Called by: the world, after everything that a node did.

use super::World;
use crate::{daemon::short, machine::Stage};
use deadbolt_cluster_core::hello::Hello;
use deadbolt_disk_format::{Evidence, Life, SlotIndex, ViewBody, ViewNumber};
use std::collections::{BTreeMap, BTreeSet};

impl super::Facts {
    /// The number of the newest decided view.
    pub(crate) fn newest_view(&self) -> ViewNumber {
        self.newest.number
    }

    /// Members of the newest view, and whoever was removed and is not released yet.
    pub(crate) fn named_lives(&self) -> impl Iterator<Item = Life> {
        self.newest.members.iter().chain(self.newest.removed.keys()).copied()
    }
}

/// The newest decided view, and of every one who was owed in it.
#[derive(Debug, Default)]
pub(super) struct Newest {
    pub(super) number: ViewNumber,
    pub(super) members: Vec<Life>,
    pub(super) owed: BTreeMap<ViewNumber, Vec<Life>>,
    /// The first view that each life was in.
    first: BTreeMap<Life, ViewNumber>,
    /// Who has heard a hello of whom by which the other knew of it, and it of the other.
    told: BTreeSet<(Life, Life)>,
    /// Who has learned a view that had both, and the first such view.
    learned: BTreeMap<(Life, Life), ViewNumber>,
    /// Per owed life: when it was first seen to be owed, and whether somebody who had been in a view with it is in that view.
    pub(super) removed: BTreeMap<Life, (u64, Vec<Life>)>,
    /// Newest view that any life of a slot has learned.
    by_slot: BTreeMap<SlotIndex, ViewNumber>,
}

impl Newest {
    /// Has this one learned of a view with that one, and come before or with it, or heard what freezes it had asked for (design, section 6,
    /// *Silence*)? Else it waits W + F.
    pub(super) fn may_judge(&self, one: &Life, other: &Life) -> bool {
        let first = |life: &Life| self.first.get(life).copied().unwrap_or_default();
        self.told.contains(&(*one, *other)) || first(one) <= first(other) && self.learned.contains_key(&(*one, *other))
    }
}

impl World {
    /// S1, S3, S4, S7: what a node has learned.
    pub(crate) fn facts_of_node(&mut self, machine: usize) {
        let now_us = self.queue.now_us();
        let Some(Stage::Live(node)) = self.machines[machine].daemon.as_ref().map(|daemon| &daemon.stage) else { return };
        let (me, number) = (node.me(), node.view().view);
        let known = self.facts.last_view.get(&machine).filter(|(life, ..)| *life == me).map_or(ViewNumber(0), |(_, number, _)| *number);
        if number == known {
            return;
        }
        let body = node.view().clone();
        self.facts.now_us = now_us;
        self.facts.last_view.insert(machine, (me, number, now_us));
        self.facts.locks.view_learned(now_us);
        self.check_number(&me, number);
        self.check_body(&me, &body);
        if body.members.contains(&me) {
            let learned = &mut self.facts.newest.learned;
            body.members.iter().for_each(|life| _ = learned.entry((me, *life)).or_insert(number));
        }
        for gone in &body.released {
            self.check_gone("S3", &gone.life, gone.evidence);
        }
        self.remember_view(&body);
        let members: Vec<String> = body.members.iter().map(|life| short(*life)).collect();
        self.note(&format!(
            "{} learns view {number}: {:?}, {}; owed {}",
            self.machines[machine].name,
            body.reason,
            members.join(", "),
            body.owed.len()
        ));
    }

    /// A hello comes to a machine.
    pub(crate) fn hello_heard(&mut self, machine: usize, hello: &Hello) {
        let Some((me, ..)) = self.facts.last_view.get(&machine) else { return };
        let newest = &mut self.facts.newest;
        if newest.learned.get(&(*me, hello.life)).is_some_and(|together| hello.view >= *together) {
            newest.told.insert((*me, hello.life));
        }
    }

    /// S4: neither a life nor a node goes back.
    fn check_number(&mut self, me: &Life, number: ViewNumber) {
        let known = self.facts.newest.by_slot.entry(me.slot).or_default();
        let before = std::mem::replace(known, (*known).max(number));
        if number < before && self.facts.damaged.is_empty() {
            self.facts.breaks("S4", format!("{} learns view {number}, its node has known {before}", short(*me)));
        }
    }

    /// S1: one value per number. S7: one life per slot.
    fn check_body(&mut self, me: &Life, body: &ViewBody) {
        let digest = body.digest();
        let first = *self.facts.views.entry(body.view).or_insert(digest);
        if first != digest {
            self.facts.breaks("S1", format!("view {} was decided twice; {} learned the second", body.view, short(*me)));
        }
        let mut slots = BTreeSet::new();
        for life in body.members.iter().chain(body.owed.iter().map(|owed| &owed.life)) {
            if !slots.insert(life.slot) && body.members.contains(life) {
                self.facts.breaks("S7", format!("view {} has two lives in slot {}", body.view, life.slot.0));
            }
        }
    }

    fn remember_view(&mut self, body: &ViewBody) {
        let now_us = self.facts.now_us;
        let newest = &mut self.facts.newest;
        for life in &body.members {
            let first = newest.first.entry(*life).or_insert(body.view);
            *first = body.view.min(*first);
        }
        newest.owed.entry(body.view).or_insert_with(|| body.owed.iter().map(|owed| owed.life).collect());
        if body.view <= newest.number {
            return;
        }
        for owed in &body.owed {
            let companions = body.members.iter().filter(|life| newest.members.contains(life)).copied().collect();
            newest.removed.entry(owed.life).or_insert((now_us, companions));
        }
        newest.removed.retain(|life, _| body.owed.iter().any(|owed| owed.life == *life));
        newest.number = body.view;
        newest.members.clone_from(&body.members);
    }

    /// S3, S9: who is called gone must be gone: machine reset and drained, or nothing held and never again.
    pub(crate) fn check_gone(&mut self, promise: &'static str, life: &Life, evidence: Evidence) {
        let now_us = self.queue.now_us();
        if self.facts.gone.contains_key(life) {
            return;
        }
        self.facts.gone.insert(*life, evidence);
        let text = if matches!(evidence, Evidence::Left | Evidence::IdleRestart) { self.holds_something(life) } else { self.may_act(life) };
        if let Some(text) = text {
            let text = format!("{} is called gone ({}), and {text}", short(*life), evidence.word());
            self.report(now_us, vec![(promise, text)]);
        }
    }
}
