//! What: three real nodes of which two do not reach each other, though both reach the third.
//! Owns: the network namespaces of the nodes.
//! Invariants: nothing of the machine's own network is touched.
//! Does not: hold locks.
//! Called by: `cargo test`; skipped without root.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{Cluster, wait};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(40);
/// As long as stock corosync was watched, which changed its membership 43 times meanwhile and never settled.
const WATCHED: Duration = Duration::from_secs(20);

fn view(cluster: &Cluster, name: &str) -> u64 {
    cluster.field(name, "view").and_then(|view| view.as_u64()).unwrap()
}

fn incarnation(cluster: &Cluster, name: &str, field: &str) -> String {
    cluster.field(name, field).unwrap().to_string()
}

/// The cluster with the ways between a and c lost that `lose` loses; a and b go on after two views and no more.
fn settles(lost: &[(usize, usize)]) {
    let Some(mut cluster) = Cluster::in_namespaces(3) else { return };
    for name in ["a", "b", "c"] {
        cluster.add(name, 3);
    }
    cluster.wait_members(&["a", "b", "c"]);
    let before = view(&cluster, "a");
    let boot = incarnation(&cluster, "c", "boot");
    let began = Instant::now();
    for (from, to) in lost {
        cluster.lose(*from, *to, true);
    }
    let removed = wait("a and b go on", PATIENCE, || cluster.members("a") == ["a", "b"]);
    let is_free = || cluster.field("a", "owed").is_some_and(|owed| owed.as_array().is_some_and(Vec::is_empty));
    wait("c has left", PATIENCE, is_free);
    let gone = began.elapsed();
    let settled = view(&cluster, "a");
    while began.elapsed() < WATCHED {
        assert!(cluster.is_member("a") && cluster.is_member("b"), "{}", cluster.log("a"));
        std::thread::sleep(Duration::from_millis(500));
    }
    let after = view(&cluster, "a");
    eprintln!("removed after {removed:?}, gone after {gone:?}, views {before} to {settled}, {after} after {WATCHED:?}");
    assert_eq!((settled - before, after), (2, settled), "{}", cluster.log("a"));
    assert_eq!(cluster.evidence("c"), ["left"]);
    assert_eq!(incarnation(&cluster, "c", "boot"), boot, "c was reset, though it held nothing");
    for (from, to) in lost {
        cluster.lose(*from, *to, false);
    }
    cluster.wait_members(&["a", "b", "c"]);
    assert_eq!(view(&cluster, "a"), after + 1);
}

#[test]
fn a_chain_settles_in_two_views() {
    settles(&[(0, 2), (2, 0)]);
}

#[test]
fn a_link_that_is_cut_in_one_direction_settles_in_two_views() {
    settles(&[(0, 2)]);
}
