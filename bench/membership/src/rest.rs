//! What: what a node takes while nothing is asked of it, among few and among many.
//! Owns: how many, how long they are watched.
//! Invariants: all processes of a node count; the disk's operations are those that the kernel counts for the device.
//! Does not: count what the machine does for the nodes' network.
//! Called by: the program.

use crate::PREFIX;
use anyhow::{Context, Result, bail};
use deadbolt_bench::{
    DEFAULT_STALL_MS, Trial, Use,
    sheet::{Case, Measured, Reach, Row},
};
use deadbolt_trial::Node;
use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

const CPU: [&str; 2] = ["at rest: CPU of a node, 16 nodes, 250 ms poll", "at rest: CPU of a node, 32 nodes, 250 ms poll"];
const WRITES: &str = "at rest: writes of a node in a poll, 32 nodes";
const READS: &str = "at rest: reads of a node in a poll, 32 nodes";

const COUNTS: [usize; 2] = [16, 32];
const POLL_MS: f64 = 250.0;
/// After the last node has come.
const SETTLE: Duration = Duration::from_secs(3);
const TIME: Duration = Duration::from_secs(20);
const QUICK_TIME: Duration = Duration::from_secs(3);
const QUICK_COUNTS: [usize; 2] = [2, 3];

pub(crate) fn case(programs: &Path, is_quick: bool) -> Case {
    let programs = programs.to_path_buf();
    let cpu = CPU.map(|name| Row::new(name, "%").reach(Reach::Value(0.5)));
    // A little above: once in a while the header is looked at, and a view.
    let rows = cpu
        .into_iter()
        .chain([Row::new(WRITES, "per poll").reach(Reach::Value(1.05)), Row::new(READS, "per poll").reach(Reach::Value(2.1))]);
    let (counts, time) = if is_quick { (QUICK_COUNTS, QUICK_TIME) } else { (COUNTS, TIME) };
    Case::new(rows.collect(), move || measure(&programs, counts, time)).once()
}

/// Processor time of all nodes.
fn used(nodes: &[Node]) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for node in nodes {
        let info = node.info()?;
        for pid in [info.daemon.context("no daemon")?, info.sbd.context("no sbd")?, info.supervisor, info.runner] {
            sum += Use::of(pid)?.time;
        }
    }
    Ok(sum)
}

/// Reads and writes that the kernel has completed on a device.
fn operations(device: &Path) -> Result<[f64; 2]> {
    let name = device.file_name().context("a device without a name")?;
    let path = Path::new("/sys/block").join(name).join("stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let numbers: Vec<f64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    match numbers[..] {
        [reads, _, _, _, writes, ..] => Ok([reads, writes]),
        _ => bail!("{}: {text:?}", path.display()),
    }
}

/// Percent of a core for each node; reads and writes of each in a poll.
fn watch(trial: &Trial, time: Duration) -> Result<[f64; 3]> {
    sleep(SETTLE);
    let (begin, before, used_before) = (Instant::now(), operations(trial.device())?, used(trial.nodes())?);
    sleep(time);
    let (used, after) = (used(trial.nodes())?.saturating_sub(used_before), operations(trial.device())?);
    let (nodes, span) = (trial.nodes().len() as f64, begin.elapsed().as_secs_f64());
    let polls = nodes * span * 1000.0 / POLL_MS;
    Ok([used.as_secs_f64() / span / nodes * 100.0, (after[0] - before[0]) / polls, (after[1] - before[1]) / polls])
}

fn measure(programs: &Path, counts: [usize; 2], time: Duration) -> Result<Measured> {
    if !Path::new("/sys/block").exists() || !deadbolt_trial::Place::prepare(PREFIX, false)?.device.starts_with("/dev") {
        return Ok(Measured::Skipped("no loop device, whose operations could be counted: not root, or not in this kernel".into()));
    }
    let one = |count| watch(&Trial::start(PREFIX, count, DEFAULT_STALL_MS, Some(programs))?, time);
    let (few, many) = (one(counts[0])?, one(counts[1])?);
    Ok(Measured::Values(vec![few[0], many[0], many[2], many[1]]))
}
