//! What: what happens when a view is learned: everybody tells each home what it is master of and what it holds; the homes tell the masters.
//! Owns: the two rounds (to the homes, to the masters), the knowledge of who had joined what.
//! Invariants: nothing new is granted here before every member has sent both rounds in this view; a master that continues keeps its queues;
//! locks of removed lives stay until their evidence is decided; a rebuilt resource exists only from the end of the recovery that rebuilt it.
//! Does not: fence, or judge evidence.
//! Called by: `service`.

use super::deadlock::Deadlocks;
use super::holder::Sent;
use super::places::Place;
use super::ranges::Reports;
use super::{LockService, Output, View};
use crate::name::Key;
use crate::peers::{ME, PeerId};
use crate::queue::{Gate, Owner, Resource};
use crate::wire::{Record, Report, ReportOp};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use deadbolt_disk_format::types::{Life, ViewNumber};

/// Most lockspaces in one record (chosen: an eighth of a message).
const JOINED_BY_MAX: usize = 1024;

/// A recovery under way in the present view.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// Members whose first round (to this home) is complete.
    homes_ended: BTreeSet<Life>,
    /// Members whose second round (to this master) is complete.
    masters_ended: BTreeSet<Life>,
    /// What each member says that itself and the owed have joined; taken when it has said all of it.
    joined: BTreeMap<Life, BTreeMap<Life, BTreeSet<u32>>>,
    /// As home: who says it is master, since which view.
    claims: BTreeMap<Key, (u64, Life)>,
    /// As home: all locks of this share.
    reports: BTreeMap<Key, Vec<(Life, Report)>>,
    /// As master: what to be or stay master of, with all its locks.
    taken: BTreeMap<Key, Vec<(PeerId, Report)>>,
    ranges: Reports,
}

/// A list as records that fit in a message; at least one, for an empty list is said too.
fn joined_by(life: Life, lockspaces: &BTreeSet<u32>) -> Vec<Record> {
    let lockspaces: Vec<u32> = lockspaces.iter().copied().collect();
    let parts = lockspaces.chunks(JOINED_BY_MAX).map(|part| Record::JoinedBy { life, lockspaces: part.to_vec() });
    let mut records: Vec<Record> = parts.collect();
    if records.is_empty() {
        records.push(Record::JoinedBy { life, lockspaces });
    }
    records
}

impl Recovery {
    /// Members that have not sent both rounds.
    pub(super) fn awaited(&self, members: &[Life]) -> Vec<Life> {
        members.iter().copied().filter(|life| !self.homes_ended.contains(life) || !self.masters_ended.contains(life)).collect()
    }
}

impl LockService {
    pub(super) fn handle_view(&mut self, view: View) {
        if view.number <= self.view.number {
            return;
        }
        // Records of the old view that are still in the outbox leave as such: their receivers judge them.
        while let Some((to, message)) = self.outbox.pop_first() {
            self.outputs.push_back(Output::Send { to, message });
        }
        let last = core::mem::replace(&mut self.view, view);
        self.forget_joins(&last);
        self.deferred.clear();
        self.deadlocks = Deadlocks::default();
        self.counter = 0;
        self.share_counter = 0;
        self.drop_gone(&last);
        self.recovery = None;
        if self.view.is_member {
            self.begin_recovery();
        }
        self.replay_future();
    }

    /// Keeps what is certainly complete. A life removed at the latest in the view after our last could join nothing behind our back; a
    /// member tells its own list again.
    fn forget_joins(&mut self, last: &View) {
        let is_next = last.is_member && self.view.number == last.number + 1;
        let (me, view) = (self.me, &self.view);
        self.joins.retain(|life, _| {
            let is_owed_known = view.owed.iter().any(|owed| owed.life == *life && last.is_member && owed.removed_in.0 <= last.number + 1);
            *life == me || (is_next && view.members.contains(life)) || is_owed_known
        });
    }

    /// Locks of lives that are neither members nor owed are dropped: the view that left them out names their evidence.
    fn drop_gone(&mut self, last: &View) {
        let view = &self.view;
        let is_kept = |life: &Life| view.members.contains(life) || view.owed.iter().any(|owed| owed.life == *life);
        // Somebody else may have been master in views that this life was not in.
        let may_be_stale = last.number != 0 && (view.number != last.number + 1 || !last.is_member);
        let peers = &self.peers;
        let is_kept = |peer: PeerId| peers.life(peer).is_some_and(|life| is_kept(&life));
        self.owners.retain(|owner, _| is_kept(owner.peer));
        for (_, resource) in self.mastered.iter_mut() {
            #[cfg(any(test, feature = "planted"))]
            let was_invalid = resource.lvb.is_invalid;
            resource.retain_lives(is_kept);
            resource.lvb.is_invalid |= may_be_stale;
            resource.begin_recovery();
            #[cfg(any(test, feature = "planted"))]
            if self.mistake == Some(super::Mistake::KeepDeadLvb) {
                resource.lvb.is_invalid = was_invalid;
            }
        }
    }

    fn replay_future(&mut self) {
        let messages = core::mem::take(&mut self.future);
        for (from, view, message) in messages {
            if view > self.view.number {
                self.future.push_back((from, view, message));
            } else if view == self.view.number {
                self.handle_peer(from, &message);
            }
        }
    }

    fn begin_recovery(&mut self) {
        self.recovery = Some(Recovery::default());
        let members = self.view.members.clone();
        for lockspace in self.lockspaces.values_mut() {
            lockspace.announced_in = Some(self.view.number);
        }
        let owed: Vec<Life> = self.view.owed.iter().map(|owed| owed.life).collect();
        let known: Vec<Record> = self
            .joins
            .iter()
            .filter(|(life, _)| **life == self.me || owed.contains(life))
            .flat_map(|(life, lockspaces)| joined_by(*life, lockspaces))
            .collect();
        for record in known {
            self.send_others(&record);
        }
        let claims: Vec<Key> = self.mastered_places().into_iter().filter_map(|place| self.places.key(place)).collect();
        for key in claims {
            self.send(self.home(&key), Record::Claim { key, firm: self.firm });
        }
        for report in self.reports() {
            self.send(self.home(&report.key), Record::Report(report));
        }
        self.report_ranges();
        for member in members {
            self.send(member, Record::HomeEnd);
        }
    }

    /// Every lock of this node, with its operation under way; from now on it is the new master's matter.
    fn reports(&mut self) -> Vec<Report> {
        self.lookups.clear();
        let mut unused = Vec::new();
        for (number, place) in self.places.iter_mut() {
            (place.master, place.is_looking, place.appointed) = (None, false, None);
            if place.locks == 0 && !place.is_master() {
                unused.push(number);
            }
        }
        for number in unused {
            self.places.forget_if_unused(number);
        }
        let mut reports = Vec::new();
        for (id, lock) in self.locks.iter_mut() {
            let Some(key) = self.places.key(lock.place) else { continue };
            #[cfg(any(test, feature = "planted"))]
            if self.mistake == Some(super::Mistake::ForgetOrphan) && lock.session == crate::wire::NO_SESSION {
                continue;
            }
            (lock.at, lock.is_renamed) = (None, false);
            if let Some(pending) = &mut lock.pending {
                pending.sent = Sent::ToMaster;
                pending.is_cancel_sent = pending.is_cancelled;
            }
            let pending = lock.pending.as_ref().map(|pending| ReportOp {
                kind: pending.kind,
                mode: pending.mode,
                flags: pending.flags,
                lvb: pending.lvb,
                is_cancelled: pending.is_cancelled,
            });
            let (pid, party, op, granted, token, lvb) = (lock.pid, lock.party(), lock.op, lock.granted, lock.token, lock.lvb());
            reports.push(Report { key, lock: id, pid, party, op, granted, token, lvb, pending });
        }
        #[cfg(any(test, feature = "planted"))]
        if self.mistake == Some(super::Mistake::ForgetWaiter) {
            reports.retain(|report| report.granted.is_some());
        }
        reports
    }

    pub(super) fn handle_recovery(&mut self, from: Life, record: Record) {
        let Some(recovery) = &mut self.recovery else { return };
        match record {
            Record::JoinedBy { life, lockspaces } => {
                recovery.joined.entry(from).or_default().entry(life).or_default().extend(lockspaces);
            }
            Record::Claim { key, firm } => {
                let claim = recovery.claims.entry(key).or_insert((firm, from));
                if claim.0 < firm {
                    *claim = (firm, from);
                }
            }
            Record::Report(report) => recovery.reports.entry(report.key).or_default().push((from, report)),
            Record::HomeEnd => {
                recovery.homes_ended.insert(from);
                // Not before: a list that is cut short by the next view must not pass for a whole one.
                for (life, lockspaces) in recovery.joined.remove(&from).unwrap_or_default() {
                    if life == from {
                        self.joins.insert(life, lockspaces);
                    } else if self.view.owed.iter().any(|owed| owed.life == life) {
                        self.joins.entry(life).or_default().extend(lockspaces);
                    }
                }
                if self.view.members.iter().all(|life| recovery.homes_ended.contains(life)) {
                    self.appoint_masters();
                }
            }
            Record::Take { key } => {
                recovery.taken.entry(key).or_default();
            }
            Record::Forward { origin, report } => {
                let origin = self.peers.id(origin);
                recovery.taken.entry(report.key).or_default().push((origin, report));
            }
            Record::Range(record) => recovery.ranges.take(from, record, |life| self.peers.id(life)),
            Record::MasterEnd => {
                recovery.masters_ended.insert(from);
                let is_done = |life: &Life| recovery.masters_ended.contains(life);
                #[cfg(any(test, feature = "planted"))]
                let is_done = |life: &Life| is_done(life) || self.mistake == Some(super::Mistake::GrantWithoutRebuild);
                if self.view.members.iter().all(is_done) {
                    self.finish_recovery();
                }
            }
            _ => {}
        }
    }

    /// As home: every member has told what it has. A master that lives stays; else a holder, so that its own locks are near.
    fn appoint_masters(&mut self) {
        let Some(recovery) = &mut self.recovery else { return };
        let claims = core::mem::take(&mut recovery.claims);
        let mut reports = core::mem::take(&mut recovery.reports);
        let mut ranges = core::mem::take(&mut recovery.ranges.at_home);
        let keys: BTreeSet<Key> = claims.keys().chain(reports.keys()).copied().collect();
        for key in keys {
            let mut locks = reports.remove(&key).unwrap_or_default();
            // Reports of one node come in the order of its requests; the nodes' order among each other is not known.
            locks.sort_by_key(|(life, _)| life.slot);
            let holder = locks.iter().find(|(_, report)| report.granted.is_some()).or(locks.first()).map(|(life, _)| *life);
            let Some(master) = claims.get(&key).map(|(_, life)| *life).or(holder) else { continue };
            let appointed = self.peers.id(master);
            self.appoint(&key, appointed);
            self.send(master, Record::Take { key });
            let origins: BTreeSet<Life> = locks.iter().map(|(life, _)| *life).collect();
            for (origin, report) in locks {
                self.send(master, Record::Forward { origin, report });
            }
            self.forward_ranges(master, key, ranges.remove(&key).unwrap_or_default());
            for origin in origins {
                self.send(origin, Record::MasterIs { key, master, counter: 0, is_taken: false });
            }
        }
        for member in self.view.members.clone() {
            self.send(member, Record::MasterEnd);
        }
    }

    /// Every home has told every master: the lock service of this view begins here.
    fn finish_recovery(&mut self) {
        let Some(recovery) = self.recovery.take() else { return };
        let (number, taken, mut ranges) = (self.view.number, recovery.taken, recovery.ranges);
        let known: Vec<u32> = self.names.keys().copied().collect();
        for name in known {
            self.forget_name(name);
        }
        for number in self.mastered_places() {
            if self.places.key(number).is_some_and(|key| !taken.contains_key(&key)) {
                self.unmaster(number);
            }
        }
        // Reports name every lock of the members; of the owed only masters know.
        let (peers, places, members) = (&self.peers, &self.places, &self.view.members);
        self.owners.retain(|owner, place| {
            places.get(*place).is_some_and(Place::is_master) && peers.life(owner.peer).is_some_and(|life| !members.contains(&life))
        });
        self.firm = number;
        let (resources, locks) = (taken.len(), taken.values().map(Vec::len).sum::<usize>());
        let keys: Vec<Key> = taken.keys().copied().collect();
        for (key, reports) in taken {
            self.take_over(key, &reports);
            self.take_over_ranges(&key, &reports, &mut ranges);
        }
        self.log(format!("view {number}: recovered {resources} resources with {locks} locks of members"));
        self.outputs.push_back(Output::Recovered(ViewNumber(number)));
        let spaces: Vec<u32> = self.lockspaces.keys().copied().collect();
        for space in spaces {
            // What stood in this life's list is confirmed by the second round of every member, which came after its first.
            if let Some(lockspace) = self.lockspaces.get_mut(&space)
                && lockspace.announced_in == Some(number)
            {
                lockspace.confirmed.extend(self.view.members.iter().copied());
            }
            self.announce(space);
            self.finish_join(space);
        }
        for key in keys {
            if let Some(place) = self.places.find(&key) {
                self.settle(place);
            }
        }
        let ids: Vec<u32> = self.locks.iter().filter(|(_, lock)| lock.pending.is_some()).map(|(id, _)| id).collect();
        for id in ids {
            self.advance(id);
        }
        self.ask_again();
        self.advance_ranges();
        self.pump();
        while let Some((from, record)) = self.deferred.pop_front() {
            self.handle_record(from, record);
            self.pump();
        }
    }

    #[cfg(any(test, feature = "planted"))]
    fn mistaken(&self, mut resource: Resource) -> Resource {
        resource.lvb.is_invalid &= self.mistake != Some(super::Mistake::TrustRebuiltLvb);
        resource
    }

    fn take_over(&mut self, key: Key, reports: &[(PeerId, Report)]) {
        // Judged only when all are in: `settle` follows.
        let gate = Gate { may_grant: false, ..self.gate(key.lockspace) };
        let mut out = Vec::new();
        let number = self.places.intern(&key);
        let is_lone = |lone: u32| matches!(reports, [(ME, report)] if report.lock == lone && report.pending.is_none());
        if self.places.get(number).is_some_and(|place| place.lone != 0 && is_lone(place.lone)) {
            return;
        }
        self.unfold(number);
        for (life, report) in reports {
            self.remember_owner(&Owner { peer: *life, lock: report.lock }, number);
        }
        let queues = self.places.get(number).map_or(0, |place| place.mastered);
        if let Some(resource) = self.mastered.get_mut(queues) {
            for (life, report) in reports {
                resource.reconcile(*life, report, gate, &mut out);
            }
            let (peers, members) = (&self.peers, &self.view.members);
            resource.drop_unconfirmed(|peer| peers.life(peer).is_some_and(|life| members.contains(&life)));
        } else {
            let resource = Resource::rebuild(reports, gate, &mut out);
            #[cfg(any(test, feature = "planted"))]
            let resource = self.mistaken(resource);
            self.master(number, resource);
        }
        self.tell(out);
    }
}
