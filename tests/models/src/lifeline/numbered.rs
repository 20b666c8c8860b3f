//! What: the daemon's numbered bytes in the beat: from when a word of the daemon counts as said, and what a fresh beat is worth.
//! Owns: the rule that only what is complete on a majority of devices counts, and the mistakes planted in it.
//! Invariants: one write on its way per device; a write lands at any later time, or never after the node's end; a reader takes the
//!   devices in any order and believes the newest number.
//! Does not: know what the bytes say; a grant under *holds*, *left*, a score and a consent all need the same.
//! Called by: the list of cases in `lifeline`.

use stateright::{Model, Property};

use crate::{Case, Outcome, Scale, search, search_dead_ends};

const SAID: &str = "S9 what counts as said is found by every later reader";
const ENDS: &str = "L3 a hung daemon loses its edges";

const DEVICES: usize = 3;

/// When the daemon takes a number as said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    /// A write that carries it is complete on a majority of devices.
    OnMajority,
    /// It was left for sbd.
    WhenHandedOver,
    /// A write that carries it was issued.
    WhenIssued,
    /// A write that carries it is complete on one device.
    OnOneDevice,
}

#[derive(Clone, Debug)]
struct Numbered {
    /// How often the daemon says something new.
    numbers: u8,
    counted: Counted,
}

/// Somebody who reads the node's unit on each device after a word had counted as said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Reader {
    /// What had counted when it began.
    counted: u8,
    newest: u8,
    devices_read: u8,
}

impl Reader {
    fn has_read(&self) -> bool {
        usize::from(self.devices_read) * 2 > DEVICES
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Device {
    number: u8,
    /// Number in the write on its way.
    air: Option<u8>,
    /// The present reader has read it.
    is_read: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    is_on: bool,
    /// Number of the bytes that the daemon has left for sbd.
    page: u8,
    /// Number in the last beat that was issued.
    issued: u8,
    /// What the daemon has acted on as said.
    counted: u8,
    devices: [Device; DEVICES],
    reader: Option<Reader>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Say,
    IssueBeat,
    Land(usize),
    Act,
    Die,
    BeginRead,
    Read(usize),
}

impl Numbered {
    /// The newest number that the daemon takes as said.
    fn said(&self, state: &State) -> u8 {
        let mut complete = state.devices.map(|device| device.number);
        complete.sort_unstable();
        match self.counted {
            Counted::OnMajority => complete[DEVICES / 2],
            Counted::OnOneDevice => complete[DEVICES - 1],
            Counted::WhenIssued => state.issued,
            Counted::WhenHandedOver => state.page,
        }
    }
}

impl Model for Numbered {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State { is_on: true, page: 0, issued: 0, counted: 0, devices: Default::default(), reader: None }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.is_on {
            actions.push(Action::Die);
            if state.page < self.numbers {
                actions.push(Action::Say);
            }
            if state.devices.iter().any(|device| device.air.is_none() && device.number < state.page) {
                actions.push(Action::IssueBeat);
            }
            if self.said(state) > state.counted {
                actions.push(Action::Act);
            }
        }
        for (d, device) in state.devices.iter().enumerate() {
            if device.air.is_some() {
                actions.push(Action::Land(d));
            }
            if state.reader.is_some() && !device.is_read {
                actions.push(Action::Read(d));
            }
        }
        if state.reader.is_none() && state.counted > 0 {
            actions.push(Action::BeginRead);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Say => state.page += 1,
            Action::IssueBeat => {
                state.issued = state.page;
                for device in state.devices.iter_mut().filter(|device| device.air.is_none()) {
                    device.air = Some(state.page);
                }
            }
            Action::Land(d) => state.devices[d].number = state.devices[d].air.take()?,
            Action::Act => state.counted = self.said(&state),
            Action::Die => state.is_on = false,
            Action::BeginRead => state.reader = Some(Reader { counted: state.counted, newest: 0, devices_read: 0 }),
            Action::Read(d) => {
                let device = &mut state.devices[d];
                device.is_read = true;
                let reader = state.reader.as_mut()?;
                reader.newest = reader.newest.max(device.number);
                reader.devices_read += 1;
            }
        }
        state.devices.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SAID, |_, state: &State| {
                state.reader.is_none_or(|reader| !reader.has_read() || reader.newest >= reader.counted)
            }),
            Property::sometimes("the last word counts before it is on every device", |model: &Self, state: &State| {
                state.counted == model.numbers && state.devices.iter().any(|device| device.number < model.numbers)
            }),
            Property::sometimes("a dead node's word is found", |model: &Self, state: &State| {
                !state.is_on && state.reader.is_some_and(|reader| reader.has_read() && reader.newest == model.numbers)
            }),
        ]
    }
}

/// A peer judges the edge to a node whose sbd beats in every tick and whose daemon may hang.
#[derive(Clone, Debug)]
struct Edge {
    /// Ticks without a change after which something is no longer fresh.
    window: u8,
    /// The mistake: a beat is fresh whatever the daemon's number says.
    is_beat_enough: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seen {
    is_hung: bool,
    beat_age: u8,
    number_age: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Tick,
    /// sbd writes a beat; a daemon that runs has said something new since the last one.
    Beat,
    Hang,
}

impl Edge {
    fn is_missing(&self, seen: &Seen) -> bool {
        seen.beat_age > self.window || (seen.number_age > self.window && !self.is_beat_enough)
    }
}

impl Model for Edge {
    type State = Seen;
    type Action = Event;

    fn init_states(&self) -> Vec<Seen> {
        vec![Seen { is_hung: false, beat_age: 0, number_age: 0 }]
    }

    fn actions(&self, seen: &Seen, actions: &mut Vec<Event>) {
        actions.push(if seen.beat_age == 0 { Event::Tick } else { Event::Beat });
        if !seen.is_hung {
            actions.push(Event::Hang);
        }
    }

    fn next_state(&self, before: &Seen, event: Event) -> Option<Seen> {
        let mut seen = before.clone();
        match event {
            Event::Tick => {
                seen.beat_age += 1;
                seen.number_age = (seen.number_age + 1).min(self.window + 1);
            }
            Event::Beat => {
                seen.beat_age = 0;
                if !seen.is_hung {
                    seen.number_age = 0;
                }
            }
            Event::Hang => seen.is_hung = true,
        }
        Some(seen)
    }
}

fn edge(is_beat_enough: bool, scale: Scale) -> Outcome {
    let model = Edge { window: scale.pick(3, 10), is_beat_enough };
    search_dead_ends(&model, ENDS, scale, |seen| model.is_missing(seen))
}

/// The rules that must hold.
pub(crate) fn rules() -> Vec<Case> {
    vec![
        Case::holds("numbered: counts when complete on a majority", |scale| {
            search(Numbered { numbers: scale.pick(2, 4), counted: Counted::OnMajority }, scale)
        }),
        Case::holds("numbered: a fresh beat over a stale number is no fresh beat", |scale| edge(false, scale)),
    ]
}

/// The planted mistakes that must be found.
pub(crate) fn mistakes() -> Vec<Case> {
    let too_early = |name, counted| Case::found(name, SAID, move |scale| search(Numbered { numbers: 1, counted }, scale));
    vec![
        too_early("numbered: counts when handed to sbd", Counted::WhenHandedOver),
        too_early("numbered: counts when issued", Counted::WhenIssued),
        too_early("numbered: counts on one of three devices", Counted::OnOneDevice),
        Case::found("numbered: a fresh beat is enough for an edge", ENDS, |scale| edge(true, scale)),
    ]
}
