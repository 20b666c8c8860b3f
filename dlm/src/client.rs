//! What: the async client of the lock service, on tokio.
//! Owns: one connection, one task that reads it.
//! Invariants: as the blocking client; a future of a lock that is dropped before it ended gives the lock back if it is granted later.
//! Does not: retry or reconnect.
//! Called by: programs of users.

use crate::routing::{Answer, Routing, completion, resource_name};
pub use crate::{
    blocking::{Protection, Wishes},
    routing::{ClientError, Completion},
};
use deadbolt_dlm_core::{
    ClientReply, ClientRequest, Flags, LockStatus, Mode, Token,
    client::{CLIENT_VERSION, FRAME_BYTES_MAX, Lvb, split_frame},
};
use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

struct Shared {
    routing: Mutex<Routing>,
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
}

impl Shared {
    fn routing(&self) -> MutexGuard<'_, Routing> {
        self.routing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, make: impl FnOnce(u64) -> ClientRequest, answer: Answer, sink: Option<crate::routing::BlockingSink>) -> u64 {
        let begun = self.routing().begin(make, answer, sink);
        begun.map_or(0, |(serial, bytes)| {
            let _ = self.outgoing.send(bytes);
            serial
        })
    }

    async fn call(&self, make: impl FnOnce(u64) -> ClientRequest) -> Result<ClientReply, ClientError> {
        let (sender, receiver) = oneshot::channel();
        self.begin(make, Box::new(move |reply| drop(sender.send(reply))), None);
        receiver.await.unwrap_or_else(|_| Err(closed()))
    }
}

fn closed() -> ClientError {
    ClientError::Lost { reason: "the connection was closed".into() }
}

struct Owner {
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A session. Clones share it; it ends with the last clone, its lockspaces and guards.
#[derive(Clone)]
pub struct Client {
    owner: Arc<Owner>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("lost", &self.lost()).finish()
    }
}

impl Client {
    /// Connects to a node's lock socket.
    ///
    /// # Errors
    /// No daemon, another version, or the node refuses this process.
    pub async fn connect(path: impl AsRef<Path>, protection: Protection) -> Result<Self, ClientError> {
        let path = path.as_ref();
        let stream = UnixStream::connect(path).await;
        let stream = stream.map_err(|error| ClientError::Connect { path: path.display().to_string(), reason: error.to_string() })?;
        let (reading, writing) = stream.into_split();
        let (outgoing, waiting) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { routing: Mutex::default(), outgoing });
        let tasks = [tokio::spawn(read_all(reading, shared.clone())), tokio::spawn(write_all(waiting, writing))];
        let client = Self { owner: Arc::new(Owner { shared, tasks }) };
        let hello =
            client.shared().call(|_| ClientRequest::Hello { version: CLIENT_VERSION, is_unprotected: protection.is_unprotected }).await?;
        match hello {
            ClientReply::Welcome { .. } => Ok(client),
            _ => Err(ClientError::Unexpected { to: "Hello" }),
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    /// Uses a lockspace.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub async fn join(&self, name: &[u8]) -> Result<Lockspace, ClientError> {
        match self.shared().call(|serial| ClientRequest::JoinLockspace { serial, name: name.to_vec() }).await? {
            ClientReply::Joined { lockspace, .. } => Ok(Lockspace { client: self.clone(), number: lockspace }),
            _ => Err(ClientError::Unexpected { to: "JoinLockspace" }),
        }
    }

    /// Why the session is over; none while it stands.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.shared().routing().lost()
    }
}

async fn write_all(mut waiting: mpsc::UnboundedReceiver<Vec<u8>>, mut writing: OwnedWriteHalf) {
    while let Some(mut batch) = waiting.recv().await {
        while let Ok(more) = waiting.try_recv() {
            batch.extend(more);
        }
        if writing.write_all(&batch).await.is_err() {
            return;
        }
    }
}

async fn read_all(mut stream: OwnedReadHalf, shared: Arc<Shared>) {
    let mut buffer = Vec::with_capacity(FRAME_BYTES_MAX);
    let reason = loop {
        match split_frame(&buffer) {
            Err(error) => break error.to_string(),
            Ok(Some((bytes, used))) => {
                match ClientReply::decode(bytes) {
                    Ok(reply) => shared.routing().handle(reply),
                    Err(error) => break error.to_string(),
                }
                buffer.drain(..used);
            }
            Ok(None) => match stream.read_buf(&mut buffer).await {
                Ok(0) => break "the daemon closed the connection".to_owned(),
                Ok(_) => {}
                Err(error) => break error.to_string(),
            },
        }
    };
    shared.routing().end(&reason);
}

/// A lockspace that this session uses.
#[derive(Clone, Debug)]
pub struct Lockspace {
    client: Client,
    number: u32,
}

/// Cancels a request whose future was dropped.
struct Pending {
    client: Client,
    request: u64,
    is_over: bool,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_over {
            let request = self.request;
            self.client.shared().begin(|serial| ClientRequest::CancelRequest { serial, request }, Box::new(|_| {}), None);
        }
    }
}

impl Lockspace {
    /// Takes a lock and waits for it. Dropping the future cancels the request.
    ///
    /// # Errors
    /// Not granted in time, refused, or the session is over.
    pub async fn lock(&self, resource: &[u8], mode: Mode, wishes: &Wishes) -> Result<Guard, ClientError> {
        let name = resource_name(resource)?;
        let (blocked_sender, blocked) = mpsc::unbounded_channel();
        let (sender, mut receiver) = oneshot::channel();
        let late = self.client.clone();
        let answer: Answer = Box::new(move |reply| {
            // Granted although nobody waits any more: give it back.
            if let Err(Ok(ClientReply::Completed { lock, mode: Some(_), .. })) = sender.send(reply) {
                give_back(late, lock);
            }
        });
        let make = |serial| ClientRequest::Lock {
            serial,
            lockspace: self.number,
            resource: name,
            mode,
            flags: wishes.flags,
            owner: 0,
            timeout_ms: 0,
            lvb: wishes.lvb,
        };
        let sink = Box::new(move |mode| {
            let _ = blocked_sender.send(mode);
        });
        let request = self.client.shared().begin(make, answer, Some(sink));
        let mut pending = Pending { client: self.client.clone(), request, is_over: false };
        let reply = match wishes.timeout {
            None => (&mut receiver).await,
            Some(timeout) => match tokio::time::timeout(timeout, &mut receiver).await {
                Ok(reply) => reply,
                Err(_) => {
                    self.client.shared().begin(|serial| ClientRequest::CancelRequest { serial, request }, Box::new(|_| {}), None);
                    (&mut receiver).await
                }
            },
        };
        pending.is_over = true;
        let done = completion(reply.unwrap_or_else(|_| Err(closed()))?, "Lock")?;
        match done.status {
            LockStatus::Success => Ok(Guard { client: self.client.clone(), done, blocked, is_held: true }),
            status => Err(ClientError::NotGranted(status)),
        }
    }
}

/// Runs on its own task: the routing that calls back is locked.
fn give_back(client: Client, lock: u32) {
    tokio::spawn(async move {
        let _ = client.shared().call(|serial| ClientRequest::Unlock { serial, lock, flags: Flags::NONE, lvb: None }).await;
        client.shared().routing().forget(lock);
    });
}

/// A lock held. Dropping it gives it back.
#[derive(Debug)]
pub struct Guard {
    client: Client,
    done: Completion,
    blocked: mpsc::UnboundedReceiver<Mode>,
    is_held: bool,
}

impl Guard {
    /// The grant's number.
    #[must_use]
    pub fn token(&self) -> Token {
        self.done.token
    }

    /// The last completion: mode, flags, value block.
    #[must_use]
    pub fn completion(&self) -> &Completion {
        &self.done
    }

    /// The next mode that others wait for; none once the session is over.
    pub async fn blocked(&mut self) -> Option<Mode> {
        self.blocked.recv().await
    }

    /// Changes the mode and waits for it.
    ///
    /// # Errors
    /// Not granted (the lock keeps its mode), refused, or the session is over.
    pub async fn convert(&mut self, mode: Mode, flags: Flags, lvb: Option<Lvb>) -> Result<&Completion, ClientError> {
        let lock = self.done.lock;
        let reply =
            self.client.shared().call(|serial| ClientRequest::Convert { serial, lock, mode, flags, owner: 0, timeout_ms: 0, lvb }).await?;
        let done = completion(reply, "Convert")?;
        match done.status {
            LockStatus::Success => {
                self.done = done;
                Ok(&self.done)
            }
            status => Err(ClientError::NotGranted(status)),
        }
    }

    /// Gives the lock back and waits until the node has taken it.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub async fn unlock(mut self, flags: Flags, lvb: Option<Lvb>) -> Result<(), ClientError> {
        self.is_held = false;
        let lock = self.done.lock;
        let reply = self.client.shared().call(|serial| ClientRequest::Unlock { serial, lock, flags, lvb }).await;
        self.client.shared().routing().forget(lock);
        completion(reply?, "Unlock").map(|_| ())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.is_held {
            let lock = self.done.lock;
            self.client.shared().begin(
                |serial| ClientRequest::Unlock { serial, lock, flags: Flags::NONE, lvb: None },
                Box::new(|_| {}),
                None,
            );
            self.client.shared().routing().forget(lock);
        }
    }
}
