//! What: the models of a node's life: lease, watchdog and observer; pill and acknowledgement; a hung daemon beside a living sbd.
//! Owns: the list of their cases.
//! Invariants: every case is named once.
//! Does not: model the view register or recovery; see the sibling modules.
//! Called by: tests/lifeline.rs and the `models` program.

use crate::Case;

/// Every case of the lifeline.
pub fn cases() -> Vec<Case> {
    Vec::new()
}
