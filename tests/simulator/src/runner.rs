//! What: many runs on many threads, and what they showed together.
//! Owns: the threads, the sums.
//! Invariants: every seed is run alone, as if it were the only one; what it shows does not depend on the number of threads.
//! Does not: print.
//! Called by: the program, the tests.

use crate::{Outcome, Plan, check::Violation, run};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    num::NonZeroUsize,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// Which seeds to run, and how.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The first seed.
    pub first: u64,
    /// So many seeds at most.
    pub count: u64,
    /// No seed is begun later than this.
    pub time: Option<Duration>,
    /// Threads.
    pub jobs: NonZeroUsize,
    /// Every seed is run twice, and has to show the same.
    pub is_twice: bool,
}

/// What many runs showed.
#[derive(Debug, Default)]
pub struct Totals {
    /// Seeds run.
    pub runs: u64,
    /// Those that broke a promise.
    pub failing: u64,
    /// Those that broke a promise that nothing keeps yet, by its name.
    pub expected: BTreeMap<&'static str, u64>,
    /// Events.
    pub events: u64,
    /// Faults that came.
    pub faults: u64,
    /// Locks granted.
    pub granted: u64,
    /// Views decided.
    pub views: u64,
    /// Simulated time, us.
    pub simulated_us: u64,
    /// Fingerprints of distinct states, over all runs.
    pub states: HashSet<u64>,
}

impl Totals {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.failing += u64::from(!outcome.violations.is_empty());
        let expected: BTreeSet<&'static str> = outcome.expected.iter().map(|violation| violation.promise).collect();
        expected.into_iter().for_each(|promise| *self.expected.entry(promise).or_default() += 1);
        self.events += outcome.events;
        self.faults += outcome.faults;
        self.granted += outcome.granted;
        self.views += outcome.views as u64;
        self.simulated_us += outcome.simulated_us;
        self.states.extend(&outcome.states);
    }
}

/// As many threads as the machine has cores for us.
#[must_use]
pub fn all_cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Runs a plan once or twice; twice it has to show the same.
#[must_use]
pub fn run_checked(plan: &Plan, is_twice: bool, is_tracing: bool) -> Outcome {
    let mut outcome = run(plan, is_tracing);
    if is_twice {
        let again = run(plan, false);
        if again.hash != outcome.hash {
            let what = format!("hash {:016x} at first, {:016x} the second time", outcome.hash, again.hash);
            outcome.violations.push(Violation { promise: "replay", what, at_us: outcome.simulated_us });
        }
    }
    outcome
}

/// Runs seeds, each with the plan that `make` gives it; `each` sees them in the order in which they end.
pub fn run_batch(batch: &Batch, make: &(dyn Fn(u64) -> Plan + Sync), mut each: impl FnMut(&Outcome, &Totals)) -> Totals {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let (sender, receiver) = mpsc::channel();
    let work = |sender: mpsc::Sender<Outcome>| {
        while batch.time.is_none_or(|time| started.elapsed() < time) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= batch.count {
                break;
            }
            let outcome = run_checked(&make(batch.first.wrapping_add(number)), batch.is_twice, false);
            if sender.send(outcome).is_err() {
                break;
            }
        }
    };
    let mut totals = Totals::default();
    thread::scope(|scope| {
        for _ in 0..batch.jobs.get() {
            let sender = sender.clone();
            scope.spawn(|| work(sender));
        }
        drop(sender);
        for outcome in receiver {
            totals.add(&outcome);
            each(&outcome, &totals);
        }
    });
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_shows_the_same_on_one_thread_and_on_many() {
        let make = |seed| {
            let mut plan = Plan::new(seed, true);
            plan.options.safety_s = 3;
            plan
        };
        let shown = |jobs| {
            let batch = Batch { first: 5, count: 6, time: None, jobs: NonZeroUsize::new(jobs).unwrap(), is_twice: true };
            let mut seen = Vec::new();
            let totals = run_batch(&batch, &make, |outcome, _| seen.push((outcome.plan.seed, outcome.hash)));
            assert_eq!((totals.runs, totals.failing), (6, 0));
            seen.sort_unstable();
            (seen, totals.events, totals.states)
        };
        assert_eq!(shown(1), shown(3));
    }

    #[test]
    fn no_seed_begins_when_the_time_is_over() {
        let batch = Batch { first: 1, count: u64::MAX, time: Some(Duration::ZERO), jobs: all_cores(), is_twice: false };
        assert_eq!(run_batch(&batch, &|seed| Plan::new(seed, true), |_, _| ()).runs, 0);
    }
}
