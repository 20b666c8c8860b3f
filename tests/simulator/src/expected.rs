//! What: promises of the design that nothing keeps yet, each with a scenario that must break it today.
//! Owns: the list.
//! Invariants: a scenario that holds is no longer expected to fail: the list only shrinks.
//! Does not: excuse anything else.
//! Called by: the world, for what random runs find; the test that plays the scenarios.

use crate::{Options, Outcome, Plan, check::Violation, run};

/// A promise that falls.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// The promise.
    pub promise: &'static str,
    /// What would keep it.
    pub missing: &'static str,
    /// Options beside those of a calm run, with clients that write under their locks.
    pub settings: &'static [&'static str],
}

/// All of them.
pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "a guest is stopped together with its clock and its watchdog",
    promise: "S3",
    missing: "a persistent reservation",
    settings: &["unfair_guest_pause=1", "fault_gap_ms=2000", "fault_ms=15000"],
}];

/// Seeds that a scenario is played with; with one of them its promise has to fall.
pub const SEEDS: std::ops::RangeInclusive<u64> = 1..=20;

/// Promises that random runs break in a way that is known: none.
const KNOWN: &[&str] = &[];

/// Is this known to happen?
#[must_use]
pub fn is_known(violation: &Violation) -> bool {
    KNOWN.contains(&violation.promise)
}

impl Scenario {
    /// What is run.
    ///
    /// # Panics
    /// The list names an option that does not exist.
    #[must_use]
    pub fn plan(&self, seed: u64) -> Plan {
        let mut options = Options::calm();
        let settings = ["clients=2", "resources=1", "locks=1", "hold_ms=50", "think_ms=1", "lockspaces=1", "stall_ms=1000"];
        settings.iter().chain(self.settings).for_each(|setting| options.set(setting).expect("an option within its range"));
        Plan { seed, options, is_fencing: false, faults: None }
    }

    /// Does its promise fall?
    #[must_use]
    pub fn is_broken(&self, outcome: &Outcome) -> bool {
        outcome.violations.iter().chain(&outcome.expected).any(|violation| violation.promise == self.promise)
    }

    /// The first seed with which it falls.
    #[must_use]
    pub fn find(&self) -> Option<u64> {
        SEEDS.into_iter().find(|seed| self.is_broken(&run(&self.plan(*seed), false)))
    }
}
