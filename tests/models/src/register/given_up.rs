//! What: giving up a view number whose vote unit cannot be read, as an explicit-state model.
//! Owns: three nodes in view v; the first dies; from then on any read of its vote unit or record may fail, for one reader
//!   and not for another; the others go on.
//! Invariants: every unit and record is read at a time of its own; a unit that was not read fails the scan, except the
//!   dead one's in the number after the doubted one.
//! Does not: model two units, restarts or late writes (`super::model` does), or the owed that a given-up view leaves.
//! Called by: `super::cases`.

use stateright::{Model, Property};

const NODES: usize = 3;
/// The one that dies.
const DEAD: usize = 0;
/// The one that gives up; in small horizons the only one.
const GIVER: usize = 2;
/// The number in doubt, v + 1.
const DOUBTED: u8 = 1;
/// The number after it, v + 2.
const NEXT: u8 = 2;

/// When the units and records are read from which the fate of the doubted number is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    BeforeBallot,
    AfterBallot,
}

/// The model with its rules.
#[derive(Debug, Clone)]
pub(crate) struct GivenUp {
    pub(crate) votes: When,
    pub(crate) records: When,
    /// The records are read when every vote unit was read; else the two in any order.
    pub(crate) are_records_last: bool,
    /// Check this property only.
    pub(crate) only: Option<&'static str>,
    /// Who acts has scanned once more after its record was written.
    pub(crate) is_later_scan_done: bool,
    /// An accepted value counts as evidence that the number was decided.
    pub(crate) is_accepted_taken: bool,
    /// Both survivors vote for the doubted number and give it up; else one votes and the other gives up.
    pub(crate) is_every_survivor_giver: bool,
    /// Ballots a node may enter per number.
    pub(crate) rounds: u8,
}

impl Default for GivenUp {
    fn default() -> Self {
        Self {
            votes: When::AfterBallot,
            records: When::AfterBallot,
            are_records_last: true,
            only: None,
            is_later_scan_done: true,
            is_accepted_taken: true,
            is_every_survivor_giver: false,
            rounds: 1,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Ballot {
    view: u8,
    entered: u8,
    accepted: u8,
    value: u8,
}

/// A decided value; for the number after the doubted one it says what it takes the doubted one to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Record {
    view: u8,
    value: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Write {
    Vote(Ballot),
    Record(Record),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Stage {
    #[default]
    Idle,
    /// Reads before the ballot (only in the planted orders).
    Gather,
    Prepare,
    Accept,
    /// Decided or learned; the record is written, then the vote table is scanned.
    Known,
    Acting,
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Node {
    stage: Stage,
    ballot: Ballot,
    floor: u8,
    write: Option<Write>,
    known: Record,
    /// Whose vote units and records this stage has read, as bits.
    votes_read: u8,
    records_read: u8,
    /// What the reads of this stage showed.
    highest: u8,
    best: (u8, u8),
    is_later_seen: bool,
    has_failed: bool,
    /// The value of the doubted number by a vote (ballot, value) or by a record.
    doubted_vote: (u8, u8),
    doubted_record: u8,
}

/// One state of the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    nodes: [Node; NODES],
    votes: [Ballot; NODES],
    records: [Record; NODES],
    /// Values of the doubted number in which a living node acts, as bits.
    acted: u8,
    /// Values of the doubted number that a living node decided by its own votes, as bits.
    decided: u8,
    /// What the decided next number takes the doubted one to be (0: never decided), as bits.
    taken_as: u8,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Vote(usize),
    Land(usize),
    ReadVote {
        reader: usize,
        of: usize,
        is_readable: bool,
    },
    ReadRecord {
        reader: usize,
        of: usize,
        is_readable: bool,
    },
    Learn {
        reader: usize,
        of: usize,
    },
    /// A ballot for the next number, the doubted one known or given up.
    GoOn(usize),
    Die,
}

fn bit(i: usize) -> u8 {
    1 << i
}

impl Node {
    fn begin(&mut self, stage: Stage) {
        self.stage = stage;
        self.votes_read = 0;
        self.records_read = 0;
        self.highest = 0;
        self.best = (0, 0);
        self.is_later_seen = false;
        self.has_failed = false;
    }

    fn know(&mut self, record: Record) {
        self.begin(Stage::Known);
        self.known = record;
        self.write = Some(Write::Record(record));
    }
}

impl GivenUp {
    fn next_ballot(&self, i: usize, floor: u8) -> Option<u8> {
        let count = u8::try_from(NODES).ok()?;
        let i = u8::try_from(i).ok()?;
        (0..self.rounds).map(|round| 1 + round * count + i).find(|ballot| *ballot > floor)
    }

    fn enter(&self, node: &mut Node, i: usize, view: u8) -> Option<()> {
        let old = node.ballot;
        let is_same = old.view == view;
        let entered = self.next_ballot(i, if is_same { node.floor } else { 0 })?;
        if !is_same && old.accepted > 0 {
            // The own ballot is about to be overwritten; what it said of the doubted number is remembered.
            node.doubted_vote = node.doubted_vote.max((old.accepted, old.value));
        }
        node.begin(Stage::Prepare);
        node.floor = entered;
        node.ballot = Ballot { entered, ..if is_same { old } else { Ballot { view, ..Ballot::default() } } };
        node.write = Some(Write::Vote(node.ballot));
        Some(())
    }

    fn go_on(&self, state: &mut State, i: usize) -> Option<()> {
        let node = &mut state.nodes[i];
        let is_gathering = self.votes == When::BeforeBallot || self.records == When::BeforeBallot;
        if is_gathering && node.known.view == 0 && node.ballot.view != NEXT {
            node.begin(Stage::Gather);
            return Some(());
        }
        self.enter(node, i, NEXT)
    }

    /// Does a node that gives the number up read units (or records) in this stage to learn its fate?
    fn is_told(node: &Node, when: When) -> bool {
        match node.stage {
            Stage::Gather => when == When::BeforeBallot,
            Stage::Prepare => when == When::AfterBallot && node.ballot.view == NEXT,
            _ => false,
        }
    }

    fn wants_vote(&self, node: &Node, i: usize, j: usize) -> bool {
        let is_scan = match node.stage {
            Stage::Gather => self.votes == When::BeforeBallot,
            Stage::Prepare | Stage::Accept => true,
            Stage::Known => self.is_later_scan_done,
            _ => false,
        };
        is_scan && node.write.is_none() && i != j && node.votes_read & bit(j) == 0
    }

    fn wants_record(&self, node: &Node, i: usize, j: usize) -> bool {
        let is_turn = !self.are_records_last || (0..NODES).all(|j| !self.wants_vote(node, i, j));
        Self::is_told(node, self.records) && is_turn && node.write.is_none() && node.records_read & bit(j) == 0
    }

    fn read_vote(&self, state: &mut State, i: usize, j: usize, is_readable: bool) {
        let seen = state.votes[j];
        let node = &mut state.nodes[i];
        node.votes_read |= bit(j);
        let view = if node.stage == Stage::Known { node.known.view } else { node.ballot.view };
        if !is_readable {
            // In the next number the unreadable unit is the one given up; its owner is gone.
            node.has_failed |= view < NEXT && node.stage != Stage::Gather;
            return;
        }
        if Self::is_told(node, self.votes) && seen.view == DOUBTED && seen.accepted > 0 {
            node.doubted_vote = node.doubted_vote.max((seen.accepted, seen.value));
        }
        if seen.view > view {
            node.is_later_seen = true;
        } else if seen.view == view {
            node.highest = node.highest.max(seen.entered);
            node.best = node.best.max((seen.accepted, seen.value));
        }
    }

    fn read_record(state: &mut State, i: usize, j: usize, is_readable: bool) {
        let seen = state.records[j];
        let node = &mut state.nodes[i];
        node.records_read |= bit(j);
        if is_readable && seen.view == DOUBTED {
            node.doubted_record = seen.value;
        }
    }

    /// Goes on when everything this stage reads was read.
    fn evaluate(&self, state: &mut State, i: usize) {
        let node = state.nodes[i];
        let is_all_read = (0..NODES).all(|j| !self.wants_vote(&node, i, j) && !self.wants_record(&node, i, j));
        if !is_all_read || node.write.is_some() {
            return;
        }
        match node.stage {
            Stage::Gather => {
                if self.enter(&mut state.nodes[i], i, NEXT).is_none() {
                    state.nodes[i].begin(Stage::Idle);
                }
            }
            Stage::Prepare | Stage::Accept if node.has_failed || node.is_later_seen => state.nodes[i].begin(Stage::Idle),
            Stage::Prepare | Stage::Accept if node.highest > node.ballot.entered => {
                state.nodes[i].begin(Stage::Idle);
                state.nodes[i].floor = node.highest;
            }
            Stage::Prepare => self.accept(&mut state.nodes[i], i),
            Stage::Accept => {
                let Ballot { view, value, .. } = node.ballot;
                if view == NEXT {
                    state.taken_as |= 1 << (value - 1);
                } else if i != DEAD {
                    state.decided |= 1 << value;
                }
                state.nodes[i].know(Record { view, value });
            }
            Stage::Known => self.act(state, i),
            Stage::Idle | Stage::Acting | Stage::Gone => {}
        }
    }

    fn accept(&self, node: &mut Node, i: usize) {
        let best = node.best.max((node.ballot.accepted, node.ballot.value));
        let own = if node.ballot.view == DOUBTED {
            u8::try_from(i).unwrap_or(u8::MAX) + 1
        } else {
            let by_vote = if self.is_accepted_taken { node.doubted_vote.1 } else { 0 };
            let known = [node.known.value, node.doubted_record, by_vote];
            1 + known.into_iter().find(|value| *value != 0).unwrap_or(0)
        };
        node.ballot.accepted = node.ballot.entered;
        node.ballot.value = if best.0 > 0 { best.1 } else { own };
        node.begin(Stage::Accept);
        node.write = Some(Write::Vote(node.ballot));
    }

    fn act(&self, state: &mut State, i: usize) {
        let node = &mut state.nodes[i];
        if node.has_failed || (node.is_later_seen && self.is_later_scan_done) {
            // It knows the number, but acts in it only after a scan that shows no later ballot.
            node.begin(Stage::Idle);
            return;
        }
        node.begin(Stage::Acting);
        if i != DEAD && node.known.view == DOUBTED {
            state.acted |= 1 << node.known.value;
        }
    }

    fn land(&self, state: &mut State, i: usize) -> Option<()> {
        match state.nodes[i].write.take()? {
            Write::Vote(ballot) => state.votes[i] = ballot,
            Write::Record(record) => state.records[i] = record,
        }
        self.evaluate(state, i);
        Some(())
    }

    fn may_go_on(&self, state: &State, i: usize) -> bool {
        let node = &state.nodes[i];
        let is_given_up = state.nodes[DEAD].stage == Stage::Gone && (i == GIVER || self.is_every_survivor_giver);
        i != DEAD
            && match node.stage {
                Stage::Acting => node.known.view == DOUBTED,
                Stage::Idle => node.known.view == DOUBTED || (is_given_up && node.known.view == 0),
                _ => false,
            }
    }

    fn node_actions(&self, state: &State, i: usize, actions: &mut Vec<Action>) {
        let node = &state.nodes[i];
        if node.stage == Stage::Gone {
            return;
        }
        let is_voter = i != GIVER || self.is_every_survivor_giver;
        if is_voter && node.stage == Stage::Idle && node.known.view == 0 && node.ballot.view <= DOUBTED {
            actions.push(Action::Vote(i));
        }
        if node.write.is_some() {
            actions.push(Action::Land(i));
        }
        if self.may_go_on(state, i) {
            actions.push(Action::GoOn(i));
        }
        let is_dead_gone = state.nodes[DEAD].stage == Stage::Gone;
        for j in 0..NODES {
            if node.stage == Stage::Idle && state.records[j].view > node.known.view {
                actions.push(Action::Learn { reader: i, of: j });
            }
            for is_readable in [true, false] {
                let may_fail = j == DEAD && is_dead_gone;
                if !is_readable && !may_fail {
                    continue;
                }
                if self.wants_vote(node, i, j) {
                    actions.push(Action::ReadVote { reader: i, of: j, is_readable });
                }
                if self.wants_record(node, i, j) {
                    actions.push(Action::ReadRecord { reader: i, of: j, is_readable });
                }
            }
        }
    }
}

impl Model for GivenUp {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State { nodes: Default::default(), votes: Default::default(), records: Default::default(), acted: 0, decided: 0, taken_as: 0 }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for i in 0..NODES {
            self.node_actions(state, i, actions);
        }
        if state.nodes[DEAD].stage != Stage::Gone {
            actions.push(Action::Die);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Vote(i) => self.enter(&mut state.nodes[i], i, DOUBTED)?,
            Action::Land(i) => self.land(&mut state, i)?,
            Action::GoOn(i) => self.go_on(&mut state, i)?,
            Action::ReadVote { reader, of, is_readable } => {
                self.read_vote(&mut state, reader, of, is_readable);
                self.evaluate(&mut state, reader);
            }
            Action::ReadRecord { reader, of, is_readable } => {
                Self::read_record(&mut state, reader, of, is_readable);
                self.evaluate(&mut state, reader);
            }
            Action::Learn { reader, of } => {
                let record = state.records[of];
                state.nodes[reader].know(record);
            }
            Action::Die => state.nodes[DEAD] = Node { stage: Stage::Gone, ..Node::default() },
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let is_safe = |_: &Self, state: &State| {
            let is_one = state.acted.count_ones() <= 1 && state.taken_as.count_ones() <= 1;
            is_one && (state.acted == 0 || state.taken_as == 0 || state.acted == state.taken_as)
        };
        let mut properties = vec![
            Property::always(super::DISOWNED, is_safe),
            Property::always(super::UNDONE, |_, state: &State| {
                state.decided == 0 || state.taken_as == 0 || state.decided == state.taken_as
            }),
            Property::sometimes("a number is given up", |_, state: &State| state.taken_as & 1 != 0),
            Property::sometimes("a doubted number is taken as decided", |_, state: &State| state.taken_as > 1 && state.acted == 0),
            Property::sometimes("a living node acts in the doubted number", |_, state: &State| state.acted != 0),
        ];
        properties.retain(|property| self.only.is_none_or(|only| only == property.name));
        properties
    }
}
