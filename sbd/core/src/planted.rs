//! What: mistakes that can be planted into the lifeline and the fencer, so that the simulator proves that it would see them.
//! Owns: their names.
//! Invariants: not part of any build but those with the feature `planted`.
//! Does not: make them; each stands at the line that it spoils.
//! Called by: the two machines, the simulator.

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// A daemon that died holding something is recorded as one that held nothing.
    DeadHolderIsIdle,
    /// "Held nothing" is forgotten by the next sbd of the same boot.
    HeldNothingForgotten,
    /// A watcher under the rule *disk* disarms before its last beat stands.
    DisarmedBeforeWord,
    /// A watcher lives by the time that its watchdog grants, and publishes the lease that it asked for.
    GrantedTimeNotPublished,
}

/// A mistake of a sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FenceMistake {
    /// An answer counts at once, without T + D.
    AnswerAtOnce,
    /// Silence counts after D, without the lease that the record publishes.
    SilenceWithoutLease,
    /// One device is enough for everything.
    OneDevice,
    /// Silence counts under the rule *cluster*, too.
    ClusterSilence,
    /// A record that cannot be read is one that is missing.
    UnreadableIsMissing,
    /// D is forgotten.
    NoDelay,
    /// What this machine's watcher has seen is not asked: silence counts from the first look on.
    SeenForgotten,
}
