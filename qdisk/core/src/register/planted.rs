//! What: mistakes that can be planted into the register, so that models of its surroundings prove that they would see them.
//! Owns: their names.
//! Invariants: not part of any build but tests and the feature `planted`.
//! Does not: make them; each stands at the line that it spoils.
//! Called by: the register's tests, the simulator.

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// A vote unit reused for a later view is read as empty.
    LaterReadAsEmpty,
    /// The own value is proposed although another was accepted.
    OwnValueFirst,
    /// The ballot goes out before the body that it names.
    BodyAfterBallot,
    /// The record is written after the first phase.
    RecordBeforeDecided,
    /// A ballot goes out before the record of the view below it.
    BallotBeforeRecord,
    /// Places are written although own units name them.
    PlaceReused,
    /// A new life forgets what the life before it promised and accepted.
    ForgetPromise,
    /// A later ballot does not keep a node from acting.
    ActWithoutScan,
    /// A life starts while writes of the life before it may still land (a mistake of the caller).
    StartTooEarly,
}
