//! What: the gate per resource: a home with or without authority, a master with its queue, holders; views, joins and ends at any time.
//! Owns: one resource, its locks in two modes, the messages between home, master and holders.
//! Invariants: a message is taken at any time after it was sent, or never; a node answers when it learns a view, and its answer is taken
//!   at any later time while it knows that view. Within a view a holder asks for nothing while an answer or an unlock is under way (the
//!   numbers of the operations see to that), so any member may be granted the lock at any time.
//! Does not: model lookups, the order of waiting requests, or down-conversions.
//! Called by: `super`.

use stateright::{Model, Property};

use super::rules::{Mistake, Rule};
use super::world::{Bounds, Change, Mode, NODES_MAX, Slots, View, World, post};

/// The model with its horizon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gate {
    pub(crate) bounds: Bounds,
    pub(crate) rule: Rule,
    pub(crate) mistake: Mistake,
    /// Locks are shared or exclusive; else exclusive only.
    pub(crate) has_shared: bool,
    /// Highest token counter in a view; 0: tokens are left out.
    pub(crate) tokens: u8,
    /// Check this property only.
    pub(crate) only: Option<&'static str>,
}

/// A lock as its master knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Entry {
    mode: Mode,
    /// Granted in the present view, or confirmed by its holder's answer in it.
    is_firm: bool,
}

/// A master's knowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Queue {
    entries: Slots<Entry>,
    /// Last token counter given in the present view.
    counter: u8,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.mode == Mode::None)
    }
}

/// What a home knows of the resource; anything but `Nothing` is authority over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) enum Share {
    #[default]
    Nothing,
    /// Nobody is master, nobody holds it.
    Free { counter: u8 },
    At {
        master: usize,
        /// Appointed in the present view, or confirmed by the master's answer in it.
        is_firm: bool,
        /// The appointment may have carried locks.
        is_full: bool,
    },
}

/// What a node says when it learns a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Answer {
    held: Mode,
    is_master: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Node {
    held: Mode,
    share: Share,
    queue: Option<Queue>,
    answer: Answer,
    /// The view that removed the lost home or master (for two mistakes).
    lost_in: u8,
    /// It gave its resource back (for one mistake).
    has_given_back: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Body {
    Appoint(Queue),
    Grant { mode: Mode, counter: u8 },
    Unlock,
    HandOver(Share),
    GiveBack { counter: u8 },
}

/// An unlock goes to the master of its view.
type Message = super::world::Message<Body>;

/// View, counter.
type Token = (u8, u8);

/// One state of the world.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State {
    world: World,
    nodes: Slots<Node>,
    messages: Vec<Message>,
    /// Highest token of a lock that was taken.
    highest: Token,
    /// A token was not above all earlier ones.
    is_token_fallen: bool,
    /// A home rebuilt while a removed life could act.
    has_rebuilt_early: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    World(Change),
    Learn(usize),
    /// The home makes a node master of the free resource.
    Appoint {
        home: usize,
        master: usize,
    },
    Grant {
        master: usize,
        to: usize,
        mode: Mode,
    },
    Unlock(usize),
    GiveBack(usize),
    Take {
        by: usize,
        message: Message,
    },
    /// A home takes its master's answer in the present view.
    HearMaster(usize),
    /// A master takes a holder's answer in the present view.
    HearHolder {
        master: usize,
        holder: usize,
    },
    /// A master drops the lock of an owed life that is gone.
    Purge {
        master: usize,
        of: usize,
    },
    /// A home without authority has all that it needs, and makes a node master if somebody holds the lock.
    Rebuild {
        home: usize,
        master: usize,
    },
    /// A mistake: a home without authority has it from the living master.
    Adopt {
        home: usize,
        master: usize,
    },
    /// A mistake: the new home reads what the former one, in an older view, knows.
    Seize {
        home: usize,
        from: usize,
    },
}

impl State {
    fn send(&mut self, from: usize, to: Option<usize>, body: Body) {
        let view = self.world.known(from).number;
        post(&mut self.messages, Message { view, from, to, body });
    }

    /// A grant on its way to the node in its view, or an unlock on its way from it.
    fn is_under_way(&self, view: u8, holder: usize) -> bool {
        self.messages.iter().any(|message| {
            message.view == view
                && match message.body {
                    Body::Grant { .. } => message.to == Some(holder),
                    Body::Unlock => message.from == holder,
                    _ => false,
                }
        })
    }

    fn hold(&mut self, holder: usize, mode: Mode, token: Token) {
        self.nodes[holder].held = mode;
        if token.1 > 0 {
            self.is_token_fallen |= token <= self.highest;
            self.highest = self.highest.max(token);
        }
    }
}

impl Gate {
    fn home(&self, view: &View) -> Option<usize> {
        let is_over_owed = !matches!(self.rule, Rule::HashOverMembers | Rule::Least) && self.mistake != Mistake::HeirOpensEmpty;
        view.home(is_over_owed)
    }

    fn is_home(&self, state: &State, i: usize) -> bool {
        state.world.is_acting(i) && self.home(state.world.known(i)) == Some(i)
    }

    /// A living master may grant in its view.
    fn may_grant(&self, state: &State, i: usize) -> bool {
        let known = state.world.known(i);
        let has_home = self.home(known).is_some_and(|home| known.is_member(home));
        let is_open = has_home || matches!(self.rule, Rule::MasterSuffices | Rule::Least);
        state.world.is_acting(i) && state.nodes[i].queue.is_some() && is_open
    }

    fn grants(&self, state: &State, master: usize, actions: &mut Vec<Action>) {
        let Some(queue) = state.nodes[master].queue.filter(|_| self.may_grant(state, master)) else { return };
        if self.tokens > 0 && queue.counter >= self.tokens {
            return;
        }
        let known = state.world.known(master);
        let modes: &[Mode] = if self.has_shared { &[Mode::Shared, Mode::Exclusive] } else { &[Mode::Exclusive] };
        for to in known.members() {
            for &mode in modes {
                let others = (0..NODES_MAX).filter(|j| *j != to);
                let is_free = others.clone().all(|j| queue.entries[j].mode.is_compatible(mode));
                if is_free && queue.entries[to].mode < mode && !state.is_under_way(known.number, to) {
                    actions.push(Action::Grant { master, to, mode });
                }
            }
        }
    }

    fn token(&self, view: u8, counter: u8) -> Token {
        if self.mistake == Mistake::CounterAlone { (0, counter) } else { (view, counter) }
    }

    fn grant(&self, state: &mut State, master: usize, to: usize, mode: Mode) {
        let view = state.world.known(master).number;
        let Some(queue) = &mut state.nodes[master].queue else { return };
        queue.entries[to] = Entry { mode, is_firm: true };
        queue.counter += u8::from(self.tokens > 0);
        let counter = queue.counter;
        if to == master {
            state.hold(to, mode, self.token(view, counter));
        } else {
            state.send(master, Some(to), Body::Grant { mode, counter });
        }
    }

    fn unlock(state: &mut State, holder: usize) {
        let node = &mut state.nodes[holder];
        node.held = Mode::None;
        if let Some(queue) = &mut node.queue {
            queue.entries[holder] = Entry { mode: Mode::None, is_firm: true };
        } else {
            state.send(holder, None, Body::Unlock);
        }
    }

    /// Mastery of a resource without locks goes back to the home.
    fn may_give_back(&self, state: &State, master: usize) -> bool {
        let known = state.world.known(master);
        let Some(home) = self.home(known).filter(|home| known.is_member(*home)) else { return false };
        let is_taken = home != master || matches!(state.nodes[home].share, Share::At { .. });
        state.world.is_acting(master) && state.nodes[master].queue.is_some_and(|queue| queue.is_empty()) && is_taken
    }

    fn give_back(&self, state: &mut State, master: usize) -> Option<()> {
        let home = self.home(state.world.known(master))?;
        let counter = state.nodes[master].queue.take()?.counter;
        state.nodes[master].has_given_back = self.mistake == Mistake::GivenBackKept;
        if home == master {
            state.nodes[home].share = Share::Free { counter };
        } else {
            state.send(master, Some(home), Body::GiveBack { counter });
        }
        Some(())
    }

    fn appoint(state: &mut State, home: usize, master: usize, queue: Queue) {
        if home == master {
            state.nodes[master].queue = Some(queue);
        } else {
            state.send(home, Some(master), Body::Appoint(queue));
        }
        state.nodes[home].share = Share::At { master, is_firm: true, is_full: !queue.is_empty() };
    }

    /// Is this message, which is older than what its receiver knows, taken all the same?
    fn is_taken_late(&self, body: &Body) -> bool {
        match body {
            Body::Appoint(_) => self.mistake == Mistake::OldAppointmentTaken,
            Body::Grant { .. } => self.mistake == Mistake::OldGrantTaken,
            Body::Unlock => self.mistake == Mistake::OldUnlockTaken,
            Body::HandOver(_) => self.mistake == Mistake::OldHandOverTaken,
            Body::GiveBack { .. } => false,
        }
    }

    fn may_take(&self, state: &State, by: usize, message: &Message) -> bool {
        let node = &state.nodes[by];
        let fits = match message.body {
            Body::Appoint(_) => node.queue.is_none(),
            Body::Grant { .. } => true,
            Body::Unlock => node.queue.is_some_and(|queue| queue.entries[message.from].mode != Mode::None),
            Body::HandOver(_) => self.is_home(state, by) && node.share == Share::Nothing,
            Body::GiveBack { .. } => matches!(node.share, Share::At { master, .. } if master == message.from),
        };
        fits && state.world.may_take(by, message, |body| self.is_taken_late(body))
    }

    fn take(&self, state: &mut State, by: usize, message: Message) {
        state.messages.retain(|other| *other != message);
        match message.body {
            Body::Appoint(queue) => state.nodes[by].queue = Some(queue),
            Body::Grant { mode, counter } => state.hold(by, mode, self.token(message.view, counter)),
            Body::Unlock => {
                if let Some(queue) = &mut state.nodes[by].queue {
                    queue.entries[message.from] = Entry { mode: Mode::None, is_firm: true };
                }
            }
            Body::HandOver(share) => state.nodes[by].share = share,
            Body::GiveBack { counter } => {
                let counter = if self.mistake == Mistake::CounterRestarts { 0 } else { counter };
                state.nodes[by].share = Share::Free { counter };
            }
        }
    }

    /// What a master keeps in a new view: tokens begin anew, locks of the owed stay, those of the released are gone.
    fn queue_in_new_view(&self, node: &Node, me: usize, before: &View, view: &View) -> Option<Queue> {
        let mut queue = node.queue.or(node.has_given_back.then(Queue::default))?;
        queue.counter = 0;
        for (slot, entry) in queue.entries.iter_mut().enumerate() {
            let is_kept = before.life(slot) == view.life(slot) && before.life(slot) != 0;
            let is_ghost = view.owed[slot].is_some();
            if !is_kept || (is_ghost && self.mistake == Mistake::GhostsForgotten) {
                *entry = Entry::default();
            } else if is_ghost && self.mistake == Mistake::GhostsWeaker && entry.mode == Mode::Exclusive {
                entry.mode = Mode::Shared;
            }
            entry.is_firm = false;
        }
        queue.entries[me] = Entry { mode: node.held, is_firm: true };
        Some(queue)
    }

    /// What a home goes on with when it is home in the new view too.
    fn share_in_new_view(&self, node: &Node, me: usize, before: &View, view: &View) -> Share {
        match node.share {
            Share::Nothing => Share::Nothing,
            Share::Free { .. } => Share::Free { counter: 0 },
            Share::At { master, is_full, .. } => {
                let is_by_slot = self.rule == Rule::MasterBySlot || self.mistake == Mistake::MasterBySlotLetIn;
                if master == me && node.queue.is_none() {
                    Share::Nothing
                } else if view.is_still_member(before, master) || (is_by_slot && view.is_member(master)) {
                    Share::At { master, is_firm: master == me, is_full }
                } else {
                    Share::Nothing
                }
            }
        }
    }

    /// What a new home begins with.
    fn first_share(&self, before: &View) -> Share {
        let is_by_join = before.number == 0;
        let is_open = match self.mistake {
            Mistake::JoinOpensEmpty => is_by_join,
            Mistake::HeirOpensEmpty => !is_by_join,
            _ => false,
        };
        if is_open { Share::Free { counter: 0 } } else { Share::Nothing }
    }

    /// A node learns the newest view: it answers, keeps or hands over what it has, and takes no older message from now on.
    fn learn(&self, state: &mut State, i: usize) {
        let before = state.world.learn(i);
        let view = *state.world.known(i);
        let node = &mut state.nodes[i];
        let share = self.share_in_new_view(node, i, &before, &view);
        let lost_master = match node.share {
            Share::At { master, .. } if share == Share::Nothing => view.owed[master],
            _ => None,
        };
        node.queue = self.queue_in_new_view(node, i, &before, &view);
        node.answer = Answer { held: node.held, is_master: node.queue.is_some() };
        let (old_home, new_home) = (self.home(&before), self.home(&view));
        let lost = match self.mistake {
            Mistake::RebuildAwaitsRemovedWithHome => old_home.filter(|home| Some(*home) != new_home).and_then(|home| before.owed[home]),
            Mistake::RebuildAwaitsRemovedWithMaster => lost_master,
            _ => None,
        };
        node.lost_in = lost.map_or(0, |owed| owed.removed_in);
        if new_home == Some(i) {
            let is_going_on = old_home == Some(i) || (self.mistake == Mistake::GiverKeeps && share != Share::Nothing);
            node.share = if is_going_on { share } else { self.first_share(&before) };
            return;
        }
        let is_giver = old_home == Some(i);
        let given = if self.mistake == Mistake::HandsOverNothing && is_giver && share == Share::Nothing {
            Share::Free { counter: 0 }
        } else {
            share
        };
        node.share = if self.mistake == Mistake::GiverKeeps { share } else { Share::Nothing };
        if is_giver && given != Share::Nothing && new_home.is_some_and(|home| view.is_member(home)) {
            state.send(i, new_home, Body::HandOver(given));
        }
    }

    fn hear_master(&self, state: &mut State, home: usize) {
        let Share::At { master, is_full, .. } = state.nodes[home].share else { return };
        let is_lost = is_full && self.mistake != Mistake::LostAppointmentIsFree;
        state.nodes[home].share = match state.nodes[master].answer.is_master {
            true => Share::At { master, is_firm: true, is_full },
            false if is_lost => Share::Nothing,
            false => Share::Free { counter: 0 },
        };
    }

    /// Answers in the present view that a home or a master can take now.
    fn hear(&self, state: &State, i: usize, actions: &mut Vec<Action>) {
        let known = state.world.known(i);
        let has_answered = |j: usize| known.number > 1 && known.is_member(j) && state.world.is_in(j, known.number);
        let node = &state.nodes[i];
        if let Share::At { master, is_firm: false, .. } = node.share
            && self.is_home(state, i)
            && has_answered(master)
            && self.mistake != Mistake::MastersUnheard
        {
            actions.push(Action::HearMaster(i));
        }
        if node.share == Share::Nothing && self.is_home(state, i) && self.mistake == Mistake::MasterGivesAuthority {
            let masters = known.members().filter(|j| has_answered(*j) && state.nodes[*j].answer.is_master);
            actions.extend(masters.map(|master| Action::Adopt { home: i, master }));
        }
        let Some(queue) = node.queue else { return };
        for (holder, entry) in queue.entries.iter().enumerate() {
            let is_open = !entry.is_firm || self.mistake == Mistake::AnswerOverrulesGrant;
            if entry.mode == Mode::None || holder == i {
                continue;
            }
            if is_open && has_answered(holder) && self.mistake != Mistake::HoldersUnheard {
                actions.push(Action::HearHolder { master: i, holder });
            }
            if known.owed[holder].is_some() && state.world.is_owed_gone(known, holder) {
                actions.push(Action::Purge { master: i, of: holder });
            }
        }
    }

    fn set_entry(state: &mut State, master: usize, of: usize, mode: Mode) {
        if let Some(queue) = &mut state.nodes[master].queue {
            queue.entries[of] = Entry { mode, is_firm: true };
        }
    }

    /// Every member has answered in the present view, and every node owed in it is gone.
    fn rebuilds(&self, state: &State, home: usize, actions: &mut Vec<Action>) {
        let known = state.world.known(home);
        if !self.is_home(state, home) || state.nodes[home].share != Share::Nothing {
            return;
        }
        let has_answered = |slot: usize| {
            let is_in_view = state.world.is_in(slot, known.number);
            match self.mistake {
                Mistake::OldAnswerTaken => {
                    let number = state.world.known(slot).number;
                    is_in_view || (state.world.is_acting(slot) && (2..known.number).contains(&number))
                }
                Mistake::RebuildWithoutAnswers => true,
                _ => is_in_view,
            }
        };
        let is_awaited = |slot: usize| match self.mistake {
            Mistake::RebuildBeforeGone => false,
            Mistake::RebuildAwaitsRemovedWithHome | Mistake::RebuildAwaitsRemovedWithMaster => {
                let lost_in = state.nodes[home].lost_in;
                lost_in == 0 || known.owed[slot].is_some_and(|owed| owed.removed_in == lost_in)
            }
            _ => true,
        };
        let is_gone = |slot: usize| !is_awaited(slot) || state.world.is_owed_gone(known, slot);
        if known.members().all(has_answered) && (0..NODES_MAX).all(is_gone) {
            let is_told = |slot: usize| self.answer(state, home, slot).is_some_and(|answer| answer.held != Mode::None);
            let masters = known.members().filter(|slot| *slot == home || is_told(*slot));
            actions.extend(masters.map(|master| Action::Rebuild { home, master }));
        }
    }

    /// What the home has been told by a member, when it rebuilds.
    fn answer(&self, state: &State, home: usize, slot: usize) -> Option<Answer> {
        let is_told = self.mistake != Mistake::RebuildWithoutAnswers || state.world.is_in(slot, state.world.known(home).number);
        is_told.then(|| state.nodes[slot].answer)
    }

    fn rebuild(&self, state: &mut State, home: usize, master: usize) {
        let known = *state.world.known(home);
        state.has_rebuilt_early |= state.world.may_removed_act(&known);
        let mut queue = Queue::default();
        for slot in known.members() {
            let answer = self.answer(state, home, slot).unwrap_or_default();
            if answer.is_master {
                state.nodes[home].share = Share::At { master: slot, is_firm: true, is_full: true };
                return;
            }
            queue.entries[slot] = Entry { mode: answer.held, is_firm: answer.held != Mode::None };
        }
        if queue.is_empty() {
            state.nodes[home].share = Share::Free { counter: 0 };
        } else {
            Self::appoint(state, home, master, queue);
        }
    }

    /// A home by join that waits, and a former home that has not learned the view.
    fn seizures(&self, state: &State, home: usize, actions: &mut Vec<Action>) {
        if self.mistake != Mistake::TakenFromOneEnd || !self.is_home(state, home) || state.nodes[home].share != Share::Nothing {
            return;
        }
        let known = state.world.known(home);
        let is_former = |from: &usize| {
            *from != home && self.is_home(state, *from) && known.is_member(*from) && state.nodes[*from].share != Share::Nothing
        };
        actions.extend((0..NODES_MAX).filter(is_former).map(|from| Action::Seize { home, from }));
    }

    /// No life is let in before the share of its earlier life has been rebuilt.
    fn is_rebuilt(&self, state: &State) -> bool {
        let home = self.home(&state.world.latest);
        home.is_some_and(|home| state.world.is_current(home) && state.nodes[home].share != Share::Nothing)
    }

    fn world_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut changes = state.world.changes(&self.bounds);
        let is_waiting = matches!(self.rule, Rule::LetInBeforeRebuild | Rule::Least);
        if !is_waiting && self.mistake != Mistake::MasterBySlotLetIn && !self.is_rebuilt(state) {
            changes.retain(|change| !matches!(change, Change::Admit(slot) if state.world.is_second_life(*slot)));
        }
        actions.extend(changes.into_iter().map(Action::World));
    }

    fn node_actions(&self, state: &State, i: usize, actions: &mut Vec<Action>) {
        if !state.world.is_acting(i) {
            return;
        }
        let known = state.world.known(i);
        if self.is_home(state, i) && matches!(state.nodes[i].share, Share::Free { .. }) {
            actions.extend(known.members().map(|master| Action::Appoint { home: i, master }));
        }
        self.grants(state, i, actions);
        if state.nodes[i].held != Mode::None && !state.is_under_way(known.number, i) {
            actions.push(Action::Unlock(i));
        }
        if self.may_give_back(state, i) {
            actions.push(Action::GiveBack(i));
        }
        self.hear(state, i, actions);
        self.rebuilds(state, i, actions);
        self.seizures(state, i, actions);
    }

    /// The gate is open for the members of the newest view and only locks that somebody has are in the way, or there are none any more.
    pub(crate) fn is_served(&self, state: &State) -> bool {
        let is_open = |i: usize| {
            let node = &state.nodes[i];
            let is_free = self.is_home(state, i) && matches!(node.share, Share::Free { .. });
            let is_true = |queue: Queue| (0..NODES_MAX).all(|j| queue.entries[j].mode == state.nodes[j].held);
            let is_master = node.queue.is_some_and(is_true) && self.may_grant(state, i);
            state.world.is_current(i) && (is_free || is_master) && !state.world.latest.has_owed()
        };
        let is_alive = |i: usize| state.world.is_current(i) || state.world.may_learn(i);
        state.world.is_settled() && ((0..NODES_MAX).any(is_open) || !(0..NODES_MAX).any(is_alive))
    }

    /// What makes the rules worth having, as far as the horizon reaches.
    fn reachable(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::sometimes("the share of a removed home opens", |model: &Self, state: &State| {
            let first = model.bounds.outsiders;
            let has_opened = |i: usize| model.is_home(state, i) && state.nodes[i].share != Share::Nothing;
            (first + 1..NODES_MAX).any(has_opened)
        })];
        if self.bounds.nodes > 2 {
            properties.extend([
                Property::sometimes("a grant leaves while a removed life may act", |model: &Self, state: &State| {
                    state.messages.iter().any(|message| {
                        let is_now = state.world.is_in(message.from, message.view) && model.may_grant(state, message.from);
                        let is_grant = matches!(message.body, Body::Grant { .. });
                        is_grant && is_now && state.world.may_removed_act(state.world.known(message.from))
                    })
                }),
                Property::sometimes("the lock of an owed node keeps its resource", |_, state: &State| {
                    (0..NODES_MAX).any(|i| {
                        let owed = state.world.known(i).owed;
                        let is_ghost = |queue: Queue, j: usize| owed[j].is_some() && queue.entries[j].mode != Mode::None;
                        state.nodes[i].queue.is_some_and(|queue| (0..NODES_MAX).any(|j| is_ghost(queue, j)))
                    })
                }),
                Property::sometimes("a home rebuilds with locks that it was told of", |_, state: &State| {
                    state.messages.iter().any(|message| matches!(message.body, Body::Appoint(queue) if !queue.is_empty()))
                }),
            ]);
        }
        if self.bounds.outsiders > 0 {
            properties.push(Property::sometimes("a home by join is handed its share", |model: &Self, state: &State| {
                let is_handed = |message: &&Message| matches!(message.body, Body::HandOver(_));
                state.messages.iter().filter(is_handed).any(|message| (0..NODES_MAX).any(|i| model.may_take(state, i, message)))
            }));
        }
        match self.rule {
            Rule::HashOverMembers => {
                properties.push(Property::sometimes("the share of a home opens that is owed", |model: &Self, state: &State| {
                    let owed = |i: usize| state.world.known(i).owed[model.bounds.outsiders];
                    (0..NODES_MAX).any(|i| model.is_home(state, i) && state.nodes[i].share != Share::Nothing && owed(i).is_some())
                }))
            }
            Rule::MasterSuffices => {
                properties.push(Property::sometimes("a master goes on whose home is owed", |model: &Self, state: &State| {
                    let has_home = |view: &View| model.home(view).is_some_and(|home| view.is_member(home));
                    (0..NODES_MAX).any(|i| model.may_grant(state, i) && !has_home(state.world.known(i)))
                }))
            }
            Rule::Design | Rule::LetInBeforeRebuild | Rule::MasterBySlot | Rule::Least => {}
        }
        if self.bounds.crashes > 0 {
            properties.push(Property::sometimes("a removed life comes back when its judges are gone", |_, state: &State| {
                state.world.has_returned && (0..NODES_MAX).any(|i| state.world.is_current(i))
            }));
        }
        if self.tokens > 0 {
            properties.push(Property::sometimes("mastery comes back with its counter", |_, state: &State| {
                state.nodes.iter().any(|node| matches!(node.share, Share::Free { counter } if counter > 0))
            }));
        }
        properties
    }
}

impl Model for Gate {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let world = World::new(&self.bounds);
        let mut nodes = [Node::default(); NODES_MAX];
        // The lowest member is home of a resource that nobody has used.
        nodes[self.bounds.outsiders].share = Share::Free { counter: 0 };
        let highest = (0, 0);
        vec![State { world, nodes, messages: Vec::new(), highest, is_token_fallen: false, has_rebuilt_early: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.world_actions(state, actions);
        for i in 0..self.bounds.nodes {
            if state.world.may_learn(i) {
                actions.push(Action::Learn(i));
            }
            self.node_actions(state, i, actions);
            let takes = state.messages.iter().filter(|message| self.may_take(state, i, message));
            actions.extend(takes.map(|message| Action::Take { by: i, message: *message }));
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::World(change) => state.world.change(change, &mut state.nodes),
            Action::Learn(i) => self.learn(&mut state, i),
            Action::Appoint { home, master } => {
                let Share::Free { counter } = state.nodes[home].share else { return None };
                Self::appoint(&mut state, home, master, Queue { counter, ..Queue::default() });
            }
            Action::Grant { master, to, mode } => self.grant(&mut state, master, to, mode),
            Action::Unlock(holder) => Self::unlock(&mut state, holder),
            Action::GiveBack(master) => self.give_back(&mut state, master)?,
            Action::Take { by, message } => self.take(&mut state, by, message),
            Action::HearMaster(home) => self.hear_master(&mut state, home),
            Action::HearHolder { master, holder } => {
                let held = state.nodes[holder].answer.held;
                Self::set_entry(&mut state, master, holder, held);
            }
            Action::Purge { master, of } => Self::set_entry(&mut state, master, of, Mode::None),
            Action::Rebuild { home, master } => self.rebuild(&mut state, home, master),
            Action::Adopt { home, master } => state.nodes[home].share = Share::At { master, is_firm: true, is_full: true },
            Action::Seize { home, from } => {
                state.nodes[home].share = match state.nodes[from].share {
                    Share::At { master, is_full, .. } => Share::At { master, is_firm: false, is_full },
                    share => share,
                };
            }
        }
        state.world.forget(&mut state.messages, |body| self.is_taken_late(body));
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(super::S2, |_, state: &State| {
                let held = |i: usize| state.nodes[i].held;
                (0..NODES_MAX).all(|i| (0..i).all(|j| held(i).is_compatible(held(j))))
            }),
            Property::always(super::S3, |_, state: &State| !state.has_rebuilt_early),
            Property::always(super::S4, |_, state: &State| !state.is_token_fallen),
        ];
        match self.only {
            Some(only) => properties.retain(|property| property.name == only),
            None => properties.extend(self.reachable()),
        }
        properties
    }
}
