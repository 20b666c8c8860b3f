//! What: real nodes on one and two real networks of which one fails: cut, lossy, too small, without its address; and bad packets.
//! Owns: network namespaces with an interface per network and node, joined by a bridge per network.
//! Invariants: nothing of the machine's own network is touched; namespaces go with the test.
//! Does not: judge a link by anything but what `deadbolt status` says.
//! Called by: `cargo test`; what needs namespaces is skipped where there is no root.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{Cluster, expect, is_root, run, tie, wait};
use deadbolt_cluster::seal::{ClusterKey, DatagramSealer, MAGIC};
use deadbolt_cluster_core::hello::{Hello, LinkHello, LinkWord};
use deadbolt_disk_format::{BootId, ClusterUuid, Incarnation, Life, NodeState, SlotIndex, SlotSet, ViewNumber};
use deadbolt_dlm::{
    Mode,
    blocking::{Client, Protection, Wishes},
};
use deadbolt_trial::{
    children,
    network::{ip, new_namespace, path},
};
use serde_json::Value;
use std::{
    fs,
    io::Write,
    net::{TcpStream, UdpSocket},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(40);
/// The longest that locks may pause when the link in use of two is cut: 0.3 s of silence (three polls of 100 ms), two polls, a connection.
/// One cut of four must keep it; a machine that is busy with other tests may delay the others.
const PAUSE_MAX: Duration = Duration::from_millis(900);
/// The longest on a busy machine.
const PAUSE_BUSY_MAX: Duration = Duration::from_secs(3);

/// Two nodes, each with an interface in every network.
struct Networks {
    hub: Arc<OwnedFd>,
    nodes: Vec<Arc<OwnedFd>>,
    count: usize,
}

impl Networks {
    /// None, with a word, where they cannot be made.
    fn new(count: usize) -> Option<Self> {
        if !is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        match Self::make(count) {
            Ok(networks) => Some(networks),
            Err(error) => {
                eprintln!("skipped: no network namespaces: {error:#}");
                None
            }
        }
    }

    fn make(count: usize) -> anyhow::Result<Self> {
        let (hub, nodes) = (new_namespace()?, vec![new_namespace()?, new_namespace()?]);
        for link in 0..count {
            ip(&hub, &format!("link add bridge{link} type bridge"))?;
            ip(&hub, &format!("link set bridge{link} up"))?;
            for (index, node) in nodes.iter().enumerate() {
                ip(&hub, &format!("link add port{index}-{link} type veth peer name eth{link} netns {}", path(node)))?;
                ip(&hub, &format!("link set port{index}-{link} master bridge{link} up"))?;
                ip(node, &format!("address add {}/24 dev eth{link}", Self::host(index, link)))?;
                ip(node, &format!("link set eth{link} up"))?;
            }
        }
        nodes.iter().try_for_each(|node| ip(node, "link set lo up"))?;
        Ok(Self { hub, nodes, count })
    }

    fn host(node: usize, link: usize) -> String {
        format!("10.99.{link}.{}", node + 1)
    }

    /// Nodes a and b, members, whose links all work.
    fn cluster(&self) -> Cluster {
        let mut cluster = Cluster::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let addresses = (0..self.count).map(|link| format!("{}:7410", Self::host(index, link))).collect();
            cluster.places.push((node.clone(), addresses));
        }
        let cluster = cluster.with(&["a", "b"], &[]);
        cluster.wait_members(&["a", "b"]);
        wait("all links work", PATIENCE, || ["a", "b"].iter().all(|name| states(&cluster, name) == vec!["up"; self.count]));
        cluster
    }

    /// A network that carries nothing, as a switch without power; the interfaces stay up.
    fn set(&self, link: usize, state: &str) {
        ip(&self.hub, &format!("link set bridge{link} {state}")).unwrap();
    }

    /// On one node, in words for `ip`.
    fn on(&self, node: usize, words: &str) {
        ip(&self.nodes[node], words).unwrap();
    }

    /// Drops what comes to a node and fits; false, with a word, where there is no packet filter.
    fn filter(&self, node: usize, what: &str) -> bool {
        let rules = format!("flush ruleset; table inet deadbolt {{ chain input {{ type filter hook input priority 0; {what} drop; }}; }}");
        let mut nft = Command::new("nft");
        children::tie(&mut nft, Some(self.nodes[node].clone()));
        let output = nft.arg(rules).output();
        let is_done = output.as_ref().is_ok_and(|output| output.status.success());
        if !is_done {
            eprintln!("skipped: no packet filter: {output:?}");
        }
        is_done
    }
}

/// The links of a node with the other one.
fn links(cluster: &Cluster, name: &str) -> Vec<Value> {
    let nodes = cluster.field(name, "nodes").unwrap_or_default();
    let peer = nodes.as_array().into_iter().flatten().find(|node| node["name"] != name).cloned().unwrap_or_default();
    peer["links"].as_array().cloned().unwrap_or_default()
}

fn states(cluster: &Cluster, name: &str) -> Vec<String> {
    links(cluster, name).iter().map(|link| link["state"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The link that messages use.
fn stream(cluster: &Cluster, name: &str) -> Option<usize> {
    links(cluster, name).iter().position(|link| link["stream"] == true)
}

fn warnings(cluster: &Cluster, name: &str) -> String {
    cluster.field(name, "warnings").unwrap_or_default().to_string()
}

/// What must not change whatever a link does.
fn lives(cluster: &Cluster) -> Vec<Value> {
    ["a", "b"].iter().flat_map(|name| ["boot", "incarnation", "view"].map(|field| cluster.field(name, field).unwrap())).collect()
}

/// Two clients, one on each node, that take one lock in turns: every turn needs messages both ways.
struct Turns {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<Vec<Instant>>>,
}

impl Turns {
    fn begin(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |name: &str| {
            let (socket, stop) = (cluster.node(name).join("lock.sock"), stop.clone());
            thread::spawn(move || {
                let client = Client::connect(socket, Protection { is_unprotected: true }).unwrap();
                let space = client.join(b"turns").unwrap();
                let mut grants = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let guard = space.lock(b"r", Mode::Ex, &Wishes::default()).unwrap();
                    grants.push(Instant::now());
                    drop(guard);
                    // The other one's turn.
                    thread::sleep(Duration::from_millis(1));
                }
                grants
            })
        };
        let threads = ["a", "b"].map(thread).into();
        Self { stop, threads }
    }

    /// The longest time without a grant on one of the nodes, and how many there were.
    fn end(self) -> (Duration, usize) {
        self.stop.store(true, Ordering::SeqCst);
        let grants: Vec<Vec<Instant>> = self.threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let pauses = grants.iter().flat_map(|grants| grants.windows(2).map(|pair| pair[1] - pair[0]));
        (pauses.max().unwrap_or_default(), grants.iter().map(Vec::len).sum())
    }
}

#[test]
fn with_two_networks_one_may_be_cut() {
    let Some(networks) = Networks::new(2) else { return };
    let cluster = networks.cluster();
    let before = lives(&cluster);
    let release = cluster.path().join("release");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done", release.display());
    let mut holding = tie(&mut cluster.lock("b", "held", &[], &["sh", "-c", &script])).stdin(Stdio::null()).spawn().unwrap();
    wait("the lock is held", PATIENCE, || common::both(&run(&mut cluster.verb("locks", "b"))).contains("held"));
    let mut pauses = Vec::new();
    for _ in 0..4 {
        let used = stream(&cluster, "a").unwrap();
        let turns = Turns::begin(&cluster);
        thread::sleep(Duration::from_millis(500));
        networks.set(used, "down");
        let moved = wait("the messages move", PATIENCE, || ["a", "b"].iter().all(|name| stream(&cluster, name) == Some(1 - used)));
        // Past the detection time, in which an edge without a stream would go.
        thread::sleep(Duration::from_secs(2));
        let (pause, grants) = turns.end();
        eprintln!("link {used} cut: moved within {moved:?}, locks paused for {pause:?} at most, {grants} grants");
        pauses.push(pause);
        assert!(links(&cluster, "a")[used]["state"] != "up");
        assert!(warnings(&cluster, "a").contains(&format!("link {used} with b")), "{}", warnings(&cluster, "a"));
        networks.set(used, "up");
        wait("the link works again", PATIENCE, || ["a", "b"].iter().all(|name| states(&cluster, name) == ["up", "up"]));
        assert_eq!(stream(&cluster, "a"), Some(1 - used), "a link that comes back draws nothing to it");
        expect(&mut cluster.lock("a", "held", &["--wait", "100ms"], &["true"]), 121);
    }
    assert_eq!(lives(&cluster), before, "a cut of one network changed the membership");
    assert!(pauses.iter().all(|pause| *pause < PAUSE_BUSY_MAX), "{pauses:?}");
    assert!(pauses.iter().any(|pause| *pause < PAUSE_MAX), "{pauses:?}");
    assert!(holding.try_wait().unwrap().is_none(), "the held lock was lost");
    // Both cut: as with one network that is cut.
    networks.set(0, "down");
    networks.set(1, "down");
    let alone = wait("one goes on alone", PATIENCE, || ["a", "b"].iter().any(|name| cluster.members(name) == [*name]));
    eprintln!("both cut: one goes on alone after {alone:?}");
    fs::write(&release, b"").unwrap();
    let _ = holding.wait();
}

#[test]
fn packets_that_are_too_large_are_said_and_avoided() {
    let Some(networks) = Networks::new(2) else { return };
    let cluster = networks.cluster();
    let before = lives(&cluster);
    wait("the size is known", PATIENCE, || links(&cluster, "a").iter().all(|link| link["full_bytes"] == 1500));
    let used = stream(&cluster, "a").unwrap();
    let turns = Turns::begin(&cluster);
    if !networks.filter(1, &format!("iifname eth{used} meta length gt 1400")) {
        return;
    }
    let found = wait("found", PATIENCE, || {
        links(&cluster, "a")[used]["full_lost_out"] == true && links(&cluster, "b")[used]["full_lost_in"] == true
    });
    wait("the messages move", PATIENCE, || ["a", "b"].iter().all(|name| stream(&cluster, name) == Some(1 - used)));
    let (pause, _) = turns.end();
    eprintln!("the black hole was found within {found:?}; locks paused for {pause:?} at most");
    assert_eq!(links(&cluster, "a")[used]["state"], "up", "small packets pass");
    assert!(warnings(&cluster, "a").contains("packets of 1500 bytes to it do not"), "{}", warnings(&cluster, "a"));
    let text = expect(&mut cluster.verb("status", "a"), 0);
    assert!(text.contains("Warning:") && text.contains("smaller MTU"), "{text}");
    assert_eq!(cluster.log("a").matches("packets of 1500 bytes to it do not").count(), 1, "said once");
    assert!(networks.filter(1, "meta length gt 65535"));
    wait("it passes again", PATIENCE, || links(&cluster, "a")[used]["full_lost_out"] == false);
    // Said with the next poll.
    wait("it is said", PATIENCE, || cluster.log("a").contains("packets of 1500 bytes pass again"));
    assert_eq!(lives(&cluster), before);
}

#[test]
fn loss_and_round_trips_are_measured() {
    let Some(networks) = Networks::new(2) else { return };
    let cluster = networks.cluster();
    let before = lives(&cluster);
    if !networks.filter(1, "iifname eth1 udp dport 7410 numgen random mod 100 lt 25") {
        return;
    }
    let part = |name: &str, field: &str| {
        let link = links(&cluster, name)[1].clone();
        (link[field]["lost"].as_u64().unwrap_or(0), link[field]["of"].as_u64().unwrap_or(0))
    };
    // A quarter of 64: below 4 and above 32 do not come once in ten thousand times.
    wait("the loss shows at both ends", PATIENCE, || {
        let (there, here) = (part("b", "lost_in"), part("a", "lost_out"));
        there.1 == 64 && here.1 == 64 && (4..=32).contains(&there.0) && (4..=32).contains(&here.0)
    });
    eprintln!("a quarter is dropped: b counts {:?}, a is told {:?}", part("b", "lost_in"), part("a", "lost_out"));
    assert_eq!(links(&cluster, "b")[0]["lost_in"]["lost"], 0);
    for link in links(&cluster, "a") {
        let round_trip_us = link["round_trip_us"].as_u64().unwrap();
        assert!(round_trip_us > 0 && round_trip_us < 1_000_000, "{link}");
    }
    assert_eq!(lives(&cluster), before);
}

/// Addresses to which sockets of UDP and listeners of TCP are bound in a node's namespace.
fn bound(cluster: &Cluster, name: &str) -> Vec<String> {
    let pid = cluster.info(name).unwrap().daemon.unwrap();
    let mut addresses = Vec::new();
    for (file, state) in [("udp", "07"), ("tcp", "0A")] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap();
        let lines = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<&str>>());
        addresses.extend(lines.filter(|words| words[3] == state).map(|words| words[1].split(':').next().unwrap().to_owned()));
    }
    addresses.sort();
    addresses
}

#[test]
fn an_interface_that_vanishes_takes_its_link_and_nothing_else() {
    let Some(networks) = Networks::new(2) else { return };
    let cluster = networks.cluster();
    let before = lives(&cluster);
    // 10.99.0.1 and 10.99.1.1, each for datagrams and connections.
    let sockets = bound(&cluster, "a");
    assert_eq!(sockets, ["0100630A", "0100630A", "0101630A", "0101630A"]);
    let used = stream(&cluster, "a").unwrap();
    let (eth, host) = (format!("eth{used}"), Networks::host(0, used));
    let down = |words: String, wanted: &str| {
        networks.on(0, &words);
        wait(&words, PATIENCE, || links(&cluster, "a")[used]["state"] != "up" && links(&cluster, "b")[used]["state"] != "up");
        wait("the messages move", PATIENCE, || stream(&cluster, "a") == Some(1 - used));
        assert!(wanted.is_empty() || warnings(&cluster, "a").contains(wanted), "{}", warnings(&cluster, "a"));
        assert_eq!(bound(&cluster, "a"), sockets, "another address was bound");
        expect(&mut cluster.lock("b", "r", &["--wait", "5s"], &["true"]), 0);
    };
    let up = |words: String| {
        networks.on(0, &words);
        wait(&words, PATIENCE, || ["a", "b"].iter().all(|name| states(&cluster, name) == ["up", "up"]));
    };
    down(format!("address del {host}/24 dev {eth}"), &format!("the address {host} is not on this machine"));
    up(format!("address add {host}/24 dev {eth}"));
    down(format!("link set {eth} down"), "does not work");
    up(format!("link set {eth} up"));
    // The interface itself goes, and another one of that name comes.
    down(format!("link del {eth}"), &format!("the address {host} is not on this machine"));
    ip(&networks.hub, &format!("link add port0-{used} type veth peer name {eth} netns {}", path(&networks.nodes[0]))).unwrap();
    ip(&networks.hub, &format!("link set port0-{used} master bridge{used} up")).unwrap();
    networks.on(0, &format!("address add {host}/24 dev {eth}"));
    up(format!("link set {eth} up"));
    assert_eq!(lives(&cluster), before, "membership changed");
    // The link in use now goes the same way: the messages come back to the first one.
    let other = 1 - used;
    networks.on(0, &format!("address del {}/24 dev eth{other}", Networks::host(0, other)));
    wait("the messages come back", PATIENCE, || stream(&cluster, "a") == Some(used));
    // The last address goes, too: never a membership of loopback, but a cut.
    networks.on(0, &format!("address del {host}/24 dev {eth}"));
    wait("one goes on alone", PATIENCE, || ["a", "b"].iter().any(|name| cluster.members(name) == [*name]));
}

#[test]
fn bad_packets_of_every_kind_are_counted_and_shown() {
    let cluster = Cluster::of(&["a", "b"]);
    cluster.wait_members(&["a", "b"]);
    let before = lives(&cluster);
    let key = ClusterKey::read(&cluster.key_file()).unwrap();
    let uuid = cluster.field("a", "cluster_uuid").unwrap();
    let uuid: String = uuid.as_str().unwrap().chars().filter(char::is_ascii_hexdigit).collect();
    let byte = |at: usize| u8::from_str_radix(&uuid[2 * at..2 * at + 2], 16).unwrap();
    let uuid = ClusterUuid(std::array::from_fn(byte));
    let count = |way: &str, kind: &str| cluster.field("a", "refused").unwrap()[way][kind].as_u64().unwrap();
    assert!(["foreign", "forged", "replayed", "malformed"].iter().all(|kind| count("datagrams", kind) == 0));

    // Somebody with the key, in b's slot and with a life that the disk does not show: taken, and of no effect.
    let life = Life { slot: SlotIndex(1), boot: BootId([9; 16]), incarnation: Incarnation([9; 16]) };
    let (view, hears) = (ViewNumber(99), SlotSet::default());
    let hello = Hello { life, state: NodeState::Left, view, recovered: view, hears, is_leaving: true, freeze_left_ms: 0 };
    let payload = LinkHello { hello, word: LinkWord::default(), padding: 0 }.encode();
    let mut holder = DatagramSealer::new(key, uuid, SlotIndex(1), Incarnation([9; 16]));
    let mut stranger = DatagramSealer::new(ClusterKey::draw().unwrap(), uuid, SlotIndex(1), Incarnation([9; 16]));
    let good = holder.seal(SlotIndex(0), &payload);
    let mut changed = good.clone();
    changed[40] ^= 1;
    let datagrams = [
        good.clone(),
        good,                                      // replayed
        stranger.seal(SlotIndex(0), &payload),     // forged
        changed,                                   // forged
        holder.seal(SlotIndex(1), &payload),       // for another node
        holder.seal(SlotIndex(0), b"not a hello"), // malformed
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),        // foreign
        Vec::new(),                                // foreign
    ];
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for datagram in datagrams {
        socket.send_to(&datagram, cluster.address(0)).unwrap();
    }
    let mut web = TcpStream::connect(cluster.address(0)).unwrap();
    web.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    // The beginning of an old connection again: the node's own part is new.
    let mut old = TcpStream::connect(cluster.address(0)).unwrap();
    old.write_all(&[MAGIC.as_slice(), &[3; 16], &51u32.to_le_bytes(), &[7; 51]].concat()).unwrap();
    wait("all are counted", PATIENCE, || {
        let of = |way: &str| ["foreign", "forged", "replayed", "malformed"].map(|kind| count(way, kind));
        of("datagrams") == [2, 3, 1, 1] && of("connections") == [1, 1, 0, 0]
    });
    let text = expect(&mut cluster.verb("status", "a"), 0);
    assert!(text.contains("datagrams: 2 foreign, 3 forged, 1 replayed, 1 malformed"), "{text}");
    assert!(text.contains("connections: 1 foreign, 1 forged"), "{text}");
    assert_eq!(cluster.log("a").matches("a datagram from 127.0.0.1").count(), 4, "one line for each kind");
    assert_eq!(lives(&cluster), before);
    expect(&mut cluster.lock("b", "r", &["--wait", "5s"], &["true"]), 0);
}
