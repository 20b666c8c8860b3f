//! What: the list of planted mistakes: one line each in a production machine, or in the imitated shell around it.
//! Owns: their numbers and names.
//! Invariants: only in builds with the feature `planted`; a number names the same mistake for ever.
//! Does not: contain the mistakes that stand in the machines.
//! Called by: the world; tests that demand that each is found.

use deadbolt_cluster::node::PlantedMistake;
use deadbolt_cluster_core::membership::planted::Mistake as Membership;
use deadbolt_dlm_core::service::Mistake as Locks;
use deadbolt_qdisk_core::register::planted::Mistake as Register;
use deadbolt_sbd_core::planted::{FenceMistake as Fencer, Mistake as Lifeline};

/// Where a mistake stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    /// In sbd's machine.
    Lifeline(Lifeline),
    /// In one of the daemon's machines.
    Node(PlantedMistake),
    /// In a sender's machine.
    Fencer(Fencer),
    /// In a shell.
    Shell(Shell),
}

/// Mistakes of a shell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shell {
    /// The feeder feeds until the lease's end, without the margin of 2 T.
    FeedToTheEnd,
    /// The supervisor starts a daemon again before "held nothing" of the one before is on the disk, and clears the word.
    RestartWithoutRecord,
    /// A watcher says that its feeder has retired when it has told it to.
    AnswerBeforeFeeder,
}

const fn membership(mistake: Membership) -> Planted {
    Planted::Node(PlantedMistake::Membership(mistake))
}

const fn register(mistake: Register) -> Planted {
    Planted::Node(PlantedMistake::Register(mistake))
}

const fn locks(mistake: Locks) -> Planted {
    Planted::Node(PlantedMistake::Locks(mistake))
}

/// The mistakes by number, from 1. New ones go to the end.
pub const MISTAKES: &[Planted] = &[
    Planted::Lifeline(Lifeline::DeadHolderIsIdle),
    Planted::Lifeline(Lifeline::HeldNothingForgotten),
    membership(Membership::ExpiredEarly),
    membership(Membership::OwedForgotten),
    membership(Membership::LeftWhileHolding),
    register(Register::OwnValueFirst),
    register(Register::RecordBeforeDecided),
    register(Register::LaterReadAsEmpty),
    locks(Locks::GrantBeforeGone),
    locks(Locks::GrantWithoutRebuild),
    locks(Locks::TwoMasters),
    locks(Locks::KeepDeadLvb),
    locks(Locks::TokenReset),
    locks(Locks::ForgetWaiter),
    locks(Locks::LostIsFree),
    Planted::Shell(Shell::FeedToTheEnd),
    Planted::Shell(Shell::RestartWithoutRecord),
    register(Register::BodyAfterBallot),
    register(Register::BallotBeforeRecord),
    register(Register::PlaceReused),
    membership(Membership::ConsentForgotten),
    membership(Membership::OutsiderUsesW),
];

/// The mistakes in the world of drop-in fencing by number, from 1. New ones go to the end.
pub const FENCING: &[Planted] = &[
    Planted::Shell(Shell::AnswerBeforeFeeder),
    Planted::Fencer(Fencer::AnswerAtOnce),
    Planted::Fencer(Fencer::SilenceWithoutLease),
    Planted::Fencer(Fencer::OneDevice),
    Planted::Fencer(Fencer::ClusterSilence),
    Planted::Fencer(Fencer::UnreadableIsMissing),
    Planted::Fencer(Fencer::NoDelay),
    Planted::Lifeline(Lifeline::DisarmedBeforeWord),
    Planted::Lifeline(Lifeline::GrantedTimeNotPublished),
    Planted::Shell(Shell::FeedToTheEnd),
    Planted::Fencer(Fencer::SeenForgotten),
];

/// A mistake of that world by its number; none for 0.
#[must_use]
pub fn mistake_of(number: u64) -> Option<Planted> {
    FENCING.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
}

impl crate::world::World {
    /// The mistake of this run.
    pub(crate) fn mistake(&self) -> Option<Planted> {
        let index = usize::try_from(self.options.mistake).ok()?.checked_sub(1)?;
        MISTAKES.get(index).copied()
    }

    pub(crate) fn has_shell_mistake(&self, mistake: Shell) -> bool {
        self.mistake() == Some(Planted::Shell(mistake))
    }
}
