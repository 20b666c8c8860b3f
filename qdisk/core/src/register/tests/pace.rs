//! What: how soon a view is decided when nodes contend for it, by a clock of microseconds and a disk that is never late.
//! Owns: the times of the disk: a write and a read as they are on a device with a battery.
//! Invariants: a seed is a run; all propose within a tenth of a millisecond of each other.
//! Does not: lose, delay or damage anything.
//! Called by: `cargo test`.

use super::*;

const WRITE_US: u64 = 300;
const READ_US: u64 = 250;
const JITTER_US: usize = 100;

enum Event {
    Propose(usize),
    /// The write lands.
    Land {
        node: usize,
        op: DiskOp,
    },
    /// The read is gathered, and the node hears of it.
    Done {
        node: usize,
        op: DiskOp,
    },
    Tick(usize),
}

struct Pace {
    random: Random,
    disk: Disk,
    registers: Vec<Register>,
    events: BTreeMap<(u64, u64), Event>,
    number: u64,
    now_us: u64,
    /// When each node knew the view, us.
    knows: Vec<Option<u64>>,
    digest: Digest,
    view: u64,
}

fn life(node: usize) -> Life {
    Life { slot: SlotIndex(u16::try_from(node).unwrap()), boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) }
}

impl Pace {
    fn new(nodes: u16, seed: u64) -> Self {
        let disk = Disk::formatted(nodes);
        let config = |node| RegisterConfig { cluster: CLUSTER, me: life(node), layouts: vec![disk.layout], seed, wall_offset_ms: 0 };
        let registers: Vec<Register> = (0..usize::from(nodes)).map(|node| Register::new(config(node))).collect();
        let knows = vec![None; registers.len()];
        let (events, random) = (BTreeMap::new(), Random(seed));
        let mut pace = Self { random, disk, registers, events, number: 0, now_us: 0, knows, digest: Digest::NONE, view: 0 };
        (0..usize::from(nodes)).for_each(|node| pace.give(node, Input::Start));
        pace.run();
        pace
    }

    fn after(&mut self, span_us: u64, event: Event) {
        let jitter_us = self.random.below(JITTER_US) as u64;
        self.number += 1;
        self.events.insert((self.now_us + span_us + jitter_us, self.number), event);
    }

    fn give(&mut self, node: usize, input: Input) {
        let now_ms = self.now_us / 1000;
        self.registers[node].handle(now_ms, input);
        while let Some(output) = self.registers[node].poll_output() {
            match output {
                Output::Disk(op) if matches!(op.kind, DiskOpKind::Read { .. }) => self.after(READ_US, Event::Done { node, op }),
                Output::Disk(op) => self.after(WRITE_US, Event::Land { node, op }),
                Output::Learned { body, digest } | Output::Contested { body, digest, .. } if body.view.0 == self.view => {
                    self.knows[node].get_or_insert(self.now_us);
                    self.digest = digest;
                }
                Output::Learned { .. } | Output::Contested { .. } | Output::ProposalLost { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        if let Some(at_ms) = self.registers[node].next_deadline() {
            self.after((at_ms * 1000).saturating_sub(self.now_us), Event::Tick(node));
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Propose(node) => {
                let (view, proposer) = (ViewNumber(self.view), Some(life(node)));
                let body = ViewBody { view, predecessor: self.digest, proposer, members: vec![life(node)], ..ViewBody::default() };
                self.give(node, Input::Propose(body));
            }
            Event::Land { node, op } => {
                match &op.kind {
                    DiskOpKind::Write { offset, data } | DiskOpKind::WriteThenRead { write_offset: offset, data, .. } => {
                        put(&mut self.disk.bytes, *offset, data);
                    }
                    DiskOpKind::Read { .. } => unreachable!("it writes nothing"),
                }
                let span_us = if matches!(op.kind, DiskOpKind::Write { .. }) { 0 } else { READ_US };
                self.after(span_us, Event::Done { node, op });
            }
            Event::Done { node, op } => {
                let read: Arc<[u8]> = match op.kind {
                    DiskOpKind::Read { offset, bytes } | DiskOpKind::WriteThenRead { read_offset: offset, read_bytes: bytes, .. } => {
                        self.disk.get(offset, bytes).into()
                    }
                    DiskOpKind::Write { .. } => Arc::default(),
                };
                self.give(node, Input::Disk(DiskDone { tag: op.tag, device: op.device, result: Ok(read) }));
            }
            Event::Tick(node) => self.give(node, Input::Tick),
        }
    }

    /// Until nothing is left to do, or all know the view.
    fn run(&mut self) {
        while self.knows.iter().any(Option::is_none)
            && let Some(((at_us, _), event)) = self.events.pop_first()
        {
            self.now_us = at_us;
            self.handle(event);
        }
    }

    /// Microseconds until the first knows the next view, and until all do.
    fn next_view(&mut self) -> (u64, u64) {
        self.view += 1;
        self.knows.fill(None);
        let begin_us = self.now_us;
        (0..self.registers.len()).for_each(|node| self.after(0, Event::Propose(node)));
        self.run();
        while self.knows.iter().any(Option::is_none) {
            // A node's quick poll.
            self.now_us += 50_000;
            (0..self.registers.len()).for_each(|node| self.give(node, Input::Learn));
            self.run();
        }
        let known = || self.knows.iter().map(|at| at.unwrap() - begin_us);
        (known().min().unwrap(), known().max().unwrap())
    }
}

#[test]
fn contenders_decide_soon() {
    for nodes in [1, 2, 4, 8, 16] {
        let (mut first, mut all) = (Vec::new(), Vec::new());
        for seed in 1..20 {
            let mut pace = Pace::new(nodes, seed);
            for _ in 0..50 {
                let (one, last) = pace.next_view();
                first.push(one);
                all.push(last);
            }
        }
        let rank = |spans: &mut Vec<u64>, percent: usize| {
            spans.sort_unstable();
            spans[(spans.len() * percent).div_ceil(100) - 1]
        };
        println!(
            "{nodes} nodes: decided p50 {} p99 {} worst {} us; known to all p50 {} p99 {}",
            rank(&mut first, 50),
            rank(&mut first, 99),
            rank(&mut first, 100),
            rank(&mut all, 50),
            rank(&mut all, 99)
        );
        let four_us = 2 * (WRITE_US + READ_US);
        assert!(rank(&mut first, 50) < four_us + 3000 && rank(&mut first, 99) < four_us + 20_000);
    }
}
