//! What: the ending of owed lives and of those an operator names.
//! Owns: when a pill is written, by whom, and the report of an operator's fence.
//! Invariants: a pill is aimed at a life that a decided view removed, or by an operator; nothing is reported without evidence.
//! Does not: write the disk; judge (see `evidence`).
//! Called by: the membership machine.

use super::{Membership, Output};
use crate::evidence::Verdict;
use alloc::{collections::BTreeMap, format, vec::Vec};
use deadbolt_disk_format::{Evidence, Life, SlotIndex, ViewNumber};

/// What has been done against one life.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    since_ms: u64,
    pill: Pill,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pill {
    None,
    Writing,
    Written { at_ms: u64 },
    Failed { at_ms: u64 },
}

/// All attempts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fencing {
    attempts: BTreeMap<Life, Attempt>,
    operator: BTreeMap<Life, u64>,
    serial: u64,
}

impl Fencing {
    pub(crate) fn operator_targets(&self) -> impl Iterator<Item = Life> + '_ {
        self.operator.keys().copied()
    }

    pub(crate) fn handle_pill(&mut self, victim: &Life, is_written: bool, now_ms: u64) {
        if let Some(attempt) = self.attempts.get_mut(victim) {
            attempt.pill = if is_written { Pill::Written { at_ms: now_ms } } else { Pill::Failed { at_ms: now_ms } };
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

impl Membership {
    /// One round over everything owed; only a member that may act in its view does this.
    pub(crate) fn fence_owed(&mut self, now_ms: u64) {
        let owed: Vec<Life> = self.known.body.owed.iter().map(|owed| owed.life).collect();
        let operator: Vec<Life> = self.fencing.operator_targets().collect();
        self.fencing.attempts.retain(|life, _| owed.contains(life) || operator.contains(life));
        let patience_ms = 2 * u64::from(self.timings().poll_ms);
        let wait_ms = patience_ms * (1 + 2 * self.rank());
        let view = self.known.body.view;
        for life in owed {
            self.fence_one(&life, view, wait_ms, now_ms);
        }
    }

    /// One round over those an operator wants ended; anybody may obey a person.
    pub(crate) fn fence_by_command(&mut self, now_ms: u64) {
        let operator: Vec<Life> = self.fencing.operator_targets().collect();
        for life in operator {
            self.fence_one(&life, ViewNumber(0), 0, now_ms);
        }
    }

    /// This node's place among the members it hears: the first writes the pill, the others wait their turn.
    fn rank(&self) -> u64 {
        let hears = self.hears();
        let me = self.setup.me.slot;
        let before = self.known.body.members.iter().filter(|life| life.slot < me && hears.contains(life.slot)).count();
        u64::try_from(before).unwrap_or(u64::MAX)
    }

    fn fence_one(&mut self, life: &Life, view: ViewNumber, wait_ms: u64, now_ms: u64) {
        let is_still_open = self.judge(life, now_ms) == Verdict::MayLive;
        let retry_ms = 4 * u64::from(self.timings().poll_ms);
        let since_ms = if view.0 == 0 { now_ms } else { self.known.since_ms };
        let attempt = self.fencing.attempts.entry(*life).or_insert(Attempt { since_ms, pill: Pill::None });
        let is_due = match attempt.pill {
            Pill::None => now_ms >= attempt.since_ms.saturating_add(wait_ms),
            Pill::Writing => false,
            // A victim whose mailbox was cleared by others, or a write that failed: again, for as long as nothing is proved.
            Pill::Failed { at_ms } => now_ms >= at_ms.saturating_add(retry_ms),
            Pill::Written { at_ms } => now_ms >= at_ms.saturating_add(4 * retry_ms),
        };
        if is_still_open && is_due {
            attempt.pill = Pill::Writing;
            let serial = self.fencing.next_serial();
            self.outputs.push_back(Output::Journal(format!("pill for node {} (view {view})", self.name_of(life.slot))));
            self.outputs.push_back(Output::WritePill { victim: *life, view, serial });
        }
    }

    /// The life that an operator's fence of this slot would end; none if nothing in it is known to live.
    #[must_use]
    pub fn fence_target(&self, slot: SlotIndex) -> Option<Life> {
        let body = &self.known.body;
        let in_view = body.members.iter().copied().chain(body.owed.iter().map(|owed| owed.life)).find(|life| life.slot == slot);
        in_view.or_else(|| self.fresh_life(slot))
    }

    /// An operator wants a node ended: its present life, wherever it is known from.
    pub(crate) fn handle_fence(&mut self, slot: SlotIndex, now_ms: u64) {
        let body = &self.known.body;
        let in_view = body.members.iter().copied().chain(body.owed.iter().map(|owed| owed.life)).find(|life| life.slot == slot);
        let Some(life) = in_view.or_else(|| self.fresh_life(slot)) else {
            return;
        };
        if life == self.setup.me {
            return;
        }
        self.fencing.operator.entry(life).or_insert(now_ms);
        self.forced.insert(life);
        self.fence_by_command(now_ms);
    }

    fn is_in_view(&self, life: &Life) -> bool {
        let body = &self.known.body;
        body.members.contains(life) || body.owed.iter().any(|owed| owed.life == *life)
    }

    /// Tells the operator once there is evidence, and only then.
    pub(crate) fn report_fenced(&mut self, now_ms: u64) {
        let targets: Vec<(Life, u64)> = self.fencing.operator.iter().map(|(life, since)| (*life, *since)).collect();
        for (victim, since_ms) in targets {
            let Some(evidence) = self.evidence_of(&victim, now_ms) else {
                continue;
            };
            // A person's word counts once a decided view has taken it; anything else was seen on the disk.
            if evidence == Evidence::Operator && self.is_in_view(&victim) {
                continue;
            }
            self.fencing.operator.remove(&victim);
            self.outputs.push_back(Output::Fenced { victim, evidence, waited_ms: now_ms.saturating_sub(since_ms) });
        }
    }
}
