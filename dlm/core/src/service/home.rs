//! What: the service as home: who is master of a resource, and who becomes it.
//! Owns: the appointments, lookups that wait, the rebuild of resources whose master is lost.
//! Invariants: a free resource is given away only with authority over it; a lost one is rebuilt only when every member has answered in this
//!   view and nobody is owed; an appointment with rebuilt locks that was not confirmed in its view ends all authority.
//! Does not: judge locks.
//! Called by: `service`.

use super::authority::Authority;
use super::{LockService, Output};
use crate::name::Key;
use crate::peers::{ME, PeerId};
use crate::queue::{Gate, Owner, Resource};
use crate::wire::{LvbCopy, OpKind, Record, Report};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;
use deadbolt_disk_format::types::{Life, ViewNumber};

/// A resource that this node is to be master of, with its locks as far as they came.
#[derive(Debug)]
pub(super) struct Taking {
    pub(super) counter: u64,
    pub(super) stamp: u32,
    pub(super) reports: Vec<(PeerId, Report)>,
}

/// Who asks a home, and with which operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lookup {
    pub(super) owner: Owner,
    pub(super) op: u64,
    /// It was told of a master that is none.
    pub(super) is_retry: bool,
}

impl LockService {
    /// Answers a lookup, or keeps it until it can be answered.
    pub(super) fn look_up(&mut self, key: &Key, lookup: Lookup) {
        let number = self.places.intern(key);
        if self.moves.is_moving(number) {
            return self.parked.entry(number).or_default().push(lookup);
        }
        let Some(place) = self.places.get_mut(number) else { return };
        let appointed = place.appointed;
        if let Some(master) = appointed.filter(|master| self.is_peer_member(*master)) {
            #[cfg(any(test, feature = "planted"))]
            let master = if self.mistake == Some(super::Mistake::TwoMasters) { lookup.owner.peer } else { master };
            if lookup.owner.peer == master {
                let is_asked = self.verifying.contains(&number);
                self.appoint(number, key, master, is_asked);
            } else if lookup.is_retry || self.verifying.contains(&number) {
                if self.verifying.insert(number) {
                    self.appoint(number, key, master, true);
                }
                self.parked.entry(number).or_default().push(Lookup { is_retry: false, ..lookup });
            } else {
                self.say_master(lookup.owner.peer, key, master, (0, false));
            }
            return;
        }
        if !self.is_free(number, key) {
            self.parked.entry(number).or_default().push(lookup);
            return;
        }
        self.appoint(number, key, lookup.owner.peer, false);
    }

    /// Nobody has anything on it, for certain.
    pub(super) fn is_free(&self, number: u32, key: &Key) -> bool {
        let is_lost = self.places.get(number).is_some_and(|place| place.appointed.is_some());
        #[cfg(any(test, feature = "planted"))]
        let is_lost = is_lost && self.mistake != Some(super::Mistake::LostIsFree);
        let is_reported = self.reports.contains_key(&number) || self.unconfirmed.contains(&number);
        !is_reported && (self.is_complete || (!is_lost && self.authority.covers(key)))
    }

    /// Makes somebody master of a resource without locks, or says so again: the word may be lost, and a return of mastery too.
    fn appoint(&mut self, number: u32, key: &Key, master: PeerId, is_asked: bool) {
        let stamp = self.appoint_anew(number, master);
        self.say_master(master, key, master, (stamp, is_asked));
    }

    /// Gives the number of the appointment.
    pub(super) fn appoint_anew(&mut self, number: u32, master: PeerId) -> u32 {
        let stamp = self.next_stamp();
        if let Some(place) = self.places.get_mut(number) {
            (place.appointed, place.stamp) = (Some(master), stamp);
        }
        stamp
    }

    fn next_stamp(&mut self) -> u32 {
        self.last_stamp = self.last_stamp.wrapping_add(1);
        self.last_stamp
    }

    /// Stamps of other homes are never given again here: what answers to theirs would be taken for an answer to the new one.
    fn see_stamp(&mut self, stamp: u32) {
        // Numbers that go round: which is later?
        if stamp.wrapping_sub(self.last_stamp) < u32::MAX / 2 {
            self.last_stamp = stamp;
        }
    }

    /// A node had asked and says that it has no answer: if it was made master it does not know.
    pub(super) fn doubt_appointment(&mut self, master: PeerId, key: &Key) {
        let number = self.places.find(key).unwrap_or(0);
        let is_appointed = self.places.get(number).is_some_and(|place| place.appointed == Some(master) && !place.is_master());
        if is_appointed && self.home(key) == self.me && self.verifying.insert(number) {
            self.appoint(number, key, master, true);
        }
    }

    fn say_master(&mut self, to: PeerId, key: &Key, master: PeerId, (stamp, is_asked): (u32, bool)) {
        let (key, counter) = (*key, self.share_counter);
        if let Some(master) = self.peers.life(master) {
            self.send_to(to, Record::MasterIs { key, master, counter, stamp, is_taken: false, is_asked });
        }
    }

    pub(super) fn handle_released(&mut self, from: PeerId, number: u32, counter: u64, stamp: u32) {
        #[cfg(any(test, feature = "planted"))]
        let is_forgotten = self.mistake == Some(super::Mistake::TokenReset);
        #[cfg(not(any(test, feature = "planted")))]
        let is_forgotten = false;
        if !is_forgotten {
            self.share_counter = self.share_counter.max(counter);
        }
        let Some(place) = self.places.get_mut(number) else { return };
        if place.appointed != Some(from) || self.unconfirmed.contains(&number) {
            return;
        }
        if from != ME && place.stamp != stamp {
            // Of an appointment before this one, whose word may be lost.
            let key = self.places.key(number);
            return key.into_iter().for_each(|key| self.doubt_appointment(from, &key));
        }
        place.appointed = None;
        self.verifying.remove(&number);
        self.serve_parked_at(number);
        self.forget_place(number);
    }

    /// Mastery comes back from another node.
    pub(super) fn handle_returned(&mut self, from: PeerId, key: &Key, counter: u64, stamp: u32) {
        self.see_stamp(stamp);
        let number = self.places.find(key).unwrap_or(0);
        if self.ended.len() < self.view.members.len() {
            // The former home may still have to say that it had given it away.
            self.returned.insert(*key, (from, stamp));
        }
        self.handle_released(from, number, counter, stamp);
    }

    /// Somebody says that it is master, or that it had made somebody master.
    pub(super) fn learn_claim(&mut self, key: &Key, master: PeerId, stamp: u32) {
        self.see_stamp(stamp);
        if self.returned.get(key) == Some(&(master, stamp)) {
            return;
        }
        let number = self.places.intern(key);
        if self.places.get(number).is_some_and(|place| place.appointed == Some(master) && place.stamp == stamp) {
            self.verifying.remove(&number);
        }
        let known = self.places.get(number).and_then(|place| place.appointed);
        let is_known = known.is_some_and(|known| self.is_peer_member(known));
        if let Some(place) = self.places.get_mut(number).filter(|_| !is_known) {
            (place.appointed, place.stamp) = (Some(master), stamp);
        }
        self.forward_reports(number);
        self.serve_parked_at(number);
    }

    /// This node is master of a resource whose home it is, now or again.
    pub(super) fn learn_own(&mut self, number: u32) {
        if let Some(place) = self.places.get_mut(number) {
            place.appointed = Some(ME);
        }
        self.forward_reports(number);
        self.serve_parked_at(number);
    }

    /// A lock whose master is lost - or that has one of which its holder has not heard.
    pub(super) fn handle_report(&mut self, from: PeerId, report: Report) {
        let number = self.places.intern(&report.key);
        self.reports.entry(number).or_default().push((from, report));
        self.forward_reports(number);
    }

    fn forward_reports(&mut self, number: u32) {
        let master = self.places.get(number).and_then(|place| place.appointed).filter(|master| self.is_peer_member(*master));
        let Some(master) = master else { return };
        if let Some(key) = self.places.key(number) {
            self.forward_ranges(master, key);
        }
        for (origin, report) in self.reports.remove(&number).unwrap_or_default() {
            if let Some(origin) = self.peers.life(origin) {
                self.send_to(master, Record::Forward { origin, report });
            }
        }
    }

    pub(super) fn handle_answers_end(&mut self, from: Life) {
        self.ended.insert(from);
        let has_all = self.view.members.iter().all(|life| self.ended.contains(life));
        #[cfg(any(test, feature = "planted"))]
        let has_all = has_all || self.mistake == Some(super::Mistake::GrantWithoutRebuild);
        if !has_all || self.is_complete {
            return;
        }
        self.gathered_in = self.view.number;
        self.outputs.push_back(Output::Recovered(ViewNumber(self.view.number)));
        let is_owed = !self.view.owed.is_empty();
        #[cfg(any(test, feature = "planted"))]
        let is_owed = is_owed && self.mistake != Some(super::Mistake::GrantBeforeGone);
        if is_owed {
            return;
        }
        self.is_complete = true;
        self.answers.next_lost = 1;
        self.authority = Authority::whole(&self.view.members, self.me);
        if !self.reports.is_empty() {
            let lost = self.reports.len();
            self.log(format!("view {}: rebuilding {lost} resources whose masters are gone", self.view.number));
        }
        self.doubt_hearsay();
        self.serve_parked();
    }

    /// Masters that all answers left unheard of, but for the word of a former home, which may be older than what they gave back.
    fn doubt_hearsay(&mut self) {
        for number in core::mem::take(&mut self.hearsay) {
            let master = self.places.get(number).and_then(|place| place.appointed).filter(|master| self.is_peer_member(*master));
            if let (Some(master), Some(key)) = (master, self.places.key(number)) {
                self.doubt_appointment(master, &key);
            }
        }
    }

    pub(super) fn has_rebuilding(&self) -> bool {
        self.is_complete && !self.reports.is_empty()
    }

    /// A slice of the lost resources gets new masters: holders, so that their own locks are near.
    pub(super) fn rebuild_some(&mut self, slice: u32) {
        for _ in 0..slice {
            if !self.is_complete {
                return;
            }
            let Some((number, mut locks)) = self.reports.pop_first() else { return };
            let Some(key) = self.places.key(number) else { continue };
            // Reports of one node come in the order of its requests; the nodes' order among each other is not known.
            locks.sort_by_key(|(peer, _)| self.peers.life(*peer).map(|life| life.slot));
            let holder = locks.iter().find(|(_, report)| report.granted.is_some()).or(locks.first()).map(|(peer, _)| *peer);
            let Some(master) = holder else { continue };
            let stamp = self.appoint_anew(number, master);
            self.unconfirmed.insert(number);
            self.send_to(master, Record::Take { key, counter: self.share_counter, stamp });
            self.forward_ranges(master, key);
            for (origin, report) in locks {
                if let Some(origin) = self.peers.life(origin) {
                    self.send_to(master, Record::Forward { origin, report });
                }
            }
            self.send_to(master, Record::TakeEnd { key });
            self.serve_parked_at(number);
            self.answer_parked();
        }
    }

    pub(super) fn serve_parked(&mut self) {
        self.answer_parked();
        let numbers: Vec<u32> = self.parked.keys().copied().collect();
        for number in numbers {
            self.serve_parked_at(number);
        }
    }

    pub(super) fn serve_parked_at(&mut self, number: u32) {
        let (Some(lookups), Some(key)) = (self.parked.remove(&number), self.places.key(number)) else { return };
        for lookup in lookups {
            self.look_up(&key, lookup);
        }
    }

    /// A lookup is taken back, of any operation or of this one; was there one?
    pub(super) fn drop_lookup(&mut self, owner: Owner, op: Option<u64>) -> bool {
        let is_it = |lookup: &Lookup| lookup.owner == owner && op.is_none_or(|op| lookup.op == op);
        let found = self.parked.iter().find(|(_, lookups)| lookups.iter().any(is_it)).map(|(number, _)| *number);
        let Some(number) = found else { return false };
        if let Some(lookups) = self.parked.get_mut(&number) {
            lookups.retain(|lookup| !is_it(lookup));
            if lookups.is_empty() {
                self.parked.remove(&number);
                self.forget_place(number);
            }
        }
        true
    }

    /// Forgets a place with which this node has nothing to do any more.
    pub(super) fn forget_place(&mut self, number: u32) {
        let is_awaited = self.reports.contains_key(&number)
            || self.moves.is_moving(number)
            || self.parked.contains_key(&number)
            || self.unconfirmed.contains(&number);
        if !is_awaited {
            self.places.forget_if_unused(number);
        }
    }

    /// What an earlier view gathered is nothing in the next one.
    pub(super) fn forget_gathered(&mut self) {
        self.ended.clear();
        self.returned.clear();
        // Doubts that this view cuts off: their answers are of the last one. Those before them were not even asked.
        self.hearsay.append(&mut self.verifying);
        self.asks.forget_parked();
        let was_complete = core::mem::take(&mut self.is_complete);
        let reports = core::mem::take(&mut self.reports);
        let is_half_rebuilt = was_complete && !reports.is_empty();
        // There may be a million: dropping them at once would hold everybody up.
        self.litter.extend(Some(reports).filter(|reports| !reports.is_empty()));
        let numbers: BTreeSet<u32> = core::mem::take(&mut self.parked).into_keys().collect();
        let unconfirmed = core::mem::take(&mut self.unconfirmed);
        if is_half_rebuilt || !unconfirmed.is_empty() {
            // Whoever was, or was to be, made master with rebuilt locks may not have heard of it: those who have them must tell them again.
            self.authority = Authority::default();
            self.gathered_in = 0;
        }
        for number in &unconfirmed {
            if let Some(place) = self.places.get_mut(*number) {
                place.appointed = None;
            }
        }
        for number in numbers.into_iter().chain(unconfirmed) {
            self.forget_place(number);
        }
    }

    /// Drops a slice of what earlier views gathered.
    pub(super) fn drop_litter(&mut self, slice: u32) {
        for _ in 0..slice {
            let Some(reports) = self.litter.last_mut() else { return };
            match reports.pop_first() {
                Some((number, _)) => self.forget_place(number),
                None => drop(self.litter.pop()),
            }
        }
    }

    pub(super) fn handle_forward(&mut self, origin: Life, report: Report) {
        let peer = self.peers.id(origin);
        let here = self.locks.get(report.lock).filter(|_| peer == ME).map(|lock| (lock.at, lock.place));
        if peer == ME && here.is_none() {
            // It ended here while its master was lost.
            return;
        }
        if let Some((Some(ME), place)) = here {
            // What it is by now this master, which is this node, has from it already.
            self.take_over_ranges(place, Owner { peer, lock: report.lock });
            return self.settle(place);
        }
        if let Some(taking) = self.taking.get_mut(&report.key) {
            taking.reports.push((peer, report));
            return;
        }
        let place = self.places.find(&report.key).filter(|place| self.places.get(*place).is_some_and(super::places::Place::is_master));
        let Some(place) = place else {
            if report.pending.is_some_and(|pending| pending.kind == OpKind::Unlock) {
                // Its master of then had done it, else there would be a master that knows of it.
                return self.send_to(peer, Self::unlocked_record(report.lock, report.op));
            }
            if report.granted.is_none() {
                // Mastery went back while the request was on its way: it asks again.
                return self.send_to(peer, Record::NotMaster { lock: report.lock, op: report.op });
            }
            return self.log(format!("slot {} has a lock on {:?}, whose master this node is not", origin.slot, report.key));
        };
        self.unfold(place);
        self.have(place, &[(peer, report)]);
        self.operate_at(place, |resource, gate, out| resource.reconcile(peer, &report, gate, out));
        self.take_over_ranges(place, Owner { peer, lock: report.lock });
        self.settle(place);
    }

    fn have(&mut self, place: u32, reports: &[(PeerId, Report)]) {
        for (peer, report) in reports {
            self.remember_owner(&Owner { peer: *peer, lock: report.lock }, place);
            self.send_to(*peer, Record::Have { lock: report.lock, op: report.op });
        }
    }

    /// All locks of a lost resource are here: its queues are built anew.
    /// `moved`: the value block of a resource whose last master lives.
    pub(super) fn handle_take_end(&mut self, home: Life, key: &Key, moved: Option<LvbCopy>) {
        let Some(taking) = self.taking.remove(key) else { return };
        let number = self.places.intern(key);
        self.unfold(number);
        self.have(number, &taking.reports);
        self.counter = self.counter.max(taking.counter);
        // Judged only when all are in: `settle` follows.
        let gate = Gate { may_grant: false, ..self.gate() };
        let mut out = Vec::new();
        let queues = self.places.get(number).map_or(0, |place| place.mastered);
        if let Some(resource) = self.mastered.get_mut(queues) {
            for (peer, report) in &taking.reports {
                resource.reconcile(*peer, report, gate, &mut out);
            }
        } else {
            let resource = match moved {
                Some(lvb) => Resource::take_over(&taking.reports, lvb, self.counter, gate, &mut out),
                None => Resource::rebuild(&taking.reports, self.counter, gate, &mut out),
            };
            self.moves.count += u64::from(moved.is_some());
            #[cfg(any(test, feature = "planted"))]
            let resource = self.mistaken(resource);
            self.master(number, resource);
        }
        if let Some(place) = self.places.get_mut(number).filter(|_| home != self.me) {
            place.stamp = taking.stamp;
        }
        self.tell(out);
        for (peer, report) in &taking.reports {
            self.take_over_ranges(number, Owner { peer: *peer, lock: report.lock });
        }
        if home == self.me {
            self.confirm(number, *key);
        } else {
            self.send(home, Record::Taken { key: *key });
        }
        self.settle(number);
        if moved.is_some() && self.is_stopped {
            self.begin_hand_over();
        }
    }

    /// The new master has all.
    pub(super) fn confirm(&mut self, number: u32, key: Key) {
        self.unconfirmed.remove(&number);
        self.end_move(number, key);
    }

    #[cfg(any(test, feature = "planted"))]
    fn mistaken(&self, mut resource: Resource) -> Resource {
        resource.mark_lvb(resource.lvb().is_invalid && self.mistake != Some(super::Mistake::TrustRebuiltLvb));
        resource
    }
}
