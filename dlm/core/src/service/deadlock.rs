//! What: the search for deadlocks in the service: who has to be asked when, and what becomes of a victim.
//! Owns: the timers of the search, the picture being gathered.
//! Invariants: a picture is of one view; nobody is asked while everybody is served; a victim fails only while it is the same operation, and
//! hears why first.
//! Does not: find cycles; `waits` does.
//! Called by: `service`.

use super::LockService;
use crate::client::{ClientReply, ResourceName};
use crate::cycle::Cycle;
use crate::mode::Flags;
use crate::queue::{Owner, Resource, ResourceBlocker, ResourceWait};
use crate::waits::{Blocker, Picture, Search, Transaction, Wait, WaitId};
use crate::wire::{Party, Record, WaitRecord};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;

/// A wait may be part of a deadlock when it is this old, in ms (chosen: long for a lock, short for a person).
const LONG_WAIT_MS: u64 = 200;
/// How often a master looks whether somebody has waited long, in ms (chosen: with the others it makes less than a second).
const LOOK_MS: u64 = 100;
/// Time between two pictures, in ms (chosen as above); a suspicion is looked at again at once.
const PICTURE_MS: u64 = 400;
/// Most blockers that a node tells in one picture (bounds memory and messages: a few MiB; what is left out is told when lines are shorter).
const BLOCKERS_MAX: usize = 50_000;
/// Most blockers in one record (chosen: a fraction of a message).
const RECORD_BLOCKERS_MAX: usize = 100;

/// A picture under way.
#[derive(Debug, Default)]
struct Gathering {
    awaited: BTreeSet<Life>,
    picture: Picture,
    /// The masters of the waits in it.
    masters: BTreeMap<WaitId, Life>,
    /// It looks again at something that the last one showed.
    is_second: bool,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Deadlocks {
    /// As master: resources on which somebody waits.
    waiting: BTreeSet<u32>,
    look_at: Option<u64>,
    /// When something changed last on one of them.
    changed_ms: u64,
    /// When they were last told.
    told_ms: Option<u64>,
    /// As searcher.
    search: Search,
    round: u64,
    gathering: Option<Gathering>,
    is_wanted: bool,
    next_ms: u64,
}

impl Deadlocks {
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let picture = (self.is_wanted && self.gathering.is_none()).then_some(self.next_ms);
        self.look_at.into_iter().chain(picture).min()
    }

    /// After every operation on a resource: does somebody wait there?
    pub(super) fn note(&mut self, place: u32, has_waits: bool, now_ms: u64) {
        if has_waits {
            self.waiting.insert(place);
            self.changed_ms = now_ms;
            self.look_at.get_or_insert(now_ms + LONG_WAIT_MS);
        } else if !self.waiting.is_empty() {
            self.waiting.remove(&place);
            self.look_at = self.look_at.filter(|_| !self.waiting.is_empty());
        }
    }

    #[cfg(test)]
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// Has this node something to tell that it has not told?
    fn has_news(&self) -> bool {
        self.told_ms.is_none_or(|told| told < self.changed_ms + LONG_WAIT_MS)
    }
}

impl LockService {
    /// Timers of the search.
    pub(super) fn look_for_deadlocks(&mut self) {
        if self.deadlocks.look_at.is_some_and(|at| at <= self.now_ms) {
            let (places, mastered) = (&self.places, &self.mastered);
            let has_waits = |place: &u32| mastered.get(places.get(*place)?.mastered).map(Resource::has_waits);
            self.deadlocks.waiting.retain(|place| has_waits(place) == Some(true));
            self.deadlocks.look_at = (!self.deadlocks.waiting.is_empty()).then_some(self.now_ms + LOOK_MS);
            if self.is_running() && self.deadlocks.has_news() && self.has_long_wait() {
                self.send(self.searcher(), Record::Waits(WaitRecord::LongWait));
            }
        }
        if self.deadlocks.is_wanted && self.deadlocks.gathering.is_none() && self.deadlocks.next_ms <= self.now_ms {
            self.gather(false);
        }
    }

    fn searcher(&self) -> Life {
        self.view.members.iter().copied().min_by_key(|life| life.slot).unwrap_or(self.me)
    }

    fn has_long_wait(&self) -> bool {
        let mut resources = self.deadlocks.waiting.iter().filter_map(|place| self.mastered.get(self.places.get(*place)?.mastered));
        resources.any(|resource| resource.waits_since().is_some_and(|since| since + LONG_WAIT_MS <= self.now_ms))
    }

    fn gather(&mut self, is_second: bool) {
        self.deadlocks.is_wanted = false;
        self.deadlocks.round += 1;
        let awaited = self.view.members.iter().copied().collect();
        self.deadlocks.gathering = Some(Gathering { awaited, is_second, ..Gathering::default() });
        let round = self.deadlocks.round;
        for member in self.view.members.clone() {
            self.send(member, Record::Waits(WaitRecord::AskWaits { round }));
        }
    }

    pub(super) fn handle_waits(&mut self, from: Life, record: WaitRecord) {
        match record {
            WaitRecord::LongWait => self.deadlocks.is_wanted = true,
            WaitRecord::AskWaits { round } => self.tell_waits(from, round),
            WaitRecord::FoundWait { round, wait } => {
                if let Some(gathering) = self.deadlocks.gathering.as_mut().filter(|_| self.deadlocks.round == round) {
                    let known = gathering.picture.entry(wait.id).or_insert_with(|| Wait { blockers: Vec::new(), ..wait.clone() });
                    known.blockers.extend(wait.blockers);
                    gathering.masters.insert(wait.id, from);
                }
            }
            WaitRecord::WaitsEnd { round } => {
                if let Some(gathering) = self.deadlocks.gathering.as_mut().filter(|_| self.deadlocks.round == round) {
                    gathering.awaited.remove(&from);
                    if gathering.awaited.is_empty() {
                        self.judge_picture();
                    }
                }
            }
            WaitRecord::MustFail { id, cycle } => self.fail_wait(&id, cycle),
            WaitRecord::Deadlocked { lock, op, is_range, cycle } => self.tell_cycle(lock, op, is_range, cycle),
        }
    }

    /// As master: every long wait, and who is in its way.
    fn tell_waits(&mut self, to: Life, round: u64) {
        self.deadlocks.told_ms = Some(self.now_ms);
        let mut budget = BLOCKERS_MAX;
        let mut records = Vec::new();
        for place in &self.deadlocks.waiting {
            let Some(resource) = self.places.get(*place).and_then(|place| self.mastered.get(place.mastered)) else { continue };
            let Some(name) = self.place_name(*place) else { continue };
            let Some(stamp) = self.places.get(*place).map(|place| place.stamp).filter(|_| self.gate().may_grant) else {
                // Whoever waits here waits for the gate.
                continue;
            };
            for wait in resource.waits(self.now_ms.saturating_sub(LONG_WAIT_MS), &mut budget) {
                let Some(mut told) = self.wait_of(&wait, &name, resource) else { continue };
                let blockers: Vec<Blocker> = wait.blockers.iter().filter_map(|blocker| self.blocker_of(blocker, stamp, resource)).collect();
                for part in blockers.chunks(RECORD_BLOCKERS_MAX) {
                    told.blockers = part.to_vec();
                    records.push(WaitRecord::FoundWait { round, wait: told.clone() });
                }
            }
        }
        if budget == 0 {
            self.log(format!("search for deadlocks: more than {BLOCKERS_MAX} locks are in the way of waits here; some waits are left out"));
        }
        records.push(WaitRecord::WaitsEnd { round });
        for record in records {
            self.send(to, Record::Waits(record));
        }
    }

    /// Lockspace, by its number where nobody here knows its name, and resource.
    fn place_name(&self, place: u32) -> Option<(Vec<u8>, ResourceName)> {
        let key = self.places.key(place)?;
        let space = self.names.get(&key.lockspace).cloned();
        Some((space.unwrap_or_else(|| format!("{:#010x}", key.lockspace).into_bytes()), ResourceName::new(key.name())?))
    }

    fn wait_of(&self, wait: &ResourceWait, (lockspace, name): &(Vec<u8>, ResourceName), resource: &Resource) -> Option<Wait> {
        let (who, life, pid) = self.transaction(wait.owner, wait.part, resource)?;
        Some(Wait {
            id: WaitId { life, lock: wait.owner.lock, op: wait.op, is_range: wait.is_range },
            who,
            pid,
            claim: wait.claim,
            lockspace: lockspace.clone(),
            resource: *name,
            waited_ms: self.now_ms.saturating_sub(wait.since_ms),
            may_fail: !wait.flags.has(Flags::NODLCKWT),
            blockers: Vec::new(),
        })
    }

    fn blocker_of(&self, blocker: &ResourceBlocker, stamp: u32, resource: &Resource) -> Option<Blocker> {
        let (who, life, pid) = self.transaction(blocker.owner, blocker.part, resource)?;
        // Where the resource has moved in between, the places in its lines are others.
        let mark = blocker.mark ^ u64::from(stamp) << 32;
        Some(Blocker { who, life, lock: blocker.owner.lock, pid, claim: blocker.claim, is_held: blocker.is_held, mark })
    }

    /// For whom a lock is, its node and its process.
    fn transaction(&self, owner: Owner, part: u64, resource: &Resource) -> Option<(Transaction, Life, u32)> {
        let (entry, life) = (resource.find(owner)?, self.peers.life(owner.peer)?);
        let who = match entry.party() {
            Party::Session(number) => Transaction { life: Some(life), number, part },
            Party::Transaction(number) => Transaction { life: None, number, part },
        };
        Some((who, life, entry.pid))
    }

    fn judge_picture(&mut self) {
        let Some(gathering) = self.deadlocks.gathering.take() else { return };
        self.deadlocks.next_ms = self.now_ms + PICTURE_MS;
        let verdict = self.deadlocks.search.judge(&gathering.picture);
        for victim in verdict.victims {
            if let Some(master) = gathering.masters.get(&victim.id).copied() {
                self.send(master, Record::Waits(WaitRecord::MustFail { id: victim.id, cycle: victim.cycle }));
            }
        }
        if verdict.is_suspicious && !gathering.is_second {
            self.gather(true);
        } else {
            self.deadlocks.is_wanted |= verdict.is_suspicious;
        }
    }

    /// As master.
    fn fail_wait(&mut self, id: &WaitId, cycle: Cycle) {
        let Some(owner) = self.peers.find(&id.life).map(|peer| Owner { peer, lock: id.lock }) else { return };
        let number = self.place_of(&owner).filter(|place| !self.moves.is_frozen(*place));
        let Some(place) = number.and_then(|place| self.places.get(place)) else { return };
        let may_grant = self.gate().may_grant;
        let is_waiting = self.mastered.get(place.mastered).is_some_and(|it| it.waiting_part(owner, id.op, id.is_range).is_some());
        if may_grant && is_waiting {
            let (lock, op, is_range) = (id.lock, id.op, id.is_range);
            self.send(id.life, Record::Waits(WaitRecord::Deadlocked { lock, op, is_range, cycle }));
            self.operate(owner, |resource, owner, gate, out| resource.fail_wait(owner, op, is_range, gate, out));
        }
    }

    /// As holder: the answer comes next.
    fn tell_cycle(&mut self, id: u32, op: u64, is_range: bool, cycle: Cycle) {
        let Some(lock) = self.locks.get(id) else { return };
        let session = lock.session;
        let pending = lock.pending.as_ref().filter(|_| lock.op == op).and_then(|pending| pending.serial);
        let serial = if is_range { self.range_serial(id, op) } else { pending };
        if let Some(serial) = serial {
            self.log(format!("deadlock: {cycle}; the first of these fails"));
            self.reply_about(session, id, false, ClientReply::DeadlockCycle { serial, cycle });
        }
    }
}
