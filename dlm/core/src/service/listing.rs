//! What: the locks that this node knows of, piece by piece: those of the resources of which it is master, then its own elsewhere.
//! Owns: the walk and its bounds.
//! Invariants: reads only; a piece takes bounded time and memory, however many locks there are, but for one resource's queues, which are
//!   looked through as a whole; what fits and is not listed is counted.
//! Does not: format text; ask other nodes; stop the service between two pieces, so that what moves meanwhile may be missed or seen twice.
//! Called by: `deadbolt locks` and `deadbolt lockspaces` through the daemon; tests.

mod rows;
mod spaces;

use super::LockService;
use super::holder::LocalLock;
use crate::peers::{ME, PeerId};
use crate::queue::{Entry, Owner, Resource};
use crate::ranges::Span;
use crate::wire::{NO_SESSION, Party};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;
pub use rows::{Filter, InTheWay, LockSnapshot, LockState, RangeSnapshot, ResourceSnapshot, WaitsFor, Who};
pub use spaces::{LockspacePage, LockspaceSnapshot};

/// Most numbers, entries and ranges that are looked at for one piece (chosen: about a millisecond).
const LOOKS_MAX: usize = 16_384;
/// Most locks, ranges and blockers that are told in one piece (chosen: about a MiB as text).
const ROWS_MAX: usize = 4096;
/// Most blockers that are found for one resource, and told of one wait (chosen: more than people read; the search for deadlocks has its own).
const BLOCKERS_MAX: usize = 1024;
const TOLD_BLOCKERS_MAX: usize = 32;
/// Numbers that are taken at a time.
const STEP: u32 = 1024;
/// Above the numbers: the walk is among this node's own locks.
const OWN: u64 = 1 << 32;

/// A piece of the list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// In no order; a resource comes once for each of this node's locks on it when another node is its master.
    pub resources: Vec<ResourceSnapshot>,
    /// Locks and ranges that fit and were not listed.
    pub left_out: usize,
    /// Where the next piece begins; none: this was the last.
    pub next: Option<u64>,
}

/// What a piece may still take.
#[derive(Debug)]
struct Room {
    looks: usize,
    /// Rows that this piece may have.
    rows: usize,
    /// Rows that are wanted at all; behind these, they are only counted.
    wanted: usize,
    left_out: usize,
}

impl Room {
    fn is_full(&self) -> bool {
        self.looks == 0 || self.rows == 0
    }

    fn look(&mut self, count: usize) {
        self.looks = self.looks.saturating_sub(count);
    }

    /// Is there a place for one more, with so many who are in its way?
    fn take(&mut self, blockers: usize) -> bool {
        if self.rows == 0 || self.wanted == 0 {
            self.left_out += 1;
            return false;
        }
        self.wanted -= 1;
        self.rows = self.rows.saturating_sub(1 + blockers);
        true
    }
}

/// Who is in whose way on one resource.
#[derive(Debug, Default)]
struct Waits {
    /// By operation; with whether one of all of them fits the filter.
    known: BTreeMap<(Owner, u64, bool), (WaitsFor, bool)>,
    /// There were more than were looked for.
    is_cut: bool,
}

impl Waits {
    fn take(&mut self, owner: Owner, op: u64, is_range: bool) -> (Option<WaitsFor>, bool) {
        match self.known.remove(&(owner, op, is_range)) {
            Some((waits_for, is_near)) => (Some(waits_for), is_near),
            None => ((!self.is_cut).then(WaitsFor::default), false),
        }
    }
}

impl LockService {
    /// A piece of the list of what fits `filter`: from where the last one says, 0 is the beginning, at most `most` locks and ranges.
    #[must_use]
    pub fn list(&self, filter: &Filter, from: u64, most: usize) -> Page {
        let mut room = Room { looks: LOOKS_MAX, rows: ROWS_MAX, wanted: most, left_out: 0 };
        let mut resources = Vec::new();
        let next = self.walk(from, &mut room, |number, is_own, room| {
            let listed = if is_own { self.list_own(number, filter, room) } else { self.list_mastered(number, filter, room) };
            resources.extend(listed.filter(|it| !it.locks.is_empty() || !it.ranges.is_empty()));
        });
        Page { resources, left_out: room.left_out, next }
    }

    /// Everything, by name.
    #[must_use]
    pub fn snapshot(&self) -> Vec<ResourceSnapshot> {
        let mut found: BTreeMap<(Vec<u8>, Vec<u8>), ResourceSnapshot> = BTreeMap::new();
        let mut next = Some(0);
        while let Some(from) = next {
            let page = self.list(&Filter::default(), from, usize::MAX);
            for resource in page.resources {
                let key = (resource.lockspace.clone(), resource.resource.clone());
                let known =
                    found.entry(key).or_insert_with(|| ResourceSnapshot { locks: Vec::new(), ranges: Vec::new(), ..resource.clone() });
                known.locks.extend(resource.locks);
                known.ranges.extend(resource.ranges);
            }
            next = page.next;
        }
        found.into_values().collect()
    }

    /// Every place, then every lock of this node, until the piece is full; where to go on.
    fn walk(&self, from: u64, room: &mut Room, mut visit: impl FnMut(u32, bool, &mut Room)) -> Option<u64> {
        let mut is_own = from >= OWN;
        let mut first = u32::try_from(from % OWN).unwrap_or(0).max(1);
        loop {
            let (numbers, next) = if is_own { self.locks.slice(first, STEP) } else { self.places.slice(first, STEP) };
            let mut numbers = numbers.into_iter();
            // Vacant ones take time, too.
            room.look(usize::try_from(STEP).unwrap_or(0).saturating_sub(numbers.len()));
            while let Some(number) = numbers.next() {
                room.look(1);
                visit(number, is_own, room);
                if room.is_full()
                    && let Some(following) = numbers.next()
                {
                    let place = if is_own { super::locks::Locks::place(following) } else { following };
                    return Some(u64::from(place) | if is_own { OWN } else { 0 });
                }
            }
            match (next, is_own) {
                (0, true) => return None,
                (0, false) => (first, is_own) = (1, true),
                (next, _) => first = next,
            }
            if room.is_full() {
                return Some(u64::from(first) | if is_own { OWN } else { 0 });
            }
        }
    }

    /// A resource of which this node is master.
    fn list_mastered(&self, number: u32, filter: &Filter, room: &mut Room) -> Option<ResourceSnapshot> {
        let place = self.places.get(number).filter(|place| place.is_master())?;
        let mut found = self.resource_snapshot(number, filter)?;
        (found.master, found.is_masters_word) = (Some(self.me), true);
        let Some(resource) = self.mastered.get(place.mastered) else {
            let entry = self.locks.get(place.lone)?.entry(place.lone);
            let lock = self.entry_snapshot(&entry, None);
            found.locks.extend(Some(lock).filter(|lock| filter.fits_lock(lock, false) && room.take(0)));
            return Some(found);
        };
        let mut waits = self.waits_on(resource, filter);
        for entry in resource.entries() {
            room.look(1);
            let (waits_for, is_near) = if entry.wanted.is_some() { waits.take(entry.owner, entry.op, false) } else { (None, false) };
            let lock = self.entry_snapshot(entry, waits_for);
            if filter.fits_lock(&lock, is_near) && room.take(told(&lock.waits_for)) {
                found.locks.push(lock);
            }
        }
        let Some(ranges) = resource.range_table() else { return Some(found) };
        for (owner, span) in ranges.held() {
            room.look(1);
            let Some(who) = self.who_on(resource, owner.owner) else { continue };
            let range = range_snapshot(who, owner.number, span, true);
            if filter.fits_range(&range, false) && room.take(0) {
                found.ranges.push(range);
            }
        }
        for wait in ranges.waiting() {
            room.look(1);
            let Some(who) = self.who_on(resource, wait.owner.owner) else { continue };
            let (waits_for, is_near) = waits.take(wait.owner.owner, wait.op, true);
            let since_ms = Some(wait.since_ms);
            let range = RangeSnapshot { since_ms, waits_for, ..range_snapshot(who, wait.owner.number, wait.span, false) };
            if filter.fits_range(&range, is_near) && room.take(told(&range.waits_for)) {
                found.ranges.push(range);
            }
        }
        Some(found)
    }

    /// One of this node's locks that no queue here knows.
    fn list_own(&self, id: u32, filter: &Filter, room: &mut Room) -> Option<ResourceSnapshot> {
        let lock = self.locks.get(id)?;
        let place = self.places.get(lock.place)?;
        let is_queued = self.mastered.get(place.mastered).is_some_and(|resource| resource.has(Owner { peer: ME, lock: id }));
        if is_queued || place.lone == id {
            return None;
        }
        let mut found = self.resource_snapshot(lock.place, filter)?;
        found.master = if place.is_master() { Some(self.me) } else { lock.at.or(place.master).and_then(|master| self.peers.life(master)) };
        let snapshot = self.local_snapshot(id, lock);
        let who = snapshot.who;
        if filter.fits_lock(&snapshot, false) && room.take(0) {
            found.locks.push(snapshot);
        }
        let held = self.ranges.had(id).map(|(number, span)| range_snapshot(who, number, span, true));
        for range in held.chain(self.ranges.wanted(id).map(|(number, span)| range_snapshot(who, number, span, false))) {
            room.look(1);
            if filter.fits_range(&range, false) && room.take(0) {
                found.ranges.push(range);
            }
        }
        Some(found)
    }

    /// Nothing but the names, where they fit.
    fn resource_snapshot(&self, place: u32, filter: &Filter) -> Option<ResourceSnapshot> {
        let key = self.places.key(place)?;
        let lockspace = self.names.get(&key.lockspace).map_or(&[][..], |name| name);
        if !filter.fits_name(lockspace, key.name()) {
            return None;
        }
        let (lockspace, resource) = (lockspace.to_vec(), key.name().to_vec());
        let (locks, ranges) = (Vec::new(), Vec::new());
        Some(ResourceSnapshot { lockspace, resource, master: None, is_masters_word: false, locks, ranges })
    }

    fn waits_on(&self, resource: &Resource, filter: &Filter) -> Waits {
        let mut found = Waits::default();
        if !resource.has_waits() {
            return found;
        }
        let mut budget = BLOCKERS_MAX;
        for wait in resource.waits(u64::MAX, &mut budget) {
            let blockers = wait.blockers.iter().filter_map(|blocker| {
                let who = self.who_on(resource, blocker.owner)?;
                Some(InTheWay { who, part: blocker.part, claim: blocker.claim, is_held: blocker.is_held })
            });
            let mut first: Vec<InTheWay> = blockers.collect();
            let is_near = first.iter().any(|blocker| filter.fits_in_the_way(blocker));
            let left_out = first.len().saturating_sub(TOLD_BLOCKERS_MAX);
            first.truncate(TOLD_BLOCKERS_MAX);
            found.known.insert((wait.owner, wait.op, wait.is_range), (WaitsFor { first, left_out }, is_near));
        }
        found.is_cut = budget == 0;
        found
    }

    fn who_on(&self, resource: &Resource, owner: Owner) -> Option<Who> {
        resource.find(owner).map(|entry| self.who(entry.owner.peer, entry.owner.lock, entry.pid, entry.party()))
    }

    fn who(&self, peer: PeerId, lock: u32, pid: u32, party: Party) -> Who {
        let life: Life = self.peers.life(peer).unwrap_or(self.me);
        let (session, owner) = match party {
            Party::Session(session) => (Some(session).filter(|session| *session != NO_SESSION), None),
            Party::Transaction(owner) => (None, Some(owner)),
        };
        Who { life, pid, lock, session, owner, is_orphan: party == Party::Session(NO_SESSION) }
    }

    fn entry_snapshot(&self, entry: &Entry, waits_for: Option<WaitsFor>) -> LockSnapshot {
        LockSnapshot {
            who: self.who(entry.owner.peer, entry.owner.lock, entry.pid, entry.party()),
            state: state_of(entry.granted.is_some(), entry.wanted.is_some()),
            granted: entry.granted,
            wanted: entry.wanted,
            since_ms: entry.since_ms,
            token: entry.token,
            waits_for,
        }
    }

    fn local_snapshot(&self, id: u32, lock: &LocalLock) -> LockSnapshot {
        LockSnapshot {
            who: self.who(ME, id, lock.pid, lock.party()),
            state: state_of(lock.granted.is_some(), lock.pending.is_some()),
            granted: lock.granted,
            wanted: lock.pending.as_ref().map(|pending| pending.mode),
            since_ms: lock.since_ms,
            token: lock.token,
            waits_for: None,
        }
    }
}

fn state_of(is_granted: bool, is_pending: bool) -> LockState {
    match (is_granted, is_pending) {
        (false, _) => LockState::Waiting,
        (true, true) => LockState::Converting,
        (true, false) => LockState::Granted,
    }
}

fn told(waits_for: &Option<WaitsFor>) -> usize {
    waits_for.as_ref().map_or(0, |waits_for| waits_for.first.len())
}

fn range_snapshot(who: Who, part: u64, span: Span, is_held: bool) -> RangeSnapshot {
    RangeSnapshot { who, part, bytes: span, is_held, since_ms: None, waits_for: None }
}
