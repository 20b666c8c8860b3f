//! What: the observer: reads of beats and vouches, the verdict *gone*, and the order that it gave as a fencer.
//! Owns: who may use W and who waits W + F.
//! Invariants: a verdict is the end of a read issued after the whole wait, in which no unit showed a change.
//! Does not: believe a stale path, drift or wait for D; see `lifeline`.
//! Called by: the model in `super`.

use stateright::Property;

use super::{Action, Extension, Mistake, Reads, State};

use super::freeze::View;

/// Whose eyes the observer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// Nobody that the node ever knew.
    Stranger,
    /// A member of the first view.
    FirstGiver,
    /// Let in by the second view.
    Joiner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Witness {
    /// W, unless it has given a consent in the last F.
    Member,
    /// W + F.
    Outsider,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Read {
    is_confirming: bool,
    /// Units not sampled yet, a bit for each.
    unread: u8,
    has_change: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Observer {
    pub(super) role: Role,
    pub(super) witness: Witness,
    /// Age of its own last consent, or of its first view with the node.
    pub(super) bound: u8,
    /// Since when nothing can run any more that the node asked others for before, as it said; like an age.
    pub(super) told: u8,
    /// It was let in by a view that it knows, in this life.
    pub(super) may_be_told: bool,
    /// A beat of its own stands on the disk since that consent; only where a mistake goes by it.
    pub(super) is_consent_written: bool,
    /// Since r0.
    silent: u8,
    read: Option<Read>,
    /// In the prompt world it reads once a tick.
    pub(super) is_read_due: bool,
    pub(super) is_gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ObserveStep {
    IssueRead,
    /// The read ends with the last unit: an end that comes later puts the verdict off.
    Sample(u8),
    LandOrder,
    /// Its daemon dies and the next life begins.
    Restart,
}

const BEAT: u8 = 0;
/// Vouchers stand at 1 and 2.
const FIRST_VOUCHER: u8 = 1;
/// Whatever else a read covers.
const LAST: u8 = 3;

impl Observer {
    pub(super) fn new(role: Role, freeze: u8) -> Self {
        Self {
            role,
            witness: if role == Role::FirstGiver { Witness::Member } else { Witness::Outsider },
            bound: freeze + 1,
            told: freeze + 1,
            may_be_told: false,
            is_consent_written: false,
            silent: 0,
            read: None,
            is_read_due: false,
            is_gone: false,
        }
    }
}

impl Extension {
    /// It may use W: the view that removed the node shows that the observer was in the node's last one.
    fn is_member(&self, state: &State) -> bool {
        let is_last_view_known = !self.may_part || state.freeze.is_removed || self.mistake == Mistake::MemberNotRemoved;
        state.observer.witness == Witness::Member && is_last_view_known
    }

    /// No freeze that this observer consented to can last.
    fn is_unbound(&self, state: &State) -> bool {
        !self.is_member(state) || state.observer.bound.min(state.observer.told) > self.freeze
    }

    /// The time is over in which a node may live on although there is an order to end it.
    pub(super) fn is_order_due(&self, state: &State) -> bool {
        state.order.is_some_and(|age| {
            if self.mistake == Mistake::PillCountsWOnly {
                age >= self.wait()
            } else if self.is_member(state) {
                age >= self.wait() && self.is_unbound(state)
            } else {
                age >= self.wait() + self.freeze
            }
        })
    }

    pub(super) fn tick_observer(&self, observer: &mut Observer) {
        if self.has_reads() {
            observer.silent = (self.wait() + self.freeze).min(observer.silent + 1);
        }
        observer.bound = (self.freeze + 1).min(observer.bound + 1);
        observer.told = (self.freeze + 1).min(observer.told + 1);
        observer.is_read_due = self.is_prompt;
    }

    pub(super) fn observe_steps(&self, state: &State, actions: &mut Vec<Action>) {
        let mut offer = |step| actions.push(Action::Observe(step));
        if self.has_orders() && state.order.is_none() {
            offer(ObserveStep::LandOrder);
        }
        if self.may_restart && self.givers > 0 && state.observer.witness == Witness::Member {
            offer(ObserveStep::Restart);
        }
        if !self.has_reads() {
            return;
        }
        match state.observer.read {
            None if self.is_prompt && !state.observer.is_read_due => {}
            None => offer(ObserveStep::IssueRead),
            Some(read) => match self.reads {
                Reads::AtOnce => offer(ObserveStep::Sample(read.unread)),
                Reads::Apart => (BEAT..=LAST).map(|unit| 1 << unit).filter(|bit| read.unread & bit != 0).for_each(|bit| {
                    offer(ObserveStep::Sample(bit));
                }),
            },
        }
    }

    pub(super) fn apply_observe(&self, next: &mut State, step: ObserveStep) {
        match step {
            ObserveStep::LandOrder => next.order = Some(0),
            ObserveStep::IssueRead => next.observer.read = Some(self.issue_read(next)),
            ObserveStep::Sample(bits) => {
                sample(next, bits);
                if let Some(read) = next.observer.read.take_if(|read| read.unread == 0) {
                    self.end_read(next, read);
                }
            }
            ObserveStep::Restart => self.restart_observer(next),
        }
    }

    fn issue_read(&self, state: &State) -> Read {
        let uses_w = self.is_member(state) || self.mistake == Mistake::OutsiderUsesW;
        let wait = if uses_w { self.wait() } else { self.wait() + self.freeze };
        let is_unbound = self.is_unbound(state) || matches!(self.mistake, Mistake::ConsentingUsesW | Mistake::ConsentJudgedAtEnd);
        let mut unread = 1 << BEAT;
        for voucher in 0..self.vouchers {
            if voucher == 0 || self.mistake != Mistake::SecondNotCounted {
                unread |= (1 << FIRST_VOUCHER) << voucher;
            }
        }
        if self.mistake == Mistake::ConsentJudgedAtEnd {
            unread |= 1 << LAST;
        }
        Read { is_confirming: state.observer.silent >= wait && is_unbound, unread, has_change: false }
    }

    fn end_read(&self, next: &mut State, read: Read) {
        next.observer.is_read_due = false;
        if read.has_change {
            next.observer.silent = 0;
        } else if read.is_confirming && (self.is_unbound(next) || self.mistake == Mistake::ConsentingUsesW) {
            next.observer.is_gone = true;
        }
    }

    /// The next life has seen nothing yet: whatever its first read shows is a change.
    fn restart_observer(&self, next: &mut State) {
        let old = &next.observer;
        let mut new = Observer { witness: Witness::Outsider, ..Observer::new(old.role, self.freeze) };
        match self.mistake {
            Mistake::NextLifeForgets => new.witness = Witness::Member,
            Mistake::NextLifeTrustsUnit => {
                new.witness = Witness::Member;
                if old.is_consent_written {
                    new.bound = old.bound;
                    new.is_consent_written = true;
                }
            }
            _ => {}
        }
        next.observer = new;
        next.node.is_beat_new = true;
        next.vouchers.iter_mut().take(self.vouchers).for_each(|voucher| voucher.is_new = true);
    }

    pub(super) fn role_properties(&self) -> Vec<Property<Self>> {
        let mut properties = Vec::new();
        if self.givers > 0 {
            properties.push(Property::sometimes("an outsider says gone", |_, state: &State| {
                state.observer.is_gone && state.observer.witness == Witness::Outsider
            }));
            properties.push(Property::sometimes("a member says gone", |_, state: &State| {
                state.observer.is_gone && state.observer.witness == Witness::Member && state.observer.role == Role::FirstGiver
            }));
        }
        if self.may_join {
            properties.push(Property::sometimes("a member that was let in says gone", |_, state: &State| {
                state.observer.is_gone && state.observer.witness == Witness::Member && state.observer.role == Role::Joiner
            }));
        }
        if self.may_part {
            properties.push(Property::sometimes("a node alone in its view lives on a freeze", |_, state: &State| {
                state.freeze.view == View::Parted && state.node.own.is_none() && state.node.frozen.is_some()
            }));
        }
        properties
    }
}

fn sample(next: &mut State, bits: u8) {
    let mut has_change = bits & (1 << BEAT) != 0 && std::mem::take(&mut next.node.is_beat_new);
    for (index, voucher) in next.vouchers.iter_mut().enumerate() {
        has_change |= bits & ((1 << FIRST_VOUCHER) << index) != 0 && std::mem::take(&mut voucher.is_new);
    }
    if let Some(read) = &mut next.observer.read {
        read.unread &= !bits;
        read.has_change |= has_change;
    }
}
