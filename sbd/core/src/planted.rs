//! What: mistakes that can be planted into the lifeline, so that the simulator proves that it would see them.
//! Owns: their names.
//! Invariants: not part of any build but those with the feature `planted`.
//! Does not: make them; each stands at the line that it spoils.
//! Called by: the lifeline machine, the simulator.

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// A daemon that died holding something is recorded as one that held nothing.
    DeadHolderIsIdle,
    /// "Held nothing" is forgotten by the next sbd of the same boot.
    HeldNothingForgotten,
}
