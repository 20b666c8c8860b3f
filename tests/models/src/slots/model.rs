//! What: the register over a vote table one of whose slots changes its owner: left or owed, freed, given to a new node.
//! Owns: who sits in the slot by the decided views, the ballots in the table, the machines that write there.
//! Invariants: a view is a value of the register: who sits in the slot is decided like everything else; a write lands at any later
//!   time, the whole table is read in one read.
//! Does not: model two units in turn, several devices, restarts, or how a machine is proved gone (that is a fact here).
//! Called by: `super::cases`.

use stateright::{Model, Property};

/// Two members in slots of their own, then three machines that sit in the last slot one after the other.
const MACHINES: usize = 5;
const SLOTS: usize = 3;
/// The slot that changes its owner, and with the same number its first owner.
const SHARED: usize = 2;
const FIRST_OWNER: usize = 2;
/// The member that may go by the table of its start.
const LAGGARD: usize = 1;
/// The last view of a model.
const VIEWS_MAX: usize = 4;

/// A departure from the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mistake {
    None,
    /// A freed slot is wiped.
    Wiped,
    /// A member scans the slots that were configured when it started.
    ScansConfigured,
    /// The slot of an owed machine is given to another.
    OwedGiven,
    /// A value made on an old view is proposed again for a later number.
    OldValueAgain,
    /// A new node sits down as soon as a member proposes it.
    SitsUndecided,
}

/// The model with its horizon.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    pub(super) views: u8,
    /// Ballots a machine may enter per view.
    pub(super) rounds: u8,
    /// The slot has an owner at the beginning; else it is free.
    pub(super) is_owned: bool,
    /// The owner may decide its own leaving.
    pub(super) may_release_itself: bool,
    /// The table is read at any time after the own write has landed; else at once.
    pub(super) are_reads_apart: bool,
    pub(super) mistake: Mistake,
    /// Check this property only.
    pub(super) only: Option<&'static str>,
}

impl Default for Slots {
    fn default() -> Self {
        Self { views: 3, rounds: 1, is_owned: true, may_release_itself: true, are_reads_apart: false, mistake: Mistake::None, only: None }
    }
}

/// Who sits in the shared slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) enum Seat {
    #[default]
    Free,
    Owed,
    Of(usize),
}

/// A view: who sits there, and who proposed it (two proposers never mean the same value).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Value {
    seat: Seat,
    by: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct View {
    number: u8,
    value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Ballot {
    view: u8,
    entered: u8,
    accepted: u8,
    value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Write {
    Vote(Ballot),
    Record(View),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Stage {
    #[default]
    Off,
    Idle,
    Prepare,
    Accept,
    Recording,
    Learn,
    /// Proved gone, or has left: it writes nothing any more.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Machine {
    stage: Stage,
    known: View,
    ballot: Ballot,
    /// The value it wants in this instance.
    wish: Value,
    best: (u8, Value),
    air: Option<Write>,
    /// The write of this stage has landed, the table was not read yet.
    is_read_due: bool,
}

/// One state of the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    votes: [Ballot; SLOTS],
    records: [View; SLOTS],
    machines: [Machine; MACHINES],
    /// Per view number the first value that somebody knew to be decided.
    decided: [Option<Value>; VIEWS_MAX + 1],
    /// Another value was decided for a number.
    is_split: bool,
    has_nothing_to_learn: bool,
    /// The freed slot was wiped, once.
    is_wiped: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Propose { machine: usize, value: Seat },
    Land(usize),
    Read(usize),
    Learn(usize),
    SitDown(usize),
    End(usize),
    Wipe,
}

fn slot_of(machine: usize) -> usize {
    machine.min(SHARED)
}

impl Machine {
    fn is_alive(&self) -> bool {
        !matches!(self.stage, Stage::Off | Stage::Gone)
    }

    fn write(&mut self, stage: Stage, write: Write) {
        self.stage = stage;
        self.air = Some(write);
        self.is_read_due = false;
    }
}

impl Slots {
    /// The seats that a machine may want next to those of the view it knows.
    fn wishes(&self, state: &State, m: usize) -> Vec<Seat> {
        let is_member = m < SHARED;
        let is_first_gone = state.machines[FIRST_OWNER].stage == Stage::Gone;
        // Member 0 asks for the fourth machine, member 1 for the fifth.
        let joiner = Seat::Of(FIRST_OWNER + 1 + m.min(1));
        match state.machines[m].known.value.seat {
            Seat::Of(FIRST_OWNER) if m == FIRST_OWNER && self.may_release_itself => vec![Seat::Free, Seat::Of(FIRST_OWNER)],
            Seat::Of(FIRST_OWNER) if is_member && is_first_gone => vec![Seat::Free, Seat::Owed],
            Seat::Of(FIRST_OWNER) if is_member => vec![Seat::Owed],
            Seat::Owed if is_member && is_first_gone => vec![Seat::Free],
            Seat::Owed if is_member && self.mistake == Mistake::OwedGiven => vec![joiner],
            Seat::Free if is_member && (is_first_gone || !self.is_owned) => vec![joiner],
            seat @ Seat::Of(owner) if is_member || owner == m => vec![seat],
            _ => Vec::new(),
        }
    }

    /// What the machine said last in the instance that it is in.
    fn spoken(machine: &Machine) -> Ballot {
        Some(machine.ballot).filter(|ballot| ballot.view == machine.known.number + 1).unwrap_or_default()
    }

    /// Its next ballot number, if the horizon has one.
    fn next_ballot(&self, machine: &Machine, slot: usize) -> Option<u8> {
        let (own, count) = (u8::try_from(slot + 1).ok()?, u8::try_from(SLOTS).ok()?);
        let last = Self::spoken(machine).entered;
        (0..self.rounds).map(|round| own + round * count).find(|ballot| *ballot > last)
    }

    fn propose(&self, state: &mut State, m: usize, seat: Seat) -> Option<()> {
        let machine = &mut state.machines[m];
        let old = Self::spoken(machine);
        let entered = self.next_ballot(machine, slot_of(m))?;
        machine.ballot = Ballot { view: machine.known.number + 1, entered, ..old };
        machine.wish = Value { seat, by: m };
        machine.best = (old.accepted, old.value);
        machine.write(Stage::Prepare, Write::Vote(machine.ballot));
        Some(())
    }

    fn land(&self, state: &mut State, m: usize) -> Option<()> {
        let machine = &mut state.machines[m];
        let slot = slot_of(m);
        match machine.air.take()? {
            Write::Vote(ballot) => {
                state.votes[slot] = ballot;
                machine.is_read_due = true;
                if !self.are_reads_apart {
                    self.read(state, m);
                }
            }
            Write::Record(record) => {
                state.records[slot] = record;
                machine.stage = Stage::Idle;
            }
        }
        Some(())
    }

    /// How many slots a machine reads: the whole table.
    fn table_of(&self, m: usize) -> usize {
        if self.mistake == Mistake::ScansConfigured && m == LAGGARD { SHARED } else { SLOTS }
    }

    fn read(&self, state: &mut State, m: usize) {
        let votes = state.votes;
        let count = self.table_of(m);
        let others = || votes.iter().enumerate().take(count).filter(|(slot, _)| *slot != slot_of(m)).map(|(_, vote)| vote);
        let machine = &mut state.machines[m];
        machine.is_read_due = false;
        let mine = machine.ballot;
        if others().any(|vote| vote.view > mine.view) {
            machine.stage = Stage::Learn;
            return;
        }
        let rivals = || others().filter(|vote| vote.view == mine.view);
        if rivals().any(|rival| rival.entered > mine.entered) {
            machine.stage = Stage::Idle;
            return;
        }
        if machine.stage == Stage::Accept {
            let view = View { number: mine.view, value: mine.value };
            self.know(state, m, view);
            return;
        }
        let best = rivals().map(|rival| (rival.accepted, rival.value)).fold(machine.best, Ord::max);
        machine.ballot.value = if best.0 > 0 { best.1 } else { machine.wish };
        machine.ballot.accepted = mine.entered;
        machine.write(Stage::Accept, Write::Vote(machine.ballot));
    }

    fn know(&self, state: &mut State, m: usize, view: View) {
        let decided = &mut state.decided[usize::from(view.number)];
        state.is_split |= decided.is_some_and(|value| value != view.value);
        *decided = decided.or(Some(view.value));
        let machine = &mut state.machines[m];
        machine.known = view;
        machine.write(Stage::Recording, Write::Record(view));
    }

    fn learn(&self, state: &mut State, m: usize) {
        let count = self.table_of(m);
        let best = state.records.iter().take(count).copied().max().unwrap_or_default();
        if best.number > state.machines[m].known.number {
            self.know(state, m, best);
        } else {
            state.has_nothing_to_learn = true;
        }
    }

    /// A new node sits down in the shared slot: it takes over the ballots that stand there as its own.
    fn sit_down(&self, state: &mut State, m: usize) {
        let best = state.records.iter().copied().max().unwrap_or_default();
        let ballot = state.votes[SHARED];
        state.machines[m] = Machine { stage: Stage::Idle, known: best, ballot, ..Machine::default() };
    }

    fn may_sit_down(&self, state: &State, m: usize) -> bool {
        let newest = state.records.iter().max().is_some_and(|view| view.value.seat == Seat::Of(m));
        let is_proposed = state.machines.iter().any(|machine| machine.is_alive() && machine.wish.seat == Seat::Of(m));
        m > FIRST_OWNER && state.machines[m].stage == Stage::Off && (newest || (is_proposed && self.mistake == Mistake::SitsUndecided))
    }

    /// May a machine propose the value it had made for an earlier number, as if nothing had been decided since?
    fn old_value(&self, machine: &Machine) -> Option<Seat> {
        let is_lost = machine.wish != machine.known.value && machine.wish.seat > Seat::Owed;
        (self.mistake == Mistake::OldValueAgain && machine.known.number > 0 && is_lost).then_some(machine.wish.seat)
    }

    fn machine_actions(&self, state: &State, m: usize, actions: &mut Vec<Action>) {
        let machine = &state.machines[m];
        let may_propose = machine.stage == Stage::Idle && machine.known.number < self.views;
        if may_propose && self.next_ballot(machine, slot_of(m)).is_some() {
            let wishes = self.wishes(state, m).into_iter().chain(self.old_value(machine));
            actions.extend(wishes.map(|value| Action::Propose { machine: m, value }));
        }
        if machine.air.is_some() {
            actions.push(Action::Land(m));
        }
        if machine.is_read_due {
            actions.push(Action::Read(m));
        }
        let has_news = state.records.iter().take(self.table_of(m)).any(|record| record.number > machine.known.number);
        if machine.stage == Stage::Learn || (machine.stage == Stage::Idle && has_news) {
            actions.push(Action::Learn(m));
        }
        if self.may_sit_down(state, m) {
            actions.push(Action::SitDown(m));
        }
        if m == FIRST_OWNER && machine.is_alive() && machine.air.is_none() {
            actions.push(Action::End(m));
        }
    }
}

impl Model for Slots {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let seat = if self.is_owned { Seat::Of(FIRST_OWNER) } else { Seat::Free };
        let known = View { number: 0, value: Value { seat, by: 0 } };
        let mut machines = [Machine::default(); MACHINES];
        for machine in machines.iter_mut().take(if self.is_owned { SLOTS } else { SHARED }) {
            *machine = Machine { stage: Stage::Idle, known, ..Machine::default() };
        }
        vec![State {
            votes: Default::default(),
            records: [known; SLOTS],
            machines,
            decided: Default::default(),
            is_split: false,
            has_nothing_to_learn: false,
            is_wiped: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        (0..MACHINES).for_each(|m| self.machine_actions(state, m, actions));
        let is_freed = self.is_owned && state.records.iter().max().is_some_and(|view| view.value.seat == Seat::Free);
        if self.mistake == Mistake::Wiped && is_freed && !state.is_wiped && state.machines[FIRST_OWNER].stage == Stage::Gone {
            actions.push(Action::Wipe);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Propose { machine, value } => self.propose(&mut state, machine, value)?,
            Action::Land(m) => self.land(&mut state, m)?,
            Action::Read(m) => self.read(&mut state, m),
            Action::Learn(m) => self.learn(&mut state, m),
            Action::SitDown(m) => self.sit_down(&mut state, m),
            Action::End(m) => state.machines[m] = Machine { stage: Stage::Gone, ..Machine::default() },
            Action::Wipe => {
                state.votes[SHARED] = Ballot::default();
                state.records[SHARED] = View::default();
                state.is_wiped = true;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(crate::register::S1, |_, state: &State| !state.is_split),
            Property::always(crate::register::LEARNS, |_, state: &State| !state.has_nothing_to_learn),
            Property::always(super::S7, |_, state: &State| {
                state.machines[SHARED..].iter().filter(|machine| machine.is_alive()).count() <= 1
            }),
            Property::sometimes("a new node votes from the freed slot", |_, state: &State| {
                state.machines[SHARED + 1..].iter().any(|machine| machine.is_alive() && machine.ballot.value.by > FIRST_OWNER)
            }),
        ];
        if self.mistake == Mistake::Wiped {
            properties.push(Property::sometimes("a new node votes from the wiped slot", |_, state: &State| {
                state.is_wiped
                    && state.machines[SHARED + 1..].iter().any(|machine| machine.is_alive() && machine.ballot.value.by > FIRST_OWNER)
            }));
        }
        if let Some(only) = self.only {
            properties.retain(|property| property.name == only);
            return properties;
        }
        if self.is_owned {
            properties.push(Property::sometimes("the slot of an owed machine is freed after its end", |_, state: &State| {
                let was_owed = state.decided.iter().flatten().any(|value| value.seat == Seat::Owed);
                was_owed && state.machines.iter().any(|machine| machine.is_alive() && machine.known.value.seat == Seat::Free)
            }));
        } else {
            properties.push(Property::sometimes("both joiners were asked for", |_, state: &State| {
                state.machines[0].wish.seat > Seat::Owed && state.machines[1].wish.seat > Seat::Owed
            }));
        }
        properties
    }
}
