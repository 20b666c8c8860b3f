//! What: a fencer's pill and a victim's acknowledgement, across restarts of sbd and of the machine.
//! Owns: the rules of pill, acknowledgement and reboot as evidence, and the mistakes planted in them.
//! Invariants: times are ages, capped where they no longer matter: the state space is closed, every horizon is covered.
//! Does not: model silence as evidence or drift; see `lease`.
//! Called by: the list of cases in `lifeline`.
//!
//! The fencer wants the boot `Target`. The mailbox may hold a pill for an earlier boot, and the machine may come back as
//! the boot `Next`. Clock readings may be one tick old, so every wait of an observer is one tick longer than its rule.

use stateright::{Model, Property};

use crate::{Case, search};

const S5: &str = "S5 nobody acts after it was said gone";
const L2: &str = "L2 gone W + D after the read that followed the pill";
const L4: &str = "L4 only a pill for this boot is obeyed";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// The mailbox is read before the beat is written.
    MailboxBeforeBeat,
    /// The acknowledgement is written while a feed is still in the air.
    AckBeforePromise,
    /// The fencer does not wait for T.
    AckWithoutReset,
    /// The acknowledgement names a time that the watchdog was not set to.
    AckNamesUngrantedTime,
    /// A pill found at the start of sbd is taken for an old one.
    RestartMakesStale,
    /// A starting sbd opens, and so feeds, the watchdog before its first cycle.
    FeedsAtStart,
    /// The watchdog is set to its shortest time, which feeds it, without the feeder's check.
    SetWithoutCheck,
    /// A starting sbd does not look for an acknowledgement in its own unit.
    RestartForgetsAck,
    /// A starting sbd looks while a write of the old one may still land.
    RestartBeforeOldWrites,
    /// Any pill is obeyed, whatever boot it names.
    BootIgnored,
    /// A pill for another boot is wiped from the mailbox.
    StalePillCleared,
    /// Another boot on the record is believed at once.
    RebootWithoutLinger,
}

#[derive(Clone, Debug)]
struct Pill {
    lease: u8,
    reset: u8,
    /// The shortest time that the driver grants: T of the acknowledgement.
    reset_short: u8,
    linger: u8,
    /// Someone else may overwrite the mailbox; then the pill's budget is his to answer for.
    may_be_wiped: bool,
    mistake: Mistake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Machine {
    Target,
    Off,
    Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mail {
    Empty,
    ForEarlier,
    ForTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Beat {
    Target,
    /// Acknowledged, naming the T that was running already.
    AckLong,
    /// Acknowledged, naming the shortest time.
    AckShort,
    Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Cycle {
    Idle,
    Writing { age: u8, is_landed: bool },
    WritingAck { is_landed: bool },
    Reading { age: u8, sample: Option<Mail> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Condemned {
    No,
    /// The disk thread knows; the feeder may be between check and feed.
    Seen,
    /// The feeder sets the watchdog to its shortest time: its check passed.
    Setting,
    /// The feeder has promised.
    Promised,
    Answered,
    /// A starting sbd found its acknowledgement: it touches neither watchdog nor record.
    Silent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fencer {
    Idle,
    WritingPill { is_landed: bool },
    Looking,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Evidence {
    Acknowledged,
    Rebooted,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    machine: Machine,
    linger: u8,
    is_sbd_up: bool,
    has_fed: bool,
    lease: Option<u8>,
    cycle: Cycle,
    condemned: Condemned,
    ignores_pill: bool,
    fed_age: u8,
    is_checked: bool,
    is_short: bool,
    /// A write of a dead sbd or boot that may still land.
    orphan: Option<Beat>,
    beat: Beat,
    mail: Mail,
    is_wiping: bool,
    fencer: Fencer,
    /// A read of the fencer, with what it returned.
    read: Option<Option<Beat>>,
    since_look: Option<u8>,
    since_ack: Option<u8>,
    is_ack_short: bool,
    since_reboot: Option<u8>,
    gone: Option<Evidence>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Tick,
    IssueBeat,
    LandBeat,
    CompleteBeat,
    SampleMail,
    CompleteRead,
    CheckLease,
    Feed,
    CheckToSet,
    SetShortest,
    PromiseNotToFeed,
    IssueAck,
    LandOrphan,
    SbdDies,
    SbdStarts,
    Crash,
    Boot,
    WipeLands,
    StrangerWipes,
    WritePill,
    PillLands,
    PillCompletes,
    IssueLook,
    SampleLook,
    EndLook,
    SayGone(Evidence),
}

impl Pill {
    fn budget(&self) -> u8 {
        self.lease + 1 + self.linger
    }

    fn ack_wait(&self, is_short: bool) -> u8 {
        let reset = match (self.mistake, is_short) {
            (Mistake::AckWithoutReset, _) => 0,
            (_, true) => self.reset_short,
            (_, false) => self.reset,
        };
        reset + self.linger + 1
    }

    fn ack(&self, state: &State) -> Beat {
        if state.is_short || self.mistake == Mistake::AckNamesUngrantedTime { Beat::AckShort } else { Beat::AckLong }
    }

    fn reboot_wait(&self) -> u8 {
        if self.mistake == Mistake::RebootWithoutLinger { 0 } else { self.linger + 1 }
    }

    fn stop_sbd(&self, state: &mut State) {
        let (unlanded, is_ack) = match state.cycle {
            Cycle::Writing { is_landed, .. } => (!is_landed, false),
            Cycle::WritingAck { is_landed } => (!is_landed, true),
            Cycle::Idle | Cycle::Reading { .. } => (false, false),
        };
        if unlanded {
            state.orphan = Some(match (state.machine, is_ack) {
                (Machine::Next, _) => Beat::Next,
                (Machine::Target | Machine::Off, true) => self.ack(state),
                (Machine::Target | Machine::Off, false) => Beat::Target,
            });
        }
        state.is_sbd_up = false;
        state.has_fed = false;
        state.lease = None;
        state.cycle = Cycle::Idle;
        state.condemned = Condemned::No;
        state.ignores_pill = false;
        state.is_checked = false;
        state.is_wiping = false;
    }

    fn kill(&self, state: &mut State) {
        self.stop_sbd(state);
        state.machine = Machine::Off;
        state.linger = self.linger + 1;
        state.fed_age = 0;
        state.is_short = false;
    }

    fn tick(&self, state: &mut State) {
        if state.machine == Machine::Target {
            let reset = if state.is_short { self.reset_short } else { self.reset };
            if state.fed_age >= reset {
                self.kill(state);
            } else {
                state.fed_age += 1;
            }
        }
        state.linger = state.linger.saturating_sub(1);
        if state.linger == 0 && state.machine != Machine::Target {
            state.orphan = None;
        }
        state.lease = state.lease.and_then(|left| left.checked_sub(1));
        if state.machine == Machine::Target {
            let cap = self.lease + 1;
            match &mut state.cycle {
                Cycle::Writing { age, .. } | Cycle::Reading { age, .. } => *age = cap.min(*age + 1),
                Cycle::Idle | Cycle::WritingAck { .. } => {}
            }
        }
        let older = |age: Option<u8>, cap: u8| age.map(|age| cap.min(age + 1));
        state.since_look = older(state.since_look, self.budget());
        state.since_ack = older(state.since_ack, self.ack_wait(state.is_ack_short));
        state.since_reboot = older(state.since_reboot, self.reboot_wait());
    }

    fn is_for_me(&self, state: &State, mail: Mail) -> bool {
        match mail {
            Mail::Empty => false,
            Mail::ForEarlier => self.mistake == Mistake::BootIgnored,
            Mail::ForTarget => {
                let is_mine = state.machine == Machine::Target || self.mistake == Mistake::BootIgnored;
                is_mine && !state.ignores_pill
            }
        }
    }

    /// The mailbox was read: judge the pill, else renew (or, in the wrong order, write the beat now).
    fn judge_mail(&self, state: &mut State, mail: Mail, age: u8) {
        if self.is_for_me(state, mail) {
            state.cycle = Cycle::Idle;
            state.condemned = Condemned::Seen;
            return;
        }
        if mail != Mail::Empty && self.mistake == Mistake::StalePillCleared {
            state.is_wiping = true;
        }
        if self.mistake == Mistake::MailboxBeforeBeat {
            state.cycle = Cycle::Writing { age: 0, is_landed: false };
        } else {
            self.renew(state, age);
        }
    }

    fn renew(&self, state: &mut State, age: u8) {
        state.cycle = Cycle::Idle;
        if state.machine != Machine::Target || (state.lease.is_none() && state.has_fed) {
            return;
        }
        if let Some(left) = self.lease.checked_sub(age) {
            state.lease = Some(state.lease.map_or(left, |old| old.max(left)));
        }
    }

    fn start_sbd(&self, state: &mut State) {
        state.is_sbd_up = true;
        state.ignores_pill = self.mistake == Mistake::RestartMakesStale && state.mail == Mail::ForTarget;
        if state.machine != Machine::Target {
            return;
        }
        if matches!(state.beat, Beat::AckLong | Beat::AckShort) && self.mistake != Mistake::RestartForgetsAck {
            state.condemned = Condemned::Silent;
        } else if self.mistake == Mistake::FeedsAtStart {
            state.fed_age = 0;
        }
    }

    fn sbd_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !state.is_sbd_up {
            let must_wait = state.orphan.is_some() && self.mistake != Mistake::RestartBeforeOldWrites;
            if state.machine != Machine::Off && !must_wait {
                actions.push(Action::SbdStarts);
            }
            return;
        }
        actions.push(Action::SbdDies);
        match (state.cycle, state.condemned) {
            (Cycle::Idle, Condemned::No) => actions.push(Action::IssueBeat),
            (Cycle::Idle, Condemned::Seen) if self.mistake == Mistake::AckBeforePromise => {
                actions.push(Action::IssueAck);
            }
            (Cycle::Idle, Condemned::Promised) => actions.push(Action::IssueAck),
            (Cycle::Idle, _) => {}
            (Cycle::Writing { is_landed: false, .. } | Cycle::WritingAck { is_landed: false }, _) => actions.push(Action::LandBeat),
            (Cycle::Writing { .. } | Cycle::WritingAck { .. }, _) => {
                actions.push(Action::CompleteBeat);
            }
            (Cycle::Reading { sample: None, .. }, _) => actions.push(Action::SampleMail),
            (Cycle::Reading { sample: Some(_), .. }, _) => actions.push(Action::CompleteRead),
        }
        if state.is_wiping {
            actions.push(Action::WipeLands);
        }
        self.feeder_actions(state, actions);
    }

    fn feeder_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.machine != Machine::Target {
            return;
        }
        let has_lease = state.lease.is_some_and(|left| left >= 2 * self.reset);
        if state.is_checked {
            actions.push(Action::Feed);
        } else if has_lease && state.condemned == Condemned::No {
            actions.push(Action::CheckLease);
        }
        match state.condemned {
            Condemned::Seen if !state.is_checked => {
                actions.push(Action::PromiseNotToFeed);
                if has_lease || self.mistake == Mistake::SetWithoutCheck {
                    actions.push(Action::CheckToSet);
                }
            }
            Condemned::Setting => actions.push(Action::SetShortest),
            Condemned::No | Condemned::Seen | Condemned::Promised | Condemned::Answered | Condemned::Silent => {}
        }
    }

    fn fencer_actions(&self, state: &State, actions: &mut Vec<Action>) {
        match state.fencer {
            Fencer::Idle => actions.push(Action::WritePill),
            Fencer::WritingPill { is_landed: false } => actions.push(Action::PillLands),
            Fencer::WritingPill { is_landed: true } => actions.push(Action::PillCompletes),
            Fencer::Looking if state.gone.is_none() => {
                actions.push(match state.read {
                    None => Action::IssueLook,
                    Some(None) => Action::SampleLook,
                    Some(Some(_)) => Action::EndLook,
                });
                if state.since_ack == Some(self.ack_wait(state.is_ack_short)) {
                    actions.push(Action::SayGone(Evidence::Acknowledged));
                }
                if state.since_reboot == Some(self.reboot_wait()) {
                    actions.push(Action::SayGone(Evidence::Rebooted));
                }
                if self.may_be_wiped && state.mail != Mail::Empty {
                    actions.push(Action::StrangerWipes);
                }
            }
            Fencer::Looking => {}
        }
    }

    fn apply_sbd(&self, next: &mut State, action: Action) {
        match (action, next.cycle) {
            (Action::IssueBeat, _) if self.mistake == Mistake::MailboxBeforeBeat => {
                next.cycle = Cycle::Reading { age: 0, sample: None };
            }
            (Action::IssueBeat, _) => {
                next.cycle = Cycle::Writing { age: 0, is_landed: false };
            }
            (Action::LandBeat, Cycle::Writing { age, .. }) => {
                next.beat = if next.machine == Machine::Next { Beat::Next } else { Beat::Target };
                next.cycle = Cycle::Writing { age, is_landed: true };
            }
            (Action::LandBeat, Cycle::WritingAck { .. }) => {
                next.beat = self.ack(next);
                next.cycle = Cycle::WritingAck { is_landed: true };
            }
            (Action::CompleteBeat, Cycle::Writing { age, .. }) if self.mistake == Mistake::MailboxBeforeBeat => {
                self.renew(next, age);
            }
            (Action::CompleteBeat, Cycle::Writing { age, .. }) => {
                next.cycle = Cycle::Reading { age, sample: None };
            }
            (Action::CompleteBeat, Cycle::WritingAck { .. }) => next.cycle = Cycle::Idle,
            (Action::SampleMail, Cycle::Reading { age, .. }) => {
                next.cycle = Cycle::Reading { age, sample: Some(next.mail) };
            }
            (Action::CompleteRead, Cycle::Reading { age, sample: Some(mail) }) => self.judge_mail(next, mail, age),
            (Action::IssueAck, _) => {
                next.condemned = Condemned::Answered;
                next.cycle = Cycle::WritingAck { is_landed: false };
            }
            (Action::SbdDies, _) => self.stop_sbd(next),
            (Action::SbdStarts, _) => self.start_sbd(next),
            _ => unreachable!("only offered actions are applied"),
        }
    }

    fn apply_feeder(&self, next: &mut State, action: Action) {
        match action {
            Action::CheckLease => next.is_checked = true,
            Action::Feed => {
                next.is_checked = false;
                next.has_fed = true;
                next.fed_age = 0;
            }
            Action::CheckToSet => next.condemned = Condemned::Setting,
            Action::SetShortest => {
                // Setting the time feeds once more.
                next.condemned = Condemned::Promised;
                next.fed_age = 0;
                next.is_short = self.mistake != Mistake::AckNamesUngrantedTime;
            }
            Action::PromiseNotToFeed => next.condemned = Condemned::Promised,
            _ => unreachable!("only offered actions are applied"),
        }
    }

    fn apply_fencer(next: &mut State, action: Action) {
        match action {
            Action::WritePill => next.fencer = Fencer::WritingPill { is_landed: false },
            Action::PillLands => {
                next.mail = Mail::ForTarget;
                next.fencer = Fencer::WritingPill { is_landed: true };
            }
            Action::PillCompletes => next.fencer = Fencer::Looking,
            Action::IssueLook => next.read = Some(None),
            Action::SampleLook => next.read = Some(Some(next.beat)),
            Action::EndLook => {
                let seen = next.read.take().flatten();
                next.since_look = next.since_look.or(Some(0));
                match seen {
                    Some(ack @ (Beat::AckLong | Beat::AckShort)) if next.since_ack.is_none() => {
                        next.since_ack = Some(0);
                        next.is_ack_short = ack == Beat::AckShort;
                    }
                    Some(Beat::Next) => next.since_reboot = next.since_reboot.or(Some(0)),
                    Some(Beat::Target | Beat::AckLong | Beat::AckShort) | None => {}
                }
            }
            Action::SayGone(evidence) => {
                next.gone = Some(evidence);
                next.read = None;
            }
            _ => unreachable!("only offered actions are applied"),
        }
    }
}

fn may_target_act(state: &State) -> bool {
    state.machine == Machine::Target || state.linger > 0
}

impl Model for Pill {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        [Mail::Empty, Mail::ForEarlier]
            .into_iter()
            .map(|mail| State {
                machine: Machine::Target,
                linger: 0,
                is_sbd_up: true,
                has_fed: true,
                lease: Some(self.lease),
                cycle: Cycle::Idle,
                condemned: Condemned::No,
                ignores_pill: false,
                fed_age: 0,
                is_checked: false,
                is_short: false,
                orphan: None,
                beat: Beat::Target,
                mail,
                is_wiping: false,
                fencer: Fencer::Idle,
                read: None,
                since_look: None,
                since_ack: None,
                is_ack_short: false,
                since_reboot: None,
                gone: None,
            })
            .collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Tick);
        if state.machine == Machine::Target {
            actions.push(Action::Crash);
        }
        if state.machine == Machine::Off {
            actions.push(Action::Boot);
        }
        if state.orphan.is_some() {
            actions.push(Action::LandOrphan);
        }
        self.sbd_actions(state, actions);
        self.fencer_actions(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Tick => self.tick(&mut next),
            Action::Crash => self.kill(&mut next),
            Action::Boot => next.machine = Machine::Next,
            Action::LandOrphan => {
                next.beat = state.orphan?;
                next.orphan = None;
            }
            Action::WipeLands => {
                next.is_wiping = false;
                next.mail = Mail::Empty;
            }
            Action::StrangerWipes => next.mail = Mail::Empty,
            Action::CheckLease | Action::Feed | Action::CheckToSet | Action::SetShortest | Action::PromiseNotToFeed => {
                self.apply_feeder(&mut next, action);
            }
            Action::WritePill
            | Action::PillLands
            | Action::PillCompletes
            | Action::IssueLook
            | Action::SampleLook
            | Action::EndLook
            | Action::SayGone(_) => Self::apply_fencer(&mut next, action),
            Action::IssueBeat
            | Action::LandBeat
            | Action::CompleteBeat
            | Action::SampleMail
            | Action::CompleteRead
            | Action::IssueAck
            | Action::SbdDies
            | Action::SbdStarts => self.apply_sbd(&mut next, action),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(S5, |_, state: &State| state.gone.is_none() || !may_target_act(state)),
            Property::always(L4, |_, state: &State| {
                let was_sent = !matches!(state.fencer, Fencer::Idle | Fencer::WritingPill { is_landed: false });
                state.condemned == Condemned::No || (was_sent && state.machine == Machine::Target)
            }),
            Property::sometimes("gone by the shortest time", |_, state: &State| {
                state.gone == Some(Evidence::Acknowledged) && state.is_ack_short
            }),
            Property::sometimes("gone by the time that was running", |_, state: &State| {
                state.gone == Some(Evidence::Acknowledged) && !state.is_ack_short
            }),
            Property::sometimes("gone by reboot", |_, state: &State| state.gone == Some(Evidence::Rebooted)),
            Property::sometimes("a restarted sbd finds its condemnation", |_, state: &State| state.condemned == Condemned::Silent),
        ];
        if !self.may_be_wiped {
            properties.push(Property::always(L2, |model: &Self, state: &State| {
                state.since_look != Some(model.budget()) || !may_target_act(state)
            }));
        }
        properties
    }
}

const RULE: Pill = Pill { lease: 5, reset: 2, reset_short: 1, linger: 1, may_be_wiped: false, mistake: Mistake::None };

/// The rules that must hold.
pub(crate) fn rules() -> Vec<Case> {
    vec![
        Case::holds("pill: write then read on both sides, acknowledgement, reboot", |scale| {
            let model = Pill { lease: scale.pick(5, 8), reset: scale.pick(2, 3), linger: scale.pick(1, 2), ..RULE };
            search(model, scale)
        }),
        Case::holds("pill: the mailbox is wiped by someone else", |scale| {
            let model = Pill { may_be_wiped: true, lease: scale.pick(5, 8), reset: scale.pick(2, 3), ..RULE };
            search(model, scale)
        }),
    ]
}

fn planted(name: &'static str, property: &'static str, model: Pill) -> Case {
    Case::found(name, property, move |scale| search(model.clone(), scale))
}

/// The planted mistakes that must be found.
pub(crate) fn mistakes() -> Vec<Case> {
    let with = |mistake| Pill { mistake, ..RULE };
    let wiped = |mistake| Pill { may_be_wiped: true, ..with(mistake) };
    vec![
        planted("pill: mailbox read before the beat", L2, with(Mistake::MailboxBeforeBeat)),
        planted("pill: acknowledged before the feeder promised", S5, with(Mistake::AckBeforePromise)),
        planted("pill: acknowledgement counted without T", S5, with(Mistake::AckWithoutReset)),
        planted("pill: acknowledged time was not granted", S5, with(Mistake::AckNamesUngrantedTime)),
        planted("pill: a restart of sbd makes the pill stale", L2, with(Mistake::RestartMakesStale)),
        planted("pill: a starting sbd feeds before its first cycle", L2, with(Mistake::FeedsAtStart)),
        planted("pill: the shortest time is set without the feeder's check", L2, with(Mistake::SetWithoutCheck)),
        planted("pill: a starting sbd forgets its acknowledgement", S5, wiped(Mistake::RestartForgetsAck)),
        planted("pill: a starting sbd looks before the old writes ended", S5, wiped(Mistake::RestartBeforeOldWrites)),
        planted("pill: any boot's pill is obeyed", L4, with(Mistake::BootIgnored)),
        planted("pill: a stale pill is cleared", L2, with(Mistake::StalePillCleared)),
        planted("pill: another boot is believed without D", S5, with(Mistake::RebootWithoutLinger)),
    ]
}
