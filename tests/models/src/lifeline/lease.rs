//! What: lease, cycle, watchdog, feeder and observer, with clocks that drift and I/O delayed without bound.
//! Owns: the rules of a node's lease and of an observer's wait, and the mistakes planted in them.
//! Invariants: every time is an age or a remainder, capped where it no longer matters, so the state space is closed and
//!   the verdict holds for every horizon.
//! Does not: know pills or acknowledgements; see `pill`.
//! Called by: the list of cases in `lifeline`.
//!
//! A clock reading may be one tick old: a lease with remainder 0 still lets its node act in that tick.

use stateright::{Model, Property};

use crate::{Case, Scale, search};

const S5: &str = "S5 nobody acts past its lease";
const HEALTHY: &str = "L1 a healthy node is never reset";

/// What ends the acts of a node whose lease is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// Each act is checked against the lease; nothing kills the process, so it may live again.
    Checked,
    /// The machine dies exactly with its lease.
    Ideal,
    /// A watchdog that fires `reset` ticks after the last feed, fed while the lease has more than `margin` left.
    Watchdog { reset: u8, margin: u8 },
}

/// Longest delays of a healthy node and disk, in ticks.
#[derive(Clone, Copy, Debug)]
struct Health {
    poll: u8,
    cycle: u8,
    feed: u8,
    /// One cycle may take so much longer.
    stall: u8,
    /// Tmin: the watchdog may fire as soon after a feed.
    reset_early: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// The observer judges by the time at the end of a read, whenever it was issued.
    VerdictByEndOfRead,
    /// The observer counts from the issue of the read that showed the change.
    ObserverFromIssue,
    /// The node counts its lease from the completion of the cycle.
    LeaseFromCompletion,
    /// A cycle that completes after the lease's end renews it.
    LateCycleExtends,
    /// The observer believes a read that did not return its own newest beat.
    StalePathBelieved,
    /// The verdict does not wait for the commands that have left the node.
    LingerForgotten,
}

/// The model: parameters in ticks.
#[derive(Clone, Debug)]
struct Lease {
    lease: u8,
    wait: u8,
    guard: Guard,
    /// D: how long commands of a reset machine may still act.
    linger: u8,
    /// One tick in this many is missed by the node's clock (0: none).
    node_misses: u8,
    /// One tick in this many is doubled by the observer's clock (0: none).
    observer_doubles: u8,
    may_path_be_stale: bool,
    health: Option<Health>,
    mistake: Mistake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Machine {
    On,
    Crashed,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Cycle {
    Idle { age: u8 },
    Writing { age: u8, is_landed: bool },
    Reading { age: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sample {
    Same,
    New,
    Stale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Read {
    is_confirming: bool,
    /// Counted only where a mistake needs it.
    age: u8,
    sample: Option<Sample>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    machine: Machine,
    /// Ticks for which commands of the reset machine may still act.
    linger: u8,
    /// Remainder of the lease by the node's clock.
    lease: Option<u8>,
    cycle: Cycle,
    /// The one stall that a healthy node is to survive has been.
    has_stalled: bool,
    fed_age: u8,
    /// The feeder has compared and not yet fed.
    is_checked: bool,
    node_since_miss: u8,
    observer_since_double: u8,
    /// The beat on the disk differs from the one that the observer sampled last.
    is_beat_new: bool,
    is_path_stale: bool,
    /// Observer's clock since r0.
    silent: u8,
    read: Option<Read>,
    is_gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Tick { node_misses: bool, observer_doubles: bool },
    IssueBeat,
    LandBeat,
    CompleteBeat,
    CompleteCycle,
    CheckLease,
    Feed,
    Crash,
    PathTurnsStale,
    PathTurnsFresh,
    IssueRead,
    SampleRead,
    EndRead,
}

impl Lease {
    /// Ticks of silence after which a read may confirm.
    fn verdict_after(&self) -> u8 {
        match self.guard {
            Guard::Watchdog { .. } if self.mistake != Mistake::LingerForgotten => self.wait + self.linger,
            Guard::Checked | Guard::Ideal | Guard::Watchdog { .. } => self.wait,
        }
    }

    fn kill(&self, state: &mut State, how: Machine) {
        state.machine = how;
        state.linger = self.linger + 1;
        state.lease = None;
        state.cycle = match state.cycle {
            Cycle::Writing { is_landed: false, .. } => Cycle::Writing { age: 0, is_landed: false },
            Cycle::Idle { .. } | Cycle::Writing { .. } | Cycle::Reading { .. } => Cycle::Idle { age: 0 },
        };
        state.fed_age = 0;
        state.is_checked = false;
    }

    fn may_act(&self, state: &State) -> bool {
        match self.guard {
            Guard::Checked => state.lease.is_some(),
            Guard::Ideal | Guard::Watchdog { .. } => state.machine == Machine::On || state.linger > 0,
        }
    }

    /// A healthy node has something to do before time may pass.
    fn is_urgent(&self, state: &State) -> bool {
        let Some(health) = self.health else {
            return false;
        };
        if state.machine != Machine::On {
            return false;
        }
        let is_cycle_due = match state.cycle {
            Cycle::Idle { age } => age >= health.poll,
            Cycle::Writing { age, .. } | Cycle::Reading { age } => age >= health.cycle + if state.has_stalled { 0 } else { health.stall },
        };
        let is_feed_due = state.fed_age >= health.feed && (state.is_checked || self.passes(state));
        is_cycle_due || is_feed_due
    }

    fn passes(&self, state: &State) -> bool {
        match (self.guard, state.lease) {
            (Guard::Watchdog { margin, .. }, Some(left)) => left >= margin,
            (Guard::Checked | Guard::Ideal, _) | (Guard::Watchdog { .. }, None) => false,
        }
    }

    fn tick(&self, state: &mut State, node_misses: bool, observer_doubles: bool) {
        if state.machine == Machine::On {
            if let Guard::Watchdog { reset, .. } = self.guard {
                let reset = self.health.map_or(reset, |health| health.reset_early);
                if state.fed_age >= reset {
                    self.kill(state, Machine::Reset);
                } else {
                    state.fed_age += 1;
                }
            }
            if self.guard == Guard::Ideal && state.lease == Some(0) && !node_misses {
                self.kill(state, Machine::Reset);
            }
        }
        state.linger = state.linger.saturating_sub(1);
        if state.machine == Machine::On && !node_misses {
            state.lease = state.lease.and_then(|left| left.checked_sub(1));
            let cap = self.lease + 1;
            state.cycle = match state.cycle {
                Cycle::Idle { age } if self.health.is_some() => Cycle::Idle { age: cap.min(age + 1) },
                Cycle::Writing { age, is_landed } => Cycle::Writing { age: cap.min(age + 1), is_landed },
                Cycle::Reading { age } => Cycle::Reading { age: cap.min(age + 1) },
                idle @ Cycle::Idle { .. } => idle,
            };
        }
        state.node_since_miss = since(state.node_since_miss, node_misses, self.node_misses);
        state.observer_since_double = since(state.observer_since_double, observer_doubles, self.observer_doubles);
        if !state.is_gone {
            let cap = self.verdict_after();
            let step = if observer_doubles { 2 } else { 1 };
            state.silent = cap.min(state.silent + step);
            if let Some(read) = &mut state.read
                && self.mistake == Mistake::ObserverFromIssue
            {
                read.age = cap.min(read.age + step);
            }
        }
    }

    fn complete_cycle(&self, state: &mut State, age: u8) {
        state.cycle = Cycle::Idle { age: 0 };
        if let Some(health) = self.health
            && age > health.cycle
        {
            // The next cycle follows a late one at once.
            state.has_stalled = true;
            state.cycle = Cycle::Idle { age: health.poll };
        }
        if state.lease.is_none() && self.mistake != Mistake::LateCycleExtends {
            return;
        }
        let age = if self.mistake == Mistake::LeaseFromCompletion { 0 } else { age };
        if let Some(left) = self.lease.checked_sub(age) {
            state.lease = Some(state.lease.map_or(left, |old| old.max(left)));
        }
    }

    fn end_read(&self, state: &mut State, read: Read, sample: Sample) {
        state.read = None;
        match sample {
            Sample::New => state.silent = read.age,
            Sample::Stale if self.mistake != Mistake::StalePathBelieved => {}
            Sample::Same | Sample::Stale => {
                let is_over =
                    if self.mistake == Mistake::VerdictByEndOfRead { state.silent >= self.verdict_after() } else { read.is_confirming };
                if is_over {
                    state.is_gone = true;
                    state.silent = 0;
                    state.is_path_stale = false;
                }
            }
        }
    }

    fn node_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let is_on = state.machine == Machine::On;
        match state.cycle {
            Cycle::Idle { .. } if is_on => actions.push(Action::IssueBeat),
            Cycle::Writing { is_landed: false, .. } if is_on || state.linger > 0 => actions.push(Action::LandBeat),
            Cycle::Writing { is_landed: true, .. } if is_on => actions.push(Action::CompleteBeat),
            Cycle::Reading { .. } if is_on => actions.push(Action::CompleteCycle),
            Cycle::Idle { .. } | Cycle::Writing { .. } | Cycle::Reading { .. } => {}
        }
        if is_on && self.guard != Guard::Checked && self.health.is_none() {
            actions.push(Action::Crash);
        }
        if is_on && state.is_checked {
            actions.push(Action::Feed);
        } else if is_on && self.passes(state) {
            actions.push(Action::CheckLease);
        }
    }

    fn observer_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.is_gone {
            return;
        }
        if self.may_path_be_stale {
            actions.push(if state.is_path_stale { Action::PathTurnsFresh } else { Action::PathTurnsStale });
        }
        actions.push(match state.read {
            None => Action::IssueRead,
            Some(Read { sample: None, .. }) => Action::SampleRead,
            Some(Read { sample: Some(_), .. }) => Action::EndRead,
        });
    }

    fn apply_node(&self, next: &mut State, action: Action) {
        match (action, next.cycle) {
            (Action::IssueBeat, _) => {
                next.cycle = Cycle::Writing { age: 0, is_landed: false };
            }
            (Action::LandBeat, Cycle::Writing { age, .. }) => {
                next.is_beat_new = true;
                next.cycle = if next.machine == Machine::On { Cycle::Writing { age, is_landed: true } } else { Cycle::Idle { age: 0 } };
            }
            (Action::CompleteBeat, Cycle::Writing { age, .. }) => {
                next.cycle = Cycle::Reading { age };
            }
            (Action::CompleteCycle, Cycle::Reading { age }) => self.complete_cycle(next, age),
            (Action::CheckLease, _) => next.is_checked = true,
            (Action::Feed, _) => {
                next.is_checked = false;
                next.fed_age = 0;
            }
            (Action::Crash, _) => self.kill(next, Machine::Crashed),
            _ => unreachable!("only offered actions are applied"),
        }
    }
}

/// Ticks since the last irregular one, capped where the next is allowed.
fn since(old: u8, is_irregular: bool, period: u8) -> u8 {
    if is_irregular { 1 } else { period.min(old + 1) }
}

impl Model for Lease {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            machine: Machine::On,
            linger: 0,
            lease: Some(self.lease),
            cycle: Cycle::Idle { age: 0 },
            has_stalled: false,
            fed_age: 0,
            is_checked: false,
            node_since_miss: self.node_misses,
            observer_since_double: self.observer_doubles,
            is_beat_new: true,
            is_path_stale: false,
            silent: 0,
            read: None,
            is_gone: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.node_actions(state, actions);
        self.observer_actions(state, actions);
        if self.is_urgent(state) {
            return;
        }
        let may_miss = self.node_misses > 0 && state.node_since_miss >= self.node_misses;
        let may_double = self.observer_doubles > 0 && state.observer_since_double >= self.observer_doubles;
        for node_misses in [false, true] {
            for observer_doubles in [false, true] {
                if (!node_misses || may_miss) && (!observer_doubles || may_double) {
                    actions.push(Action::Tick { node_misses, observer_doubles });
                }
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Tick { node_misses, observer_doubles } => self.tick(&mut next, node_misses, observer_doubles),
            Action::PathTurnsStale => next.is_path_stale = true,
            Action::PathTurnsFresh => next.is_path_stale = false,
            Action::IssueRead => {
                next.read = Some(Read { is_confirming: state.silent >= self.verdict_after(), age: 0, sample: None });
            }
            Action::SampleRead => {
                let sample = match (state.is_path_stale, state.is_beat_new) {
                    (true, _) => Sample::Stale,
                    (false, true) => Sample::New,
                    (false, false) => Sample::Same,
                };
                if sample == Sample::New {
                    next.is_beat_new = false;
                }
                next.read = state.read.map(|read| Read { sample: Some(sample), ..read });
            }
            Action::EndRead => {
                let read = state.read?;
                self.end_read(&mut next, read, read.sample?);
            }
            Action::IssueBeat
            | Action::LandBeat
            | Action::CompleteBeat
            | Action::CompleteCycle
            | Action::CheckLease
            | Action::Feed
            | Action::Crash => self.apply_node(&mut next, action),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::always(S5, |model: &Self, state: &State| !state.is_gone || !model.may_act(state))];
        if self.health.is_some() {
            // The observer's verdict is out of reach here, and that is the point.
            properties.push(Property::always(HEALTHY, |_, state: &State| state.machine != Machine::Reset && !state.is_gone));
            return properties;
        }
        properties.push(Property::sometimes("gone is said", |_, state: &State| state.is_gone));
        if self.guard != Guard::Checked {
            properties.push(Property::sometimes("a node is reset", |_, state: &State| state.machine == Machine::Reset));
            properties.push(Property::sometimes("a crashed node is said gone", |_, state: &State| {
                state.machine == Machine::Crashed && state.is_gone
            }));
        }
        properties
    }
}

/// Lease 4, wait 5, each act checked, nothing drifts.
const CHECKED: Lease = Lease {
    lease: 4,
    wait: 5,
    guard: Guard::Checked,
    linger: 0,
    node_misses: 0,
    observer_doubles: 0,
    may_path_be_stale: false,
    health: None,
    mistake: Mistake::None,
};

/// T 2, L 6, W 7, D 1, margin 2 T.
const WATCHDOG: Lease = Lease { lease: 6, wait: 7, guard: Guard::Watchdog { reset: 2, margin: 4 }, linger: 1, ..CHECKED };

/// T 3, fired one tick early at worst; the design's formula asks for stall + poll + 3 cycles + feed + 2 T - Tmin = 17.
fn healthy(lease: u8) -> Lease {
    let health = Health { poll: 2, cycle: 2, feed: 2, stall: 3, reset_early: 2 };
    let guard = Guard::Watchdog { reset: 3, margin: 6 };
    Lease { lease, wait: lease + 1, guard, health: Some(health), ..WATCHDOG }
}

/// The least W that holds with D 1; a longer D runs too fast on the observer's clock.
fn fast_linger(linger: u8) -> Lease {
    Lease { wait: 10, linger, node_misses: 4, observer_doubles: 4, ..WATCHDOG }
}

fn run(model: &Lease, scale: Scale) -> crate::Outcome {
    search(model.clone(), scale)
}

fn case(name: &'static str, model: Lease) -> Case {
    Case::holds(name, move |scale| run(&model, scale))
}

fn mistake(name: &'static str, property: &'static str, model: Lease) -> Case {
    Case::found(name, property, move |scale| run(&model, scale))
}

/// The rules that must hold.
pub(crate) fn rules() -> Vec<Case> {
    let drift = |wait, observer_doubles| Lease { wait, node_misses: 4, observer_doubles, ..CHECKED };
    vec![
        case("lease: confirming read issued after r0 + W", CHECKED),
        case("lease: a slow node's clock, drift 1/4, W 7", drift(7, 0)),
        case("lease: both clocks drift by 1/4, W 9", drift(9, 4)),
        case("lease: watchdog, margin 2 T", WATCHDOG),
        case("lease: watchdog, margin 2 T, both clocks drift by 1/4", Lease { wait: 12, node_misses: 4, observer_doubles: 4, ..WATCHDOG }),
        case("lease: both clocks drift by 1/4, W 10, D 1", fast_linger(1)),
        case("lease: a path that turns stale is not counted", Lease { may_path_be_stale: true, ..WATCHDOG }),
        case(
            "lease: counted from completion, killed at its end, W 2 L + 1",
            Lease { wait: 9, guard: Guard::Ideal, mistake: Mistake::LeaseFromCompletion, ..CHECKED },
        ),
        Case::holds("lease: watchdog, D 2, both clocks drift, stale paths", |scale| {
            run(
                &Lease {
                    lease: scale.pick(6, 9),
                    wait: scale.pick(12, 18),
                    guard: Guard::Watchdog { reset: scale.pick(2, 3), margin: scale.pick(4, 6) },
                    linger: 2,
                    node_misses: 4,
                    observer_doubles: 4,
                    may_path_be_stale: true,
                    ..CHECKED
                },
                scale,
            )
        }),
        case("lease: L by its formula outlives a stall, poll 2, cycle 2, feed 2, stall 3", healthy(17)),
        case("lease: L by its formula outlives a stall, poll 1, cycle 1, feed 1, stall 3", {
            let health = Health { poll: 1, cycle: 1, feed: 1, stall: 3, reset_early: 1 };
            Lease { lease: 11, wait: 12, health: Some(health), ..WATCHDOG }
        }),
    ]
}

/// The planted mistakes that must be found.
pub(crate) fn mistakes() -> Vec<Case> {
    let planted = |mistake| Lease { mistake, ..CHECKED };
    vec![
        mistake("lease: W equal to L", S5, Lease { wait: 4, ..CHECKED }),
        mistake("lease: verdict at the end of a read issued earlier, W 5", S5, planted(Mistake::VerdictByEndOfRead)),
        mistake("lease: verdict at the end of a read issued earlier, W 8", S5, Lease { wait: 8, ..planted(Mistake::VerdictByEndOfRead) }),
        mistake("lease: observer counts from the issue of its read, W 5", S5, planted(Mistake::ObserverFromIssue)),
        mistake("lease: observer counts from the issue of its read, W 12", S5, Lease { wait: 12, ..planted(Mistake::ObserverFromIssue) }),
        mistake("lease: counted from completion, W 5", S5, planted(Mistake::LeaseFromCompletion)),
        mistake(
            "lease: counted from completion, killed at its end, W 5",
            S5,
            Lease { guard: Guard::Ideal, ..planted(Mistake::LeaseFromCompletion) },
        ),
        mistake("lease: a late cycle extends the lease", S5, planted(Mistake::LateCycleExtends)),
        mistake("lease: a late cycle extends the lease, W 12", S5, Lease { wait: 12, ..planted(Mistake::LateCycleExtends) }),
        mistake("lease: check and feed apart, margin T", S5, Lease { guard: Guard::Watchdog { reset: 2, margin: 2 }, ..WATCHDOG }),
        mistake(
            "lease: check and feed apart, margin one tick below 2 T",
            S5,
            Lease { guard: Guard::Watchdog { reset: 2, margin: 3 }, ..WATCHDOG },
        ),
        mistake("lease: a slow node's clock, drift 1/4, W 6", S5, Lease { wait: 6, node_misses: 4, ..CHECKED }),
        mistake("lease: D forgotten in the verdict", S5, Lease { mistake: Mistake::LingerForgotten, ..WATCHDOG }),
        mistake("lease: a stale path is believed", S5, Lease { may_path_be_stale: true, mistake: Mistake::StalePathBelieved, ..WATCHDOG }),
        mistake("lease: both clocks drift by 1/4, W 8", S5, Lease { wait: 8, node_misses: 4, observer_doubles: 4, ..CHECKED }),
        mistake("lease: both clocks drift by 1/4, W 10, D 4 not lengthened by the drift", S5, fast_linger(4)),
        mistake("lease: L without room for the stall", HEALTHY, healthy(13)),
    ]
}
