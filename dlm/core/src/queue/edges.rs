//! What: who waits on a resource, and for whom.
//! Owns: the reasons of the grant rules, told as edges.
//! Invariants: every edge is a reason by itself why its wait cannot end; what is left out follows from edges that are there, unless the
//! budget ends first.
//! Does not: look beyond the resource.
//! Called by: `service::deadlock`.

use super::{Entry, Gate, Notices, Owner, Place, Resource};
use crate::cycle::Claim;
use crate::mode::{Flags, LockStatus, MODES, Mode};
use crate::ranges::RangeOwner;
use alloc::vec::Vec;

/// Who stands in the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResourceBlocker {
    pub(crate) owner: Owner,
    /// Of the owners of ranges that one lock has.
    pub(crate) part: u64,
    pub(crate) claim: Claim,
    pub(crate) is_held: bool,
    pub(crate) mark: u64,
}

/// A wait on this resource.
#[derive(Clone, Debug)]
pub(crate) struct ResourceWait {
    pub(crate) owner: Owner,
    pub(crate) part: u64,
    pub(crate) op: u64,
    pub(crate) is_range: bool,
    pub(crate) claim: Claim,
    pub(crate) flags: Flags,
    pub(crate) since_ms: u64,
    pub(crate) blockers: Vec<ResourceBlocker>,
}

/// Does whatever keeps `other` out keep `mode` out, too?
fn is_no_stronger(mode: Mode, other: Mode) -> bool {
    MODES.into_iter().all(|held| held.is_compatible(mode) || !held.is_compatible(other))
}

impl Entry {
    /// Does this granted lock keep `wait` waiting? In every mode that it would be content with.
    fn is_in_the_way(&self, wait: &Self) -> bool {
        let excludes = |mode: Mode| self.granted.is_some_and(|granted| !granted.is_compatible(mode));
        self.owner != wait.owner && wait.wanted.is_some_and(excludes) && wait.alternative().is_none_or(excludes)
    }

    /// Does whatever holder keeps this waiting keep `other` waiting, too (or is `other`)?
    fn waits_for_no_more_than(&self, other: &Self) -> bool {
        other.alternative().is_none() && self.wanted.zip(other.wanted).is_some_and(|(mine, its)| is_no_stronger(mine, its))
    }

    fn as_holder(&self) -> ResourceBlocker {
        let claim = Claim::Mode(self.granted.unwrap_or(Mode::Nl));
        ResourceBlocker { owner: self.owner, part: 0, claim, is_held: true, mark: self.token.counter }
    }

    fn as_earlier(&self) -> ResourceBlocker {
        let claim = Claim::Mode(self.wanted.unwrap_or(Mode::Nl));
        ResourceBlocker { owner: self.owner, part: 0, claim, is_held: false, mark: self.op }
    }

    fn as_wait(&self, blockers: Vec<ResourceBlocker>) -> ResourceWait {
        let claim = Claim::Mode(self.wanted.unwrap_or(Mode::Nl));
        let (owner, op, flags, since_ms) = (self.owner, self.op, self.flags, self.since_ms);
        ResourceWait { owner, part: 0, op, is_range: false, claim, flags, since_ms, blockers }
    }
}

impl Resource {
    /// Since when the longest wait lasts.
    pub(crate) fn waits_since(&self) -> Option<u64> {
        let queued = self.converting.iter().chain(self.waiting.iter()).map(|entry| entry.since_ms);
        queued.chain(self.range_table().into_iter().flat_map(|ranges| ranges.waiting().map(|wait| wait.since_ms))).min()
    }

    pub(crate) fn has_waits(&self) -> bool {
        !self.converting.is_empty()
            || !self.waiting.is_empty()
            || self.range_table().is_some_and(|ranges| ranges.waiting().next().is_some())
    }

    /// Every wait that began at the latest at `until_ms`, until `budget` blockers are told.
    pub(crate) fn waits(&self, until_ms: u64, budget: &mut usize) -> Vec<ResourceWait> {
        let mut waits = Vec::new();
        self.line_waits(true, budget, &mut waits);
        self.line_waits(false, budget, &mut waits);
        waits.extend(self.range_waits(budget));
        waits.retain(|wait| wait.since_ms <= until_ms);
        waits
    }

    fn line_waits(&self, is_converting: bool, budget: &mut usize, waits: &mut Vec<ResourceWait>) {
        let line = if is_converting { &self.converting } else { &self.waiting };
        // The last that keeps the order, and those behind it that do not: what comes next waits for all of them.
        let mut ahead: Vec<&Entry> = Vec::new();
        let is_ordered = |entry: &Entry| !entry.flags.has(Flags::NOORDER);
        for (index, entry) in line.iter().enumerate() {
            if *budget == 0 {
                return;
            }
            let before: &[&Entry] = if is_ordered(entry) { &ahead } else { &[] };
            let mut blockers: Vec<ResourceBlocker> = before.iter().map(|other| other.as_earlier()).collect();
            if !before.iter().any(|other| entry.waits_for_no_more_than(other)) {
                blockers.extend(self.holders_before(entry, *budget));
            }
            if is_ordered(entry) && !is_converting && !before.iter().any(|other| is_ordered(other)) && !self.is_waiting_owed() {
                // Behind all conversions; who keeps the order behind it is so by this.
                blockers.extend(self.converting.iter().take(*budget).map(Entry::as_earlier));
            }
            let place = if index == 0 { Place::First } else { Place::Behind };
            blockers.extend(self.yields_to(entry, place).map(Entry::as_earlier));
            *budget = budget.saturating_sub(blockers.len());
            waits.push(entry.as_wait(blockers));
            if is_ordered(entry) {
                ahead.clear();
            }
            ahead.push(entry);
        }
    }

    fn holders_before(&self, entry: &Entry, most: usize) -> Vec<ResourceBlocker> {
        let holders = self.granted.iter().chain(self.converting.iter());
        holders.filter(|holder| holder.is_in_the_way(entry)).take(most).map(Entry::as_holder).collect()
    }

    fn range_waits(&self, budget: &mut usize) -> Vec<ResourceWait> {
        let edges = self.range_table().map(|ranges| ranges.edges(budget)).unwrap_or_default();
        let waits = edges.into_iter().map(|(wait, blockers)| ResourceWait {
            owner: wait.owner.owner,
            part: wait.owner.number,
            op: wait.op,
            is_range: true,
            claim: Claim::Range(wait.span),
            flags: wait.flags,
            since_ms: wait.since_ms,
            blockers: blockers
                .into_iter()
                .map(|blocker| ResourceBlocker {
                    owner: blocker.owner.owner,
                    part: blocker.owner.number,
                    claim: Claim::Range(blocker.span),
                    is_held: blocker.is_held,
                    mark: blocker.op,
                })
                .collect(),
        });
        waits.collect()
    }

    /// Whose part waits by this operation; none: it does not wait.
    pub(crate) fn waiting_part(&self, owner: Owner, op: u64, is_range: bool) -> Option<u64> {
        if is_range {
            let wait = self.range_table()?.waiting().find(|wait| wait.owner.owner == owner && wait.op == op);
            return wait.map(|wait| wait.owner.number);
        }
        self.find(owner).filter(|entry| entry.op == op && entry.wanted.is_some()).map(|_| 0)
    }

    /// A wait fails to end a deadlock. Not under a closed gate: a lost master may have granted it.
    pub(crate) fn fail_wait(&mut self, owner: Owner, op: u64, is_range: bool, gate: Gate, out: &mut Notices) {
        let Some(number) = self.waiting_part(owner, op, is_range).filter(|_| gate.may_grant) else { return };
        if is_range {
            self.end_range(RangeOwner { owner, number }, op, LockStatus::Deadlock, gate, out);
        } else if let Some(entry) = self.take(owner) {
            self.fail(entry, LockStatus::Deadlock, out);
            self.settle(gate, out);
        }
    }
}
