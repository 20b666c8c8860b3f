//! Byte ranges that are right because they are plain: the bytes of a file are a few cells, each owner has a row of them, and after every step
//! every wait is judged anew. It knows nothing of the product but the numbers of flags and results.
//!
//! The rules (docs/locks.md, *Byte ranges*): an owner's new range replaces what it had there; owners exclude each other where one writes; a wait
//! waits for all earlier ones that it excludes, but not for one that waits for what its own owner has; who has all it asks for is served at
//! once; what takes at one end and weakens at the other takes first.

mod cycles;
pub(crate) mod lockstep;

use deadbolt_dlm_core::{LockStatus, RangeMode};
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

pub(crate) const CELLS: usize = 10;

/// Where the cells begin; the last one is the last byte of all.
const EDGES: [u64; CELLS] = [0, 1, 2, 3, 7, 8, 1 << 32, (1 << 32) + 1, u64::MAX - 1, u64::MAX];

/// First and last byte of some cells.
pub(crate) fn bytes(first: usize, last: usize) -> (u64, u64) {
    (EDGES[first], EDGES.get(last + 1).map_or(u64::MAX, |next| next - 1))
}

/// A lock is known by the serial of the request that made it.
pub(crate) type Id = u64;

pub(crate) type Row = [Option<RangeMode>; CELLS];

/// What a session is told: of which request, and how it ended.
pub(crate) type Told = (u64, u64, LockStatus);

/// Whose a range is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Owner {
    pub(crate) lock: Id,
    pub(crate) number: u64,
}

/// Some cells of a file, and how they are had or wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cells {
    pub(crate) first: usize,
    pub(crate) last: usize,
    /// None: not at all.
    pub(crate) kind: Option<RangeMode>,
}

impl Cells {
    fn of(self, row: &mut Row) -> &mut [Option<RangeMode>] {
        &mut row[self.first..=self.last]
    }

    /// Do these, and what another has, exclude each other?
    fn exclude(self, row: &Row) -> bool {
        let write = Some(RangeMode::Write);
        row[self.first..=self.last].iter().any(|cell| cell.is_some() && self.kind.is_some() && (*cell == write || self.kind == write))
    }

    fn contain(self, other: Self) -> bool {
        self.first <= other.first && self.last >= other.last && self.kind >= other.kind
    }

    fn as_row(self) -> Row {
        let mut row = Row::default();
        self.of(&mut row).fill(self.kind);
        row
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// A lock in NL on a file, for a transaction or (0) for its session.
    Open { file: u8, transaction: u64, is_persistent: bool },
    /// Takes over an orphan.
    Adopt { file: u8, transaction: u64 },
    /// Gives a lock back.
    Close { lock: Id, is_forced: bool },
    /// Takes, changes, gives back cells. `timeout`: 0 for none.
    Range { owner: Owner, cells: Cells, is_try: bool, is_spared: bool, timeout: u64 },
    /// Would this be granted?
    Query { owner: Owner, cells: Cells },
    /// Takes back a request.
    Cancel { request: u64 },
}

#[derive(Clone, Debug)]
pub(crate) struct Lock {
    pub(crate) id: Id,
    /// 0: an orphan's.
    pub(crate) session: u64,
    pub(crate) file: u8,
    transaction: u64,
    is_persistent: bool,
}

impl Lock {
    /// Of a transaction's lock nobody can say that: the transaction may have processes elsewhere.
    pub(crate) fn is_shown_as_orphan(&self) -> bool {
        self.session == 0 && self.transaction == 0
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Wait {
    pub(crate) serial: u64,
    pub(crate) session: u64,
    pub(crate) owner: Owner,
    pub(crate) cells: Cells,
    pub(crate) until: Option<u64>,
    pub(crate) since: u64,
    /// By NODLCKWT no search for deadlocks fails it.
    is_spared: bool,
}

#[derive(Default)]
pub(crate) struct Bytes {
    pub(crate) locks: Vec<Lock>,
    pub(crate) rows: BTreeMap<Owner, Row>,
    /// In the order in which they came.
    pub(crate) waits: Vec<Wait>,
    /// What was just granted, and was stronger there before.
    weaker: VecDeque<(Owner, Cells)>,
    told: Vec<Told>,
}

impl Bytes {
    pub(crate) fn lock(&self, id: Id) -> Option<&Lock> {
        self.locks.iter().find(|lock| lock.id == id)
    }

    fn file(&self, owner: Owner) -> Option<u8> {
        self.lock(owner.lock).map(|lock| lock.file)
    }

    fn row(&self, owner: Owner) -> Row {
        self.rows.get(&owner).copied().unwrap_or_default()
    }

    fn change(&mut self, owner: Owner, cells: Cells, becomes: impl Fn(Option<RangeMode>) -> Option<RangeMode>) {
        let row = self.rows.entry(owner).or_default();
        cells.of(row).iter_mut().for_each(|cell| *cell = becomes(*cell));
        self.rows.retain(|_, row| *row != Row::default());
    }

    /// Other owners who have what keeps these cells from `owner`.
    pub(crate) fn holders(&self, owner: Owner, cells: Cells) -> impl Iterator<Item = Owner> + '_ {
        let file = self.file(owner);
        let others = self.rows.iter().filter(move |(other, _)| **other != owner && self.file(**other) == file);
        others.filter(move |(_, row)| cells.exclude(row)).map(|(other, _)| *other)
    }

    /// Earlier waits that the one at this place waits for.
    fn earlier(&self, place: usize) -> impl Iterator<Item = &Wait> {
        let wait = &self.waits[place];
        let (file, own) = (self.file(wait.owner), self.row(wait.owner));
        let others = self.waits[..place].iter().filter(move |other| other.owner != wait.owner && self.file(other.owner) == file);
        others.filter(move |other| other.cells.exclude(&wait.cells.as_row()) && !other.cells.exclude(&own))
    }

    fn is_free(&self, place: usize) -> bool {
        let wait = &self.waits[place];
        self.holders(wait.owner, wait.cells).next().is_none() && self.earlier(place).next().is_none()
    }

    /// What an owner has when everything is weakened that is to be.
    fn weakened(&self, owner: Owner) -> Row {
        let mut row = self.row(owner);
        for (_, cells) in self.weaker.iter().filter(|(other, _)| *other == owner) {
            cells.of(&mut row).iter_mut().for_each(|cell| *cell = (*cell).min(cells.kind));
        }
        row
    }

    /// Grants what can be granted, the oldest first, again after every grant.
    fn grant(&mut self) {
        while let Some(place) = (0..self.waits.len()).find(|place| self.is_free(*place)) {
            let Wait { serial, session, owner, cells, .. } = self.waits.remove(place);
            if self.weakened(owner)[cells.first..=cells.last].iter().any(|cell| *cell > cells.kind) {
                self.weaker.push_back((owner, cells));
            }
            self.change(owner, cells, |had| had.max(cells.kind));
            self.told.push((session, serial, LockStatus::Success));
        }
    }

    /// The end of a step: what was taken is taken; now it is weakened where it was stronger.
    fn finish(&mut self) -> Vec<Told> {
        self.grant();
        while let Some((owner, cells)) = self.weaker.pop_front() {
            self.change(owner, cells, |had| had.min(cells.kind));
            self.grant();
        }
        std::mem::take(&mut self.told)
    }

    fn end(&mut self, place: usize, status: LockStatus) {
        let wait = self.waits.remove(place);
        self.told.push((wait.session, wait.serial, status));
    }

    /// Everything that is told because of one request, in order. `rank`: which of several orphans comes first.
    pub(crate) fn ask(&mut self, now: u64, session: u64, serial: u64, ask: Ask, rank: impl Fn(Id) -> u32) -> Vec<Told> {
        let status = match ask {
            Ask::Open { file, transaction, is_persistent } => {
                self.locks.push(Lock { id: serial, session, file, transaction, is_persistent });
                Some(LockStatus::Success)
            }
            Ask::Adopt { file, transaction } => {
                let orphans = self.locks.iter_mut().filter(|lock| lock.session == 0 && lock.file == file);
                Some(orphans.min_by_key(|lock| rank(lock.id)).map_or(LockStatus::NotFound, |lock| {
                    (lock.session, lock.transaction) = (session, transaction);
                    LockStatus::Success
                }))
            }
            Ask::Close { lock, is_forced } => Some(self.close(session, lock, is_forced)),
            Ask::Range { owner, .. } | Ask::Query { owner, .. } if self.lock(owner.lock).is_none_or(|lock| lock.session != session) => {
                Some(LockStatus::NotFound)
            }
            Ask::Range { cells, .. } | Ask::Query { cells, .. } if cells.last < cells.first => Some(LockStatus::Invalid),
            Ask::Query { cells, .. } => Some(if cells.kind.is_some() { LockStatus::Success } else { LockStatus::Invalid }),
            Ask::Range { owner, cells, .. } if self.row(owner)[cells.first..=cells.last].iter().all(|cell| *cell >= cells.kind) => {
                self.change(owner, cells, |_| cells.kind);
                Some(LockStatus::Success)
            }
            Ask::Range { owner, cells, is_try, is_spared, timeout } => {
                let until = (timeout != 0).then_some(now + timeout);
                self.waits.push(Wait { serial, session, owner, cells, until, since: now, is_spared });
                if is_try && !self.is_free(self.waits.len() - 1) {
                    self.end(self.waits.len() - 1, LockStatus::Again);
                }
                None
            }
            Ask::Cancel { request } => {
                let found = self.waits.iter().position(|wait| (wait.session, wait.serial) == (session, request));
                found.into_iter().for_each(|place| self.end(place, LockStatus::Cancelled));
                Some(if found.is_some() { LockStatus::Success } else { LockStatus::NotFound })
            }
        };
        self.told.extend(status.map(|status| (session, serial, status)));
        self.finish()
    }

    fn close(&mut self, session: u64, id: Id, is_forced: bool) -> LockStatus {
        if self.lock(id).is_none_or(|lock| lock.session != session) {
            return LockStatus::NotFound;
        }
        if !is_forced && self.waits.iter().any(|wait| wait.owner.lock == id) {
            return LockStatus::Busy;
        }
        self.drop_ranges(id);
        self.locks.retain(|lock| lock.id != id);
        LockStatus::Unlocked
    }

    fn drop_ranges(&mut self, id: Id) {
        while let Some(place) = self.waits.iter().position(|wait| wait.owner.lock == id) {
            self.end(place, LockStatus::Cancelled);
        }
        self.rows.retain(|owner, _| owner.lock != id);
    }

    /// A process dies: its locks go, the newest first, or stay without ranges.
    pub(crate) fn die(&mut self, session: u64) -> Vec<Told> {
        let mut dead: Vec<Lock> = self.locks.iter().filter(|lock| lock.session == session).cloned().collect();
        dead.sort_by_key(|lock| Reverse(lock.id));
        for Lock { id, is_persistent, .. } in dead {
            if is_persistent {
                self.leave_behind(id);
            } else {
                self.drop_ranges(id);
                self.locks.retain(|lock| lock.id != id);
            }
            self.grant();
        }
        let told = self.finish();
        told.into_iter().filter(|(to, ..)| *to != session).collect()
    }

    /// An orphan gives up piece by piece: first what it waits for, then what each of its owners has.
    fn leave_behind(&mut self, id: Id) {
        self.locks.iter_mut().filter(|lock| lock.id == id).for_each(|orphan| orphan.session = 0);
        while let Some(place) = self.waits.iter().position(|wait| wait.owner.lock == id) {
            self.end(place, LockStatus::Cancelled);
            self.grant();
        }
        while let Some(owner) = self.rows.keys().copied().find(|owner| owner.lock == id) {
            self.rows.remove(&owner);
            self.grant();
        }
    }

    /// Waits that have lasted as long as they may.
    pub(crate) fn expire(&mut self, now: u64) -> Vec<Told> {
        let mut late: Vec<(u64, u64)> = self.waits.iter().filter_map(|wait| Some((wait.until?, wait.serial))).collect();
        late.retain(|(until, _)| *until <= now);
        late.sort_unstable();
        for (_, serial) in late {
            // The end of another's wait may have let it in.
            if let Some(place) = self.waits.iter().position(|wait| wait.serial == serial) {
                self.end(place, LockStatus::TimedOut);
                self.grant();
            }
        }
        self.finish()
    }

    /// When the first wait ends.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.waits.iter().filter_map(|wait| wait.until).min()
    }
}
