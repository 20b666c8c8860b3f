//! What: one connection: its handshake, its sealed records, what is read from it and written to it.
//! Owns: the socket options of a stream, the limits of what is read before and after the other end has shown the key.
//! Invariants: only sealed frames of a holder of the key reach the loop; who does not show the key is waited for no longer than a handshake.
//! Does not: decide when and where to connect, nor order or repeat messages (the channel does).
//! Called by: the links and their callers. docs/formats/node-messages.md draws the handshake.

use super::{
    HANDSHAKE, Identity, LinkEvent,
    refused::{self, Channel},
};
use crate::seal::{ClusterKey, End, MAGIC, RECORD_BYTES_MAX, Refusal, StreamHalf, stream_halves};
use deadbolt_cluster_core::{channel::Frame, hello::NodeMessage};
use deadbolt_disk_format::{BootId, ClusterUuid, Incarnation, Life, SlotIndex};
use std::{io, net::SocketAddr, sync::atomic::Ordering, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
};

/// Silence on a connection after which it is probed, and between probes; the shortest that the kernel takes.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// Longest sealed record before the other end has shown that it holds the key: kind, identification and tag.
pub(super) const FIRST_RECORD_BYTES_MAX: usize = 1 + LIFE_BYTES + 16;
/// An identification: slot, boot, incarnation.
const LIFE_BYTES: usize = 34;
/// What one read of a connection takes at most.
const READ_BYTES: usize = 64 << 10;
/// Frames that are given to the loop at once at most.
const FRAMES_MAX: usize = 256;
/// Messages of one connection that may wait for the socket.
const OUTGOING_MAX: usize = 65_536;

/// Calls an address from an own one.
pub(super) async fn call(from: Option<SocketAddr>, to: SocketAddr, identity: &Identity, me: Option<Life>) -> io::Result<Session> {
    let socket = if to.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    if let Some(own) = from {
        socket.bind(SocketAddr::new(own.ip(), 0))?;
    }
    Session::open(socket.connect(to).await?, End::Caller, identity, me).await
}

/// Asks a node for something on behalf of a holder of the key that has no place yet.
///
/// # Errors
/// No connection, another key, or no answer in time.
pub async fn request(address: &str, key: &ClusterKey, cluster: ClusterUuid, message: &NodeMessage) -> io::Result<NodeMessage> {
    let nobody = Life { slot: SlotIndex::NONE, boot: BootId::NONE, incarnation: Incarnation::NONE };
    let (events, _) = mpsc::channel(1);
    let identity = Identity::new(key.clone(), cluster, nobody, HANDSHAKE, events);
    let to: SocketAddr = address.parse().map_err(|_| io::Error::other("not of the form ip:port"))?;
    let ask = async {
        let mut session = call(None, to, &identity, None).await?;
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
pub(super) struct Session {
    from: SocketAddr,
    read: Reading,
    write: OwnedWriteHalf,
    sealing: StreamHalf,
    /// None: a holder of the key without a place.
    pub(super) peer: Option<Life>,
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
        usize::try_from(length).ok().filter(|length| *length <= self.most).ok_or_else(|| io::Error::other(Refusal::Foreign))
    }

    fn opened(&mut self, sealed: &[u8]) -> io::Result<(u8, Vec<u8>)> {
        let mut payload = self.opening.open(sealed).ok_or_else(|| io::Error::other(Refusal::Forged))?;
        if payload.is_empty() {
            return Err(io::Error::other(Refusal::Malformed));
        }
        let kind = payload.remove(0);
        Ok((kind, payload))
    }

    /// Waits for frames; all that have come.
    async fn frames(&mut self) -> io::Result<Vec<Frame>> {
        let decode = |(kind, payload): (u8, Vec<u8>)| {
            Frame::decode(&payload).filter(|_| kind == 1).ok_or_else(|| io::Error::other(Refusal::Malformed))
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
    /// The handshake of either end.
    pub(super) async fn open(stream: TcpStream, end: End, identity: &Identity, me: Option<Life>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let from = stream.peer_addr()?;
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
        let (mut magic, mut theirs) = ([0; 4], [0; 16]);
        reading.read_exact(&mut magic).await?;
        if magic != MAGIC {
            return Err(io::Error::other(Refusal::Foreign));
        }
        reading.read_exact(&mut theirs).await?;
        let (caller, callee) = if end == End::Caller { (own, theirs) } else { (theirs, own) };
        let (sealing, opening) = stream_halves(&identity.key, identity.cluster, end, &caller, &callee);
        let read = Reading { stream: BufReader::with_capacity(READ_BYTES, reading), opening, most: FIRST_RECORD_BYTES_MAX };
        let mut session = Self { from, read, write: writing, sealing, peer: None };
        session.write(0, &encode_identification(me.as_ref())).await?;
        let (kind, payload) = session.read.record().await?;
        let identified = decode_identification(&payload).filter(|_| kind == 0);
        session.peer = identified.ok_or_else(|| io::Error::other(Refusal::Malformed))?;
        session.read.most = RECORD_BYTES_MAX;
        Ok(session)
    }

    async fn write(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let mut record = vec![kind];
        record.extend_from_slice(payload);
        let sealed = self.sealing.seal(&record);
        self.write.write_all(&sealed).await
    }

    /// Passes on what comes and goes until the connection ends.
    pub(super) async fn serve(self, identity: &Identity, link: u8) {
        match self.peer {
            Some(peer) => self.serve_peer(peer, identity, link).await,
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

    async fn serve_peer(self, peer: Life, identity: &Identity, link: u8) {
        let connection = identity.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let (outgoing, mut waiting) = mpsc::channel::<Vec<u8>>(OUTGOING_MAX);
        let Self { from, mut read, mut write, mut sealing, .. } = self;
        if identity.events.send(LinkEvent::Connected { connection, peer, link, outgoing }).await.is_err() {
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
            loop {
                match read.frames().await {
                    Ok(frames) => {
                        if identity.events.send(LinkEvent::Frames { connection, peer, frames }).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => return identity.refused.note(Channel::Connection, refused::reason(&error), from),
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
