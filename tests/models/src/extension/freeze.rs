//! What: freezes: a question, the consents to it, and the views that they name.
//! Owns: the rules of a freeze and the mistakes planted in them.
//! Invariants: a consent binds its giver from the instant at which it is given, whether it arrives or not.
//! Does not: ask whether a giver has the disk: it may consent whenever it is asked, which is more than any rule allows.
//! Called by: the model in `super`.

use super::{Action, BARE, Case, Extension, GIVERS_MAX, Judged, L2, Mistake, S5, S11, State, case, grown, orders, planted, silence};

use super::observer::{Role, Witness};

/// From when F counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// From the node's own question; consents answer it.
    FromQuestion,
    /// From the earliest consent, as if all clocks were one; consents come unasked.
    FromEarliest,
}

/// Under which lease a node may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ground {
    OwnCycle,
    OwnCycleOrVouch,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum View {
    /// The node and the first givers.
    #[default]
    First,
    /// The second giver was let in.
    Joined,
    /// The node alone.
    Parted,
}

/// One giver's consent; the age is that of its instant where F counts from there, else 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Answer {
    /// A question, if there is one, is on its way to it.
    #[default]
    None,
    Given {
        age: u8,
    },
    Held {
        age: u8,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Freeze {
    /// Age of the node's question, which is its own consent too.
    pub(super) question: Option<u8>,
    answers: [Answer; GIVERS_MAX],
    /// As decided.
    pub(super) view: View,
    /// As the node knows it.
    node_view: View,
    has_joiner_learned: bool,
    /// A hello of the node on its way to whoever is let in: the rest of what it has asked for, if anything. One that is lost may as well not
    /// have been said.
    hello: Option<Option<u8>>,
    /// A decided view is without the node; it need not know.
    pub(super) is_removed: bool,
    /// The node decided its own view without a lease of an own cycle, and has had none since.
    pub(super) is_stolen: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FreezeStep {
    Ask,
    Consent(usize),
    TakeConsent(usize),
    /// The observing giver completes a cycle of its own.
    GiverBeats,
    DecideJoin,
    JoinerLearns,
    NodeLearns,
    SayHello,
    HearHello,
    Part,
    Remove,
}

impl Freeze {
    pub(super) fn tick(&mut self, freeze: u8) {
        self.question = self.question.map(|age| age + 1).filter(|age| *age <= freeze);
        for answer in &mut self.answers {
            if let Answer::Given { age } | Answer::Held { age } = answer {
                *age += 1;
            }
            if matches!(*answer, Answer::Given { age } | Answer::Held { age } if age > freeze) {
                *answer = Answer::None;
            }
        }
    }
}

impl Extension {
    /// The givers whose consents the node needs in the view that it knows.
    fn needed(&self, state: &State) -> std::ops::Range<usize> {
        let first = usize::from(self.mistake == Mistake::OneConsentMissing);
        match state.freeze.node_view {
            View::First => first..self.givers,
            View::Joined => first..GIVERS_MAX,
            View::Parted => 0..0,
        }
    }

    fn may_ask(&self, state: &State) -> bool {
        let has_ground = match self.ground {
            _ if self.mistake == Mistake::AskedUnderFreeze => true,
            Ground::OwnCycle => state.node.own.is_some(),
            Ground::OwnCycleOrVouch => state.node.own.is_some() || state.node.vouched.is_some(),
        };
        has_ground && state.node.is_free()
    }

    fn may_consent(&self, state: &State, giver: usize) -> bool {
        let freeze = &state.freeze;
        let is_asked = match self.counted {
            Counted::FromQuestion => freeze.question.is_some() && freeze.answers[giver] == Answer::None,
            Counted::FromEarliest => !matches!(freeze.answers[giver], Answer::Given { .. }),
        };
        // The first giver decides the second view; the second one is let in by it.
        let is_view_current = match giver {
            0 => freeze.node_view == freeze.view || self.mistake == Mistake::ConsentForOldView,
            _ => !self.may_join || freeze.has_joiner_learned,
        };
        is_asked && is_view_current
    }

    pub(super) fn freeze_steps(&self, state: &State, actions: &mut Vec<Action>) {
        let freeze = &state.freeze;
        let mut offer = |step| actions.push(Action::Freeze(step));
        if self.may_ask(state) {
            offer(FreezeStep::Ask);
        }
        for giver in self.needed(state) {
            if self.may_consent(state, giver) {
                offer(FreezeStep::Consent(giver));
            }
            if matches!(freeze.answers[giver], Answer::Given { .. }) && state.node.is_free() {
                offer(FreezeStep::TakeConsent(giver));
            }
        }
        if matches!(self.mistake, Mistake::ConsentForgottenAtBeat | Mistake::NextLifeTrustsUnit) {
            offer(FreezeStep::GiverBeats);
        }
        if self.may_join {
            if freeze.view == View::First && !freeze.is_removed {
                offer(FreezeStep::DecideJoin);
            } else if freeze.view == View::Joined {
                offer(FreezeStep::JoinerLearns);
                offer(FreezeStep::NodeLearns);
            }
        }
        if self.is_told {
            let knows_view = freeze.node_view != View::First || self.mistake == Mistake::HelloBeforeView;
            if knows_view && state.node.is_alive() && freeze.hello.is_none() && state.observer.role == Role::Joiner {
                offer(FreezeStep::SayHello);
            }
            if freeze.hello.is_some() && state.observer.may_be_told {
                offer(FreezeStep::HearHello);
            }
        }
        let may_propose = state.node.own.is_some() || self.mistake == Mistake::FreezingProposes;
        if self.may_part && freeze.view != View::Parted && !freeze.is_removed {
            offer(FreezeStep::Remove);
            if freeze.view == freeze.node_view && may_propose && state.node.is_free() {
                offer(FreezeStep::Part);
            }
        }
    }

    pub(super) fn apply_freeze(&self, next: &mut State, step: FreezeStep) {
        match step {
            FreezeStep::Ask => self.ask(next),
            FreezeStep::Consent(giver) => {
                next.freeze.answers[giver] = Answer::Given { age: 0 };
                if next.observer.role == [Role::FirstGiver, Role::Joiner][giver] {
                    next.observer.bound = 0;
                    next.observer.is_consent_written = false;
                }
            }
            FreezeStep::TakeConsent(giver) => {
                if let Answer::Given { age } = next.freeze.answers[giver] {
                    next.freeze.answers[giver] = Answer::Held { age };
                }
                self.begin(next);
            }
            FreezeStep::GiverBeats => {
                next.observer.is_consent_written = true;
                if self.mistake == Mistake::ConsentForgottenAtBeat {
                    next.observer.bound = self.freeze + 1;
                }
            }
            FreezeStep::DecideJoin => next.freeze.view = View::Joined,
            FreezeStep::JoinerLearns => {
                let is_first = !std::mem::replace(&mut next.freeze.has_joiner_learned, true);
                if is_first && next.observer.role == Role::Joiner && self.is_told {
                    next.observer.may_be_told = true;
                } else if is_first && next.observer.role == Role::Joiner {
                    next.observer.witness = Witness::Member;
                    next.observer.bound = if self.mistake == Mistake::JoinerUsesW { self.freeze + 1 } else { 0 };
                }
            }
            FreezeStep::SayHello => {
                let asked = next.freeze.question.and_then(|age| self.freeze.checked_sub(age));
                next.freeze.hello = Some(next.node.frozen.max(asked));
            }
            FreezeStep::HearHello => self.hear_hello(next),
            FreezeStep::NodeLearns => self.change_view(next, View::Joined),
            FreezeStep::Remove => next.freeze.is_removed = true,
            FreezeStep::Part => {
                next.freeze.view = View::Parted;
                next.freeze.is_stolen = next.node.own.is_none();
                self.change_view(next, View::Parted);
            }
        }
    }

    /// Each hello is true by itself: the one that says the least counts.
    fn hear_hello(&self, next: &mut State) {
        let Some(left) = next.freeze.hello.take() else { return };
        let told = left.map_or(self.freeze + 1, |left| self.freeze - left);
        let observer = &mut next.observer;
        observer.told = if observer.witness == Witness::Member { observer.told.max(told) } else { told };
        observer.witness = Witness::Member;
    }

    /// Question and consents name the view; a freeze that has begun goes on.
    fn change_view(&self, next: &mut State, view: View) {
        if next.freeze.node_view != view {
            next.freeze.node_view = view;
            next.freeze.question = None;
            next.freeze.answers = [Answer::None; GIVERS_MAX];
        }
    }

    fn ask(&self, next: &mut State) {
        next.freeze.question = Some(0);
        if self.counted == Counted::FromQuestion && self.mistake != Mistake::EarlierConsentCounts {
            next.freeze.answers = [Answer::None; GIVERS_MAX];
        }
        self.begin(next);
    }

    /// The freeze begins when every consent is held.
    fn begin(&self, next: &mut State) {
        let Some(mut oldest) = next.freeze.question else {
            return;
        };
        for giver in self.needed(next) {
            let Answer::Held { age } = next.freeze.answers[giver] else {
                return;
            };
            if self.counted == Counted::FromEarliest {
                oldest = oldest.max(age);
            }
        }
        if self.mistake == Mistake::CountedFromReceipt {
            oldest = 0;
        }
        next.node.frozen = next.node.frozen.max(self.freeze.checked_sub(oldest));
        next.node.settle();
        if self.counted == Counted::FromQuestion && self.mistake != Mistake::EarlierConsentCounts {
            // It has done its work; the next freeze needs a new question.
            next.freeze.question = None;
            next.freeze.answers = [Answer::None; GIVERS_MAX];
        }
    }
}

/// Two members and an outsider.
const RULE: Extension = Extension { lease: 2, freeze: 4, givers: 1, ..BARE };
/// The same with less time, where there is more to happen.
const SMALL: Extension = Extension { lease: 1, freeze: 3, ..RULE };

/// The rules that must hold.
pub(super) fn rules() -> Vec<Case> {
    let three = Extension { givers: 2, ..SMALL };
    let joining = Extension { may_join: true, ..SMALL };
    let told = Extension { is_told: true, freeze: 2, ..joining.clone() };
    let told_views = Extension { may_part: true, ..told.clone() };
    let parting = Extension { may_part: true, ..RULE };
    let views = Extension { may_part: true, ..joining.clone() };
    let one_clock = Extension { counted: Counted::FromEarliest, judged: Judged::Silence, ..RULE };
    let proposing = Extension { mistake: Mistake::FreezingProposes, ..parting.clone() };
    vec![
        grown("extension: freeze, two members and an outsider, silence", silence(&RULE), (5, 9)),
        grown("extension: freeze, two members and an outsider, orders", orders(&RULE), (5, 9)),
        grown("extension: freeze, two members and an outsider, silence and orders", SMALL, (3, 5)),
        grown("extension: freeze, three members and an outsider, silence", silence(&three), (2, 4)),
        grown("extension: freeze, three members and an outsider, orders", orders(&three), (3, 5)),
        grown("extension: freeze, a node is let in, silence", silence(&joining), (2, 4)),
        grown("extension: freeze, a node is let in, orders", orders(&joining), (2, 4)),
        grown("extension: freeze, a node is let in and told, silence", silence(&told), (1, 4)),
        grown("extension: freeze, a node is let in and told, orders", orders(&told), (2, 4)),
        grown("extension: freeze, a node is let in and told, then the node goes on alone, silence", silence(&told_views), (1, 3)),
        grown("extension: freeze, the node goes on alone, silence", silence(&parting), (4, 7)),
        grown("extension: freeze, the node goes on alone, orders", orders(&parting), (4, 7)),
        grown("extension: freeze, a node is let in, then the node goes on alone, silence", silence(&views), (2, 4)),
        grown("extension: freeze, a node is let in, then the node goes on alone, orders", orders(&views), (2, 4)),
        grown("extension: freeze, from the earliest of unasked consents, were all clocks one", one_clock, (4, 7)),
        case("extension: freeze, a freezing node proposes, S5 alone", Extension { only: Some(S5), ..silence(&proposing) }),
        case("extension: freeze, a freezing node proposes, L2 alone", Extension { only: Some(L2), ..orders(&proposing) }),
    ]
}

/// The planted mistakes that must be found.
pub(super) fn mistakes() -> Vec<Case> {
    let with = |mistake| Extension { mistake, judged: Judged::Silence, ..RULE };
    let joining = |mistake| Extension { may_join: true, mistake, judged: Judged::Silence, ..SMALL };
    let parting = |mistake| Extension { may_part: true, ..with(mistake) };
    vec![
        planted("extension: freeze, an outsider uses W", S5, with(Mistake::OutsiderUsesW)),
        planted("extension: freeze, a consenting member uses W", S5, with(Mistake::ConsentingUsesW)),
        planted("extension: freeze, consents are asked again under a freeze", S5, with(Mistake::AskedUnderFreeze)),
        planted("extension: freeze, a consent is forgotten at the next beat", S5, with(Mistake::ConsentForgottenAtBeat)),
        planted("extension: freeze, one consent is missing", S5, with(Mistake::OneConsentMissing)),
        planted("extension: freeze, one consent of three is missing", S5, Extension { givers: 2, ..with(Mistake::OneConsentMissing) }),
        planted("extension: freeze, counted from the receipt of the last consent", S5, with(Mistake::CountedFromReceipt)),
        planted("extension: freeze, a consent to an earlier question counts", S5, with(Mistake::EarlierConsentCounts)),
        planted("extension: freeze, the consent's end judged at the end of the read", S5, with(Mistake::ConsentJudgedAtEnd)),
        planted("extension: freeze, the next life takes itself for a member", S5, with(Mistake::NextLifeForgets)),
        planted("extension: freeze, the next life goes by the consents in its unit", S5, with(Mistake::NextLifeTrustsUnit)),
        planted("extension: freeze, who was just let in uses W", S5, joining(Mistake::JoinerUsesW)),
        planted(
            "extension: freeze, what the node said before it knew who was let in",
            S5,
            Extension { is_told: true, ..joining(Mistake::HelloBeforeView) },
        ),
        planted("extension: freeze, a consent for a view that is over", S5, joining(Mistake::ConsentForOldView)),
        planted("extension: freeze, a member uses W before a decided view has removed the node", S5, parting(Mistake::MemberNotRemoved)),
        planted("extension: freeze, a freezing node proposes", S11, parting(Mistake::FreezingProposes)),
        planted("extension: freeze, the fencer counts W only", L2, orders(&with(Mistake::PillCountsWOnly))),
    ]
}
