//! What: locks that outlive their clients: they go on excluding others until they are adopted or purged, or their daemon is gone.
//! Owns: which locks are orphans, which may be, and which may have been purged.
//! Invariants: an orphan is held in truth until somebody sends the purge that it is for; it can be adopted until that purge is answered.
//! Does not: purge or adopt.
//! Called by: the clients of the world, when one is gone, purges, or adopts.

use super::{LockHistory, LockKey};
use crate::{check::Found, machine::Pid};
use deadbolt_dlm_core::{LockStatus, Mode};
use std::collections::BTreeMap;

/// A lock whose client is gone.
#[derive(Clone, Debug)]
struct Orphan {
    machine: usize,
    resource: usize,
    /// Modes that it may be in.
    modes: Vec<Mode>,
    /// Its mode is known, and its client was at nothing with it.
    is_settled: bool,
    /// When its daemon learned of the end.
    seen_us: Option<u64>,
    /// A client that died may have adopted it: the process that it belongs to is not known.
    is_shifted: bool,
    /// The purge that is to give it back: whose, which.
    purge: Option<(Pid, u64)>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    by_lock: BTreeMap<LockKey, Orphan>,
    /// Locks that a client asked for which died before it was answered, by machine and resource: they may have become orphans.
    maybe: BTreeMap<(usize, usize), u64>,
    /// Purges that were sent and not answered: they may yet come to whatever is left meanwhile.
    open: BTreeMap<(Pid, u64), Purge>,
}

impl Orphans {
    pub(super) fn machine_ended(&mut self, machine: usize) {
        self.by_lock.retain(|_, orphan| orphan.machine != machine);
        self.maybe.retain(|(of, _), _| *of != machine);
    }
}

/// What a client that is gone was at.
#[derive(Clone, Copy, Debug)]
pub struct Unanswered {
    /// About which resource.
    pub resource: usize,
    /// A new lock that was to outlive it.
    pub may_stay: bool,
    /// The adoption of an orphan.
    pub is_adopting: bool,
}

/// Which orphans a purge is for.
#[derive(Clone, Debug)]
pub struct Purge {
    /// On which machines.
    pub machines: Vec<usize>,
    /// Of which client; none: of all.
    pub client: Option<Pid>,
    /// On which resources.
    pub resources: std::ops::Range<usize>,
}

impl Purge {
    fn is_for(&self, client: Pid, orphan: &Orphan) -> bool {
        let is_place = self.machines.contains(&orphan.machine) && self.resources.contains(&orphan.resource);
        is_place && (orphan.is_shifted || self.client.is_none_or(|meant| meant == client))
    }
}

impl LockHistory {
    /// A client is gone whose daemon lives: what is to stay becomes an orphan.
    pub fn left_behind(&mut self, now_us: u64, client: Pid, machine: usize, asked: &[Unanswered]) {
        let persistent = self.keys_of(client).into_iter().filter(|key| self.held.get(key).is_some_and(|held| held.is_persistent));
        let persistent: Vec<LockKey> = persistent.collect();
        let kept: Vec<_> = persistent.iter().filter_map(|key| self.held.remove(key).map(|held| (*key, held))).collect();
        self.ended(now_us, client, asked.iter().map(|asked| asked.resource));
        for (key, held) in kept {
            let (resource, modes) = (held.resource, held.modes.clone());
            let is_settled = modes.len() == 1 && asked.iter().all(|asked| asked.resource != resource);
            let orphan = Orphan { machine, resource, modes, is_settled, seen_us: None, is_shifted: false, purge: None };
            self.resource(resource).is_haunted = true;
            self.held.insert(key, held);
            self.orphans.by_lock.insert(key, orphan);
        }
        for asked in asked {
            let place = (machine, asked.resource);
            if asked.may_stay {
                *self.orphans.maybe.entry(place).or_default() += 1;
            }
            let there = self.orphans.by_lock.values_mut().filter(|orphan| asked.is_adopting && (orphan.machine, orphan.resource) == place);
            there.for_each(|orphan| (orphan.is_settled, orphan.is_shifted) = (false, true));
        }
        for purge in self.orphans.open.values().cloned().collect::<Vec<_>>() {
            self.may_be_gone(&purge, None);
        }
    }

    /// A daemon has learned that a client is gone.
    pub fn end_seen(&mut self, now_us: u64, client: Pid) {
        let range = LockKey { client, lock: 0 }..=LockKey { client, lock: u32::MAX };
        self.orphans.by_lock.range_mut(range).for_each(|(_, orphan)| orphan.seen_us = Some(now_us));
    }

    /// A daemon is gone, and its orphans with it.
    pub fn daemon_ended(&mut self, machine: usize) {
        let of_machine = self.orphans.by_lock.iter().filter(|(_, orphan)| orphan.machine == machine);
        let keys: Vec<LockKey> = of_machine.map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.drop_held(key));
        self.orphans.machine_ended(machine);
    }

    /// A purge was sent: from now on what it is for may be gone.
    pub fn purging(&mut self, by: (Pid, u64), purge: Purge) {
        self.may_be_gone(&purge, Some(by));
        self.orphans.open.insert(by, purge);
    }

    fn may_be_gone(&mut self, purge: &Purge, by: Option<(Pid, u64)>) {
        let meant = self.orphans.by_lock.iter_mut().filter(|(key, orphan)| purge.is_for(key.client, orphan));
        let mut gone = Vec::new();
        for (key, orphan) in meant {
            orphan.is_settled = false;
            if orphan.seen_us.is_some() && (!orphan.is_shifted || purge.client.is_none()) {
                orphan.purge = by;
            }
            gone.push(*key);
        }
        gone.into_iter().for_each(|key| self.drop_held(key));
    }

    /// A purge was answered: what it was for cannot be adopted any more.
    pub fn purged(&mut self, by: (Pid, u64)) {
        self.orphans.open.remove(&by);
        self.orphans.by_lock.retain(|_, orphan| orphan.purge != Some(by));
    }

    /// A client reads that it has adopted an orphan. S2; S9 where there cannot have been one.
    pub fn adopted(&mut self, now_us: u64, key: LockKey, place: (usize, u64), resource: usize, mode: Mode) -> Vec<Found> {
        let is_it = |(old, orphan): &(&LockKey, &Orphan)| old.lock == key.lock && (orphan.machine, orphan.resource) == (place.0, resource);
        let known = self.orphans.by_lock.iter().find(is_it).map(|(old, orphan)| (*old, !orphan.is_settled || orphan.modes.contains(&mode)));
        let mut found = Vec::new();
        if let Some((old, is_possible)) = known {
            self.orphans.by_lock.remove(&old);
            self.drop_held(old);
            if !is_possible {
                found.push(("S9", format!("r{resource}: {key:?} adopts {old:?} in {mode}, in which it cannot be")));
            }
        } else if let Some(count) = self.orphans.maybe.get_mut(&(place.0, resource)).filter(|count| **count > 0) {
            *count -= 1;
        } else {
            found.push(("S9", format!("r{resource}: {key:?} adopts in {mode} what is no orphan, or was purged")));
        }
        found.extend(self.check_modes(key, resource, mode));
        self.keep(now_us, key, place, resource, mode);
        self.persists(key, true);
        found
    }

    /// S9: an orphan that was there before an adoption was asked for, and is there still, is not refused.
    pub fn not_adopted(&self, machine: usize, (resource, mode): (usize, Mode), since_us: u64, status: LockStatus) -> Option<Found> {
        let is_there = |orphan: &&Orphan| {
            let is_seen = orphan.seen_us.is_some_and(|seen_us| seen_us < since_us);
            (orphan.machine, orphan.resource) == (machine, resource) && orphan.is_settled && is_seen
        };
        let is_wrong = |orphan: &&Orphan| orphan.modes == [mode] || status == LockStatus::NotFound;
        let refused = self.orphans.by_lock.values().filter(is_there).find(is_wrong)?;
        Some(("S9", format!("r{resource}: nobody adopts {refused:?}: {status:?} for {mode}")))
    }
}
