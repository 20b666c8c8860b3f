//! What: from a run that breaks a promise to a small one that breaks the same promise.
//! Owns: what is tried, and in which order.
//! Invariants: what it returns has been run and broke the promise; it ends in time, but for the run under way.
//! Does not: print.
//! Called by: the program.

use crate::{Options, Outcome, Plan, options::OPTIONS};
use std::time::Instant;

/// What decides when faults come; without it there are none.
const GAP: &str = "fault_gap_ms";
/// What is made as small as it goes, one after the other; everything else is calm or stays.
const COUNTS: [&str; 5] = ["nodes", "devices", "clients", "resources", "safety_s"];

/// The smallest found.
#[derive(Debug)]
pub struct Shrunk {
    /// What it showed.
    pub outcome: Outcome,
    /// Runs tried.
    pub tries: u64,
    /// Nothing smaller is left to try.
    pub is_complete: bool,
}

/// A search for a smaller run.
struct Search<'a> {
    promise: &'static str,
    end: Instant,
    best: Outcome,
    tries: u64,
    run: &'a mut dyn FnMut(&Plan) -> Outcome,
}

/// Looks for a small run that breaks the promise that this one broke first; `None`: it broke none.
pub fn shrink(outcome: Outcome, end: Instant, run: &mut dyn FnMut(&Plan) -> Outcome) -> Option<Shrunk> {
    let promise = outcome.violations.first()?.promise;
    let mut search = Search { promise, end, best: outcome, tries: 0, run };
    loop {
        let before = search.best.plan.clone();
        search.drop_faults();
        if !search.best.plan.is_fencing {
            search.calm_options();
            COUNTS.iter().for_each(|name| search.lower(name));
        }
        if search.is_over() || search.best.plan == before {
            break;
        }
    }
    Some(Shrunk { is_complete: !search.is_over(), outcome: search.best, tries: search.tries })
}

impl Search<'_> {
    fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Does a plan break the promise, too? Then it is the best one so far.
    fn is_smaller(&mut self, plan: &Plan) -> bool {
        if self.is_over() {
            return false;
        }
        self.tries += 1;
        let outcome = (self.run)(plan);
        let is_it = outcome.violations.iter().any(|violation| violation.promise == self.promise);
        if is_it {
            self.best = outcome;
        }
        is_it
    }

    fn drop_faults(&mut self) {
        let numbers: Vec<u64> = match &self.best.plan.faults {
            Some(faults) => faults.iter().copied().collect(),
            None => (1..=self.best.faults).collect(),
        };
        minimize(numbers, |rest| {
            let mut plan = self.best.plan.clone();
            plan.faults = Some(rest.iter().copied().collect());
            self.is_smaller(&plan)
        });
    }

    fn calm_options(&mut self) {
        let calm = Options::calm();
        let is_tried = |name: &&str| *name != GAP && !COUNTS.contains(name);
        let differs = |name: &&str| self.best.plan.options.get(name) != calm.get(name);
        let names: Vec<&str> = OPTIONS.iter().map(|info| info.name).filter(is_tried).filter(differs).collect();
        minimize(names.clone(), |rest| {
            let mut plan = self.best.plan.clone();
            for name in names.iter().filter(|name| !rest.contains(name)) {
                plan.options.put(name, calm.get(name).unwrap_or(0));
            }
            self.is_smaller(&plan)
        });
    }

    fn lower(&mut self, name: &str) {
        let low = OPTIONS.iter().find(|info| info.name == name).map_or(0, |info| info.low);
        let value = |plan: &Plan| plan.options.get(name).unwrap_or(low);
        let mut step = value(&self.best.plan) - low;
        while step > 0 {
            let mut plan = self.best.plan.clone();
            let is_lower = value(&plan) >= low + step && {
                plan.options.put(name, value(&plan) - step);
                self.is_smaller(&plan)
            };
            if !is_lower {
                step /= 2;
            }
        }
    }
}

/// Leaves out items as long as `still` says yes to the rest: halves first, then ever smaller pieces, single ones last.
fn minimize<T: Clone>(mut items: Vec<T>, mut still: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut piece = items.len();
    while piece > 0 {
        let mut at = 0;
        while at < items.len() {
            let mut rest = items.clone();
            rest.drain(at..(at + piece).min(items.len()));
            if still(&rest) {
                items = rest;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Violation;
    use std::{collections::BTreeSet, time::Duration};

    /// A run that breaks a promise if its plan is as bad as that.
    fn imagined(plan: &Plan, is_bad: bool) -> Outcome {
        let violation = Violation { promise: "S1", what: String::new(), at_us: 0 };
        Outcome {
            plan: plan.clone(),
            violations: if is_bad { vec![violation] } else { Vec::new() },
            hash: 0,
            events: 0,
            expected: Vec::new(),
            faults: 30,
            simulated_us: 0,
            granted: 0,
            views: 0,
            states: std::collections::HashSet::new(),
            lines: Vec::new(),
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn what_is_left_is_what_the_failure_needs() {
        let needed = BTreeSet::from([7, 19]);
        let mut run = |plan: &Plan| {
            let has_faults = plan.faults.as_ref().is_none_or(|faults| needed.is_subset(faults));
            let options = &plan.options;
            imagined(plan, has_faults && options.nodes >= 2 && options.crash > 0 && options.safety_s >= 13 && options.fault_gap_ms > 0)
        };
        let mut plan = Plan::new(4, false);
        for setting in ["nodes=5", "crash=6", "cut=2", "safety_s=50", "fault_gap_ms=500"] {
            plan.options.set(setting).unwrap();
        }
        let shrunk = shrink(run(&plan), soon(), &mut run).unwrap();
        assert!(shrunk.is_complete);
        assert_eq!(shrunk.outcome.plan.faults, Some(needed.clone()));
        let mut expected = Options::calm();
        for setting in ["nodes=2", "crash=6", "safety_s=13", "fault_gap_ms=500"] {
            expected.set(setting).unwrap();
        }
        assert_eq!(shrunk.outcome.plan.options, expected);
    }

    #[test]
    fn without_time_or_failure_nothing_is_tried() {
        let plan = Plan::new(4, false);
        let mut run = |_: &Plan| unreachable!("nothing is to be run");
        let shrunk = shrink(imagined(&plan, true), Instant::now(), &mut run).unwrap();
        assert_eq!((shrunk.tries, shrunk.is_complete, shrunk.outcome.plan), (0, false, plan.clone()));
        assert!(shrink(imagined(&plan, false), soon(), &mut run).is_none());
    }

    #[test]
    fn minimize_finds_what_is_needed() {
        for needed in [vec![], vec![1], vec![40], vec![1, 2, 39, 40], vec![7, 20, 33]] {
            let mut tries = 0;
            let found = minimize((1..=40).collect(), |rest: &[u32]| {
                tries += 1;
                needed.iter().all(|item| rest.contains(item))
            });
            assert_eq!(found, needed);
            assert!(tries < 80, "{tries} tries for {needed:?}");
        }
        assert_eq!(minimize(Vec::<u32>::new(), |_| true), Vec::<u32>::new());
    }
}
