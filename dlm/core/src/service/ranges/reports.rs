//! What: ranges in recovery: each holder's word of what it has and waits for, by way of the homes to the masters.
//! Owns: the reports under way.
//! Invariants: a master takes a lock's ranges from its holder's report and from nowhere else.
//! Does not: choose masters.
//! Called by: `service::recovery`.

use super::{LockService, Step};
use crate::mode::{Flags, LockStatus};
use crate::name::Key;
use crate::peers::PeerId;
use crate::queue::{Gate, Owner};
use crate::wire::{RangeRecord, RangeReport, Record, Report};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;

/// What has been reported in this recovery.
#[derive(Debug, Default)]
pub(in crate::service) struct Reports {
    /// As home.
    pub(in crate::service) at_home: BTreeMap<Key, Vec<(Life, RangeReport)>>,
    /// As master, by lock.
    taken: BTreeMap<(Key, Owner), Vec<RangeReport>>,
}

impl Reports {
    pub(in crate::service) fn take(&mut self, from: Life, record: RangeRecord, peer_of: impl FnOnce(Life) -> PeerId) {
        match record {
            RangeRecord::ReportRange { key, report } => self.at_home.entry(key).or_default().push((from, report)),
            RangeRecord::ForwardRange { origin, key, report } => {
                let owner = Owner { peer: peer_of(origin), lock: report.lock };
                self.taken.entry((key, owner)).or_default().push(report);
            }
            _ => {}
        }
    }
}

impl LockService {
    /// As home: what the master of a resource must hear.
    pub(in crate::service) fn forward_ranges(&mut self, master: Life, key: Key, reports: Vec<(Life, RangeReport)>) {
        for (origin, report) in reports {
            self.send(master, Record::Range(RangeRecord::ForwardRange { origin, key, report }));
        }
    }

    /// All that this node's locks have and wait for; from now on it is the new masters' matter.
    pub(in crate::service) fn report_ranges(&mut self) {
        let mut records = Vec::new();
        for (id, ranges) in &mut self.ranges.locks {
            let Some(key) = self.locks.get(*id).and_then(|lock| self.places.key(lock.place)) else { continue };
            let mut report = |op, number, span, flags, is_cancelled| {
                let report = RangeReport { lock: *id, op, number, span, flags, is_cancelled };
                records.push((key, Record::Range(RangeRecord::ReportRange { key, report })));
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
        }
        for (key, record) in records {
            self.send(self.home(&key), record);
        }
    }

    /// As master, at the end of a recovery.
    pub(in crate::service) fn take_over_ranges(&mut self, key: &Key, locks: &[(PeerId, Report)], reports: &mut Reports) {
        let Some(number) = self.places.find(key) else { return };
        if locks.iter().any(|(peer, report)| reports.taken.contains_key(&(*key, Owner { peer: *peer, lock: report.lock }))) {
            self.unfold(number);
        }
        let Some(place) = self.places.get(number) else { return };
        let gate = Gate { may_grant: false, ..self.gate(key.lockspace) };
        let Some(resource) = self.mastered.get_mut(place.mastered) else { return };
        let mut out = Vec::new();
        for (peer, report) in locks {
            let owner = Owner { peer: *peer, lock: report.lock };
            let ranges = reports.taken.remove(&(*key, owner)).unwrap_or_default();
            if resource.has(owner) {
                resource.adopt_ranges(owner, &ranges, gate, &mut out);
            }
        }
        self.tell(out);
    }

    /// As holder, at the end of a recovery.
    pub(in crate::service) fn advance_ranges(&mut self) {
        let ops = self.ranges.locks.iter().flat_map(|(id, ranges)| ranges.ops.iter().map(|(op, what)| (*id, *op, what.is_sent, what.step)));
        for (id, op, is_sent, step) in ops.collect::<Vec<_>>() {
            match step {
                Step::Lower { .. } if is_sent => self.finish_range(id, op, LockStatus::Success),
                // Also what was taken back meanwhile.
                _ => self.advance_range(id, op),
            }
        }
    }
}
