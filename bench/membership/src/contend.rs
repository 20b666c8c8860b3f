//! What: a view decided by nodes that all propose at the same instant, beside the four operations that a decision needs at least.
//! Owns: the image, the registers, the instants.
//! Invariants: nobody proposes the next view before all know this one; a view has one value, or the measurement ends.
//! Does not: imitate the daemon's reasons to propose.
//! Called by: the program.

use crate::PREFIX;
use anyhow::{Context, Result, bail};
use deadbolt_bench::sheet::{Case, Measured, Reach, Row};
use deadbolt_disk::{Access, AlignedBuf, BackendChoice, ByteOffset, Device, RawDevice};
use deadbolt_disk_format::{BootId, Digest, Incarnation, Layout, Life, SlotIndex, ViewBody, ViewNumber};
use deadbolt_qdisk::core::{Input, Output, Register, RegisterConfig};
use deadbolt_qdisk::{Driver, Event, drive};
use deadbolt_tests::disks::DISK_BYTES;
use deadbolt_tests::format::{CLUSTER, format};
use deadbolt_trial::Place;
use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

const FLOOR: &str = "floor: four operations, a unit written and all votes read, twice";
const SIZES: [u16; 4] = [2, 4, 8, 16];
const MEDIAN: [&str; 4] = [
    "view decided, 2 nodes contend, p50",
    "view decided, 4 nodes contend, p50",
    "view decided, 8 nodes contend, p50",
    "view decided, 16 nodes contend, p50",
];
const SLOWEST: [&str; 4] = [
    "view decided, 2 nodes contend, p99",
    "view decided, 4 nodes contend, p99",
    "view decided, 8 nodes contend, p99",
    "view decided, 16 nodes contend, p99",
];
const KNOWN: [&str; 4] = [
    "view known to all, 2 nodes contend, p50",
    "view known to all, 4 nodes contend, p50",
    "view known to all, 8 nodes contend, p50",
    "view known to all, 16 nodes contend, p50",
];

const SLOTS: u16 = 16;
const UNIT_BYTES: usize = 4096;
/// Views of a round.
const VIEWS: u64 = 100;
const QUICK_VIEWS: u64 = 10;
/// A node's quick poll: who was not told looks again.
const LOOK: Duration = Duration::from_millis(50);
/// For one view.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn cases(is_quick: bool) -> Vec<Case> {
    let views = if is_quick { QUICK_VIEWS } else { VIEWS };
    let floor = Case::one(Row::new(FLOOR, "ms"), move || four_operations(views));
    let contended = (0..SIZES.len()).map(|index| {
        let rows = vec![
            Row::new(MEDIAN[index], "ms").over(&[FLOOR]).reach(Reach::Above(3.0)),
            Row::new(SLOWEST[index], "ms").over(&[FLOOR]).reach(Reach::Above(20.0)),
            Row::new(KNOWN[index], "ms").over(&[FLOOR]),
        ];
        Case::new(rows, move || contend(SIZES[index], views).map(Measured::Values))
    });
    std::iter::once(floor).chain(contended).collect()
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

fn rank(spans: &mut [Duration], percent: usize) -> Result<f64> {
    spans.sort_unstable();
    spans.get((spans.len() * percent).div_ceil(100).saturating_sub(1)).copied().map(millis).context("nothing was measured")
}

fn four_operations(times: u64) -> Result<f64> {
    let place = Place::prepare(PREFIX, false)?;
    let device = Device::open(&place.device, Access::ReadWrite)?;
    let (written, mut read) = (AlignedBuf::zeroed(UNIT_BYTES), AlignedBuf::zeroed(UNIT_BYTES * usize::from(2 * SLOTS)));
    let mut spans = Vec::new();
    for _ in 0..times {
        let begin = Instant::now();
        for _ in 0..2 {
            device.write_at(ByteOffset(0), &written)?;
            device.read_at(ByteOffset(0), &mut read)?;
        }
        spans.push(begin.elapsed());
    }
    rank(&mut spans, 50)
}

/// A node's register, and what it has to say, with the instant.
struct Node {
    me: Life,
    driver: Driver,
    heard: Receiver<(Instant, Event)>,
}

impl Node {
    fn start(device: &Path, slot: u16) -> Result<Self> {
        let device: Arc<dyn RawDevice> = Arc::new(Device::open(device, Access::ReadWrite)?);
        let layout = Layout::new(DISK_BYTES, device.geometry().logical_sector_bytes, SLOTS)?;
        let me = Life { slot: SlotIndex(slot), boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) };
        let config = RegisterConfig { cluster: CLUSTER, me, layouts: vec![layout], seed: 7, wall_offset_ms: 0 };
        let (events, heard) = channel();
        let sink = move |event| {
            // At its end nobody listens.
            let _ = events.send((Instant::now(), event));
        };
        // Of one machine: writes have to be synchronous, so that a thread does them.
        let driver = drive(Register::new(config), vec![device], BackendChoice::Threads, Box::new(sink))?;
        driver.handle(Input::Start);
        Ok(Self { me, driver, heard })
    }

    fn propose(&self, view: u64, predecessor: Digest) {
        let body = ViewBody { view: ViewNumber(view), predecessor, proposer: Some(self.me), members: vec![self.me], ..ViewBody::default() };
        self.driver.handle(Input::Propose(body));
    }

    /// When it knew a view, and its digest.
    fn know(&self, view: u64) -> Result<(Instant, Digest)> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.heard.recv_timeout(LOOK) {
                Ok((at, Event::Register(Output::Learned { body, digest } | Output::Contested { body, digest, .. })))
                    if body.view.0 == view =>
                {
                    return Ok((at, digest));
                }
                Ok((_, Event::Register(Output::Learned { .. } | Output::Contested { .. } | Output::ProposalLost { .. }))) => {}
                Ok((_, other)) => bail!("slot {}: {other:?}", self.me.slot.0),
                Err(RecvTimeoutError::Timeout) => self.driver.handle(Input::Learn),
                Err(RecvTimeoutError::Disconnected) => bail!("the register of slot {} has ended", self.me.slot.0),
            }
        }
        bail!("slot {} does not know view {view} after {} s", self.me.slot.0, PATIENCE.as_secs())
    }
}

/// Milliseconds: p50 and p99 until a view is decided, that is until the first knows it; p50 until all know it.
fn contend(count: u16, views: u64) -> Result<Vec<f64>> {
    let place = Place::prepare(PREFIX, false)?;
    format(&place.device, SLOTS);
    let nodes: Vec<Node> = (0..count).map(|slot| Node::start(&place.device, slot)).collect::<Result<_>>()?;
    let mut predecessor = Digest::NONE;
    for node in &nodes {
        node.know(0)?;
    }
    let (mut decided, mut known) = (Vec::new(), Vec::new());
    for view in 1..=views {
        let begin = Instant::now();
        nodes.iter().for_each(|node| node.propose(view, predecessor));
        let all: Vec<(Instant, Digest)> = nodes.iter().map(|node| node.know(view)).collect::<Result<_>>()?;
        let (first, last) = (all.iter().map(|(at, _)| *at).min(), all.iter().map(|(at, _)| *at).max());
        predecessor = all.first().context("no node")?.1;
        if all.iter().any(|(_, digest)| *digest != predecessor) {
            bail!("view {view} has two values");
        }
        decided.extend(first.map(|at| at - begin));
        known.extend(last.map(|at| at - begin));
    }
    Ok(vec![rank(&mut decided, 50)?, rank(&mut decided, 99)?, rank(&mut known, 50)?])
}
