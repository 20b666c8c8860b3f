//! What: the quick horizons of the lifeline models.
//! Owns: nothing; the cases belong to `deadbolt_models::lifeline`.
//! Invariants: a planted mistake that is not found fails the test, as a broken rule does.
//! Does not: run the full horizons; see `cargo xtask models`.
//! Called by: `cargo test`.

use deadbolt_models::{assert_cases, lifeline};

#[test]
fn lease_rules_hold() {
    assert_cases(&lifeline::lease_rules());
}

#[test]
fn lease_mistakes_are_found() {
    assert_cases(&lifeline::lease_mistakes());
}

#[test]
fn pill_rules_hold() {
    assert_cases(&lifeline::pill_rules());
}

#[test]
fn pill_mistakes_are_found() {
    assert_cases(&lifeline::pill_mistakes());
}

#[test]
fn hung_daemon_rules_hold() {
    assert_cases(&lifeline::hung_rules());
}

#[test]
fn hung_daemon_mistakes_are_found() {
    assert_cases(&lifeline::hung_mistakes());
}

#[test]
fn numbered_byte_rules_hold() {
    assert_cases(&lifeline::numbered_rules());
}

#[test]
fn numbered_byte_mistakes_are_found() {
    assert_cases(&lifeline::numbered_mistakes());
}
