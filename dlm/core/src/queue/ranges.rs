//! What: the byte ranges of a resource: they belong to its locks and end with them.
//! Owns: the way from range operations to what holders are told.
//! Invariants: only locks on this resource have ranges; memory for ranges is there only while somebody has or wants one.
//! Does not: judge ranges; `ranges` does.
//! Called by: `queue`, `service::ranges`.

use super::{Entry, Gate, Notice, Notices, Owner, Resource};
use crate::mode::LockStatus;
use crate::peers::ME;
use crate::ranges::{RangeMode, RangeOwner, RangeResult, RangeWait, Ranges, Span};
use crate::wire::RangeReport;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

fn tell(results: Vec<RangeResult>, out: &mut Notices) {
    out.extend(results.into_iter().map(|result| (result.owner.owner, Notice::Range { op: result.op, status: result.status })));
}

impl Resource {
    /// An owner asks for a range.
    pub(crate) fn ask_range(&mut self, wait: RangeWait, gate: Gate, out: &mut Notices) {
        let mut results = Vec::new();
        self.ranges.get_or_insert_with(Box::default).ask(wait, gate.may_grant, &mut results);
        tell(results, out);
        self.settle_ranges(gate, out);
    }

    /// An owner keeps less.
    pub(crate) fn lower_range(
        &mut self,
        owner: RangeOwner,
        op: u64,
        bytes: (u64, u64),
        mode: Option<RangeMode>,
        gate: Gate,
        out: &mut Notices,
    ) {
        if let Some(ranges) = &mut self.ranges {
            ranges.lower(owner, bytes, mode);
        }
        out.push((owner.owner, Notice::Range { op, status: LockStatus::Success }));
        self.settle_ranges(gate, out);
    }

    /// A wait ends without what it waited for, if it is still there.
    pub(crate) fn end_range(&mut self, owner: RangeOwner, op: u64, status: LockStatus, gate: Gate, out: &mut Notices) {
        if let Some(ranges) = &mut self.ranges {
            let mut results = Vec::new();
            ranges.end(owner, op, status, &mut results);
            tell(results, out);
        }
        self.settle_ranges(gate, out);
    }

    /// What keeps an owner from a range, and the process of that lock.
    pub(crate) fn range_conflict(&self, owner: RangeOwner, span: &Span) -> Option<(RangeOwner, Span, u32)> {
        let (other, piece) = self.ranges.as_ref()?.conflict(owner, span)?;
        Some((other, piece, self.find(other.owner).map_or(0, |entry| entry.pid)))
    }

    /// All that a lock has and waits for, by its holder's word, in recovery.
    pub(crate) fn adopt_ranges(&mut self, owner: Owner, reports: &[RangeReport], gate: Gate, out: &mut Notices) {
        if self.ranges.is_none() && reports.is_empty() {
            return;
        }
        let ranges = self.ranges.get_or_insert_with(Box::default);
        ranges.drop_held(owner);
        let mut results = Vec::new();
        for report in reports {
            let owner = RangeOwner { owner, number: report.number };
            if report.op == 0 {
                ranges.adopt(owner, &report.span, 0);
            } else if report.is_cancelled && !ranges.is_waiting(owner, report.op) {
                results.push(RangeResult { owner, op: report.op, status: LockStatus::Cancelled });
            } else if report.is_cancelled {
                ranges.end(owner, report.op, LockStatus::Cancelled, &mut results);
            } else if !ranges.is_waiting(owner, report.op) {
                let wait = RangeWait { owner, op: report.op, span: report.span, flags: report.flags, since_ms: gate.now_ms };
                ranges.ask(wait, false, &mut results);
            }
        }
        // What its holder does not wait for any more is over.
        let reported: BTreeSet<u64> = reports.iter().map(|report| report.op).collect();
        for (number, op) in ranges.waits_of(owner).into_iter().filter(|(_, op)| !reported.contains(op)) {
            ranges.end(RangeOwner { owner, number }, op, LockStatus::Cancelled, &mut Vec::new());
        }
        ranges.thaw(owner);
        tell(results, out);
    }

    /// A view begins: what waits for others than this node is reported anew.
    pub(super) fn freeze_ranges(&mut self) {
        if let Some(ranges) = &mut self.ranges {
            ranges.freeze(|owner| owner.peer != ME);
        }
    }

    pub(super) fn settle_ranges(&mut self, gate: Gate, out: &mut Notices) {
        let Some(ranges) = &mut self.ranges else { return };
        let mut results = Vec::new();
        ranges.settle(gate.may_grant, &mut results);
        if ranges.is_empty() {
            self.ranges = None;
        }
        tell(results, out);
    }

    pub(super) fn drop_ranges(&mut self, owner: Owner) {
        if let Some(ranges) = &mut self.ranges {
            ranges.drop_lock(owner);
        }
    }

    /// Locks were dropped: so are their ranges.
    pub(super) fn drop_stray_ranges(&mut self) {
        let Some(mut ranges) = self.ranges.take() else { return };
        for owner in ranges.owners() {
            if self.find(owner).is_none() {
                ranges.drop_lock(owner);
            }
        }
        self.ranges = Some(ranges);
    }

    /// Who has and who wants which bytes, where anybody does.
    pub(crate) fn range_table(&self) -> Option<&Ranges> {
        self.ranges.as_deref()
    }

    /// A lock of this resource.
    pub(crate) fn find(&self, owner: Owner) -> Option<&Entry> {
        self.granted.get(owner).or_else(|| self.converting.get(owner)).or_else(|| self.waiting.get(owner))
    }
}
