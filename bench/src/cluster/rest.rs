//! What: what three nodes take while nothing is asked of them.
//! Owns: which processes of a node count as what.
//! Invariants: processor time over the whole time of rest, of threads that ended meanwhile too; resident memory at its end.
//! Does not: count the front door's process that started a node and waits.
//! Called by: the measurements of nodes.

use super::trial::Trial;
use crate::{
    floors::{POLL, poll},
    sheet::{Measured, Reach, Row},
    usage::Use,
};
use anyhow::{Context, Result, anyhow};
use deadbolt_trial::{Node, Place};
use std::{thread, time::Duration};

const CPU: &str = "at rest: CPU of a node's deadboltd, sbd and supervisor, 250 ms poll";
const CPU_DAEMON: &str = "at rest: CPU of deadboltd";
const CPU_SBD: &str = "at rest: CPU of sbd";
const CPU_SUPERVISOR: &str = "at rest: CPU of the supervisor's processes";
const MEMORY: &str = "at rest: resident memory of a node's deadboltd, sbd and supervisor";
const MEMORY_SBD: &str = "at rest: resident memory of sbd";

/// After the last node has come.
const SETTLE: Duration = Duration::from_secs(1);
const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(POLL, "%"),
        Row::new(CPU, "%").over(&[POLL]).reach(Reach::Value(0.3)),
        Row::new(CPU_DAEMON, "%"),
        Row::new(CPU_SBD, "%"),
        Row::new(CPU_SUPERVISOR, "%"),
        Row::new(MEMORY, "MiB").reach(Reach::Value(24.0)),
        Row::new(MEMORY_SBD, "MiB").reach(Reach::Value(8.0)),
    ]
}

/// Daemon, sbd, supervisor's processes of all nodes.
fn used(nodes: &[Node]) -> Result<[Use; 3]> {
    let mut sum = [Use::default(); 3];
    for node in nodes {
        let info = node.info()?;
        let daemon = Use::of(info.daemon.context("no daemon")?)?;
        let sbd = Use::of(info.sbd.context("no sbd")?)?;
        let supervisor = Use::of(info.supervisor)?.and(Use::of(info.runner)?);
        for (sum, one) in sum.iter_mut().zip([daemon, sbd, supervisor]) {
            *sum = sum.and(one);
        }
    }
    Ok(sum)
}

/// Watches the nodes, and beside them a bare poll of a device of its own.
pub(super) fn measure(trial: &Trial, floor: &Place, time: Duration) -> Result<Measured> {
    thread::sleep(SETTLE);
    let device = floor.device.clone();
    let before = used(trial.nodes())?;
    let polled = thread::spawn(move || poll::poll(&device, &poll::NODE, time)).join().map_err(|_| anyhow!("the bare poll panicked"))??;
    let after = used(trial.nodes())?;
    let nodes = trial.nodes().len() as f64;
    let share = |index: usize| {
        let of = |uses: &[Use; 3]| uses.get(index).map_or(Duration::ZERO, |one| one.time);
        of(&after).saturating_sub(of(&before)).as_secs_f64() / time.as_secs_f64() / nodes * 100.0
    };
    let mib = |index: usize| after.get(index).map_or(0.0, |one| one.bytes as f64) / MIB / nodes;
    let (daemon, sbd, supervisor) = (share(0), share(1), share(2));
    Ok(Measured::Values(vec![polled, daemon + sbd + supervisor, daemon, sbd, supervisor, mib(0) + mib(1) + mib(2), mib(1)]))
}
