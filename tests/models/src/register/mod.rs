//! What: the view register (Disk Paxos, one instance per view number) and giving a view number up, as models.
//! Owns: the list of register cases with their verdicts.
//! Invariants: every rule named in the design's table of searches has a case that holds and mistakes that are found.
//! Does not: hold any protocol code of the daemons.
//! Called by: tests/register.rs, `crate::all_cases`.

mod given_up;
mod model;

use crate::{Case, search};
use given_up::{GivenUp, When};
use model::{Mistake, Register, Units};

/// Two decided values for one view number.
pub(crate) const S1: &str = "S1: one decided value per view number";
/// A view number on the disk that falls.
const S4: &str = "S4: a record never goes back to an earlier view";
/// Who must learn finds what to learn.
pub(crate) const LEARNS: &str = "who reads a later ballot finds the record of the view before it";
/// A number that somebody acts in and the next one does not name.
const DISOWNED: &str = "who acts in a view is named by the next one, and all who act agree";
/// A decision of a living node that the next number does not name.
const UNDONE: &str = "what a living node decided is named by the next view";

fn given_up(name: &'static str, property: &'static str, model: GivenUp) -> Case {
    let model = GivenUp { only: Some(property), ..model };
    Case::found(name, property, move |scale| search(model.clone(), scale))
}

fn mistake(name: &'static str, property: &'static str, model: Register) -> Case {
    Case::found(name, property, move |scale| search(model.clone(), scale))
}

/// The cases of the register.
#[must_use]
pub fn cases() -> Vec<Case> {
    let base = Register::default;
    let two = || Register { views: 2, ..base() };
    vec![
        Case::holds("register: two proposers, views in sequence", move |scale| {
            let views = scale.pick(2, 3);
            search(Register { views, rounds: scale.pick(2, 3), ..base() }, scale)
        }),
        Case::holds("register: crash, the old life's writes finished first", move |scale| {
            let crashes = scale.pick(1, 2);
            search(Register { views: 2, crashes, are_reads_split: false, ..base() }, scale)
        }),
        Case::holds("register: two crashes, units read apart", move |scale| {
            search(Register { crashes: 2, rounds: scale.pick(2, 3), ..base() }, scale)
        }),
        Case::holds("register: three proposers", move |scale| {
            let nodes = 3;
            search(Register { nodes, are_reads_split: scale.pick(false, true), ..base() }, scale)
        }),
        Case::holds("register: three proposers, one crash", move |scale| {
            let rounds = scale.pick(1, 2);
            search(Register { nodes: 3, rounds, crashes: 1, crashing_nodes: 1, are_reads_split: false, ..base() }, scale)
        }),
        mistake("register: a later view's ballot read as empty", S1, Register { mistake: Mistake::LaterViewReadAsEmpty, ..two() }),
        mistake("register: accepted value ignored", S1, Register { mistake: Mistake::AcceptedValueIgnored, ..base() }),
        mistake("register: no scan after the accepting write", S1, Register { mistake: Mistake::NoScanAfterAccept, ..base() }),
        mistake("register: scan beside the write", S1, Register { mistake: Mistake::ScanBeforeLanding, ..base() }),
        mistake("register: ballot before the own record", LEARNS, Register { mistake: Mistake::BallotBeforeRecord, ..two() }),
        mistake("register: crash, one unit", S1, Register { units: Units::One, crashes: 1, ..base() }),
        mistake("register: crash, two in turn", S1, Register { units: Units::InTurn, crashes: 1, ..base() }),
        mistake("register: crash, two in turn, own unit re-checked", S1, Register { units: Units::InTurnRechecked, crashes: 1, ..base() }),
        mistake(
            "register: a ghost counted as rejected while it has erased a ballot",
            S1,
            Register { units: Units::InTurnGhostRejected, crashes: 1, ..base() },
        ),
        Case::holds("register: one crash, both units written", move |scale| {
            search(Register { units: Units::Both, crashes: 1, ..base() }, scale)
        }),
        mistake("register: two crashes, both units written", S1, Register { units: Units::Both, crashes: 2, ..base() }),
        Case::holds("given up: ballot first, then votes, then records", |scale| {
            search(GivenUp { rounds: scale.pick(1, 2), ..GivenUp::default() }, scale)
        }),
        Case::holds("given up: by either survivor", |scale| search(GivenUp { is_every_survivor_giver: true, ..GivenUp::default() }, scale)),
        given_up(
            "given up: votes and records before the ballot",
            DISOWNED,
            GivenUp { votes: When::BeforeBallot, records: When::BeforeBallot, ..GivenUp::default() },
        ),
        given_up("given up: records before the ballot", DISOWNED, GivenUp { records: When::BeforeBallot, ..GivenUp::default() }),
        given_up("given up: acting without the later scan", DISOWNED, GivenUp { is_later_scan_done: false, ..GivenUp::default() }),
        given_up("given up: votes before the ballot", UNDONE, GivenUp { votes: When::BeforeBallot, ..GivenUp::default() }),
        given_up("given up: votes and records in any order", UNDONE, GivenUp { are_records_last: false, ..GivenUp::default() }),
        given_up("given up: accepted value not taken", UNDONE, GivenUp { is_accepted_taken: false, ..GivenUp::default() }),
    ]
}
