//! What: the byte ranges of one resource at its master: who has which bytes, who waits for which.
//! Owns: conflicts between owners, the order of waiting, which waits to judge again when something changed.
//! Invariants: what two owners have never conflicts; a wait is granted as a whole; every wait ends with exactly one result; nothing is granted
//! under a closed gate but what its owner has already.
//! Does not: know modes, sessions or messages; search deadlocks (it says who waits for whom).
//! Called by: `queue`, `service`.

mod index;
mod spans;

use crate::mode::{Flags, LockStatus};
use crate::queue::Owner;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use index::Table;
pub(crate) use spans::{Change, Spans};
pub use spans::{RangeMode, Span};

/// Requests for ranges that may wait on one resource (bounds memory; chosen: as for locks).
const WAITS_MAX: usize = 16_384;

/// Whose a range is: a lock of a node, and a number that its client gives to whoever stands behind it (a process, an open file).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct RangeOwner {
    pub(crate) owner: Owner,
    pub(crate) number: u64,
}

/// A request for a range. NOQUEUE: fail instead of waiting; other flags are only kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RangeWait {
    pub(crate) owner: RangeOwner,
    /// Number of the operation, unique for the lock.
    pub(crate) op: u64,
    pub(crate) span: Span,
    pub(crate) flags: Flags,
    pub(crate) since_ms: u64,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RangeResult {
    pub(crate) owner: RangeOwner,
    pub(crate) op: u64,
    pub(crate) status: LockStatus,
}

/// Who stands in the way of a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RangeBlocker {
    pub(crate) owner: RangeOwner,
    pub(crate) span: Span,
    /// It has this; else it waits for it and came earlier.
    pub(crate) is_held: bool,
    /// The operation by which it waits, or that was granted to it last.
    pub(crate) op: u64,
}

/// All ranges of a resource.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges {
    held: BTreeMap<RangeOwner, Owned>,
    spans: Table<RangeOwner>,
    /// By turn: who came first.
    waiting: BTreeMap<u64, RangeWait>,
    waits: Table<u64>,
    /// By operation.
    turns: BTreeMap<(RangeOwner, u64), u64>,
    last_turn: u64,
    /// Waits that may have become grantable, or are new.
    unjudged: BTreeSet<u64>,
    /// Locks that get nothing before their holders' reports: a grant would cross them and be taken for one that was lost.
    frozen: BTreeSet<Owner>,
}

/// What one owner has.
#[derive(Clone, Debug, Default)]
struct Owned {
    spans: Spans,
    /// The operation that was granted last.
    op: u64,
}

fn owners_of(owner: Owner) -> core::ops::RangeInclusive<RangeOwner> {
    RangeOwner { owner, number: 0 }..=RangeOwner { owner, number: u64::MAX }
}

impl Ranges {
    /// Nobody has or wants a byte.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }

    /// Everything that is held.
    pub(crate) fn held(&self) -> impl Iterator<Item = (RangeOwner, Span)> + '_ {
        self.held.iter().flat_map(|(owner, owned)| owned.spans.iter().map(|span| (*owner, span)))
    }

    /// Everything that waits, in the order in which it came.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &RangeWait> + '_ {
        self.waiting.values()
    }

    /// Whoever asks for what it has already loses nothing to others by it, so no order and no gate holds it up.
    pub(crate) fn ask(&mut self, wait: RangeWait, may_grant: bool, out: &mut Vec<RangeResult>) {
        let result = |status| RangeResult { owner: wait.owner, op: wait.op, status };
        if self.held.get(&wait.owner).is_some_and(|owned| owned.spans.covers(&wait.span)) {
            out.push(result(LockStatus::Success));
        } else if self.waiting.len() >= WAITS_MAX {
            out.push(result(LockStatus::NoMemory));
        } else {
            self.last_turn += 1;
            self.waiting.insert(self.last_turn, wait);
            self.waits.insert(&wait.span, self.last_turn);
            self.turns.insert((wait.owner, wait.op), self.last_turn);
            self.unjudged.insert(self.last_turn);
            self.settle(may_grant, out);
        }
    }

    /// An owner keeps nothing stronger than `kind` in `start..=end`; `None`: nothing at all.
    pub(crate) fn lower(&mut self, owner: RangeOwner, (start, end): (u64, u64), kind: Option<RangeMode>) {
        let Some(owned) = self.held.get_mut(&owner) else { return };
        let change = owned.spans.lower(start, end, kind);
        self.apply(owner, &change);
        if change.before != change.after {
            self.look_again(start, end);
        }
    }

    /// Takes back a wait, if it has not ended.
    pub(crate) fn end(&mut self, owner: RangeOwner, op: u64, status: LockStatus, out: &mut Vec<RangeResult>) {
        if let Some(turn) = self.turns.get(&(owner, op)).copied()
            && let Some(wait) = self.remove(turn)
        {
            self.look_again(wait.span.start, wait.span.end);
            out.push(RangeResult { owner, op, status });
        }
    }

    /// A view begins: locks of which this is true and that wait are reported before they get more.
    pub(crate) fn freeze(&mut self, is_reported: impl Fn(&Owner) -> bool) {
        self.frozen = self.waiting.values().map(|wait| wait.owner.owner).filter(is_reported).collect();
    }

    /// A lock's report is here.
    pub(crate) fn thaw(&mut self, owner: Owner) {
        if self.frozen.remove(&owner) {
            let (first, last) = owners_of(owner).into_inner();
            self.unjudged.extend(self.turns.range((first, 0)..=(last, u64::MAX)).map(|(_, turn)| *turn));
        }
    }

    /// A lock is no more: neither are its ranges and waits.
    pub(crate) fn drop_lock(&mut self, owner: Owner) {
        self.frozen.remove(&owner);
        self.drop_held(owner);
        for (number, op) in self.waits_of(owner) {
            self.end(RangeOwner { owner, number }, op, LockStatus::Cancelled, &mut Vec::new());
        }
    }

    /// What a lock has is forgotten; its holder tells it anew (`adopt`).
    pub(crate) fn drop_held(&mut self, owner: Owner) {
        let owners: Vec<RangeOwner> = self.held.range(owners_of(owner)).map(|(owner, _)| *owner).collect();
        for owner in owners {
            self.lower(owner, (0, u64::MAX), None);
        }
    }

    /// An owner has this: by operation `op`, or (0) by its own word in recovery.
    pub(crate) fn adopt(&mut self, owner: RangeOwner, span: &Span, op: u64) {
        let owned = self.held.entry(owner).or_default();
        owned.op = op;
        let change = owned.spans.raise(span);
        self.apply(owner, &change);
    }

    /// Whose locks have or want ranges.
    pub(crate) fn owners(&self) -> BTreeSet<Owner> {
        self.held.keys().map(|owner| owner.owner).chain(self.waiting.values().map(|wait| wait.owner.owner)).collect()
    }

    /// The waits of a lock, by owner's number and operation.
    pub(crate) fn waits_of(&self, owner: Owner) -> Vec<(u64, u64)> {
        let (first, last) = owners_of(owner).into_inner();
        self.turns.range((first, 0)..=(last, u64::MAX)).map(|((owner, op), _)| (owner.number, *op)).collect()
    }

    /// Does this operation wait?
    pub(crate) fn is_waiting(&self, owner: RangeOwner, op: u64) -> bool {
        self.turns.contains_key(&(owner, op))
    }

    /// One piece that keeps `owner` from having `span`, and whose it is.
    pub(crate) fn conflict(&self, owner: RangeOwner, span: &Span) -> Option<(RangeOwner, Span)> {
        self.spans.excluders(span).find(|(other, _)| *other != owner)
    }

    /// Judges again what may have become grantable, in the order of coming.
    pub(crate) fn settle(&mut self, may_grant: bool, out: &mut Vec<RangeResult>) {
        while may_grant && let Some(turn) = self.unjudged.pop_first() {
            let Some(wait) = self.waiting.get(&turn).copied().filter(|wait| !self.frozen.contains(&wait.owner.owner)) else { continue };
            let status = if self.is_blocked(turn, &wait) {
                if !wait.flags.has(Flags::NOQUEUE) {
                    continue;
                }
                LockStatus::Again
            } else {
                LockStatus::Success
            };
            self.end(wait.owner, wait.op, status, out);
            if status == LockStatus::Success {
                self.adopt(wait.owner, &wait.span, wait.op);
                // An owner that has more obeys fewer of those that came before it.
                self.unjudged.extend(self.turns.range((wait.owner, 0)..=(wait.owner, u64::MAX)).map(|(_, turn)| *turn));
            }
        }
    }

    fn is_blocked(&self, turn: u64, wait: &RangeWait) -> bool {
        let earlier = |(other, _): (u64, Span)| other < turn && self.waiting.get(&other).is_some_and(|other| self.is_behind(wait, other));
        self.conflict(wait.owner, &wait.span).is_some() || self.waits.excluders(&wait.span).any(earlier)
    }

    /// Must `wait` wait for one that came earlier? Not for its own owner's, nor for one that waits for what its owner has (else both
    /// would wait for ever).
    fn is_behind(&self, wait: &RangeWait, earlier: &RangeWait) -> bool {
        let waits_for_me = self.held.get(&wait.owner).is_some_and(|own| own.spans.conflicts(&earlier.span));
        earlier.owner != wait.owner && earlier.span.conflicts(&wait.span) && !waits_for_me
    }

    /// Every wait with who keeps it waiting, the oldest first, until `budget` looks are spent. Those are left out for which another of
    /// them waits, so that a long line has few edges: who stands behind a wait for all of the same bytes waits for whatever that one
    /// waits for.
    pub(crate) fn edges(&self, budget: &mut usize) -> Vec<(&RangeWait, Vec<RangeBlocker>)> {
        let mut front: Table<u64> = Table::default();
        let mut behind: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut edges = Vec::new();
        for (turn, wait) in &self.waiting {
            let mut blockers = Vec::new();
            let mut is_implied = false;
            let mut turns: Vec<u64> = front.excluders(&wait.span).map(|(turn, _)| turn).take(*budget).collect();
            while let Some(other) = turns.pop() {
                *budget = budget.saturating_sub(1);
                let Some(earlier) = self.waiting.get(&other) else { continue };
                if !self.is_behind(wait, earlier) {
                    turns.extend(behind.get(&other).into_iter().flatten());
                    continue;
                }
                blockers.push(RangeBlocker { owner: earlier.owner, span: earlier.span, is_held: false, op: earlier.op });
                is_implied |= earlier.span.contains(&wait.span);
                if wait.span.contains(&earlier.span) && front.remove(&earlier.span, other) {
                    behind.entry(*turn).or_default().push(other);
                }
            }
            if !is_implied {
                let holders = self.holders(wait, *budget);
                *budget = budget.saturating_sub(holders.len());
                blockers.extend(holders.into_values());
            }
            if *budget == 0 {
                break;
            }
            front.insert(&wait.span, *turn);
            edges.push((wait, blockers));
        }
        edges
    }

    /// Who has what a wait wants, each once.
    fn holders(&self, wait: &RangeWait, most: usize) -> BTreeMap<RangeOwner, RangeBlocker> {
        let held = self.spans.excluders(&wait.span).filter(|(owner, _)| *owner != wait.owner);
        let blocker = |(owner, span)| {
            let op = self.held.get(&owner).map_or(0, |owned| owned.op);
            (owner, RangeBlocker { owner, span, is_held: true, op })
        };
        held.map(blocker).take(most).collect()
    }

    fn remove(&mut self, turn: u64) -> Option<RangeWait> {
        let wait = self.waiting.remove(&turn)?;
        self.waits.remove(&wait.span, turn);
        self.turns.remove(&(wait.owner, wait.op));
        self.unjudged.remove(&turn);
        Some(wait)
    }

    /// Something in `start..=end` was given up or taken back.
    fn look_again(&mut self, start: u64, end: u64) {
        self.unjudged.extend(self.waits.overlapping(start, end).map(|(turn, _)| turn));
    }

    fn apply(&mut self, owner: RangeOwner, change: &Change) {
        for span in &change.before {
            self.spans.remove(span, owner);
        }
        for span in &change.after {
            self.spans.insert(span, owner);
        }
        if self.held.get(&owner).is_some_and(|owned| owned.spans.is_empty()) {
            self.held.remove(&owner);
        }
    }
}

#[cfg(test)]
mod tests;
