//! What: on several devices, who acts in a view against who gives its number up.
//! Owns: the actor's record and scan, the giver's ballot and reads of records, on every device apart.
//! Invariants: whatever lands or is read does so at any later time; on a device a node reads only after its own write there landed,
//!   or after a majority of its writes landed, as its rule says.
//! Does not: model the ballots of the view itself: its votes are unreadable, only the actor's record tells of it.
//! Called by: `super::cases`.

use stateright::{Model, Property};

use super::{NEW, OLD, bit, is_majority};

/// a, b, c, and d that takes the place of c.
const DEVICES: usize = 4;

/// When a device may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// After a majority of the writes has landed. The rule.
    AfterMajority,
    /// After the own write on that device; only devices that were written and read count.
    DeviceByDevice,
}

/// The devices of which a majority counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    /// Those of the view before.
    Old,
    /// Those that the view names.
    New,
    /// A majority of each.
    Both,
}

impl On {
    fn is_enough(self, devices: u8) -> bool {
        match self {
            Self::Old => is_majority(devices, OLD),
            Self::New => is_majority(devices, NEW),
            Self::Both => is_majority(devices, OLD) && is_majority(devices, NEW),
        }
    }
}

/// The model with its rules. The giver does not know the view, so it uses the devices of the view before.
#[derive(Debug, Clone)]
pub(super) struct Acting {
    pub(super) actor: Order,
    pub(super) giver: Order,
    pub(super) record: On,
    pub(super) scan: On,
}

/// Devices, as bits, that one of the two has written and then read without finding the other's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Progress {
    written: u8,
    read: u8,
    /// It found the other's word: the actor does not act, the giver names the view.
    has_found: bool,
}

/// One state of the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    actor: Progress,
    giver: Progress,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    LandRecord(usize),
    Scan(usize),
    LandBallot(usize),
    ReadRecord(usize),
}

impl Acting {
    fn acts(&self, state: &State) -> bool {
        self.record.is_enough(state.actor.written) && self.scan.is_enough(state.actor.read) && !state.actor.has_found
    }

    fn is_given_up(state: &State) -> bool {
        is_majority(state.giver.written, OLD) && is_majority(state.giver.read, OLD) && !state.giver.has_found
    }

    fn may_read(order: Order, progress: &Progress, is_enough: bool, device: usize) -> bool {
        let is_turn = match order {
            Order::AfterMajority => is_enough,
            Order::DeviceByDevice => progress.written & bit(device) != 0,
        };
        is_turn && !progress.has_found && progress.read & bit(device) == 0
    }
}

impl Model for Acting {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State { actor: Progress::default(), giver: Progress::default() }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let (actor, giver) = (&state.actor, &state.giver);
        for d in 0..DEVICES {
            let is_old = OLD & bit(d) != 0;
            if actor.written & bit(d) == 0 {
                actions.push(Action::LandRecord(d));
            }
            if Self::may_read(self.actor, actor, self.record.is_enough(actor.written), d) {
                actions.push(Action::Scan(d));
            }
            if is_old && giver.written & bit(d) == 0 {
                actions.push(Action::LandBallot(d));
            }
            if is_old && Self::may_read(self.giver, giver, is_majority(giver.written, OLD), d) {
                actions.push(Action::ReadRecord(d));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        let State { actor, giver } = &mut state;
        match action {
            Action::LandRecord(d) => actor.written |= bit(d),
            Action::LandBallot(d) => giver.written |= bit(d),
            Action::Scan(d) if giver.written & bit(d) != 0 => actor.has_found = true,
            Action::Scan(d) => actor.read |= bit(d),
            Action::ReadRecord(d) if actor.written & bit(d) != 0 => giver.has_found = true,
            Action::ReadRecord(d) => giver.read |= bit(d),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(super::DISOWNED, |model: &Self, state: &State| !model.acts(state) || !Self::is_given_up(state)),
            Property::sometimes("the actor acts", |model: &Self, state: &State| model.acts(state)),
            Property::sometimes("the number is given up", |_, state: &State| Self::is_given_up(state)),
        ]
    }
}
