//! What: one client's connection on the daemon's side: its socket, its ring if it asked for one, what waits for it.
//! Owns: the order of its frames, what it may leave unread.
//! Invariants: frames come by one way at a time, socket or ring; whoever leaves too much unread is not read from, then closed; nothing that
//!   it does costs more than a bounded piece of a turn.
//! Does not: wait.
//! Called by: the server.

use super::{Common, Peer, RINGS_MAX, ReadyList, SESSIONS_MAX, ServerEvent, Source, TURN_REQUESTS, Watch};
use crate::{
    memory::{futex_wake, ring_bell},
    ring::{Consumer, Producer, Ring, Sleeper, TransportError, WANTS_FRAMES, WANTS_POSTED, WANTS_ROOM},
    transport::{ASK_RING, Backlog, Descriptors, RING_REFUSED},
};
use deadbolt_dlm_core::{
    client::{CLIENT_VERSION, ClientReply, ClientRequest, split_frame},
    mode::LockStatus,
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    net::UnixStream,
};

/// Unread replies beyond which a client is not read from, in bytes.
const BACKLOG_FULL: usize = 64 << 10;
/// Unread replies that end a session, in bytes (chosen: twenty thousand of them).
const BACKLOG_MAX: usize = 1 << 20;
/// Pieces of a socket's bytes read in one look.
const READS_MAX: usize = 4;

/// How a session ends.
#[derive(Debug)]
pub(super) enum End {
    /// The client has gone, or must not be told more.
    Quiet,
    /// The client is told.
    Said(String),
}

impl From<TransportError> for End {
    fn from(error: TransportError) -> Self {
        Self::Said(error.to_string())
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Quiet
    }
}

struct RingSide {
    ring: Ring,
    replies: Producer,
    requests: Consumer,
    bell: AsyncFd<OwnedFd>,
    hearing: Watch,
    client_bell: OwnedFd,
    /// It is looked at on every turn.
    is_awake: bool,
    /// It was told that the loop sleeps.
    is_armed: bool,
    /// Something was taken since the server's clock ticked last.
    is_active: bool,
    /// Somebody was said to wait for a lock of this session.
    is_hinted: bool,
    /// What happened since the client was woken last.
    news: u32,
}

pub(super) struct Session {
    id: u64,
    peer: Peer,
    stream: UnixStream,
    watch: Watch,
    is_in: bool,
    /// It has asked for something after its Hello.
    has_asked: bool,
    /// The beginning of a frame.
    incoming: Vec<u8>,
    outgoing: Backlog,
    /// The client reads nothing any more; what it said before still counts.
    is_deaf: bool,
    ring: Option<Box<RingSide>>,
    is_touched: bool,
}

impl Session {
    pub(super) fn new(id: u64, stream: UnixStream, list: &Arc<ReadyList>) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let peer = Peer { pid: credentials.pid().unwrap_or(0), uid: credentials.uid(), gid: credentials.gid() };
        let watch = Watch::new(Source::Socket(id), list);
        Ok(Self {
            id,
            peer,
            stream,
            watch,
            is_in: false,
            has_asked: false,
            incoming: Vec::new(),
            outgoing: Backlog::default(),
            is_deaf: false,
            ring: None,
            is_touched: false,
        })
    }

    pub(super) fn is_in(&self) -> bool {
        self.is_in
    }

    pub(super) fn is_touched(&self) -> bool {
        self.is_touched
    }

    pub(super) fn is_client_elsewhere(&self) -> bool {
        self.ring.as_ref().is_some_and(|side| side.ring.is_client_elsewhere())
    }

    pub(super) fn has_requests(&self) -> bool {
        self.ring.as_ref().is_some_and(|side| !side.requests.is_empty())
    }

    /// The bell of its ring was rung; true: the ring is looked at from now on.
    pub(super) fn hear_bell(&mut self) -> bool {
        let Some(side) = &mut self.ring else { return false };
        side.hearing.begin();
        // Each ring of the bell is an edge of its own, so its count is never read.
        while let Poll::Ready(Ok(mut guard)) = side.bell.poll_read_ready(&mut side.hearing.context()) {
            guard.clear_ready();
        }
        !std::mem::replace(&mut side.is_awake, true)
    }

    /// Reads and writes the socket as far as it goes.
    pub(super) fn look_at_socket(&mut self, common: &mut Common) -> Result<(), End> {
        self.watch.begin();
        if self.ring.is_none() {
            self.write_socket();
        }
        let mut chunk = std::mem::take(&mut common.chunk);
        let looked = self.read_socket(&mut chunk, common);
        common.chunk = chunk;
        looked
    }

    fn read_socket(&mut self, chunk: &mut [u8], common: &mut Common) -> Result<(), End> {
        for _ in 0..READS_MAX {
            if self.ring.is_none() && self.outgoing.len() > BACKLOG_FULL {
                // Written again when there is room, and read on then.
                return Ok(());
            }
            let mut buffer = ReadBuf::new(chunk);
            match Pin::new(&mut self.stream).poll_read(&mut self.watch.context(), &mut buffer) {
                Poll::Pending => return Ok(()),
                Poll::Ready(read) => read?,
            }
            if buffer.filled().is_empty() {
                // What was said in the ring before the end counts.
                self.drain_ring(common)?;
                return Err(End::Quiet);
            }
            self.feed(buffer.filled(), common)?;
        }
        self.watch.again();
        Ok(())
    }

    fn feed(&mut self, bytes: &[u8], common: &mut Common) -> Result<(), End> {
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut rest = bytes;
        if !incoming.is_empty() {
            incoming.extend_from_slice(bytes);
            rest = &incoming;
        }
        loop {
            match split_frame(rest) {
                Err(error) => return Err(End::Said(error.to_string())),
                Ok(None) => break,
                Ok(Some((body, used))) => {
                    self.take_frame(body, common)?;
                    rest = rest.get(used..).unwrap_or_default();
                }
            }
        }
        self.incoming = rest.to_vec();
        Ok(())
    }

    fn take_frame(&mut self, body: &[u8], common: &mut Common) -> Result<(), End> {
        if self.is_in && body == [ASK_RING] {
            return self.give_ring(common);
        }
        if self.ring.is_some() {
            return Err(End::Said("a session with a ring asks in the ring, not on its socket".into()));
        }
        self.take_request(body, false, common).map(drop)
    }

    /// `may_pass`: if it gives something back it comes before what others ask. True: it did.
    fn take_request(&mut self, body: &[u8], may_pass: bool, common: &mut Common) -> Result<bool, End> {
        let request = ClientRequest::decode(body).map_err(|error| End::Said(error.to_string()))?;
        let is_hello = matches!(request, ClientRequest::Hello { .. });
        if !self.is_in {
            self.let_in(&request, common).map_err(End::Said)?;
        } else if is_hello {
            return Err(End::Said("a second Hello; a session has one".into()));
        }
        self.has_asked |= !is_hello;
        let passes = may_pass && request.is_posted();
        let queue = if passes { &mut common.releases } else { &mut common.events };
        queue.push_back(ServerEvent::Request { session: self.id, request });
        Ok(passes)
    }

    fn let_in(&mut self, hello: &ClientRequest, common: &mut Common) -> Result<(), String> {
        let ClientRequest::Hello { version, is_unprotected } = hello else {
            return Err("the first frame of a connection is a Hello".into());
        };
        if *version != CLIENT_VERSION {
            return Err(format!(
                "the client speaks version {version} of the lock protocol, this node version {CLIENT_VERSION}; use matching packages"
            ));
        }
        if common.open >= SESSIONS_MAX {
            return Err(format!("this node has {SESSIONS_MAX} lock sessions already; end some"));
        }
        (common.hook)(&self.peer, *is_unprotected)?;
        self.is_in = true;
        common.open += 1;
        common.events.push_back(ServerEvent::Opened { session: self.id, pid: self.peer.pid, uid: self.peer.uid });
        Ok(())
    }

    /// A ring is given before the first request, so that no frame can overtake another on the other way.
    fn give_ring(&mut self, common: &mut Common) -> Result<(), End> {
        if self.has_asked || self.ring.is_some() || !self.outgoing.is_empty() {
            return Err(End::Said("a ring is asked for once, after Welcome and before the first request".into()));
        }
        self.has_asked = true;
        match self.make_ring(common) {
            Ok(side) => {
                common.rings += 1;
                self.ring = Some(Box::new(side));
            }
            Err(()) => {
                self.outgoing.push(&[RING_REFUSED]);
                self.is_touched = true;
            }
        }
        Ok(())
    }

    /// Whatever fails here (no descriptors, no memory) leaves the client its socket.
    fn make_ring(&self, common: &Common) -> Result<RingSide, ()> {
        if common.rings >= RINGS_MAX {
            return Err(());
        }
        let (ring, descriptors) = Descriptors::create().map_err(drop)?;
        let bell = descriptors.daemon_bell.try_clone().map_err(drop)?;
        // SAFETY: the descriptor is owned by the AsyncFd, always returns itself and stays open until the AsyncFd is dropped.
        let bell = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE) }.map_err(drop)?;
        let (replies, requests) = ring.daemon_ends();
        let hearing = Watch::new(Source::Bell(self.id), &common.list);
        descriptors.send(self.stream.as_fd()).map_err(drop)?;
        // The loop listens from its first look on.
        hearing.again();
        Ok(RingSide {
            ring,
            replies,
            requests,
            bell,
            hearing,
            client_bell: descriptors.client_bell,
            is_awake: false,
            is_armed: false,
            is_active: false,
            is_hinted: false,
            news: 0,
        })
    }

    /// Takes what the ring has, and gives it what waits for room.
    pub(super) fn look_at_ring(&mut self, common: &mut Common) -> Result<(), End> {
        if let Some(side) = &mut self.ring
            && self.outgoing.move_to(&mut side.replies)?
        {
            side.news |= WANTS_FRAMES;
            self.is_touched = true;
        }
        if self.outgoing.len() > BACKLOG_FULL { Ok(()) } else { self.drain_ring(common) }
    }

    fn drain_ring(&mut self, common: &mut Common) -> Result<(), End> {
        let mut frame = std::mem::take(&mut common.frame);
        let drained = self.take_requests(&mut frame, common);
        common.frame = frame;
        if let Some(side) = &mut self.ring
            && drained?
        {
            side.requests.release();
            side.news |= WANTS_ROOM;
            side.is_active = true;
            self.is_touched = true;
            if std::mem::take(&mut side.is_armed) {
                // The loop is not asleep. Nothing hangs on when the client sees that: the ring is looked at again before the loop sleeps.
                side.ring.word(Sleeper::Daemon).store(0, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn take_requests(&mut self, frame: &mut Vec<u8>, common: &mut Common) -> Result<bool, End> {
        let (mut count, mut may_pass) = (0, common.is_fresh);
        while count < TURN_REQUESTS
            && let Some(side) = &mut self.ring
            && side.requests.take(frame)?
        {
            count += 1;
            may_pass = self.take_request(frame, may_pass, common)?;
        }
        if let Some(side) = &mut self.ring {
            side.is_hinted &= count == 0;
        }
        Ok(count > 0)
    }

    /// Puts a reply where the client finds it. `is_hint`: it says that somebody waits for a lock of this session.
    pub(super) fn reply(&mut self, body: &[u8], is_hint: bool) -> Result<(), End> {
        self.is_touched = true;
        if let Some(side) = &mut self.ring {
            side.is_hinted |= is_hint;
            if self.outgoing.is_empty() && side.replies.push(body)? {
                side.news |= WANTS_FRAMES;
                return Ok(());
            }
            if !side.is_awake {
                // The loop sleeps again only after it has asked for room.
                side.hearing.again();
            }
        }
        if self.is_deaf {
            return Ok(());
        }
        self.outgoing.push(body);
        if self.outgoing.len() > BACKLOG_MAX {
            return Err(End::Said("the client does not read its replies".into()));
        }
        Ok(())
    }

    /// Sends what the socket takes, or wakes the client of a ring, once.
    pub(super) fn flush(&mut self) {
        self.is_touched = false;
        let Some(side) = &mut self.ring else {
            self.write_socket();
            return;
        };
        let news = std::mem::take(&mut side.news);
        if side.ring.rouse(Sleeper::Reader, news) {
            futex_wake(side.ring.word(Sleeper::Reader));
        } else if side.ring.rouse(Sleeper::Bell, news) {
            ring_bell(&side.client_bell);
        }
    }

    fn write_socket(&mut self) {
        let was_full = self.outgoing.len() > BACKLOG_FULL;
        while !self.outgoing.is_empty() {
            match Pin::new(&mut self.stream).poll_write(&mut self.watch.context(), self.outgoing.waiting()) {
                Poll::Pending => break,
                Poll::Ready(Ok(bytes)) => self.outgoing.advance(bytes),
                Poll::Ready(Err(_)) => {
                    self.is_deaf = true;
                    self.outgoing = Backlog::default();
                }
            }
        }
        if was_full && self.outgoing.len() <= BACKLOG_FULL {
            self.watch.again();
        }
    }

    /// The server's clock ticked: was the ring idle since the last time?
    pub(super) fn is_idle_at_tick(&mut self) -> bool {
        self.ring.as_mut().is_none_or(|side| !std::mem::take(&mut side.is_active))
    }

    /// Tells the ring that the loop sleeps, unless there is something to do: then false. A ring that is looked at again at the next tick
    /// need not ring for what is only posted, where nobody is known to wait for it.
    pub(super) fn sleep(&mut self, looks_again: bool) -> Result<bool, End> {
        let Some(side) = &mut self.ring else { return Ok(true) };
        let reads = self.outgoing.len() <= BACKLOG_FULL;
        let mut wants = 0;
        if reads {
            wants |= WANTS_FRAMES;
            if !looks_again || side.is_hinted {
                wants |= WANTS_POSTED;
            }
        }
        if !self.outgoing.is_empty() {
            wants |= WANTS_ROOM;
        }
        side.ring.arm(Sleeper::Daemon, wants);
        side.is_armed = true;
        if (reads && !side.requests.is_empty()) || self.outgoing.could_move(&mut side.replies)? {
            return Ok(false);
        }
        side.is_awake = looks_again;
        Ok(true)
    }

    /// Closes; what waits for the client and why it ends go out as far as the socket takes them.
    pub(super) fn close(mut self, end: End, common: &mut Common) {
        let fault = if let End::Said(reason) = &end { Some(reason.clone()) } else { None };
        if let End::Said(reason) = end {
            let last = if self.ring.is_some() {
                // What waits was meant for the ring.
                self.outgoing = Backlog::default();
                ClientReply::Lost { reason }
            } else {
                ClientReply::Refused { serial: 0, status: LockStatus::Invalid, reason }
            };
            self.outgoing.push(&last.encode());
            self.write_socket();
        }
        if self.is_in {
            common.open -= 1;
            common.events.push_back(ServerEvent::Closed { session: self.id, pid: self.peer.pid, fault });
        }
        if self.ring.is_some() {
            common.rings -= 1;
        }
    }
}
