//! What: the ends of waits that have one.
//! Owns: the deadlines of operations under way, in order of time.
//! Invariants: a deadline is here from the begin of its operation to its end; an operation that was granted before is not taken back.
//! Does not: read a clock; the service's inputs bring the time.
//! Called by: `service`.

use super::LockService;
use crate::mode::LockStatus;
use alloc::collections::BTreeSet;

/// Time, operation and lock, soonest first.
#[derive(Debug, Default)]
pub(super) struct Deadlines(BTreeSet<(u64, u64, u32)>);

impl Deadlines {
    pub(super) fn first(&self) -> Option<u64> {
        self.0.first().map(|(at_ms, ..)| *at_ms)
    }

    /// 0: none.
    pub(super) fn add(&mut self, at_ms: u64, op: u64, lock: u32) {
        if at_ms != 0 {
            self.0.insert((at_ms, op, lock));
        }
    }

    pub(super) fn remove(&mut self, at_ms: u64, op: u64, lock: u32) {
        if at_ms != 0 {
            self.0.remove(&(at_ms, op, lock));
        }
    }

    /// A lock whose deadline has come.
    fn pop_due(&mut self, now_ms: u64) -> Option<u32> {
        self.first().filter(|at_ms| *at_ms <= now_ms)?;
        self.0.pop_first().map(|(.., lock)| lock)
    }
}

impl LockService {
    /// When a wait of `timeout_ms` that begins now ends; 0 for 0.
    pub(super) fn deadline(&self, timeout_ms: u32) -> u64 {
        if timeout_ms == 0 { 0 } else { self.now_ms.saturating_add(timeout_ms.into()) }
    }

    /// Takes back what has waited as long as it wanted to.
    pub(super) fn end_waits(&mut self) {
        while let Some(lock) = self.deadlines.pop_due(self.now_ms) {
            self.take_back(lock, LockStatus::TimedOut);
        }
    }
}
