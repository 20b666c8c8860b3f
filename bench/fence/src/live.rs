//! What: a message to a node that lives: when it is dead, when its sender knows.
//! Owns: the moment at which the message stands on the disk, seen from outside.
//! Invariants: the messages of a round fall into different moments of the victims' cycles, evenly; each victim is dead before its
//! sender says so.
//! Does not: disturb a disk.
//! Called by: the program.

use crate::{
    dead::millis,
    lab::{Bench, Lab, PATIENCE, SECTOR_BYTES, Whose, median},
};
use anyhow::{Context, Result, anyhow, bail};
use deadbolt_bench::sheet::{Case, Reach, Row};
use deadbolt_disk::{Access, AlignedBuf, ByteOffset, Device};
use deadbolt_disk_format::{
    SlotIndex,
    sbd::{Mailbox, mailbox_offset},
};
use std::{
    path::Path,
    thread::{scope, sleep},
    time::{Duration, Instant},
};

const KNOWN: [&str; 2] = ["live victim: sender knows, stock", "live victim: sender knows, ours"];
const DEAD: [&str; 2] =
    ["live victim: dead after the message stands on the disk, stock", "live victim: dead after the message stands on the disk, ours"];
const SLOWEST: [&str; 2] = ["live victim: the slowest of a round, stock", "live victim: the slowest of a round, ours"];

/// Poll, T with a watchdog of one second that may be one second late, D; each other clock's wait with drift and a tick.
const PRINTED_MS: f64 = 500.0 + 2010.0 + 515.0;
/// What the goal leaves for everything else.
const REST_MS: f64 = 500.0;
/// A poll, and what the goal leaves for the reset.
const DEAD_MS: f64 = 500.0 + 100.0;
/// At one time.
const VICTIMS: [&str; 3] = ["first", "second", "third"];
/// Of cycles: the loop time of stock, the poll of ours.
const INTERVALS: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(500)];
/// How often the mailbox is looked at from outside.
const LOOK_EVERY: Duration = Duration::from_millis(1);

pub(crate) fn case(bench: &Bench, whose: Whose) -> Case {
    let goal = |most| whose.of([Reach::None, Reach::Value(most)]);
    let rows = vec![
        Row::new(whose.of(KNOWN), "ms").reach(goal(PRINTED_MS + REST_MS)),
        Row::new(whose.of(DEAD), "ms").reach(goal(DEAD_MS)),
        Row::new(whose.of(SLOWEST), "ms").reach(goal(DEAD_MS)),
    ];
    bench.beside(whose, rows, measure)
}

fn measure(lab: &Lab, whose: Whose) -> Result<Vec<f64>> {
    let disk = lab.disk(whose, &VICTIMS)?;
    let count = u32::try_from(VICTIMS.len())?;
    let runs: Vec<(f64, f64)> = scope(|scope| {
        let run = |(slot, name): (u16, &'static str)| {
            let wait = whose.of(INTERVALS) * u32::from(slot) / count;
            let device = disk.path();
            scope.spawn(move || fence(lab, whose, device, (SlotIndex(slot), name), wait))
        };
        let runs: Vec<_> = (0..).zip(VICTIMS).map(run).collect();
        runs.into_iter().map(|run| run.join().map_err(|_| anyhow!("a thread panicked"))?).collect::<Result<_>>()
    })?;
    let (known, dead): (Vec<f64>, Vec<f64>) = runs.into_iter().unzip();
    let slowest = dead.iter().copied().fold(0.0, f64::max);
    Ok(vec![median(known)?, median(dead)?, slowest])
}

/// Milliseconds until the sender knows, and from the message on the disk to the death.
fn fence(lab: &Lab, whose: Whose, device: &Path, (slot, name): (SlotIndex, &str), wait: Duration) -> Result<(f64, f64)> {
    let node = lab.node(whose, name, device, device)?;
    sleep(wait);
    let (landed, sent) = scope(|scope| {
        let landed = scope.spawn(|| await_message(device, slot));
        let sent = lab.reset(whose, &lab.nowhere(), device, name);
        (landed.join(), sent)
    });
    let (landed, sent) = (landed.map_err(|_| anyhow!("a thread panicked"))??, sent?);
    let died = node.died_by(Instant::now() + PATIENCE).with_context(|| format!("{name} lives: {}", node.log()))?;
    if died > sent.ended {
        bail!("{name} was dead {:?} after its sender had said so", died - sent.ended);
    }
    Ok((millis(sent.took()), millis(died.saturating_duration_since(landed))))
}

/// When a message that ends the node stood in the mailbox: the begin of the first read that showed it.
fn await_message(device: &Path, slot: SlotIndex) -> Result<Instant> {
    let device = Device::open(device, Access::Read)?;
    let mut sector = AlignedBuf::zeroed(usize::try_from(SECTOR_BYTES)?);
    let limit = Instant::now() + PATIENCE;
    while Instant::now() < limit {
        let begin = Instant::now();
        device.read_at(ByteOffset(mailbox_offset(slot, SECTOR_BYTES)), &mut sector)?;
        if Mailbox::decode(&sector).is_ok_and(|mailbox| mailbox.command.is_deadly()) {
            return Ok(begin);
        }
        sleep(LOOK_EVERY);
    }
    bail!("no message came to slot {slot}")
}
