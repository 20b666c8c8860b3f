//! What: the rules of three devices hold and their planted mistakes are found, at quick horizons.
//! Owns: nothing; the cases are in src/devices.
//! Invariants: a planted mistake that is not found fails the test.
//! Does not: run the full horizons (`cargo xtask models devices`).
//! Called by: cargo test.

use deadbolt_models::{assert_cases, devices};

#[test]
fn device_rules_hold_and_planted_mistakes_are_found() {
    assert_cases(&devices::cases());
}
