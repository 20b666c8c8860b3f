//! Many seeds, each a cluster under faults of its own: every promise holds. DEADBOLT_SIM_SEEDS and DEADBOLT_SIM_FIRST ask for more or
//! for others.

use deadbolt_simulator::{
    Plan, report,
    runner::{Batch, all_cores, run_batch},
};
use std::time::Instant;

/// What two cores can run in five minutes in the dev profile.
const SEEDS: u64 = 2000;

fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is no number")),
        Err(_) => otherwise,
    }
}

#[test]
fn every_promise_holds_in_many_seeds() {
    let first = number("DEADBOLT_SIM_FIRST", 1);
    let batch = Batch { first, count: number("DEADBOLT_SIM_SEEDS", SEEDS), time: None, jobs: all_cores(), is_twice: false };
    let started = Instant::now();
    let mut failures = Vec::new();
    let totals = run_batch(&batch, &|seed| Plan::new(seed, false), |outcome, _| {
        if !outcome.violations.is_empty() {
            failures.push(report::failure(outcome));
        }
    });
    println!("{}\n{:.0} s", report::progress(&totals), started.elapsed().as_secs_f64());
    assert_eq!(totals.runs, batch.count);
    assert!(totals.states.len() as u64 > totals.runs, "the seeds show too little");
    assert!(failures.is_empty(), "{} of {} seeds:\n{}", failures.len(), totals.runs, failures.join("\n"));
}
