//! What: the view register on three devices, one of which may be silent, lose what it said, be rebuilt or be replaced.
//! Owns: vote units and records on every device, the one write of a node in the air on each, which devices a phase counts.
//! Invariants: a node writes its ballot to every device of its set and reads a device's other units after its own write there has
//!   landed; everything lands and is read at any later time, on each device apart.
//! Does not: model two units in turn, restarts or units read apart (`crate::register` does), nor who may propose.
//! Called by: `super::cases` and `crate::start`.

use stateright::{Model, Property};

use super::{NEW, OLD, bit, is_majority};

/// Most proposers of a model.
pub(super) const NODES_MAX: usize = 3;
/// Most views of a model.
const VIEWS_MAX: usize = 2;
/// a, b and c, and d that takes the place of c.
const DEVICES: usize = 4;
/// The device that fails, is rebuilt or is replaced.
const C: usize = 2;
/// The device that replaces it.
const D: usize = 3;
/// The devices that stay.
const OTHERS: u8 = 0b0011;
/// With a dead proposer this is its place.
const DEAD: usize = 0;

/// Which devices must have answered a phase of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needed {
    /// More than half. The rule.
    Majority,
    /// All three.
    All,
    /// a and b in the second phase, a majority in the first.
    OthersInAccept,
    /// a and b in both phases.
    OthersInBoth,
}

/// What may happen to device c.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It never answers.
    Silent,
    /// Once: one landed vote is undone.
    LosesVote,
    /// Once: everything on it is lost; it goes on answering.
    LosesAll,
    /// Once: everything on it is lost, and everybody knows; it counts again, in the same instance, after it was rebuilt.
    Rebuilt,
}

/// What the old device does after it was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    Never,
    /// It answers no more.
    Silent,
    /// It answers under its old number, and has lost everything.
    Blank,
}

/// Where a record must stand before a ballot for the next view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordOn {
    /// On a majority of the devices that decided the view.
    Old,
    /// On a majority of the devices that the view names.
    New,
    /// On both.
    Both,
}

/// When a replaced device may be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DropAfter {
    /// A member's record names the view.
    OneRecord,
    /// Every member's does. The rule.
    EveryRecord,
}

/// A departure from the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    /// One device carries a phase; of those who start after a loss of power, in everything they read.
    OneDevice,
    /// A majority written and a majority read, not the same devices.
    ReadsElsewhere,
    /// The late answer of a device to the first phase counts for the second.
    LatePhaseCounts,
    /// An accepted value is not adopted.
    AcceptedIgnored,
    /// A ballot for v + 1 when v stands in the own record on one device.
    RecordOnOneDevice,
    /// A device whose own unit is older than the own last write goes on counting.
    OwnUnitNotLookedAt,
    /// Who has to learn reads one device.
    LearnsFromOne,
    /// Who wants the new device uses it before anything is decided: node 0.
    UsedAtOnce,
    /// The new device is used in the second phase of the view that names it.
    UsedInNamingView,
    /// A rebuilt device counts before the living have rewritten their units.
    NotRewritten,
    /// A rebuilt device counts without the units of the dead.
    NotCopied,
    /// The units of the dead are copied from one device.
    CopiedFromOne,
}

/// The model with its horizon.
#[derive(Debug, Clone)]
pub(crate) struct Register {
    pub(crate) nodes: usize,
    /// The last view that each node goes for.
    pub(crate) views: [u8; NODES_MAX],
    /// Ballots a node may enter per view.
    pub(crate) rounds: u8,
    pub(crate) needed: [Needed; NODES_MAX],
    pub(crate) fault: Fault,
    /// A device is read at any time after the own write there has landed; else at once.
    pub(crate) are_reads_apart: bool,
    /// View 1 replaces c by d; the first `members` nodes are its members.
    pub(crate) is_replacing: bool,
    pub(crate) members: usize,
    pub(crate) record_on: RecordOn,
    pub(crate) dropped: Dropped,
    pub(crate) drop_after: DropAfter,
    /// Node 0 died while it wrote its value for view 1.
    pub(crate) has_dead: bool,
    /// Node 0 may die at any moment; the others start afterwards.
    pub(crate) is_starting: bool,
    pub(crate) mistake: Mistake,
    /// Check this property only.
    pub(crate) only: Option<&'static str>,
}

impl Default for Register {
    fn default() -> Self {
        Self {
            nodes: 2,
            views: [1; NODES_MAX],
            rounds: 1,
            needed: [Needed::Majority; NODES_MAX],
            fault: Fault::None,
            are_reads_apart: false,
            is_replacing: false,
            members: 2,
            record_on: RecordOn::Both,
            dropped: Dropped::Never,
            drop_after: DropAfter::EveryRecord,
            has_dead: false,
            is_starting: false,
            mistake: Mistake::None,
            only: None,
        }
    }
}

/// What one vote unit says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Ballot {
    view: u8,
    entered: u8,
    accepted: u8,
    /// 0: none.
    value: u8,
}

/// A decided view as a node knows it, or as it stands in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Record {
    view: u8,
    value: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Write {
    Vote(Ballot),
    Record(Record),
}

/// What a node is doing on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Lane {
    air: Option<Write>,
    /// The write of the present stage has landed; the device was read after that.
    is_written: bool,
    is_read: bool,
    /// The own unit was found older than the own last write: the device counts no more for this node.
    is_away: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Device {
    votes: [Ballot; NODES_MAX],
    records: [Record; NODES_MAX],
    lanes: [Lane; NODES_MAX],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Stage {
    /// Not there (yet): off, or dead.
    #[default]
    Off,
    /// Knows nothing; reads the records first.
    Surveying,
    Idle,
    /// The ballot is entered.
    Prepare,
    /// A value is accepted.
    Accept,
    /// Writes its record of the view it knows.
    Recording,
    /// A later ballot was read: only the records help.
    Learn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Node {
    stage: Stage,
    known: Record,
    ballot: Ballot,
    floor: u8,
    /// Highest accepted ballot that the reads of this phase showed, with its value.
    best: (u8, u8),
}

/// What became of device c.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Fate {
    #[default]
    Well,
    /// It has lost something, and goes on.
    Lied,
    /// It counts for nobody; were the units of the dead copied?
    Out {
        is_copied: bool,
    },
    /// Rebuilt: it counts again.
    Back,
    Dropped,
}

/// One state of the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    devices: [Device; DEVICES],
    nodes: [Node; NODES_MAX],
    /// What stood in the units of c before the last write there.
    before: [Ballot; NODES_MAX],
    fate: Fate,
    /// Per view, the values that somebody decided or learned, as bits.
    decided: [u8; VIEWS_MAX + 1],
    has_nothing_to_learn: bool,
    /// A starter decided what another had accepted and nobody is known to have decided.
    is_finished_by_other: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Start(usize),
    Land {
        node: usize,
        device: usize,
    },
    Read {
        node: usize,
        device: usize,
    },
    /// Reads the records of these devices.
    Learn {
        node: usize,
        from: u8,
    },
    LoseVote(usize),
    LoseAll,
    /// A member copies the units of the dead onto the device that is rebuilt, from these devices.
    Copy(u8),
    Return,
    Drop,
    Die,
    PowerOn(usize),
}

impl Node {
    fn is_up(&self) -> bool {
        self.stage != Stage::Off
    }

    /// What this stage writes to every device.
    fn wanted(&self) -> Option<Write> {
        match self.stage {
            Stage::Prepare | Stage::Accept => Some(Write::Vote(self.ballot)),
            Stage::Recording => Some(Write::Record(self.known)),
            Stage::Off | Stage::Surveying | Stage::Idle | Stage::Learn => None,
        }
    }
}

impl Register {
    fn value_of(node: usize) -> u8 {
        1 + u8::try_from(node).unwrap_or(u8::MAX)
    }

    fn last_view(&self) -> u8 {
        self.views.into_iter().max().unwrap_or_default()
    }

    /// The smallest ballot number of `node` above `floor`, if the horizon has one.
    fn next_ballot(&self, node: usize, floor: u8) -> Option<u8> {
        let count = u8::try_from(NODES_MAX).ok()?;
        (0..self.rounds).map(|round| Self::value_of(node) + round * count).find(|ballot| *ballot > floor)
    }

    /// The devices on which a node works in its stage.
    fn set_of(&self, state: &State, i: usize) -> u8 {
        let node = &state.nodes[i];
        let is_early = match self.mistake {
            Mistake::UsedAtOnce => i == 0,
            Mistake::UsedInNamingView => node.stage == Stage::Accept,
            _ => false,
        };
        match node.stage {
            Stage::Recording if self.is_replacing => OLD | NEW,
            _ if self.is_replacing && (node.known.view > 0 || is_early) => NEW,
            _ => OLD,
        }
    }

    /// Does c answer?
    fn answers(&self, state: &State, device: usize) -> bool {
        let is_silent = self.fault == Fault::Silent || (state.fate == Fate::Dropped && self.dropped == Dropped::Silent);
        device != C || !is_silent
    }

    /// The devices that count for a node now: those that have answered its stage.
    fn done(state: &State, i: usize) -> u8 {
        let is_record = state.nodes[i].stage == Stage::Recording;
        let counts = |d: &usize| {
            let lane = &state.devices[*d].lanes[i];
            let is_out = *d == C && matches!(state.fate, Fate::Out { .. });
            (if is_record { lane.is_written } else { lane.is_read }) && !lane.is_away && !is_out
        };
        (0..DEVICES).filter(counts).fold(0, |done, d| done | bit(d))
    }

    fn is_enough(&self, state: &State, i: usize) -> bool {
        let node = &state.nodes[i];
        let done = Self::done(state, i);
        if node.stage == Stage::Recording {
            return match self.record_on {
                _ if self.mistake == Mistake::RecordOnOneDevice => done != 0,
                _ if !self.is_replacing => is_majority(done, OLD),
                RecordOn::Old => is_majority(done, OLD),
                RecordOn::New => is_majority(done, NEW),
                RecordOn::Both => is_majority(done, OLD) && is_majority(done, NEW),
            };
        }
        let set = self.set_of(state, i);
        if self.mistake == Mistake::ReadsElsewhere {
            let written = (0..DEVICES).filter(|d| state.devices[*d].lanes[i].is_written).fold(0, |written, d| written | bit(d));
            return is_majority(done, set) && is_majority(written, set);
        }
        match self.needed[i] {
            _ if self.mistake == Mistake::OneDevice && (!self.is_starting || i > 0) => done & set != 0,
            Needed::All => done & set == set,
            Needed::OthersInBoth => done & OTHERS == OTHERS,
            Needed::OthersInAccept if node.stage == Stage::Accept => done & OTHERS == OTHERS,
            Needed::Majority | Needed::OthersInAccept => is_majority(done, set),
        }
    }

    /// Enters a stage: its write goes to every device of its set, where the one before is still in the air after that.
    fn begin(&self, state: &mut State, i: usize, stage: Stage) {
        state.nodes[i].stage = stage;
        let node = state.nodes[i];
        let set = self.set_of(state, i);
        for (d, device) in state.devices.iter_mut().enumerate() {
            let lane = &mut device.lanes[i];
            lane.is_written = false;
            lane.is_read = false;
            if set & bit(d) != 0 && lane.air.is_none() {
                lane.air = node.wanted();
            }
        }
    }

    fn start(&self, state: &mut State, i: usize) -> Option<()> {
        let node = &mut state.nodes[i];
        let entered = self.next_ballot(i, node.floor)?;
        let view = node.known.view + 1;
        let old = node.ballot;
        node.ballot = Ballot { view, entered, ..if old.view == view { old } else { Ballot::default() } };
        node.floor = entered;
        node.best = (node.ballot.accepted, node.ballot.value);
        self.begin(state, i, Stage::Prepare);
        Some(())
    }

    fn land(&self, state: &mut State, i: usize, d: usize) -> Option<()> {
        let node = state.nodes[i];
        let is_in_set = self.set_of(state, i) & bit(d) != 0;
        let device = &mut state.devices[d];
        let write = device.lanes[i].air.take()?;
        let is_rebuilding = d == C && matches!(state.fate, Fate::Out { .. }) && write != Write::Vote(node.ballot);
        match write {
            Write::Vote(ballot) => {
                if d == C && self.fault == Fault::LosesVote && state.fate == Fate::Well {
                    state.before[i] = device.votes[i];
                }
                device.votes[i] = ballot;
            }
            Write::Record(record) => device.records[i] = record,
        }
        let lane = &mut device.lanes[i];
        let is_late = self.mistake == Mistake::LatePhaseCounts && node.stage == Stage::Accept;
        if node.wanted() == Some(write) || is_late {
            lane.is_written = true;
            if !self.are_reads_apart && node.stage != Stage::Recording {
                self.read(state, i, d);
            }
        } else if is_in_set {
            lane.air = node.wanted().or(is_rebuilding.then_some(Write::Vote(node.ballot)));
        }
        self.evaluate(state, i);
        Some(())
    }

    fn read(&self, state: &mut State, i: usize, d: usize) {
        let device = &mut state.devices[d];
        let votes = device.votes;
        let node = &mut state.nodes[i];
        let lane = &mut device.lanes[i];
        // What this life wrote there is not there: the device has gone back.
        let is_trusted = matches!(self.mistake, Mistake::OwnUnitNotLookedAt | Mistake::LatePhaseCounts);
        lane.is_away |= lane.is_written && votes[i] != node.ballot && !is_trusted;
        if lane.is_away {
            return;
        }
        lane.is_read = true;
        let mine = node.ballot;
        let others = || votes.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, vote)| vote);
        if others().any(|vote| vote.view > mine.view) {
            node.stage = Stage::Learn;
            return;
        }
        let rivals = || others().filter(|vote| vote.view == mine.view);
        let highest = rivals().map(|rival| rival.entered).max().unwrap_or(0);
        if highest > mine.entered {
            node.floor = highest;
            node.stage = Stage::Idle;
            return;
        }
        if node.stage == Stage::Prepare {
            node.best = rivals().map(|rival| (rival.accepted, rival.value)).max().unwrap_or_default().max(node.best);
        }
        self.evaluate(state, i);
    }

    fn evaluate(&self, state: &mut State, i: usize) {
        match state.nodes[i].stage {
            Stage::Prepare if self.is_enough(state, i) => self.accept(state, i),
            Stage::Accept if self.is_enough(state, i) => {
                let Ballot { view, value, .. } = state.nodes[i].ballot;
                state.is_finished_by_other |= value != Self::value_of(i) && state.decided[usize::from(view)] == 0;
                self.know(state, i, Record { view, value });
            }
            Stage::Recording if self.is_enough(state, i) => state.nodes[i].stage = Stage::Idle,
            _ => {}
        }
    }

    fn accept(&self, state: &mut State, i: usize) {
        let node = &mut state.nodes[i];
        let is_adopted = node.best.0 > 0 && self.mistake != Mistake::AcceptedIgnored;
        node.ballot.value = if is_adopted { node.best.1 } else { Self::value_of(i) };
        node.ballot.accepted = node.ballot.entered;
        self.begin(state, i, Stage::Accept);
    }

    fn know(&self, state: &mut State, i: usize, record: Record) {
        state.decided[usize::from(record.view)] |= bit(usize::from(record.value));
        let node = &mut state.nodes[i];
        node.known = record;
        node.floor = 0;
        node.best = (0, 0);
        let is_last = record.view == self.last_view();
        self.begin(state, i, if is_last { Stage::Idle } else { Stage::Recording });
    }

    fn learn(&self, state: &mut State, i: usize, from: u8) {
        let read = state.devices.iter().enumerate().filter(|(d, _)| from & bit(*d) != 0);
        let best = read.flat_map(|(_, device)| device.records).max().unwrap_or_default();
        let node = &mut state.nodes[i];
        if best.view > node.known.view {
            self.know(state, i, best);
        } else if node.stage == Stage::Surveying {
            node.stage = Stage::Idle;
        } else {
            state.has_nothing_to_learn = true;
        }
    }

    fn lose_all(&self, state: &mut State) {
        let device = &mut state.devices[C];
        device.votes = Default::default();
        device.records = Default::default();
        state.fate = Fate::Lied;
        if self.fault != Fault::Rebuilt {
            return;
        }
        state.fate = Fate::Out { is_copied: false };
        for (lane, node) in device.lanes.iter_mut().zip(&state.nodes).filter(|(_, node)| node.is_up()) {
            let last = (node.ballot.entered > 0).then_some(Write::Vote(node.ballot));
            *lane = Lane { air: lane.air.or(node.wanted()).or(last), ..Lane::default() };
        }
    }

    fn copy(state: &mut State, from: u8) {
        let newest = (0..DEVICES).filter(|d| from & bit(*d) != 0).map(|d| state.devices[d].votes[DEAD]).max();
        state.devices[C].votes[DEAD] = newest.unwrap_or_default();
        state.fate = Fate::Out { is_copied: true };
    }

    fn may_return(&self, state: &State) -> bool {
        let Fate::Out { is_copied } = state.fate else { return false };
        let device = &state.devices[C];
        let living = (0..NODES_MAX).filter(|i| state.nodes[*i].is_up());
        let is_rewritten = living.into_iter().all(|i| device.votes[i] == state.nodes[i].ballot);
        (is_copied || self.mistake == Mistake::NotCopied) && (is_rewritten || self.mistake == Mistake::NotRewritten)
    }

    fn may_drop(&self, state: &State) -> bool {
        let has_recorded = |node: &Node| node.known.view > 0 && node.stage != Stage::Recording;
        let members = &state.nodes[..self.members];
        let is_due = match self.drop_after {
            DropAfter::OneRecord => members.iter().any(has_recorded),
            DropAfter::EveryRecord => members.iter().all(has_recorded),
        };
        self.dropped != Dropped::Never && state.fate == Fate::Well && is_due
    }

    fn device_actions(&self, state: &State, actions: &mut Vec<Action>) {
        match (self.fault, state.fate) {
            (Fault::LosesVote, Fate::Well) => {
                let has_landed = |i: &usize| state.devices[C].votes[*i] != state.before[*i];
                actions.extend((0..self.nodes).filter(has_landed).map(Action::LoseVote));
            }
            (Fault::LosesAll | Fault::Rebuilt, Fate::Well) => actions.push(Action::LoseAll),
            (_, Fate::Out { is_copied: false }) if self.mistake == Mistake::CopiedFromOne => {
                actions.extend([Action::Copy(bit(0)), Action::Copy(bit(1))]);
            }
            (_, Fate::Out { is_copied: false }) => actions.push(Action::Copy(OTHERS)),
            _ => {}
        }
        if self.may_return(state) {
            actions.push(Action::Return);
        }
        if self.may_drop(state) {
            actions.push(Action::Drop);
        }
    }

    fn node_actions(&self, state: &State, i: usize, actions: &mut Vec<Action>) {
        let node = &state.nodes[i];
        let may_start = node.stage == Stage::Idle && node.known.view < self.views[i];
        if may_start && self.next_ballot(i, node.floor).is_some() {
            actions.push(Action::Start(i));
        }
        for d in (0..DEVICES).filter(|d| self.answers(state, *d)) {
            let lane = &state.devices[d].lanes[i];
            if lane.air.is_some() {
                actions.push(Action::Land { node: i, device: d });
            }
            let is_phase = matches!(node.stage, Stage::Prepare | Stage::Accept);
            let is_in_set = self.set_of(state, i) & bit(d) != 0;
            let may_read = lane.is_written || self.mistake == Mistake::ReadsElsewhere;
            if is_phase && is_in_set && may_read && !lane.is_read && !lane.is_away {
                actions.push(Action::Read { node: i, device: d });
            }
        }
        self.learn_actions(state, i, actions);
    }

    fn learn_actions(&self, state: &State, i: usize, actions: &mut Vec<Action>) {
        let node = &state.nodes[i];
        let answering = (0..DEVICES).filter(|d| self.answers(state, *d)).fold(0, |bits, d| bits | bit(d));
        let set = self.set_of(state, i) & answering;
        match node.stage {
            Stage::Learn | Stage::Surveying => {
                let is_one = matches!(self.mistake, Mistake::LearnsFromOne | Mistake::OneDevice);
                let count = if is_one { 1 } else { 2 };
                let chosen = (1..=set).filter(|from: &u8| from & !set == 0 && from.count_ones() == count);
                actions.extend(chosen.map(|from| Action::Learn { node: i, from }));
            }
            Stage::Idle => {
                let is_news = |device: &Device| device.records.iter().any(|record| record.view > node.known.view);
                if (0..DEVICES).any(|d| set & bit(d) != 0 && is_news(&state.devices[d])) {
                    actions.push(Action::Learn { node: i, from: set });
                }
            }
            Stage::Off | Stage::Prepare | Stage::Accept | Stage::Recording => {}
        }
    }

    /// Devices that no rule tells apart are kept in order: states that differ only by their names are one.
    fn folded(&self, mut state: State) -> State {
        let is_plain = self.fault == Fault::None && !self.is_replacing && self.needed == [Needed::Majority; NODES_MAX];
        state.devices[..if is_plain { D } else { C }].sort_unstable();
        state
    }
}

impl Model for Register {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut nodes: [Node; NODES_MAX] = Default::default();
        for (i, node) in nodes.iter_mut().enumerate().take(self.nodes) {
            let is_off = (self.has_dead && i == DEAD) || (self.is_starting && i > 0);
            node.stage = if is_off { Stage::Off } else { Stage::Idle };
        }
        let state = State {
            devices: Default::default(),
            nodes,
            before: Default::default(),
            fate: Fate::Well,
            decided: [0; VIEWS_MAX + 1],
            has_nothing_to_learn: false,
            is_finished_by_other: false,
        };
        if !self.has_dead {
            return vec![state];
        }
        let halves = (0..=OLD).map(|landed| {
            let mut state = state.clone();
            let value = Self::value_of(DEAD);
            for (_, device) in state.devices.iter_mut().enumerate().filter(|(d, _)| landed & bit(*d) != 0) {
                device.votes[DEAD] = Ballot { view: 1, entered: value, accepted: value, value };
            }
            if is_majority(landed, OLD) {
                state.decided[1] = bit(usize::from(value));
            }
            state
        });
        halves.collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        (0..self.nodes).for_each(|i| self.node_actions(state, i, actions));
        self.device_actions(state, actions);
        if self.is_starting {
            if state.nodes[0].is_up() {
                actions.push(Action::Die);
            } else {
                actions.extend((1..self.nodes).filter(|i| !state.nodes[*i].is_up()).map(Action::PowerOn));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Start(i) => self.start(&mut state, i)?,
            Action::Land { node, device } => self.land(&mut state, node, device)?,
            Action::Read { node, device } => self.read(&mut state, node, device),
            Action::Learn { node, from } => self.learn(&mut state, node, from),
            Action::LoseVote(i) => {
                state.devices[C].votes[i] = state.before[i];
                state.before = Default::default();
                state.fate = Fate::Lied;
            }
            Action::LoseAll => self.lose_all(&mut state),
            Action::Copy(from) => Self::copy(&mut state, from),
            Action::Return => {
                state.fate = Fate::Back;
                state.devices[C].lanes.iter_mut().for_each(|lane| lane.is_read = false);
            }
            Action::Drop => {
                state.fate = Fate::Dropped;
                if self.dropped == Dropped::Blank {
                    state.devices[C].votes = Default::default();
                    state.devices[C].records = Default::default();
                }
            }
            Action::Die => state.nodes[0] = Node::default(),
            Action::PowerOn(i) => state.nodes[i].stage = Stage::Surveying,
        }
        Some(self.folded(state))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(crate::register::S1, |_, state: &State| state.decided.iter().all(|values| values.count_ones() <= 1)),
            Property::always(crate::register::LEARNS, |_, state: &State| !state.has_nothing_to_learn),
            Property::sometimes("the last view is decided", |model: &Self, state: &State| {
                state.decided[usize::from(model.last_view())] != 0
            }),
        ];
        if let Some(only) = self.only {
            properties.retain(|property| property.name == only);
            return properties;
        }
        if self.fault == Fault::Rebuilt {
            properties.push(Property::sometimes("a decision counts the rebuilt device", |_, state: &State| {
                let is_on = |device: &Device| device.votes.iter().any(|vote| vote.accepted > 0);
                state.fate == Fate::Back && state.decided[1] != 0 && !is_on(&state.devices[0]) && is_on(&state.devices[C])
            }));
        }
        if self.is_replacing {
            properties.push(Property::sometimes("a decision counts the new device", |_, state: &State| {
                let is_on = |device: &Device| device.votes.iter().any(|vote| vote.view == 2 && vote.accepted > 0);
                state.decided[2] != 0 && !is_on(&state.devices[0]) && is_on(&state.devices[D])
            }));
        }
        if self.dropped != Dropped::Never {
            properties.push(Property::sometimes("decided after the old device was dropped", |_, state: &State| {
                state.fate == Fate::Dropped && state.decided[2] != 0
            }));
        }
        if self.is_starting {
            properties.push(Property::sometimes("a starter finishes what a dead proposer began", |_, state: &State| {
                state.is_finished_by_other && !state.nodes[0].is_up()
            }));
        }
        properties
    }
}
