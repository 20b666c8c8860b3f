//! What: lives beyond the own beat: vouch, freeze, and both together, against silence, pill and removal.
//! Owns: the model, made of the parts below, and the list of its cases.
//! Invariants: times are ages or remainders, capped where they no longer matter: the state space is closed, every horizon is covered.
//! Does not: model watchdog, D, drift and stale paths (see `lifeline`) or how a view is decided (see `register`).
//! Called by: tests/extension.rs, `crate::all_cases`.
//!
//! One node is watched: it lives while any of three leases runs - of an own cycle, of a vouch, of a freeze - and is reset for
//! ever when all have run out. One observer reads the beats, unit by unit, and says *gone*. Vouchers and givers of consents are
//! only what they write and send: their own leases do not appear, so that what holds here needs none of them.

mod freeze;
mod node;
mod observer;
mod vouch;

use stateright::{Model, Property};

use crate::{Case, Outcome, Scale, search};
use freeze::{Counted, Freeze, FreezeStep, Ground};
use node::{Cycle, Node, NodeStep};
use observer::{ObserveStep, Observer, Role};
use vouch::{Drop, OrdersRead, VouchStep, Voucher};

const S5: &str = "S5 nobody acts after it was said gone";
const L2: &str = "L2 W after an order landed, and F after the last consent to a freeze, the node is gone";
const SAID: &str = "L2 gone is said in bounded time after an order, whatever the vouchers do";
const S11: &str = "S11 nobody is put out by one that ends without another cycle";

/// Most vouchers of a model.
const VOUCHERS_MAX: usize = 2;
/// Most others whose consents are asked.
const GIVERS_MAX: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// The vouch names nobody's request: the same text again is no change.
    StaticText,
    /// The beat that follows does not carry the vouch.
    DroppedAtNextBeat,
    /// The voucher's next life begins with an empty unit.
    ErasedByNextLife,
    /// A write of the voucher's earlier life lands after the next one's vouch.
    OldWritesLand,
    /// The grant leaves while the vouch is being written.
    GrantBeforeComplete,
    /// The lease is counted from the receipt of the grant.
    LeaseFromReceipt,
    /// The grant names no serial: it is taken for the newest request.
    GrantForNewest,
    /// The voucher goes by what it read before the request came.
    OrdersReadBeforeRequest,
    /// The voucher does not look for a pill.
    MailboxNotRead,
    /// The voucher does not look whether the node was removed.
    VoteTableNotRead,
    /// The observer counts the vouches of one node only.
    SecondNotCounted,
    /// The observer takes every beat of a voucher for a new vouch.
    BeatTakenForVouch,
    /// An outsider uses W.
    OutsiderUsesW,
    /// A member uses W although it has given its consent.
    ConsentingUsesW,
    /// Consents are asked again under a freeze.
    AskedUnderFreeze,
    /// A member's next beat makes it forget its consent.
    ConsentForgottenAtBeat,
    /// One consent is not waited for.
    OneConsentMissing,
    /// A node proposes while it lives on a freeze.
    FreezingProposes,
    /// Who writes the pill counts W only.
    PillCountsWOnly,
    /// The freeze is counted from the receipt of the last consent.
    CountedFromReceipt,
    /// A consent given to an earlier question counts for the later one.
    EarlierConsentCounts,
    /// Whether the consent is over is judged at the end of the confirming read.
    ConsentJudgedAtEnd,
    /// A member uses W as soon as it was let in.
    JoinerUsesW,
    /// Who was let in goes by what the node said before it knew of it.
    HelloBeforeView,
    /// A member uses W for a node that no decided view has removed.
    MemberNotRemoved,
    /// A consent is given for a view that the giver knows to be over.
    ConsentForOldView,
    /// The next life of a consenting member takes itself for a member, without consents.
    NextLifeForgets,
    /// The next life takes itself for a member, with the consents that its unit shows.
    NextLifeTrustsUnit,
}

/// How an observer's read samples the units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// One after the other, in any order.
    Apart,
    /// All in one instant.
    AtOnce,
}

/// What ends the watched node's right to extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OrderKind {
    /// A pill in its mailbox.
    Pill,
    /// A decided view without it.
    Removal,
}

/// What a search judges. Without orders a cycle and a grant need no look for one, so they are over as the write lands; without
/// reads nothing is said, and the node lives the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    /// S5 alone: no order is ever given.
    Silence,
    /// L2 alone: nobody observes.
    Order,
    Both,
}

/// The model; times in ticks. W is L + 1, the least that holds (`lifeline`).
#[derive(Clone, Debug)]
struct Extension {
    /// L.
    lease: u8,
    /// F; 0 where there are no givers.
    freeze: u8,
    /// 0 to 2.
    vouchers: usize,
    /// Others in the first view, whose consents are asked: 0 to 2.
    givers: usize,
    /// The first giver may decide a view that adds the second one.
    may_join: bool,
    /// Who is let in goes by what the node says of the freezes that it asked for, instead of by F.
    is_told: bool,
    /// Either the watched node decides a view of its own, or the first giver one without it.
    may_part: bool,
    /// Vouchers and the observer's daemon may die and start again.
    may_restart: bool,
    judged: Judged,
    order: OrderKind,
    reads: Reads,
    drop: Drop,
    orders_read: OrdersRead,
    counted: Counted,
    ground: Ground,
    /// Everything but the watched node's own path answers within the tick; that path answers never.
    is_prompt: bool,
    mistake: Mistake,
    /// Check this property only.
    only: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    node: Node,
    vouchers: [Voucher; VOUCHERS_MAX],
    freeze: Freeze,
    /// Age of the order since it landed.
    order: Option<u8>,
    observer: Observer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Tick,
    Node(NodeStep),
    Vouch(usize, VouchStep),
    Freeze(FreezeStep),
    Observe(ObserveStep),
}

impl Extension {
    /// W.
    fn wait(&self) -> u8 {
        self.lease + 1
    }

    fn tick(&self, state: &mut State) {
        state.order = state.order.map(|age| (age + 1).min(self.order_age_max()));
        state.node.tick(self.lease);
        for voucher in &mut state.vouchers {
            voucher.tick(self.lease);
            voucher.is_new |= self.mistake == Mistake::BeatTakenForVouch;
        }
        state.freeze.tick(self.freeze);
        self.tick_observer(&mut state.observer);
        if !state.node.is_alive() && !self.is_prompt {
            // What is still on its way can only put the verdict off.
            state.node.cycle = Cycle::Idle;
            state.vouchers = state.vouchers.map(Voucher::at_rest);
            state.freeze.question = None;
        }
    }

    fn has_orders(&self) -> bool {
        self.judged != Judged::Silence
    }

    fn has_reads(&self) -> bool {
        self.judged != Judged::Order
    }

    /// Something of the prompt world has to happen before time may pass.
    fn is_urgent(&self, state: &State) -> bool {
        let is_vouch_on_its_way = state.vouchers.iter().any(Voucher::is_busy);
        self.is_prompt && (is_vouch_on_its_way || state.observer.is_read_due)
    }

    /// How long after the order *gone* is said in the prompt world: the last grant's lease, then W, then a tick for each wait.
    fn said_by(&self) -> u8 {
        self.lease + 1 + self.wait()
    }

    fn order_age_max(&self) -> u8 {
        if self.is_prompt { self.said_by() + 1 } else { self.wait() + self.freeze }
    }
}

impl Model for Extension {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut roles = vec![Role::Stranger];
        if self.givers > 0 {
            roles.push(Role::FirstGiver);
        }
        if self.may_join {
            roles.push(Role::Joiner);
        }
        let state = |role| State {
            node: Node::new(self.lease),
            vouchers: [Voucher::default(); VOUCHERS_MAX],
            freeze: Freeze::default(),
            order: None,
            observer: Observer::new(role, self.freeze),
        };
        roles.into_iter().map(state).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.observer.is_gone {
            // Dead is dead: whether the verdict was right is known.
            return;
        }
        self.node_steps(state, actions);
        for voucher in 0..self.vouchers {
            self.vouch_steps(state, voucher, actions);
        }
        if self.givers > 0 {
            self.freeze_steps(state, actions);
        }
        self.observe_steps(state, actions);
        if !self.is_urgent(state) {
            actions.push(Action::Tick);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Tick => self.tick(&mut next),
            Action::Node(step) => self.apply_node(&mut next, step),
            Action::Vouch(voucher, step) => self.apply_vouch(&mut next, voucher, step),
            Action::Freeze(step) => self.apply_freeze(&mut next, step),
            Action::Observe(step) => self.apply_observe(&mut next, step),
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = Vec::new();
        if self.has_reads() {
            properties.push(Property::always(S5, |_, state: &State| !state.observer.is_gone || !state.node.is_alive()));
            properties.push(Property::sometimes("gone is said", |_, state: &State| state.observer.is_gone));
            properties.extend(self.role_properties());
        }
        if self.has_orders() {
            properties.push(Property::always(L2, |model: &Self, state: &State| !model.is_order_due(state) || !state.node.is_alive()));
        }
        if self.has_orders() && !self.is_prompt {
            properties.push(Property::sometimes("the node finds the order", |_, state: &State| state.node.cycle == Cycle::Condemned));
        }
        if self.judged == Judged::Both {
            properties.push(Property::sometimes("gone is said after an order", |_, state: &State| {
                state.observer.is_gone && state.order.is_some()
            }));
        }
        if self.is_prompt {
            properties.push(Property::always(SAID, |model: &Self, state: &State| {
                state.observer.is_gone || state.order.is_none_or(|age| age <= model.said_by())
            }));
        }
        if self.vouchers > 0 {
            properties.push(Property::sometimes("a vouch alone keeps it alive", |_, state: &State| {
                state.node.own.is_none() && state.node.vouched.is_some()
            }));
        }
        if self.givers > 0 {
            properties.push(Property::sometimes("a freeze alone keeps it alive", |_, state: &State| {
                state.node.own.is_none() && state.node.vouched.is_none() && state.node.frozen.is_some()
            }));
        }
        if self.may_part {
            properties.push(Property::always(S11, |_, state: &State| !state.freeze.is_stolen || state.node.is_alive()));
        }
        properties.retain(|property| self.only.is_none_or(|name| name == property.name));
        properties
    }
}

/// Nothing but the own cycle; each part sets what it needs.
const BARE: Extension = Extension {
    lease: 3,
    freeze: 0,
    vouchers: 0,
    givers: 0,
    may_join: false,
    may_part: false,
    is_told: false,
    may_restart: true,
    judged: Judged::Both,
    order: OrderKind::Pill,
    reads: Reads::Apart,
    drop: Drop::Never,
    orders_read: OrdersRead::AfterVouch,
    counted: Counted::FromQuestion,
    ground: Ground::OwnCycle,
    is_prompt: false,
    mistake: Mistake::None,
    only: None,
};

fn run(model: &Extension, scale: Scale) -> Outcome {
    search(model.clone(), scale)
}

/// Judged by S5 alone.
fn silence(model: &Extension) -> Extension {
    Extension { judged: Judged::Silence, ..model.clone() }
}

/// Judged by L2 alone.
fn orders(model: &Extension) -> Extension {
    Extension { judged: Judged::Order, ..model.clone() }
}

fn case(name: &'static str, model: Extension) -> Case {
    Case::holds(name, move |scale| run(&model, scale))
}

/// The full scale has this L, this F, and restarts.
fn grown(name: &'static str, model: Extension, (lease, freeze): (u8, u8)) -> Case {
    Case::holds(name, move |scale| {
        let lease = scale.pick(model.lease, lease);
        let freeze = scale.pick(model.freeze, freeze);
        let may_restart = model.may_restart || (scale == Scale::Full && !model.is_prompt);
        run(&Extension { lease, freeze, may_restart, ..model.clone() }, scale)
    })
}

fn planted(name: &'static str, property: &'static str, model: Extension) -> Case {
    let model = Extension { only: Some(property), ..model };
    Case::found(name, property, move |scale| run(&model, scale))
}

/// The rules of a vouch.
#[must_use]
pub fn vouch_rules() -> Vec<Case> {
    vouch::rules()
}

/// The mistakes planted in a vouch.
#[must_use]
pub fn vouch_mistakes() -> Vec<Case> {
    vouch::mistakes()
}

/// The rules of a freeze.
#[must_use]
pub fn freeze_rules() -> Vec<Case> {
    freeze::rules()
}

/// The mistakes planted in a freeze.
#[must_use]
pub fn freeze_mistakes() -> Vec<Case> {
    freeze::mistakes()
}

/// Vouch and freeze at the same node.
#[must_use]
pub fn both() -> Vec<Case> {
    let both = Extension { freeze: 2, vouchers: 1, givers: 1, lease: 1, may_restart: false, ..BARE };
    let by_vouch = Extension { ground: Ground::OwnCycleOrVouch, ..both.clone() };
    let under_freeze = Extension { mistake: Mistake::AskedUnderFreeze, ..silence(&both) };
    vec![
        grown("extension: both, asked under an own cycle, silence", silence(&both), (2, 3)),
        grown("extension: both, asked under an own cycle, orders", orders(&both), (2, 4)),
        grown("extension: both, asked under a vouch too, silence", silence(&by_vouch), (2, 3)),
        grown("extension: both, asked under a vouch too, orders", orders(&by_vouch), (2, 4)),
        planted("extension: both, asked under a freeze", S5, under_freeze),
    ]
}

/// Every case of lives beyond the own beat.
#[must_use]
pub fn cases() -> Vec<Case> {
    [vouch_rules(), vouch_mistakes(), freeze_rules(), freeze_mistakes(), both()].into_iter().flatten().collect()
}
