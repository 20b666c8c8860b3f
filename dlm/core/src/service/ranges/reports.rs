//! What: ranges in recovery: each holder's word of what it has and waits for, to the masters that live, or by way of the homes to the new ones.
//! Owns: the reports under way.
//! Invariants: a master takes a lock's ranges from its holder's report and from nowhere else.
//! Does not: choose masters.
//! Called by: `service::recovery`.

use super::{LockService, RangeOp, Step};
use crate::mode::{Flags, LockStatus};
use crate::name::Key;
use crate::peers::{ME, PeerId};
use crate::queue::{Gate, Owner};
use crate::wire::{RangeRecord, RangeReport, Record, Report};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;

/// What has been reported in this view.
#[derive(Debug, Default)]
pub(in crate::service) struct Reports {
    /// As home.
    at_home: BTreeMap<Key, Vec<(Life, RangeReport)>>,
    /// As master, by lock.
    taken: BTreeMap<Owner, Vec<RangeReport>>,
}

impl LockService {
    pub(in crate::service) fn take_range_report(&mut self, from: PeerId, record: RangeRecord) {
        match record {
            RangeRecord::BeginRange { lock, .. } => {
                self.range_reports.taken.insert(Owner { peer: from, lock }, Vec::new());
            }
            RangeRecord::ReportRange { key, report } => {
                let owner = Owner { peer: from, lock: report.lock };
                if let Some(reports) = self.range_reports.taken.get_mut(&owner) {
                    reports.push(report);
                } else if let Some(life) = self.peers.life(from) {
                    self.range_reports.at_home.entry(key).or_default().push((life, report));
                }
            }
            RangeRecord::ForwardRange { origin, report, .. } => {
                let owner = Owner { peer: self.peers.id(origin), lock: report.lock };
                self.range_reports.taken.entry(owner).or_default().push(report);
            }
            _ => {}
        }
    }

    /// As home: what the master of a resource must hear, before the locks themselves.
    pub(in crate::service) fn forward_ranges(&mut self, master: PeerId, key: Key) {
        for (origin, report) in self.range_reports.at_home.remove(&key).unwrap_or_default() {
            self.send_to(master, Record::Range(RangeRecord::ForwardRange { origin, key, report }));
        }
    }

    /// All that a lock has and waits for, before the lock itself: to the home of a lost resource, or to a master that lives, which may
    /// have missed something only when an operation was under way.
    pub(in crate::service) fn report_ranges(&mut self, to: Life, id: u32, is_lost: bool) {
        let Some(key) = self.locks.get(id).and_then(|lock| self.places.key(lock.place)) else { return };
        let Some(ranges) = self.ranges.locks.get_mut(&id).filter(|ranges| is_lost || !ranges.ops.is_empty()) else { return };
        let mut records = Vec::new();
        let mut report = |op, number, span, flags, is_cancelled| {
            let report = RangeReport { lock: id, op, number, span, flags, is_cancelled };
            records.push(RangeRecord::ReportRange { key, report });
        };
        for (number, spans) in &ranges.held {
            spans.iter().for_each(|span| report(0, *number, span, Flags::NONE, false));
        }
        for (op, what) in &mut ranges.ops {
            // What was given up is in the report by not being there; questions are asked anew.
            what.is_sent = !matches!(what.step, Step::Query(_));
            if let Step::Ask(span) = what.step {
                report(*op, what.number, span, what.flags, what.ends_as.is_some());
            }
        }
        let is_lowered = |(_, what): &(&u64, &RangeOp)| matches!(what.step, Step::Lower { .. });
        let lowered: Vec<u64> = ranges.ops.iter().filter(is_lowered).map(|(op, _)| *op).collect();
        if !is_lost {
            self.send(to, Record::Range(RangeRecord::BeginRange { lock: id, op: 0 }));
        }
        for record in records {
            self.send(to, Record::Range(record));
        }
        for op in lowered {
            self.finish_range(id, op, LockStatus::Success);
        }
    }

    /// Locks with operations on ranges under way at masters that live. To this node itself nothing that was said is lost.
    pub(in crate::service) fn say_ranges_again(&mut self) {
        let is_under_way = |ranges: &&super::LocalRanges| !ranges.ops.is_empty();
        let ids: Vec<u32> = self.ranges.locks.iter().filter(|(_, ranges)| is_under_way(ranges)).map(|(id, _)| *id).collect();
        for id in ids {
            let at = self.locks.get(id).and_then(|lock| lock.at).filter(|at| self.is_peer_member(*at));
            if at == Some(ME) {
                let ops: Vec<u64> = self.ranges.locks.get(&id).into_iter().flat_map(|ranges| ranges.ops.keys().copied()).collect();
                ops.into_iter().for_each(|op| self.advance_range(id, op));
            } else if let (Some(life), Some(report)) = (at.and_then(|at| self.peers.life(at)), self.report(id)) {
                self.report_ranges(life, id, false);
                // Its operation under way, if it has one, is said again by itself.
                self.send(life, Record::Again(Report { pending: None, ..report }));
            }
        }
    }

    /// As holder: a master without ranges gives the lock away; what was asked of it meanwhile it has not taken.
    pub(in crate::service) fn leave_ranges_unsaid(&mut self, id: u32) {
        let ops = self.ranges.locks.get_mut(&id).into_iter().flat_map(|ranges| ranges.ops.values_mut());
        ops.for_each(|what| what.is_sent = false);
    }

    /// As master: what came before the lock.
    pub(in crate::service) fn take_over_ranges(&mut self, place: u32, owner: Owner) {
        let Some(ranges) = self.range_reports.taken.remove(&owner) else { return };
        self.unfold(place);
        let gate = Gate { may_grant: false, ..self.gate() };
        let mut out = Vec::new();
        let queues = self.places.get(place).map_or(0, |place| place.mastered);
        if let Some(resource) = self.mastered.get_mut(queues).filter(|resource| resource.has(owner)) {
            resource.adopt_ranges(owner, &ranges, gate, &mut out);
        }
        self.tell(out);
    }

    /// As holder: the master has all that was reported.
    pub(in crate::service) fn advance_ranges(&mut self, id: u32) {
        let Some(ranges) = self.ranges.locks.get(&id) else { return };
        // Also what was taken back meanwhile.
        for op in ranges.ops.keys().copied().collect::<Vec<_>>() {
            self.advance_range(id, op);
        }
    }
}
