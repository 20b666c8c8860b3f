//! What: members, removal, *left*, the owed and recovery over several views, restarts of daemons, resets of machines, losses of
//!   power and freezes.
//! Owns: one EX lock, the lives that hold it, the decided view, one proposal in the air, evidence as facts of the machine.
//! Invariants: everything is asynchronous: a node learns, leaves, is reset or comes back at any later time; evidence is
//!   true of the machine when it is used, and stays true. Grants inside one view know all holders of that view.
//! Does not: model the register (a proposal in the air is decided at any time or never; S1 is the register model's), the
//!   time that evidence takes, or mastery.
//! Called by: `super::cases`.

use stateright::{Model, Property};

/// Most nodes of a model.
const NODES_MAX: usize = 3;
/// Most incarnations of one boot; they count from 1.
const INCARNATIONS_MAX: usize = 3;

/// A departure from the rules of removal and recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// None: the rules of the design.
    None,
    /// Recovery does not wait for the owed.
    RecoveryBeforeGone,
    /// Recovery waits only for those whom the newest view removed.
    RecoveryAwaitsNewestOnly,
    /// Silence without the end of the lease counts as gone.
    SilenceIsGone,
    /// A new incarnation on the same boot counts as gone.
    IncarnationIsGone,
    /// The machine's reset counts at once; D is not waited.
    NoStorageDelay,
    /// A later view names only those it removes itself.
    OwedForgottenByLaterView,
    /// Who starts after a total loss names only the members of the last view.
    OwedForgottenAtRestart,
    /// A new life is let in while an earlier one of its node is owed.
    AdmittedWhileOwed,
    /// An outsider proposes while members of the view are neither gone nor left.
    OutsiderProposes,
    /// *Left* is recorded while something is held.
    LeftWhileHolding,
    /// *Left* names the node, not its incarnation.
    LeftNamesNodeOnly,
    /// The life that recorded *left* takes locks again.
    LeftSurvived,
    /// Locks are taken while *left* is in the air.
    LeftInTheAirGrants,
    /// The next incarnation's beat does not carry the *left* of the one before.
    LeftOverwritten,
    /// *Left* is recorded while an own proposal is in the air.
    LeftBeforeLastBallot,
    /// Who starts takes a member's silence of W for its end while a freeze runs.
    FreezeForgotten,
    /// A removed life that still holds something proposes when the members are gone or left.
    SurvivorContentWithLeft,
}

/// The model with its horizon.
#[derive(Debug, Clone)]
pub(crate) struct Removal {
    pub(crate) nodes: usize,
    /// Highest view number.
    pub(crate) views: u8,
    /// Resets that no removal asked for.
    pub(crate) crashes: u8,
    /// Losses of power that end every machine at once.
    pub(crate) losses: u8,
    /// The members may lose the disk together and live on by a freeze.
    pub(crate) may_freeze: bool,
    /// Boots of one machine.
    pub(crate) boots: u8,
    /// Incarnations of one boot.
    pub(crate) incarnations: u8,
    /// States that differ only by the names of the nodes are one.
    pub(crate) is_folded: bool,
    pub(crate) mistake: Mistake,
    /// Check this property only.
    pub(crate) only: Option<&'static str>,
}

impl Default for Removal {
    fn default() -> Self {
        Self {
            nodes: 3,
            views: 3,
            crashes: 1,
            losses: 0,
            may_freeze: false,
            boots: 2,
            incarnations: 2,
            is_folded: false,
            mistake: Mistake::None,
            only: None,
        }
    }
}

/// One life of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Life {
    boot: u8,
    incarnation: u8,
}

/// A removed life that is not proved gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Owed {
    life: Life,
    removed_in: u8,
}

/// A view, by slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct View {
    number: u8,
    members: [Option<Life>; NODES_MAX],
    owed: [Option<Owed>; NODES_MAX],
}

/// What a daemon's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
enum Stage {
    /// In no view that it knows; asks to be let in.
    #[default]
    Outsider,
    Member,
    /// Knows a decided view without it; stopped granting.
    Removed,
    /// Takes nothing any more; *left* is in the air.
    Leaving,
    Left,
    /// The daemon died with something held: no more cycles, the machine must be reset.
    Doomed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Machine {
    is_up: bool,
    boot: u8,
    incarnation: u8,
    stage: Stage,
    known: View,
    /// The lock table of `known` is rebuilt: this life may be granted locks in it.
    is_recovered: bool,
    /// Incarnations of this boot whose clients hold the lock, as bits.
    holding: u8,
    /// Lives without the disk, by everybody's consent: writes no beat, reads and proposes nothing.
    is_frozen: bool,
    /// A holder's commands are still under way after the machine's reset (less than D ago).
    is_draining: bool,
    /// On the disk: the life that recorded *left* or *held nothing*.
    left: Option<Life>,
    /// Incarnations of this boot that were named by a view and then left, as bits: the truth, not the record.
    has_left: u8,
    /// Incarnations of this boot that some decided view named, as bits.
    named: u8,
    /// Per incarnation of this boot, the view that removed it; 0: none did.
    removed_in: [u8; INCARNATIONS_MAX + 1],
}

/// A value that may be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Proposal {
    view: View,
    by: usize,
    life: Life,
}

/// One state of the world.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State {
    latest: View,
    proposal: Option<Proposal>,
    machines: [Machine; NODES_MAX],
    crashes: u8,
    losses: u8,
    /// Recovery began while a removed life was not gone.
    has_recovered_early: bool,
    /// A view was decided against members who could still act, by somebody who was not one.
    is_stolen: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    ProposeRemoval {
        by: usize,
        of: usize,
    },
    ProposeRelease {
        by: usize,
        of: usize,
    },
    ProposeAdmission {
        by: usize,
        of: usize,
    },
    /// An outsider or a removed life, when no member is left.
    ProposeRestart(usize),
    Decide,
    Learn(usize),
    Recover(usize),
    Grant(usize),
    Unlock(usize),
    Leave(usize),
    LandLeft(usize),
    /// The daemon dies and is started again on the same boot.
    RestartDaemon(usize),
    /// Crash, own reset or pill; the last two only after a removal.
    Reset(usize),
    /// Every machine loses power.
    LosePower,
    /// Every member has lost the disk and consents to live on.
    Freeze,
    /// The path of a frozen member is back; it beats again.
    Thaw(usize),
    /// D is over.
    Drain(usize),
    PowerOn(usize),
}

fn bit(incarnation: u8) -> u8 {
    1 << incarnation
}

impl Machine {
    fn life(&self) -> Life {
        Life { boot: self.boot, incarnation: self.incarnation }
    }

    fn is_on(&self, life: Life) -> bool {
        self.is_up && self.boot == life.boot
    }

    fn holds_as(&self, life: Life) -> bool {
        self.is_on(life) && self.holding & bit(life.incarnation) != 0
    }

    /// The lives of this boot that a view up to `number` has removed.
    fn removed(&self, number: u8) -> impl Iterator<Item = Life> {
        let lives = (0..).zip(self.removed_in);
        lives.filter(move |(_, removed_in)| (1..=number).contains(removed_in)).map(|(incarnation, _)| Life { boot: self.boot, incarnation })
    }

    /// The truth: can this life, its clients or its commands still act?
    fn may_act(&self, life: Life) -> bool {
        self.is_on(life) && (self.has_left & bit(life.incarnation) == 0 || self.holds_as(life))
    }

    fn is_acting(&self) -> bool {
        self.is_up && self.stage != Stage::Doomed
    }

    fn reaches_disk(&self) -> bool {
        self.is_acting() && !self.is_frozen
    }

    /// The machine ends; what its clients had under way goes on until D is over.
    fn end(&mut self) {
        *self = Self { boot: self.boot, is_draining: self.is_draining || self.holding != 0, ..Self::default() };
    }
}

impl State {
    fn is_member(&self, i: usize) -> bool {
        let machine = &self.machines[i];
        machine.reaches_disk()
            && machine.stage == Stage::Member
            && machine.known.number == self.latest.number
            && self.latest.members[i] == Some(machine.life())
    }

    /// Is a reset of this machine called for?
    fn is_asked(&self, i: usize) -> bool {
        self.is_removed(i) || self.machines[i].stage == Stage::Doomed || self.machines[i].is_frozen
    }

    /// A view has named this life and the newest one does not.
    fn is_removed(&self, i: usize) -> bool {
        let machine = &self.machines[i];
        machine.named & bit(machine.incarnation) != 0 && self.latest.members[i] != Some(machine.life())
    }
}

impl Removal {
    /// Evidence that a life of slot `j` recorded *left* or *held nothing*.
    fn is_left(&self, state: &State, j: usize, life: Life) -> bool {
        match state.machines[j].left {
            Some(left) if self.mistake == Mistake::LeftNamesNodeOnly => left.boot == life.boot,
            left => left == Some(life),
        }
    }

    /// Evidence stronger than *left*: rebooted or expired, D waited.
    fn is_ended(&self, state: &State, j: usize, life: Life) -> bool {
        let machine = &state.machines[j];
        let has_ended = !machine.is_on(life) && (!machine.is_draining || self.mistake == Mistake::NoStorageDelay);
        has_ended
            || self.mistake == Mistake::SilenceIsGone
            || (self.mistake == Mistake::IncarnationIsGone && machine.incarnation > life.incarnation)
    }

    fn is_gone(&self, state: &State, j: usize, life: Life) -> bool {
        self.is_ended(state, j, life) || self.is_left(state, j, life)
    }

    /// The next view before any change, by a member.
    fn successor(&self, state: &State) -> View {
        let mut view = state.latest;
        view.number += 1;
        if self.mistake == Mistake::OwedForgottenByLaterView {
            view.owed = [None; NODES_MAX];
        }
        view
    }

    /// Takes a member out of `view`: released with evidence, else owed.
    fn expel(&self, state: &State, view: &mut View, j: usize) {
        if let Some(life) = view.members[j].take()
            && !self.is_gone(state, j, life)
        {
            view.owed[j] = Some(Owed { life, removed_in: view.number });
        }
    }

    fn removal(&self, state: &State, j: usize) -> Option<View> {
        state.latest.members[j]?;
        let mut view = self.successor(state);
        self.expel(state, &mut view, j);
        Some(view)
    }

    fn release(&self, state: &State, j: usize) -> Option<View> {
        let owed = state.latest.owed[j]?;
        let mut view = self.successor(state);
        view.owed[j] = None;
        self.is_gone(state, j, owed.life).then_some(view)
    }

    /// Lets the present life of slot `j` in, when no earlier one of it is in or owed without evidence.
    fn admission(&self, state: &State, j: usize) -> Option<View> {
        let machine = &state.machines[j];
        let life = machine.life();
        if machine.stage != Stage::Outsider || !machine.is_up || state.latest.members[j] == Some(life) {
            return None;
        }
        let mut view = self.successor(state);
        self.expel(state, &mut view, j);
        if let Some(owed) = view.owed[j]
            && !self.is_gone(state, j, owed.life)
            && self.mistake != Mistake::AdmittedWhileOwed
        {
            return None;
        }
        view.owed[j] = None;
        view.members[j] = Some(life);
        Some(view)
    }

    /// A view of the outsider or survivor alone, everybody else of the last view released or owed.
    fn restart(&self, state: &State, i: usize) -> Option<View> {
        let machine = &state.machines[i];
        let is_survivor = machine.stage == Stage::Removed;
        if !machine.reaches_disk() || machine.known.number != state.latest.number || !(is_survivor || machine.stage == Stage::Outsider) {
            return None;
        }
        let is_believed = |j: usize| self.mistake == Mistake::FreezeForgotten && state.machines[j].is_frozen;
        let proves = |j: usize, life: Life| {
            self.mistake == Mistake::OutsiderProposes
                || is_believed(j)
                || if is_survivor && self.mistake != Mistake::SurvivorContentWithLeft {
                    self.is_ended(state, j, life)
                } else {
                    self.is_gone(state, j, life)
                }
        };
        if !(0..self.nodes).all(|j| state.latest.members[j].is_none_or(|life| proves(j, life))) {
            return None;
        }
        let mut view = state.latest;
        view.number += 1;
        if self.mistake == Mistake::OwedForgottenAtRestart {
            view.owed = [None; NODES_MAX];
        }
        for j in 0..self.nodes {
            self.expel(state, &mut view, j);
            if is_believed(j) {
                view.owed[j] = None;
            }
        }
        // An earlier life of the own node, still owed, keeps this one out.
        if view.owed[i].is_some_and(|owed| owed.life != machine.life() && !self.is_gone(state, i, owed.life)) {
            return None;
        }
        view.owed[i] = None;
        view.members[i] = Some(machine.life());
        Some(view)
    }

    fn propose(&self, state: &State, action: &Action) -> Option<Proposal> {
        let (by, view) = match *action {
            Action::ProposeRemoval { by, of } => (by, self.removal(state, of)?),
            Action::ProposeRelease { by, of } => (by, self.release(state, of)?),
            Action::ProposeAdmission { by, of } => (by, self.admission(state, of)?),
            Action::ProposeRestart(by) => (by, self.restart(state, by)?),
            _ => return None,
        };
        Some(Proposal { view, by, life: state.machines[by].life() })
    }

    fn decide(&self, state: &mut State) -> Option<()> {
        let Proposal { view, by, life } = state.proposal.take()?;
        let was_member = state.latest.members[by] == Some(life);
        let could_act = (0..self.nodes).any(|j| state.latest.members[j].is_some_and(|life| state.machines[j].may_act(life)));
        state.is_stolen |= !was_member && could_act;
        let before = std::mem::replace(&mut state.latest, view);
        for (machine, (old, new)) in state.machines.iter_mut().zip(before.members.into_iter().zip(view.members)) {
            if let Some(life) = old.filter(|life| machine.is_on(*life)) {
                machine.removed_in[usize::from(life.incarnation)] = view.number;
            }
            if let Some(life) = new.filter(|life| machine.is_on(*life)) {
                machine.named |= bit(life.incarnation);
                machine.removed_in[usize::from(life.incarnation)] = 0;
            }
        }
        Some(())
    }

    fn learn(state: &mut State, i: usize) {
        let latest = state.latest;
        let machine = &mut state.machines[i];
        machine.known = latest;
        machine.is_recovered = false;
        if latest.members[i] == Some(machine.life()) {
            machine.stage = Stage::Member;
        } else if machine.stage == Stage::Member {
            machine.stage = Stage::Removed;
        }
    }

    /// May the lock table of the view that `i` knows be rebuilt: everybody in it answers in it, every owed is gone.
    fn may_recover(&self, state: &State, i: usize) -> bool {
        let machine = &state.machines[i];
        let known = machine.known;
        let answers = |j: usize, life: Life| {
            let other = &state.machines[j];
            other.is_acting() && other.life() == life && other.stage == Stage::Member && other.known.number == known.number
        };
        let is_waited_for = |owed: Owed| match self.mistake {
            Mistake::RecoveryBeforeGone => false,
            Mistake::RecoveryAwaitsNewestOnly => owed.removed_in == known.number,
            _ => true,
        };
        machine.is_acting()
            && machine.stage == Stage::Member
            && !machine.is_recovered
            && (0..self.nodes).all(|j| known.members[j].is_none_or(|life| answers(j, life)))
            && (0..self.nodes).all(|j| known.owed[j].is_none_or(|owed| !is_waited_for(owed) || self.is_gone(state, j, owed.life)))
    }

    fn recover(state: &mut State, i: usize) {
        let known = state.machines[i].known;
        let slots = state.machines.iter().zip(known.members);
        state.has_recovered_early |= slots.into_iter().any(|(machine, member)| {
            machine.is_draining || machine.removed(known.number).any(|life| member != Some(life) && machine.may_act(life))
        });
        state.machines[i].is_recovered = true;
    }

    fn may_grant(&self, state: &State, i: usize) -> bool {
        let machine = &state.machines[i];
        let is_in = match machine.stage {
            Stage::Member => true,
            Stage::Left => self.mistake == Mistake::LeftSurvived,
            Stage::Leaving => self.mistake == Mistake::LeftInTheAirGrants,
            _ => false,
        };
        let known = machine.known.members;
        // What a member of this view held when it died stays granted in this view.
        let is_granted = |j: usize, life: Life| {
            let holder = &state.machines[j];
            holder.holds_as(life) || (holder.is_draining && !holder.is_on(life))
        };
        is_in && machine.is_up && machine.is_recovered && !(0..self.nodes).any(|j| known[j].is_some_and(|life| is_granted(j, life)))
    }

    fn may_leave(&self, state: &State, i: usize) -> bool {
        let machine = &state.machines[i];
        let is_own = state.proposal.is_some_and(|proposal| proposal.by == i && proposal.life == machine.life());
        machine.reaches_disk()
            && matches!(machine.stage, Stage::Member | Stage::Removed)
            && (machine.holding == 0 || self.mistake == Mistake::LeftWhileHolding)
            && (!is_own || self.mistake == Mistake::LeftBeforeLastBallot)
    }

    fn land_left(state: &mut State, i: usize) {
        let machine = &mut state.machines[i];
        machine.left = Some(machine.life());
        machine.has_left |= bit(machine.incarnation);
        machine.stage = Stage::Left;
    }

    fn restart_daemon(&self, state: &mut State, i: usize) {
        let latest = state.latest;
        let machine = &mut state.machines[i];
        let is_named = machine.named & bit(machine.incarnation) != 0;
        if self.mistake == Mistake::LeftOverwritten {
            machine.left = None;
        } else if machine.holding == 0 && is_named {
            // sbd, which outlived the daemon, recorded that it held nothing. A life that no view named has nothing to
            // record and carries on what it found.
            machine.left = Some(machine.life());
        }
        if is_named && machine.holding == 0 {
            machine.has_left |= bit(machine.incarnation);
        }
        machine.incarnation += 1;
        machine.stage = if machine.holding == 0 { Stage::Outsider } else { Stage::Doomed };
        if self.mistake == Mistake::IncarnationIsGone {
            machine.stage = Stage::Outsider;
        }
        machine.known = latest;
        machine.is_recovered = false;
    }

    fn reset(state: &mut State, i: usize) {
        state.crashes += u8::from(!state.is_asked(i));
        state.machines[i].end();
    }

    fn power_on(state: &mut State, i: usize) {
        let latest = state.latest;
        let machine = &mut state.machines[i];
        *machine = Machine {
            is_up: true,
            boot: machine.boot + 1,
            incarnation: 1,
            known: latest,
            is_draining: machine.is_draining,
            ..Machine::default()
        };
    }

    fn proposals(&self, state: &State, actions: &mut Vec<Action>) {
        if state.proposal.is_some() || state.latest.number >= self.views {
            return;
        }
        for by in 0..self.nodes {
            if state.is_member(by) {
                for of in (0..self.nodes).filter(|of| *of != by) {
                    actions.push(Action::ProposeRemoval { by, of });
                    actions.push(Action::ProposeRelease { by, of });
                    actions.push(Action::ProposeAdmission { by, of });
                }
            } else {
                actions.push(Action::ProposeRestart(by));
            }
        }
        actions.retain(|action| self.propose(state, action).is_some());
    }

    fn life_actions(&self, state: &State, i: usize, actions: &mut Vec<Action>) {
        let machine = &state.machines[i];
        let mut when = |is_possible: bool, action: Action| {
            if is_possible {
                actions.push(action);
            }
        };
        let is_terminal = matches!(machine.stage, Stage::Leaving | Stage::Left);
        let is_mine = machine.holding & bit(machine.incarnation) != 0;
        when(machine.reaches_disk() && !is_terminal && machine.known.number < state.latest.number, Action::Learn(i));
        when(self.may_recover(state, i), Action::Recover(i));
        when(self.may_grant(state, i), Action::Grant(i));
        when(machine.is_acting() && is_mine, Action::Unlock(i));
        when(self.may_leave(state, i), Action::Leave(i));
        when(machine.is_up && machine.stage == Stage::Leaving, Action::LandLeft(i));
        when(machine.reaches_disk() && machine.incarnation < self.incarnations, Action::RestartDaemon(i));
        when(machine.is_frozen, Action::Thaw(i));
        when(machine.is_up && (state.crashes < self.crashes || state.is_asked(i)), Action::Reset(i));
        when(machine.is_draining, Action::Drain(i));
        when(!machine.is_up && machine.boot < self.boots, Action::PowerOn(i));
    }

    /// One of the states that differ only by the names of the nodes: the least of those whose slots are in order.
    fn folded(&self, state: State) -> State {
        const ORDERS: [[usize; NODES_MAX]; 6] = [[0, 1, 2], [1, 0, 2], [0, 2, 1], [2, 1, 0], [1, 2, 0], [2, 0, 1]];
        let orders = match self.nodes {
            3 => 6,
            2 => 2,
            _ => 1,
        };
        // What a slot says without naming another one; it decides nearly always, and so saves the comparison of states.
        let slot = |i: usize| {
            let machine = Machine { known: View::default(), ..state.machines[i] };
            let is_proposer = state.proposal.is_some_and(|proposal| proposal.by == i);
            (machine, state.machines[i].known.number, state.latest.members[i], state.latest.owed[i], is_proposer)
        };
        let slots: Vec<_> = (0..self.nodes).map(slot).collect();
        let is_ordered = |order: &&[usize; NODES_MAX]| order[..self.nodes].is_sorted_by_key(|i| slots[*i]);
        let candidates = ORDERS.iter().take(orders).filter(is_ordered).map(|order| renamed(&state, order));
        candidates.min().unwrap_or(state)
    }
}

fn renamed(state: &State, order: &[usize; NODES_MAX]) -> State {
    let view = |old: View| View { number: old.number, members: order.map(|i| old.members[i]), owed: order.map(|i| old.owed[i]) };
    State {
        latest: view(state.latest),
        proposal: state.proposal.map(|old| Proposal {
            view: view(old.view),
            by: order.iter().position(|i| *i == old.by).unwrap_or(old.by),
            life: old.life,
        }),
        machines: order.map(|i| Machine { known: view(state.machines[i].known), ..state.machines[i] }),
        ..*state
    }
}

impl Model for Removal {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let life = Life { boot: 1, incarnation: 1 };
        let mut view = View { number: 1, ..View::default() };
        let mut machines = [Machine::default(); NODES_MAX];
        view.members.iter_mut().take(self.nodes).for_each(|member| *member = Some(life));
        for machine in machines.iter_mut().take(self.nodes) {
            *machine = Machine {
                is_up: true,
                boot: 1,
                incarnation: 1,
                stage: Stage::Member,
                known: view,
                is_recovered: true,
                named: bit(1),
                ..Machine::default()
            };
        }
        vec![State { latest: view, proposal: None, machines, crashes: 0, losses: 0, has_recovered_early: false, is_stolen: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.proposals(state, actions);
        if state.proposal.is_some() {
            actions.push(Action::Decide);
        }
        for i in 0..self.nodes {
            self.life_actions(state, i, actions);
        }
        if state.losses < self.losses && state.machines.iter().any(|machine| machine.is_up) {
            actions.push(Action::LosePower);
        }
        let mut members = (0..self.nodes).filter(|i| state.latest.members[*i].is_some());
        if self.may_freeze && members.all(|i| state.is_member(i)) {
            actions.push(Action::Freeze);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Decide => self.decide(&mut state)?,
            Action::Learn(i) => Self::learn(&mut state, i),
            Action::Recover(i) => Self::recover(&mut state, i),
            Action::Grant(i) => state.machines[i].holding |= bit(state.machines[i].incarnation),
            Action::Unlock(i) => state.machines[i].holding &= !bit(state.machines[i].incarnation),
            Action::Leave(i) => state.machines[i].stage = Stage::Leaving,
            Action::LandLeft(i) => Self::land_left(&mut state, i),
            Action::RestartDaemon(i) => self.restart_daemon(&mut state, i),
            Action::Reset(i) => Self::reset(&mut state, i),
            Action::LosePower => {
                state.losses += 1;
                state.machines.iter_mut().filter(|machine| machine.is_up).for_each(Machine::end);
            }
            Action::Freeze => {
                let members = state.machines.iter_mut().zip(state.latest.members).filter(|(_, member)| member.is_some());
                members.for_each(|(machine, _)| machine.is_frozen = true);
            }
            Action::Thaw(i) => state.machines[i].is_frozen = false,
            Action::Drain(i) => state.machines[i].is_draining = false,
            Action::PowerOn(i) => Self::power_on(&mut state, i),
            proposal => state.proposal = Some(self.propose(before, &proposal)?),
        }
        Some(if self.is_folded { self.folded(state) } else { state })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(super::S2, |_, state: &State| {
                let holders: u32 = state.machines.iter().map(|machine| machine.holding.count_ones() + u32::from(machine.is_draining)).sum();
                holders <= 1
            }),
            Property::always(super::S3, |_, state: &State| !state.has_recovered_early),
            Property::always(super::NO_STEAL, |_, state: &State| !state.is_stolen),
            Property::always(super::PROVABLE, |model: &Self, state: &State| {
                let named = |j: usize| [state.latest.members[j], state.latest.owed[j].map(|owed| owed.life)];
                (0..model.nodes).all(|j| {
                    let machine = &state.machines[j];
                    named(j).into_iter().flatten().all(|life| {
                        let has_left = machine.is_on(life) && machine.has_left & bit(life.incarnation) != 0;
                        !has_left || machine.left == Some(life)
                    })
                })
            }),
        ];
        if let Some(only) = self.only {
            properties.retain(|property| property.name == only);
            return properties;
        }
        properties.extend([
            Property::sometimes("a lock is granted while a removed life is owed and gone", |_, state: &State| {
                state
                    .machines
                    .iter()
                    .any(|machine| machine.is_recovered && machine.holding != 0 && machine.known.owed.iter().any(Option::is_some))
            }),
            Property::sometimes("a new boot forms a view after the loss of every member", |_, state: &State| {
                state.proposal.is_some_and(|proposal| proposal.life.boot > 1 && state.latest.members[proposal.by] != Some(proposal.life))
            }),
            Property::sometimes("a debt outlives the restart of every member", |_, state: &State| {
                let View { number, members, owed } = state.latest;
                owed.iter().flatten().any(|owed| owed.removed_in < number) && members.iter().flatten().all(|life| life.boot > 1)
            }),
            Property::sometimes("a removed holder outlives its judges and proposes", |_, state: &State| {
                state.proposal.is_some_and(|proposal| {
                    state.latest.owed[proposal.by].is_some_and(|owed| owed.life == proposal.life)
                        && state.machines[proposal.by].holding != 0
                })
            }),
        ]);
        if self.incarnations > 1 {
            properties.push(Property::sometimes("a life that left comes back under a new incarnation", |_, state: &State| {
                state.machines.iter().any(|machine| machine.has_left != 0 && machine.stage == Stage::Member)
            }));
        }
        if self.losses > 0 {
            properties.push(Property::sometimes("locks are granted again after power was lost", |_, state: &State| {
                state.losses > 0 && state.machines.iter().any(|machine| machine.is_recovered && machine.holding != 0)
            }));
        }
        if self.may_freeze {
            properties.push(Property::sometimes("a frozen member holds a lock while another node waits outside", |_, state: &State| {
                let is_held = state.machines.iter().any(|machine| machine.is_frozen && machine.holding != 0);
                is_held && state.machines.iter().any(|machine| machine.is_up && machine.stage == Stage::Outsider)
            }));
        }
        properties
    }
}
