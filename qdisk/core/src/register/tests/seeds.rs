//! What: many seeds of each plan agree; each planted mistake is found.
//! Owns: nothing.
//! Invariants: a seed is a run.
//! Does not: build the world; the parent does.
//! Called by: `cargo test`.

use super::*;

#[test]
fn one_device_agrees() {
    for nodes in [2, 3, 5] {
        let figures = expect_agreement("one device", Plan { nodes, ..PLAIN }, 25);
        assert!(figures.crashes > 0 && figures.lost > 0 && figures.contested > 0, "{figures:?}");
    }
    let long = expect_agreement("one device, long", Plan { steps: 25_000, ..PLAIN }, 3);
    assert!(long.views > 600, "{long:?}");
}

#[test]
fn one_device_with_damage_and_failures_agrees() {
    let plan = Plan { damage: true, failures: true, ..PLAIN };
    let figures = expect_agreement("one device, damage and failures", plan, 40);
    assert!(figures.blocked > 0, "{figures:?}");
}

#[test]
fn three_devices_one_silent_now_and_then_agree() {
    let plan = Plan { devices: 3, steps: 5000, failures: true, ..PLAIN };
    expect_agreement("three devices", plan, 30);
    expect_agreement("three devices, damage", Plan { damage: true, ..plan }, 10);
    expect_agreement("two devices", Plan { devices: 2, steps: 4000, ..PLAIN }, 15);
}

#[test]
fn a_crash_at_every_step_leaves_agreement() {
    let mut views = 0;
    for crash_at in 1..=120 {
        for seed in seeds(2) {
            let plan = Plan { nodes: 2, steps: 500, crashes: false, crash_at: Some(crash_at), ..PLAIN };
            match World::new(plan, seed).run() {
                Ok(figures) => {
                    assert_eq!(figures.crashes, 1);
                    views += figures.views;
                }
                Err((violation, text)) => panic!("crash at {crash_at}, seed {seed}: {violation:?}: {text}"),
            }
        }
    }
    println!("crash at every step: {views} views");
}

#[test]
fn planted_mistakes_are_found() {
    use Violation::{ActedTooLate, BallotFell, BallotWithoutRecord, BodyNotThere, BrokenChain, Disagreement, Halted, PlaceOverwritten};
    let split = [Disagreement, Halted, BrokenChain];
    expect_found(Mistake::LaterReadAsEmpty, PLAIN, &split);
    expect_found(Mistake::OwnValueFirst, PLAIN, &split);
    expect_found(Mistake::RecordBeforeDecided, PLAIN, &split);
    expect_found(Mistake::ForgetPromise, PLAIN, &[Disagreement, Halted, BrokenChain, ActedTooLate]);
    expect_found(Mistake::BodyAfterBallot, PLAIN, &[BodyNotThere]);
    expect_found(Mistake::BallotBeforeRecord, PLAIN, &[BallotWithoutRecord]);
    expect_found(Mistake::PlaceReused, PLAIN, &[PlaceOverwritten]);
    expect_found(Mistake::ActWithoutScan, PLAIN, &[ActedTooLate]);
    expect_found(Mistake::StartTooEarly, PLAIN, &[Disagreement, Halted, BallotFell, PlaceOverwritten, BodyNotThere]);
}
