//! What: the rules of slots hold and their planted mistakes are found, at quick horizons.
//! Owns: nothing; the cases are in src/slots.
//! Invariants: a planted mistake that is not found fails the test.
//! Does not: run the full horizons (`cargo xtask models slots`).
//! Called by: cargo test.

use deadbolt_models::{assert_cases, slots};

#[test]
fn slot_rules_hold_and_planted_mistakes_are_found() {
    assert_cases(&slots::cases());
}
