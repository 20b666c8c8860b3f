//! What: every time of the cluster, derived from the one number that an administrator sets.
//! Owns: the formulas of the leases, the budget that is printed, the inequalities that are refused at start.
//! Invariants: `derive` never returns timings that `check` refuses.
//! Does not: read a clock or a device.
//! Called by: `format`, `timing`, every daemon at start.

use alloc::{format, string::String, vec::Vec};
use deadbolt_disk_format::Timings;
use deadbolt_disk_format::span::{expiry_ms, observed_ms};

/// What is known of a watchdog driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Driver {
    /// Name as the kernel gives it; `process` is the supervisor's own.
    pub name: &'static str,
    /// It fires at most this much later than granted.
    pub lateness_ms: u32,
    /// It fires at most this much earlier than granted.
    pub earliness_ms: u32,
    /// Shortest time it grants.
    pub least_ms: u32,
}

/// Drivers with known lateness. `softdog` was measured between 0.9 s early and 0.9 s late in emulated guests; `process` is checked
/// every 10 ms by the supervisor and given a wide margin for a loaded machine.
pub const DRIVERS: &[Driver] = &[
    Driver { name: "process", lateness_ms: 200, earliness_ms: 0, least_ms: 200 },
    Driver { name: "softdog", lateness_ms: 900, earliness_ms: 900, least_ms: 1000 },
    Driver { name: "i6300esb", lateness_ms: 1000, earliness_ms: 1000, least_ms: 1000 },
    Driver { name: "iTCO_wdt", lateness_ms: 1000, earliness_ms: 1000, least_ms: 2000 },
];

/// What is assumed of a driver that is not in the table: 1 s either way.
pub const UNKNOWN_DRIVER: Driver = Driver { name: "unknown", lateness_ms: 1000, earliness_ms: 1000, least_ms: 1000 };

/// Looks a driver up by name.
#[must_use]
pub fn driver(name: &str) -> Driver {
    DRIVERS.iter().find(|driver| driver.name == name).copied().unwrap_or(UNKNOWN_DRIVER)
}

/// Expected time of one cycle; a cycle is two small disk operations, usually under 5 ms (measured p99 8 ms on loop devices).
const CYCLE_MS: u32 = 150;
/// Interval of the feeding thread.
const FEED_MS: u32 = 100;
/// Silence on the network after which an edge is gone: six default polls.
const DETECT_MS: u32 = 1500;
/// rho, 1 %.
const DRIFT_PPM: u32 = 10_000;
const MILLION: u64 = 1_000_000;
/// Interval of polls while a matter is open, where the usual one is longer. Chosen: a decision takes a few of them, and none takes less than
/// a write.
pub(crate) const FAST_POLL_MS: u64 = 50;

/// What an administrator may set; everything else follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wishes {
    /// How long a storage stall to tolerate.
    pub stall_ms: u32,
    /// Interval of beats; none: min(250 ms, stall / 10).
    pub poll_ms: Option<u32>,
    /// Time to ask of the watchdog; none: 2 s, 1 s below a stall of 2 s.
    pub watchdog_ms: Option<u32>,
    /// D; none: 500 ms.
    pub storage_delay_ms: Option<u32>,
    /// F; none: 60 s.
    pub freeze_ms: Option<u32>,
    /// What is assumed of the watchdog.
    pub driver: Driver,
}

impl Wishes {
    /// Only a stall tolerance, everything else by default, with a watchdog at most 0.2 s late.
    #[must_use]
    pub fn stall(stall_ms: u32) -> Self {
        Self { stall_ms, poll_ms: None, watchdog_ms: None, storage_delay_ms: None, freeze_ms: None, driver: driver("process") }
    }
}

/// Why a set of times is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TimingError {
    /// A value is outside its range.
    #[error("{name} is {found_ms} ms; it must be from {least_ms} to {most_ms} ms")]
    OutOfRange {
        /// Which.
        name: &'static str,
        /// What was found.
        found_ms: u64,
        /// Smallest allowed.
        least_ms: u64,
        /// Largest allowed.
        most_ms: u64,
    },
    /// An inequality of the lease algebra does not hold.
    #[error("{rule} does not hold: {left} against {right}; raise the stall tolerance or lower the watchdog time")]
    Inequality {
        /// The rule as printed by `deadbolt timing`.
        rule: &'static str,
        /// Left side.
        left: u64,
        /// Right side.
        right: u64,
    },
}

/// `time` on a clock that may run slow by rho, rounded up.
fn with_drift(time_ms: u64, drift_ppm: u32) -> u64 {
    time_ms + (time_ms * u64::from(drift_ppm)).div_ceil(MILLION)
}

/// T of a watchdog: granted + lateness + drift.
#[must_use]
pub fn reset_ms(granted_ms: u32, lateness_ms: u32, drift_ppm: u32) -> u32 {
    clamp(with_drift(u64::from(granted_ms), drift_ppm) + u64::from(lateness_ms))
}

fn clamp(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Derives every time from the wishes.
///
/// # Errors
/// A wish outside its range, or a combination that no lease can satisfy.
pub fn derive(wishes: &Wishes) -> Result<Timings, TimingError> {
    range("stall", u64::from(wishes.stall_ms), 500, 600_000)?;
    let watchdog_ms = wishes.watchdog_ms.unwrap_or(if wishes.stall_ms < 2000 { 1000 } else { 2000 }).max(wishes.driver.least_ms);
    let mut timings = Timings {
        stall_ms: wishes.stall_ms,
        poll_ms: wishes.poll_ms.unwrap_or((wishes.stall_ms / 10).min(250)),
        feed_ms: FEED_MS,
        watchdog_ms,
        lateness_ms: wishes.driver.lateness_ms,
        earliness_ms: wishes.driver.earliness_ms,
        cycle_ms: CYCLE_MS,
        reset_ms: reset_ms(watchdog_ms, wishes.driver.lateness_ms, DRIFT_PPM),
        storage_delay_ms: wishes.storage_delay_ms.unwrap_or(500),
        freeze_ms: wishes.freeze_ms.unwrap_or(60_000),
        detect_ms: DETECT_MS.max(6 * wishes.poll_ms.unwrap_or(0)),
        drift_ppm: DRIFT_PPM,
        ..Timings::default()
    };
    timings.lease_ms = clamp(lease_least(&timings).max(survival_least(&timings)).next_multiple_of(10));
    timings.expiry_ms = clamp(expiry_least(&timings).next_multiple_of(10));
    check(&timings)?;
    Ok(timings)
}

/// Shortest time from the last feed to the reset: granted - earliness - drift.
fn reset_least(timings: &Timings) -> u64 {
    let granted = u64::from(timings.watchdog_ms);
    let drift = (granted * u64::from(timings.drift_ppm)).div_ceil(MILLION);
    granted.saturating_sub(u64::from(timings.earliness_ms)).saturating_sub(drift)
}

/// L >= stall + poll + 3 cycles + feed interval + 2 T - Tmin.
fn lease_least(timings: &Timings) -> u64 {
    (u64::from(timings.stall_ms)
        + u64::from(timings.poll_ms)
        + 3 * u64::from(timings.cycle_ms)
        + u64::from(timings.feed_ms)
        + 2 * u64::from(timings.reset_ms))
    .saturating_sub(reset_least(timings))
}

/// L >= 2 T + poll + cycle + feed interval.
fn survival_least(timings: &Timings) -> u64 {
    2 * u64::from(timings.reset_ms) + u64::from(timings.poll_ms) + u64::from(timings.cycle_ms) + u64::from(timings.feed_ms)
}

/// W (1 - rho) >= (L + tick) (1 + rho): the tick passes on the slow clock, too (found by search at rho 1/4).
fn expiry_least(timings: &Timings) -> u64 {
    expiry_ms(timings.lease_ms, timings.drift_ppm)
}

fn range(name: &'static str, found_ms: u64, least_ms: u64, most_ms: u64) -> Result<(), TimingError> {
    if (least_ms..=most_ms).contains(&found_ms) { Ok(()) } else { Err(TimingError::OutOfRange { name, found_ms, least_ms, most_ms }) }
}

fn at_least(rule: &'static str, left: u64, right: u64) -> Result<(), TimingError> {
    if left >= right { Ok(()) } else { Err(TimingError::Inequality { rule, left, right }) }
}

/// Refuses timings that break a rule; run at format, at every start and on every view.
///
/// # Errors
/// The first rule that does not hold.
pub fn check(timings: &Timings) -> Result<(), TimingError> {
    range("stall", u64::from(timings.stall_ms), 500, 600_000)?;
    range("poll", u64::from(timings.poll_ms), 20, 10_000)?;
    range("feed interval", u64::from(timings.feed_ms), 10, 1000)?;
    range("watchdog", u64::from(timings.watchdog_ms), 200, 300_000)?;
    range("storage delay", u64::from(timings.storage_delay_ms), 0, 60_000)?;
    range("freeze", u64::from(timings.freeze_ms), 0, 3_600_000)?;
    range("clock drift (ppm)", u64::from(timings.drift_ppm), 100, 200_000)?;
    range("cycle", u64::from(timings.cycle_ms), 1, 60_000)?;
    range("lease", u64::from(timings.lease_ms), 1, 3_600_000)?;
    at_least("detect >= 3 polls", u64::from(timings.detect_ms), 3 * u64::from(timings.poll_ms))?;
    at_least(
        "T >= watchdog + lateness + drift",
        u64::from(timings.reset_ms),
        u64::from(reset_ms(timings.watchdog_ms, timings.lateness_ms, timings.drift_ppm)),
    )?;
    at_least("watchdog > earliness + drift", reset_least(timings), 1)?;
    at_least("L >= stall + poll + 3 cycles + feed + 2 T - Tmin", u64::from(timings.lease_ms), lease_least(timings))?;
    at_least("L >= 2 T + poll + cycle + feed", u64::from(timings.lease_ms), survival_least(timings))?;
    at_least("W (1 - rho) >= (L + tick) (1 + rho)", u64::from(timings.expiry_ms), expiry_least(timings))
}

/// One line of the budget.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BudgetLine {
    /// What is waited for.
    pub name: &'static str,
    /// How long at most, ms.
    pub time_ms: u64,
    /// Where the number comes from.
    pub source: String,
}

/// What must go wrong, and what then takes how long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Budget {
    /// The case, for people.
    pub case: &'static str,
    /// The parts in order.
    pub lines: Vec<BudgetLine>,
}

impl Budget {
    /// Sum of all parts.
    #[must_use]
    pub fn total_ms(&self) -> u64 {
        self.lines.iter().map(|line| line.time_ms).sum()
    }
}

fn line(name: &'static str, time_ms: u64, source: String) -> BudgetLine {
    BudgetLine { name, time_ms, source }
}

/// Settle (two quick polls) and four disk operations, counted as 100 ms.
fn decide_line(timings: &Timings) -> BudgetLine {
    let poll_ms = u64::from(timings.poll_ms).min(FAST_POLL_MS);
    line("decide", 2 * poll_ms + 100, format!("two quick polls of {poll_ms} ms + one decision on disk, 100 ms"))
}

fn recover_line(timings: &Timings) -> BudgetLine {
    line("recover", u64::from(timings.poll_ms) + 100, format!("one poll of {} ms + rebuild, 100 ms", timings.poll_ms))
}

/// The budget of a node that dies: everything else runs while its lease runs out.
#[must_use]
pub fn budget_crash(timings: &Timings) -> Budget {
    let poll = u64::from(timings.poll_ms);
    let silence = u64::from(timings.expiry_ms) + observed_ms(u64::from(timings.storage_delay_ms), timings.drift_ppm);
    let detect = u64::from(timings.detect_ms);
    let parts = alloc::vec![
        line("detect, decide", detect, format!("network silence of {detect} ms and the decision run while the lease runs out")),
        line(
            "fence",
            (silence + 2 * poll).saturating_sub(detect),
            format!(
                "what remains of W {} ms + D {} ms, from the poll that saw the last beat to the one that confirms",
                timings.expiry_ms, timings.storage_delay_ms
            ),
        ),
        line("decide", 100, "the view that names the evidence, one decision on disk, 100 ms".into()),
        recover_line(timings),
    ];
    Budget { case: "a node dies", lines: parts }
}

/// The budget of a partition whose loser holds locks and can be reached through the disk.
#[must_use]
pub fn budget_partition(timings: &Timings) -> Budget {
    let poll = u64::from(timings.poll_ms);
    let parts = alloc::vec![
        line("detect", u64::from(timings.detect_ms), format!("silence on the network for {} ms", timings.detect_ms)),
        decide_line(timings),
        line(
            "fence",
            2 * poll + observed_ms(u64::from(timings.reset_ms) + u64::from(timings.storage_delay_ms), timings.drift_ppm),
            format!("two polls for `left`, then T {} ms + D {} ms after the acknowledgement", timings.reset_ms, timings.storage_delay_ms),
        ),
        recover_line(timings),
    ];
    Budget { case: "the network splits, the loser holds locks", lines: parts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn default_leases_are_those_of_the_design() {
        let five = derive(&Wishes::stall(5000)).unwrap();
        assert_eq!((five.lease_ms, five.expiry_ms, five.poll_ms, five.watchdog_ms), (8260, 8440, 250, 2000));
        let one = derive(&Wishes::stall(1000)).unwrap();
        assert_eq!((one.lease_ms, one.expiry_ms, one.poll_ms, one.watchdog_ms), (3080, 3160, 100, 1000));
    }

    #[test]
    fn a_late_driver_lengthens_the_lease() {
        let late = derive(&Wishes { driver: driver("softdog"), ..Wishes::stall(5000) }).unwrap();
        assert_eq!(late.reset_ms, 2920);
        assert!(late.lease_ms > 10_000);
    }

    #[test]
    fn an_impossible_combination_is_refused() {
        let mut timings = derive(&Wishes::stall(5000)).unwrap();
        timings.lease_ms -= 100;
        assert!(matches!(check(&timings), Err(TimingError::Inequality { .. })));
        assert!(matches!(derive(&Wishes::stall(10)), Err(TimingError::OutOfRange { name: "stall", .. })));
        let refused =
            derive(&Wishes { watchdog_ms: Some(300), driver: Driver { earliness_ms: 900, ..driver("process") }, ..Wishes::stall(1000) });
        assert!(refused.is_err());
    }

    proptest! {
        #[test]
        fn what_is_derived_satisfies_the_rules(stall in 500u32..600_000, poll in proptest::option::of(20u32..10_000), late in 0u32..2000, early in 0u32..900) {
            let wishes = Wishes { poll_ms: poll, driver: Driver { lateness_ms: late, earliness_ms: early, ..driver("process") }, ..Wishes::stall(stall) };
            if let Ok(timings) = derive(&wishes) {
                prop_assert_eq!(check(&timings), Ok(()));
                let rho = f64::from(timings.drift_ppm) / 1e6;
                prop_assert!(f64::from(timings.expiry_ms) * (1.0 - rho) >= f64::from(timings.lease_ms) * (1.0 + rho));
            }
        }
    }
}
