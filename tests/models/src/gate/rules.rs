//! What: what a search of the gate per resource may change: one planted mistake, or a rule that asks for less than the design.
//! Owns: the lists of both.
//! Invariants: each is one departure; what it does stands where the model asks for it.
//! Does not: say which property falls (the cases do).
//! Called by: `super`, `super::model`.

/// A departure from the rules of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// None: the rules of the design.
    None,
    /// A rebuild does not wait for the owed.
    RebuildBeforeGone,
    /// A rebuild waits for the owed that were removed with the lost home only.
    RebuildAwaitsRemovedWithHome,
    /// A rebuild waits for the owed that were removed with the lost master only.
    RebuildAwaitsRemovedWithMaster,
    /// A rebuild does without the answers that have not come.
    RebuildWithoutAnswers,
    /// A rebuild counts what a member answered in an older view.
    OldAnswerTaken,
    OldGrantTaken,
    OldUnlockTaken,
    OldAppointmentTaken,
    OldHandOverTaken,
    /// A home by join takes its share as empty.
    JoinOpensEmpty,
    /// The hash runs over members alone, and who comes next in it takes the share of a removed home for its own.
    HeirOpensEmpty,
    /// A home by join takes over what it reads at a former home that has not learned the view.
    TakenFromOneEnd,
    /// A former home keeps what it handed over, and goes on with it when it is home again.
    GiverKeeps,
    /// A home hands its share over without authority.
    HandsOverNothing,
    /// The word of a living master gives a home authority.
    MasterGivesAuthority,
    /// A master is known by its slot, and a life is let in as soon as its earlier life is released.
    MasterBySlotLetIn,
    /// What a holder answered overrules what it was granted since.
    AnswerOverrulesGrant,
    /// A holder that lost a grant with its view is not heard.
    HoldersUnheard,
    /// A master that lost its appointment, or gave its resource back, with the view is not heard.
    MastersUnheard,
    /// An appointment with a rebuilt queue was lost; the resource is taken for free.
    LostAppointmentIsFree,
    /// The locks of owed nodes are dropped.
    GhostsForgotten,
    /// The locks of owed nodes are kept in the mode before the last conversion.
    GhostsWeaker,
    /// A master that gave its resource back goes on in the next view if it heard of no other master.
    GivenBackKept,
    /// Mastery that comes back does not bring the token counter along.
    CounterRestarts,
    /// A token is the counter alone.
    CounterAlone,
}

/// A rule that asks for less than the design.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The design's.
    Design,
    /// The hash runs over members alone; authority moves as in the design.
    HashOverMembers,
    /// A master goes on while it is a member, whoever is home.
    MasterSuffices,
    /// A life is let in as soon as its earlier life is released.
    LetInBeforeRebuild,
    /// A master is known by its slot, not by its life.
    MasterBySlot,
    /// All of these together.
    Least,
}
