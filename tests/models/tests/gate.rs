//! What: the rules of the gate, of recovery and of value blocks hold and their planted mistakes are found, at quick horizons.
//! Owns: nothing; the cases are in src/gate.
//! Invariants: a planted mistake that is not found fails the test.
//! Does not: run the full horizons (`cargo xtask models gate`).
//! Called by: cargo test.

use deadbolt_models::{assert_cases, gate};

#[test]
fn gate_rules_hold() {
    assert_cases(&gate::gate_rules());
}

#[test]
fn gate_mistakes_are_found() {
    assert_cases(&gate::gate_mistakes());
}

#[test]
fn recovery_rules_hold() {
    assert_cases(&gate::recovery_rules());
}

#[test]
fn recovery_mistakes_are_found() {
    assert_cases(&gate::recovery_mistakes());
}

#[test]
fn value_block_rules_hold() {
    assert_cases(&gate::lvb_rules());
}

#[test]
fn value_block_mistakes_are_found() {
    assert_cases(&gate::lvb_mistakes());
}
