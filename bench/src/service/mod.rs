//! What: the lock service driven directly, without daemon, socket or disk: what its tables and rules take by themselves.
//! Owns: the names of the rows.
//! Invariants: one thread; every answer is looked at.
//! Does not: measure processes or networks.
//! Called by: the benchmark of the lock manager.

pub(crate) mod memory;
mod pairs;
pub(crate) mod rebuild;
mod solo;

use crate::{locks::Scale, sheet::Case};

/// All of it.
pub(crate) fn cases(scale: &Scale) -> Vec<Case> {
    let mut cases = pairs::cases(scale);
    cases.extend(memory::cases(scale));
    cases.extend(rebuild::cases(scale));
    cases
}
