//! What: the rules of vouch and freeze hold and their planted mistakes are found, at quick horizons.
//! Owns: nothing; the cases are in src/extension.
//! Invariants: a planted mistake that is not found fails the test, as a broken rule does.
//! Does not: run the full horizons (`cargo xtask models extension`).
//! Called by: cargo test.

use deadbolt_models::{assert_cases, extension};

#[test]
fn vouch_rules_hold() {
    assert_cases(&extension::vouch_rules());
}

#[test]
fn vouch_mistakes_are_found() {
    assert_cases(&extension::vouch_mistakes());
}

#[test]
fn freeze_rules_hold() {
    assert_cases(&extension::freeze_rules());
}

#[test]
fn freeze_mistakes_are_found() {
    assert_cases(&extension::freeze_mistakes());
}

#[test]
fn vouch_and_freeze_hold_together() {
    assert_cases(&extension::both());
}
