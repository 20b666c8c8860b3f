//! What: the gate of the lock manager, its recovery, its value blocks and tokens, as models.
//! Owns: the list of gate cases with their verdicts.
//! Invariants: each planted mistake names the rule that it breaks and the property that must fall; a rule that asks for less than the
//!   design is a case of its own.
//! Does not: hold any protocol code of the daemons.
//! Called by: tests/gate.rs, `crate::all_cases`.

mod lvb;
mod model;
mod recovery;
mod rules;
mod world;

use crate::{Case, search, search_dead_ends};
use lvb::Lvb;
use model::Gate;
use recovery::Recovery;
use rules::Rule;
use world::Bounds;

/// Two incompatible grants.
const S2: &str = "S2: no lock is held while an older holder of another mode may still act";
/// Recovery too early.
const S3: &str = "S3: nothing is recovered before every removed life is gone";
/// Tokens.
const S4: &str = "S4: tokens of one resource only grow";
/// Value blocks.
const S12: &str = "S12: a value block that is handed out as valid is the last one written";
/// The gate opens.
const L1: &str = "L1: the gate opens at last";
/// One master.
const ONE_MASTER: &str = "one node is master of a resource in a view";
/// What the gate per resource is for.
const NEVER_STOPS: &str = "a resource whose master is a member never stops";

/// Three members, of which two are removed, one after the other.
const THREE: Bounds = Bounds { nodes: 3, outsiders: 0, removals: 2, joins: 0, renewals: 0, crashes: 0, lives: 1, may_settle: false };
/// Two members, of which one is removed, and a node that asks to be let in and will be home.
const JOIN: Bounds = Bounds { outsiders: 1, removals: 1, joins: 1, ..THREE };
/// Removed nodes come back.
const LIVES: Bounds = Bounds { joins: 1, lives: 2, ..THREE };
/// A removed life outlives all its judges and decides a view of itself.
const RETURN: Bounds = Bounds { nodes: 2, removals: 1, crashes: 1, ..LIVES };

/// For quick searches and for full ones.
type Horizon = (Bounds, Bounds);

const FAR_THREE: Horizon = (THREE, Bounds { nodes: 4, renewals: 1, ..THREE });
const FAR_JOIN: Horizon = (JOIN, Bounds { nodes: 4, removals: 2, ..JOIN });
const FAR_LIVES: Horizon = (LIVES, Bounds { joins: 2, crashes: 1, lives: 3, ..LIVES });

const GATE: Gate = Gate { bounds: THREE, rule: Rule::Design, mistake: rules::Mistake::None, has_shared: false, tokens: 0, only: None };

fn gate(name: &'static str, horizon: Horizon, model: Gate) -> Case {
    Case::holds(name, move |scale| search(Gate { bounds: scale.pick(horizon.0, horizon.1), ..model }, scale))
}

fn gate_opens(name: &'static str, horizon: Horizon, rule: Rule) -> Case {
    Case::holds(name, move |scale| {
        let bounds = Bounds { may_settle: true, ..scale.pick(horizon.0, horizon.1) };
        let model = Gate { bounds, rule, ..GATE };
        search_dead_ends(&model, L1, scale, |state| model.is_served(state))
    })
}

fn gate_stuck(name: &'static str, mistake: rules::Mistake) -> Case {
    let model = Gate { bounds: Bounds { may_settle: true, ..THREE }, mistake, ..GATE };
    Case::found(name, L1, move |scale| search_dead_ends(&model, L1, scale, |state| model.is_served(state)))
}

/// The rules of the gate per resource, and those that ask for less and are enough.
#[must_use]
pub fn gate_rules() -> Vec<Case> {
    let shared = Gate { has_shared: true, ..GATE };
    let tokens = Gate { tokens: 3, ..GATE };
    let less = |rule| Gate { rule, ..GATE };
    vec![
        gate("gate: two removed, one after the other", FAR_THREE, GATE),
        gate("gate: shared locks, two removed", (THREE, Bounds { renewals: 1, ..THREE }), shared),
        gate("gate: a home by join", FAR_JOIN, GATE),
        gate("gate: shared locks, a home by join", (JOIN, Bounds { removals: 2, ..JOIN }), shared),
        gate("gate: removed nodes come back", FAR_LIVES, GATE),
        gate("gate: a removed life outlives its judges", (RETURN, RETURN), GATE),
        gate("gate: tokens, two removed", (THREE, Bounds { nodes: 4, ..THREE }), tokens),
        gate("gate: tokens, a home by join", (JOIN, Bounds { nodes: 4, ..JOIN }), tokens),
        gate_opens("gate: opens, two removed", (THREE, Bounds { nodes: 4, ..THREE }), Rule::Design),
        gate_opens("gate: opens, a home by join", (JOIN, Bounds { nodes: 4, ..JOIN }), Rule::Design),
        gate_opens("gate: opens, removed nodes come back", (Bounds { removals: 1, ..LIVES }, LIVES), Rule::Design),
        gate("gate: less: the hash over members alone", (JOIN, Bounds { nodes: 4, ..JOIN }), less(Rule::HashOverMembers)),
        gate("gate: less: a master goes on without its home", (JOIN, Bounds { nodes: 4, ..JOIN }), less(Rule::MasterSuffices)),
        gate("gate: less: let in before the share is rebuilt", FAR_LIVES, less(Rule::LetInBeforeRebuild)),
        gate("gate: less: masters known by slot", FAR_LIVES, less(Rule::MasterBySlot)),
        gate("gate: less: all three, a home by join", FAR_JOIN, less(Rule::Least)),
        gate("gate: less: all three, removed nodes come back", FAR_LIVES, less(Rule::Least)),
        gate_opens("gate: less: all three, opens", (JOIN, Bounds { nodes: 4, ..JOIN }), Rule::Least),
    ]
}

/// The planted mistakes of the gate per resource.
#[must_use]
pub fn gate_mistakes() -> Vec<Case> {
    use rules::Mistake as M;
    let planted = |name: &'static str, property: &'static str, bounds: Bounds, mistake: M| {
        let tokens = if property == S4 { 3 } else { 0 };
        let model = Gate { bounds, mistake, tokens, has_shared: mistake == M::GhostsWeaker, only: Some(property), ..GATE };
        Case::found(name, property, move |scale| search(model, scale))
    };
    vec![
        planted("gate: rebuilt before gone", S2, THREE, M::RebuildBeforeGone),
        planted("gate: rebuilt before gone, by S3", S3, THREE, M::RebuildBeforeGone),
        planted("gate: opens when those removed with the home are gone", S2, THREE, M::RebuildAwaitsRemovedWithHome),
        planted("gate: opens when those removed with the master are gone", S2, THREE, M::RebuildAwaitsRemovedWithMaster),
        planted("gate: rebuilt without the answers of all", S2, THREE, M::RebuildWithoutAnswers),
        planted("gate: an answer of an older view is taken", S2, JOIN, M::OldAnswerTaken),
        planted("gate: a grant of an older view is taken", S2, THREE, M::OldGrantTaken),
        planted("gate: an unlock of an older view is taken", S2, THREE, M::OldUnlockTaken),
        planted("gate: an appointment of an older view is taken", S2, THREE, M::OldAppointmentTaken),
        planted("gate: a hand-over of an older view is taken", S2, JOIN, M::OldHandOverTaken),
        planted("gate: a join opens its share empty", S2, JOIN, M::JoinOpensEmpty),
        planted("gate: the hash without the owed, the next in it opens", S2, THREE, M::HeirOpensEmpty),
        planted("gate: hand-over at the new end only", S2, JOIN, M::TakenFromOneEnd),
        planted("gate: hand-over taken back at the old end", S2, JOIN, M::GiverKeeps),
        planted("gate: handed over without authority", S2, JOIN, M::HandsOverNothing),
        planted("gate: a master's word taken for authority", S2, JOIN, M::MasterGivesAuthority),
        planted("gate: let in before the share is rebuilt, masters known by slot", S2, LIVES, M::MasterBySlotLetIn),
        planted("gate: an answer overrules a grant of the same view", S2, Bounds { removals: 1, ..THREE }, M::AnswerOverrulesGrant),
        planted("gate: a lost appointment taken for a free resource", S2, THREE, M::LostAppointmentIsFree),
        planted("gate: mastery given back and kept", S2, THREE, M::GivenBackKept),
        planted("gate: ghosts forgotten", S2, THREE, M::GhostsForgotten),
        planted("gate: ghosts in a weaker mode", S2, THREE, M::GhostsWeaker),
        planted("gate: the token counter restarts within a view", S4, THREE, M::CounterRestarts),
        planted("gate: tokens without the view", S4, THREE, M::CounterAlone),
        gate_stuck("gate: a holder whose grant was lost is not heard", M::HoldersUnheard),
        gate_stuck("gate: a master whose appointment was lost is not heard", M::MastersUnheard),
    ]
}

const RECOVERY: Recovery = Recovery { bounds: THREE, mistake: recovery::Mistake::None, only: None };

/// The rules of the coarser recovery.
#[must_use]
pub fn recovery_rules() -> Vec<Case> {
    let holds = |name: &'static str, horizon: Horizon| {
        Case::holds(name, move |scale| search(Recovery { bounds: scale.pick(horizon.0, horizon.1), ..RECOVERY }, scale))
    };
    let opens = |name: &'static str, horizon: Horizon| {
        Case::holds(name, move |scale| {
            let bounds = Bounds { may_settle: true, ..scale.pick(horizon.0, horizon.1) };
            let model = Recovery { bounds, ..RECOVERY };
            search_dead_ends(&model, L1, scale, |state| model.is_served(state))
        })
    };
    let join = Bounds { removals: 2, ..JOIN };
    vec![
        holds("gate: recovery, a second failure in the middle", (THREE, Bounds { nodes: 4, ..THREE })),
        holds("gate: recovery, a home by join", (join, Bounds { nodes: 4, ..join })),
        holds("gate: recovery, removed nodes come back", (LIVES, Bounds { crashes: 1, ..LIVES })),
        opens("gate: recovery opens", (THREE, LIVES)),
        Case::found("gate: recovery stops what a living master has", NEVER_STOPS, |scale| {
            search(Recovery { only: Some(NEVER_STOPS), ..RECOVERY }, scale)
        }),
    ]
}

/// The planted mistakes of the coarser recovery.
#[must_use]
pub fn recovery_mistakes() -> Vec<Case> {
    use recovery::Mistake as M;
    let planted = |name: &'static str, property: &'static str, bounds: Bounds, mistake: M| {
        let model = Recovery { bounds, mistake, only: Some(property) };
        Case::found(name, property, move |scale| search(model, scale))
    };
    vec![
        planted("gate: recovery opens before gone", S2, THREE, M::OpenBeforeGone),
        planted("gate: recovery opens before gone, by S3", S3, THREE, M::OpenBeforeGone),
        planted("gate: recovery opens before the second dead is gone", S2, THREE, M::OpenBeforeSecondGone),
        planted("gate: recovery opens before the first dead is gone", S2, THREE, M::OpenBeforeFirstGone),
        planted("gate: recovery without the answers of all", S2, THREE, M::AnswerMissing),
        planted("gate: an answer of the first recovery taken in the second", S2, JOIN, M::OldAnswerTaken),
        planted("gate: a second round of the first recovery taken in the second", S2, THREE, M::OldSecondRoundTaken),
        planted("gate: recovery takes a grant of an older view", S2, THREE, M::OldGrantTaken),
        planted("gate: no second recovery under the newer view", S2, THREE, M::NoSecondRecovery),
        planted("gate: a new master without the reports", S2, THREE, M::ReportsForgotten),
    ]
}

const LVB: Lvb = Lvb { bounds: Bounds { removals: 1, ..THREE }, first_holder: 0, changes: 1, mistake: lvb::Mistake::None, only: None };

/// The rules of value blocks, and those that ask for less and are enough.
#[must_use]
pub fn lvb_rules() -> Vec<Case> {
    let holds = |name: &'static str, mistake: lvb::Mistake, (near, far): (Lvb, Lvb)| {
        Case::holds(name, move |scale| search(Lvb { mistake, ..scale.pick(near, far) }, scale))
    };
    use lvb::Mistake as M;
    let two_removed = Lvb { bounds: THREE, changes: 2, ..LVB };
    let back = Lvb { bounds: Bounds { removals: 1, ..LIVES }, ..LVB };
    let near_back = Lvb { first_holder: 1, ..back };
    vec![
        holds("gate: value blocks", M::None, (LVB, two_removed)),
        holds("gate: value blocks, removed nodes come back", M::None, (near_back, back)),
        holds("gate: less: no mark for a skipped view alone", M::NoMarkAfterSkippedView, (near_back, back)),
        holds("gate: less: an invalid block keeps its number", M::NumberKept, (LVB, two_removed)),
    ]
}

/// The planted mistakes of value blocks.
#[must_use]
pub fn lvb_mistakes() -> Vec<Case> {
    use lvb::Mistake as M;
    let planted = |name: &'static str, model: Lvb, mistake: M| {
        let model = Lvb { mistake, only: Some(S12), ..model };
        Case::found(name, S12, move |scale| search(model, scale))
    };
    let two = Lvb { changes: 2, ..LVB };
    let back = Lvb { bounds: Bounds { removals: 1, ..LIVES }, ..LVB };
    let renewed = Lvb { bounds: Bounds { removals: 1, renewals: 1, ..THREE }, first_holder: 1, changes: 2, ..LVB };
    vec![
        planted("gate: a value block valid after a dead writer", LVB, M::ValidAfterDeadWriter),
        planted("gate: a value block valid after a skipped view", LVB, M::ValidAfterSkippedView),
        planted("gate: a value block, writers known by slot", back, M::WriterBySlot),
        planted("gate: the older of two copies taken as valid", LVB, M::OlderCopyTaken),
        planted("gate: the newest copy is valid in whatever mode", two, M::NewestCopyIsValid),
        planted("gate: a write lost with its view is not said again", LVB, M::WriteNotSaidAgain),
        planted("gate: a write said again is done again", two, M::WriteDoneAgain),
        planted("gate: a write said again gets the newest number", renewed, M::NewNumberForOldWrite),
    ]
}

/// The cases of the gate.
#[must_use]
pub fn cases() -> Vec<Case> {
    [gate_rules(), gate_mistakes(), recovery_rules(), recovery_mistakes(), lvb_rules(), lvb_mistakes()].into_iter().flatten().collect()
}
