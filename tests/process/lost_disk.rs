//! What: real nodes that lose a disk which really hangs: one of them lives on by a vouch, all of them by a freeze.
//! Owns: nothing beyond its clusters.
//! Invariants: the hung disk's server goes with the test, and with it every wait for it.
//! Does not: look for safety, which the simulator does; that nobody is reset and no lock is lost is what is seen here.
//! Called by: `cargo test`; skipped where there is no root.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{Cluster, directory, expect, image, run, tie, wait};
use deadbolt_cluster::supervisor::RunDirectory;
use deadbolt_tests::{
    disks::{TwoPaths, attach},
    hung_disk::{Hold, HungDisk, serve_if_asked},
};
use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(40);

/// The FUSE server runs in a copy of this program, under this name.
#[test]
fn hung_disk_server() {
    serve_if_asked();
}

/// A folder and two paths to one disk; none where there is no root.
fn paths() -> Option<(RunDirectory, TwoPaths)> {
    let place = directory();
    match TwoPaths::new_in(place.path(), 512) {
        Ok(paths) => Some((place, paths)),
        Err(error) => {
            eprintln!("skipped: needs root, FUSE and loop devices: {error}");
            None
        }
    }
}

/// Two nodes, b on the path that can hang, a there too or on the other one.
fn cluster(is_path_shared: bool) -> Option<(Cluster, TwoPaths)> {
    let (place, paths) = paths()?;
    let victim = paths.victim.path().to_path_buf();
    let first = if is_path_shared { victim.clone() } else { paths.sender.path().to_path_buf() };
    let mut cluster = Cluster::on(place, first).with(&[], &[]);
    cluster.add("a", 2);
    cluster.device = victim;
    cluster.add("b", 2);
    cluster.wait_members(&["a", "b"]);
    Some((cluster, paths))
}

/// A command of b that sits on the lock r.
fn hold_lock(cluster: &Cluster) -> Child {
    let mut command = cluster.lock("b", "r", &[], &["sleep", "120"]);
    let child = tie(&mut command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait("b holds r", PATIENCE, || cluster.field("b", "holds").is_some_and(|holds| holds == true));
    child
}

fn lives_on(cluster: &Cluster, name: &str, ground: &str) -> bool {
    cluster.field(name, "lives_on").is_some_and(|found| found == ground)
}

/// Boot and incarnation of both.
fn lives(cluster: &Cluster) -> Vec<serde_json::Value> {
    ["a", "b"].into_iter().flat_map(|name| [cluster.field(name, "boot").unwrap(), cluster.field(name, "incarnation").unwrap()]).collect()
}

/// The lock is still b's, and comes free with its holder.
fn check_lock(cluster: &Cluster, mut holder: Child) {
    assert!(holder.try_wait().unwrap().is_none(), "the lock's command was ended");
    assert!(!run(&mut cluster.lock("a", "r", &["--wait", "300ms"], &["true"])).status.success(), "r was granted twice");
    holder.kill().unwrap();
    holder.wait().unwrap();
    expect(&mut cluster.lock("a", "r", &["--wait", "10s"], &["true"]), 0);
}

#[test]
fn one_node_without_its_disk_lives_on_and_keeps_its_lock() {
    let Some((cluster, mut paths)) = cluster(false) else { return };
    let (holder, before) = (hold_lock(&cluster), lives(&cluster));
    paths.hung.hold(Hold::All).unwrap();
    wait("b lives on a vouch", PATIENCE, || lives_on(&cluster, "b", "vouch"));
    // Five leases at a stall of 1 s.
    let end = Instant::now() + Duration::from_secs(15);
    while Instant::now() < end {
        assert!(lives_on(&cluster, "b", "vouch") && lives_on(&cluster, "a", "disk"), "{}", cluster.log("b"));
        std::thread::sleep(Duration::from_millis(500));
    }
    paths.hung.hold(Hold::Nothing).unwrap();
    wait("b has its disk again", PATIENCE, || lives_on(&cluster, "b", "disk"));
    assert_eq!(lives(&cluster), before);
    assert_eq!(cluster.members("a"), ["a", "b"]);
    check_lock(&cluster, holder);
    drop(cluster);
    drop(paths);
}

#[test]
fn nobody_is_reset_when_all_lose_the_disk_for_less_than_f() {
    let Some((cluster, mut paths)) = cluster(true) else { return };
    let (holder, before) = (hold_lock(&cluster), lives(&cluster));
    paths.hung.hold(Hold::All).unwrap();
    wait("both are frozen", PATIENCE, || ["a", "b"].iter().all(|name| lives_on(&cluster, name, "freeze")));
    std::thread::sleep(Duration::from_secs(20));
    assert!(["a", "b"].iter().all(|name| lives_on(&cluster, name, "freeze")), "{}", cluster.log("b"));
    paths.hung.hold(Hold::Nothing).unwrap();
    wait("both have the disk again", PATIENCE, || ["a", "b"].iter().all(|name| lives_on(&cluster, name, "disk")));
    assert_eq!(lives(&cluster), before);
    assert_eq!(cluster.members("a"), ["a", "b"]);
    check_lock(&cluster, holder);
    drop(cluster);
    drop(paths);
}

#[test]
fn without_the_disk_and_with_a_silent_peer_a_node_stops() {
    let Some((mut cluster, mut paths)) = cluster(true) else { return };
    cluster.kill_outright("a");
    paths.hung.hold(Hold::All).unwrap();
    wait("b is ended, but for what hangs", PATIENCE, || cluster.log("b").contains("processes of the ended life are still there"));
    assert!(!cluster.log("b").contains("frozen"), "{}", cluster.log("b"));
    paths.hung.hold(Hold::Nothing).unwrap();
    wait("b's life is over", PATIENCE, || cluster.log("b").contains("end=reset"));
    drop(cluster);
    drop(paths);
}

#[test]
fn one_path_is_back_before_the_other_and_its_node_vouches() {
    if paths().is_none() {
        return;
    }
    let place = directory();
    let image = image(&place.path().join("device"));
    let (mut first, mut second) = (HungDisk::start(&image).unwrap(), HungDisk::start(&image).unwrap());
    let devices = [attach(first.path(), 512).unwrap(), attach(second.path(), 512).unwrap()];
    let mut cluster = Cluster::on(place, devices[0].path().to_path_buf()).with(&[], &[]);
    cluster.add("a", 2);
    cluster.device = devices[1].path().to_path_buf();
    cluster.add("b", 2);
    cluster.wait_members(&["a", "b"]);
    let (holder, before) = (hold_lock(&cluster), lives(&cluster));
    first.hold(Hold::All).unwrap();
    second.hold(Hold::All).unwrap();
    wait("both are frozen", PATIENCE, || ["a", "b"].iter().all(|name| lives_on(&cluster, name, "freeze")));
    first.hold(Hold::Nothing).unwrap();
    wait("a has the disk again and vouches for b", PATIENCE, || lives_on(&cluster, "a", "disk") && lives_on(&cluster, "b", "vouch"));
    second.hold(Hold::Nothing).unwrap();
    wait("b has it, too", PATIENCE, || lives_on(&cluster, "b", "disk"));
    assert_eq!(lives(&cluster), before);
    assert_eq!(cluster.members("a"), ["a", "b"]);
    check_lock(&cluster, holder);
    drop(cluster);
    drop(devices);
}

/// F of the next test, s.
const SHORT_F: u64 = 10;

#[test]
fn a_starter_waits_for_w_and_f_beside_frozen_members() {
    let Some((place, mut paths)) = paths() else { return };
    let (victim, sender) = (paths.victim.path().to_path_buf(), paths.sender.path().to_path_buf());
    let mut cluster = Cluster::on(place, victim).with(&[], &["--freeze", &format!("{SHORT_F}s")]);
    cluster.add("a", 3);
    cluster.extra.clear();
    cluster.add("b", 3);
    cluster.device = sender;
    cluster.add("c", 3);
    cluster.wait_members(&["a", "b", "c"]);
    cluster.stop("c");
    // Who has not learned the newest view when the disk goes away cannot freeze in it.
    wait("both know a view without c", PATIENCE, || ["a", "b"].iter().all(|name| cluster.members(name) == ["a", "b"]));
    paths.hung.hold(Hold::All).unwrap();
    wait("both are frozen", PATIENCE, || ["a", "b"].iter().all(|name| lives_on(&cluster, name, "freeze")));
    let mut start = cluster.verb("start", "c");
    let starter = tie(&mut start).arg("--tied").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    // F ends for them meanwhile; c may only know W and F from its own first look on.
    wait("c goes on alone", PATIENCE, || cluster.is_member("c"));
    assert!(begun.elapsed() > Duration::from_secs(SHORT_F + 3), "after {:?}", begun.elapsed());
    assert!(["a", "b"].iter().all(|name| cluster.log(name).contains("the watchdog is not fed any more")), "{}", cluster.log("a"));
    cluster.stop("c");
    paths.hung.hold(Hold::Nothing).unwrap();
    starter.wait_with_output().unwrap();
    drop(cluster);
    drop(paths);
}
