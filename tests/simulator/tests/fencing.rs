//! Drop-in fencing: every promise holds in many seeds, and each planted mistake is found by one that holds without it.
//! DEADBOLT_SIM_SEEDS and DEADBOLT_SIM_FIRST ask for more seeds or for others.

use deadbolt_simulator::{
    Plan,
    planted::FENCING,
    report, run,
    runner::{Batch, all_cores, run_batch},
};

/// What two cores can run in half a minute in the dev profile.
const SEEDS: u64 = 1000;
/// Seeds that are searched where the known one does not find a mistake.
const SEARCHED: u64 = 3000;

/// For each mistake, in the order of their numbers: the seed that found it, and the promise that fell. Where a change of the program moves
/// runs, the test looks for another seed and says which.
const FOUND: &[(u64, &str)] =
    &[(6, "S9"), (1, "S9"), (3, "S9"), (2068, "S9"), (1748, "S9"), (22473, "S9"), (7240, "S5"), (6, "S9"), (3, "L1"), (1, "S5"), (3, "L2")];

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
    let mut failures = Vec::new();
    let totals = run_batch(&batch, &Plan::fencing, |outcome, _| {
        if !outcome.violations.is_empty() {
            failures.push(report::failure(outcome));
        }
    });
    println!("{}", report::progress(&totals));
    assert_eq!(totals.runs, batch.count);
    assert!(totals.granted > totals.runs, "too few fences end with a proof");
    assert!(totals.states.len() as u64 > totals.runs, "the seeds show too little");
    assert!(failures.is_empty(), "{} of {} seeds:\n{}", failures.len(), totals.runs, failures.join("\n"));
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    for seed in 1..20 {
        assert_eq!(run(&Plan::fencing(seed), false).hash, run(&Plan::fencing(seed), true).hash);
    }
}

fn fallen(seed: u64, mistake: u64) -> Option<&'static str> {
    let mut plan = Plan::fencing(seed);
    plan.options.mistake = mistake;
    run(&plan, false).violations.first().map(|violation| violation.promise)
}

#[test]
fn each_planted_mistake_is_found() {
    let mut wrong = Vec::new();
    for (index, (mistake, number)) in FENCING.iter().zip(1..).enumerate() {
        let known = FOUND.get(index).copied().unwrap_or((1, "nothing"));
        let found = std::iter::once(known.0).chain(1..=SEARCHED).find_map(|seed| fallen(seed, number).map(|promise| (seed, promise)));
        println!("{number:>2} {mistake:?}: {found:?}");
        if found != Some(known) {
            wrong.push(format!("{number} {mistake:?}: found by {found:?}, not by {known:?}"));
        }
        assert_eq!(fallen(known.0, 0), None, "seed {} without a mistake", known.0);
    }
    assert_eq!(FOUND.len(), FENCING.len());
    assert!(wrong.is_empty(), "write the seeds down anew:\n{}", wrong.join("\n"));
}
