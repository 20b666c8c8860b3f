//! What: a node whose daemon or sbd stands still around the instant at which the network is cut: nobody acts beside the winner.
//! Owns: what the commands under the lock write down: instants of CLOCK_BOOTTIME at which they acted.
//! Invariants: the last instant of the one that lost the lock is before the first of the one that has it.
//! Does not: stop a node's supervisor, which is its watchdog here.
//! Called by: `cargo test`, six instants; `cargo xtask freezes`, fifty. Skipped without root.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{Cluster, tie, wait};
use nix::sys::signal::Signal;
use std::{
    fs,
    process::{Child, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// How many instants, where the environment says nothing else.
const INSTANTS: u32 = 6;
const INSTANTS_VARIABLE: &str = "DEADBOLT_FREEZES";
/// The first instant is that long before the cut.
const BEFORE: Duration = Duration::from_millis(1000);
/// And the last that long after the first: detection, decision and pill lie between.
const SPAN: Duration = Duration::from_millis(4000);

/// Instants in hundredths of a second at which the command of this node acted.
fn acted(cluster: &Cluster, name: &str) -> Vec<u64> {
    let text = fs::read_to_string(cluster.path().join(format!("acted-{name}"))).unwrap_or_default();
    // The last line may be half written.
    let lines = text.rsplit_once('\n').map_or("", |(whole, _)| whole).lines();
    lines.map(|line| line.replace('.', "").parse().unwrap()).collect()
}

/// A command that takes the lock and acts every hundredth of a second for as long as it is let.
fn act(cluster: &Cluster, name: &str) -> Child {
    let file = cluster.path().join(format!("acted-{name}"));
    let _ = fs::remove_file(&file);
    let script = format!("while :; do read up idle < /proc/uptime; echo $up >> {}; sleep 0.01; done", file.display());
    let mut command = cluster.lock(name, "authority", &[], &["sh", "-c", &script]);
    tie(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())).spawn().unwrap()
}

fn cut(cluster: &Cluster, is_cut: bool) {
    cluster.lose(0, 1, is_cut);
    cluster.lose(1, 0, is_cut);
}

/// One process of b stands still from `after` the first instant on; the cut comes [`BEFORE`] after that first one.
fn freeze(cluster: &mut Cluster, which: &str, after: Duration) {
    let boot = cluster.info("b").unwrap().boot;
    let mut holder = act(cluster, "b");
    wait("b acts", PATIENCE, || !acted(cluster, "b").is_empty());
    let mut waiter = act(cluster, "a");
    std::thread::sleep(BEFORE.min(after));
    if after <= BEFORE {
        cluster.signal("b", which, Signal::SIGSTOP);
        std::thread::sleep(BEFORE - after);
        cut(cluster, true);
    } else {
        cut(cluster, true);
        std::thread::sleep(after - BEFORE);
        // It may have been ended by now: then there is nothing to stop.
        if cluster.info("b").is_some_and(|now| now.boot == boot && now.daemon.is_some() && now.sbd.is_some()) {
            cluster.signal("b", which, Signal::SIGSTOP);
        }
    }
    wait("a acts", PATIENCE, || !acted(cluster, "a").is_empty());
    wait("b's life has ended", PATIENCE, || cluster.info("b").is_some_and(|now| now.boot != boot));
    holder.wait().unwrap();
    let (last, first) = (*acted(cluster, "b").last().unwrap(), acted(cluster, "a")[0]);
    eprintln!(
        "{which} stopped {:>4} ms from the cut: b acted until {last}, a from {first} on, {} ms later",
        i64::try_from(after.as_millis()).unwrap() - i64::try_from(BEFORE.as_millis()).unwrap(),
        first.saturating_sub(last) * 10
    );
    assert!(last <= first, "b acted until {last}, a from {first} on");
    cut(cluster, false);
    cluster.wait_member("b");
    cluster.wait_members(&["a", "b"]);
    assert!(acted(cluster, "b").last() == Some(&last), "b acted again");
    // The handler ends the command with its session.
    waiter.kill().unwrap();
    waiter.wait().unwrap();
    wait("nobody acts", PATIENCE, || {
        let before = acted(cluster, "a").len();
        std::thread::sleep(Duration::from_millis(100));
        acted(cluster, "a").len() == before
    });
}

#[test]
fn nobody_acts_beside_the_winner_whenever_a_node_freezes() {
    let Some(mut cluster) = Cluster::in_namespaces(2) else { return };
    cluster.add("a", 2);
    cluster.add("b", 2);
    cluster.wait_members(&["a", "b"]);
    let instants = std::env::var(INSTANTS_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(INSTANTS).max(2);
    for instant in 0..instants {
        let which = if instant % 2 == 0 { "daemon" } else { "sbd" };
        freeze(&mut cluster, which, SPAN * instant / (instants - 1));
    }
}
