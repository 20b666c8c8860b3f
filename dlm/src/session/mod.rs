//! What: one session with the node, for both client libraries: its socket, its ring, who reads what comes.
//! Owns: the order of the locks below, the thread that listens when no caller does.
//! Invariants: replies are taken by one thread at a time; a caller that waits takes its own answer, with no thread between; whoever stops
//!   reading leaves nothing behind unseen; a forked child touches nothing of its parent's session.
//! Does not: retry or reconnect: the program must know that its locks were lost.
//! Called by: `blocking`, `client`.
//!
//! Locks: `sending`, then `state`; never the other way. Locks that nobody wants are given back with neither held.

mod open;
mod wait;

use crate::{
    memory::{Process, futex_wake, is_readable, ring_bell},
    ring::{Consumer, Producer, Ring, Sleeper, TransportError, WANTS_FRAMES, WANTS_POSTED, WANTS_ROOM},
    routing::{Cancel, ClientError, HintSink, Reply, Routing},
    transport::Backlog,
};
use deadbolt_dlm_core::{
    ClientReply, ClientRequest, Flags,
    client::{FRAME_BYTES_MAX, Lvb, split_frame},
};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};
use std::{
    collections::BTreeMap,
    fmt,
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Poll, Waker},
    thread::Thread,
};
use tokio::sync::Notify;

/// How a session speaks with the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// Rings in shared memory; the socket where the node has none left.
    #[default]
    Ring,
    /// The socket alone.
    Socket,
}

/// Who takes the replies.
enum Style {
    /// Callers that wait; or a thread of the session.
    Callers,
    /// A task of an async runtime; notified when something waits to be sent.
    Task(Notify),
}

struct RingSide {
    ring: Ring,
    daemon_bell: OwnedFd,
    client_bell: OwnedFd,
}

#[derive(Default)]
struct Sending {
    producer: Option<Producer>,
    backlog: Backlog,
    /// The request on its way into the ring.
    frame: Vec<u8>,
}

#[derive(Default)]
struct State {
    routing: Routing,
    consumer: Option<Consumer>,
    /// A reply copied out of the ring.
    frame: Vec<u8>,
    /// The beginning of a frame from the socket.
    incoming: Vec<u8>,
    /// A thread reads; the others that wait are followers.
    has_reader: bool,
    followers: BTreeMap<u64, Thread>,
    /// A thread of the session listens to socket and bell.
    has_listener: bool,
}

/// See the module's head.
pub(crate) struct Session {
    process: Process,
    pid: u32,
    stream: UnixStream,
    ring: Option<RingSide>,
    style: Style,
    sending: Mutex<Sending>,
    state: Mutex<State>,
    is_over: AtomicBool,
    /// How long a caller watches the ring before it sleeps, in ns.
    watch_ns: AtomicU32,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = self.lost();
        f.debug_struct("Session").field("has_ring", &self.ring.is_some()).field("lost", &lost).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    fn check_process(&self) -> Result<(), ClientError> {
        if self.process.is_this() { Ok(()) } else { Err(ClientError::Forked { pid: self.pid }) }
    }

    /// Is this the session's process, and does the session stand as far as is known?
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        self.check_process()?;
        if self.is_over() {
            return Err(ClientError::Lost { reason: self.lost().unwrap_or_default() });
        }
        Ok(())
    }

    /// Sends a request; gives its number. True: the daemon slept and was woken.
    pub(crate) fn begin(self: &Arc<Self>, make: impl FnOnce(u64) -> ClientRequest) -> Result<(u64, bool), ClientError> {
        self.check_process()?;
        let sending = lock(&self.sending);
        let (serial, request) = self.state().routing.begin(make)?;
        Ok((serial, self.send(sending, &request)))
    }

    /// Sends a request whose answer nobody waits for.
    pub(crate) fn post(self: &Arc<Self>, make: impl FnOnce(u64) -> ClientRequest) {
        if self.process.is_this() {
            let sending = lock(&self.sending);
            let request = self.state().routing.post(make);
            if let Some(request) = request {
                self.send(sending, &request);
            }
        }
    }

    /// Gives a lock back without waiting.
    pub(crate) fn release(self: &Arc<Self>, lock: u32, flags: Flags, lvb: Option<Lvb>) {
        if self.process.is_this() {
            let sending = self::lock(&self.sending);
            let request = self.state().routing.release(lock, flags, lvb);
            if let Some(request) = request {
                self.send(sending, &request);
            }
        }
    }

    /// Nobody waits for this answer any more: a request that may wait is cancelled, and what it brought is given back.
    pub(crate) fn abandon(self: &Arc<Self>, request: u64) {
        if self.process.is_this() {
            let mut state = self.state();
            let cancel = state.routing.abandon(request);
            self.give_back(state);
            if cancel != Cancel::Nothing {
                // Whoever called may never call again, and a lock that the answer brings has to go back all the same.
                self.start_listener();
            }
            match cancel {
                Cancel::Nothing => {}
                Cancel::Request => self.post(|serial| ClientRequest::CancelRequest { serial, request }),
                Cancel::Conversion(lock) => self.post(|serial| ClientRequest::Cancel { serial, lock }),
            }
        }
    }

    /// Unlocks what was granted to nobody. Consumes the guard: sending must not happen under it.
    fn give_back(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let leftovers = state.routing.take_leftovers();
        drop(state);
        for lock in leftovers {
            self.release(lock, Flags::NONE, None);
        }
    }

    /// The answer, or who is to be woken when it comes.
    pub(crate) fn poll(&self, serial: u64, waker: &Waker) -> Poll<Reply> {
        if let Err(error) = self.check_process() {
            return Poll::Ready(Err(error));
        }
        let mut state = self.state();
        self.drain(&mut state);
        state.routing.poll(serial, waker)
    }

    /// From here on hints for a lock go there, also those that came before.
    pub(crate) fn listen(&self, lock: u32, sink: HintSink) {
        if self.process.is_this() {
            self.state().routing.listen(lock, sink);
        }
    }

    /// Hints for this lock are of no interest any more.
    pub(crate) fn forget(&self, lock: u32) {
        if self.process.is_this() {
            self.state().routing.forget(lock);
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Why the session is over; none while it stands.
    pub(crate) fn lost(&self) -> Option<String> {
        if !self.process.is_this() {
            return Some(ClientError::Forked { pid: self.pid }.to_string());
        }
        let mut state = self.state();
        if state.routing.lost().is_none() && !state.has_listener && is_readable(self.stream.as_fd()) {
            self.read_socket(&mut state);
        }
        state.routing.lost().map(str::to_owned)
    }

    /// Closes the connection: the node gives back everything.
    pub(crate) fn close(&self) {
        if self.process.is_this() {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }

    /// True: the daemon slept and was woken.
    fn send(self: &Arc<Self>, mut sending: MutexGuard<'_, Sending>, request: &ClientRequest) -> bool {
        let Sending { producer, backlog, frame } = &mut *sending;
        frame.clear();
        request.encode_into(frame);
        let is_sent = match producer {
            Some(producer) if backlog.is_empty() => producer.push(frame),
            _ => Ok(false),
        };
        match is_sent {
            Ok(true) => drop(sending),
            Ok(false) => {
                backlog.push(frame);
                self.send_backlog(sending);
            }
            Err(error) => self.end(&error.to_string()),
        }
        let news = if request.is_posted() { WANTS_POSTED } else { WANTS_FRAMES };
        self.ring.as_ref().is_some_and(|side| {
            let is_woken = side.ring.rouse(Sleeper::Daemon, news);
            if is_woken {
                ring_bell(&side.daemon_bell);
            }
            is_woken
        })
    }

    fn send_backlog(self: &Arc<Self>, mut sending: MutexGuard<'_, Sending>) {
        self.move_backlog(&mut sending);
        if !sending.backlog.is_empty() {
            match &self.style {
                Style::Callers => self.wait_for_room(&mut sending),
                Style::Task(notify) => notify.notify_one(),
            }
        }
    }

    /// Moves what waits into the ring or the socket, as far as there is room. A session that is over takes everything.
    fn move_backlog(&self, sending: &mut Sending) {
        let Sending { producer, backlog, .. } = sending;
        let moved = match producer {
            Some(producer) => backlog.move_to(producer).map(|_| ()),
            None => self.write_socket(backlog),
        };
        if let Err(error) = moved {
            self.end(&error.to_string());
        }
        if self.is_over() {
            *backlog = Backlog::default();
        }
    }

    fn write_socket(&self, backlog: &mut Backlog) -> Result<(), TransportError> {
        while !backlog.is_empty() {
            match send(self.stream.as_raw_fd(), backlog.waiting(), MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Ok(bytes) => backlog.advance(bytes),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(TransportError::System { call: "send", source: errno.into() }),
            }
        }
        Ok(())
    }

    /// Takes every reply that the ring has.
    fn drain(&self, state: &mut State) {
        let (Some(side), Some(mut consumer)) = (&self.ring, state.consumer.take()) else { return };
        let mut frame = std::mem::take(&mut state.frame);
        let mut has_taken = false;
        let ended = loop {
            match consumer.take(&mut frame) {
                Ok(false) => break None,
                Ok(true) => has_taken = true,
                Err(error) => break Some(error.to_string()),
            }
            if let Err(reason) = self.handle(state, &frame) {
                break Some(reason);
            }
        };
        if has_taken {
            consumer.release();
            if side.ring.rouse(Sleeper::Daemon, WANTS_ROOM) {
                ring_bell(&side.daemon_bell);
            }
        }
        (state.consumer, state.frame) = (Some(consumer), frame);
        if let Some(reason) = ended {
            self.end_state(state, &reason);
        }
    }

    /// Takes what the socket has: replies, or (beside a ring) the reason of the end.
    fn read_socket(&self, state: &mut State) {
        let mut chunk = [0; FRAME_BYTES_MAX];
        let ended = loop {
            match recv(self.stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => break "the daemon closed the connection".to_owned(),
                Ok(length) => {
                    let mut incoming = std::mem::take(&mut state.incoming);
                    incoming.extend_from_slice(chunk.get(..length).unwrap_or_default());
                    let fed = self.feed(state, &incoming);
                    match fed {
                        Ok(used) => {
                            incoming.drain(..used);
                            state.incoming = incoming;
                        }
                        Err(reason) => break reason,
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(errno) => break errno.to_string(),
            }
        };
        self.end_state(state, &ended);
    }

    fn feed(&self, state: &mut State, bytes: &[u8]) -> Result<usize, String> {
        let mut used = 0;
        while let Some((body, length)) = split_frame(bytes.get(used..).unwrap_or_default()).map_err(|error| error.to_string())? {
            self.handle(state, body)?;
            used += length;
        }
        Ok(used)
    }

    fn handle(&self, state: &mut State, body: &[u8]) -> Result<(), String> {
        let reply = ClientReply::decode(body).map_err(|error| error.to_string())?;
        if let Some(serial) = state.routing.handle(reply)
            && let Some(follower) = state.followers.get(&serial)
        {
            follower.unpark();
        }
        if state.routing.lost().is_some() {
            self.wake_all(state);
        }
        Ok(())
    }

    fn end(&self, reason: &str) {
        self.end_state(&mut self.state(), reason);
    }

    fn end_state(&self, state: &mut State, reason: &str) {
        state.routing.end(reason);
        self.wake_all(state);
    }

    /// The session is over: whoever sleeps anywhere in it gets up.
    fn wake_all(&self, state: &State) {
        self.is_over.store(true, Ordering::Release);
        state.followers.values().for_each(Thread::unpark);
        if let Some(side) = &self.ring
            && side.ring.rouse(Sleeper::Reader, WANTS_FRAMES | WANTS_ROOM)
        {
            futex_wake(side.ring.word(Sleeper::Reader));
        }
    }
}

/// Closes the connection with the last user of a session; the listener has a share of its own.
pub(crate) struct Owner(pub(crate) Arc<Session>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}
