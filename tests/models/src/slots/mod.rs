//! What: slots: who sits in one, when it is freed, who gets it next, as a model.
//! Owns: the list of its cases with their verdicts.
//! Invariants: each planted mistake names the rule that it breaks and the property that must fall.
//! Does not: hold any protocol code of the daemons.
//! Called by: tests/slots.rs, `crate::all_cases`.

mod model;

use crate::register::S1;
use crate::{Case, search};
use model::{Mistake, Slots};

/// Two machines in one slot.
const S7: &str = "S7: one living machine in a slot";

fn planted(name: &'static str, property: &'static str, model: Slots) -> Case {
    let model = Slots { only: Some(property), ..model };
    Case::found(name, property, move |scale| search(model.clone(), scale))
}

/// The cases of slots.
#[must_use]
pub fn cases() -> Vec<Case> {
    let owned = Slots::default;
    let free = move || Slots { is_owned: false, ..owned() };
    let by = |mistake: Mistake, model: Slots| Slots { mistake, ..model };
    vec![
        Case::holds("slots: owned, freed, given on", move |scale| {
            search(Slots { views: scale.pick(3, 4), are_reads_apart: scale.pick(false, true), ..owned() }, scale)
        }),
        Case::holds("slots: two joiners, one free slot", move |scale| {
            search(Slots { views: scale.pick(2, 3), are_reads_apart: scale.pick(false, true), ..free() }, scale)
        }),
        planted("slots: a freed slot is wiped", S1, by(Mistake::Wiped, owned())),
        Case::holds("slots: wiped, nobody decides its own leaving", move |scale| {
            search(Slots { may_release_itself: false, views: scale.pick(3, 4), ..by(Mistake::Wiped, owned()) }, scale)
        }),
        planted("slots: only the configured slots are scanned", S1, by(Mistake::ScansConfigured, free())),
        planted("slots: the slot of an owed machine is given away", S7, by(Mistake::OwedGiven, owned())),
        planted("slots: a value made on an old view", S7, by(Mistake::OldValueAgain, free())),
        planted("slots: a new node sits down before its view is decided", S7, by(Mistake::SitsUndecided, free())),
    ]
}
