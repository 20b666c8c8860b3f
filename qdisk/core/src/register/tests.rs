//! What: the register over simulated disks: any order of landing, completion, crash, silence and damage, one seed per run.
//! Owns: the checkers of design S1 (one value per view), of the register's rules, and the planted mistakes that they must find.
//! Invariants: a seed is a run. Forbidden to inject, because nothing could survive it: a completed write that is lost, a stale read, a
//! misdirected write, damage of both vote units of one node, damage that its owner had no time to mend before it went down.
//! Does not: use real time or files.
//! Called by: `cargo test`.

use super::planted::Mistake;
use super::*;
use alloc::{format, string::String, vec};
use deadbolt_disk_format::{BootId, Incarnation, Place, UNIT_BYTES, ViewRecord, decode_body_place, types::Configuration};
use std::{eprintln, println};

/// What a checker found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Violation {
    Disagreement,
    BrokenChain,
    BodyNotThere,
    PlaceOverwritten,
    BallotWithoutRecord,
    BallotFell,
    ActedTooLate,
    RecordNotDurable,
    TwoWritesOnOneUnit,
    Halted,
    NoProgress,
}

const CLUSTER: ClusterUuid = ClusterUuid([7; 16]);
const PLACE_BYTES: u32 = 8192;

struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }
    /// True once in `n`.
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A device of the register's areas only.
fn layout(slots: u16) -> Layout {
    let unit = UNIT_BYTES as u64;
    let areas = 2 * u64::from(slots) * unit;
    let good = Layout::new(64 << 20, 512, slots).unwrap();
    Layout {
        votes: ByteOffset(0),
        records: ByteOffset(areas),
        bodies: ByteOffset(2 * areas),
        places: good.places,
        place_bytes: PLACE_BYTES,
        ..good
    }
}

struct Disk {
    layout: Layout,
    bytes: Vec<u8>,
    /// Its operations do not get on.
    is_silent: bool,
    /// Highest view that ever landed in a record, per slot.
    recorded: Vec<u64>,
    /// Highest view of all ballots that landed.
    ballot_view_max: u64,
    /// `ballot_view_max` when the slot's newest record landed: (view, ballots).
    ballots_at_record: Vec<(u64, u64)>,
    /// Sequence of the slot's newest record that landed.
    record_sequence: Vec<u64>,
}

impl Disk {
    fn formatted(slots: u16) -> Self {
        let layout = layout(slots);
        let end = layout.body(SlotIndex(slots - 1), layout.places - 1).0 + u64::from(PLACE_BYTES);
        let mut bytes = vec![0; usize::try_from(end).unwrap()];
        for slot in (0..slots).map(SlotIndex) {
            let life = Life { slot, boot: BootId::NONE, incarnation: Incarnation::NONE };
            for index in 0..2u8 {
                let sequence = u64::from(index);
                let view = ViewNumber(0);
                let digest = Digest::NONE;
                let ballot = Ballot { life, sequence, view, entered: 0, accepted: 0, digest, place: 0 };
                let at = place_at(layout.vote(slot, index), slot);
                put(&mut bytes, at.offset, &*ballot.encode(&at));
                let record = ViewRecord { life, sequence, view, digest, place: 0, wall_ms: 0 };
                let at = place_at(layout.record(slot, index), slot);
                put(&mut bytes, at.offset, &*record.encode(&at));
            }
        }
        let count = usize::from(slots);
        Self {
            layout,
            bytes,
            is_silent: false,
            recorded: vec![0; count],
            ballot_view_max: 0,
            ballots_at_record: vec![(0, 0); count],
            record_sequence: vec![0; count],
        }
    }
    fn get(&self, offset: ByteOffset, bytes: usize) -> &[u8] {
        let from = usize::try_from(offset.0).unwrap();
        &self.bytes[from..from + bytes]
    }
    fn body_digest(&self, slot: SlotIndex, place: u8) -> Option<Digest> {
        let at = place_at(self.layout.body(slot, place), slot);
        let (_, _, value) = decode_body_place(self.get(at.offset, PLACE_BYTES as usize), &at).ok()?;
        Some(ViewBody::decode_value(&value).ok()?.digest())
    }
    fn ballot(&self, slot: SlotIndex, index: u8) -> Option<Ballot> {
        let at = place_at(self.layout.vote(slot, index), slot);
        Ballot::decode(self.get(at.offset, UNIT_BYTES), &at).ok()
    }
    fn record(&self, slot: SlotIndex, index: u8) -> Option<ViewRecord> {
        let at = place_at(self.layout.record(slot, index), slot);
        ViewRecord::decode(self.get(at.offset, UNIT_BYTES), &at).ok()
    }
}

fn place_at(offset: ByteOffset, slot: SlotIndex) -> Place {
    Place { cluster: CLUSTER, offset, slot }
}
fn put(bytes: &mut [u8], offset: ByteOffset, data: &[u8]) {
    let from = usize::try_from(offset.0).unwrap();
    bytes[from..from + data.len()].copy_from_slice(data);
}

/// An operation on its way: the write lands, then the read is gathered piece by piece, then the node hears of it.
struct SimOp {
    node: usize,
    is_orphan: bool,
    device: usize,
    tag: u64,
    write: Option<(ByteOffset, Vec<u8>)>,
    read: Option<(ByteOffset, usize)>,
    gathered: Vec<u8>,
}

struct Node {
    register: Option<Register>,
    lives: u8,
    is_paused: bool,
}

#[derive(Clone, Copy)]
struct Plan {
    nodes: u16,
    devices: usize,
    steps: usize,
    crashes: bool,
    damage: bool,
    failures: bool,
    /// Node 0 crashes once, at this step of its operations.
    crash_at: Option<u32>,
    mistake: Option<Mistake>,
}

const PLAIN: Plan =
    Plan { nodes: 3, devices: 1, steps: 3000, crashes: true, damage: false, failures: false, crash_at: None, mistake: None };

#[derive(Default, Debug, Clone, Copy)]
struct Figures {
    views: u64,
    crashes: u64,
    learned: u64,
    contested: u64,
    lost: u64,
    blocked: u64,
    steps: u64,
}

struct World {
    plan: Plan,
    random: Random,
    disks: Vec<Disk>,
    nodes: Vec<Node>,
    ops: Vec<SimOp>,
    now_ms: u64,
    decided: BTreeMap<u64, Digest>,
    predecessors: BTreeMap<u64, Digest>,
    damaged: Vec<(usize, SlotIndex)>,
    version: u64,
    figures: Figures,
    violation: Option<(Violation, String)>,
    /// Nobody proposes by itself any more.
    is_quiet: bool,
    /// Steps of operations of node 0.
    first_steps: u32,
    trace: bool,
}

impl World {
    fn new(plan: Plan, seed: u64) -> Self {
        let mut world = Self {
            plan,
            random: Random(seed),
            disks: (0..plan.devices).map(|_| Disk::formatted(plan.nodes)).collect(),
            nodes: Vec::new(),
            ops: Vec::new(),
            now_ms: 0,
            decided: BTreeMap::new(),
            predecessors: BTreeMap::new(),
            damaged: Vec::new(),
            version: 0,
            figures: Figures::default(),
            violation: None,
            is_quiet: false,
            first_steps: 0,
            trace: std::env::var("DEADBOLT_TRACE").is_ok(),
        };
        for node in 0..usize::from(plan.nodes) {
            world.nodes.push(Node { register: None, lives: 0, is_paused: false });
            world.start(node);
        }
        world
    }

    fn violated(&mut self, violation: Violation, text: String) {
        if self.trace {
            eprintln!("violated: {violation:?} {text}");
        }
        self.violation.get_or_insert((violation, text));
    }

    fn life(&self, node: usize) -> Life {
        let number = self.nodes[node].lives;
        let slot = SlotIndex(u16::try_from(node).unwrap());
        Life { slot, boot: BootId([number; 16]), incarnation: Incarnation([number; 16]) }
    }

    fn start(&mut self, node: usize) {
        self.nodes[node].lives += 1;
        let mut register = Register::new(RegisterConfig {
            cluster: CLUSTER,
            me: self.life(node),
            layouts: self.disks.iter().map(|disk| disk.layout).collect(),
            seed: 1,
            wall_offset_ms: 0,
        });
        register.mistake = self.plan.mistake;
        self.nodes[node].register = Some(register);
        self.input(node, Input::Start);
    }

    fn crash(&mut self, node: usize) {
        self.figures.crashes += 1;
        if self.trace {
            eprintln!("{} crash of node {node}", self.now_ms);
        }
        self.nodes[node].register = None;
        for op in self.ops.iter_mut().filter(|op| op.node == node) {
            op.is_orphan = true;
        }
        self.ops.retain(|op| !op.is_orphan || op.write.is_some());
    }

    fn input(&mut self, node: usize, input: Input) {
        let Some(mut register) = self.nodes[node].register.take() else { return };
        register.handle(self.now_ms, input);
        let mut outputs = Vec::new();
        while let Some(output) = register.poll_output() {
            outputs.push(output);
        }
        self.nodes[node].register = Some(register);
        for output in outputs {
            self.output(node, output);
        }
    }

    fn output(&mut self, node: usize, output: Output) {
        if self.trace && !matches!(output, Output::Disk(_)) {
            eprintln!("{} node {node}: {}", self.now_ms, &format!("{output:?}").chars().take(90).collect::<String>());
        }
        match output {
            Output::Disk(op) => self.submit(node, op),
            Output::Learned { body, digest } => {
                self.figures.learned += 1;
                self.check_learned(node, &body);
                self.known(node, &body, digest);
            }
            Output::Contested { body, digest, .. } => {
                self.figures.contested += 1;
                self.known(node, &body, digest);
            }
            Output::ProposalLost { .. } => self.figures.lost += 1,
            Output::Blocked { reason, .. } => {
                self.figures.blocked += 1;
                if matches!(reason, RegisterBlock::Disagreement | RegisterBlock::Foreign | RegisterBlock::WentBack) {
                    self.violated(Violation::Halted, format!("node {node}: {reason:?}"));
                }
            }
            Output::ProposalRefused { reason } => panic!("{reason:?}"),
        }
    }

    fn submit(&mut self, node: usize, op: DiskOp) {
        let (write, read) = match op.kind {
            DiskOpKind::Read { offset, bytes } => (None, Some((offset, bytes))),
            DiskOpKind::Write { offset, data } => (Some((offset, data)), None),
            DiskOpKind::WriteThenRead { write_offset, data, read_offset, read_bytes } => {
                (Some((write_offset, data)), Some((read_offset, read_bytes)))
            }
        };
        if let Some((offset, _)) = &write {
            let same =
                |other: &SimOp| other.device == op.device && !other.is_orphan && other.write.as_ref().is_some_and(|(at, _)| at == offset);
            if self.ops.iter().any(same) {
                self.violated(Violation::TwoWritesOnOneUnit, format!("node {node} at {offset:?}"));
            }
        }
        let (device, tag) = (op.device, op.tag);
        self.ops.push(SimOp { node, is_orphan: false, device, tag, write, read, gathered: Vec::new() });
    }

    /// S1, and the chain: who proposed view v + 1 had learned view v.
    fn known(&mut self, node: usize, body: &ViewBody, digest: Digest) {
        self.decided_is(body.view, digest, node);
        if body.view.0 > 0 {
            self.predecessors.insert(body.view.0, body.predecessor);
            let before = self.decided.get(&(body.view.0 - 1)).copied();
            let expected = if body.view.0 == 1 { Some(Digest::NONE) } else { before };
            if expected.is_some_and(|expected| expected != body.predecessor) {
                self.violated(Violation::BrokenChain, format!("view {}", body.view));
            }
        }
        // Most go on at once: that is where instances meet.
        if !self.is_quiet && !self.random.one_in(4) {
            self.propose(node);
        }
    }

    fn decided_is(&mut self, view: ViewNumber, digest: Digest, node: usize) {
        let first = *self.decided.entry(view.0).or_insert(digest);
        if first != digest {
            self.violated(Violation::Disagreement, format!("view {view}: {first:?}, node {node} has {digest:?}"));
        }
    }

    fn check_learned(&mut self, node: usize, body: &ViewBody) {
        let view = body.view.0;
        let durable = self.disks.iter().filter(|disk| disk.recorded[node] >= view).count();
        if durable < self.plan.devices / 2 + 1 {
            self.violated(Violation::RecordNotDurable, format!("node {node}, view {view}"));
        }
        // A later ballot that was complete before the record was: the scan after it must have shown it.
        let late = self.disks.iter().filter(|disk| {
            let (recorded, ballots) = disk.ballots_at_record[node];
            recorded == view && ballots > view
        });
        if view > 0 && late.count() > self.plan.devices / 2 {
            self.violated(Violation::ActedTooLate, format!("node {node}, view {view}"));
        }
    }

    fn propose(&mut self, node: usize) {
        let Some(register) = &self.nodes[node].register else { return };
        let status = register.status();
        let Some(known) = status.view else { return };
        self.version += 1;
        let body = ViewBody {
            view: ViewNumber(known.0 + 1),
            predecessor: status.digest,
            proposer: Some(self.life(node)),
            members: vec![self.life(node)],
            configuration: Configuration { version: self.version, ..Configuration::default() },
            ..ViewBody::default()
        };
        self.input(node, Input::Propose(body));
    }

    /// One operation gets one step on.
    fn progress(&mut self, index: usize) {
        if self.ops[index].node == 0 {
            self.first_steps += 1;
            if self.plan.crash_at == Some(self.first_steps) {
                return self.crash(0);
            }
        }
        let op = &mut self.ops[index];
        if let Some((offset, data)) = op.write.take() {
            let (device, node, is_orphan) = (op.device, op.node, op.is_orphan);
            // An orphan may also be lost: its node is down and saw no completion.
            if is_orphan {
                self.ops.swap_remove(index);
                if self.random.one_in(2) {
                    return;
                }
            }
            self.land(device, node, offset, &data);
            return;
        }
        if let Some((offset, bytes)) = op.read.filter(|(_, bytes)| op.gathered.len() < *bytes) {
            let left = (bytes - op.gathered.len()) / UNIT_BYTES;
            let units = 1 + self.random.below(left);
            let from = ByteOffset(offset.0 + op.gathered.len() as u64);
            let start = op.gathered.len();
            op.gathered.extend_from_slice(self.disks[op.device].get(from, units * UNIT_BYTES));
            if self.plan.damage && self.random.one_in(300) {
                op.gathered[start + 100] ^= 0x40;
            }
            return;
        }
        let op = self.ops.swap_remove(index);
        let has_failed = self.plan.failures && self.random.one_in(60);
        let result = if has_failed { Err(IoFailed) } else { Ok(op.gathered.into()) };
        self.input(op.node, Input::Disk(DiskDone { tag: op.tag, device: op.device, result }));
    }

    fn land(&mut self, device: usize, node: usize, offset: ByteOffset, data: &[u8]) {
        let slot = SlotIndex(u16::try_from(node).unwrap());
        let majority = self.plan.devices / 2 + 1;
        let layout = self.disks[device].layout;
        let before = [0, 1].map(|index| self.disks[device].ballot(slot, index));
        if let Some(place) = (0..layout.places).find(|place| layout.body(slot, *place) == offset) {
            self.check_place_is_free(device, slot, place);
        }
        put(&mut self.disks[device].bytes, offset, data);
        let at = place_at(offset, slot);
        if self.trace {
            let ballot = Ballot::decode(data, &at).ok().map(|b| (b.sequence, b.view.0, b.entered, b.accepted, b.digest, b.place));
            let record = ViewRecord::decode(data, &at).ok().map(|r| (r.sequence, r.view.0, r.digest, r.place));
            let place = (0..layout.places).find(|place| layout.body(slot, *place) == offset);
            eprintln!("{} lands node {node}: ballot {ballot:?} record {record:?} place {place:?}", self.now_ms);
        }
        if let Ok(ballot) = Ballot::decode(data, &at) {
            let disk = &mut self.disks[device];
            disk.ballot_view_max = disk.ballot_view_max.max(ballot.view.0);
            if ballot.digest != Digest::NONE && disk.body_digest(slot, ballot.place) != Some(ballot.digest) {
                self.violated(Violation::BodyNotThere, format!("{ballot:?}"));
            }
            let below = self.disks.iter().filter(|disk| disk.recorded[node] + 1 >= ballot.view.0).count();
            if below < majority {
                self.violated(Violation::BallotWithoutRecord, format!("{ballot:?}"));
            }
            if before.iter().flatten().any(|old| old.view == ballot.view && old.entered > ballot.entered) {
                self.violated(Violation::BallotFell, format!("{ballot:?} after {before:?}"));
            }
        }
        if let Ok(record) = ViewRecord::decode(data, &at) {
            let disk = &mut self.disks[device];
            let has_body = record.digest == Digest::NONE || disk.body_digest(slot, record.place) == Some(record.digest);
            disk.recorded[node] = disk.recorded[node].max(record.view.0);
            disk.ballots_at_record[node] = (record.view.0, disk.ballot_view_max);
            disk.record_sequence[node] = disk.record_sequence[node].max(record.sequence);
            if !has_body {
                self.violated(Violation::BodyNotThere, format!("{record:?}"));
            }
            if record.view.0 > 0 {
                self.decided_is(record.view, record.digest, node);
            }
        }
    }

    fn check_place_is_free(&mut self, device: usize, slot: SlotIndex, place: u8) {
        let disk = &self.disks[device];
        let votes = [0, 1].map(|index| disk.ballot(slot, index));
        let mut votes = votes.iter().flatten();
        let newest = [0, 1].map(|index| disk.record(slot, index));
        // The newest that was written; where it was damaged since, the older one is not bound any more.
        let sequence = disk.record_sequence[usize::from(slot.0)];
        let newest = newest.iter().flatten().find(|record| record.sequence == sequence);
        let by_vote = votes.any(|ballot| ballot.digest != Digest::NONE && ballot.place == place);
        let by_record = newest.is_some_and(|record| record.digest != Digest::NONE && record.place == place);
        if by_vote || by_record {
            self.violated(Violation::PlaceOverwritten, format!("slot {slot}, place {place}"));
        }
    }

    /// Damages one vote unit or record of a living node, at most one of its units at a time.
    fn damage(&mut self) {
        let node = self.random.below(self.nodes.len());
        let slot = SlotIndex(u16::try_from(node).unwrap());
        let device = self.random.below(self.disks.len());
        let disk = &self.disks[device];
        let has_both = (0..2).all(|index| disk.ballot(slot, index).is_some() && disk.record(slot, index).is_some());
        // A write on its way would hide the damage from its owner, or be counted on top of it.
        let is_busy = self.ops.iter().any(|op| op.node == node && op.device == device);
        let is_loaded = self.nodes[node].register.as_ref().is_some_and(|register| register.status().view.is_some());
        if !has_both || is_busy || !is_loaded {
            return;
        }
        let index = u8::from(self.random.one_in(2));
        let offset = if self.random.one_in(2) { disk.layout.vote(slot, index) } else { disk.layout.record(slot, index) };
        self.damaged.push((device, slot));
        if self.trace {
            eprintln!("{} damage of slot {slot} at {}", self.now_ms, offset.0);
        }
        let at = usize::try_from(offset.0).unwrap() + 200;
        self.disks[device].bytes[at] ^= 0x10;
    }

    fn is_whole(&self, node: usize) -> bool {
        let slot = SlotIndex(u16::try_from(node).unwrap());
        self.disks.iter().all(|disk| (0..2).all(|index| disk.ballot(slot, index).is_some() && disk.record(slot, index).is_some()))
    }

    fn step(&mut self) {
        self.figures.steps += 1;
        let node = self.random.below(self.nodes.len());
        match self.random.below(100) {
            0 | 1 => self.input(node, Input::Learn),
            2 => self.propose(node),
            3 => self.nodes[node].is_paused ^= self.random.one_in(3),
            4 if self.plan.crashes && self.nodes[node].register.is_some() && self.is_whole(node) => {
                if self.random.one_in(3) {
                    self.crash(node);
                }
            }
            5 if self.plan.damage => self.damage(),
            6 if self.plan.devices > 1 => {
                let others_speak = self.disks.iter().filter(|disk| disk.is_silent).count() == 0;
                let device = self.random.below(self.disks.len());
                let disk = &mut self.disks[device];
                disk.is_silent = !disk.is_silent && others_speak && self.plan.devices > 2;
            }
            7 if self.random.one_in(6) => self.input(node, Input::Abandon),
            8..=15 => self.pass_time(),
            _ => self.progress_any(),
        }
    }

    fn pass_time(&mut self) {
        self.now_ms += 1 + self.random.next() % 4;
        for node in 0..self.nodes.len() {
            let is_down = self.nodes[node].register.is_none();
            let may_land = self.ops.iter().any(|op| op.is_orphan && op.node == node);
            let is_early = self.plan.mistake == Some(Mistake::StartTooEarly);
            if is_down && (!may_land || is_early) && self.random.one_in(8) {
                self.start(node);
            }
            let deadline = self.nodes[node].register.as_ref().and_then(Register::next_deadline);
            if deadline.is_some_and(|at| at <= self.now_ms) && !self.nodes[node].is_paused {
                self.input(node, Input::Tick);
            }
        }
    }

    fn progress_any(&mut self) {
        let can = |op: &SimOp| !self.disks[op.device].is_silent && (op.is_orphan || !self.nodes[op.node].is_paused);
        let ready: Vec<usize> = (0..self.ops.len()).filter(|&index| can(&self.ops[index])).collect();
        if ready.is_empty() {
            return self.pass_time();
        }
        let index = ready[self.random.below(ready.len())];
        // Where a life starts too early, the writes of the one before are late ones.
        let is_late = self.ops[index].is_orphan && self.plan.mistake == Some(Mistake::StartTooEarly);
        if !is_late || self.random.one_in(20) {
            self.progress(index);
        }
    }

    /// Faults stop: everybody must come to know the same view, with nothing left in the air (L3).
    fn heal(&mut self) {
        (self.plan.crashes, self.plan.damage, self.plan.failures) = (false, false, false);
        for disk in &mut self.disks {
            disk.is_silent = false;
        }
        for node in &mut self.nodes {
            node.is_paused = false;
        }
        for step in 0..40_000u32 {
            if self.violation.is_some() {
                return;
            }
            if step % 64 == 0 {
                let node = self.random.below(self.nodes.len());
                self.input(node, Input::Learn);
            }
            if self.random.one_in(12) {
                self.pass_time()
            } else {
                self.progress_any()
            }
            self.is_quiet = step > 4000;
            let statuses: Vec<_> = self.nodes.iter().filter_map(|node| Some(node.register.as_ref()?.status())).collect();
            let is_calm = statuses.len() == self.nodes.len()
                && statuses.iter().all(|status| status.phase == RegisterPhase::Idle && status.view == statuses[0].view);
            // Contested, and its proposer is dead: whoever knows has to propose.
            let contested = statuses.iter().position(|status| !status.may_act || status.view == Some(ViewNumber(0)));
            match contested {
                Some(node) if is_calm => self.propose(node),
                None if is_calm && self.is_quiet => return,
                _ => {}
            }
        }
        let statuses: Vec<_> = self.nodes.iter().map(|node| node.register.as_ref().map(Register::status)).collect();
        self.violated(Violation::NoProgress, format!("{statuses:?}"));
    }

    fn run(mut self) -> Result<Figures, (Violation, String)> {
        for _ in 0..self.plan.steps {
            self.step();
            if let Some(violation) = self.violation {
                return Err(violation);
            }
        }
        self.heal();
        self.figures.views = self.decided.keys().max().copied().unwrap_or(0);
        self.violation.map_or(Ok(self.figures), Err)
    }
}

/// `DEADBOLT_SEEDS` multiplies the number of seeds, `DEADBOLT_SEED` names the one to run (with `DEADBOLT_TRACE` for its story).
fn seeds(count: u64) -> core::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("DEADBOLT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..count * number("DEADBOLT_SEEDS").unwrap_or(1),
    }
}

fn expect_agreement(name: &str, plan: Plan, count: u64) -> Figures {
    let mut sum = Figures::default();
    for seed in seeds(count) {
        match World::new(plan, seed).run() {
            Ok(figures) => {
                sum.views += figures.views;
                sum.crashes += figures.crashes;
                sum.learned += figures.learned;
                sum.contested += figures.contested;
                sum.lost += figures.lost;
                sum.blocked += figures.blocked;
                sum.steps += figures.steps;
            }
            Err((violation, text)) => panic!("{name}, seed {seed}: {violation:?}: {text}"),
        }
    }
    println!("{name}: {sum:?}");
    assert!(sum.views >= count * 3, "too little happened: {sum:?}");
    sum
}

fn expect_found(mistake: Mistake, plan: Plan, expected: &[Violation]) {
    let plan = Plan { mistake: Some(mistake), ..plan };
    for seed in 0..3000 {
        if let Err((violation, text)) = World::new(plan, seed).run() {
            println!("{mistake:?}: found with seed {seed}: {violation:?} {text}");
            assert!(expected.contains(&violation), "{mistake:?} shows as {violation:?}: {text}");
            return;
        }
    }
    panic!("{mistake:?} was not found");
}

#[test]
fn one_device_agrees() {
    for nodes in [2, 3, 5] {
        let figures = expect_agreement("one device", Plan { nodes, ..PLAIN }, 25);
        assert!(figures.crashes > 0 && figures.lost > 0 && figures.contested > 0, "{figures:?}");
    }
    let long = expect_agreement("one device, long", Plan { steps: 25_000, ..PLAIN }, 3);
    assert!(long.views > 600, "{long:?}");
}

#[test]
fn one_device_with_damage_and_failures_agrees() {
    let plan = Plan { damage: true, failures: true, ..PLAIN };
    let figures = expect_agreement("one device, damage and failures", plan, 40);
    assert!(figures.blocked > 0, "{figures:?}");
}

#[test]
fn three_devices_one_silent_now_and_then_agree() {
    let plan = Plan { devices: 3, steps: 5000, failures: true, ..PLAIN };
    expect_agreement("three devices", plan, 30);
    expect_agreement("three devices, damage", Plan { damage: true, ..plan }, 10);
    expect_agreement("two devices", Plan { devices: 2, steps: 4000, ..PLAIN }, 15);
}

#[test]
fn a_crash_at_every_step_leaves_agreement() {
    let mut views = 0;
    for crash_at in 1..=120 {
        for seed in seeds(2) {
            let plan = Plan { nodes: 2, steps: 500, crashes: false, crash_at: Some(crash_at), ..PLAIN };
            match World::new(plan, seed).run() {
                Ok(figures) => {
                    assert_eq!(figures.crashes, 1);
                    views += figures.views;
                }
                Err((violation, text)) => panic!("crash at {crash_at}, seed {seed}: {violation:?}: {text}"),
            }
        }
    }
    println!("crash at every step: {views} views");
}

/// Devices that do what they are told, operations in order.
fn calm(nodes: u16, devices: usize) -> World {
    let mut world = World::new(Plan { nodes, devices, crashes: false, ..PLAIN }, 1);
    world.is_quiet = true;
    world.finish();
    world
}

impl World {
    fn finish(&mut self) {
        for _ in 0..2000 {
            match self.ops.iter().position(|op| !self.disks[op.device].is_silent && !self.nodes[op.node].is_paused) {
                Some(index) => self.progress(index),
                None => self.pass_time(),
            }
        }
        assert!(self.violation.is_none(), "{:?}", self.violation);
    }
    fn status(&self, node: usize) -> RegisterStatus {
        self.nodes[node].register.as_ref().unwrap().status()
    }
    fn view(&self, node: usize) -> u64 {
        self.status(node).view.unwrap_or_default().0
    }
    fn decide(&mut self, node: usize) {
        self.propose(node);
        self.finish();
    }
    fn flip(&mut self, device: usize, offset: ByteOffset) {
        self.disks[device].bytes[usize::try_from(offset.0).unwrap() + 300] ^= 1;
    }
}

#[test]
fn a_view_takes_five_operations_and_others_learn_it() {
    let mut world = calm(3, 1);
    assert_eq!((world.view(0), world.status(0).may_act), (0, true));
    let before = world.nodes[0].register.as_ref().unwrap().tag;
    world.decide(0);
    // Ballot and scan; body; ballot and scan; record; scan.
    assert_eq!(world.nodes[0].register.as_ref().unwrap().tag - before, 5);
    assert_eq!((world.view(0), world.view(1)), (1, 0));
    world.input(1, Input::Learn);
    world.finish();
    assert_eq!((world.view(1), world.status(1).may_act), (1, true));
}

#[test]
fn an_unreadable_vote_unit_stops_every_decision_until_its_owner_rewrites_it() {
    for index in 0..2 {
        let mut world = calm(3, 1);
        world.decide(2);
        world.input(0, Input::Learn);
        world.finish();
        let offset = world.disks[0].layout.vote(SlotIndex(2), index);
        world.flip(0, offset);
        world.decide(0);
        assert_eq!(world.view(0), 1, "stands still");
        assert!(world.figures.blocked > 0);
        world.input(2, Input::Learn);
        world.finish();
        assert_eq!(world.view(0), 2, "goes on by itself");
    }
}

#[test]
fn a_view_whose_last_scan_was_bad_is_learned_from_a_later_one() {
    let mut world = calm(3, 1);
    world.decide(2);
    world.input(0, Input::Learn);
    world.finish();
    world.propose(0);
    while [0, 1].into_iter().all(|index| world.disks[0].record(SlotIndex(0), index).is_none_or(|record| record.view.0 < 2)) {
        world.progress(0);
    }
    let offset = world.disks[0].layout.vote(SlotIndex(2), 0);
    world.flip(0, offset);
    world.finish();
    assert!(world.figures.blocked > 0 && !world.status(0).may_act);
    for node in [0, 2, 0] {
        world.input(node, Input::Learn);
        world.finish();
    }
    assert_eq!((world.view(0), world.status(0).may_act), (2, true));
}

#[test]
fn an_unreadable_vote_unit_binds_the_next_life_of_its_owner() {
    let mut world = calm(2, 1);
    world.decide(1);
    world.crash(1);
    let offset = world.disks[0].layout.vote(SlotIndex(1), 0);
    world.flip(0, offset);
    world.start(1);
    world.finish();
    assert_eq!(world.status(1).view, None);
    assert!(world.figures.blocked > 0);
}

#[test]
fn a_named_value_without_a_body_stops_the_instance() {
    let mut world = calm(2, 1);
    // Node 1 accepts its value and is gone before the record.
    world.propose(1);
    while world.disks[0].ballot(SlotIndex(1), 1).is_none_or(|ballot| ballot.accepted == 0)
        && world.disks[0].ballot(SlotIndex(1), 0).is_none_or(|ballot| ballot.accepted == 0)
    {
        world.progress(0);
    }
    world.crash(1);
    let bodies = world.disks[0].layout.body(SlotIndex(1), 0);
    let saved = world.disks[0].bytes.clone();
    for place in 0..u64::from(world.disks[0].layout.places) {
        world.flip(0, ByteOffset(bodies.0 + place * u64::from(PLACE_BYTES)));
    }
    world.decide(0);
    assert_eq!(world.view(0), 0);
    assert!(world.figures.blocked > 0);
    let at = usize::try_from(bodies.0).unwrap();
    world.disks[0].bytes[at..].copy_from_slice(&saved[at..]);
    world.finish();
    assert_eq!(world.view(0), 1);
    assert!(world.figures.lost > 0, "the dead node's value was taken on");
}

#[test]
fn a_body_that_rots_is_written_again_by_its_living_owner() {
    for devices in [1, 3] {
        let mut world = calm(2, devices);
        world.decide(0);
        for device in 0..devices {
            let bodies = world.disks[device].layout.body(SlotIndex(0), 0);
            for place in 0..u64::from(world.disks[device].layout.places) {
                world.flip(device, ByteOffset(bodies.0 + place * u64::from(PLACE_BYTES)));
            }
        }
        world.input(1, Input::Learn);
        world.finish();
        assert_eq!(world.view(1), 0, "there is no body to learn from");
        assert!(world.figures.blocked > 0);
        world.now_ms += 1000;
        world.input(0, Input::Learn);
        world.finish();
        assert_eq!((world.view(0), world.status(0).may_act), (1, true));
        assert_eq!(world.view(1), 1, "goes on by itself");
    }
}

#[test]
fn a_device_that_went_back_is_not_used_and_a_foreign_record_halts() {
    let mut world = calm(2, 3);
    world.decide(0);
    let saved = world.disks[2].bytes.clone();
    world.decide(0);
    world.disks[2].bytes = saved;
    world.nodes[0].register.as_mut().unwrap().handle(0, Input::Tick);
    world.input(0, Input::Learn);
    for _ in 0..200 {
        if let Some(index) = (!world.ops.is_empty()).then_some(0) {
            world.progress(index);
        }
    }
    assert_eq!(world.violation.take().map(|(violation, _)| violation), Some(Violation::Halted), "reported");
    assert_eq!((world.status(0).devices, world.view(0)), (2, 2));
    world.decide(0);
    assert_eq!(world.view(0), 3, "two of three go on");

    let mut world = calm(2, 1);
    world.decide(0);
    let at = place_at(world.disks[0].layout.vote(SlotIndex(0), 0), SlotIndex(0));
    let mut ballot = world.disks[0].ballot(SlotIndex(0), 0).unwrap();
    ballot.life.incarnation = Incarnation([99; 16]);
    ballot.sequence += 100;
    put(&mut world.disks[0].bytes, at.offset, &*ballot.encode(&at));
    world.input(0, Input::Learn);
    for _ in 0..200 {
        if !world.ops.is_empty() {
            world.progress(0);
        }
    }
    assert_eq!(world.status(0).phase, RegisterPhase::Halted);
    world.violation = None;
    assert!(!world.status(0).may_act);
}

#[test]
fn a_ballot_whose_write_failed_is_not_taken_back_by_a_rewrite() {
    let mut world = calm(2, 1);
    world.decide(0);
    world.propose(0);
    world.progress(0);
    let newest = |world: &World| (0..2).filter_map(|index| world.disks[0].ballot(SlotIndex(0), index)).max_by_key(|b| b.sequence);
    let index = (0..2).find(|&index| world.disks[0].ballot(SlotIndex(0), index) == newest(&world)).unwrap();
    assert_eq!(newest(&world).map(|ballot| ballot.view), Some(ViewNumber(2)), "landed");
    let op = world.ops.swap_remove(0);
    world.input(0, Input::Disk(DiskDone { tag: op.tag, device: 0, result: Err(IoFailed) }));
    let offset = world.disks[0].layout.vote(SlotIndex(0), index);
    world.flip(0, offset);
    world.input(0, Input::Abandon);
    world.finish();
    assert_eq!(newest(&world).map(|ballot| ballot.view), Some(ViewNumber(2)), "rewritten as it was");
}

#[test]
fn a_silent_device_of_three_is_survived_and_catches_up() {
    let mut world = calm(2, 3);
    world.disks[1].is_silent = true;
    world.decide(0);
    world.decide(0);
    assert_eq!((world.view(0), world.disks[1].recorded[0]), (2, 0));
    world.disks[1].is_silent = false;
    world.decide(0);
    assert_eq!((world.view(0), world.disks[1].recorded[0]), (3, 3));
    world.disks[0].is_silent = true;
    world.input(1, Input::Learn);
    world.finish();
    assert_eq!(world.view(1), 3);
    world.disks[2].is_silent = true;
    world.decide(1);
    assert_eq!(world.view(1), 3, "one of three decides nothing");
}

#[test]
fn a_new_life_is_bound_by_what_the_old_one_accepted() {
    let mut world = calm(2, 1);
    world.propose(0);
    while world.disks[0].ballot(SlotIndex(0), 1).is_none_or(|ballot| ballot.accepted == 0)
        && world.disks[0].ballot(SlotIndex(0), 0).is_none_or(|ballot| ballot.accepted == 0)
    {
        world.progress(0);
    }
    let accepted = [0, 1].map(|index| world.disks[0].ballot(SlotIndex(0), index).unwrap().digest);
    world.crash(0);
    world.start(0);
    world.finish();
    assert!(!world.status(0).may_act, "contested by the ballot of the life before");
    world.decide(0);
    assert_eq!(world.view(0), 1);
    assert!(accepted.contains(&world.status(0).digest));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, cases: 64, ..Default::default() })]
    /// Whatever a device answers, well sealed or not, the register neither panics nor learns from nonsense.
    #[test]
    fn any_bytes_are_survived(seed in proptest::prelude::any::<u64>()) {
        let mut random = Random(seed);
        let mut disk = Disk::formatted(3);
        for slot in (0..3).map(SlotIndex) {
            let life = Life { slot, boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) };
            let mut wild = || [0, 1, 511, 512, u64::MAX - 1, u64::MAX][random.below(6)];
            let (view, entered) = (ViewNumber(wild().max(1)), wild());
            let accepted = wild().min(entered);
            let digest = if accepted == 0 { Digest::NONE } else { Digest([9; 32]) };
            let place = u8::try_from(wild() % 256).unwrap();
            let ballot = Ballot { life, sequence: wild(), view, entered, accepted, digest, place };
            let at = place_at(disk.layout.vote(slot, 1), slot);
            put(&mut disk.bytes, at.offset, &*ballot.encode(&at));
            if wild() == 0 {
                let record = ViewRecord { life, sequence: wild(), view, digest: Digest([8; 32]), place, wall_ms: 0 };
                let at = place_at(disk.layout.record(slot, 0), slot);
                put(&mut disk.bytes, at.offset, &*record.encode(&at));
            }
        }
        let me = Life { slot: SlotIndex(0), boot: BootId([2; 16]), incarnation: Incarnation([2; 16]) };
        let layouts = vec![disk.layout];
        let mut register = Register::new(RegisterConfig { cluster: CLUSTER, me, layouts, seed: 0, wall_offset_ms: 0 });
        register.handle(0, Input::Start);
        register.handle(0, Input::Propose(ViewBody { view: ViewNumber(1), ..ViewBody::default() }));
        for now_ms in 0..300 {
            let Some(output) = register.poll_output() else {
                register.handle(now_ms * 20, Input::Tick);
                continue;
            };
            let Output::Disk(op) = output else { continue };
            let (write, read) = match op.kind {
                DiskOpKind::Read { offset, bytes } => (None, Some((offset, bytes))),
                DiskOpKind::Write { offset, data } => (Some((offset, data)), None),
                DiskOpKind::WriteThenRead { write_offset, data, read_offset, read_bytes } => {
                    (Some((write_offset, data)), Some((read_offset, read_bytes)))
                }
            };
            if let Some((offset, data)) = write {
                put(&mut disk.bytes, offset, &data);
            }
            let mut answer = read.map_or(Vec::new(), |(offset, bytes)| disk.get(offset, bytes).to_vec());
            match random.below(12) {
                0 => answer.truncate(random.below(answer.len() + 1)),
                1 if !answer.is_empty() => answer[random.below(512)] ^= 1,
                2 => answer.fill(0xa5),
                _ => {}
            }
            let result = if random.one_in(20) { Err(IoFailed) } else { Ok(answer.into()) };
            register.handle(now_ms * 20, Input::Disk(DiskDone { tag: op.tag, device: op.device, result }));
        }
    }
}

#[test]
fn proposals_are_judged() {
    let mut world = calm(2, 1);
    world.decide(0);
    let mut refused = |body: ViewBody| {
        let register = world.nodes[0].register.as_mut().unwrap();
        register.handle(0, Input::Propose(body));
        register.poll_output()
    };
    let life = |slot| Life { slot: SlotIndex(slot), boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) };
    let far = ViewBody { view: ViewNumber(3), ..ViewBody::default() };
    assert!(matches!(refused(far), Some(Output::ProposalRefused { reason: ProposalError::NotNext { known: ViewNumber(1) } })));
    let old = ViewBody { view: ViewNumber(1), ..ViewBody::default() };
    assert_eq!(refused(old), Some(Output::ProposalLost { winner: ViewNumber(1) }));
    let twice = ViewBody { view: ViewNumber(2), members: vec![life(1), life(1)], ..ViewBody::default() };
    assert!(matches!(refused(twice), Some(Output::ProposalRefused { reason: ProposalError::Value(_) })));
    let members = (0..250).map(life).collect();
    let long = ViewBody { view: ViewNumber(2), members, ..ViewBody::default() };
    assert!(matches!(refused(long), Some(Output::ProposalRefused { reason: ProposalError::Size(_) })));
}

#[test]
fn planted_mistakes_are_found() {
    use Violation::{ActedTooLate, BallotFell, BallotWithoutRecord, BodyNotThere, BrokenChain, Disagreement, Halted, PlaceOverwritten};
    let split = [Disagreement, Halted, BrokenChain];
    expect_found(Mistake::LaterReadAsEmpty, PLAIN, &split);
    expect_found(Mistake::OwnValueFirst, PLAIN, &split);
    expect_found(Mistake::RecordBeforeDecided, PLAIN, &split);
    expect_found(Mistake::ForgetPromise, PLAIN, &[Disagreement, Halted, BrokenChain, ActedTooLate]);
    expect_found(Mistake::BodyAfterBallot, PLAIN, &[BodyNotThere]);
    expect_found(Mistake::BallotBeforeRecord, PLAIN, &[BallotWithoutRecord]);
    expect_found(Mistake::PlaceReused, PLAIN, &[PlaceOverwritten]);
    expect_found(Mistake::ActWithoutScan, PLAIN, &[ActedTooLate]);
    expect_found(Mistake::StartTooEarly, PLAIN, &[Disagreement, Halted, BallotFell, PlaceOverwritten, BodyNotThere]);
}
