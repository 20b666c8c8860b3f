//! What: the view register's rules hold and its planted mistakes are found, at quick horizons.
//! Owns: nothing; the cases are in src/register.
//! Invariants: a planted mistake that is not found fails the test.
//! Does not: run the full horizons (`cargo xtask models register`).
//! Called by: cargo test.

use deadbolt_models::{assert_cases, register};

#[test]
fn register_rules_hold_and_planted_mistakes_are_found() {
    assert_cases(&register::cases());
}
