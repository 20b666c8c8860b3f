//! What: the async client of the lock service, on tokio.
//! Owns: sessions, lockspaces and guards as a program sees them; the task that reads.
//! Invariants: as the blocking client; a future that is dropped before it ended takes its request back, and what it brought is given back.
//! Does not: retry or reconnect.
//! Called by: programs of users.
//!
//! ```no_run
//! use deadbolt_dlm::{client::{Client, Wishes}, Mode};
//! # async fn example() -> Result<(), deadbolt_dlm::client::ClientError> {
//! let client = Client::connect("/var/lib/deadbolt/lock.sock", Default::default()).await?;
//! let space = client.join(b"my-programs").await?;
//! let wishes = Wishes::default();
//! tokio::select! {
//!     guard = space.lock(b"the-file", Mode::Ex, &wishes) => {
//!         let mut guard = guard?;
//!         println!("token {}", guard.token());
//!         if let Some(mode) = guard.blocked().await {
//!             println!("somebody wants {mode:?}");
//!         }
//!     }
//!     // The other branch is dropped: its request is cancelled.
//!     () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
//! }
//! # Ok(()) }
//! ```

mod ranges;

pub use crate::{
    answers::{Completion, Queried},
    blocking::{Protection, Wishes},
    routing::ClientError,
    session::Transport,
};
use crate::{
    answers::{completion, expect, lockspace_name, many, many_items, may_unlock, not_granted, queried, resource_name, timeout_ms},
    routing::Reply,
    session::{Owner, Session},
};
use deadbolt_dlm_core::{
    ClientReply, ClientRequest, Flags, LockStatus, Mode, Token,
    client::Lvb,
    legal::{check_convert, check_lock},
};
use std::{
    fmt, io,
    os::fd::OwnedFd,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    task::JoinHandle,
};

/// Ends the reading task and the session with its last user.
struct Shared {
    owner: Owner,
    task: JoinHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A session. Clones share it; it ends with the last clone, its lockspaces and guards.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.session().fmt(f)
    }
}

impl Client {
    /// Connects to a node's lock socket, and asks for a ring.
    ///
    /// # Errors
    /// No daemon, another version, or the node refuses this process.
    pub async fn connect(path: impl AsRef<Path>, protection: Protection) -> Result<Self, ClientError> {
        Self::connect_over(path, protection, Transport::Ring).await
    }

    /// Connects to a node's lock socket.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_over(path: impl AsRef<Path>, protection: Protection, transport: Transport) -> Result<Self, ClientError> {
        let path = path.as_ref().to_owned();
        let failed = {
            let path = path.display().to_string();
            move |reason: String| ClientError::Connect { path, reason }
        };
        // A few round trips with the node, which may be busy: not on this thread.
        let opened = tokio::task::spawn_blocking(move || Session::open(&path, protection, transport, true)).await;
        let session = match opened {
            Ok(session) => Arc::new(session?),
            Err(error) => return Err(failed(error.to_string())),
        };
        let owner = Owner(session.clone());
        let sources = Sources::new(&session).map_err(|error| failed(error.to_string()))?;
        let task = tokio::spawn(read_all(session, sources));
        Ok(Self { shared: Arc::new(Shared { owner, task }) })
    }

    fn session(&self) -> &Arc<Session> {
        &self.shared.owner.0
    }

    fn begin(&self, make: impl FnOnce(u64) -> ClientRequest) -> Result<Answer, ClientError> {
        let (serial, _) = self.session().begin(make)?;
        Ok(Answer { session: self.session().clone(), serial, is_over: false })
    }

    /// Uses a lockspace: 1 to 64 bytes, the same on every node.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub async fn join(&self, name: &[u8]) -> Result<Lockspace, ClientError> {
        let name = lockspace_name(name)?;
        match self.begin(|serial| ClientRequest::JoinLockspace { serial, name })?.await? {
            ClientReply::Joined { lockspace, .. } => Ok(Lockspace { client: self.clone(), number: lockspace }),
            _ => Err(ClientError::Unexpected { to: "JoinLockspace" }),
        }
    }

    /// Why the session is over; none while it stands.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.session().lost()
    }
}

/// What the reading task waits on.
struct Sources {
    socket: AsyncFd<OwnedFd>,
    bell: Option<AsyncFd<OwnedFd>>,
}

impl Sources {
    fn new(session: &Session) -> io::Result<Self> {
        let (socket, bell) = session.descriptors()?;
        // SAFETY: the descriptor is owned by the AsyncFd, always returns itself and stays open until the AsyncFd is dropped.
        let socket = unsafe { AsyncFd::register(socket)? };
        // SAFETY: as above.
        let bell = bell.map(|bell| unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE) }).transpose()?;
        Ok(Self { socket, bell })
    }

    async fn ring(&self) {
        match &self.bell {
            // Each ring of the bell is an edge of its own, so its count is never read.
            Some(bell) => {
                let _ = bell.readable().await.map(|mut ready| ready.clear_ready());
            }
            None => std::future::pending().await,
        }
    }
}

async fn read_all(session: Arc<Session>, sources: Sources) {
    let mut has_heard = true;
    while !session.is_over() {
        let is_full = session.turn(has_heard);
        let wanted = if is_full { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        has_heard = tokio::select! {
            ready = sources.socket.ready(wanted) => {
                let _ = ready.map(|mut ready| ready.clear_ready());
                true
            }
            () = sources.ring() => false,
            () = session.has_backlog() => false,
        };
    }
}

/// The answer to come. Dropped before, it takes the request back.
struct Answer {
    session: Arc<Session>,
    serial: u64,
    is_over: bool,
}

impl Future for Answer {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        let answer = self.session.poll(self.serial, context.waker());
        self.is_over = answer.is_ready();
        answer
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.is_over {
            self.session.abandon(self.serial);
        }
    }
}

/// A lockspace that this session uses.
#[derive(Clone, Debug)]
pub struct Lockspace {
    client: Client,
    number: u32,
}

impl Lockspace {
    /// Takes a lock and waits for it. Dropping the future cancels the request.
    ///
    /// # Errors
    /// Not granted in time, refused, or the session is over.
    pub async fn lock(&self, resource: &[u8], mode: Mode, wishes: &Wishes) -> Result<Guard, ClientError> {
        let (lockspace, resource, timeout_ms) = (self.number, resource_name(resource)?, timeout_ms(wishes.timeout));
        let Wishes { flags, lvb, owner, .. } = *wishes;
        let make = |serial| ClientRequest::Lock { serial, lockspace, resource, mode, flags, owner, timeout_ms, lvb };
        let done = completion(self.client.begin(make)?.await?, "Lock")?;
        match done.status {
            LockStatus::Success => Ok(Guard::of(&self.client, done)),
            status => Err(not_granted(status, || check_lock(mode, flags))),
        }
    }

    /// Takes a lock if it is free now; none: it is not.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub async fn try_lock(&self, resource: &[u8], mode: Mode) -> Result<Option<Guard>, ClientError> {
        match self.lock(resource, mode, &Wishes::at_once()).await {
            Ok(guard) => Ok(Some(guard)),
            Err(ClientError::NotGranted(LockStatus::Again)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Lockspace {
    /// Takes several locks, all or none, as the blocking client does. Dropping the future cancels the request.
    ///
    /// # Errors
    /// Not all granted in time (then none is), refused, or the session is over.
    pub async fn lock_many(&self, items: &[(&[u8], Mode)], wishes: &Wishes) -> Result<Vec<Guard>, ClientError> {
        let (lockspace, timeout_ms) = (self.number, timeout_ms(wishes.timeout));
        let Wishes { flags, owner, .. } = *wishes;
        let modes: Vec<Mode> = items.iter().map(|(_, mode)| *mode).collect();
        let items = many_items(items)?;
        let make = |serial| ClientRequest::LockMany { serial, lockspace, items, flags, owner, timeout_ms };
        let granted = many(self.client.begin(make)?.await?, &modes)?;
        Ok(granted.into_iter().map(|done| Guard::of(&self.client, done)).collect())
    }

    /// Who has and who wants a resource?
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub async fn query(&self, resource: &[u8]) -> Result<Queried, ClientError> {
        let (lockspace, resource) = (self.number, resource_name(resource)?);
        queried(self.client.begin(|serial| ClientRequest::QueryResource { serial, lockspace, resource })?.await?)
    }

    /// Gives back the orphans that a process (0: any) left on a node ([`ALL_SLOTS`](crate::ALL_SLOTS): any).
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub async fn purge(&self, slot: u16, pid: u32) -> Result<(), ClientError> {
        let lockspace = self.number;
        let reply = self.client.begin(|serial| ClientRequest::Purge { serial, lockspace, slot, pid })?.await?;
        expect(&completion(reply, "Purge")?, LockStatus::Success)
    }
}

/// A lock held. Dropping it gives it back without waiting; for a moment others may still find it taken.
#[derive(Debug)]
pub struct Guard {
    client: Client,
    done: Completion,
    blocked: Option<mpsc::UnboundedReceiver<Mode>>,
    is_held: bool,
}

impl Guard {
    fn of(client: &Client, done: Completion) -> Self {
        Self { client: client.clone(), done, blocked: None, is_held: true }
    }

    /// The grant's number: it only grows from grant to grant of a resource.
    #[must_use]
    pub fn token(&self) -> Token {
        self.done.token
    }

    /// The last completion: mode, flags, value block.
    #[must_use]
    pub fn completion(&self) -> &Completion {
        &self.done
    }

    /// The next mode that others wait for, as a hint; none once the session is over.
    pub async fn blocked(&mut self) -> Option<Mode> {
        let (session, lock) = (self.client.session(), self.done.lock);
        let blocked = self.blocked.get_or_insert_with(|| {
            let (sender, blocked) = mpsc::unbounded_channel();
            session.listen(
                lock,
                Box::new(move |mode| {
                    let _ = sender.send(mode);
                }),
            );
            blocked
        });
        blocked.recv().await
    }

    /// Changes the mode and waits for it. Dropping the future cancels the conversion; what mode the lock has is then told by the next one.
    ///
    /// # Errors
    /// Not granted (the lock keeps its mode), refused, or the session is over.
    pub async fn convert(&mut self, mode: Mode, flags: Flags, lvb: Option<Lvb>) -> Result<&Completion, ClientError> {
        self.convert_within(mode, &Wishes { flags, lvb, ..Wishes::default() }).await
    }

    /// Changes the mode and waits for it as long as wished; dropping the future is as above.
    ///
    /// # Errors
    /// Not granted in time (the lock keeps its mode), refused, or the session is over.
    pub async fn convert_within(&mut self, mode: Mode, wishes: &Wishes) -> Result<&Completion, ClientError> {
        let (lock, timeout_ms) = (self.done.lock, timeout_ms(wishes.timeout));
        let Wishes { flags, lvb, owner, .. } = *wishes;
        let make = |serial| ClientRequest::Convert { serial, lock, mode, flags, owner, timeout_ms, lvb };
        let done = completion(self.client.begin(make)?.await?, "Convert")?;
        match done.status {
            LockStatus::Success => {
                self.done = done;
                Ok(&self.done)
            }
            status => {
                let granted = done.mode.unwrap_or(Mode::Nl);
                Err(not_granted(status, || check_convert(granted, mode, flags, lvb.as_ref())))
            }
        }
    }

    /// Who has and who wants the resource?
    ///
    /// # Errors
    /// The session is over.
    pub async fn query(&self) -> Result<Queried, ClientError> {
        let lock = self.done.lock;
        queried(self.client.begin(|serial| ClientRequest::Query { serial, lock })?.await?)
    }

    /// Keeps the lock until the session ends; one asked for with PERSISTENT becomes an orphan then.
    pub fn leave(mut self) {
        self.is_held = false;
    }

    /// Gives the lock back and waits until the node has taken it. Dropping the future does not keep it.
    ///
    /// # Errors
    /// Refused (then it is given back as a dropped guard is, without a value), or the session is over (the lock is void then as well).
    pub async fn unlock(mut self, flags: Flags, lvb: Option<Lvb>) -> Result<(), ClientError> {
        may_unlock(&self.done, flags, lvb.as_ref())?;
        // With whatever a dropped future left under way.
        let (lock, flags) = (self.done.lock, flags.with(Flags::FORCEUNLOCK));
        let reply = self.client.begin(|serial| ClientRequest::Unlock { serial, lock, flags, lvb })?.await?;
        expect(&completion(reply, "Unlock")?, LockStatus::Unlocked)?;
        self.is_held = false;
        self.client.session().forget(lock);
        Ok(())
    }

    /// Gives the lock back, from PW or EX with a new value block, and waits until the node has taken it.
    ///
    /// # Errors
    /// As [`Guard::unlock`].
    pub async fn unlock_writing(self, value: Lvb) -> Result<(), ClientError> {
        self.unlock(Flags::VALBLK, Some(value)).await
    }

    /// Gives the lock back without waiting, from PW or EX with a new value block where the flags say so.
    ///
    /// # Errors
    /// Refused; then it is given back as a dropped guard is, without a value.
    pub fn post_unlock(mut self, flags: Flags, lvb: Option<Lvb>) -> Result<(), ClientError> {
        may_unlock(&self.done, flags, lvb.as_ref())?;
        self.is_held = false;
        self.client.session().release(self.done.lock, flags, lvb);
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.is_held {
            self.client.session().release(self.done.lock, Flags::NONE, None);
        }
    }
}
