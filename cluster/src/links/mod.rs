//! What: the network of one incarnation: hellos by datagram, ordered messages by stream, both sealed, on one or more links to each node.
//! Owns: the sockets, who connects to whom (the lower slot calls), what is said when a link fails.
//! Invariants: sockets bind the node's own addresses and nothing else, whatever becomes of these; a link joins the addresses at the
//!   same place of both lists; a lost connection is reported and made anew, never taken for a dead peer.
//! Does not: order or repeat messages (the channel does), judge hellos (the membership machine does) or links (the link machine does).
//! Called by: the daemon's loop. docs/formats/node-messages.md draws what travels.

mod caller;
mod own;
pub mod refused;
pub mod say;
mod stream;

pub use stream::{decode_identification, encode_identification, request, request_blocking};

use crate::seal::{ClusterKey, DatagramSealer, End, Refusal};
use caller::Called;
use deadbolt_cluster_core::{
    channel::Frame,
    hello::{Hello, LINK_HELLO_BYTES, LinkHello, NodeMessage},
    link::{LINKS_MAX, LinkNews, LinkStatus, LinkTable, LinkTiming, OwnFault},
};
use deadbolt_disk::now_ns;
use deadbolt_disk_format::{ClusterUuid, Life, NodeEntry, SlotIndex, Timings};
use refused::{Channel, Refused};
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};
use stream::Session;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
};

/// Time for a handshake; chosen, far more than a round trip.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Pause between two tries to connect.
const RECONNECT: Duration = Duration::from_millis(200);
/// Connections that may be in their handshake at once.
const HANDSHAKES_MAX: usize = 64;
/// Longest datagram: a jumbo frame's.
pub const DATAGRAM_BYTES_MAX: usize = 9000;
/// What a seal adds to a hello: its head and its tag.
const SEAL_BYTES: u16 = 48;
/// Where a peer has one link only, every so many polls bring a full-sized hello; where the stream could move, every poll does.
const FULL_POLLS: u64 = 4;

/// What the network tells the loop.
#[derive(Debug)]
pub enum LinkEvent {
    /// A connection with an authenticated peer stands; frames for it go into the sender.
    Connected {
        /// Number of the connection.
        connection: u64,
        /// The peer's life.
        peer: Life,
        /// The link that it uses, if this node called; else the index of the own socket that was called.
        link: u8,
        /// Takes encoded frames.
        outgoing: mpsc::Sender<Vec<u8>>,
    },
    /// Frames came.
    Frames {
        /// Number of the connection.
        connection: u64,
        /// The peer's life.
        peer: Life,
        /// All that had come, in order; at least one.
        frames: Vec<Frame>,
    },
    /// The connection is gone.
    Disconnected {
        /// Number of the connection.
        connection: u64,
        /// The peer's life.
        peer: Life,
    },
    /// A holder of the key without a place asks for something.
    Request {
        /// What.
        message: NodeMessage,
        /// Where the answer goes.
        reply: oneshot::Sender<NodeMessage>,
    },
}

/// A datagram as it came.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// Index of the own socket that it came to.
    socket: u8,
    from: SocketAddr,
    at_us: u64,
    bytes: Vec<u8>,
}

/// What every connection needs to know.
#[derive(Clone, Debug)]
struct Identity {
    key: ClusterKey,
    cluster: ClusterUuid,
    me: Life,
    events: mpsc::Sender<LinkEvent>,
    connections: Arc<AtomicU64>,
    user_timeout: Duration,
    refused: Arc<Refused>,
}

impl Identity {
    fn new(key: ClusterKey, cluster: ClusterUuid, me: Life, user_timeout: Duration, events: mpsc::Sender<LinkEvent>) -> Self {
        Self { key, cluster, me, events, connections: Arc::default(), user_timeout, refused: Arc::default() }
    }
}

/// An own address.
#[derive(Debug)]
struct Own {
    address: SocketAddr,
    /// None: the address was not on this machine yet.
    socket: Option<Arc<UdpSocket>>,
}

/// Another node.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Peer {
    name: String,
    /// Own and other address of each link.
    links: Vec<(SocketAddr, SocketAddr)>,
}

/// The calls to a node.
#[derive(Debug)]
struct Caller {
    called: Called,
    wanted: watch::Sender<Option<u8>>,
    task: JoinHandle<()>,
}

/// The network of one incarnation; dropping it closes everything.
#[derive(Debug)]
pub struct Links {
    identity: Identity,
    own: Vec<Own>,
    /// Index of the own socket of each link.
    places: Vec<usize>,
    datagrams: mpsc::Sender<Datagram>,
    handshakes: Arc<Semaphore>,
    sealer: DatagramSealer,
    table: LinkTable,
    peers: BTreeMap<SlotIndex, Peer>,
    /// The link of the connection with each peer that stood last.
    streams: BTreeMap<SlotIndex, u8>,
    polls: u64,
    tasks: Vec<JoinHandle<()>>,
    callers: BTreeMap<SlotIndex, Caller>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.callers.values().for_each(|caller| caller.task.abort());
    }
}

/// A node's address cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the address {address}: {source}; it must be an address of this machine (ip:port) that nobody else has bound")]
pub struct BindError {
    address: String,
    source: io::Error,
}

fn bind_error(address: &str, source: io::Error) -> BindError {
    BindError { address: address.to_owned(), source }
}

/// One link as people see it.
#[derive(Clone, Debug)]
pub struct LinkReport {
    /// What was measured.
    pub status: LinkStatus,
    /// The peer's name.
    pub node: String,
    /// The own address.
    pub own: SocketAddr,
    /// The peer's.
    pub address: SocketAddr,
    /// The ordered stream uses it.
    pub has_stream: bool,
}

/// CLOCK_BOOTTIME in microseconds.
fn now_us() -> u64 {
    now_ns() / 1000
}

impl Links {
    /// Binds the node's own addresses. Datagrams have a channel of their own, so that streams cannot crowd hellos out. An address that is
    /// not on this machine is waited for, as long as there is another one.
    ///
    /// # Errors
    /// An address that is in use, or none that is this machine's.
    pub fn start(
        addresses: &[String],
        key: ClusterKey,
        cluster: ClusterUuid,
        me: Life,
        timings: &Timings,
        events: mpsc::Sender<LinkEvent>,
        datagrams: mpsc::Sender<Datagram>,
    ) -> Result<Self, BindError> {
        let sealer = DatagramSealer::new(key.clone(), cluster, me.slot, me.incarnation);
        let detect = Duration::from_millis(u64::from(timings.detect_ms));
        let mut links = Self {
            identity: Identity::new(key, cluster, me, detect, events),
            own: Vec::new(),
            places: Vec::new(),
            datagrams,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            sealer,
            table: LinkTable::new(LinkTiming::new(timings.poll_ms, timings.detect_ms), now_us()),
            peers: BTreeMap::new(),
            streams: BTreeMap::new(),
            polls: 0,
            tasks: Vec::new(),
            callers: BTreeMap::new(),
        };
        let mut missing = None;
        for address in addresses.iter().take(LINKS_MAX) {
            let parsed: SocketAddr = address.parse().map_err(|_| bind_error(address, io::Error::other("not of the form ip:port")))?;
            links.places.push(links.own.len());
            links.own.push(Own { address: parsed, socket: None });
            match links.bind(links.own.len() - 1) {
                Err(source) if source.kind() == io::ErrorKind::AddrNotAvailable => missing = Some(bind_error(address, source)),
                bound => bound.map_err(|source| bind_error(address, source))?,
            }
        }
        match missing {
            Some(error) if links.own.iter().all(|own| own.socket.is_none()) => Err(error),
            Some(error) => {
                tracing::warn!("{error}; this node goes on with its other addresses and tries again");
                Ok(links)
            }
            None => Ok(links),
        }
    }

    /// Binds the sockets of an own address and begins to listen there.
    fn bind(&mut self, index: usize) -> io::Result<()> {
        let (Some(own), Ok(link)) = (self.own.get_mut(index), u8::try_from(index)) else { return Ok(()) };
        let (udp, tcp) = own::bind(own.address)?;
        let udp = Arc::new(UdpSocket::from_std(udp)?);
        let tcp = TcpListener::from_std(tcp)?;
        own.socket = Some(udp.clone());
        self.tasks.push(tokio::spawn(receive_datagrams(udp, link, self.datagrams.clone(), self.identity.refused.clone())));
        self.tasks.push(tokio::spawn(accept(tcp, link, self.identity.clone(), self.handshakes.clone())));
        Ok(())
    }

    /// Judges the links, and sends a hello on each of them; what cannot be sent at once is lost.
    pub fn say_hello(&mut self, hello: &Hello) {
        for index in 0..self.own.len() {
            if self.own.get(index).is_some_and(|own| own.socket.is_none()) && self.bind(index).is_ok() {
                tracing::info!("the address of link {index} is on this machine now and is used");
            }
        }
        for news in self.table.poll(now_us()) {
            self.follow_news(&news);
        }
        self.polls += 1;
        let peers = std::mem::take(&mut self.peers);
        for (slot, peer) in &peers {
            let is_full_due = peer.links.len() > 1 || self.polls.is_multiple_of(FULL_POLLS);
            for (link, addresses) in (0..).zip(&peer.links) {
                // The full-sized one first: the plain one tells the receiver that it is to be missed.
                if is_full_due {
                    self.say_full(hello, *slot, link, *addresses);
                }
                let fault = self.say(hello, (*slot, link), *addresses, None);
                self.table.handle_sent(*slot, link, fault);
            }
        }
        self.peers = peers;
    }

    fn say_full(&mut self, hello: &Hello, slot: SlotIndex, link: u8, (own, to): (SocketAddr, SocketAddr)) {
        let Some(mtu) = own::path_mtu(own, to) else { return };
        self.table.handle_mtu(slot, link, mtu);
        let size = own::datagram_bytes(&to, self.table.full_bytes(slot, link));
        let plain = u16::try_from(LINK_HELLO_BYTES).unwrap_or(u16::MAX).saturating_add(SEAL_BYTES);
        if let Some(padding) = size.checked_sub(plain) {
            self.say(hello, (slot, link), (own, to), Some(padding));
        }
    }

    /// Sends one hello, full-sized where a padding is given; why this node cannot, if it cannot.
    fn say(
        &mut self,
        hello: &Hello,
        (slot, link): (SlotIndex, u8),
        (own, to): (SocketAddr, SocketAddr),
        padding: Option<u16>,
    ) -> Option<OwnFault> {
        let place = self.places.get(usize::from(link)).and_then(|index| self.own.get(*index));
        let Some(socket) = place.and_then(|own| own.socket.clone()) else { return Some(OwnFault::AddressGone) };
        if own.is_ipv4() != to.is_ipv4() {
            return Some(OwnFault::NoRoute);
        }
        let word = self.table.say(now_us(), slot, link, padding.is_some())?;
        let payload = LinkHello { hello: *hello, word, padding: padding.unwrap_or(0) }.encode();
        let frame = self.sealer.seal(slot, &payload);
        socket.try_send_to(&frame, to).err().and_then(|error| own::fault(own, &error))
    }

    fn follow_news(&mut self, news: &LinkNews) {
        match news {
            LinkNews::Use { slot, link } => {
                if let Some(caller) = self.callers.get(slot) {
                    caller.wanted.send_replace(Some(*link));
                }
            }
            LinkNews::State { link, was } => {
                let has_other = self.table.has_other(link.slot, link.link);
                if let Some(text) = self.report(*link).and_then(|report| say::state_news(&report, *was, has_other)) {
                    tracing::warn!("{text}");
                }
            }
            LinkNews::FullSize { link } => {
                if let Some(report) = self.report(*link) {
                    tracing::warn!("{}", say::full_size_news(&report));
                }
            }
        }
    }

    fn report(&self, status: LinkStatus) -> Option<LinkReport> {
        let peer = self.peers.get(&status.slot)?;
        let (own, address) = *peer.links.get(usize::from(status.link))?;
        let has_stream = self.streams.get(&status.slot) == Some(&status.link);
        Some(LinkReport { status, node: peer.name.clone(), own, address, has_stream })
    }

    /// All links as people see them.
    #[must_use]
    pub fn reports(&self) -> Vec<LinkReport> {
        self.table.status().filter_map(|status| self.report(status)).collect()
    }

    /// What was refused.
    #[must_use]
    pub fn refused(&self) -> &Refused {
        &self.identity.refused
    }

    /// Opens a datagram; none if it says nothing new of its sender.
    pub fn open(&mut self, datagram: &Datagram) -> Option<Hello> {
        match self.take(datagram) {
            Ok(hello) => hello,
            Err(refusal) => {
                self.identity.refused.note(Channel::Datagram, Some(refusal), datagram.from);
                None
            }
        }
    }

    fn take(&mut self, datagram: &Datagram) -> Result<Option<Hello>, Refusal> {
        let opened = self.sealer.open(&datagram.bytes)?;
        let LinkHello { hello, word, .. } = LinkHello::decode(&opened.payload).ok_or(Refusal::Malformed)?;
        let is_senders = hello.life.slot == opened.from && hello.life.incarnation == opened.incarnation;
        if !is_senders || self.places.get(usize::from(word.link)) != Some(&usize::from(datagram.socket)) {
            return Err(Refusal::Malformed);
        }
        self.table.hear(datagram.at_us, hello.life, &word);
        // One that was overtaken is news of its link alone.
        Ok(opened.is_newest.then_some(hello))
    }

    /// A connection with a peer stands: on this link if this node called, else at this own socket.
    pub fn handle_connected(&mut self, slot: SlotIndex, place: u8) {
        let is_caller = slot > self.identity.me.slot;
        let link = (0..).zip(&self.places).find(|(link, index)| if is_caller { *link == place } else { **index == usize::from(place) });
        let Some((link, _)) = link else { return };
        let before = self.streams.insert(slot, link);
        self.table.handle_stream(slot, link);
        if let Some(caller) = self.callers.get(&slot) {
            caller.wanted.send_if_modified(|wanted| wanted.replace(link) != Some(link));
        }
        if let (Some(before), Some(peer)) = (before.filter(|before| *before != link), self.peers.get(&slot)) {
            tracing::info!("messages with {} go on link {link} now, before on link {before}", peer.name);
        }
    }

    /// The nodes that there are: links with all of them, calls to those with a higher slot, at their present addresses.
    pub fn follow(&mut self, nodes: &[NodeEntry]) {
        let me = self.identity.me.slot;
        self.places = places(&self.own, nodes.iter().find(|node| node.slot == me));
        self.peers = nodes.iter().filter(|node| node.slot != me).map(|node| (node.slot, self.peer_of(node))).collect();
        let counts = self.peers.iter().map(|(slot, peer)| (*slot, u8::try_from(peer.links.len()).unwrap_or(0))).collect();
        self.table.follow(now_us(), &counts);
        self.streams.retain(|slot, _| self.peers.contains_key(slot));
        let wanted: BTreeMap<SlotIndex, Called> = self
            .peers
            .iter()
            .filter(|(slot, peer)| **slot > me && !peer.links.is_empty())
            .map(|(slot, peer)| (*slot, Called { slot: *slot, links: peer.links.clone() }))
            .collect();
        self.callers.retain(|slot, caller| {
            let stays = wanted.get(slot) == Some(&caller.called);
            if !stays {
                caller.task.abort();
            }
            stays
        });
        for (slot, called) in wanted {
            if !self.callers.contains_key(&slot) {
                let (wanted, wish) = watch::channel(None);
                let task = tokio::spawn(caller::keep_connected(called.clone(), wish, self.identity.clone()));
                self.callers.insert(slot, Caller { called, wanted, task });
            }
        }
    }

    fn peer_of(&self, node: &NodeEntry) -> Peer {
        let parsed = node.addresses.iter().map(|address| address.parse::<SocketAddr>());
        let own = self.places.iter().filter_map(|index| self.own.get(*index));
        let links = own.zip(parsed).map_while(|(own, address)| Some((own.address, address.ok()?))).collect();
        Peer { name: node.name.clone(), links }
    }
}

/// The own socket of each link: the one that is bound to the address at this place of the view's list, which may be another one than in
/// the node's file while addresses change. Where others reach this node by other addresses than it binds, the file's order counts.
fn places(own: &[Own], entry: Option<&NodeEntry>) -> Vec<usize> {
    let bound = |address: &String| {
        let address: SocketAddr = address.parse().ok()?;
        own.iter().position(|own| own.address == address)
    };
    let places: Vec<usize> = entry.into_iter().flat_map(|entry| &entry.addresses).map_while(bound).collect();
    if places.is_empty() { (0..own.len()).collect() } else { places }
}

async fn receive_datagrams(socket: Arc<UdpSocket>, index: u8, datagrams: mpsc::Sender<Datagram>, refused: Arc<Refused>) {
    // One byte more than may come, so that a longer one does not pass for a good one.
    let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                // A full loop loses datagrams, as a network does.
                if datagrams.try_send(Datagram { socket: index, from, at_us: now_us(), bytes }).is_err() {
                    refused.note_overrun();
                }
            }
            // An unreachable peer of an earlier send shows up here; it says nothing about this socket.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn accept(listener: TcpListener, link: u8, identity: Identity, handshakes: Arc<Semaphore>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        if let Ok(permit) = handshakes.clone().try_acquire_owned() {
            let identity = identity.clone();
            connections.spawn(async move {
                let session = tokio::time::timeout(HANDSHAKE, Session::open(stream, End::Callee, &identity, Some(identity.me))).await;
                drop(permit);
                match session {
                    Ok(Ok(session)) => session.serve(&identity, link).await,
                    Ok(Err(error)) => identity.refused.note(Channel::Connection, refused::reason(&error), from),
                    Err(_) => {}
                }
            });
        }
    }
}

#[cfg(test)]
mod tests;
