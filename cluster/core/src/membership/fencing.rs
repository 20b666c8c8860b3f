//! What: the ending of owed lives and of those an operator names.
//! Owns: when a pill is written, a life ejected or a fence agent called, by whom, and the report of an operator's fence.
//! Invariants: all of it is aimed at a life that a decided view removed, or by an operator; nothing is reported without evidence.
//! Does not: write the disk; call device or agent; judge (see `evidence`).
//! Called by: the membership machine.

use super::{Membership, Output};
use crate::evidence::Verdict;
use alloc::{collections::BTreeMap, format, vec::Vec};
use deadbolt_disk_format::{Evidence, Life, SlotIndex, ViewNumber};

/// How long a member leaves the victim's fence agent to the member before it, and the pause before it is called again. Chosen: longer than
/// most agents take; two at once put the same machine out of action twice.
const AGENT_TURN_MS: u64 = 30_000;

/// What has been done against one life.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    since_ms: u64,
    pill: Pill,
    ejection: Means,
    agent: Means,
}

/// What is asked of others than the victim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Means {
    None,
    Called,
    Failed { at_ms: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pill {
    None,
    Writing,
    Written { at_ms: u64 },
    Failed { at_ms: u64 },
}

/// What comes before this node's turn.
#[derive(Clone, Copy, Debug, Default)]
struct Waits {
    pill_ms: u64,
    /// After that, for the agent.
    agent_ms: u64,
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

    fn handle_agent_failed(&mut self, victim: &Life, now_ms: u64) {
        if let Some(attempt) = self.attempts.get_mut(victim) {
            attempt.agent = Means::Failed { at_ms: now_ms };
        }
    }

    fn handle_not_ejected(&mut self, victim: &Life, now_ms: u64) {
        if let Some(attempt) = self.attempts.get_mut(victim) {
            attempt.ejection = Means::Failed { at_ms: now_ms };
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
        let rank = self.rank();
        let waits = Waits { pill_ms: patience_ms * (1 + 2 * rank), agent_ms: AGENT_TURN_MS.saturating_mul(rank) };
        let view = self.known.body.view;
        for life in owed {
            self.fence_one(&life, view, waits, now_ms);
        }
    }

    /// One round over those an operator wants ended; anybody may obey a person.
    pub(crate) fn fence_by_command(&mut self, now_ms: u64) {
        let operator: Vec<Life> = self.fencing.operator_targets().collect();
        for life in operator {
            self.fence_one(&life, ViewNumber(0), Waits::default(), now_ms);
        }
    }

    /// This node's place among the members it hears: the first writes the pill, the others wait their turn.
    fn rank(&self) -> u64 {
        let hears = self.hears();
        let me = self.setup.me.slot;
        let before = self.known.body.members.iter().filter(|life| life.slot < me && hears.contains(life.slot)).count();
        u64::try_from(before).unwrap_or(u64::MAX)
    }

    fn fence_one(&mut self, life: &Life, view: ViewNumber, waits: Waits, now_ms: u64) {
        if self.judge(life, now_ms) != Verdict::MayLive {
            return;
        }
        let retry_ms = 4 * u64::from(self.timings().poll_ms);
        let since_ms = if view.0 == 0 { now_ms } else { self.known.since_ms };
        let can_eject = self.can_eject(life);
        let none = Attempt { since_ms, pill: Pill::None, ejection: Means::None, agent: Means::None };
        let attempt = self.fencing.attempts.entry(*life).or_insert(none);
        let is_due = match attempt.pill {
            Pill::None => now_ms >= attempt.since_ms.saturating_add(waits.pill_ms),
            Pill::Writing => false,
            // A victim whose mailbox was cleared by others, or a write that failed: again, for as long as nothing is proved.
            Pill::Failed { at_ms } => now_ms >= at_ms.saturating_add(retry_ms),
            Pill::Written { at_ms } => now_ms >= at_ms.saturating_add(4 * retry_ms),
        };
        let is_agent_due = match attempt.agent {
            Means::None => {
                matches!(attempt.pill, Pill::Written { .. } | Pill::Failed { .. })
                    && now_ms >= attempt.since_ms.saturating_add(waits.pill_ms).saturating_add(waits.agent_ms)
            }
            Means::Called => false,
            Means::Failed { at_ms } => now_ms >= at_ms.saturating_add(AGENT_TURN_MS),
        };
        // Beside the pill, which resets the victim; where somebody else took the keys, only the first attempt can tell.
        let is_ejection_due = can_eject
            && match attempt.ejection {
                Means::None => now_ms >= attempt.since_ms.saturating_add(waits.pill_ms),
                Means::Called => false,
                Means::Failed { at_ms } => now_ms >= at_ms.saturating_add(4 * retry_ms),
            };
        if is_agent_due {
            attempt.agent = Means::Called;
            self.outputs.push_back(Output::CallAgent { victim: *life });
        }
        if is_ejection_due {
            attempt.ejection = Means::Called;
            self.outputs.push_back(Output::Eject { victim: *life });
        }
        if is_due {
            attempt.pill = Pill::Writing;
            let serial = self.fencing.next_serial();
            self.outputs.push_back(Output::Journal(format!("pill for node {} (view {view})", self.name_of(life.slot))));
            self.outputs.push_back(Output::WritePill { victim: *life, view, serial });
        }
    }

    /// Are the devices that this life may write those that this node has registered on? By the last word of its daemon on the disk.
    pub(crate) fn can_eject(&self, life: &Life) -> bool {
        let said = self.beat_of(life).map_or(0, |beat| beat.daemon.protected);
        said != 0 && said == self.setup.protected
    }

    /// How an ejection ended.
    pub(crate) fn handle_ejected(&mut self, victim: Life, is_ejected: bool, now_ms: u64) {
        if !is_ejected {
            self.fencing.handle_not_ejected(&victim, now_ms);
        } else if self.watched_lives().contains(&victim) {
            self.outputs.push_back(Output::Journal(format!("node {} is ejected from the protected devices", self.name_of(victim.slot))));
            self.evidences.handle_ejected(victim);
        }
    }

    /// What the agent that was called has seen: when the machine was off, or nothing.
    pub(crate) fn handle_agent(&mut self, victim: Life, off_at_ms: Option<u64>, now_ms: u64) {
        let Some(at_ms) = off_at_ms else {
            return self.fencing.handle_agent_failed(&victim, now_ms);
        };
        if self.watched_lives().contains(&victim) {
            self.outputs.push_back(Output::Journal(format!("a fence agent has put node {} out of action", self.name_of(victim.slot))));
            self.evidences.handle_agent(victim, at_ms);
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
            // A person's word, and what this node alone knows of its own ejection, count once a decided view has taken them; anything else
            // was seen on the disk.
            if matches!(evidence, Evidence::Operator | Evidence::Ejected) && self.is_in_view(&victim) {
                continue;
            }
            self.fencing.operator.remove(&victim);
            self.outputs.push_back(Output::Fenced { victim, evidence, waited_ms: now_ms.saturating_sub(since_ms) });
        }
    }
}
