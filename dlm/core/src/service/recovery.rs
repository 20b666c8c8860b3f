//! What: what a node tells the others when a view is learned: operations under way to living masters, locks of lost masters to the homes,
//!   what it is master of and what it knew as home to new homes.
//! Owns: the answers of the present view, given in slices so that nobody's locks wait for all of them.
//! Invariants: a master that lives goes on; what it was sent and what it answered in an older view is said again; nothing of an older view
//!   is taken; the answers end only when all of them were sent.
//! Does not: fence, or judge evidence; appoint masters (`home` does).
//! Called by: `service`.

use super::authority::{Part, home_among};
use super::deadlock::Deadlocks;
use super::holder::Sent;
use super::{LockService, Output, View};
use crate::mode::Flags;
use crate::name::Key;
use crate::peers::{ME, PeerId};
use crate::queue::Owner;
use crate::wire::{OpKind, OpResult, Record, Report, ReportOp};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;

/// Locks or resources that one turn looks at (chosen: well below a millisecond; few in the small worlds of the tests).
pub(super) const SLICE: u32 = if cfg!(test) { 2 } else { 512 };
/// Views whose members are remembered, to know which homes stayed (chosen: more than change while one recovery runs).
const VIEWS_MAX: usize = 8;

/// The answers of the present view, as far as they were given.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// In which view each member has gathered all answers last: what it was told until then it knows.
    standing: BTreeMap<Life, u64>,
    /// Authority to hand over, and to whom.
    handing: Vec<(Life, Vec<Part>)>,
    next_lock: u32,
    next_place: u32,
    /// As home, when all is known: resources of masters that are gone and of which nobody has anything.
    pub(super) next_lost: u32,
    is_ended: bool,
    /// As master: what ended in this view, and may be on its way here once more from those that did not know the view yet.
    refused: BTreeSet<(Owner, u64)>,
    /// The view after whose answers nothing was known here as home but what is true: answers that a view interrupts leave doubts.
    told_in: u64,
    /// Somebody is gone: what it had is dropped.
    is_purging: bool,
}

/// Views and their members, newest last, without a gap.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<(u64, Vec<Life>)>);

impl History {
    fn learn(&mut self, number: u64, members: &[Life]) {
        if self.0.back().is_some_and(|(last, _)| last + 1 != number) {
            self.0.clear();
        }
        self.0.push_back((number, members.to_vec()));
        if self.0.len() > VIEWS_MAX {
            self.0.pop_front();
        }
    }

    /// Has this node been the resource's home in every view since `from`? Unknown is no.
    fn was_home_since(&self, from: u64, key: &Key, home: Life) -> bool {
        let is_known = self.0.front().is_some_and(|(first, _)| *first <= from);
        let mut since = self.0.iter().filter(|(number, _)| *number >= from);
        is_known && since.all(|(_, members)| home_among(members, key) == Some(home))
    }
}

impl LockService {
    pub(super) fn handle_view(&mut self, view: View) {
        if view.number <= self.view.number {
            return;
        }
        self.end_moves();
        // Records of the old view that are still in the outbox leave as such: their receivers judge them.
        while let Some((to, message)) = self.outbox.pop_first() {
            self.outputs.push_back(Output::Send { to, message });
        }
        let last = core::mem::replace(&mut self.view, view);
        self.deadlocks = Deadlocks::default();
        self.history.learn(self.view.number, &self.view.members);
        // What the last view began to drop may not all be dropped.
        let is_purging = self.answers.next_place != 0;
        let told_in = if self.answers.is_ended && self.hearsay.is_empty() { last.number } else { self.answers.told_in };
        self.answers = Answers { is_purging, told_in, ..Answers::default() };
        self.taking.clear();
        self.range_reports = super::ranges::Reports::default();
        self.forget_gathered();
        let members = &self.view.members;
        self.joins.retain(|life, _| members.contains(life));
        if self.view.is_member {
            self.begin_answers(&last);
        } else {
            self.authority = super::authority::Authority::default();
            self.gathered_in = 0;
        }
        self.replay_future();
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

    pub(super) fn is_kept(&self, peer: PeerId) -> bool {
        let is_kept = |life: Life| self.view.members.contains(&life) || self.view.owed.iter().any(|owed| owed.life == life);
        self.peers.life(peer).is_some_and(is_kept)
    }

    pub(super) fn is_peer_member(&self, peer: PeerId) -> bool {
        self.peers.life(peer).is_some_and(|life| self.view.members.contains(&life))
    }

    fn begin_answers(&mut self, last: &View) {
        let (members, me) = (self.view.members.clone(), self.me);
        for member in &members {
            self.peers.id(*member);
        }
        let others = self.others();
        for other in &others {
            let parts = self.authority.parts_for(other);
            if !parts.is_empty() {
                self.answers.handing.push((*other, parts));
            }
        }
        #[cfg(any(test, feature = "planted"))]
        let (kept, is_kept) = (self.authority.clone(), self.mistake == Some(super::Mistake::KeepAuthority));
        self.authority.narrow(&members, me);
        #[cfg(any(test, feature = "planted"))]
        if is_kept {
            self.authority = kept;
        }
        self.answers.standing.insert(me, self.gathered_in);
        let is_kept = |life: &Life| self.view.members.contains(life) || self.view.owed.iter().any(|owed| owed.life == *life);
        let was_known = last.members.iter().chain(last.owed.iter().map(|owed| &owed.life));
        self.answers.is_purging |= last.number + 1 != self.view.number || !was_known.into_iter().all(is_kept);
        (self.answers.next_lock, self.answers.next_place) = (1, 1);
        for other in others {
            self.send(other, Record::Standing { gathered: self.gathered_in });
        }
        self.announce_lockspaces(last);
        self.give_back_again();
        for place in self.contended.clone() {
            self.begin_view_at(place);
        }
        self.say_underway_again();
        for id in core::mem::take(&mut self.stalled) {
            self.advance(id);
        }
        for id in self.renamed.clone() {
            if let Some(lock) = self.locks.get_mut(id) {
                lock.is_renamed = true;
                self.tell_name(id);
            }
        }
        self.ask_again();
        self.say_ranges_again();
    }

    /// Newcomers hear which lockspaces this node uses; lockspaces that were being joined are announced to the new members.
    fn announce_lockspaces(&mut self, last: &View) {
        let newcomers: Vec<Life> = self.others().into_iter().filter(|life| !last.members.contains(life)).collect();
        let used: Vec<Vec<u8>> = self.lockspaces.values().filter(|space| space.is_joined).map(|space| space.name.clone()).collect();
        for newcomer in newcomers {
            for name in &used {
                self.send(newcomer, Record::Join { announcement: 0, name: name.clone() });
            }
        }
        let numbers: Vec<u32> = self.lockspaces.keys().copied().collect();
        for number in numbers {
            self.announce(number);
            self.finish_join(number);
        }
    }

    /// What was under way at others when the view changed may be lost, or its answer; a lookup too, which its home may have taken as master.
    fn say_underway_again(&mut self) {
        for id in core::mem::take(&mut self.underway) {
            let Some(at) = self.locks.get(id).and_then(|lock| lock.at) else { continue };
            let life = self.peers.life(at).filter(|life| self.view.members.contains(life));
            if let (Some(report), Some(life)) = (self.report(id), life) {
                self.note_reported(id);
                self.underway.insert(id);
                if let Some(lowered) = self.lowered_report(id) {
                    self.send(life, Record::Again(lowered));
                }
                if report.pending.is_some() {
                    self.send(life, Record::Again(report));
                }
            }
        }
        for lookups in core::mem::take(&mut self.lookups).into_values() {
            for id in lookups.locks() {
                self.begin_anew(id);
            }
        }
    }

    /// An operation that went to a home that is lost, or nowhere yet.
    fn begin_anew(&mut self, id: u32) {
        let is_asked_lost = self.locks.get(id).and_then(|lock| lock.at).is_none_or(|at| !self.is_peer_member(at));
        let Some(lock) = self.locks.get_mut(id) else { return };
        let Some(pending) = lock.pending.as_mut().filter(|pending| pending.sent != Sent::ToMaster) else { return };
        if pending.sent == Sent::ToHome && is_asked_lost {
            (pending.sent, pending.is_cancel_sent) = (Sent::Unsent, false);
            lock.at = None;
            if pending.is_cancelled {
                return self.end_unsent(id);
            }
        }
        self.advance(id);
    }

    /// A lock with its operation under way.
    pub(super) fn report(&self, id: u32) -> Option<Report> {
        let lock = self.locks.get(id)?;
        let pending = lock.pending.as_ref().map(|pending| ReportOp {
            kind: pending.kind,
            mode: pending.mode,
            flags: pending.flags,
            lvb: pending.lvb(),
            is_cancelled: pending.is_cancelled,
        });
        let (key, pid, op, granted, token, lvb) = (self.places.key(lock.place)?, lock.pid, lock.op, lock.granted, lock.token, lock.lvb());
        Some(Report { key, lock: id, pid, party: lock.party(), op, granted, token, lvb, pending })
    }

    /// The conversion of a lock to a weaker mode that its master may not have heard of.
    fn lowered_report(&self, id: u32) -> Option<Report> {
        let (op, report) = (self.locks.get(id)?.lowered_by()?, self.report(id)?);
        let mode = report.granted?;
        let lowered = ReportOp { kind: OpKind::Convert, mode, flags: Flags::NONE, lvb: None, is_cancelled: false };
        Some(Report { op, pending: Some(lowered), ..report })
    }

    fn note_reported(&mut self, id: u32) {
        if let Some(pending) = self.locks.get_mut(id).and_then(|lock| lock.pending.as_mut()) {
            (pending.sent, pending.is_cancel_sent) = (Sent::ToMaster, pending.is_cancelled);
        }
    }

    /// Is there something to be done as soon as there is time?
    pub(super) fn has_work(&self) -> bool {
        let is_telling = self.answers.next_place != 0 && self.have_all_stood();
        let is_recovering = self.answers.next_lock != 0 || is_telling || self.answers.next_lost != 0 || self.has_rebuilding();
        self.view.is_member && (is_recovering || self.is_handing_over() || !self.litter.is_empty())
    }

    fn have_all_stood(&self) -> bool {
        self.view.members.iter().all(|life| self.answers.standing.contains_key(life))
    }

    /// A slice of what a view asks for.
    pub(super) fn work(&mut self) {
        if !self.view.is_member {
            return;
        }
        self.report_lost();
        if self.have_all_stood() {
            self.tell_homes();
        }
        if !self.answers.is_ended && self.answers.next_lock == 0 && self.answers.next_place == 0 {
            self.answers.is_ended = true;
            for (newcomer, parts) in core::mem::take(&mut self.answers.handing) {
                self.send(newcomer, Record::Share { parts });
            }
            for member in self.view.members.clone() {
                self.send(member, Record::AnswersEnd);
            }
        }
        self.rebuild_some(SLICE);
        self.drop_litter(SLICE);
        self.free_lost();
        self.hand_over_some();
    }

    fn free_lost(&mut self) {
        if self.answers.next_lost == 0 || self.has_rebuilding() {
            return;
        }
        let (numbers, next) = self.places.slice(self.answers.next_lost, SLICE);
        self.answers.next_lost = next;
        for number in numbers {
            let appointed = self.places.get(number).and_then(|place| place.appointed);
            if appointed.is_some_and(|master| !self.is_peer_member(master)) {
                if let Some(place) = self.places.get_mut(number) {
                    place.appointed = None;
                }
                self.forget_place(number);
            }
        }
    }

    /// Locks whose master is lost, to their homes.
    fn report_lost(&mut self) {
        if self.answers.next_lock == 0 {
            return;
        }
        let (ids, next) = self.locks.slice(self.answers.next_lock, SLICE);
        self.answers.next_lock = next;
        for id in ids {
            let Some(lock) = self.locks.get(id) else { continue };
            let is_lost = match lock.at {
                Some(at) => !self.is_peer_member(at),
                None => lock.granted.is_some() || lock.pending.as_ref().is_some_and(|pending| pending.sent == Sent::ToMaster),
            };
            if is_lost {
                self.report_to_home(id);
            }
        }
    }

    /// What only gives up need not wait for a new master.
    fn end_what_gives_up(&mut self, id: u32) {
        let Some(lock) = self.locks.get(id) else { return };
        let (granted, Some(pending)) = (lock.granted, lock.pending.as_ref()) else { return };
        // Of what was reported before somebody may have heard.
        let is_first = lock.at.is_some();
        let is_silent = !pending.flags.has(Flags::VALBLK) && (pending.kind == OpKind::Unlock || !pending.flags.has(Flags::IVVALBLK));
        let mode = pending.mode;
        match (pending.kind, granted) {
            (OpKind::New, _) if is_first && pending.is_cancelled => self.end_unsent(id),
            (OpKind::Unlock, _) if is_first && (is_silent || granted.is_none()) => self.end_unsent(id),
            (OpKind::Convert, Some(from)) if is_silent && mode < from && from.is_down(mode) => self.end_given_up(id, mode),
            _ => {}
        }
    }

    fn report_to_home(&mut self, id: u32) {
        self.end_what_gives_up(id);
        #[cfg(any(test, feature = "planted"))]
        let is_orphan = self.locks.get(id).is_some_and(|lock| lock.session == crate::wire::NO_SESSION);
        #[cfg(any(test, feature = "planted"))]
        if self.mistake == Some(super::Mistake::ForgetOrphan) && is_orphan {
            return;
        }
        let Some(report) = self.unseat(id) else { return };
        #[cfg(any(test, feature = "planted"))]
        if self.mistake == Some(super::Mistake::ForgetWaiter) && report.granted.is_none() {
            return;
        }
        let home = self.home(&report.key);
        self.report_ranges(home, id, true);
        self.send(home, Record::Report(report));
    }

    /// A lock with its operation, to be reported; it is nowhere until a new master says that it has it.
    pub(super) fn unseat(&mut self, id: u32) -> Option<Report> {
        let report = self.report(id)?;
        let lock = self.locks.get_mut(id)?;
        (lock.at, lock.is_lowered) = (None, false);
        if let Some(place) = self.places.get_mut(lock.place) {
            place.master = None;
        }
        self.note_reported(id);
        Some(report)
    }

    /// What this node is master of, to homes that may not know it; what it knew as home, to the new homes.
    fn tell_homes(&mut self) {
        if self.answers.next_place == 0 {
            return;
        }
        let (numbers, next) = self.places.slice(self.answers.next_place, SLICE);
        self.answers.next_place = next;
        for number in numbers {
            let (Some(key), Some(place)) = (self.places.key(number), self.places.get(number)) else { continue };
            let (is_master, appointed, stamp, home) = (place.is_master(), place.appointed, place.stamp, self.home(&key));
            if is_master {
                if self.answers.is_purging {
                    self.drop_gone_at(number);
                }
                self.claim(number, &key, home, stamp);
            }
            if appointed.is_some() && home == self.me && !self.history.was_home_since(self.answers.told_in, &key, home) {
                self.hearsay.insert(number);
            }
            if let (Some(master), true) = (appointed, home != self.me) {
                if let Some(place) = self.places.get_mut(number) {
                    place.appointed = None;
                }
                let is_handed = self.answers.handing.iter().any(|(newcomer, _)| *newcomer == home);
                if let Some(master) = self.peers.life(master).filter(|_| is_handed) {
                    self.send(home, Record::Appointed { key, master, stamp });
                }
                self.forget_place(number);
            }
        }
    }

    fn claim(&mut self, number: u32, key: &Key, home: Life, stamp: u32) {
        if !self.places.get(number).is_some_and(super::places::Place::is_master) {
            return;
        }
        if home == self.me {
            return self.learn_own(number);
        }
        let gathered = self.answers.standing.get(&home).copied().unwrap_or(0);
        if !self.history.was_home_since(gathered, key, home) {
            self.send(home, Record::Claim { key: *key, stamp });
        }
    }

    pub(super) fn handle_recovery(&mut self, from: Life, record: Record) {
        let peer = self.peers.id(from);
        match record {
            Record::Standing { gathered } => {
                self.answers.standing.insert(from, gathered);
            }
            Record::Claim { key, stamp } => {
                self.learn_claim(&key, peer, stamp);
                if let Some(place) = self.places.find(&key) {
                    self.hearsay.remove(&place);
                }
            }
            Record::Appointed { key, master, stamp } => {
                let master = self.peers.id(master);
                self.learn_claim(&key, master, stamp);
                self.hearsay.extend(self.places.find(&key));
            }
            Record::Share { parts } => {
                let (members, me) = (self.view.members.clone(), self.me);
                self.authority.take(parts, &members, me);
                self.serve_parked();
            }
            Record::Report(report) => self.handle_report(peer, report),
            Record::AnswersEnd => {
                self.answers.refused.retain(|(owner, _)| owner.peer != peer);
                self.handle_answers_end(from);
            }
            Record::Take { key, counter, stamp } => {
                self.taking.insert(key, super::home::Taking { counter, stamp, reports: Vec::new() });
            }
            Record::Forward { origin, report } => self.handle_forward(origin, report),
            Record::TakeEnd { key } => self.handle_take_end(from, &key, None),
            Record::Taken { key } => {
                if let Some(place) = self.places.find(&key) {
                    self.confirm(place, key);
                }
            }
            Record::Have { lock, op } => self.handle_have(peer, lock, op),
            Record::Again(report) => self.handle_again(peer, &report),
            _ => {}
        }
    }

    /// A master has a lock that ended here: what was said again crossed the answer.
    pub(super) fn give_stray_back(&mut self, master: PeerId, id: u32, op: u64) {
        let (op, flags, lvb) = (op.saturating_add(1), Flags::FORCEUNLOCK, None);
        self.send_to(master, Record::Unlock { lock: id, op, flags, lvb });
    }

    /// A new master has this lock, as of operation `op`.
    fn handle_have(&mut self, from: PeerId, id: u32, op: u64) {
        let Some(lock) = self.locks.get_mut(id) else { return self.give_stray_back(from, id, op) };
        lock.at = Some(from);
        let is_newer = lock.op != op;
        let lower = lock.granted.zip(lock.lowered_by());
        if let Some(pending) = lock.pending.as_mut() {
            pending.sent = if is_newer { Sent::Unsent } else { Sent::ToMaster };
            pending.is_cancel_sent = false;
        }
        let number = lock.place;
        if lock.pending.is_some() && !is_newer && from != ME {
            self.underway.insert(id);
        }
        if let Some(place) = self.places.get_mut(number) {
            place.master = Some(from);
        }
        if let Some((mode, op)) = lower {
            self.underway.insert(id);
            let (flags, lvb) = (Flags::NONE, None);
            self.send_to(from, Record::Convert { lock: id, op, mode, flags, lvb });
        }
        self.advance(id);
        self.advance_ranges(id);
    }

    /// An answer, which also says where the lock is: in recovery it may be the first word of that.
    pub(super) fn handle_answered(&mut self, from: PeerId, id: u32, result: &OpResult) {
        match self.locks.get_mut(id) {
            Some(lock) if lock.at.is_none() && result.mode.is_some() => self.handle_have(from, id, result.op),
            // What is asked by now comes with its report; who was only to hear that it is given back has nothing to give back.
            Some(lock) if lock.at.is_none() && lock.op != result.op => {
                if lock.is_left() {
                    self.remove_lock(id);
                }
                return;
            }
            Some(lock) => {
                lock.at = Some(from);
                if lock.lowered_by().is_some_and(|op| op <= result.op) {
                    lock.is_lowered = false;
                    if lock.pending.is_none() {
                        self.underway.remove(&id);
                    }
                }
            }
            None if result.mode.is_some() => return self.give_stray_back(from, id, result.op),
            None => return,
        }
        self.handle_completed(id, result);
    }

    /// As master: a request has ended without a lock.
    pub(super) fn note_refused(&mut self, owner: Owner, op: u64) {
        let has_stood = |life| self.answers.standing.contains_key(&life);
        if owner.peer != ME && !self.peers.life(owner.peer).is_some_and(has_stood) {
            self.answers.refused.insert((owner, op));
        }
    }

    /// As master: an operation under way when the view changed.
    fn handle_again(&mut self, from: PeerId, report: &Report) {
        let owner = Owner { peer: from, lock: report.lock };
        if self.answers.refused.contains(&(owner, report.op)) {
            // Its holder hears the answer, which is of this view.
            return;
        }
        let place = self.place_of(&owner).or_else(|| {
            let is_new = report.pending.is_some_and(|pending| pending.kind == OpKind::New);
            let place = self.places.find(&report.key).filter(|_| is_new)?;
            self.places.get(place).filter(|place| place.is_master()).map(|_| place)
        });
        let Some(place) = place else {
            self.doubt_appointment(from, &report.key);
            let record = match report.pending.map(|pending| pending.kind) {
                Some(OpKind::Unlock) => Self::unlocked_record(report.lock, report.op),
                _ => Record::NotMaster { lock: report.lock, op: report.op },
            };
            return self.send_to(from, record);
        };
        self.unfold(place);
        self.remember_owner(&owner, place);
        self.operate_at(place, |resource, gate, out| resource.reconcile(from, report, gate, out));
        if report.pending.is_none() {
            self.take_over_ranges(place, owner);
            self.send_to(from, Record::Have { lock: report.lock, op: report.op });
            self.settle(place);
        }
    }

    /// Members whose answers this node, as home, waits for.
    pub(super) fn awaited(&self) -> Vec<Life> {
        let ended: &BTreeSet<Life> = &self.ended;
        if !self.view.is_member {
            return Vec::new();
        }
        self.view.members.iter().copied().filter(|life| !ended.contains(life)).collect()
    }
}
