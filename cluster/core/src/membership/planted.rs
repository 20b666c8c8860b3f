//! What: mistakes that can be planted into the membership machine, so that the simulator proves that it would see them.
//! Owns: their names, and what each of them changes.
//! Invariants: not part of any build but those with the feature `planted`.
//! Does not: do anything unless one is planted.
//! Called by: the membership machine, the simulator.

use super::Membership;
use deadbolt_disk_format::{Evidence, Life};

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// Silence counts after a quarter of W, whatever lease the beat tells of, and D is forgotten.
    ExpiredEarly,
    /// A later view forgets who is owed.
    OwedForgotten,
    /// "Left" is recorded although something is held.
    LeftWhileHolding,
    /// A consent does not bind its giver.
    ConsentForgotten,
    /// An outsider uses W.
    OutsiderUsesW,
}

impl Membership {
    /// Plants a mistake.
    pub fn plant(&mut self, mistake: Mistake) {
        self.mistake = Some(mistake);
    }

    pub(super) fn has_mistake(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// Evidence that is none.
    pub(super) fn false_evidence(&self, life: &Life) -> Option<Evidence> {
        let is_quiet = self.observer.is_silent_for(life.slot, 0, u64::from(self.timings().expiry_ms) / 4);
        (self.has_mistake(Mistake::ExpiredEarly) && is_quiet).then_some(Evidence::Expired)
    }
}
