//! What: Disk Paxos on one device, one instance per view number, as an explicit-state model.
//! Owns: vote units, records, the lives that write them, and writes that outlive their life.
//! Invariants: a write is issued when a step decides on it and lands at any later time, even after its life's end; a
//!   read of two units is two reads; completion adds nothing to landing, so it is not a step.
//! Does not: model bodies by digest, torn units (no news, never empty) or more than one device.
//! Called by: `super::cases`.

use stateright::{Model, Property};

/// Most proposers of a model.
const NODES_MAX: usize = 3;
/// Most views of a model.
const VIEWS_MAX: usize = 3;
/// Two vote units in turn.
const UNITS: usize = 2;

/// How a node writes its vote units and what a new life does about the writes of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Units {
    /// Two in turn; a new life votes only when no write of an earlier life can still land. The rule.
    WaitForOldWrites,
    /// One unit; the new life votes at once.
    One,
    /// Two in turn; the new life votes at once.
    InTurn,
    /// Two in turn, own units read again with every scan; the new life votes at once.
    InTurnRechecked,
    /// Two in turn; the new life votes at once; whoever reads a late write of an earlier life knows it and passes over it.
    InTurnGhostRejected,
    /// Both units are written before a vote counts; the new life votes at once.
    Both,
}

/// A departure from the rules of the register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// None: the rules of the design.
    None,
    /// A ballot for a later view is read as "has not voted".
    LaterViewReadAsEmpty,
    /// A value accepted by another is not adopted.
    AcceptedValueIgnored,
    /// A ballot for the next view before this one stands in the own record.
    BallotBeforeRecord,
    /// A value is proposed without a second scan that shows no higher ballot.
    NoScanAfterAccept,
    /// The own ballot counts as written before its write has landed: scan and write side by side.
    ScanBeforeLanding,
}

/// The model with its horizon.
#[derive(Debug, Clone)]
pub(crate) struct Register {
    pub(crate) nodes: usize,
    pub(crate) views: u8,
    /// Ballots a node may enter per view.
    pub(crate) rounds: u8,
    pub(crate) crashes: u8,
    /// Crashes strike only the nodes below this number.
    pub(crate) crashing_nodes: usize,
    /// The two units of another node are read at different times.
    pub(crate) are_reads_split: bool,
    pub(crate) units: Units,
    pub(crate) mistake: Mistake,
}

impl Default for Register {
    fn default() -> Self {
        Self {
            nodes: 2,
            views: 1,
            rounds: 2,
            crashes: 0,
            crashing_nodes: NODES_MAX,
            are_reads_split: true,
            units: Units::WaitForOldWrites,
            mistake: Mistake::None,
        }
    }
}

/// What one vote unit says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Ballot {
    sequence: u8,
    view: u8,
    entered: u8,
    accepted: u8,
    /// 0: none.
    value: u8,
}

/// A decided view as it stands in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Record {
    view: u8,
    value: u8,
}

/// A write that was issued and has not landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Write {
    Vote { unit: u8, ballot: Ballot },
    Record(Record),
}

/// Where a life stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Stage {
    #[default]
    Down,
    Idle,
    /// Phase 1: the ballot is entered.
    Prepare,
    /// Phase 2: a value is accepted.
    Accept,
    /// A later ballot was read: only the records help.
    Learn,
}

/// What a scan has read of one unit.
type Seen = Option<Ballot>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Node {
    life: u8,
    stage: Stage,
    /// The newest decided view this life knows.
    known: u8,
    /// Its newest own ballot.
    ballot: Ballot,
    /// Highest ballot number it saw for the view it works on.
    floor: u8,
    /// The vote write in the air.
    vote: Option<Write>,
    /// A second copy still to be written (`Units::Both`).
    is_copy_due: bool,
    /// The record write in the air.
    record: Option<Write>,
    scan: [[Seen; UNITS]; NODES_MAX],
}

/// One state of the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    units: [[Ballot; UNITS]; NODES_MAX],
    records: [Record; NODES_MAX],
    nodes: [Node; NODES_MAX],
    /// Writes of dead lives that may still land, sorted.
    orphans: Vec<(u8, Write)>,
    crashes: u8,
    /// Per view, the values that somebody decided or learned, as bits.
    decided: [u16; VIEWS_MAX + 1],
    /// A later ballot was read, but no record says what was decided before it.
    has_nothing_to_learn: bool,
    /// A record on the disk went back to an earlier view.
    has_fallen: bool,
    /// A life that is not its node's first decided a view.
    has_restarted_decider: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Start(usize),
    LandVote(usize),
    LandRecord(usize),
    Read {
        reader: usize,
        of: usize,
        unit: Option<usize>,
    },
    Learn(usize),
    Crash(usize),
    Restart(usize),
    LandOrphan(usize),
    /// The write is known never to land (aborted, or its path died).
    DropOrphan(usize),
}

fn newest(units: &[Ballot; UNITS]) -> Ballot {
    if units[1].sequence > units[0].sequence { units[1] } else { units[0] }
}

impl Register {
    fn value_of(&self, node: usize, life: u8) -> u8 {
        let node = u8::try_from(node).unwrap_or(u8::MAX);
        1 + node + self.count() * life
    }

    fn count(&self) -> u8 {
        u8::try_from(self.nodes).unwrap_or(u8::MAX)
    }

    /// The smallest ballot number of `node` above `floor`, if the horizon has one.
    fn next_ballot(&self, node: usize, floor: u8) -> Option<u8> {
        let node = u8::try_from(node).ok()?;
        (0..self.rounds).map(|round| 1 + round * self.count() + node).find(|ballot| *ballot > floor)
    }

    fn unit_of(&self, sequence: u8) -> u8 {
        if self.units == Units::One { 0 } else { sequence % 2 }
    }

    fn issue_vote(&self, node: &mut Node, mut ballot: Ballot) {
        ballot.sequence = node.ballot.sequence + 1;
        node.ballot = ballot;
        node.vote = Some(Write::Vote { unit: self.unit_of(ballot.sequence), ballot });
        node.is_copy_due = self.units == Units::Both;
        node.scan = Default::default();
    }

    fn start(&self, state: &mut State, i: usize) -> Option<()> {
        let node = &mut state.nodes[i];
        let entered = self.next_ballot(i, node.floor)?;
        let view = node.known + 1;
        let old = node.ballot;
        let mut ballot = Ballot { view, entered, ..Ballot::default() };
        if old.view == view {
            ballot.accepted = old.accepted;
            ballot.value = old.value;
        }
        node.stage = Stage::Prepare;
        node.floor = entered;
        self.issue_vote(node, ballot);
        Some(())
    }

    fn land(state: &mut State, i: usize, write: Write) {
        match write {
            Write::Vote { unit, ballot } => state.units[i][usize::from(unit)] = ballot,
            Write::Record(record) => {
                state.has_fallen |= record.view < state.records[i].view;
                state.records[i] = record;
            }
        }
    }

    fn land_vote(&self, state: &mut State, i: usize) -> Option<()> {
        let write = state.nodes[i].vote.take()?;
        Self::land(state, i, write);
        let node = &mut state.nodes[i];
        if node.is_copy_due {
            // The second copy goes into the other unit, with the next sequence.
            let ballot = node.ballot;
            self.issue_vote(node, ballot);
            node.is_copy_due = false;
        } else {
            self.evaluate(state, i);
        }
        Some(())
    }

    /// Acts on a scan that has read everything; does nothing before.
    fn evaluate(&self, state: &mut State, i: usize) {
        let node = &mut state.nodes[i];
        let is_own_read = self.units == Units::InTurnRechecked;
        let is_complete = (0..self.nodes).filter(|j| *j != i || is_own_read).all(|j| node.scan[j].iter().all(Option::is_some));
        if !is_complete || node.vote.is_some() {
            return;
        }
        let read = |j: usize| newest(&[0, 1].map(|unit| node.scan[j][unit].unwrap_or_default()));
        let mine = node.ballot;
        let others: Vec<Ballot> = (0..self.nodes).filter(|j| *j != i).map(read).collect();
        let is_own_lost = is_own_read && read(i) != mine;
        let later = others.iter().any(|other| other.view > mine.view) && self.mistake != Mistake::LaterViewReadAsEmpty;
        let rivals: Vec<Ballot> = others.iter().copied().filter(|other| other.view == mine.view).collect();
        let highest = rivals.iter().map(|rival| rival.entered).max().unwrap_or(0);
        node.scan = Default::default();
        if later {
            node.stage = Stage::Learn;
        } else if highest > mine.entered || is_own_lost {
            node.floor = node.floor.max(highest);
            node.stage = Stage::Idle;
        } else if node.stage == Stage::Prepare {
            self.accept(state, i, &rivals);
        } else {
            self.decide(state, i);
        }
    }

    fn accept(&self, state: &mut State, i: usize, rivals: &[Ballot]) {
        let node = &mut state.nodes[i];
        let mut ballot = node.ballot;
        let adopted = rivals.iter().chain([&node.ballot]).max_by_key(|rival| rival.accepted).filter(|rival| rival.accepted > 0);
        ballot.value = match adopted {
            Some(rival) if self.mistake != Mistake::AcceptedValueIgnored => rival.value,
            _ => self.value_of(i, node.life),
        };
        ballot.accepted = ballot.entered;
        node.stage = Stage::Accept;
        self.issue_vote(node, ballot);
        if self.mistake == Mistake::NoScanAfterAccept {
            // Counts as decided once the write has landed; the scan is taken as done.
            node.scan = [[Some(Ballot::default()); UNITS]; NODES_MAX];
        }
    }

    fn decide(&self, state: &mut State, i: usize) {
        let node = &mut state.nodes[i];
        let Ballot { view, value, .. } = node.ballot;
        state.has_restarted_decider |= node.life > 0;
        Self::know(node, &mut state.decided, Record { view, value });
    }

    /// Takes a view as decided and issues the own record of it.
    fn know(node: &mut Node, decided: &mut [u16; VIEWS_MAX + 1], record: Record) {
        decided[usize::from(record.view)] |= 1 << record.value;
        node.known = record.view;
        node.floor = 0;
        node.stage = Stage::Idle;
        node.record = Some(Write::Record(record));
    }

    fn learn(&self, state: &mut State, i: usize) {
        let best = state.records.iter().copied().max().unwrap_or_default();
        let node = &mut state.nodes[i];
        if best.view > node.known {
            Self::know(node, &mut state.decided, best);
        } else {
            state.has_nothing_to_learn = true;
        }
    }

    fn crash(state: &mut State, i: usize) {
        let node = std::mem::take(&mut state.nodes[i]);
        state.nodes[i].life = node.life + 1;
        let owner = u8::try_from(i).unwrap_or(u8::MAX);
        state.orphans.extend(node.vote.into_iter().chain(node.record).map(|write| (owner, write)));
        state.orphans.sort_unstable();
        state.crashes += 1;
    }

    fn restart(&self, state: &mut State, i: usize) {
        let own = newest(&state.units[i]);
        let node = &mut state.nodes[i];
        node.stage = Stage::Idle;
        node.known = state.records[i].view;
        node.ballot = own;
        node.floor = if own.view == node.known + 1 { own.entered } else { 0 };
        if own.view > node.known + 1 {
            node.stage = Stage::Learn;
        }
    }

    fn may_start(&self, node: &Node) -> bool {
        node.stage == Stage::Idle && node.known < self.views && (node.record.is_none() || self.mistake == Mistake::BallotBeforeRecord)
    }

    fn may_restart(&self, state: &State, i: usize) -> bool {
        state.nodes[i].stage == Stage::Down
            && (self.units != Units::WaitForOldWrites || state.orphans.iter().all(|(owner, _)| usize::from(*owner) != i))
    }

    fn may_read(&self, node: &Node, i: usize, j: usize) -> bool {
        let is_scanning = matches!(node.stage, Stage::Prepare | Stage::Accept);
        is_scanning
            && (node.vote.is_none() || self.mistake == Mistake::ScanBeforeLanding)
            && (i != j || self.units == Units::InTurnRechecked)
    }

    fn node_actions(&self, state: &State, i: usize, actions: &mut Vec<Action>) {
        let node = &state.nodes[i];
        let is_up = node.stage != Stage::Down;
        if self.may_start(node) {
            actions.push(Action::Start(i));
        }
        if node.vote.is_some() {
            actions.push(Action::LandVote(i));
        }
        if node.record.is_some() {
            actions.push(Action::LandRecord(i));
        }
        let has_news = state.records.iter().any(|record| record.view > node.known);
        if is_up && node.record.is_none() && (node.stage == Stage::Learn || (node.stage == Stage::Idle && has_news)) {
            actions.push(Action::Learn(i));
        }
        if is_up && state.crashes < self.crashes && i < self.crashing_nodes {
            actions.push(Action::Crash(i));
        }
        if self.may_restart(state, i) {
            actions.push(Action::Restart(i));
        }
        for j in (0..self.nodes).filter(|j| self.may_read(node, i, *j)) {
            if self.are_reads_split {
                let missing = (0..UNITS).filter(|unit| node.scan[j][*unit].is_none());
                actions.extend(missing.map(|unit| Action::Read { reader: i, of: j, unit: Some(unit) }));
            } else if node.scan[j][0].is_none() {
                actions.push(Action::Read { reader: i, of: j, unit: None });
            }
        }
    }
}

impl Model for Register {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut nodes: [Node; NODES_MAX] = Default::default();
        for node in nodes.iter_mut().take(self.nodes) {
            node.stage = Stage::Idle;
        }
        vec![State {
            units: Default::default(),
            records: Default::default(),
            nodes,
            orphans: Vec::new(),
            crashes: 0,
            decided: [0; VIEWS_MAX + 1],
            has_nothing_to_learn: false,
            has_fallen: false,
            has_restarted_decider: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for i in 0..self.nodes {
            self.node_actions(state, i, actions);
        }
        for index in 0..state.orphans.len() {
            actions.push(Action::LandOrphan(index));
            if self.units == Units::WaitForOldWrites {
                actions.push(Action::DropOrphan(index));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Start(i) => self.start(&mut state, i)?,
            Action::LandVote(i) => self.land_vote(&mut state, i)?,
            Action::LandRecord(i) => {
                let write = state.nodes[i].record.take()?;
                Self::land(&mut state, i, write);
            }
            Action::Read { reader, of, unit } => {
                let units = state.units[of];
                for (index, ballot) in units.into_iter().enumerate() {
                    if unit.is_none_or(|wanted| wanted == index) {
                        state.nodes[reader].scan[of][index] = Some(ballot);
                    }
                }
                self.evaluate(&mut state, reader);
            }
            Action::Learn(i) => self.learn(&mut state, i),
            Action::Crash(i) => Self::crash(&mut state, i),
            Action::Restart(i) => self.restart(&mut state, i),
            Action::LandOrphan(index) => {
                let (owner, write) = state.orphans.remove(index);
                let write = match write {
                    // What it says counts for nobody; what it landed on is erased all the same.
                    Write::Vote { unit, .. } if self.units == Units::InTurnGhostRejected => Write::Vote { unit, ballot: Ballot::default() },
                    write => write,
                };
                Self::land(&mut state, usize::from(owner), write);
            }
            Action::DropOrphan(index) => {
                state.orphans.remove(index);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(super::S1, |_, state: &State| state.decided.iter().all(|values| values.count_ones() <= 1)),
            Property::sometimes("the last view is decided", |model: &Self, state: &State| state.decided[usize::from(model.views)] != 0),
        ];
        if matches!(self.mistake, Mistake::None | Mistake::BallotBeforeRecord) && self.units == Units::WaitForOldWrites {
            properties.push(Property::always(super::LEARNS, |_, state: &State| !state.has_nothing_to_learn));
            properties.push(Property::always(super::S4, |_, state: &State| !state.has_fallen));
        }
        if self.crashes > 0 {
            properties.push(Property::sometimes("a restarted life decides", |_, state: &State| state.has_restarted_decider));
        }
        properties
    }
}
