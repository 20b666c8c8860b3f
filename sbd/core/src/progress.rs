//! What: has a cycle been completed lately, and what have people been told about it.
//! Owns: when a stall, the end of feeding and the recovery are told, each once.
//! Invariants: the end of feeding is judged by the very comparison that the feeder makes.
//! Does not: decide anything that the node lives or dies by.
//! Called by: the lifeline machine.

use crate::verdict::{FeedVerdict, feed_verdict};

const NS_PER_MS: u64 = 1_000_000;

/// What is told now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    Stalled,
    Unfed,
}

/// The watch over a life's progress.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    completed_ms: u64,
    pub(crate) beat: u64,
    is_stall_told: bool,
    is_unfed_told: bool,
}

/// Is the watchdog fed under this lease?
pub(crate) fn is_fed(now_ms: u64, lease_end_ms: u64, reset_ms: u32) -> bool {
    feed_verdict(now_ms.saturating_mul(NS_PER_MS), lease_end_ms.saturating_mul(NS_PER_MS), reset_ms) == FeedVerdict::Feed
}

/// When it stops to be fed.
pub(crate) fn feed_end_ms(lease_end_ms: u64, reset_ms: u32) -> u64 {
    lease_end_ms.saturating_sub(2 * u64::from(reset_ms))
}

impl Progress {
    /// A new phase begins: what comes now is waited for from now on.
    pub(crate) fn begin(&mut self, now_ms: u64) {
        self.completed_ms = now_ms;
    }

    /// For how long no cycle has been completed.
    pub(crate) fn silent_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.completed_ms)
    }

    /// When something must be told next, if nothing changes.
    pub(crate) fn due_ms(&self, half_ms: u64, feed_end_ms: Option<u64>) -> Option<u64> {
        let stall = (!self.is_stall_told).then_some(self.completed_ms + half_ms);
        [stall, feed_end_ms.filter(|_| !self.is_unfed_told)].into_iter().flatten().min()
    }

    /// What must be told now. Once each, until the recovery.
    pub(crate) fn poll(&mut self, now_ms: u64, half_ms: u64, feed_end_ms: Option<u64>) -> Option<Told> {
        if !self.is_stall_told && self.silent_ms(now_ms) >= half_ms {
            self.is_stall_told = true;
            return Some(Told::Stalled);
        }
        if !self.is_unfed_told && feed_end_ms.is_some_and(|end_ms| now_ms >= end_ms) {
            self.is_unfed_told = true;
            return Some(Told::Unfed);
        }
        None
    }

    /// A cycle was completed. Answers how long after the one before, if something was told that is over now.
    pub(crate) fn handle_completed(&mut self, now_ms: u64, beat: u64, is_fed: bool) -> Option<u64> {
        let silent_ms = self.silent_ms(now_ms);
        let is_over = self.is_stall_told || (self.is_unfed_told && is_fed);
        self.is_stall_told = false;
        self.is_unfed_told &= !is_fed;
        (self.completed_ms, self.beat) = (now_ms, beat);
        is_over.then_some(silent_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_feeding_is_where_the_feeder_stops() {
        for (lease_end_ms, reset_ms) in [(10_000, 1210), (5000, 2499), (3000, 1500), (3000, 2000)] {
            let end_ms = feed_end_ms(lease_end_ms, reset_ms);
            assert!(end_ms == 0 || is_fed(end_ms - 1, lease_end_ms, reset_ms));
            assert!(!is_fed(end_ms, lease_end_ms, reset_ms));
        }
    }

    #[test]
    fn each_is_told_once_until_it_is_over() {
        let mut progress = Progress::default();
        progress.begin(1000);
        let feed_end = Some(2000);
        assert_eq!((progress.poll(1499, 500, feed_end), progress.due_ms(500, feed_end)), (None, Some(1500)));
        assert_eq!((progress.poll(1500, 500, feed_end), progress.poll(1500, 500, feed_end)), (Some(Told::Stalled), None));
        assert_eq!((progress.due_ms(500, feed_end), progress.poll(1999, 500, feed_end)), (feed_end, None));
        assert_eq!((progress.poll(2000, 500, feed_end), progress.poll(2100, 500, feed_end)), (Some(Told::Unfed), None));
        assert_eq!(progress.due_ms(500, feed_end), None);
        assert_eq!(progress.handle_completed(2200, 7, false), Some(1200), "cycles again, and still not fed");
        assert_eq!((progress.poll(2300, 500, feed_end), progress.beat), (None, 7));
        assert_eq!(progress.handle_completed(2300, 8, true), Some(100), "and now fed");
        assert_eq!((progress.handle_completed(2400, 9, true), progress.poll(2500, 500, Some(3000))), (None, None));
        assert_eq!(progress.poll(2900, 500, None), Some(Told::Stalled));
    }
}
