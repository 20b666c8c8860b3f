//! What: value blocks under the gate: a master that lives keeps the block, a lost one's block is rebuilt from the holders' copies.
//! Owns: one resource with its value block, locks that read and write it, the number of the last change that anybody made.
//! Invariants: a writer changes what the block stands for at any time while it holds the lock, and the block says so only from the
//!   write on, with which it gives the lock back. A holder has one operation under way; what was under way is said again in each view.
//! Does not: model the home (the first member rebuilds what has no master), nor what is read by null locks, which writers do not keep out.
//! Called by: `super`.

use stateright::{Model, Property};

use super::world::{Bounds, Change, NODES_MAX, Slots, View, World, post};

/// A departure from the rules of value blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// None: the rules as they are built.
    None,
    /// Less than what is built, and enough: a master that skipped a view marks the block only if it drops the lock of a writer.
    NoMarkAfterSkippedView,
    /// Less than what is built, and enough: a block that a rebuild marks invalid keeps its number.
    NumberKept,
    /// The block stays valid when the lock of a dead writer is dropped.
    ValidAfterDeadWriter,
    /// The block stays valid when the writer was removed and released in views that the master skipped.
    ValidAfterSkippedView,
    /// After a skipped view the next life of a dead writer says that it holds nothing: that is taken for the writer's word.
    WriterBySlot,
    /// The oldest copy is taken instead of the newest.
    OlderCopyTaken,
    /// The newest copy is valid, whoever holds it and in whatever mode.
    NewestCopyIsValid,
    /// A write that was lost with its view is not said again.
    WriteNotSaidAgain,
    /// A write that is said again is done again.
    WriteDoneAgain,
    /// A write that is said again gets the number of the newest.
    NewNumberForOldWrite,
}

/// The model with its horizon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lvb {
    pub(crate) bounds: Bounds,
    /// Slots below this one ask for no lock.
    pub(crate) first_holder: usize,
    /// Changes of what the block stands for.
    pub(crate) changes: u8,
    pub(crate) mistake: Mistake,
    /// Check this property only.
    pub(crate) only: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) enum Mode {
    #[default]
    None,
    Null,
    Reader,
    Writer,
}

impl Mode {
    fn is_compatible(self, other: Self) -> bool {
        self <= Self::Null || other <= Self::Null || (self == Self::Reader && other == Self::Reader)
    }
}

/// A value block, or a copy of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Block {
    /// Number of the write.
    sequence: u8,
    /// The change that it shows.
    value: u8,
    is_invalid: bool,
}

/// A lock as its master knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Entry {
    mode: Mode,
    /// The number of this lock's own last write.
    written: u8,
    /// Said or granted in the present view.
    is_firm: bool,
}

/// A lock is given back down to a mode, with what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Down {
    to: Mode,
    value: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Lock {
    mode: Mode,
    copy: Block,
    /// A change that the block does not show yet.
    changed: Option<u8>,
    pending: Option<Down>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Master {
    entries: Slots<Entry>,
    block: Block,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Node {
    lock: Lock,
    master: Option<Master>,
    /// What it said when it learned the view: its lock, and whether it is master.
    said: Lock,
    was_master: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Body {
    Grant(Mode, Block),
    /// To the master of its view, whoever that is.
    Down(Down),
    /// The answer to that, with the number of the write.
    Done(Down, Block),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Message {
    view: u8,
    holder: usize,
    body: Body,
}

/// One state of the world.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State {
    world: World,
    nodes: Slots<Node>,
    messages: Vec<Message>,
    /// The last change.
    last: u8,
    has_read_stale: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    World(Change),
    Learn(usize),
    Grant {
        master: usize,
        to: usize,
        mode: Mode,
    },
    /// A writer changes what the block stands for.
    Change(usize),
    Down {
        holder: usize,
        to: Mode,
    },
    Take {
        by: usize,
        message: Message,
    },
    /// A master takes what a holder said in the present view.
    Hear {
        master: usize,
        holder: usize,
    },
    /// A master drops the lock of an owed life that is gone.
    Purge {
        master: usize,
        of: usize,
    },
    Rebuild(usize),
}

impl State {
    fn send(&mut self, view: u8, holder: usize, body: Body) {
        post(&mut self.messages, Message { view, holder, body });
    }

    /// Blocks of masters that have the resource by a rebuild.
    fn rebuilt(&self) -> impl Iterator<Item = Block> {
        self.nodes[1..].iter().filter_map(|node| node.master.map(|master| master.block))
    }

    fn take_grant(&mut self, holder: usize, mode: Mode, block: Block) {
        self.has_read_stale |= mode >= Mode::Reader && !block.is_invalid && block.value != self.last;
        let lock = &mut self.nodes[holder].lock;
        (lock.mode, lock.copy) = (mode, block);
    }

    fn take_done(&mut self, holder: usize, down: Down, block: Block) {
        let lock = &mut self.nodes[holder].lock;
        if lock.pending.take().is_none() {
            return;
        }
        lock.mode = down.to;
        if let Some(value) = down.value {
            lock.copy = Block { value, ..block };
        }
    }

    /// A grant on its way to the holder, or a lock given back on its way from it, in the view that it knows.
    fn is_under_way(&self, holder: usize) -> bool {
        let known = self.world.known(holder).number;
        self.messages.iter().any(|message| message.holder == holder && message.view == known)
    }
}

impl Lvb {
    fn grants(&self, state: &State, master: usize, actions: &mut Vec<Action>) {
        let Some(Master { entries, .. }) = state.nodes[master].master else { return };
        let known = state.world.known(master);
        for to in known.members().filter(|to| *to >= self.first_holder) {
            let is_asking = state.world.is_in(to, known.number) && state.nodes[to].lock.pending.is_none() && !state.is_under_way(to);
            for mode in [Mode::Reader, Mode::Writer] {
                let is_free = (0..NODES_MAX).all(|j| j == to || entries[j].mode.is_compatible(mode));
                if is_asking && is_free && entries[to].mode < mode {
                    actions.push(Action::Grant { master, to, mode });
                }
            }
        }
    }

    fn grant(state: &mut State, master: usize, to: usize, mode: Mode) {
        let view = state.world.known(master).number;
        let Some(Master { entries, block }) = &mut state.nodes[master].master else { return };
        entries[to] = Entry { mode, written: 0, is_firm: true };
        let block = *block;
        if to == master {
            state.take_grant(to, mode, block);
        } else {
            state.send(view, to, Body::Grant(mode, block));
        }
    }

    fn down(&self, state: &mut State, holder: usize, to: Mode) {
        let view = state.world.known(holder).number;
        let node = &mut state.nodes[holder];
        let down = Down { to, value: node.lock.changed.take() };
        if down.value.is_some() {
            node.lock.pending = Some(down);
        } else {
            node.lock.mode = to;
        }
        if node.master.is_some() {
            self.do_down(state, holder, holder, down);
        } else {
            state.send(view, holder, Body::Down(down));
        }
    }

    /// The master takes a lock back, for the first time or again.
    fn do_down(&self, state: &mut State, master: usize, holder: usize, down: Down) {
        let view = state.world.known(master).number;
        let Some(Master { entries, block }) = &mut state.nodes[master].master else { return };
        let entry = &mut entries[holder];
        let is_again = entry.mode <= down.to;
        if let Some(value) = down.value
            && (!is_again || self.mistake == Mistake::WriteDoneAgain)
        {
            *block = Block { sequence: block.sequence + 1, value, is_invalid: false };
            entry.written = block.sequence;
        }
        (entry.mode, entry.is_firm) = (down.to, true);
        // Said again, others may have written since: their number is not this write's.
        if down.value.is_none() {
            return;
        }
        let sequence = if self.mistake == Mistake::NewNumberForOldWrite { block.sequence } else { entry.written };
        let written = Block { sequence, is_invalid: block.is_invalid || block.sequence != sequence, ..*block };
        if holder == master {
            state.take_done(holder, down, written);
        } else {
            state.send(view, holder, Body::Done(down, written));
        }
    }

    fn may_take(state: &State, by: usize, message: &Message) -> bool {
        let fits = match message.body {
            Body::Grant(..) | Body::Done(..) => message.holder == by,
            Body::Down(_) => state.nodes[by].master.is_some(),
        };
        fits && state.world.is_in(by, message.view)
    }

    fn take(&self, state: &mut State, by: usize, message: Message) {
        state.messages.retain(|other| *other != message);
        match message.body {
            Body::Grant(mode, block) => state.take_grant(by, mode, block),
            Body::Down(down) => self.do_down(state, by, message.holder, down),
            Body::Done(down, block) => state.take_done(by, down, block),
        }
    }

    fn forget_messages(state: &mut State) {
        let State { world, messages, .. } = state;
        messages.retain(|message| match message.body {
            Body::Down(_) => (0..NODES_MAX).any(|by| world.may_reach(by, message.view)),
            Body::Grant(..) | Body::Done(..) => world.may_reach(message.holder, message.view),
        });
    }

    /// What a master keeps: the locks of members and owed. A writer that is no more may have changed what the block stands for.
    fn master_in_new_view(&self, mut master: Master, before: &View, view: &View) -> Master {
        let is_skip = view.number != before.number + 1;
        let is_exact = matches!(self.mistake, Mistake::NoMarkAfterSkippedView | Mistake::ValidAfterSkippedView | Mistake::WriterBySlot);
        for (slot, entry) in master.entries.iter_mut().enumerate() {
            let is_by_slot = self.mistake == Mistake::WriterBySlot && view.is_member(slot);
            if before.life(slot) != view.life(slot) && !is_by_slot {
                let is_unseen = before.owed[slot].is_none() && self.mistake == Mistake::ValidAfterSkippedView;
                let is_marked = self.mistake != Mistake::ValidAfterDeadWriter && !is_unseen;
                master.block.is_invalid |= is_marked && entry.mode == Mode::Writer;
                *entry = Entry::default();
            }
            entry.is_firm = false;
        }
        master.block.is_invalid |= is_skip && !is_exact;
        master
    }

    fn learn(&self, state: &mut State, i: usize) {
        let before = state.world.learn(i);
        let view = *state.world.known(i);
        let node = &mut state.nodes[i];
        node.master = node.master.map(|master| self.master_in_new_view(master, &before, &view));
        if let Some(master) = &mut node.master {
            master.entries[i].is_firm = true;
        }
        node.was_master = node.master.is_some();
        node.said = node.lock;
        if self.mistake == Mistake::WriteNotSaidAgain
            && let Some(down) = node.said.pending.take()
        {
            // It gives the lock back in its own books.
            node.said.mode = down.to;
            (node.lock.mode, node.lock.pending) = (down.to, None);
        }
    }

    fn hear(&self, state: &mut State, master: usize, holder: usize) {
        let said = state.nodes[holder].said;
        if let Some(down) = said.pending {
            self.do_down(state, master, holder, down);
        } else if let Some(Master { entries, .. }) = &mut state.nodes[master].master {
            entries[holder] = Entry { mode: said.mode, is_firm: true, ..entries[holder] };
        }
    }

    fn purge(&self, state: &mut State, master: usize, of: usize) {
        if let Some(Master { entries, block }) = &mut state.nodes[master].master {
            block.is_invalid |= entries[of].mode == Mode::Writer && self.mistake != Mistake::ValidAfterDeadWriter;
            entries[of] = Entry { is_firm: true, ..Entry::default() };
        }
    }

    /// The first member rebuilds what nobody is master of: everybody has answered in its view, everybody owed is gone.
    fn may_rebuild(state: &State, i: usize) -> bool {
        let known = state.world.known(i);
        state.world.is_acting(i)
            && known.number > 1
            && known.home(false) == Some(i)
            && state.nodes[i].master.is_none()
            && known.members().all(|slot| state.world.is_in(slot, known.number) && !state.nodes[slot].was_master)
            && (0..NODES_MAX).all(|slot| state.world.is_owed_gone(known, slot))
    }

    fn rebuild(&self, state: &mut State, i: usize) {
        let known = *state.world.known(i);
        let block = self.rebuilt_block(known.members().map(|slot| state.nodes[slot].said));
        let mut master = Master { block, ..Master::default() };
        for slot in known.members() {
            let said = state.nodes[slot].said;
            let mode = said.pending.map_or(said.mode, |down| down.to);
            master.entries[slot] = Entry { mode, written: 0, is_firm: mode != Mode::None };
        }
        state.nodes[i].master = Some(master);
        for slot in known.members() {
            if let Some(down) = state.nodes[slot].said.pending {
                // Others may have written since: no number.
                let block = Block { is_invalid: true, ..Block::default() };
                if slot == i {
                    state.take_done(slot, down, block);
                } else {
                    state.send(known.number, slot, Body::Done(down, block));
                }
            }
        }
    }

    /// The newest copy; valid only if a lock proves that it has excluded writers ever since it saw that copy.
    fn rebuilt_block(&self, said: impl Iterator<Item = Lock>) -> Block {
        let mut best = Block { is_invalid: true, ..Block::default() };
        let (mut oldest, mut proved, mut newest) = (None::<Block>, None::<Block>, 0);
        for lock in said.filter(|lock| lock.mode != Mode::None) {
            let copy = match lock.pending {
                Some(Down { value: Some(value), .. }) => Block { sequence: lock.copy.sequence + 1, value, is_invalid: true },
                _ => lock.copy,
            };
            newest = newest.max(copy.sequence);
            if copy.sequence > best.sequence {
                best = copy;
            }
            if oldest.is_none_or(|oldest| copy.sequence < oldest.sequence) {
                oldest = Some(copy);
            }
            let is_proof = lock.mode >= Mode::Reader && lock.pending.is_none();
            if is_proof && proved.is_none_or(|proved| proved.sequence < lock.copy.sequence) {
                proved = Some(lock.copy);
            }
        }
        best.is_invalid = match self.mistake {
            Mistake::NewestCopyIsValid => best.is_invalid,
            _ => proved.is_none_or(|proved| proved.is_invalid || proved.sequence != best.sequence),
        };
        if self.mistake == Mistake::OlderCopyTaken {
            best.value = oldest.unwrap_or_default().value;
        }
        if best.is_invalid && self.mistake != Mistake::NumberKept {
            // No copy that anybody has may be taken for this one.
            best.sequence = newest + 1;
        }
        best
    }

    fn master_actions(&self, state: &State, i: usize, actions: &mut Vec<Action>) {
        let Some(Master { entries, .. }) = state.nodes[i].master else { return };
        let known = state.world.known(i);
        for (slot, entry) in entries.iter().enumerate().filter(|(_, entry)| !entry.is_firm) {
            let has_lock = entry.mode != Mode::None || state.nodes[slot].said.pending.is_some();
            if known.is_member(slot) && state.world.is_in(slot, known.number) && has_lock && slot != i {
                actions.push(Action::Hear { master: i, holder: slot });
            }
            if known.owed[slot].is_some() && entry.mode != Mode::None && state.world.is_owed_gone(known, slot) {
                actions.push(Action::Purge { master: i, of: slot });
            }
        }
        self.grants(state, i, actions);
    }

    fn node_actions(&self, state: &State, i: usize, actions: &mut Vec<Action>) {
        if !state.world.is_acting(i) {
            return;
        }
        let lock = &state.nodes[i].lock;
        if lock.pending.is_none() && lock.mode == Mode::Writer && lock.changed.is_none() && state.last < self.changes {
            actions.push(Action::Change(i));
        }
        if lock.pending.is_none() && !state.is_under_way(i) {
            let lower = [Mode::Null, Mode::Reader].into_iter().filter(|to| *to < lock.mode);
            actions.extend(lower.map(|to| Action::Down { holder: i, to }));
        }
        if Self::may_rebuild(state, i) {
            actions.push(Action::Rebuild(i));
        }
        self.master_actions(state, i, actions);
        let takes = state.messages.iter().filter(|message| Self::may_take(state, i, message));
        actions.extend(takes.map(|message| Action::Take { by: i, message: *message }));
    }

    fn reachable() -> Vec<Property<Self>> {
        vec![
            Property::sometimes("a rebuilt block is valid", |_, state: &State| {
                state.rebuilt().any(|block| !block.is_invalid && block.value > 0)
            }),
            Property::sometimes("a rebuilt block is not valid", |_, state: &State| state.rebuilt().any(|block| block.is_invalid)),
            Property::sometimes("a block stays valid while a dead reader is owed", |_, state: &State| {
                let is_owed = |i: usize| (0..NODES_MAX).any(|j| state.world.known(i).owed[j].is_some());
                (0..NODES_MAX)
                    .any(|i| is_owed(i) && state.nodes[i].master.is_some_and(|master| !master.block.is_invalid && master.block.value > 0))
            }),
        ]
    }
}

impl Model for Lvb {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let world = World::new(&self.bounds);
        let mut nodes = [Node::default(); NODES_MAX];
        nodes[self.bounds.outsiders].master = Some(Master::default());
        vec![State { world, nodes, messages: Vec::new(), last: 0, has_read_stale: false }]
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
            Action::Grant { master, to, mode } => Self::grant(&mut state, master, to, mode),
            Action::Change(i) => {
                state.last += 1;
                state.nodes[i].lock.changed = Some(state.last);
            }
            Action::Down { holder, to } => self.down(&mut state, holder, to),
            Action::Take { by, message } => self.take(&mut state, by, message),
            Action::Hear { master, holder } => self.hear(&mut state, master, holder),
            Action::Purge { master, of } => self.purge(&mut state, master, of),
            Action::Rebuild(i) => self.rebuild(&mut state, i),
        }
        Self::forget_messages(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::always(super::S12, |_, state: &State| !state.has_read_stale)];
        if self.only.is_none() {
            properties.extend(Self::reachable());
        }
        properties
    }
}
