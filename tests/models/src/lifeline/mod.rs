//! What: the models of a node's life: lease, watchdog and observer; pill and acknowledgement; a hung daemon beside a living sbd; its
//!   numbered bytes.
//! Owns: the list of their cases.
//! Invariants: every case is named once.
//! Does not: model the view register or recovery; see the sibling modules.
//! Called by: tests/lifeline.rs and the `models` program.

use crate::Case;

mod hung;
mod lease;
mod numbered;
mod pill;

/// The rules of lease, watchdog and observer.
pub fn lease_rules() -> Vec<Case> {
    lease::rules()
}

/// The mistakes planted in lease, watchdog and observer.
pub fn lease_mistakes() -> Vec<Case> {
    lease::mistakes()
}

/// The rules of pill and acknowledgement.
pub fn pill_rules() -> Vec<Case> {
    pill::rules()
}

/// The mistakes planted in pill and acknowledgement.
pub fn pill_mistakes() -> Vec<Case> {
    pill::mistakes()
}

/// The rules for a daemon that hangs or dies beside a living sbd.
pub fn hung_rules() -> Vec<Case> {
    hung::rules()
}

/// The mistakes planted there.
pub fn hung_mistakes() -> Vec<Case> {
    hung::mistakes()
}

/// The rules of the daemon's numbered bytes.
pub fn numbered_rules() -> Vec<Case> {
    numbered::rules()
}

/// The mistakes planted there.
pub fn numbered_mistakes() -> Vec<Case> {
    numbered::mistakes()
}

/// Every case of the lifeline.
pub fn cases() -> Vec<Case> {
    let lived = [lease_rules(), lease_mistakes(), pill_rules(), pill_mistakes()];
    let said = [hung_rules(), hung_mistakes(), numbered_rules(), numbered_mistakes()];
    lived.into_iter().chain(said).flatten().collect()
}
