//! What: the rules of removal and recovery hold and their planted mistakes are found, at quick horizons.
//! Owns: nothing; the cases are in src/removal.
//! Invariants: a planted mistake that is not found fails the test.
//! Does not: run the full horizons (`cargo xtask models removal`).
//! Called by: cargo test.

use deadbolt_models::{assert_cases, removal};

#[test]
fn removal_rules_hold_and_planted_mistakes_are_found() {
    assert_cases(&removal::cases());
}
