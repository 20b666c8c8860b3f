//! What: the feeding verdict and the small sums around it, as pure functions.
//! Owns: the comparison that the watchdog hangs on.
//! Invariants: no lease, no feed; an overflow is never a feed.
//! Does not: feed anything.
//! Called by: the feeding thread, the lifeline machine.

/// What the feeding thread does in this turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FeedVerdict {
    /// Feed.
    Feed,
    /// Do not feed: there is no lease, or too little of it is left.
    Withhold,
}

/// Feeds only while `now < lease_end - 2 T`: a feeder that is stopped between this check and its feed is late by at most one T,
/// for the watchdog itself is running, and the reset follows within another T; so it comes before the lease ends.
#[must_use]
pub fn feed_verdict(now_ns: u64, lease_end_ns: u64, reset_ms: u32) -> FeedVerdict {
    let margin_ns = u64::from(reset_ms) * 2_000_000;
    match lease_end_ns.checked_sub(margin_ns) {
        Some(end_ns) if now_ns < end_ns => FeedVerdict::Feed,
        _ => FeedVerdict::Withhold,
    }
}

/// T: the time granted by the driver, plus the drift of its clock over that, rounded up, plus how late it may fire.
#[must_use]
pub fn reset_ms_of(granted_ms: u32, lateness_ms: u32, drift_ppm: u32) -> u32 {
    let granted = u64::from(granted_ms);
    let drift = (granted * u64::from(drift_ppm)).div_ceil(1_000_000);
    u32::try_from(granted + drift + u64::from(lateness_ms)).unwrap_or(u32::MAX)
}

/// How many of `devices` are more than half.
#[must_use]
pub fn majority(devices: u32) -> u32 {
    devices / 2 + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn feed_table() {
        // now, lease end, T in ms -> fed
        let table = [
            (0, 0, 1000, false),    // no lease
            (5000, 0, 1000, false), // no lease
            (0, 2000, 1000, false), // exactly 2 T left
            (0, 2001, 1000, true),  // a little more
            (7999, 10_000, 1000, true),
            (8000, 10_000, 1000, false), // the end of the margin itself does not feed
            (8001, 10_000, 1000, false),
            (10_000, 10_000, 1000, false),
            (12_000, 10_000, 1000, false), // long past
            (0, 1999, 1000, false),        // margin larger than the whole time
            (0, u64::MAX / 2_000_000, u32::MAX, true),
        ];
        for (now_ms, end_ms, reset_ms, is_fed) in table {
            let verdict = feed_verdict(now_ms * 1_000_000, end_ms * 1_000_000, reset_ms);
            assert_eq!(verdict == FeedVerdict::Feed, is_fed, "now {now_ms} end {end_ms} T {reset_ms}");
        }
    }

    #[test]
    fn reset_table() {
        for (granted, lateness, ppm, expected) in
            [(2000, 200, 10_000, 2220), (2000, 900, 10_000, 2920), (1000, 0, 0, 1000), (1, 0, 1, 2), (u32::MAX, 1, 0, u32::MAX)]
        {
            assert_eq!(reset_ms_of(granted, lateness, ppm), expected);
        }
        assert_eq!([1, 2, 3].map(majority), [1, 2, 2]);
    }

    proptest! {
        #[test]
        fn a_feed_leaves_two_resets(now in 0u64..=u64::MAX, end in 0u64..=u64::MAX, reset_ms in 0u32..=u32::MAX) {
            if feed_verdict(now, end, reset_ms) == FeedVerdict::Feed {
                prop_assert!(u128::from(now) + 2_000_000 * u128::from(reset_ms) < u128::from(end));
            }
        }
    }
}
