//! Each planted mistake is found by some seed within the ordinary budget: a simulator that never fails proves nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use deadbolt_simulator::{Plan, planted::MISTAKES, run::run};

/// For each mistake, by its number: a seed that found it, and the promise that fell. A change of the program moves runs; where the seed does
/// not find it any more, the first seeds are searched and the test says which one to write down here.
const FOUND: &[(u64, &str)] = &[];
/// Seeds searched, at most; the ordinary budget is 2,000.
const SEARCHED: u64 = 400;

fn find(mistake: u64, seed: u64) -> Option<&'static str> {
    let mut plan = Plan::new(seed, false);
    plan.options.mistake = mistake;
    run(&plan, false).violations.first().map(|violation| violation.promise)
}

#[test]
#[ignore = "searches for many minutes: run it by name with --ignored"]
fn each_planted_mistake_is_found() {
    let mut missed = Vec::new();
    for (mistake, number) in MISTAKES.iter().zip(1..) {
        let known = FOUND.get(usize::try_from(number).unwrap() - 1).map(|(seed, _)| *seed);
        let seeds = known.into_iter().chain(1..=SEARCHED);
        match seeds.into_iter().find_map(|seed| find(number, seed).map(|promise| (seed, promise))) {
            Some((seed, promise)) => println!("{number:>2} {mistake:?}: {promise} by seed {seed}"),
            None => missed.push(format!("{number} {mistake:?}")),
        }
    }
    assert!(missed.is_empty(), "not found: {}", missed.join(", "));
}
