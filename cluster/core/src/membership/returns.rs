//! What: how long a node that was removed again and again has to be reachable before it is let in once more.
//! Owns: when which slot was removed, and since when a node in it could be let in.
//! Invariants: a node that was removed seldom waits for nothing; nobody waits longer than [`MOST_MS`] once it stays reachable.
//! Does not: remove anybody, or keep out a node without which there is no quorum (its caller asks only where there is one).
//! Called by: the making of the next view.

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};
use deadbolt_disk_format::{SlotIndex, SlotSet, ViewBody, ViewNumber};

/// Removals within [`WINDOW_MS`] after which a node comes back without a wait. Chosen: a repair takes one or two.
const FREE: usize = 2;
/// How long a removal is remembered. Chosen: a link that fails every few minutes still costs less than it carries.
const WINDOW_MS: u64 = 300_000;
/// Wait after one removal more than the free ones; doubles with every further one. Chosen: longer than detection.
const FIRST_MS: u64 = 2000;
/// Longest wait. Chosen: nobody has to ask why a node that is well stays out.
const MOST_MS: u64 = 16_000;

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Returns {
    removed_ms: BTreeMap<SlotIndex, VecDeque<u64>>,
    near_since_ms: BTreeMap<SlotIndex, u64>,
}

/// A node that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HeldBack {
    pub(crate) slot: SlotIndex,
    /// Removals that count.
    pub(crate) removals: usize,
    pub(crate) wait_ms: u64,
    /// Was it found reachable just now?
    pub(crate) is_new: bool,
}

impl Returns {
    /// A view was learned; `after` was the newest before it.
    pub(crate) fn handle_view(&mut self, body: &ViewBody, after: ViewNumber, now_ms: u64) {
        for owed in body.owed.iter().filter(|owed| owed.removed_in > after) {
            self.removed_ms.entry(owed.life.slot).or_default().push_back(now_ms);
        }
        for times in self.removed_ms.values_mut() {
            while times.front().is_some_and(|at| now_ms.saturating_sub(*at) > WINDOW_MS) {
                times.pop_front();
            }
        }
        self.removed_ms.retain(|_, times| !times.is_empty());
    }

    fn removals(&self, slot: SlotIndex, now_ms: u64) -> usize {
        let is_recent = |at: &&u64| now_ms.saturating_sub(**at) <= WINDOW_MS;
        self.removed_ms.get(&slot).map_or(0, |times| times.iter().filter(is_recent).count())
    }

    /// Who of those that could be let in now has to wait; asked at every poll.
    pub(crate) fn held_back(&mut self, joiners: &SlotSet, now_ms: u64) -> Vec<HeldBack> {
        self.near_since_ms.retain(|slot, _| joiners.contains(*slot));
        let mut held_back = Vec::new();
        for slot in joiners.iter() {
            let is_new = !self.near_since_ms.contains_key(&slot);
            let since_ms = *self.near_since_ms.entry(slot).or_insert(now_ms);
            let removals = self.removals(slot, now_ms);
            let wait_ms = wait_ms(removals);
            if now_ms.saturating_sub(since_ms) < wait_ms {
                held_back.push(HeldBack { slot, removals, wait_ms, is_new });
            }
        }
        held_back
    }
}

fn wait_ms(removals: usize) -> u64 {
    match removals.saturating_sub(FREE) {
        0 => 0,
        over => (FIRST_MS << (over - 1).min(8)).min(MOST_MS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_disk_format::{BootId, Incarnation, Life, Owed};

    const SLOT: SlotIndex = SlotIndex(2);

    fn removal(view: u64) -> ViewBody {
        let life = Life { slot: SLOT, boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) };
        let owed = alloc::vec![Owed { life, removed_in: ViewNumber(view) }];
        ViewBody { view: ViewNumber(view), owed, ..ViewBody::default() }
    }

    fn waits(returns: &mut Returns, now_ms: u64) -> u64 {
        let joiners: SlotSet = core::iter::once(SLOT).collect();
        returns.held_back(&SlotSet::default(), now_ms);
        returns.held_back(&joiners, now_ms).first().map_or(0, |held| held.wait_ms)
    }

    #[test]
    fn who_is_removed_again_and_again_waits_longer_and_longer_and_is_forgiven() {
        let mut returns = Returns::default();
        let mut seen = Vec::new();
        for round in 0..8 {
            let now_ms = 1000 * (round + 1);
            returns.handle_view(&removal(2 * round + 1), ViewNumber(2 * round), now_ms);
            // The views until it is gone name it again: that is no further removal.
            returns.handle_view(&removal(2 * round + 1), ViewNumber(2 * round + 1), now_ms);
            seen.push(waits(&mut returns, now_ms));
        }
        assert_eq!(seen, [0, 0, 2000, 4000, 8000, 16_000, 16_000, 16_000]);
        assert_eq!(waits(&mut returns, 1000 + WINDOW_MS + 5500), 0);
    }

    #[test]
    fn who_stays_reachable_is_let_in_and_who_does_not_waits_anew() {
        let mut returns = Returns::default();
        (1..=3).for_each(|view| returns.handle_view(&removal(view), ViewNumber(view - 1), 0));
        let joiners: SlotSet = core::iter::once(SLOT).collect();
        let is_held = |returns: &mut Returns, joiners: &SlotSet, now_ms| !returns.held_back(joiners, now_ms).is_empty();
        assert!(is_held(&mut returns, &joiners, 1000));
        assert!(is_held(&mut returns, &joiners, 2999));
        assert!(!is_held(&mut returns, &SlotSet::default(), 2999));
        assert!(is_held(&mut returns, &joiners, 3000));
        assert!(!is_held(&mut returns, &joiners, 5000));
    }
}
