//! What: removal, *left*, the owed and recovery over several views and restarts, as a model.
//! Owns: the list of removal cases with their verdicts.
//! Invariants: each planted mistake names the rule that it breaks and the property that must fall.
//! Does not: hold any protocol code of the daemons.
//! Called by: tests/removal.rs, `crate::all_cases`.

pub(crate) mod model;

use crate::{Case, search};
use model::{Mistake, Removal};

/// Two incompatible grants.
pub(crate) const S2: &str = "S2: no lock is granted while an older holder may still act";
/// Recovery too early.
pub(crate) const S3: &str = "S3: recovery only after every owed is gone";
/// Rule 0 of what is proposed.
pub(crate) const NO_STEAL: &str = "no view is decided from outside while a member may still act";
/// *Left* is not lost.
const PROVABLE: &str = "who left stays provable until a view has released it";

/// Two nodes are enough for most mistakes.
fn two(mistake: Mistake) -> Removal {
    Removal { nodes: 2, views: 4, mistake, ..Removal::default() }
}

/// One is removed after the other.
fn three(mistake: Mistake) -> Removal {
    Removal { mistake, ..Removal::default() }
}

fn planted(name: &'static str, property: &'static str, model: Removal) -> Case {
    let model = Removal { only: Some(property), ..model };
    Case::found(name, property, move |scale| search(model.clone(), scale))
}

/// The cases of removal and recovery.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::holds("removal: two nodes", |scale| {
            let model = Removal { is_folded: true, ..two(Mistake::None) };
            let far = Removal { views: 5, crashes: 2, boots: 3, incarnations: 3, ..model.clone() };
            search(scale.pick(model, far), scale)
        }),
        // The same without folding: what folding hides would show here.
        Case::holds("removal: two nodes, names kept apart", |scale| search(two(Mistake::None), scale)),
        Case::holds("removal: three nodes", |scale| {
            let is_folded = true;
            search(Removal { is_folded, views: scale.pick(3, 4), crashes: scale.pick(1, 2), ..three(Mistake::None) }, scale)
        }),
        planted("removal: recovery before gone", S2, two(Mistake::RecoveryBeforeGone)),
        planted("removal: recovery before gone, by S3", S3, two(Mistake::RecoveryBeforeGone)),
        planted("removal: recovery waits for the newest removal only", S2, three(Mistake::RecoveryAwaitsNewestOnly)),
        planted("removal: silence taken as gone", S2, two(Mistake::SilenceIsGone)),
        planted("removal: a new incarnation on the same boot taken as gone", S2, two(Mistake::IncarnationIsGone)),
        planted("removal: reset counts before D is over", S2, two(Mistake::NoStorageDelay)),
        planted("removal: owed forgotten by a later view", S2, three(Mistake::OwedForgottenByLaterView)),
        planted("removal: owed forgotten at restart", S2, two(Mistake::OwedForgottenAtRestart)),
        planted("removal: let in while an earlier life is owed", S2, two(Mistake::AdmittedWhileOwed)),
        planted("removal: an outsider proposes", NO_STEAL, two(Mistake::OutsiderProposes)),
        planted("removal: left recorded while holding", S2, two(Mistake::LeftWhileHolding)),
        planted("removal: left names the node only", S2, two(Mistake::LeftNamesNodeOnly)),
        planted("removal: left survived by its own incarnation", S2, two(Mistake::LeftSurvived)),
        planted("removal: locks taken while left is in the air", S2, two(Mistake::LeftInTheAirGrants)),
        Case::holds("removal: left recorded before the last ballot is complete", |scale| {
            search(Removal { is_folded: true, ..two(Mistake::LeftBeforeLastBallot) }, scale)
        }),
        planted("removal: left overwritten by the next incarnation", PROVABLE, two(Mistake::LeftOverwritten)),
        Case::holds("removal: a removed holder content with left", |scale| {
            let nodes = scale.pick(2, 3);
            search(Removal { is_folded: true, nodes, ..two(Mistake::SurvivorContentWithLeft) }, scale)
        }),
    ]
}
