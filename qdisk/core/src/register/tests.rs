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

mod any_bytes;
mod disk;
mod pace;
mod scenes;
mod seeds;

use disk::{Disk, place_at, put};

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
