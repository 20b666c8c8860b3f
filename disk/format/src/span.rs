//! What: how long an observer has to count where another machine's clock measures.
//! Owns: the two formulas, and the tick in them (docs/timing.md).
//! Invariants: an observer never counts less than the other clock.
//! Does not: read a clock.
//! Called by: timing, evidence, the watcher, the fencer.

/// One tick of a drifting clock, ms; the search of the models showed that it has to be counted inside the bracket.
pub const TICK_MS: u64 = 10;
/// Drift is in parts of this.
const MILLION: u64 = 1_000_000;

/// W: what an observer waits for a lease of `lease_ms` that another clock measures.
///
/// # Panics
/// With a drift of a million parts or more, which no timings carry.
#[must_use]
pub fn expiry_ms(lease_ms: u32, drift_ppm: u32) -> u64 {
    let drift = u64::from(drift_ppm);
    assert!(drift < MILLION, "a clock that may stand still measures nothing");
    ((u64::from(lease_ms) + TICK_MS) * (MILLION + drift)).div_ceil(MILLION - drift)
}

/// A wait that another node's clock measures, as an observer has to count it: its own clock may run fast by the drift, and the last
/// tick may be a partial one.
#[must_use]
pub fn observed_ms(wait_ms: u64, drift_ppm: u32) -> u64 {
    wait_ms + (wait_ms * u64::from(drift_ppm)).div_ceil(MILLION) + TICK_MS
}
