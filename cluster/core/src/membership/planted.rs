//! What: mistakes that can be planted into the membership machine, so that the simulator proves that it would see them.
//! Owns: their names, and what each of them changes.
//! Invariants: not part of any build but those with the feature `planted`.
//! Does not: do anything unless one is planted.
//! Called by: the membership machine, the simulator.

use super::Membership;
use deadbolt_disk_format::{Evidence, Life, Timings};

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// Silence counts after a quarter of W, and D is forgotten.
    ExpiredEarly,
    /// Another boot counts at once, without D.
    RebootedWithoutDelay,
    /// A new incarnation on the same boot is taken for the end of the one before.
    IncarnationIsGone,
    /// A later view forgets who is owed.
    OwedForgotten,
    /// A node outside the view proposes while members of it may live.
    OutsiderProposes,
    /// "Left" is recorded although something is held.
    LeftWhileHolding,
    /// "Holds" counts as said before it stands on the disk.
    HoldsSaidEarly,
}

impl Membership {
    /// Plants a mistake.
    pub fn plant(&mut self, mistake: Mistake) {
        self.mistake = Some(mistake);
    }

    pub(super) fn has_mistake(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// The times by which silence and boots are judged.
    pub(super) fn spoiled(&self, mut timings: Timings) -> Timings {
        if self.has_mistake(Mistake::ExpiredEarly) {
            timings.expiry_ms /= 4;
            timings.storage_delay_ms = 0;
        }
        if self.has_mistake(Mistake::RebootedWithoutDelay) {
            timings.storage_delay_ms = 0;
        }
        timings
    }

    /// Evidence that is none.
    pub(super) fn false_evidence(&self, life: &Life) -> Option<Evidence> {
        let newer = self.fresh_life(life.slot).is_some_and(|fresh| fresh.incarnation != life.incarnation);
        (self.has_mistake(Mistake::IncarnationIsGone) && newer).then_some(Evidence::IdleRestart)
    }
}
