//! What: the server half of the lock socket.
//! Owns: the listening socket, one task per connection, the numbering of sessions.
//! Invariants: a connection's first frame is a Hello that the accept hook let pass; garbage, an unread backlog or a second Hello closes
//!   that connection and no other.
//! Does not: answer anything but refused connections.
//! Called by: the daemon's loop, which puts requests to the lock service and hands its replies back.

use deadbolt_dlm_core::client::{CLIENT_VERSION, ClientReply, ClientRequest, FRAME_BYTES_MAX, frame, split_frame};
use deadbolt_dlm_core::mode::LockStatus;
use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
};

/// Sessions at once; more are refused with a word.
pub const SESSIONS_MAX: usize = 4096;
/// Replies that may wait for a client; one that reads nothing loses its session.
const BACKLOG_MAX: usize = 4096;
/// Requests that may wait for the loop, over all sessions.
const REQUESTS_MAX: usize = 4096;
/// Connections that have not said Hello; more wait to be accepted (chosen: far more than honest clients that start at one moment).
const STRANGERS_MAX: usize = 256;
/// Time for the first frame.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// Who is at the other end, as the kernel says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Process number in this process's namespace; 0: not visible from here.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Lets a client in or says why not; told whether the client says that it is unprotected.
pub type AcceptHook = Box<dyn Fn(&Peer, bool) -> Result<(), String> + Send + Sync>;

/// What the socket tells the loop.
#[derive(Debug)]
pub enum ServerEvent {
    /// A client is in.
    Opened {
        /// Number of its session; never used again.
        session: u64,
        /// Its process.
        pid: i32,
        /// Its user.
        uid: u32,
    },
    /// It asks; the first request is its Hello.
    Request {
        /// Whose.
        session: u64,
        /// What.
        request: ClientRequest,
    },
    /// It is gone, and with it everything it held.
    Closed {
        /// Whose.
        session: u64,
    },
}

type Outgoing = Arc<Mutex<BTreeMap<u64, mpsc::Sender<Vec<u8>>>>>;

/// The listening socket; dropping it closes every session.
#[derive(Debug)]
pub struct Server {
    outgoing: Outgoing,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

struct Shared {
    outgoing: Outgoing,
    events: mpsc::Sender<ServerEvent>,
    hook: AcceptHook,
    next: AtomicU64,
}

impl Server {
    /// Listens at `path`, for the owner and one group. Needs a tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(path: &Path, group: Option<u32>, hook: AcceptHook) -> io::Result<(Self, mpsc::Receiver<ServerEvent>)> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group))?;
        }
        let outgoing = Outgoing::default();
        let (events, receiver) = mpsc::channel(REQUESTS_MAX);
        let shared = Arc::new(Shared { outgoing: outgoing.clone(), events, hook, next: AtomicU64::new(1) });
        let task = tokio::spawn(accept(listener, shared));
        Ok((Self { outgoing, task }, receiver))
    }

    /// Hands a reply to its session; a session with a full backlog is closed.
    pub fn reply(&self, session: u64, reply: &ClientReply) {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_lost = outgoing.get(&session).is_some_and(|sender| sender.try_send(frame(&reply.encode())).is_err());
        if is_lost {
            outgoing.remove(&session);
        }
    }

    /// Sessions open now.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    let mut sessions = tokio::task::JoinSet::new();
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    // Never closed: the loop ends with its task.
    while let Ok(stranger) = strangers.clone().acquire_owned().await {
        while sessions.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                sessions.spawn(async move {
                    let _ = serve(stream, stranger, &shared).await;
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(stream: UnixStream, stranger: OwnedSemaphorePermit, shared: &Shared) -> io::Result<()> {
    let credentials = stream.peer_cred()?;
    let peer = Peer { pid: credentials.pid().unwrap_or(0), uid: credentials.uid(), gid: credentials.gid() };
    let (reading, mut writing) = stream.into_split();
    let mut frames = Frames { reading, buffer: Vec::new() };
    let first = tokio::time::timeout(HELLO_PATIENCE, frames.next()).await.unwrap_or(Ok(None))?;
    let Some(hello) = first else { return Ok(()) };
    if let Err(reason) = check_hello(&hello, &peer, shared) {
        let refusal = ClientReply::Refused { serial: 0, status: LockStatus::Invalid, reason };
        return writing.write_all(&frame(&refusal.encode())).await;
    }
    drop(stranger);
    let session = shared.next.fetch_add(1, Ordering::Relaxed);
    let (sender, waiting) = mpsc::channel(BACKLOG_MAX);
    shared.outgoing.lock().unwrap_or_else(PoisonError::into_inner).insert(session, sender);
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    shared.events.send(ServerEvent::Opened { session, pid: peer.pid, uid: peer.uid }).await.map_err(gone)?;
    shared.events.send(ServerEvent::Request { session, request: hello }).await.map_err(gone)?;
    let reader = async {
        while let Ok(Some(request)) = frames.next().await {
            let is_second_hello = matches!(request, ClientRequest::Hello { .. });
            if is_second_hello || shared.events.send(ServerEvent::Request { session, request }).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = write_all(waiting, writing) => {}, () = reader => {} }
    shared.outgoing.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
    shared.events.send(ServerEvent::Closed { session }).await.map_err(gone)
}

fn check_hello(hello: &ClientRequest, peer: &Peer, shared: &Shared) -> Result<(), String> {
    let ClientRequest::Hello { version, is_unprotected } = hello else {
        return Err("the first frame of a connection is a Hello".into());
    };
    if *version != CLIENT_VERSION {
        return Err(format!(
            "the client speaks version {version} of the lock protocol, this node version {CLIENT_VERSION}; use matching packages"
        ));
    }
    if shared.outgoing.lock().unwrap_or_else(PoisonError::into_inner).len() >= SESSIONS_MAX {
        return Err(format!("this node has {SESSIONS_MAX} lock sessions already; end some"));
    }
    (shared.hook)(peer, *is_unprotected)
}

/// Everything that waits goes in one write.
async fn write_all(mut waiting: mpsc::Receiver<Vec<u8>>, mut writing: OwnedWriteHalf) {
    while let Some(mut batch) = waiting.recv().await {
        while let Ok(more) = waiting.try_recv() {
            batch.extend(more);
        }
        if writing.write_all(&batch).await.is_err() {
            return;
        }
    }
}

struct Frames {
    reading: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Frames {
    /// The next request; none at the end of the connection.
    async fn next(&mut self) -> io::Result<Option<ClientRequest>> {
        loop {
            let bad = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            if let Some((bytes, used)) = split_frame(&self.buffer).map_err(bad)? {
                let request = ClientRequest::decode(bytes).map_err(bad)?;
                self.buffer.drain(..used);
                return Ok(Some(request));
            }
            self.buffer.reserve(FRAME_BYTES_MAX);
            if self.reading.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}
