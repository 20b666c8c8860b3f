//! What: clients of the simulated cluster that take, wait for and give back byte ranges of the locks that they have.
//! Owns: what each owner may rely on, byte by byte, and the check that no two owners rely on what excludes each other.
//! Invariants: while an answer is awaited a client relies on no more than every outcome leaves it.
//! Does not: expect anything of order.
//! Called by: `cluster`.

use super::*;
use crate::client::RangeKind;
use crate::ranges::RangeMode;

const BYTES: usize = 6;

pub(super) type Cells = [Option<RangeMode>; BYTES];

/// A range request under way.
#[derive(Clone, Debug)]
pub(super) struct RangeAsked {
    lock: u32,
    number: u64,
    /// What is had when it fails, and when it is done.
    failed: Cells,
    done: Cells,
}

impl World {
    pub(super) fn new_range(&mut self, life: Life, serial: u64, idle: &[u32]) -> (Asked, ClientRequest) {
        let (lock, number) = (idle[self.random.below(idle.len())], self.random.next() % 2);
        let (a, b) = (self.random.below(BYTES), self.random.below(BYTES));
        let (first, last) = (a.min(b), a.max(b));
        let kind = [RangeKind::Read, RangeKind::Write, RangeKind::Unlock][self.random.below(3)];
        let before = self.cells.get(&(life, lock, number)).copied().unwrap_or_default();
        let (mut done, mut relied) = (before, before);
        done[first..=last].fill(kind.mode());
        for cell in &mut relied[first..=last] {
            *cell = (*cell).min(kind.mode());
        }
        // To give up never fails.
        let failed = if kind == RangeKind::Unlock { done } else { before };
        self.cells.insert((life, lock, number), relied);
        self.held.get_mut(&(life, lock)).unwrap().is_busy = true;
        let flags = if self.random.chance(50) { Flags::NOQUEUE } else { Flags::NONE };
        // The client gives nothing back of a lock for which it waits, and for the search other owners than 0 are somebody else.
        let timeout_ms = 100;
        let (start, end) = (u64::try_from(first).unwrap(), u64::try_from(last).unwrap());
        let asked = Asked::Range(RangeAsked { lock, number, failed, done });
        (asked, ClientRequest::Range { serial, lock, owner: number, kind, start, end, flags, timeout_ms })
    }

    pub(super) fn judge_range(&mut self, life: Life, asked: &RangeAsked, status: LockStatus) -> Checked {
        let Some(held) = self.held.get_mut(&(life, asked.lock)) else { return Err("ranges of nothing were answered".to_string()) };
        held.is_busy = false;
        let name = held.name;
        let mine = if status == LockStatus::Success { asked.done } else { asked.failed };
        self.counts.ranges += usize::from(status == LockStatus::Success);
        self.cells.insert((life, asked.lock, asked.number), mine);
        for ((other, lock, number), cells) in &self.cells {
            let is_me = (*other, *lock, *number) == (life, asked.lock, asked.number);
            if is_me || self.held.get(&(*other, *lock)).is_none_or(|held| held.name != name || held.is_unlocking) {
                continue;
            }
            let excludes =
                |(one, other): (&Option<RangeMode>, &Option<RangeMode>)| one.zip(*other).is_some_and(|(a, b)| !a.is_compatible(b));
            if cells.iter().zip(&mine).any(excludes) {
                let slots = (life.slot.0, other.slot.0);
                return Err(format!("S2: ranges of {name:?}: slots {slots:?}, lock {} {mine:?} and lock {lock} {cells:?}", asked.lock));
            }
        }
        Ok(())
    }
}
