//! What: nodes of real corosync with this quorum device, in namespaces: cut both ways and one way, healed, stopped and killed.
//! Owns: the device file, the bridges, the observers; a dropped value leaves nothing behind.
//! Invariants: a side that was given its votes after a cut has them alone: every other's votequorum has said *not quorate* before.
//! Does not: use the machine's own corosync.
//! Called by: `cargo test`, in short; all cuts by `cargo xtask stock qdevice`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, missing_docs)]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use deadbolt_cluster_core::timing::{Wishes, derive};
use deadbolt_corosync::{Corosync, Device as Votequorum};
use deadbolt_disk::{Access, AlignedBuf, Device, now_ns};
use deadbolt_disk_format::fresh::{Fresh, sbd_header_of};
use deadbolt_disk_format::{ClusterUuid, DeviceUuid, Layout, Superblock};
use deadbolt_tests::corosync::{LONG, Peer, await_true, is_possible, peers};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PROGRAMS: [&str; 5] = ["corosync", "ip", "nsenter", "unshare", "mount"];
const BYTES: u64 = 16 << 20;
const TOKEN_MS: u32 = 300;
/// What this program is told when it runs as the observer of one node.
const OBSERVER: &str = "DEADBOLT_TEST_OBSERVER";

/// Cuts with a stopped bridge; a fifth as many are clean ones.
fn cuts() -> u64 {
    std::env::var("DEADBOLT_QDEVICE").map_or(8, |text| text.parse().unwrap())
}

fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

fn sleep(time_ms: u64) {
    std::thread::sleep(Duration::from_millis(time_ms));
}

/// Not a test: says when this node's votequorum changes its mind, when this program is run again inside a node.
#[test]
fn observer() {
    let Ok(path) = std::env::var(OBSERVER) else { return };
    let mut file = File::create(path).unwrap();
    let calls = Corosync::load().unwrap();
    let open = || Votequorum::open(calls, c"observer".to_owned()).ok();
    let votequorum = loop {
        match open() {
            Some(votequorum) => break votequorum,
            None => sleep(50),
        }
    };
    let mut last = None;
    while let Ok(state) = votequorum.state() {
        if last.replace(state.is_quorate) != Some(state.is_quorate) {
            writeln!(file, "{} {}", now_ms(), u8::from(state.is_quorate)).unwrap();
        }
        sleep(1);
    }
}

fn format(path: &Path) {
    File::create(path).unwrap().set_len(BYTES).unwrap();
    let device = Device::open(path, Access::ReadWrite).unwrap();
    let layout = Layout::new(BYTES, device.geometry().logical_sector_bytes, 8).unwrap();
    let superblock = Superblock {
        cluster: ClusterUuid([9; 16]),
        device: DeviceUuid([8; 16]),
        device_number: 0,
        device_count: 1,
        name: "test".into(),
        generation: 1,
        features_incompatible: 0,
        features_read_only: 0,
        features_compatible: 0,
        sector_bytes: layout.sector_bytes,
        slots: 8,
        device_bytes: BYTES,
        timings: derive(&Wishes::stall(500)).unwrap(),
        layout,
        formatted_wall_ms: 0,
    };
    let header = sbd_header_of(&superblock);
    let fresh = Fresh::new(superblock, &header, Vec::new(), "test").unwrap();
    for write in fresh.body().unwrap().chain([fresh.commit().unwrap()]) {
        device.write_at(write.offset, &AlignedBuf::copy_of(&write.data)).unwrap();
    }
}

struct Node {
    peer: Peer,
    bridge: Option<Child>,
    observer: Option<Child>,
}

impl Node {
    fn start(peer: Peer) -> Self {
        let mut node = Self { peer, bridge: None, observer: None };
        node.start_bridge();
        let mut command = node.peer.command(std::env::current_exe().unwrap());
        command.args(["--exact", "observer", "--nocapture"]).env(OBSERVER, node.peer.folder().join("quorum"));
        node.observer = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        node
    }

    fn start_bridge(&mut self) {
        let log = File::options().create(true).append(true).open(self.peer.folder().join("bridge")).unwrap();
        let mut command = self.peer.command(env!("CARGO_BIN_EXE_deadbolt-qdevice"));
        self.bridge = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    fn signal_bridge(&mut self, signal: Signal) {
        let bridge = self.bridge.as_mut().unwrap();
        kill(Pid::from_raw(bridge.id().try_into().unwrap()), signal).unwrap();
        if signal == Signal::SIGKILL || signal == Signal::SIGTERM {
            bridge.wait().unwrap();
        }
    }

    /// A service manager starts it anew when the guard has ended it.
    fn keep_bridge(&mut self) {
        if let Some(status) = self.bridge.as_mut().and_then(|bridge| bridge.try_wait().unwrap()) {
            println!("a bridge ended ({status}) and is started again");
            self.start_bridge();
        }
    }

    fn ip(&self, line: &str) {
        assert!(self.peer.run(&format!("ip {line}")), "ip {line}");
    }

    /// When its votequorum changed its mind, and to what.
    fn changes(&self) -> Vec<(u64, bool)> {
        let text = std::fs::read_to_string(self.peer.folder().join("quorum")).unwrap_or_default();
        let line = |line: &str| line.split_once(' ').map(|(at, word)| (at.parse().unwrap(), word == "1"));
        text.lines().filter_map(line).collect()
    }

    fn is_quorate(&self) -> bool {
        self.changes().last().is_some_and(|(_, is_quorate)| *is_quorate)
    }

    /// When its bridge was given a vote.
    fn votes(&self) -> Vec<u64> {
        let given = |line: &str| line.contains("vote given").then(|| line.split(' ').nth(1).unwrap().parse().unwrap());
        self.log().lines().filter_map(given).collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.peer.folder().join("bridge")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ended = self.bridge.as_mut().map(Child::try_wait);
            eprintln!("{}: {ended:?} {:?}\n{}", self.peer.folder().display(), self.changes(), self.log());
        }
        for child in [self.bridge.as_mut(), self.observer.as_mut()].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Nodes that a cut puts on one side, by their numbers from 0.
type Side<'a> = &'a [usize];

/// Who was given the votes, and when.
#[derive(Clone, Copy)]
struct Won {
    node: usize,
    at_ms: u64,
}

struct Cluster {
    nodes: Vec<Node>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// None where the tests cannot run, which is said.
    fn start(names: &[&str]) -> Option<Self> {
        if !is_possible(&PROGRAMS) {
            return None;
        }
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let device = folder.path().join("device");
        format(&device);
        let quorum = format!(
            "  device {{\n    model: disk\n    votes: {}\n    timeout: 400\n    sync_timeout: 900\n    disk {{\n      device: {}\n    }}\n  }}\n",
            names.len() - 1,
            device.display()
        );
        let nodes = peers(names, TOKEN_MS, &quorum).into_iter().map(Node::start).collect();
        let mut cluster = Self { nodes, _folder: folder };
        cluster.await_whole(0);
        Some(cluster)
    }

    /// The first node holds the network's middle: who is at these ports is on its own.
    fn set_ports(&self, ports: Side<'_>, state: &str) -> u64 {
        ports.iter().for_each(|port| self.nodes[0].ip(&format!("link set port{port} {state}")));
        now_ms()
    }

    /// The second hears the first, and is not heard.
    fn cut_one_way(&self) -> u64 {
        self.nodes[1].ip("route add blackhole 10.99.7.1/32");
        now_ms()
    }

    fn heal_one_way(&self) -> u64 {
        self.nodes[1].ip("route del blackhole 10.99.7.1/32");
        now_ms()
    }

    fn await_whole(&mut self, since: u64) {
        let end = Instant::now() + LONG;
        let voted = |node: &Node| node.votes().last().is_some_and(|at| *at > since) && node.is_quorate();
        while !self.nodes.iter().all(voted) {
            self.nodes.iter_mut().for_each(Node::keep_bridge);
            assert!(Instant::now() < end, "they do not come together");
            sleep(5);
        }
        sleep(100);
    }

    /// Who is the first to be given votes after a cut.
    fn await_winner(&mut self, cut: u64) -> Won {
        let end = Instant::now() + LONG;
        loop {
            let ring = cut + u64::from(TOKEN_MS);
            let first = |node: &Node| node.votes().into_iter().find(|at| *at > ring);
            let won = (0..).zip(&self.nodes).filter_map(|(node, found)| Some(Won { node, at_ms: first(found)? }));
            if let Some(found) = won.min_by_key(|won| won.at_ms) {
                return found;
            }
            self.nodes.iter_mut().for_each(Node::keep_bridge);
            assert!(Instant::now() < end, "nobody wins");
            sleep(2);
        }
    }

    /// Who was given votes had them alone; answers how long the last of the others had been out, ms.
    fn assert_alone(&self, won: Won, sides: &[Side<'_>]) -> u64 {
        // What is in the files is some milliseconds old.
        sleep(50);
        let losers = sides.iter().filter(|side| !side.contains(&won.node)).flat_map(|side| side.iter());
        let outs = losers.map(|loser| {
            let changes = self.nodes[*loser].changes();
            let before = changes.iter().rfind(|(when, _)| *when <= won.at_ms);
            assert_eq!(before.map(|(_, is_quorate)| *is_quorate), Some(false), "node {loser} has quorum at {}: {changes:?}", won.at_ms);
            won.at_ms - before.unwrap().0
        });
        outs.min().unwrap()
    }

    fn assert_never_both(&self, sides: &[Side<'_>], since: u64) {
        let changes: Vec<_> = self.nodes.iter().map(Node::changes).collect();
        let is_quorate = |node: &usize, at: u64| changes[*node].iter().rfind(|(when, _)| *when <= at).is_some_and(|(_, word)| *word);
        let both = |at: &u64| sides.iter().filter(|side| side.iter().any(|node| is_quorate(node, *at))).count() > 1;
        assert_eq!((since..now_ms()).find(both), None, "two sides have quorum: {changes:?}");
    }

    fn assert_no_gap(&self, node: usize, since: u64) {
        let changes = self.nodes[node].changes();
        assert!(!changes.iter().any(|(when, is_quorate)| *when > since && !is_quorate), "the winner had a gap: {changes:?}");
    }
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
    let Some(mut cluster) = Cluster::start(&PAIR) else { return };
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
    let Some(mut cluster) = Cluster::start(&PAIR) else { return };
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
    let Some(mut cluster) = Cluster::start(&["n1", "n2", "n3"]) else { return };
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
    let Some(mut cluster) = Cluster::start(&PAIR) else { return };
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
    cluster.nodes[0].bridge = None;
    cluster.nodes[0].peer.signal(Signal::SIGKILL);
    let won = cluster.await_winner(killed);
    assert_eq!(won.node, 1);
    println!("the favourite was killed: the other has the votes {} ms later", won.at_ms - killed);
    await_true("quorum", || cluster.nodes[1].is_quorate());
}
