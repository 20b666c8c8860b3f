//! What: nodes of real corosync with this quorum device, in namespaces: cut both ways and one way, healed, stopped and killed.
//! Owns: what is expected of each cut.
//! Invariants: a side that was given its votes after a cut has them alone: every other's votequorum has said *not quorate* before.
//! Does not: use the machine's own corosync.
//! Called by: `cargo test`, in short; all cuts by `cargo xtask stock qdevice`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, missing_docs)]

use deadbolt_tests::corosync::await_true;
use deadbolt_tests::qdevice::{Cluster, Side, now_ms, observe_if_asked, sleep};
use nix::sys::signal::Signal;
use std::path::Path;

/// Cuts with a stopped bridge; a fifth as many are clean ones.
fn cuts() -> u64 {
    std::env::var("DEADBOLT_QDEVICE").map_or(8, |text| text.parse().unwrap())
}

fn start(names: &[&str]) -> Option<Cluster> {
    Cluster::start(names, Path::new(env!("CARGO_BIN_EXE_deadbolt-qdevice")), Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// Not a test: the program of one node's observer, when this file is run again inside it.
#[test]
fn observer() {
    observe_if_asked();
}

/// What was measured in many cuts, ms.
#[derive(Default)]
struct Spans {
    /// From the cut to the winner's vote.
    won: Vec<u64>,
    /// From the last loser's end of quorum to the winner's vote.
    alone: Vec<u64>,
}

impl Spans {
    fn say(&mut self, what: &str) {
        let rank = |spans: &mut Vec<u64>, percent: usize| {
            spans.sort_unstable();
            spans[(spans.len() * percent).div_ceil(100).max(1) - 1]
        };
        let [won, alone] = [&mut self.won, &mut self.alone].map(|spans| [0, 50, 99, 100].map(|percent| rank(spans, percent)));
        println!(
            "{what}: {} cuts; cut to the winner's vote, ms: median {}, p99 {}, worst {}; the loser out before it: least {}, median {}",
            self.won.len(),
            won[1],
            won[2],
            won[3],
            alone[0],
            alone[1]
        );
    }
}

const PAIR: [&str; 2] = ["n1", "n2"];
/// The sides of a pair.
const TWO: [Side<'static>; 2] = [&[0], &[1]];

#[test]
fn cuts_are_settled_the_loser_first_and_the_owner_keeps_it() {
    let Some(mut cluster) = start(&PAIR) else { return };
    for (what, is_one_way) in [("clean cuts", false), ("cuts of one way", true)] {
        let mut spans = Spans::default();
        for _ in 0..cuts().div_ceil(5) {
            let cut = if is_one_way { cluster.cut_one_way() } else { cluster.set_ports(&[1], "down") };
            let won = cluster.await_winner(cut);
            spans.alone.push(cluster.assert_alone(won, &TWO));
            spans.won.push(won.at_ms - cut);
            cluster.assert_no_gap(won.node, cut);
            cluster.assert_never_both(&TWO, won.at_ms);
            let healed = if is_one_way { cluster.heal_one_way() } else { cluster.set_ports(&[1], "up") };
            cluster.await_whole(healed);
        }
        spans.say(what);
    }
}

#[test]
fn a_stopped_bridge_never_makes_two_sides_and_takes_nothing_back() {
    let Some(mut cluster) = start(&PAIR) else { return };
    let mut spans = Spans::default();
    for number in 0..cuts() {
        // From a second before the cut to a second after it, spread evenly in an order that mixes.
        let instant = i64::try_from((number * 7919) % 2000).unwrap() - 1000;
        let stopped = usize::try_from(number % 2).unwrap();
        let cut = if instant < 0 {
            cluster.nodes[stopped].signal_bridge(Signal::SIGSTOP);
            sleep(instant.unsigned_abs());
            cluster.set_ports(&[1], "down")
        } else {
            let cut = cluster.set_ports(&[1], "down");
            sleep(instant.unsigned_abs());
            cluster.nodes[stopped].signal_bridge(Signal::SIGSTOP);
            cut
        };
        let won = cluster.await_winner(cut);
        spans.alone.push(cluster.assert_alone(won, &TWO));
        spans.won.push(won.at_ms - cut);
        sleep(600);
        cluster.nodes[stopped].signal_bridge(Signal::SIGCONT);
        sleep(600);
        cluster.assert_never_both(&TWO, won.at_ms);
        let healed = cluster.set_ports(&[1], "up");
        cluster.await_whole(healed);
    }
    spans.say("a bridge stopped at any instant");
}

#[test]
fn of_three_nodes_the_larger_side_goes_on_and_of_three_islands_one() {
    let Some(mut cluster) = start(&["n1", "n2", "n3"]) else { return };
    let (larger, islands): ([Side<'_>; 2], [Side<'_>; 3]) = ([&[0, 2], &[1]], [&[0], &[1], &[2]]);
    for (ports, sides) in [(&[1][..], &larger[..]), (&[1, 2], &islands)] {
        let cut = cluster.set_ports(ports, "down");
        let won = cluster.await_winner(cut);
        let alone = cluster.assert_alone(won, sides);
        assert!(sides[0].contains(&won.node), "node {} was given the votes", won.node);
        println!("{} sides: the votes given {} ms after the cut, {alone} ms after the last loser was out", sides.len(), won.at_ms - cut);
        sleep(500);
        for node in sides[0] {
            assert!(cluster.nodes[*node].is_quorate(), "node {node} goes on");
            cluster.assert_no_gap(*node, cut);
        }
        cluster.assert_never_both(sides, won.at_ms);
        let healed = cluster.set_ports(ports, "up");
        cluster.await_whole(healed);
    }
}

#[test]
fn a_restarted_bridge_goes_on_and_a_dead_node_is_outlived() {
    let Some(mut cluster) = start(&PAIR) else { return };
    let before = now_ms();
    cluster.nodes[0].signal_bridge(Signal::SIGKILL);
    cluster.nodes[0].start_bridge();
    await_true("a vote of the process that was started again", || cluster.nodes[0].votes().last().is_some_and(|at| *at > before));
    cluster.nodes[1].signal_bridge(Signal::SIGTERM);
    assert!(cluster.nodes[1].log().contains("vote refused"), "{}", cluster.nodes[1].log());
    let before = now_ms();
    cluster.nodes[1].start_bridge();
    await_true("a vote of who comes back", || cluster.nodes[1].votes().last().is_some_and(|at| *at > before));
    let killed = now_ms();
    cluster.nodes[0].signal_bridge(Signal::SIGKILL);
    cluster.nodes[0].peer.signal(Signal::SIGKILL);
    let won = cluster.await_winner(killed);
    assert_eq!(won.node, 1);
    println!("the favourite was killed: the other has the votes {} ms later", won.at_ms - killed);
    await_true("quorum", || cluster.nodes[1].is_quorate());
}
