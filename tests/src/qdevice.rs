//! What: nodes of real corosync with the quorum disk as their quorum device, in namespaces: cut both ways and one way, healed, killed.
//! Owns: the device file, the bridges, the observers; a dropped value leaves nothing behind.
//! Invariants: what votequorum says is asked by a program of its own in each node, every millisecond: quorum lasts from the first answer that
//!   says so to the question of the last one.
//! Does not: use the machine's own corosync; say by a result what a test cannot go on without: it ends the test.
//! Called by: the tests of the quorum device, the benchmark of membership.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "part of tests: what cannot be made ends the test")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::corosync::{LONG, Peer, is_possible, peers};
use crate::disks::DISK_BYTES;
use crate::format::format;
use deadbolt_corosync::{Corosync, Device as Votequorum};
use deadbolt_disk::now_ns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PROGRAMS: [&str; 5] = ["corosync", "ip", "nsenter", "unshare", "mount"];
const SLOTS: u16 = 8;
/// corosync's token time in these clusters.
pub const TOKEN_MS: u32 = 300;
/// What this program is told when it runs as the observer of one node.
const OBSERVER: &str = "DEADBOLT_TEST_OBSERVER";

/// The clock of everything here.
#[must_use]
pub fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// Sleeps.
pub fn sleep(time_ms: u64) {
    std::thread::sleep(Duration::from_millis(time_ms));
}

/// Says when this node's votequorum changes its mind, when this program is run again inside a node; then it does not return before that
/// ends.
pub fn observe_if_asked() {
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
    let (mut was_quorate, mut yes_ms) = (None, now_ms());
    loop {
        let asked_ms = now_ms();
        let Ok(state) = votequorum.state() else { return };
        let is_quorate = state.is_quorate;
        if was_quorate.replace(is_quorate) != Some(is_quorate) {
            // It may have ended at any time since the last question that was answered with yes: a busy machine asks late.
            let at_ms = if is_quorate { now_ms() } else { yes_ms };
            writeln!(file, "{at_ms} {}", u8::from(is_quorate)).unwrap();
        }
        if is_quorate {
            yes_ms = asked_ms;
        }
        sleep(1);
    }
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its corosync.
    pub peer: Peer,
    program: PathBuf,
    bridge: Option<Child>,
    observer: Option<Child>,
}

impl Node {
    fn start(peer: Peer, program: &Path) -> Self {
        let mut node = Self { peer, program: program.into(), bridge: None, observer: None };
        node.start_bridge();
        let mut command = node.peer.command(std::env::current_exe().unwrap());
        command.args(["--exact", "observer", "--nocapture"]).env(OBSERVER, node.peer.folder().join("quorum"));
        node.observer = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        node
    }

    /// Starts its bridge (again).
    pub fn start_bridge(&mut self) {
        let log = File::options().create(true).append(true).open(self.peer.folder().join("bridge")).unwrap();
        let mut command = self.peer.command(&self.program);
        self.bridge = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Signals its bridge.
    pub fn signal_bridge(&mut self, signal: Signal) {
        let bridge = self.bridge.as_mut().unwrap();
        kill(Pid::from_raw(bridge.id().try_into().unwrap()), signal).unwrap();
        if signal == Signal::SIGKILL || signal == Signal::SIGTERM {
            bridge.wait().unwrap();
            self.bridge = None;
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
    #[must_use]
    pub fn changes(&self) -> Vec<(u64, bool)> {
        let text = std::fs::read_to_string(self.peer.folder().join("quorum")).unwrap_or_default();
        let line = |line: &str| line.split_once(' ').map(|(at, word)| (at.parse().unwrap(), word == "1"));
        text.lines().filter_map(line).collect()
    }

    /// Its votequorum says so now.
    #[must_use]
    pub fn is_quorate(&self) -> bool {
        self.changes().last().is_some_and(|(_, is_quorate)| *is_quorate)
    }

    /// When its bridge was given a vote.
    #[must_use]
    pub fn votes(&self) -> Vec<u64> {
        let given = |line: &str| line.contains("vote given").then(|| line.split(' ').nth(1).unwrap().parse().unwrap());
        self.log().lines().filter_map(given).collect()
    }

    /// What its bridge has said.
    #[must_use]
    pub fn log(&self) -> String {
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
pub type Side<'a> = &'a [usize];

/// Who was given the votes, and when.
#[derive(Clone, Copy, Debug)]
pub struct Won {
    /// Number of the node.
    pub node: usize,
    /// When.
    pub at_ms: u64,
}

/// Nodes and their device.
#[derive(Debug)]
pub struct Cluster {
    /// By their numbers.
    pub nodes: Vec<Node>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// With this `deadbolt-qdevice`; its files are made in a folder on a disk. None where it cannot run, which is said.
    #[must_use]
    pub fn start(names: &[&str], program: &Path, base: &Path) -> Option<Self> {
        if !is_possible(&PROGRAMS) {
            return None;
        }
        let folder = tempfile::tempdir_in(base).unwrap();
        let device = folder.path().join("device");
        File::create(&device).unwrap().set_len(DISK_BYTES).unwrap();
        format(&device, SLOTS);
        let quorum = format!(
            "  device {{\n    model: disk\n    votes: {}\n    timeout: 400\n    sync_timeout: 900\n    disk {{\n      device: {}\n    }}\n  }}\n",
            names.len() - 1,
            device.display()
        );
        let nodes = peers(names, TOKEN_MS, &quorum).into_iter().map(|peer| Node::start(peer, program)).collect();
        let mut cluster = Self { nodes, _folder: folder };
        cluster.await_whole(0);
        Some(cluster)
    }

    /// The first node holds the network's middle: who is at these ports is on its own.
    pub fn set_ports(&self, ports: Side<'_>, state: &str) -> u64 {
        ports.iter().for_each(|port| self.nodes[0].ip(&format!("link set port{port} {state}")));
        now_ms()
    }

    /// The second hears the first, and is not heard.
    pub fn cut_one_way(&self) -> u64 {
        self.nodes[1].ip("route add blackhole 10.99.7.1/32");
        now_ms()
    }

    /// Heals that.
    pub fn heal_one_way(&self) -> u64 {
        self.nodes[1].ip("route del blackhole 10.99.7.1/32");
        now_ms()
    }

    /// Until all have been given votes since then, and are quorate.
    pub fn await_whole(&mut self, since: u64) {
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
    pub fn await_winner(&mut self, cut: u64) -> Won {
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
    #[must_use]
    pub fn assert_alone(&self, won: Won, sides: &[Side<'_>]) -> u64 {
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

    /// No two sides are quorate at one time, since then.
    pub fn assert_never_both(&self, sides: &[Side<'_>], since: u64) {
        let changes: Vec<_> = self.nodes.iter().map(Node::changes).collect();
        let is_quorate = |node: &usize, at: u64| changes[*node].iter().rfind(|(when, _)| *when <= at).is_some_and(|(_, word)| *word);
        let both = |at: &u64| sides.iter().filter(|side| side.iter().any(|node| is_quorate(node, *at))).count() > 1;
        assert_eq!((since..now_ms()).find(both), None, "two sides have quorum: {changes:?}");
    }

    /// Quorate ever since.
    pub fn assert_no_gap(&self, node: usize, since: u64) {
        let changes = self.nodes[node].changes();
        assert!(!changes.iter().any(|(when, is_quorate)| *when > since && !is_quorate), "the winner had a gap: {changes:?}");
    }
}
