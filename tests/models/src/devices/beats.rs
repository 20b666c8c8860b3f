//! What: beats and silence on three devices.
//! Owns: a node's beat on every device, its lease, and an observer that reads each device apart.
//! Invariants: writes land and reads are sampled at any later time; ages are capped, only the number of beats is bounded.
//! Does not: model feeder, watchdog, D, drift or stale paths (`crate::lifeline` does, on one device).
//! Called by: `super::cases`.
//!
//! A clock reading may be one tick old: a lease with remainder 0 still lets its node act in that tick.

use stateright::{Model, Property};

use super::{OLD, bit, is_majority};

const DEVICES: usize = 3;

/// A departure from the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mistake {
    None,
    /// A beat that is complete on one device renews the lease.
    LeaseByOneDevice,
    /// Silence on one device is silence.
    SilenceOnOneDevice,
    /// News on one device leaves what was confirmed on another.
    NewsForgotten,
    /// A device takes a beat and loses it.
    BeatLost,
}

/// The model: parameters in ticks.
#[derive(Debug, Clone)]
pub(super) struct Beats {
    pub(super) lease: u8,
    pub(super) wait: u8,
    /// How many beats the node writes.
    pub(super) beats: u8,
    pub(super) mistake: Mistake,
}

/// The observer's read of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Read {
    /// It was issued when the wait was over.
    is_confirming: bool,
    sample: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Device {
    /// Newest beat on it.
    beat: u8,
    /// The write in the air.
    air: Option<u8>,
    /// What the observer saw last.
    seen: u8,
    read: Option<Read>,
    /// A whole wait without a change.
    is_silent: bool,
}

/// One state of the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    devices: [Device; DEVICES],
    beat: u8,
    /// Since the issue of the newest beat.
    age: u8,
    /// Remainder of the lease.
    lease: Option<u8>,
    /// Since the end of the read that showed the last change.
    silent: u8,
    is_lost: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Tick,
    IssueBeat,
    LandBeat(usize),
    LoseBeat(usize),
    IssueRead(usize),
    SampleRead(usize),
    EndRead(usize),
}

impl Beats {
    fn is_complete(&self, state: &State) -> bool {
        let landed = (0..DEVICES).filter(|d| state.devices[*d].air != Some(state.beat) && state.devices[*d].beat == state.beat);
        let landed = landed.fold(0, |landed, d| landed | bit(d));
        is_majority(landed, OLD) || (self.mistake == Mistake::LeaseByOneDevice && landed != 0)
    }

    fn is_gone(&self, state: &State) -> bool {
        let silent = (0..DEVICES).filter(|d| state.devices[*d].is_silent).fold(0, |silent, d| silent | bit(d));
        is_majority(silent, OLD) || (self.mistake == Mistake::SilenceOnOneDevice && silent != 0)
    }

    fn land(&self, state: &mut State, d: usize) -> Option<()> {
        let device = &mut state.devices[d];
        device.beat = device.air.take()?;
        if device.beat < state.beat {
            // A newer beat was issued while this one was in the air.
            device.air = Some(state.beat);
        } else if state.lease.is_some() && self.is_complete(state) {
            state.lease = state.lease.max(self.lease.checked_sub(state.age));
        }
        Some(())
    }

    fn end_read(&self, state: &mut State, d: usize) -> Option<()> {
        let newest = state.devices.iter().map(|device| device.seen).max().unwrap_or_default();
        let device = &mut state.devices[d];
        let Read { is_confirming, sample } = device.read.take()?;
        let sample = sample?;
        if sample == device.seen {
            device.is_silent |= is_confirming;
            return Some(());
        }
        let is_first_look = device.seen == 0;
        device.seen = sample;
        if sample <= newest && is_first_look {
            // The same beat on a second device is no change.
            device.is_silent |= is_confirming;
            return Some(());
        }
        state.silent = 0;
        if self.mistake != Mistake::NewsForgotten {
            for device in &mut state.devices {
                device.is_silent = false;
                device.read = device.read.map(|read| Read { is_confirming: false, ..read });
            }
        }
        Some(())
    }
}

impl Model for Beats {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let device = Device { beat: 1, ..Device::default() };
        vec![State { devices: [device; DEVICES], beat: 1, age: 0, lease: Some(self.lease), silent: 0, is_lost: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if self.is_gone(state) {
            return;
        }
        actions.push(Action::Tick);
        if state.lease.is_some() && state.beat < self.beats && self.is_complete(state) {
            actions.push(Action::IssueBeat);
        }
        for (d, device) in state.devices.iter().enumerate() {
            if device.air.is_some() {
                actions.push(Action::LandBeat(d));
            }
            if self.mistake == Mistake::BeatLost && !state.is_lost && device.air.is_none() && device.beat > 1 {
                actions.push(Action::LoseBeat(d));
            }
            actions.push(match device.read {
                None => Action::IssueRead(d),
                Some(Read { sample: None, .. }) => Action::SampleRead(d),
                Some(_) => Action::EndRead(d),
            });
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Tick => {
                state.age = (state.age + 1).min(self.lease + 1);
                state.silent = (state.silent + 1).min(self.wait);
                state.lease = state.lease.and_then(|left| left.checked_sub(1));
            }
            Action::IssueBeat => {
                state.beat += 1;
                state.age = 0;
                let beat = state.beat;
                state.devices.iter_mut().for_each(|device| device.air = device.air.or(Some(beat)));
            }
            Action::LandBeat(d) => self.land(&mut state, d)?,
            Action::LoseBeat(d) => {
                state.devices[d].beat -= 1;
                state.is_lost = true;
            }
            Action::IssueRead(d) => state.devices[d].read = Some(Read { is_confirming: state.silent >= self.wait, sample: None }),
            Action::SampleRead(d) => {
                let device = &mut state.devices[d];
                let sample = Some(device.beat);
                device.read = device.read.map(|read| Read { sample, ..read });
            }
            Action::EndRead(d) => self.end_read(&mut state, d)?,
        }
        state.devices.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(super::S5, |model: &Self, state: &State| state.lease.is_none() || !model.is_gone(state)),
            Property::sometimes("gone is said after the last beat", |model: &Self, state: &State| {
                model.is_gone(state) && state.beat == model.beats
            }),
            Property::sometimes("gone is said while a device does not answer", |model: &Self, state: &State| {
                model.is_gone(state) && state.devices.iter().any(|device| device.seen == 0)
            }),
        ]
    }
}
