//! What: the rules of a start after a total loss hold and their planted mistakes are found, at quick horizons.
//! Owns: nothing; the cases are in src/start.
//! Invariants: a planted mistake that is not found fails the test.
//! Does not: run the full horizons (`cargo xtask models start`).
//! Called by: cargo test.

use deadbolt_models::{assert_cases, start};

#[test]
fn start_rules_hold_and_planted_mistakes_are_found() {
    assert_cases(&start::cases());
}
