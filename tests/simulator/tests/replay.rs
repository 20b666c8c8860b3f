//! A run is a function of its plan; what is left out of it moves nothing else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use deadbolt_simulator::{Outcome, Plan, run};
use std::collections::BTreeSet;

fn plan(seed: u64) -> Plan {
    let mut plan = Plan::new(seed, false);
    plan.options.safety_s = 15;
    plan
}

#[test]
fn the_same_seed_shows_the_same_and_another_seed_something_else() {
    let mut hashes = BTreeSet::new();
    for seed in 1..=6 {
        let first = run(&plan(seed), false);
        let second = run(&plan(seed), true);
        assert_eq!((first.hash, first.events, &first.violations), (second.hash, second.events, &second.violations), "seed {seed}");
        assert_eq!(first.states, second.states, "seed {seed}");
        assert!(hashes.insert(first.hash), "seed {seed} shows what another seed showed");
    }
}

/// When each fault came, by number, and what it was.
fn faults(outcome: &Outcome) -> Vec<(u64, String)> {
    let fault = |line: &String| {
        let (at, rest) = line.trim_start().split_once(' ')?;
        let (number, text) = rest.strip_prefix("fault ")?.split_once(": ")?;
        Some((number.parse().unwrap(), format!("{at} {text}")))
    };
    outcome.lines.iter().filter_map(fault).collect()
}

#[test]
fn leaving_a_fault_out_leaves_the_others_where_and_what_they_are() {
    let mut all = Plan::new(1, true);
    for setting in ["crash=3", "cut=5", "pause_node=2", "disk_hang=3", "fault_gap_ms=500", "fault_ms=2000", "safety_s=20"] {
        all.options.set(setting).unwrap();
    }
    let whole = faults(&run(&all, true));
    assert!(whole.len() > 10, "{whole:?}");
    let last = whole.last().unwrap().0;
    for left_out in [1, 4, 7] {
        let mut plan = all.clone();
        plan.faults = Some((1..=last).filter(|number| *number != left_out).collect());
        let rest: Vec<_> = whole.iter().filter(|(number, _)| *number != left_out).cloned().collect();
        assert_eq!(faults(&run(&plan, true)), rest, "without fault {left_out}");
    }
    let mut none = all;
    none.faults = Some(BTreeSet::new());
    assert_eq!(faults(&run(&none, true)), []);
}
