//! What: two nodes of corosync with the quorum disk: from a cut to the winner's votes, and how long the loser had been out by then.
//! Owns: nothing; the nodes are those of the tests.
//! Invariants: never two sides at one time, or the measurement ends.
//! Does not: stop a program; the tests do.
//! Called by: the program.

use anyhow::anyhow;
use deadbolt_bench::sheet::{Case, Measured, Reach, Row};
use deadbolt_tests::qdevice::{Cluster, Side};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

const WON: &str = "corosync, token 300 ms: cut to the winner's votes";
const ALONE: &str = "corosync, token 300 ms: the loser was out before, by";
const SIDES: [Side<'static>; 2] = [&[0], &[1]];

pub(crate) fn case(programs: &Path) -> Case {
    let program = programs.join("deadbolt-qdevice");
    let mut cluster = None;
    let rows = vec![Row::new(WON, "ms").reach(Reach::Value(800.0)), Row::new(ALONE, "ms")];
    Case::new(rows, move || {
        // What a test would end by ends this row.
        let run = catch_unwind(AssertUnwindSafe(|| {
            if cluster.is_none() {
                cluster = Cluster::start(&["n1", "n2"], &program, &std::env::temp_dir());
            }
            cluster.as_mut().map(cut)
        }));
        match run {
            Ok(Some(values)) => Ok(Measured::Values(values)),
            Ok(None) => Ok(Measured::Skipped("needs root, namespaces and the package corosync".into())),
            Err(_) => Err(anyhow!("a promise fell, or they did not come together; the reason stands above")),
        }
    })
}

fn cut(cluster: &mut Cluster) -> Vec<f64> {
    let cut = cluster.set_ports(&[1], "down");
    let won = cluster.await_winner(cut);
    let alone = cluster.assert_alone(won, &SIDES);
    cluster.assert_never_both(&SIDES, won.at_ms);
    let healed = cluster.set_ports(&[1], "up");
    cluster.await_whole(healed);
    [won.at_ms - cut, alone].map(|span| span as f64).to_vec()
}
