//! Two networks of one process, on loopback.

use super::{stream::FIRST_RECORD_BYTES_MAX, *};
use crate::seal::MAGIC;
use deadbolt_cluster_core::{
    link::LinkState,
    timing::{Wishes, derive},
};
use deadbolt_disk_format::{BootId, Incarnation, NodeState, SlotSet, ViewNumber};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn life(slot: u16) -> Life {
    let byte = u8::try_from(slot).unwrap() + 1;
    Life { slot: SlotIndex(slot), boot: BootId([byte; 16]), incarnation: Incarnation([byte; 16]) }
}

fn free_address() -> String {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    tcp.local_addr().unwrap().to_string()
}

/// A node's network and what it tells.
struct Node {
    links: Links,
    events: mpsc::Receiver<LinkEvent>,
    datagrams: mpsc::Receiver<Datagram>,
}

impl Node {
    fn start(slot: u16, addresses: &[String], key: &ClusterKey) -> Self {
        let (sender, events) = mpsc::channel(1000);
        let (datagram_sender, datagrams) = mpsc::channel(1000);
        let timings = derive(&Wishes::stall(1000)).unwrap();
        let links = Links::start(addresses, key.clone(), ClusterUuid([1; 16]), life(slot), &timings, sender, datagram_sender).unwrap();
        Self { links, events, datagrams }
    }

    /// Takes the datagrams that have come.
    fn hear(&mut self) -> usize {
        std::iter::from_fn(|| self.datagrams.try_recv().ok()).filter_map(|datagram| self.links.open(&datagram)).count()
    }

    async fn connected(&mut self) -> (Life, u8, mpsc::Sender<Vec<u8>>) {
        loop {
            if let LinkEvent::Connected { peer, link, outgoing, .. } = self.events.recv().await.unwrap() {
                self.links.handle_connected(peer.slot, link);
                return (peer, link, outgoing);
            }
        }
    }

    fn states(&self) -> Vec<LinkState> {
        self.links.reports().iter().map(|report| report.status.state).collect()
    }

    fn counts(&self, channel: Channel) -> [u64; 4] {
        let counts = self.links.refused().counts(channel);
        [counts.foreign, counts.forged, counts.replayed, counts.malformed]
    }
}

fn entry(slot: u16, addresses: &[String]) -> NodeEntry {
    NodeEntry { slot: SlotIndex(slot), votes: 1, name: format!("n{slot}"), addresses: addresses.to_vec() }
}

fn hello(slot: u16) -> Hello {
    Hello {
        life: life(slot),
        state: NodeState::Member,
        view: ViewNumber(1),
        recovered: ViewNumber(1),
        hears: SlotSet::default(),
        is_leaving: false,
        freeze_left_ms: 0,
    }
}

fn on_runtime(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await.unwrap() });
}

/// Two nodes that follow each other, with so many links.
fn pair(links: usize) -> (Node, Node, Vec<Vec<String>>) {
    let key = ClusterKey::draw().unwrap();
    let addresses: Vec<Vec<String>> = (0..2).map(|_| (0..links).map(|_| free_address()).collect()).collect();
    let (mut a, mut b) = (Node::start(0, &addresses[0], &key), Node::start(1, &addresses[1], &key));
    let nodes = [entry(0, &addresses[0]), entry(1, &addresses[1])];
    a.links.follow(&nodes);
    b.links.follow(&nodes);
    (a, b, addresses)
}

/// A hello of node 0 as it comes to node 1; a socket may not be ready for the first one.
async fn said(a: &mut Node, b: &mut Node) -> Datagram {
    loop {
        a.links.say_hello(&hello(0));
        if let Ok(datagram) = tokio::time::timeout(Duration::from_millis(50), b.datagrams.recv()).await {
            return datagram.unwrap();
        }
    }
}

/// Polls of both, 100 ms apart, until something holds of them.
async fn poll_until(a: &mut Node, b: &mut Node, mut is_over: impl FnMut(&Node, &Node) -> bool) {
    while !is_over(a, b) {
        a.links.say_hello(&hello(0));
        b.links.say_hello(&hello(1));
        tokio::time::sleep(Duration::from_millis(100)).await;
        a.hear();
        b.hear();
    }
}

#[test]
fn two_nodes_connect_and_exchange_frames_and_hellos() {
    on_runtime(async {
        let (mut a, mut b, _) = pair(1);
        let (peer, _, outgoing) = a.connected().await;
        assert_eq!(peer, life(1));
        let resume = Frame::Resume { stream: 7, of: 0, delivered: 9 };
        outgoing.send(resume.encode()).await.unwrap();
        let (peer, _, _keeps_the_connection) = b.connected().await;
        assert_eq!(peer, life(0));
        assert!(matches!(b.events.recv().await, Some(LinkEvent::Frames { frames, .. }) if frames == [resume]));
        let datagram = said(&mut a, &mut b).await;
        assert_eq!(b.links.open(&datagram), Some(hello(0)));
        assert_eq!(b.links.open(&datagram), None);
        assert_eq!(b.counts(Channel::Datagram), [0, 0, 1, 0]);
    });
}

#[test]
fn links_are_measured_and_the_stream_moves_when_it_is_told() {
    on_runtime(async {
        let (mut a, mut b, _) = pair(2);
        let (_, first, _keeps_the_first) = a.connected().await;
        let (_, at_b, _keeps_it_there) = b.connected().await;
        assert_eq!((first, at_b), (0, 0));
        poll_until(&mut a, &mut b, |a, b| a.states() == [LinkState::Up; 2] && b.states() == [LinkState::Up; 2]).await;
        poll_until(&mut a, &mut b, |a, b| {
            let is_measured = |node: &Node| node.links.reports().iter().all(|report| report.status.round_trip_us.is_some());
            is_measured(a) && is_measured(b)
        })
        .await;
        // Loopback has a larger MTU than is tried.
        assert!(a.links.reports().iter().all(|report| report.status.full_bytes == 9000 && report.status.lost_in.0 == 0));
        let wanted = &a.links.callers[&SlotIndex(1)].wanted;
        wanted.send_replace(Some(1));
        let (_, second, _keeps_the_second) = a.connected().await;
        let (_, there, _keeps_that_one) = b.connected().await;
        assert_eq!((second, there), (1, 1));
        let streams = |node: &Node| node.links.reports().iter().map(|report| report.has_stream).collect::<Vec<bool>>();
        assert_eq!((streams(&a), streams(&b)), (vec![false, true], vec![false, true]));
        // It stays there: nothing is wrong with that link.
        for _ in 0..5 {
            let mut polls = 0;
            poll_until(&mut a, &mut b, |_, _| std::mem::replace(&mut polls, 1) == 1).await;
        }
        assert!(a.events.try_recv().is_err(), "no further connection");
    });
}

#[test]
fn another_link_is_called_where_one_takes_no_connection() {
    on_runtime(async {
        let key = ClusterKey::draw().unwrap();
        let (own, there) = ([free_address(), free_address()], free_address());
        // Nobody listens on the first.
        let theirs = [free_address(), there];
        let mut a = Node::start(0, &own, &key);
        let nodes = [entry(0, &own), entry(1, &theirs)];
        a.links.follow(&nodes);
        let mut b = Node::start(1, &[free_address(), theirs[1].clone()], &key);
        b.links.follow(&nodes);
        assert_eq!(a.connected().await.1, 1);
    });
}

#[test]
fn an_address_that_is_missing_is_waited_for_and_nothing_else_is_bound() {
    on_runtime(async {
        let key = ClusterKey::draw().unwrap();
        // Of a network for documentation: not on this machine.
        let missing = "192.0.2.1:7001".to_owned();
        let mut node = Node::start(0, &[free_address(), missing.clone()], &key);
        node.links.follow(&[entry(0, &[]), entry(1, &[free_address(), "192.0.2.2:7001".into()])]);
        node.links.say_hello(&hello(0));
        assert!(node.links.own[1].socket.is_none());
        let (events, _) = mpsc::channel(1);
        let (datagrams, _) = mpsc::channel(1);
        let timings = derive(&Wishes::stall(1000)).unwrap();
        let alone = Links::start(&[missing], key.clone(), ClusterUuid([1; 16]), life(0), &timings, events.clone(), datagrams.clone());
        assert!(alone.unwrap_err().to_string().contains("192.0.2.1"));
        // One that somebody else uses is a mistake, not a matter of time.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let holder = std::net::UdpSocket::bind(&taken).unwrap();
        let both = Links::start(&[free_address(), taken], key, ClusterUuid([1; 16]), life(0), &timings, events, datagrams);
        assert!(both.is_err());
        drop(holder);
    });
}

#[test]
fn garbage_and_another_key_never_reach_the_loop_and_are_counted() {
    on_runtime(async {
        let key = ClusterKey::draw().unwrap();
        let address = free_address();
        let mut node = Node::start(0, std::slice::from_ref(&address), &key);
        for garbage in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0xff; 4096], &MAGIC] {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            let _ = stream.write_all(garbage).await;
        }
        // Who has not shown the key yet makes the node wait for no long record.
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let opening = [MAGIC.as_slice(), &[7; 16], &u32::try_from(FIRST_RECORD_BYTES_MAX + 1).unwrap().to_le_bytes()].concat();
        stream.write_all(&opening).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(HANDSHAKE / 2, stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "still open");
        let message = NodeMessage::RemoveNode { slot: SlotIndex(3) };
        let other = ClusterKey::draw().unwrap();
        assert!(request(&address, &other, ClusterUuid([1; 16]), &message).await.is_err());
        // The first of another key is told at the other end before it is counted here.
        while node.counts(Channel::Connection) != [3, 1, 0, 0] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(node.events.try_recv().is_err() && node.datagrams.try_recv().is_err());
        let mut events = node.events;
        let answer = tokio::spawn(async move {
            let Some(LinkEvent::Request { message, reply }) = events.recv().await else { panic!("no request") };
            reply.send(NodeMessage::Answer(Ok(()))).unwrap();
            message
        });
        assert_eq!(request(&address, &key, ClusterUuid([1; 16]), &message).await.unwrap(), NodeMessage::Answer(Ok(())));
        assert_eq!(answer.await.unwrap(), message);
    });
}

#[test]
fn every_kind_of_bad_datagram_is_counted_as_what_it_is() {
    on_runtime(async {
        let (mut a, mut b, addresses) = pair(1);
        let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut other_key = DatagramSealer::new(ClusterKey::draw().unwrap(), ClusterUuid([1; 16]), SlotIndex(0), Incarnation([1; 16]));
        let good = said(&mut a, &mut b).await;
        assert!(b.links.open(&good).is_some());
        // A hello for a link that is not the one it came on, and one in another's name.
        let word = deadbolt_cluster_core::hello::LinkWord { link: 1, ..Default::default() };
        let wrong_link = a.links.sealer.seal(SlotIndex(1), &LinkHello { hello: hello(0), word, padding: 0 }.encode());
        let word = deadbolt_cluster_core::hello::LinkWord { link: 0, ..word };
        let wrong_name = a.links.sealer.seal(SlotIndex(1), &LinkHello { hello: hello(2), word, padding: 0 }.encode());
        let forged = other_key.seal(SlotIndex(1), b"hello");
        let too_long = vec![0x44; DATAGRAM_BYTES_MAX + 500];
        for bytes in [b"hello".to_vec(), too_long, forged, good.bytes.clone(), wrong_link, wrong_name] {
            stranger.send_to(&bytes, &addresses[1][0]).unwrap();
            let datagram = b.datagrams.recv().await.unwrap();
            assert_eq!(b.links.open(&datagram), None);
        }
        assert_eq!(b.counts(Channel::Datagram), [2, 1, 1, 2]);
    });
}

#[test]
fn a_node_that_runs_gets_another_address() {
    on_runtime(async {
        let key = ClusterKey::draw().unwrap();
        let (of_a, of_b) = ([free_address()], [free_address(), free_address()]);
        let (mut a, mut b) = (Node::start(0, &of_a, &key), Node::start(1, &of_b, &key));
        // Its file has both for a while; the view has the old one before the new one, and then the new one alone.
        for list in [&of_b[..], &of_b[1..]] {
            let nodes = [entry(0, &of_a), entry(1, list)];
            a.links.follow(&nodes);
            b.links.follow(&nodes);
            a.connected().await;
            b.connected().await;
            let mut polls = 0;
            poll_until(&mut a, &mut b, |_, _| {
                polls += 1;
                polls > 20
            })
            .await;
            assert_eq!((a.states(), b.states()), (vec![LinkState::Up], vec![LinkState::Up]));
            let (at_a, at_b) = (a.links.reports()[0].clone(), b.links.reports()[0].clone());
            assert_eq!((at_a.address.to_string(), at_b.own.to_string()), (list[0].clone(), list[0].clone()));
            assert!(at_a.has_stream && at_b.has_stream);
        }
        assert_eq!(b.counts(Channel::Datagram), [0; 4]);
    });
}
