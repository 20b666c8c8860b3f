//! What: what a watcher with one disk takes while nothing is asked of it.
//! Owns: how long it is watched, beside how many others.
//! Invariants: all processes of a watcher count, and the processor time of threads that ended meanwhile; memory at the end.
//! Does not: count the node's shell, or what the kernel does for the loop device on its own account.
//! Called by: the program.

use crate::lab::{Bench, Lab, Whose};
use anyhow::{Result, anyhow, bail};
use deadbolt_bench::{
    Use, WATCHER, poll, proportional,
    sheet::{Case, Reach, Row},
};
use deadbolt_tests::node::Node;
use std::{
    thread::{sleep, spawn},
    time::Duration,
};

const POLL: &str = "floor: CPU of a bare poll, a sector written and one read every 500 ms";
const CPU: [&str; 2] = ["at rest: CPU of a watcher, a look every second, stock", "at rest: CPU of a watcher, a look every 500 ms, ours"];
const PROCESSES: [&str; 2] = ["at rest: processes of a watcher, stock", "at rest: processes of a watcher, ours"];
const RESIDENT: [&str; 2] = ["at rest: resident memory of these, stock", "at rest: resident memory of these, ours"];
const PROPORTIONAL: [&str; 2] = ["at rest: the same, shared pages divided, stock", "at rest: the same, shared pages divided, ours"];

/// Each sees the other's beats.
const NODES: [&str; 2] = ["one", "other"];
/// After the last node has come.
const SETTLE: Duration = Duration::from_secs(2);
const MIB: f64 = 1024.0 * 1024.0;

pub(crate) fn case(bench: &Bench, whose: Whose, time: Duration) -> Case {
    let goal = |most| whose.of([Reach::None, Reach::Value(most)]);
    let cpu = Row::new(whose.of(CPU), "%");
    let mut rows = whose.of([vec![cpu.clone()], vec![Row::new(POLL, "%"), cpu.over(&[POLL]).reach(goal(0.1))]]);
    rows.extend([
        Row::new(whose.of(PROCESSES), "processes").reach(goal(1.0)),
        Row::new(whose.of(RESIDENT), "MiB").reach(goal(8.0)),
        Row::new(whose.of(PROPORTIONAL), "MiB"),
    ]);
    Case::new(rows, bench.guard(whose, move |lab| measure(lab, whose, time))).once()
}

/// The processes of all watchers.
fn processes(lab: &Lab, whose: Whose, nodes: &[Node]) -> Result<Vec<i32>> {
    let mut all = Vec::new();
    for node in nodes {
        let own = node.processes(lab.program(whose))?;
        if own.is_empty() {
            bail!("a watcher has ended: {}", node.log());
        }
        all.extend(own);
    }
    all.sort_unstable();
    Ok(all)
}

fn used(processes: &[i32]) -> Result<Use> {
    processes.iter().try_fold(Use::default(), |sum, process| Ok(sum.and(Use::of(*process)?)))
}

fn measure(lab: &Lab, whose: Whose, time: Duration) -> Result<Vec<f64>> {
    let (disk, floor) = (lab.disk(whose, &NODES)?, lab.disk(whose, &[])?);
    let nodes: Vec<Node> = NODES.iter().map(|name| lab.node(whose, name, disk.path(), disk.path())).collect::<Result<_>>()?;
    sleep(SETTLE);
    let all = processes(lab, whose, &nodes)?;
    let before = used(&all)?;
    let polled = match whose {
        Whose::Stock => {
            sleep(time);
            None
        }
        Whose::Ours => {
            let device = floor.path().to_path_buf();
            Some(spawn(move || poll(&device, &WATCHER, time)).join().map_err(|_| anyhow!("the bare poll panicked"))??)
        }
    };
    let after = used(&all)?;
    if processes(lab, whose, &nodes)? != all {
        bail!("processes came or went meanwhile: {all:?}");
    }
    let each = |sum: f64| sum / nodes.len() as f64;
    let shared: u64 = all.iter().map(|process| proportional(u32::try_from(*process)?)).sum::<Result<_>>()?;
    let cpu = after.time.saturating_sub(before.time).as_secs_f64() / time.as_secs_f64() * 100.0;
    let own = [each(cpu), each(all.len() as f64), each(after.bytes as f64) / MIB, each(shared as f64) / MIB];
    Ok(polled.into_iter().chain(own).collect())
}
