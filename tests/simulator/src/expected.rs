//! What: promises of the design that nothing keeps yet, each with a scenario that must break it today.
//! Owns: the list.
//! Invariants: a scenario that holds is no longer expected to fail: the list only shrinks.
//! Does not: excuse anything else.
//! Called by: the world, for what random runs find; the test that plays the scenarios.

use crate::check::Violation;

/// Promises that random runs break in a way that is known. S11: the freeze is not built.
const KNOWN: &[&str] = &["S11"];

/// Is this known to happen?
#[must_use]
pub fn is_known(violation: &Violation) -> bool {
    KNOWN.contains(&violation.promise)
}
