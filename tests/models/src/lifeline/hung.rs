//! What: a daemon that hangs or dies beside a living sbd, its client's lock, and a node that waits outside for its turn.
//! Owns: the rules of the turn counter, of the word `holds` and of the record `held nothing`, and the mistakes planted in them.
//! Invariants: times are capped ages and remainders: the state space is closed, every horizon is covered.
//! Does not: delay I/O or split check and feed; see `lease`.
//! Called by: the list of cases in `lifeline`.
//!
//! The daemon is the only member of its view. Whoever waits outside fences nobody: it goes on when the daemon answers, when
//! the record says that nothing was held, or when the node's beat was silent for W + D.

use stateright::{Model, Property};

use crate::{Case, Outcome, Scale, search, search_dead_ends};

const S3: &str = "S3 nothing is taken over before the holder is gone";
const S5: &str = "S5 nobody acts past its lease";
const STUCK: &str = "L1 no dead end";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// sbd does not watch the daemon's turns.
    NoTurnCounter,
    /// sbd beats on when the daemon died while it held something.
    BeatsOnWithHolds,
    /// sbd records that a daemon held nothing, whatever the word says.
    RecordsWithHolds,
    /// The grant leaves before the word is set.
    GrantBeforeHolds,
    /// The word is cleared before the lock is given back.
    ClearBeforeGiveBack,
    /// A hung daemon is judged by the word, as a dead one is.
    HungJudgedByWord,
    /// The word is read before the daemon's end is certain.
    WordBeforeReaping,
    /// The restarted daemon counts as gone although its client still holds.
    RestartIsEvidence,
}

#[derive(Clone, Debug)]
struct Hung {
    lease: u8,
    reset: u8,
    linger: u8,
    /// Ticks without a turn after which the daemon counts as dead with the word set.
    stall: u8,
    /// Ticks for which sbd waits for a new daemon.
    window: u8,
    /// A stopped daemon may be continued (a safety search); else it hangs for ever (a search for dead ends).
    may_continue: bool,
    mistake: Mistake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Daemon {
    Running,
    Hung,
    Dead,
    /// A new incarnation: holds nothing of its own, asks to be let in, answers whoever waits.
    Restarted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sbd {
    Beating,
    /// Saw the word clear too early: the record follows whatever happens since.
    Recording,
    /// The daemon is dead and held nothing: beats on for so many ticks.
    Waiting {
        left: u8,
    },
    /// No more cycles; the watchdog ends it.
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    is_on: bool,
    linger: u8,
    lease: Option<u8>,
    fed_age: u8,
    sbd: Sbd,
    daemon: Daemon,
    turn_age: u8,
    holds: bool,
    /// A client has a lock and acts under it.
    is_granted: bool,
    is_recorded: bool,
    is_beat_new: bool,
    silent: u8,
    is_confirming: Option<bool>,
    is_taken_over: bool,
    is_served: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Tick,
    Cycle,
    Feed,
    Turn,
    SetHolds,
    Grant,
    GiveBack,
    ClearHolds,
    Hang,
    Continue,
    Die,
    ReadWordEarly,
    JudgeHung,
    JudgeDead,
    Record,
    Restart,
    Answer,
    IssueRead,
    EndRead,
    TakeOver,
}

impl Hung {
    fn wait(&self) -> u8 {
        self.lease + 1 + self.linger
    }

    fn kill(&self, state: &mut State) {
        state.is_on = false;
        state.linger = self.linger + 1;
        state.lease = None;
        state.fed_age = 0;
        state.sbd = Sbd::Stopped;
        state.daemon = Daemon::Dead;
        state.turn_age = 0;
        state.holds = false;
    }

    fn tick(&self, state: &mut State) {
        if state.is_on {
            if state.fed_age >= self.reset {
                self.kill(state);
            } else {
                state.fed_age += 1;
            }
        }
        state.linger = state.linger.saturating_sub(1);
        state.lease = state.lease.and_then(|left| left.checked_sub(1));
        if state.is_on && matches!(state.daemon, Daemon::Running | Daemon::Hung) {
            state.turn_age = (self.stall + 1).min(state.turn_age + 1);
        }
        if let Sbd::Waiting { left } = state.sbd {
            state.sbd = left.checked_sub(1).map_or(Sbd::Stopped, |left| Sbd::Waiting { left });
        }
        if !state.is_taken_over {
            state.silent = self.wait().min(state.silent + 1);
        }
    }

    fn daemon_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.daemon == Daemon::Hung && self.may_continue {
            actions.push(Action::Continue);
        }
        if state.daemon == Daemon::Running || (state.daemon == Daemon::Hung && self.may_continue) {
            actions.push(Action::Die);
        }
        // A client gives its lock back whenever it likes; its daemon hears of it on a turn.
        if state.is_granted {
            actions.push(Action::GiveBack);
        }
        if state.daemon == Daemon::Dead && matches!(state.sbd, Sbd::Waiting { .. }) && state.is_recorded {
            actions.push(Action::Restart);
        }
        if state.daemon != Daemon::Running {
            return;
        }
        actions.push(Action::Hang);
        if state.turn_age > 0 {
            actions.push(Action::Turn);
        }
        let may_clear = !state.is_granted || self.mistake == Mistake::ClearBeforeGiveBack;
        if !state.holds && state.lease.is_some() {
            actions.push(Action::SetHolds);
        } else if state.holds && may_clear {
            actions.push(Action::ClearHolds);
        }
        let may_grant = state.holds || self.mistake == Mistake::GrantBeforeHolds;
        if may_grant && !state.is_granted && state.lease.is_some() {
            actions.push(Action::Grant);
        }
    }

    fn sbd_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.sbd == Sbd::Stopped {
            return;
        }
        actions.push(Action::Cycle);
        let has_lease = state.lease.is_some_and(|left| left >= 2 * self.reset);
        if has_lease && state.fed_age > 0 {
            actions.push(Action::Feed);
        }
        match state.sbd {
            Sbd::Beating => {
                let is_ignored = state.holds && self.mistake == Mistake::BeatsOnWithHolds;
                if state.daemon == Daemon::Dead && !is_ignored {
                    actions.push(Action::JudgeDead);
                }
                let is_late = state.turn_age > self.stall && self.mistake != Mistake::NoTurnCounter;
                if is_late && matches!(state.daemon, Daemon::Running | Daemon::Hung) {
                    actions.push(Action::JudgeHung);
                }
                if self.mistake == Mistake::WordBeforeReaping && !state.holds {
                    actions.push(Action::ReadWordEarly);
                }
            }
            Sbd::Recording if state.daemon == Daemon::Dead => actions.push(Action::Record),
            Sbd::Waiting { .. } if !state.is_recorded => actions.push(Action::Record),
            Sbd::Recording | Sbd::Waiting { .. } | Sbd::Stopped => {}
        }
    }

    fn outside_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.is_taken_over || state.is_served {
            return;
        }
        if matches!(state.daemon, Daemon::Running | Daemon::Restarted) && state.lease.is_some() {
            actions.push(Action::Answer);
        }
        actions.push(if state.is_confirming.is_some() { Action::EndRead } else { Action::IssueRead });
        let is_restart_believed = self.mistake == Mistake::RestartIsEvidence && state.daemon == Daemon::Restarted;
        if state.is_recorded || is_restart_believed {
            actions.push(Action::TakeOver);
        }
    }

    fn judge(&self, state: &mut State, action: Action) {
        let by_word = action == Action::JudgeDead || self.mistake == Mistake::HungJudgedByWord;
        let is_clear = by_word && !state.holds;
        if action == Action::JudgeDead && self.mistake == Mistake::RestartIsEvidence {
            // A new daemon comes up at once, over the old one's locks.
            state.daemon = Daemon::Restarted;
            return;
        }
        state.sbd = if is_clear || self.mistake == Mistake::RecordsWithHolds { Sbd::Waiting { left: self.window } } else { Sbd::Stopped };
    }

    fn apply_daemon(state: &mut State, action: Action) {
        match action {
            Action::Turn => state.turn_age = 0,
            Action::SetHolds => state.holds = true,
            Action::Grant => state.is_granted = true,
            Action::GiveBack => state.is_granted = false,
            Action::ClearHolds => state.holds = false,
            Action::Hang => state.daemon = Daemon::Hung,
            Action::Continue => state.daemon = Daemon::Running,
            Action::Die => {
                state.daemon = Daemon::Dead;
                state.turn_age = 0;
            }
            Action::Restart => {
                state.daemon = Daemon::Restarted;
                state.sbd = Sbd::Beating;
            }
            _ => unreachable!("only offered actions are applied"),
        }
    }
}

fn may_act(state: &State) -> bool {
    state.is_granted && (state.is_on || state.linger > 0)
}

impl Model for Hung {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            is_on: true,
            linger: 0,
            lease: Some(self.lease),
            fed_age: 0,
            sbd: Sbd::Beating,
            daemon: Daemon::Running,
            turn_age: 0,
            holds: false,
            is_granted: false,
            is_recorded: false,
            is_beat_new: true,
            silent: 0,
            is_confirming: None,
            is_taken_over: false,
            is_served: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // Nothing hangs but the daemon: in a search for dead ends a beating sbd beats and feeds in every tick.
        let is_due = state.is_on && state.sbd != Sbd::Stopped && (state.lease != Some(self.lease) || state.fed_age > 0);
        if self.may_continue || !is_due {
            actions.push(Action::Tick);
        }
        if state.is_on {
            self.daemon_actions(state, actions);
            self.sbd_actions(state, actions);
        }
        self.outside_actions(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Tick => self.tick(&mut next),
            Action::Cycle => {
                if state.lease.is_some() {
                    next.lease = Some(self.lease);
                }
                next.is_beat_new = true;
            }
            Action::Feed => next.fed_age = 0,
            Action::ReadWordEarly => next.sbd = Sbd::Recording,
            Action::JudgeHung | Action::JudgeDead => self.judge(&mut next, action),
            Action::Record => {
                next.is_recorded = true;
                next.sbd = Sbd::Waiting { left: self.window };
            }
            Action::Answer => next.is_served = true,
            Action::IssueRead => next.is_confirming = Some(state.silent >= self.wait()),
            Action::EndRead => {
                next.is_confirming = None;
                if state.is_beat_new {
                    next.is_beat_new = false;
                    next.silent = 0;
                } else if state.is_confirming == Some(true) {
                    next.is_taken_over = true;
                }
            }
            Action::TakeOver => {
                next.is_taken_over = true;
                next.is_confirming = None;
            }
            Action::Turn
            | Action::SetHolds
            | Action::Grant
            | Action::GiveBack
            | Action::ClearHolds
            | Action::Hang
            | Action::Continue
            | Action::Die
            | Action::Restart => Self::apply_daemon(&mut next, action),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(S3, |_, state: &State| !state.is_taken_over || !may_act(state)),
            Property::always(S5, |_, state: &State| !state.is_on || state.lease.is_some()),
            Property::sometimes("taken over from a silent node", |_, state: &State| state.is_taken_over && !state.is_on),
            Property::sometimes("taken over by the record", |_, state: &State| state.is_taken_over && state.is_recorded && state.is_on),
            Property::sometimes("the daemon restarts", |_, state: &State| state.daemon == Daemon::Restarted),
            Property::sometimes("a client is cut short", |_, state: &State| state.is_granted && !state.is_on),
        ]
    }
}

const RULE: Hung = Hung { lease: 3, reset: 1, linger: 1, stall: 1, window: 1, may_continue: true, mistake: Mistake::None };

fn larger(scale: Scale, model: &Hung) -> Hung {
    Hung {
        lease: scale.pick(model.lease, 7),
        reset: scale.pick(model.reset, 3),
        linger: scale.pick(model.linger, 2),
        stall: scale.pick(model.stall, 3),
        window: scale.pick(model.window, 2),
        ..model.clone()
    }
}

fn dead_ends(model: Hung, scale: Scale) -> Outcome {
    let model = Hung { may_continue: false, ..larger(scale, &model) };
    search_dead_ends(&model, STUCK, scale, |state| state.is_taken_over || state.is_served)
}

/// The rules that must hold.
pub(crate) fn rules() -> Vec<Case> {
    vec![
        Case::holds("hung: stopped, continued, dead and restarted daemons", |scale| search(larger(scale, &RULE), scale)),
        Case::holds("hung: with the counter no dead end", |scale| dead_ends(RULE, scale)),
    ]
}

/// The planted mistakes that must be found.
pub(crate) fn mistakes() -> Vec<Case> {
    let unsafe_case = |name, mistake| Case::found(name, S3, move |scale| search(Hung { mistake, ..RULE }, scale));
    let stuck_case = |name, mistake| Case::found(name, STUCK, move |scale| dead_ends(Hung { mistake, ..RULE }, scale));
    vec![
        stuck_case("hung: without the counter", Mistake::NoTurnCounter),
        stuck_case("hung: sbd beats on over a dead daemon's locks", Mistake::BeatsOnWithHolds),
        unsafe_case("hung: a dead daemon's locks recorded as nothing", Mistake::RecordsWithHolds),
        unsafe_case("hung: the grant leaves before the word is set", Mistake::GrantBeforeHolds),
        unsafe_case("hung: the word is cleared before the lock is back", Mistake::ClearBeforeGiveBack),
        unsafe_case("hung: a hung daemon is judged by the word", Mistake::HungJudgedByWord),
        unsafe_case("hung: the word is read before the daemon is reaped", Mistake::WordBeforeReaping),
        unsafe_case("hung: a restart is taken for evidence", Mistake::RestartIsEvidence),
    ]
}
