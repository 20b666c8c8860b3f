//! What: a coarser recovery, which the code had first: two rounds in every view, the whole lockspace closed while anybody is owed, the hash over members.
//! Owns: one resource with its home, master and holders; a second failure at any point of a recovery.
//! Invariants: everybody tells the home when it learns a view; the home tells everybody when all have; nothing but these two rounds is
//!   taken before a node has heard the second one. Messages are taken at any time after they were sent, or never.
//! Does not: model value blocks or tokens; who had joined the lockspace (all nodes had).
//! Called by: `super`.

use stateright::{Model, Property};

use super::world::{Bounds, Change, Mode, NODES_MAX, Slots, View, World, post};

/// A departure from the rules of recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// None: the rules as they are built.
    None,
    /// Nobody waits for the owed.
    OpenBeforeGone,
    /// The owed of the view in which the recovery began are waited for, not those who were removed while it went on.
    OpenBeforeSecondGone,
    /// Only those are waited for whom the newest view removed.
    OpenBeforeFirstGone,
    /// The home does without the answers that have not come.
    AnswerMissing,
    /// What a member answered in the round before is taken in this one.
    OldAnswerTaken,
    /// What the home said in the round before is taken in this one.
    OldSecondRoundTaken,
    OldGrantTaken,
    /// A node that has finished a recovery goes on in the next view without another.
    NoSecondRecovery,
    /// A new master does not get the locks that were reported.
    ReportsForgotten,
}

/// The model with its horizon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recovery {
    pub(crate) bounds: Bounds,
    pub(crate) mistake: Mistake,
    /// Check this property only.
    pub(crate) only: Option<&'static str>,
}

type Queue = Slots<Mode>;

/// The first round: what a node says when it learns a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Answer {
    held: Mode,
    is_master: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Node {
    held: Mode,
    /// As master: what it knows of the locks.
    queue: Option<Queue>,
    answer: Answer,
    /// As home: the first round is over.
    has_judged: bool,
    /// As home: who is master.
    master: Option<usize>,
    /// The second round is over.
    is_running: bool,
    /// The view in which the recovery began (for one mistake).
    began_in: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Body {
    /// The second round; to the master with what was reported.
    Second(Option<Queue>),
    Appoint,
    Grant(Mode),
    Unlock,
    GiveBack,
}

/// An unlock goes to the master of its view.
type Message = super::world::Message<Body>;

/// One state of the world.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State {
    world: World,
    nodes: Slots<Node>,
    messages: Vec<Message>,
    /// Something was granted in a view while a life that it had removed could act.
    has_granted_early: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    World(Change),
    Learn(usize),
    /// The home has heard everybody and tells everybody; this node is to be master if nobody is and somebody holds the lock.
    Judge {
        home: usize,
        master: usize,
    },
    /// The home makes a node master of a resource that nobody uses.
    Appoint {
        home: usize,
        master: usize,
    },
    Grant {
        master: usize,
        to: usize,
    },
    Unlock(usize),
    GiveBack(usize),
    Take {
        by: usize,
        message: Message,
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
                    Body::Grant(_) => message.to == Some(holder),
                    Body::Unlock => message.from == holder,
                    _ => false,
                }
        })
    }

    fn home(view: &View) -> Option<usize> {
        view.home(false)
    }

    fn is_running(&self, i: usize) -> bool {
        self.world.is_acting(i) && self.nodes[i].is_running
    }

    /// The view of a home that still hears answers, when a later view is decided already.
    fn under_way(&self, home: usize) -> Option<View> {
        let known = *self.world.known(home);
        let is_hearing = self.world.is_acting(home) && Self::home(&known) == Some(home) && !self.nodes[home].has_judged;
        (is_hearing && known.number > 1 && known.number < self.world.latest.number).then_some(known)
    }

    fn is_master(&self, i: usize) -> bool {
        self.world.is_acting(i) && self.nodes[i].queue.is_some()
    }
}

impl Recovery {
    /// Nobody is owed who may have joined the lockspace.
    fn is_open(&self, state: &State, i: usize) -> bool {
        let known = state.world.known(i);
        known.owed.iter().flatten().all(|owed| match self.mistake {
            Mistake::OpenBeforeGone => true,
            Mistake::OpenBeforeSecondGone => owed.removed_in > state.nodes[i].began_in,
            Mistake::OpenBeforeFirstGone => owed.removed_in != known.number,
            _ => false,
        })
    }

    fn may_grant(&self, state: &State, i: usize) -> bool {
        state.is_running(i) && state.is_master(i) && self.is_open(state, i)
    }

    fn grants(&self, state: &State, master: usize, actions: &mut Vec<Action>) {
        let Some(queue) = state.nodes[master].queue.filter(|_| self.may_grant(state, master)) else { return };
        let known = state.world.known(master);
        let is_free = queue.iter().all(|mode| *mode == Mode::None);
        let holders = known.members().filter(|to| is_free && !state.is_under_way(known.number, *to));
        actions.extend(holders.map(|to| Action::Grant { master, to }));
    }

    fn grant(state: &mut State, master: usize, to: usize) {
        let known = *state.world.known(master);
        state.has_granted_early |= state.world.may_removed_act(&known);
        if let Some(queue) = &mut state.nodes[master].queue {
            queue[to] = Mode::Exclusive;
        }
        if to == master {
            state.nodes[to].held = Mode::Exclusive;
        } else {
            state.send(master, Some(to), Body::Grant(Mode::Exclusive));
        }
    }

    fn unlock(state: &mut State, holder: usize) {
        let node = &mut state.nodes[holder];
        node.held = Mode::None;
        match &mut node.queue {
            Some(queue) if node.is_running => queue[holder] = Mode::None,
            _ => state.send(holder, None, Body::Unlock),
        }
    }

    /// What a node keeps, and what it says, when it learns the newest view.
    fn learn(&self, state: &mut State, i: usize) {
        let before = state.world.learn(i);
        let view = *state.world.known(i);
        let was_open = state.nodes[i].is_running && self.is_open(state, i) && !before.has_owed();
        let node = &mut state.nodes[i];
        if let Some(queue) = &mut node.queue {
            for (slot, mode) in queue.iter_mut().enumerate() {
                if before.life(slot) != view.life(slot) {
                    *mode = Mode::None;
                }
            }
        }
        node.answer = Answer { held: node.held, is_master: node.queue.is_some() };
        node.is_running &= self.mistake == Mistake::NoSecondRecovery;
        node.has_judged = false;
        node.master = None;
        if self.mistake == Mistake::OpenBeforeSecondGone && (was_open || node.began_in == 0) {
            node.began_in = view.number;
        }
    }

    fn judges(&self, state: &State, home: usize, actions: &mut Vec<Action>) {
        let known = state.world.known(home);
        if State::home(known) != Some(home) || state.nodes[home].has_judged || known.number == 1 {
            return;
        }
        let has_answered = |slot: usize| {
            let number = state.world.known(slot).number;
            let is_old = state.world.is_acting(slot) && (2..known.number).contains(&number);
            state.world.is_in(slot, known.number)
                || self.mistake == Mistake::AnswerMissing
                || (is_old && self.mistake == Mistake::OldAnswerTaken)
        };
        if known.members().all(has_answered) {
            let masters = known.members().filter(|slot| *slot == home || state.nodes[*slot].answer.held != Mode::None);
            actions.extend(masters.map(|master| Action::Judge { home, master }));
        }
    }

    /// A master that lives stays; else the chosen one, if there is any lock.
    fn judge(&self, state: &mut State, home: usize, chosen: usize) {
        let known = *state.world.known(home);
        let mut queue = Queue::default();
        let mut master = None;
        for slot in known.members() {
            let is_heard = self.mistake != Mistake::AnswerMissing || state.world.is_in(slot, known.number);
            let answer = if is_heard { state.nodes[slot].answer } else { Answer::default() };
            queue[slot] = answer.held;
            master = master.or(answer.is_master.then_some(slot));
        }
        if queue.iter().any(|mode| *mode != Mode::None) {
            master = master.or(Some(chosen));
        }
        if self.mistake == Mistake::ReportsForgotten {
            queue = Queue::default();
        }
        let node = &mut state.nodes[home];
        (node.has_judged, node.master) = (true, master);
        for slot in known.members() {
            let taken = (master == Some(slot)).then_some(queue);
            if slot == home {
                Self::begin(state, slot, taken);
            } else {
                state.send(home, Some(slot), Body::Second(taken));
            }
        }
    }

    /// The lock service of the view begins: a master that goes on keeps the locks of the owed, members have what they reported.
    fn begin(state: &mut State, i: usize, taken: Option<Queue>) {
        let known = *state.world.known(i);
        let node = &mut state.nodes[i];
        node.is_running = true;
        let before = node.queue.unwrap_or_default();
        node.queue = taken.map(|mut queue| {
            for slot in 0..NODES_MAX {
                if !known.is_member(slot) {
                    queue[slot] = before[slot];
                }
            }
            queue
        });
    }

    fn may_give_back(state: &State, master: usize) -> bool {
        let is_empty = |queue: Queue| queue.iter().all(|mode| *mode == Mode::None);
        state.is_running(master) && state.nodes[master].queue.is_some_and(is_empty)
    }

    fn give_back(state: &mut State, master: usize) {
        let home = State::home(state.world.known(master));
        state.nodes[master].queue = None;
        if home == Some(master) {
            state.nodes[master].master = None;
        } else {
            state.send(master, home, Body::GiveBack);
        }
    }

    fn is_taken_late(&self, body: &Body) -> bool {
        match body {
            Body::Second(_) => self.mistake == Mistake::OldSecondRoundTaken,
            Body::Grant(_) => self.mistake == Mistake::OldGrantTaken,
            _ => false,
        }
    }

    fn may_take(&self, state: &State, by: usize, message: &Message) -> bool {
        let node = &state.nodes[by];
        let fits = match message.body {
            Body::Second(_) => true,
            Body::Appoint => node.is_running && node.queue.is_none(),
            Body::Grant(_) => node.is_running,
            Body::Unlock => node.is_running && node.queue.is_some_and(|queue| queue[message.from] != Mode::None),
            Body::GiveBack => node.is_running && node.master == Some(message.from),
        };
        fits && state.world.may_take(by, message, |body| self.is_taken_late(body))
    }

    fn take(state: &mut State, by: usize, message: Message) {
        state.messages.retain(|other| *other != message);
        match message.body {
            Body::Second(taken) => Self::begin(state, by, taken),
            Body::Appoint => state.nodes[by].queue = Some(Queue::default()),
            Body::Grant(mode) => state.nodes[by].held = mode,
            Body::Unlock => {
                if let Some(queue) = &mut state.nodes[by].queue {
                    queue[message.from] = Mode::None;
                }
            }
            Body::GiveBack => state.nodes[by].master = None,
        }
    }

    fn node_actions(&self, state: &State, i: usize, actions: &mut Vec<Action>) {
        if !state.world.is_acting(i) {
            return;
        }
        let known = state.world.known(i);
        self.judges(state, i, actions);
        if State::home(known) == Some(i) && state.is_running(i) && state.nodes[i].master.is_none() {
            actions.extend(known.members().map(|master| Action::Appoint { home: i, master }));
        }
        self.grants(state, i, actions);
        if state.nodes[i].held != Mode::None && !state.is_under_way(known.number, i) {
            actions.push(Action::Unlock(i));
        }
        if Self::may_give_back(state, i) {
            actions.push(Action::GiveBack(i));
        }
        let takes = state.messages.iter().filter(|message| self.may_take(state, i, message));
        actions.extend(takes.map(|message| Action::Take { by: i, message: *message }));
    }

    /// The lockspace is open for the members of the newest view, or there are none any more.
    pub(crate) fn is_served(&self, state: &State) -> bool {
        let is_open = |i: usize| {
            let is_free = State::home(&state.world.latest) == Some(i) && state.nodes[i].master.is_none();
            let is_true = |queue: Queue| (0..NODES_MAX).all(|j| queue[j] == state.nodes[j].held);
            let is_master = state.nodes[i].queue.is_some_and(is_true);
            state.world.is_current(i) && state.is_running(i) && self.is_open(state, i) && (is_free || is_master)
        };
        let is_alive = |i: usize| state.world.is_current(i) || state.world.may_learn(i);
        state.world.is_settled() && ((0..NODES_MAX).any(is_open) || !(0..NODES_MAX).any(is_alive))
    }

    fn reachable() -> Vec<Property<Self>> {
        vec![
            Property::sometimes("a member is removed that has answered", |_, state: &State| {
                (0..NODES_MAX)
                    .filter_map(|h| state.under_way(h))
                    .any(|view| view.members().any(|slot| state.world.is_in(slot, view.number) && !state.world.latest.is_member(slot)))
            }),
            Property::sometimes("a member is removed that has not answered", |_, state: &State| {
                (0..NODES_MAX).filter_map(|h| state.under_way(h)).any(|view| {
                    view.members().any(|slot| state.world.known(slot).number < view.number && !state.world.latest.is_member(slot))
                })
            }),
            Property::sometimes("the new master is removed before it has heard of it", |_, state: &State| {
                let is_lost = |to: Option<usize>| to.is_some_and(|to| !state.world.latest.is_member(to));
                state.messages.iter().any(|message| matches!(message.body, Body::Second(Some(_))) && is_lost(message.to))
            }),
            Property::sometimes("the lockspace opens after two removals", |model: &Self, state: &State| {
                (0..NODES_MAX).any(|i| model.may_grant(state, i) && state.world.known(i).members().count() + 2 <= model.bounds.nodes)
            }),
        ]
    }
}

impl Model for Recovery {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let world = World::new(&self.bounds);
        let mut nodes = [Node::default(); NODES_MAX];
        nodes[self.bounds.outsiders..self.bounds.nodes].fill(Node { is_running: true, ..Node::default() });
        vec![State { world, nodes, messages: Vec::new(), has_granted_early: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(state.world.changes(&self.bounds).into_iter().map(Action::World));
        for i in 0..self.bounds.nodes {
            if state.world.may_learn(i) {
                actions.push(Action::Learn(i));
            }
            self.node_actions(state, i, actions);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::World(change) => state.world.change(change, &mut state.nodes),
            Action::Learn(i) => self.learn(&mut state, i),
            Action::Judge { home, master } => self.judge(&mut state, home, master),
            Action::Appoint { home, master } => {
                state.nodes[home].master = Some(master);
                if home == master {
                    state.nodes[home].queue = Some(Queue::default());
                } else {
                    state.send(home, Some(master), Body::Appoint);
                }
            }
            Action::Grant { master, to } => Self::grant(&mut state, master, to),
            Action::Unlock(holder) => Self::unlock(&mut state, holder),
            Action::GiveBack(master) => Self::give_back(&mut state, master),
            Action::Take { by, message } => Self::take(&mut state, by, message),
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
            Property::always(super::S3, |_, state: &State| !state.has_granted_early),
            Property::always(super::ONE_MASTER, |_, state: &State| {
                let masters = |number: u8| (0..NODES_MAX).filter(|i| state.world.is_in(*i, number) && state.is_master(*i)).count();
                (1..=state.world.latest.number).all(|number| masters(number) <= 1)
            }),
        ];
        match self.only {
            // What the fine gate promises, and this one does not.
            Some(super::NEVER_STOPS) => {
                let is_going_on = |model: &Self, state: &State| (0..NODES_MAX).all(|i| !state.is_master(i) || model.may_grant(state, i));
                properties = vec![Property::always(super::NEVER_STOPS, is_going_on)];
            }
            Some(only) => properties.retain(|property| property.name == only),
            None => properties.extend(Self::reachable()),
        }
        properties
    }
}
