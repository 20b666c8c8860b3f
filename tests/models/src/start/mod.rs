//! What: start after a total loss: every machine loses power in any state; whoever the disk entitles forms the next view.
//! Owns: the list of its cases, on the models of three devices (what a starter finds) and of removal (who may act on it).
//! Invariants: each planted mistake names the rule that it breaks and the property that must fall.
//! Does not: hold a model of its own.
//! Called by: tests/start.rs, `crate::all_cases`.

use crate::devices::register::{Mistake as Found, Register};
use crate::register::{LEARNS, S1};
use crate::removal::model::{Mistake, Removal};
use crate::removal::{NO_STEAL, S2, S3};
use crate::{Case, search};

/// The first node dies at any moment of two views; the others start from what stands on three devices.
fn found_on_disk() -> Register {
    Register { is_starting: true, views: [2; 3], ..Register::default() }
}

/// Nodes that lose power together, and members that may live on by a freeze.
fn lost(nodes: usize, mistake: Mistake) -> Removal {
    Removal { nodes, views: 4, crashes: 0, losses: 1, may_freeze: true, incarnations: 1, mistake, ..Removal::default() }
}

fn misread(name: &'static str, property: &'static str, mistake: Found) -> Case {
    let model = Register { mistake, only: Some(property), ..found_on_disk() };
    Case::found(name, property, move |scale| search(model.clone(), scale))
}

fn planted(name: &'static str, property: &'static str, model: Removal) -> Case {
    let model = Removal { only: Some(property), ..model };
    Case::found(name, property, move |scale| search(model.clone(), scale))
}

/// The cases of a start after a total loss.
#[must_use]
pub fn cases() -> Vec<Case> {
    let removed_late = |mistake| Removal { may_freeze: false, ..lost(2, mistake) };
    vec![
        Case::holds("start: one starter finds what a dead node wrote", |scale| {
            search(Register { are_reads_apart: scale.pick(false, true), ..found_on_disk() }, scale)
        }),
        Case::holds("start: two starters find what a dead node wrote", |scale| {
            let views = scale.pick([1; 3], [2, 2, 1]);
            search(Register { nodes: 3, views, ..found_on_disk() }, scale)
        }),
        misread("start: a half-written view is passed over", S1, Found::AcceptedIgnored),
        misread("start: records read on one device of three", LEARNS, Found::LearnsFromOne),
        // Whoever reads its votes on a majority is told by them.
        Case::holds("start: records read on one device of three, S1 alone", |scale| {
            search(Register { mistake: Found::LearnsFromOne, only: Some(S1), ..found_on_disk() }, scale)
        }),
        misread("start: everything read on one device of three", S1, Found::OneDevice),
        Case::holds("start: two nodes, power lost", |scale| {
            let far = Removal { views: 5, crashes: 1, losses: 2, boots: 3, ..lost(2, Mistake::None) };
            search(Removal { is_folded: true, ..scale.pick(lost(2, Mistake::None), far) }, scale)
        }),
        Case::holds("start: three nodes, power lost", |scale| {
            let (views, crashes) = (scale.pick(3, 4), scale.pick(0, 1));
            search(Removal { is_folded: true, views, crashes, ..lost(3, Mistake::None) }, scale)
        }),
        planted("start: owed forgotten", S2, removed_late(Mistake::OwedForgottenAtRestart)),
        planted("start: owed forgotten, by S3", S3, removed_late(Mistake::OwedForgottenAtRestart)),
        planted("start: silence of W believed while a freeze runs", NO_STEAL, lost(2, Mistake::FreezeForgotten)),
        planted("start: silence of W believed while a freeze runs, by S2", S2, lost(2, Mistake::FreezeForgotten)),
        planted("start: another boot counts before D is over", S2, removed_late(Mistake::NoStorageDelay)),
        planted("start: proposed before every member is proved gone", NO_STEAL, lost(2, Mistake::OutsiderProposes)),
        Case::holds("start: a removed holder content with left", |scale| {
            let nodes = scale.pick(2, 3);
            search(Removal { is_folded: true, ..lost(nodes, Mistake::SurvivorContentWithLeft) }, scale)
        }),
    ]
}
