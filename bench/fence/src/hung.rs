//! What: a message to a node whose reads hang from the moment of the message on.
//! Owns: that moment: just after a cycle of the victim, so that it lives longest.
//! Invariants: the sender's path to the disk is well.
//! Does not: hang writes.
//! Called by: the program.

use crate::{
    dead::millis,
    lab::{Bench, Lab, PATIENCE, Whose},
};
use anyhow::{Context, Result};
use deadbolt_bench::sheet::{Case, Reach, Row};
use deadbolt_tests::hung_disk::Hold;
use std::time::Instant;

const DEAD: [&str; 2] = ["reads hang: dead after the message, stock", "reads hang: dead after the message, ours"];
const KNOWN: [&str; 2] = ["reads hang: sender says so, stock", "reads hang: sender says so, ours"];
const OUTLIVED: [&str; 2] = ["reads hang: lived on after the sender said so, stock", "reads hang: lived on after the sender said so, ours"];

/// L with the default times: the lease of a node of ours.
const LEASE_MS: f64 = 15_600.0;

pub(crate) fn case(bench: &Bench, whose: Whose) -> Case {
    let goal = |most| whose.of([Reach::None, Reach::Value(most)]);
    let rows = vec![
        Row::new(whose.of(DEAD), "ms").reach(goal(LEASE_MS)),
        Row::new(whose.of(KNOWN), "ms"),
        Row::new(whose.of(OUTLIVED), "ms").reach(goal(0.0)),
    ];
    bench.beside(whose, rows, measure)
}

fn measure(lab: &Lab, whose: Whose) -> Result<Vec<f64>> {
    let mut disk = lab.two_paths(whose, &["victim"])?;
    let node = lab.node(whose, "victim", disk.victim.path(), disk.sender.path())?;
    disk.hung.hold(Hold::Reads)?;
    let hung = Instant::now();
    let sent = lab.reset(whose, &lab.nowhere(), disk.sender.path(), "victim")?;
    let died = node.died_by(Instant::now() + PATIENCE).with_context(|| format!("the victim lives: {}", node.log()))?;
    let outlived = sent.outlived(died).unwrap_or_default();
    Ok(vec![millis(died - hung), millis(sent.took()), millis(outlived)])
}
