//! What: the list of planted mistakes: one line each in a production machine, or in the imitated shell around it.
//! Owns: their numbers and names.
//! Invariants: only in builds with the feature `planted`; a number names the same mistake for ever.
//! Does not: contain the mistakes that stand in the machines.
//! Called by: the world; tests that demand that each is found.

use deadbolt_cluster::node::PlantedMistake;
use deadbolt_cluster_core::membership::planted::Mistake as Membership;
use deadbolt_dlm_core::service::Mistake as Locks;
use deadbolt_qdisk_core::register::planted::Mistake as Register;
use deadbolt_sbd_core::planted::Mistake as Lifeline;

/// Where a mistake stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    /// In sbd's machine.
    Lifeline(Lifeline),
    /// In one of the daemon's machines.
    Node(PlantedMistake),
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
];

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
