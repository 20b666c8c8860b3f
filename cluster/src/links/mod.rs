//! What: the network of one incarnation: hellos by datagram, ordered messages by stream, both sealed.
//! Owns: the sockets, the handshake of a connection, who connects to whom (the lower slot calls).
//! Invariants: only sealed frames of a holder of the key reach the loop; sockets bind the node's own addresses and nothing else;
//!   a lost connection is reported and made anew, never taken for a dead peer.
//! Does not: order or repeat messages (the channel does), judge hellos (the membership machine does).
//! Called by: the daemon's loop. docs/formats/node-messages.md draws the handshake.

use crate::seal::{ClusterKey, DatagramSealer, End, MAGIC, RECORD_BYTES_MAX, StreamHalf, stream_halves};
use deadbolt_cluster_core::{
    channel::Frame,
    hello::{Hello, NodeMessage},
};
use deadbolt_disk_format::{BootId, ClusterUuid, Incarnation, Life, NodeEntry, SlotIndex};
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream, UdpSocket,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
};

/// Time for a handshake; chosen, far more than a round trip.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Pause between two tries to connect.
const RECONNECT: Duration = Duration::from_millis(200);
/// Silence on a connection after which it is probed, and between probes; the shortest that the kernel takes.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// Connections that may be in their handshake at once.
const HANDSHAKES_MAX: usize = 64;
/// Longest sealed record before the other end has shown that it holds the key: kind, identification and tag.
const FIRST_RECORD_BYTES_MAX: usize = 1 + LIFE_BYTES + 16;
/// An identification: slot, boot, incarnation.
const LIFE_BYTES: usize = 34;
/// Longest datagram taken.
const DATAGRAM_BYTES_MAX: usize = 1500;
/// What one read of a connection takes at most.
const READ_BYTES: usize = 64 << 10;
/// Frames that are given to the loop at once at most.
const FRAMES_MAX: usize = 256;
/// Messages of one connection that may wait for the socket.
const OUTGOING_MAX: usize = 65_536;

/// What the network tells the loop.
#[derive(Debug)]
pub enum LinkEvent {
    /// A connection with an authenticated peer stands; frames for it go into the sender.
    Connected {
        /// Number of the connection.
        connection: u64,
        /// The peer's life.
        peer: Life,
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

/// What every connection needs to know.
#[derive(Clone, Debug)]
struct Identity {
    key: ClusterKey,
    cluster: ClusterUuid,
    me: Life,
    events: mpsc::Sender<LinkEvent>,
    connections: Arc<AtomicU64>,
    user_timeout: Duration,
    /// The node's own addresses: where its calls come from, too.
    own: Vec<SocketAddr>,
}

/// The network of one incarnation; dropping it closes everything.
#[derive(Debug)]
pub struct Links {
    identity: Identity,
    /// With their own addresses.
    sockets: Vec<(SocketAddr, Arc<UdpSocket>)>,
    sealer: DatagramSealer,
    tasks: Vec<JoinHandle<()>>,
    connectors: BTreeMap<SlotIndex, (Vec<String>, JoinHandle<()>)>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.connectors.values().for_each(|(_, task)| task.abort());
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

impl Links {
    /// Binds the node's own addresses. Datagrams have a channel of their own, so that streams cannot crowd hellos out.
    ///
    /// # Errors
    /// An address that is not this machine's or is in use.
    pub async fn start(
        addresses: &[String],
        key: ClusterKey,
        cluster: ClusterUuid,
        me: Life,
        detect: Duration,
        events: mpsc::Sender<LinkEvent>,
        datagrams: mpsc::Sender<Vec<u8>>,
    ) -> Result<Self, BindError> {
        let sealer = DatagramSealer::new(key.clone(), cluster, me.slot, me.incarnation);
        let own = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        let identity = Identity { key, cluster, me, events, connections: Arc::default(), user_timeout: detect, own };
        let mut links = Self { identity, sockets: Vec::new(), sealer, tasks: Vec::new(), connectors: BTreeMap::new() };
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        for address in addresses {
            let parsed: SocketAddr = address.parse().map_err(|_| bind_error(address, io::Error::other("not of the form ip:port")))?;
            let udp = Arc::new(UdpSocket::bind(parsed).await.map_err(|source| bind_error(address, source))?);
            let tcp = listen(parsed).map_err(|source| bind_error(address, source))?;
            links.tasks.push(tokio::spawn(receive_datagrams(udp.clone(), datagrams.clone())));
            links.tasks.push(tokio::spawn(accept(tcp, links.identity.clone(), handshakes.clone())));
            links.sockets.push((parsed, udp));
        }
        Ok(links)
    }

    /// Sends a hello to every other node, on every pair of addresses of the same family; what cannot be sent at once is lost.
    pub fn say_hello(&mut self, hello: &Hello, nodes: &[NodeEntry]) {
        let bytes = hello.encode();
        for node in nodes.iter().filter(|node| node.slot != self.identity.me.slot) {
            let frame = self.sealer.seal(node.slot, &bytes);
            for address in node.addresses.iter().filter_map(|address| address.parse::<SocketAddr>().ok()) {
                for (_, socket) in self.sockets.iter().filter(|(own, _)| own.is_ipv4() == address.is_ipv4()) {
                    let _ = socket.try_send_to(&frame, address);
                }
            }
        }
    }

    /// Opens a datagram; none if it is not a hello of the slot that sealed it.
    pub fn open(&mut self, datagram: &[u8]) -> Option<Hello> {
        let (from, incarnation, payload) = self.sealer.open(datagram)?;
        Hello::decode(&payload).filter(|hello| hello.life.slot == from && hello.life.incarnation == incarnation)
    }

    /// Keeps one caller per node with a higher slot, at its present addresses.
    pub fn follow(&mut self, nodes: &[NodeEntry]) {
        let me = self.identity.me.slot;
        let wanted: BTreeMap<SlotIndex, &Vec<String>> =
            nodes.iter().filter(|node| node.slot > me).map(|node| (node.slot, &node.addresses)).collect();
        self.connectors.retain(|slot, (addresses, task)| {
            let stays = wanted.get(slot).is_some_and(|wanted| *wanted == addresses);
            if !stays {
                task.abort();
            }
            stays
        });
        for (slot, addresses) in wanted {
            if !self.connectors.contains_key(&slot) {
                let task = tokio::spawn(keep_connected(slot, addresses.clone(), self.identity.clone()));
                self.connectors.insert(slot, (addresses.clone(), task));
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

async fn receive_datagrams(socket: Arc<UdpSocket>, datagrams: mpsc::Sender<Vec<u8>>) {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, _)) => {
                let datagram = buffer.get(..length).unwrap_or_default().to_vec();
                // A full loop loses datagrams, as a network does.
                let _ = datagrams.try_send(datagram);
            }
            // An unreachable peer of an earlier send shows up here; it says nothing about this socket.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn accept(listener: TcpListener, identity: Identity, handshakes: Arc<Semaphore>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        if let Ok(permit) = handshakes.clone().try_acquire_owned() {
            let identity = identity.clone();
            connections.spawn(async move {
                let session = tokio::time::timeout(HANDSHAKE, Session::open(stream, End::Callee, &identity, Some(identity.me))).await;
                drop(permit);
                if let Ok(Ok(session)) = session {
                    session.serve(&identity).await;
                }
            });
        }
    }
}

async fn keep_connected(slot: SlotIndex, addresses: Vec<String>, identity: Identity) {
    loop {
        for address in &addresses {
            if let Ok(Ok(session)) = tokio::time::timeout(HANDSHAKE, call(address, &identity, Some(identity.me))).await
                && session.peer.is_some_and(|peer| peer.slot == slot)
            {
                session.serve(&identity).await;
            }
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn call(address: &str, identity: &Identity, me: Option<Life>) -> io::Result<Session> {
    let parsed: SocketAddr = address.parse().map_err(|_| io::Error::other("not of the form ip:port"))?;
    let socket = if parsed.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    if let Some(own) = identity.own.iter().find(|own| own.is_ipv4() == parsed.is_ipv4()) {
        socket.bind(SocketAddr::new(own.ip(), 0))?;
    }
    Session::open(socket.connect(parsed).await?, End::Caller, identity, me).await
}

/// Asks a node for something on behalf of a holder of the key that has no place yet.
///
/// # Errors
/// No connection, another key, or no answer in time.
pub async fn request(address: &str, key: &ClusterKey, cluster: ClusterUuid, message: &NodeMessage) -> io::Result<NodeMessage> {
    let nobody = Life { slot: SlotIndex::NONE, boot: BootId::NONE, incarnation: Incarnation::NONE };
    let (events, _) = mpsc::channel(1);
    let identity =
        Identity { key: key.clone(), cluster, me: nobody, events, connections: Arc::default(), user_timeout: HANDSHAKE, own: Vec::new() };
    let ask = async {
        let mut session = call(address, &identity, None).await?;
        session.write(2, &message.encode()).await?;
        let (kind, payload) = session.read.record().await?;
        NodeMessage::decode(&payload).filter(|_| kind == 2).ok_or_else(|| io::Error::other("the answer is not one"))
    };
    tokio::time::timeout(Duration::from_secs(5), ask).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// [`request`] for a caller without a runtime.
///
/// # Errors
/// As [`request`].
pub fn request_blocking(address: &str, key: &ClusterKey, cluster: ClusterUuid, message: &NodeMessage) -> io::Result<NodeMessage> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(request(address, key, cluster, message))
}

/// A connection after its handshake.
struct Session {
    read: Reading,
    write: OwnedWriteHalf,
    sealing: StreamHalf,
    /// None: a holder of the key without a place.
    peer: Option<Life>,
}

/// Reads records, of which one read of the socket may bring many.
struct Reading {
    stream: BufReader<OwnedReadHalf>,
    opening: StreamHalf,
    /// Longest sealed record taken now.
    most: usize,
}

impl Reading {
    /// Reads one record: its kind and its payload.
    async fn record(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let length = self.stream.read_u32_le().await?;
        let mut sealed = vec![0; self.checked(length)?];
        self.stream.read_exact(&mut sealed).await?;
        self.opened(&sealed)
    }

    /// The next record, if it has come whole already.
    fn waiting_record(&mut self) -> Option<io::Result<(u8, Vec<u8>)>> {
        let (length, rest) = self.stream.buffer().split_first_chunk::<4>()?;
        let length = match self.checked(u32::from_le_bytes(*length)) {
            Ok(length) => length,
            Err(error) => return Some(Err(error)),
        };
        let sealed = rest.get(..length)?.to_vec();
        self.stream.consume(4 + length);
        Some(self.opened(&sealed))
    }

    fn checked(&self, length: u32) -> io::Result<usize> {
        usize::try_from(length).ok().filter(|length| *length <= self.most).ok_or_else(|| io::Error::other("record too long"))
    }

    fn opened(&mut self, sealed: &[u8]) -> io::Result<(u8, Vec<u8>)> {
        let mut payload = self.opening.open(sealed).ok_or_else(|| io::Error::other("not sealed with the cluster key"))?;
        if payload.is_empty() {
            return Err(io::Error::other("empty record"));
        }
        let kind = payload.remove(0);
        Ok((kind, payload))
    }

    /// Waits for frames; all that have come.
    async fn frames(&mut self) -> io::Result<Vec<Frame>> {
        let decode = |(kind, payload): (u8, Vec<u8>)| {
            Frame::decode(&payload).filter(|_| kind == 1).ok_or_else(|| io::Error::other("the record is no frame"))
        };
        let mut frames = vec![decode(self.record().await?)?];
        while frames.len() < FRAMES_MAX
            && let Some(record) = self.waiting_record()
        {
            frames.push(decode(record?)?);
        }
        Ok(frames)
    }
}

impl Session {
    async fn open(stream: TcpStream, end: End, identity: &Identity, me: Option<Life>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // A peer that vanished behind a cut answers no probe: the connection ends even if nothing is sent on it.
        let socket = socket2::SockRef::from(&stream);
        socket.set_tcp_user_timeout(Some(identity.user_timeout))?;
        socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
        let (mut reading, mut writing) = stream.into_split();
        let mut own = [0; 16];
        getrandom::fill(&mut own).map_err(|error| io::Error::other(error.to_string()))?;
        let mut opening = MAGIC.to_vec();
        opening.extend_from_slice(&own);
        writing.write_all(&opening).await?;
        let mut theirs = [0; 20];
        reading.read_exact(&mut theirs).await?;
        let (magic, theirs) = theirs.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
        let theirs: [u8; 16] = theirs.try_into().map_err(|_| io::Error::other("short opening"))?;
        if *magic != MAGIC {
            return Err(io::Error::other("not a node of this protocol version"));
        }
        let (caller, callee) = if end == End::Caller { (own, theirs) } else { (theirs, own) };
        let (sealing, opening) = stream_halves(&identity.key, identity.cluster, end, &caller, &callee);
        let read = Reading { stream: BufReader::with_capacity(READ_BYTES, reading), opening, most: FIRST_RECORD_BYTES_MAX };
        let mut session = Self { read, write: writing, sealing, peer: None };
        session.write(0, &encode_identification(me.as_ref())).await?;
        let (kind, payload) = session.read.record().await?;
        let identified = decode_identification(&payload).filter(|_| kind == 0);
        session.peer = identified.ok_or_else(|| io::Error::other("no identification"))?;
        session.read.most = RECORD_BYTES_MAX;
        Ok(session)
    }

    async fn write(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let mut record = vec![kind];
        record.extend_from_slice(payload);
        let sealed = self.sealing.seal(&record);
        self.write.write_all(&sealed).await
    }

    async fn serve(self, identity: &Identity) {
        match self.peer {
            Some(peer) => self.serve_peer(peer, identity).await,
            None => {
                let _ = tokio::time::timeout(Duration::from_secs(10), self.serve_request(identity)).await;
            }
        }
    }

    async fn serve_request(mut self, identity: &Identity) -> io::Result<()> {
        let (kind, payload) = self.read.record().await?;
        let message = NodeMessage::decode(&payload).filter(|_| kind == 2).ok_or_else(|| io::Error::other("not a request"))?;
        let (reply, answer) = oneshot::channel();
        let sent = identity.events.send(LinkEvent::Request { message, reply }).await;
        sent.map_err(|_| io::Error::other("the daemon stops"))?;
        let answer = answer.await.map_err(|_| io::Error::other("the daemon stops"))?;
        self.write(2, &answer.encode()).await
    }

    async fn serve_peer(self, peer: Life, identity: &Identity) {
        let connection = identity.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let (outgoing, mut waiting) = mpsc::channel::<Vec<u8>>(OUTGOING_MAX);
        let Self { mut read, mut write, mut sealing, .. } = self;
        if identity.events.send(LinkEvent::Connected { connection, peer, outgoing }).await.is_err() {
            return;
        }
        let writer = async move {
            let mut batch = Vec::new();
            while let Some(first) = waiting.recv().await {
                // Everything that waits goes in one write.
                for frame in std::iter::once(first).chain(std::iter::from_fn(|| waiting.try_recv().ok())) {
                    let mut record = vec![1];
                    record.extend(frame);
                    batch.extend(sealing.seal(&record));
                }
                if write.write_all(&batch).await.is_err() {
                    return;
                }
                batch.clear();
            }
        };
        let reader = async {
            while let Ok(frames) = read.frames().await {
                if identity.events.send(LinkEvent::Frames { connection, peer, frames }).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! { () = writer => {}, () = reader => {} }
        let _ = identity.events.send(LinkEvent::Disconnected { connection, peer }).await;
    }
}

/// The content of an identification; nothing for a holder of the key without a place.
#[must_use]
pub fn encode_identification(me: Option<&Life>) -> Vec<u8> {
    let Some(life) = me else { return Vec::new() };
    let mut bytes = life.slot.0.to_le_bytes().to_vec();
    bytes.extend_from_slice(&life.boot.0);
    bytes.extend_from_slice(&life.incarnation.0);
    bytes
}

/// Who the other end says that it is; the outer `None`: the bytes are no identification.
#[must_use]
pub fn decode_identification(bytes: &[u8]) -> Option<Option<Life>> {
    if bytes.is_empty() {
        return Some(None);
    }
    let bytes: &[u8; LIFE_BYTES] = bytes.try_into().ok()?;
    let slot = SlotIndex(u16::from_le_bytes([bytes[0], bytes[1]]));
    Some(Some(Life { slot, boot: BootId(bytes[2..18].try_into().ok()?), incarnation: Incarnation(bytes[18..34].try_into().ok()?) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(slot: u16) -> Life {
        let byte = u8::try_from(slot).unwrap() + 1;
        Life { slot: SlotIndex(slot), boot: BootId([byte; 16]), incarnation: Incarnation([byte; 16]) }
    }

    fn free_address() -> String {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        tcp.local_addr().unwrap().to_string()
    }

    async fn start(slot: u16, address: &str, key: &ClusterKey) -> (Links, mpsc::Receiver<LinkEvent>, mpsc::Receiver<Vec<u8>>) {
        let (events, receiver) = mpsc::channel(1000);
        let (datagrams, datagram_receiver) = mpsc::channel(10);
        let links =
            Links::start(&[address.to_owned()], key.clone(), ClusterUuid([1; 16]), life(slot), Duration::from_secs(1), events, datagrams)
                .await
                .unwrap();
        (links, receiver, datagram_receiver)
    }

    fn entry(slot: u16, address: &str) -> NodeEntry {
        NodeEntry { slot: SlotIndex(slot), votes: 1, name: format!("n{slot}"), addresses: vec![address.to_owned()] }
    }

    fn on_runtime(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await.unwrap() });
    }

    #[test]
    fn two_nodes_connect_and_exchange_frames_and_hellos() {
        on_runtime(async {
            let key = ClusterKey::draw().unwrap();
            let (at_a, at_b) = (free_address(), free_address());
            let (mut a, mut from_a, _) = start(0, &at_a, &key).await;
            let (mut b, mut from_b, mut datagrams) = start(1, &at_b, &key).await;
            let nodes = [entry(0, &at_a), entry(1, &at_b)];
            a.follow(&nodes);
            b.follow(&nodes);
            let Some(LinkEvent::Connected { peer, outgoing, .. }) = from_a.recv().await else { panic!("no connection") };
            assert_eq!(peer, life(1));
            outgoing.send(Frame::Resume { stream: 7, of: 0, delivered: 9 }.encode()).await.unwrap();
            let Some(LinkEvent::Connected { peer, outgoing: _keeps_the_connection, .. }) = from_b.recv().await else {
                panic!("no connection")
            };
            assert_eq!(peer, life(0));
            assert!(
                matches!(from_b.recv().await, Some(LinkEvent::Frames { frames, .. }) if frames == [Frame::Resume { stream: 7, of: 0, delivered: 9 }])
            );
            let hello = Hello {
                life: life(0),
                state: deadbolt_disk_format::NodeState::Member,
                view: deadbolt_disk_format::ViewNumber(1),
                recovered: deadbolt_disk_format::ViewNumber(1),
                hears: deadbolt_disk_format::SlotSet::default(),
                is_leaving: false,
            };
            a.say_hello(&hello, &nodes);
            let Some(datagram) = datagrams.recv().await else { panic!("no datagram") };
            assert_eq!(b.open(&datagram), Some(hello));
            assert_eq!(b.open(&datagram), None);
        });
    }

    #[test]
    fn garbage_and_another_key_never_reach_the_loop() {
        on_runtime(async {
            let key = ClusterKey::draw().unwrap();
            let address = free_address();
            let (_links, mut events, mut datagrams) = start(0, &address, &key).await;
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
            assert!(events.try_recv().is_err() && datagrams.try_recv().is_err());
            let answer = tokio::spawn(async move {
                let Some(LinkEvent::Request { message, reply }) = events.recv().await else { panic!("no request") };
                reply.send(NodeMessage::Answer(Ok(()))).unwrap();
                message
            });
            assert_eq!(request(&address, &key, ClusterUuid([1; 16]), &message).await.unwrap(), NodeMessage::Answer(Ok(())));
            assert_eq!(answer.await.unwrap(), message);
        });
    }
}
