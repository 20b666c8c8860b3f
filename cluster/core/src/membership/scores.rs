//! What: how well each node says it fares, as far as it may decide which clique goes on.
//! Owns: the last word of each node that counts, and one that differs from it and does not count yet.
//! Invariants: what a node says counts in steps, and only once it has said the same new step for ten polls; a new life's first word counts
//!   at once. So a check that comes and goes changes nobody's mind in the middle of a cut.
//! Does not: measure (the shell runs the heuristics), rank.
//! Called by: the membership machine.

use alloc::collections::BTreeMap;
use deadbolt_disk_format::{Incarnation, SlotIndex};

/// Score of a node that checks nothing: as one whose checks all pass.
pub const SCORE_FULL: u8 = 100;
/// Points in a step. Chosen: one check among ten of the same weight.
const STEP: u8 = 10;
/// Polls for which a new step has to be said.
const POLLS: u64 = 10;

/// What a node says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnStanding {
    /// 0 to 100.
    pub score: u8,
    /// The administrator's order: 1 is best, 0 is none.
    pub preference: u8,
}

impl Default for OwnStanding {
    fn default() -> Self {
        Self { score: SCORE_FULL, preference: 0 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Settled {
    incarnation: Incarnation,
    step: u8,
    /// Another step, and since when it is said.
    other: Option<(u8, u64)>,
}

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scores(BTreeMap<SlotIndex, Settled>);

impl Scores {
    /// What a node says now; asked at every poll.
    pub(crate) fn handle(&mut self, slot: SlotIndex, incarnation: Incarnation, score: u8, (now_ms, poll_ms): (u64, u64)) {
        let step = score / STEP;
        let first = Settled { incarnation, step, other: None };
        let settled = self.0.entry(slot).or_insert(first);
        if settled.incarnation != incarnation {
            *settled = first;
        }
        settled.other = match settled.other {
            _ if settled.step == step => None,
            Some((other, since_ms)) if other == step => Some((other, since_ms)),
            _ => Some((step, now_ms)),
        };
        if let Some((other, since_ms)) = settled.other
            && now_ms.saturating_sub(since_ms) >= POLLS * poll_ms
        {
            *settled = Settled { incarnation, step: other, other: None };
        }
    }

    /// The step that counts; a node that has said nothing yet fares well.
    pub(crate) fn step(&self, slot: SlotIndex) -> u8 {
        self.0.get(&slot).map_or(SCORE_FULL / STEP, |settled| settled.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: SlotIndex = SlotIndex(3);
    const POLL_MS: u64 = 250;

    fn say(scores: &mut Scores, life: u8, said: &[(u64, u8)]) -> u8 {
        for (now_ms, score) in said {
            scores.handle(SLOT, Incarnation([life; 16]), *score, (*now_ms, POLL_MS));
        }
        scores.step(SLOT)
    }

    #[test]
    fn a_new_step_counts_after_ten_polls_of_the_same() {
        let mut scores = Scores::default();
        assert_eq!(scores.step(SLOT), 10);
        assert_eq!(say(&mut scores, 1, &[(0, 100), (250, 50), (2500, 50)]), 10);
        assert_eq!(say(&mut scores, 1, &[(2750, 50)]), 5);
        // Within a step nothing changes; what comes and goes begins anew.
        assert_eq!(say(&mut scores, 1, &[(3000, 59), (6000, 59)]), 5);
        assert_eq!(say(&mut scores, 1, &[(6250, 100), (7250, 50), (7500, 100), (9900, 100)]), 5);
        assert_eq!(say(&mut scores, 1, &[(10_000, 100)]), 10);
    }

    #[test]
    fn a_new_life_begins_with_its_first_word() {
        let mut scores = Scores::default();
        assert_eq!(say(&mut scores, 1, &[(0, 100)]), 10);
        assert_eq!(say(&mut scores, 2, &[(250, 20)]), 2);
    }
}
