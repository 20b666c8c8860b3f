//! What: nodes under the rule *cluster*: watchers of ours beside real corosync on a shared disk, in networks that can be cut.
//! Owns: the three nodes of a cluster, and what happens to their victim.
//! Invariants: a report of a death comes after it; a node that lives is not reported.
//! Does not: use Pacemaker; its servant has a test of its own.
//! Called by: the test program beside it.

use std::process::Output;

use deadbolt_disk::ByteOffset;
use deadbolt_disk_format::node_record::{NodeRecord, decode_node_record, node_record_place};
use deadbolt_disk_format::sbd::{SbdHeader, node_offset};
use deadbolt_disk_format::{Beat, SlotIndex};
use deadbolt_tests::corosync::{self, MOUNTS, configuration};
use deadbolt_tests::hung_disk::Hold;
use deadbolt_tests::node::Watch;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
use crate::common::{TwoPaths, folder, read, two_paths, wait_for};

const NAMES: [&str; 3] = ["sender", "other", "victim"];
const PROGRAMS: [&str; 7] = ["corosync", "corosync-quorumtool", "corosync-cmapctl", "ip", "nsenter", "unshare", "mount"];
const COROSYNC: &str = "/usr/sbin/corosync";
/// Longer than a corosync of the three waits for a processor among all the tests that run beside this one.
const TOKEN_MS: u32 = 1500;
/// T of the watchdog's second.
const RESET: Duration = Duration::from_millis(2010);
/// Its servant's interval of questions, and what a busy machine adds.
const ASKED: Duration = Duration::from_millis(1000 + 1500);
/// The same, and before it the token of three nodes, which is 650 ms longer, and the consensus of 1.2 tokens.
const NOTICED: Duration = Duration::from_millis(2150 + 2580 + 1000 + 1000);

struct Cluster {
    nodes: [Node; 3],
    disk: TwoPaths,
    _etc: tempfile::TempDir,
}

/// Three nodes, the victim on a path of its own; all asked by corosync's servant, the victim with these options besides.
fn cluster(options: &str) -> Option<Cluster> {
    if !corosync::is_possible(&PROGRAMS) {
        return None;
    }
    let (library, disk) = (library()?, two_paths(512)?);
    create(&ours(), disk.sender.path(), "-1 1 -4 6", &NAMES);
    let etc = tempfile::tempdir_in(folder()).unwrap();
    std::fs::create_dir(etc.path().join("uidgid.d")).unwrap();
    std::fs::write(etc.path().join("corosync.conf"), configuration(&NAMES, TOKEN_MS, "")).unwrap();
    let wait = "while [ ! -e \"$NODE/cable\" ]; do sleep 0.05; done";
    let script = format!("set -- {}\n{MOUNTS}\n{wait}\ncorosync -f &\n", etc.path().display());
    let start = |name: &&str| {
        let path = if *name == "victim" { disk.victim.path() } else { disk.sender.path() };
        let options = if *name == "victim" { format!("-c {options}") } else { "-c".to_owned() };
        made(Watch::new(&ours(), name, path).options(&options).watchdog(&library).cluster(&script).start(folder()))
    };
    let nodes: Vec<Node> = NAMES.iter().map_while(start).collect();
    let cluster = Cluster { nodes: nodes.try_into().ok()?, disk, _etc: etc };
    cluster.join();
    for (node, path) in cluster.nodes.iter().zip([cluster.disk.sender.path(), cluster.disk.sender.path(), cluster.disk.victim.path()]) {
        node.await_work(path, START).unwrap();
    }
    Some(cluster)
}

impl Cluster {
    fn sender(&self) -> &Node {
        &self.nodes[0]
    }

    fn victim(&self) -> &Node {
        &self.nodes[2]
    }

    /// The sender's node holds the network's middle.
    fn join(&self) {
        corosync::join(&self.nodes.each_ref().map(Node::number));
        self.nodes.iter().for_each(|node| std::fs::write(node.folder().join("cable"), "").unwrap());
    }

    fn cut_victim_off(&self) {
        let mut command = self.sender().command(Path::new("ip"));
        assert!(command.args(["link", "set", "port2", "down"]).status().unwrap().success());
    }

    fn kill_victims_corosync(&self) {
        for number in self.victim().processes(Path::new(COROSYNC)).unwrap() {
            kill(Pid::from_raw(number), Signal::SIGKILL).unwrap();
        }
    }

    /// The victim's record, by the senders' path.
    fn record(&self) -> Option<Beat> {
        let path = self.disk.sender.path().to_str().unwrap();
        let header = SbdHeader::decode(&read(path, ByteOffset(0), 512), 512).unwrap();
        let slot = SlotIndex(2);
        let sector = read(path, ByteOffset(node_offset(slot, 512)), 512);
        match decode_node_record(&sector, &node_record_place(header.uuid, slot, 512)) {
            NodeRecord::Beat(beat) => Some(*beat),
            _ => None,
        }
    }

    /// How long the victim may outlive its loss, once that is bounded.
    fn outlive(&self) -> Duration {
        let published = || self.record().map_or(0, |beat| beat.outlive_ms);
        wait_for("a bound", START, || published() > 0);
        Duration::from_millis(published().into())
    }

    /// A message from the sender's node. A success is said of a dead node only, whatever else was expected.
    fn send(&self) -> (Output, Instant) {
        let mut command = self.sender().command(&ours());
        command.arg("-d").arg(self.disk.sender.path()).args(["-n", "sender", "message", "victim", "reset"]);
        let (output, ended) = (command.output().unwrap(), Instant::now());
        let is_dead = self.victim().died().is_some_and(|died| died < ended);
        assert!(is_dead || !output.status.success(), "{output:?} {}", self.victim().log());
        (output, ended)
    }

    fn victim_died(&self, limit: Duration) -> Instant {
        let died = self.victim().died_by(Instant::now() + limit);
        died.unwrap_or_else(|| panic!("alive after {limit:?}: {}", self.victim().log()))
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The report that the sender's cluster has lost the victim came, and not before the death.
fn assert_lost((output, ended): &(Output, Instant), died: Instant, since: Instant) {
    eprintln!("dead after {:.2} s, reported after {:.2} s", (died - since).as_secs_f64(), (*ended - since).as_secs_f64());
    assert!(output.status.success() && said(output).contains("evidence: cluster-lost"), "{output:?}");
}

#[test]
fn a_node_that_lost_its_disk_lives_with_its_cluster_and_is_gone_only_without() {
    let Some(mut cluster) = cluster("") else { return };
    let outlive = cluster.outlive();
    cluster.disk.hung.hold(Hold::All).unwrap();
    let unproved = cluster.send();
    assert_eq!(unproved.0.status.code(), Some(1), "dead: {:?}, {unproved:?} {}", cluster.victim().died(), cluster.victim().log());
    assert!(said(&unproved.0).contains("silence proves nothing"), "{unproved:?}");
    assert_eq!(cluster.victim().died(), None, "its cluster keeps it alive: {}", cluster.victim().log());

    let cut = Instant::now();
    cluster.cut_victim_off();
    let lost = cluster.send();
    let died = cluster.victim_died(Duration::ZERO);
    assert!(died - cut < NOTICED + RESET && died - cut < outlive, "{:?}", died - cut);
    assert_lost(&lost, died, cut);
    assert_eq!((cluster.nodes[0].died(), cluster.nodes[1].died()), (None, None));
}

#[test]
fn a_node_without_its_disk_ends_with_its_corosync() {
    let Some(mut cluster) = cluster("") else { return };
    let outlive = cluster.outlive();
    let lease = Duration::from_millis(cluster.record().unwrap().lease_ms.into());
    cluster.disk.hung.hold(Hold::All).unwrap();
    std::thread::sleep(lease);
    assert_eq!(cluster.victim().died(), None, "its cluster keeps it alive: {}", cluster.victim().log());
    let killed = Instant::now();
    cluster.kill_victims_corosync();
    let lost = cluster.send();
    let died = cluster.victim_died(Duration::ZERO);
    assert!(died - killed < ASKED + RESET && died - killed < outlive, "{:?}", died - killed);
    assert_lost(&lost, died, killed);
}

#[test]
fn a_node_whose_disk_is_well_needs_no_corosync() {
    let Some(cluster) = cluster("") else { return };
    let outlive = cluster.outlive();
    cluster.kill_victims_corosync();
    std::thread::sleep(outlive + Duration::from_secs(1));
    assert_eq!(cluster.victim().died(), None, "its disk keeps it alive: {}", cluster.victim().log());
    let (output, ended) = cluster.send();
    assert!(output.status.success() && said(&output).contains("evidence: acknowledged"), "{output:?}");
    assert!(cluster.victim_died(Duration::ZERO) < ended);
}

#[test]
fn a_cluster_that_comes_first_ends_its_node_though_the_disk_is_well() {
    let Some(cluster) = cluster("-z") else { return };
    let is_answered = || cluster.victim().command(Path::new("corosync-quorumtool")).output().unwrap().status.success();
    wait_for("quorum", START, is_answered);
    // Its servant asks once a second.
    std::thread::sleep(Duration::from_secs(3));
    let killed = Instant::now();
    cluster.kill_victims_corosync();
    let died = cluster.victim_died(ASKED + RESET);
    eprintln!("its cluster comes first: dead {:.2} s after its corosync", (died - killed).as_secs_f64());
}
