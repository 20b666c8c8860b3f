//! What: what clients ask beside single locks: byte ranges, many locks at once, orphans; and for whom and how long.
//! Owns: nothing.
//! Invariants: one request at a time for each owner of ranges; where no option asks for any of this, nothing is drawn.
//! Does not: read answers.
//! Called by: the choice of what a client does next.

use super::{Client, Lock, SHARED_TRANSACTIONS, TRANSACTIONS, What, choice::Action, name_of};
use crate::{
    check::{
        locks::{Purge, Unanswered},
        ranges::{PIECES, RangeKey, bytes_of},
        waits::Wanted,
    },
    machine::Pid,
    world::World,
};
use deadbolt_dlm_core::{
    ClientRequest, Flags, Mode,
    client::{ALL_SLOTS, RangeKind},
    mode::MODES,
};

/// Most locks that are asked for at once.
const MANY_MAX: usize = 4;
/// Owners of ranges behind one client.
const RANGE_OWNERS: u64 = 3;
/// How often a client that is to want nothing purges what others may have left.
const PURGE_US: u64 = 1_000_000;

impl What {
    /// The resources that it is about.
    pub(super) fn resources(&self) -> Vec<usize> {
        match self {
            Self::Lock { resource, .. }
            | Self::Convert { resource, .. }
            | Self::Unlock { resource, .. }
            | Self::Range { resource, .. }
            | Self::Adopt { resource, .. } => vec![*resource],
            Self::Many { items, .. } => items.iter().map(|(resource, _)| *resource).collect(),
            Self::Join { .. } | Self::Leave { .. } | Self::Cancel | Self::Purge { .. } => Vec::new(),
        }
    }

    /// What it may wait for.
    pub(super) fn waits(&self) -> Vec<(usize, Wanted)> {
        match self {
            Self::Lock { resource, mode, .. } => vec![(*resource, Wanted::New(*mode))],
            Self::Convert { resource, mode, .. } => vec![(*resource, Wanted::Conversion(*mode))],
            Self::Range { resource, kind, pieces, .. } if *kind != RangeKind::Unlock => {
                vec![(*resource, Wanted::Range(bytes_of(pieces).0))]
            }
            Self::Many { items, .. } => items.iter().map(|(resource, mode)| (*resource, Wanted::New(*mode))).collect(),
            _ => Vec::new(),
        }
    }

    /// It may wait, and be taken back.
    pub(super) fn is_wait(&self) -> bool {
        matches!(self, Self::Lock { .. } | Self::Convert { .. } | Self::Many { .. })
            || matches!(self, Self::Range { kind, .. } if *kind != RangeKind::Unlock)
    }

    /// Flags of the request.
    pub(super) fn flags(&self) -> Flags {
        match self {
            Self::Lock { flags, .. } | Self::Convert { flags, .. } | Self::Range { flags, .. } | Self::Many { flags, .. } => *flags,
            _ => Flags::NONE,
        }
    }

    /// What it may leave behind when its client ends without the answer.
    pub(super) fn unanswered(&self) -> Vec<Unanswered> {
        let is_about_locks = matches!(self, Self::Lock { .. } | Self::Convert { .. } | Self::Many { .. } | Self::Adopt { .. });
        let may_stay = matches!(self, Self::Lock { .. } | Self::Many { .. }) && self.flags().has(Flags::PERSISTENT);
        let is_adopting = matches!(self, Self::Adopt { .. });
        let resources = self.resources().into_iter().filter(|_| is_about_locks);
        resources.map(|resource| Unanswered { resource, may_stay, is_adopting }).collect()
    }
}

impl Client {
    /// It gives nothing back: it waits, and only the search for deadlocks ends that.
    pub(super) fn is_bound(&self) -> bool {
        self.transaction != 0 && self.asked.values().any(|asked| asked.what.is_wait())
    }

    /// It takes back what has waited for long: not where a deadlock is to be found, but for what the search spares.
    pub(super) fn gives_up(&self, what: &What) -> bool {
        self.transaction == 0 || what.flags().has(Flags::NODLCKWT)
    }
}

impl World {
    /// The transaction of a new client, if it is to have one.
    pub(super) fn some_transaction(&mut self, pid: Pid) -> u64 {
        if !self.random.chance(self.options.transactions) {
            return 0;
        }
        let is_shared = self.random.chance(200);
        TRANSACTIONS + if is_shared { self.random.below(SHARED_TRANSACTIONS) } else { SHARED_TRANSACTIONS + pid }
    }

    /// How long a request is to wait; 0: for ever.
    pub(super) fn some_timeout(&mut self) -> u32 {
        if !self.random.chance(self.options.timeouts) {
            return 0;
        }
        u32::try_from(1 + self.random.below(2 * self.options.hold_ms + 100)).unwrap_or(1)
    }

    /// PERSISTENT or nothing.
    pub(super) fn some_persistence(&mut self) -> Flags {
        if self.random.chance(self.options.persistent) { Flags::PERSISTENT } else { Flags::NONE }
    }

    /// What can be begun in a lockspace that the client has joined.
    pub(super) fn more_actions(&self, space: usize, has_room: bool, actions: &mut Vec<(u64, Action)>) {
        let is_several = self.options.resources > 1;
        actions.extend((has_room && is_several && self.options.many > 0).then_some((self.options.many, Action::Many(space))));
        if self.options.persistent > 0 {
            actions.extend(has_room.then_some((4, Action::Adopt(space))));
            actions.push((1, Action::Purge(space)));
        }
    }

    pub(super) fn range_actions(&self, client: &Client, actions: &mut Vec<(u64, Action)>) {
        let owners = if client.transaction == 0 { RANGE_OWNERS } else { 1 };
        let is_free = |lock: &Lock| (lock.ranging.len() as u64) < owners;
        let free = client.locks.iter().filter(|(_, lock)| self.options.ranges > 0 && is_free(lock));
        actions.extend(free.map(|(id, _)| (self.options.ranges, Action::Range(*id))));
    }

    /// Nobody is to want anything: what the dead have left is purged, again and again, for some of it may not be there yet.
    pub(super) fn cleaning_actions(&self, client: &Client, actions: &mut Vec<(u64, Action)>) {
        let is_due = self.queue.now_us() >= client.purged_us + PURGE_US;
        for space in (0..usize::try_from(self.options.lockspaces).unwrap_or(1)).filter(|_| self.options.persistent > 0) {
            let is_other = |what: &What| !matches!(what, What::Join { space: other } | What::Leave { space: other } if *other == space);
            if client.spaces.contains_key(&space) {
                actions.extend(is_due.then_some((5, Action::Purge(space))));
            } else if client.asked.values().all(|asked| is_other(&asked.what)) {
                actions.push((5, Action::Join(space)));
            }
        }
    }

    pub(super) fn client_asks_many(&mut self, machine: usize, pid: Pid, space: usize) {
        let per_space = usize::try_from(self.options.resources).unwrap_or(1);
        let count = 2 + self.random.index(per_space.min(MANY_MAX) - 1);
        let first = self.random.index(per_space);
        // In any order, each once.
        let mut items: Vec<(usize, Mode)> =
            (0..count).map(|number| (space * per_space + (first + number) % per_space, MODES[self.random.index(MODES.len())])).collect();
        let other = self.random.index(count);
        items.swap(0, other);
        let choices = [Flags::NONE, Flags::NONE, Flags::NOQUEUE, Flags::NODLCKWT];
        let flags = choices[self.random.index(choices.len())].with(self.some_persistence());
        let timeout_ms = self.some_timeout();
        let Some((owner, lockspace)) = self.client(machine, pid).and_then(|client| Some((client.transaction, *client.spaces.get(&space)?)))
        else {
            return;
        };
        let names = items.iter().map(|(resource, mode)| (name_of(*resource, per_space), *mode)).collect();
        self.ask_timed(machine, pid, What::Many { items, flags }, timeout_ms, |serial| ClientRequest::LockMany {
            serial,
            lockspace,
            items: names,
            flags,
            owner,
            timeout_ms,
        });
    }

    pub(super) fn client_adopts(&mut self, machine: usize, pid: Pid, space: usize) {
        let per_space = usize::try_from(self.options.resources).unwrap_or(1);
        let resource = space * per_space + self.random.index(per_space);
        let mode = MODES[self.random.index(MODES.len())];
        let Some((owner, lockspace)) = self.client(machine, pid).and_then(|client| Some((client.transaction, *client.spaces.get(&space)?)))
        else {
            return;
        };
        self.ask(machine, pid, What::Adopt { resource, mode }, |serial| ClientRequest::Lock {
            serial,
            lockspace,
            resource: name_of(resource, per_space),
            mode,
            flags: Flags::ORPHAN.with(Flags::PERSISTENT),
            owner,
            timeout_ms: 0,
            lvb: None,
        });
    }

    pub(super) fn client_purges(&mut self, machine: usize, pid: Pid, space: usize) {
        let now_us = self.queue.now_us();
        let per_space = usize::try_from(self.options.resources).unwrap_or(1);
        let (is_one_node, is_one_client) = (!self.is_quiet && self.random.chance(500), !self.is_quiet && self.random.chance(300));
        let all: Vec<usize> = (0..self.machines.len()).collect();
        let chosen = self.machines[self.random.index(all.len())].slot;
        let machines = all.into_iter().filter(|other| !is_one_node || self.machines[*other].slot == chosen).collect();
        let slot = if is_one_node { chosen.0 } else { ALL_SLOTS };
        // Processes have numbers in the order in which they begin: one of the last.
        let client_meant = is_one_client.then(|| pid.saturating_sub(self.random.below(20)).max(1));
        let purge = Purge { machines, client: client_meant, resources: space * per_space..(space + 1) * per_space };
        let Some(client) = self.client(machine, pid) else { return };
        client.purged_us = now_us;
        let Some(lockspace) = client.spaces.get(&space).copied() else { return };
        let by = (pid, client.serial + 1);
        self.facts.locks.purging(by, purge);
        let process = client_meant.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        self.ask(machine, pid, What::Purge { space }, |serial| ClientRequest::Purge { serial, lockspace, slot, pid: process });
    }

    pub(super) fn client_ranges(&mut self, machine: usize, pid: Pid, id: u32) {
        let place = (machine, self.machines[machine].boot_number);
        let owners = self.client(machine, pid).map_or(1, |client| if client.transaction == 0 { RANGE_OWNERS } else { 1 });
        let owner = self.random.below(owners);
        let kind = [RangeKind::Read, RangeKind::Write, RangeKind::Write, RangeKind::Unlock][self.random.index(4)];
        let (one, other) = (self.random.index(PIECES), self.random.index(PIECES));
        let pieces = one.min(other)..=one.max(other);
        let choices = [Flags::NONE, Flags::NONE, Flags::NONE, Flags::NOQUEUE, Flags::NODLCKWT];
        let (flags, timeout_ms) = (choices[self.random.index(choices.len())], self.some_timeout());
        let Some(lock) = self.client(machine, pid).and_then(|client| client.locks.get_mut(&id)) else { return };
        let resource = lock.resource;
        if !lock.ranging.insert(owner) {
            return;
        }
        self.facts.locks.ranges.asked(RangeKey { client: pid, lock: id, owner }, place, resource, kind, &pieces);
        let (start, end) = bytes_of(&pieces);
        let what = What::Range { lock: id, resource, owner, kind, pieces, flags };
        self.ask_timed(machine, pid, what, timeout_ms, |serial| ClientRequest::Range {
            serial,
            lock: id,
            owner,
            kind,
            start,
            end,
            flags,
            timeout_ms,
        });
    }
}
