//! What: the blocking client of the lock service.
//! Owns: one connection, one thread that reads it.
//! Invariants: when the connection ends every lock of it is void and every call says so; dropping a guard gives its lock back.
//! Does not: retry or reconnect: the program must know that its locks were lost.
//! Called by: `deadbolt lock` and programs of users.
//!
//! ```no_run
//! use deadbolt_dlm::{blocking::{Client, Wishes}, Mode};
//! # fn main() -> Result<(), deadbolt_dlm::blocking::ClientError> {
//! let client = Client::connect("/var/lib/deadbolt/lock.sock", Default::default())?;
//! let space = client.join(b"my-programs")?;
//! let guard = space.lock(b"the-file", Mode::Ex, &Wishes::default())?;
//! println!("token {}", guard.token());
//! # Ok(()) }
//! ```

pub use crate::routing::{ClientError, Completion};
use crate::routing::{Routing, completion, resource_name};
use deadbolt_dlm_core::{
    ClientReply, ClientRequest, Flags, LockStatus, Mode, Token,
    client::{CLIENT_VERSION, FRAME_BYTES_MAX, Lvb, split_frame},
};
use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

/// How to connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Protection {
    /// This process knows that the node's process watchdog would not end it.
    pub is_unprotected: bool,
}

/// How to ask for a lock.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Flags of the request.
    pub flags: Flags,
    /// Value block to write where the request writes one.
    pub lvb: Option<Lvb>,
    /// How long to wait; none: for ever. Afterwards the request is cancelled.
    pub timeout: Option<Duration>,
}

struct Shared {
    routing: Mutex<Routing>,
    stream: UnixStream,
    /// Serialises frames of several threads.
    writing: Mutex<()>,
}

impl Shared {
    fn routing(&self) -> MutexGuard<'_, Routing> {
        self.routing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, bytes: &[u8]) {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // A failed write shows up as the end of the connection on the reading side.
        let _ = (&self.stream).write_all(bytes);
    }

    fn ask(
        &self,
        make: impl FnOnce(u64) -> ClientRequest,
        sink: Option<crate::routing::BlockingSink>,
    ) -> (u64, mpsc::Receiver<Result<ClientReply, ClientError>>) {
        let (sender, receiver) = mpsc::channel();
        let answer = Box::new(move |reply| {
            let _ = sender.send(reply);
        });
        let begun = self.routing().begin(make, answer, sink);
        match begun {
            Some((serial, bytes)) => {
                self.send(&bytes);
                (serial, receiver)
            }
            None => (0, receiver),
        }
    }

    fn call(&self, make: impl FnOnce(u64) -> ClientRequest) -> Result<ClientReply, ClientError> {
        receive(&self.ask(make, None).1)
    }
}

fn receive(receiver: &mpsc::Receiver<Result<ClientReply, ClientError>>) -> Result<ClientReply, ClientError> {
    receiver.recv().unwrap_or_else(|_| Err(ClientError::Lost { reason: "the connection was closed".into() }))
}

/// A session. Clones share it; it ends with the last clone, its lockspaces and guards.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Owner>,
}

/// Closes the connection with the last user.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.stream.shutdown(Shutdown::Both);
    }
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
    pub fn connect(path: impl AsRef<Path>, protection: Protection) -> Result<Self, ClientError> {
        let path = path.as_ref();
        let failed = |error: std::io::Error| ClientError::Connect { path: path.display().to_string(), reason: error.to_string() };
        let stream = UnixStream::connect(path).map_err(failed)?;
        let reading = stream.try_clone().map_err(failed)?;
        let shared = Arc::new(Shared { routing: Mutex::default(), stream, writing: Mutex::new(()) });
        let routes = shared.clone();
        std::thread::Builder::new().name("deadbolt-client".into()).spawn(move || read_all(reading, &routes)).map_err(failed)?;
        let client = Self { shared: Arc::new(Owner(shared)) };
        match client.shared.0.call(|_| ClientRequest::Hello { version: CLIENT_VERSION, is_unprotected: protection.is_unprotected })? {
            ClientReply::Welcome { .. } => Ok(client),
            _ => Err(ClientError::Unexpected { to: "Hello" }),
        }
    }

    /// Uses a lockspace.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub fn join(&self, name: &[u8]) -> Result<Lockspace, ClientError> {
        match self.shared.0.call(|serial| ClientRequest::JoinLockspace { serial, name: name.to_vec() })? {
            ClientReply::Joined { lockspace, .. } => Ok(Lockspace { client: self.clone(), number: lockspace }),
            _ => Err(ClientError::Unexpected { to: "JoinLockspace" }),
        }
    }

    /// Why the session is over; none while it stands.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.shared.0.routing().lost()
    }
}

fn read_all(mut stream: UnixStream, shared: &Shared) {
    let mut buffer = Vec::new();
    let mut chunk = vec![0; FRAME_BYTES_MAX];
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
            Ok(None) => match stream.read(&mut chunk) {
                Ok(0) => break "the daemon closed the connection".to_owned(),
                Ok(length) => buffer.extend_from_slice(chunk.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
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

impl Lockspace {
    /// Takes a lock and waits for it.
    ///
    /// # Errors
    /// Not granted in time, refused, or the session is over.
    pub fn lock(&self, resource: &[u8], mode: Mode, wishes: &Wishes) -> Result<Guard, ClientError> {
        let name = resource_name(resource)?;
        let shared = &self.client.shared.0;
        let (sender, blocked) = mpsc::channel();
        let sink = Box::new(move |mode| {
            let _ = sender.send(mode);
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
        let (request, receiver) = shared.ask(make, Some(sink));
        let reply = match wishes.timeout {
            None => receive(&receiver),
            Some(timeout) => match receiver.recv_timeout(timeout) {
                Ok(reply) => reply,
                Err(_) => {
                    let cancelled = shared.ask(|serial| ClientRequest::CancelRequest { serial, request }, None);
                    // The request ends either way: cancelled, or granted just before.
                    let reply = receive(&receiver);
                    drop(cancelled);
                    reply
                }
            },
        };
        let done = completion(reply?, "Lock")?;
        match done.status {
            LockStatus::Success => Ok(Guard { client: self.client.clone(), done, blocked: Some(blocked), is_held: true }),
            status => Err(ClientError::NotGranted(status)),
        }
    }
}

/// A lock held. Dropping it gives it back.
#[derive(Debug)]
pub struct Guard {
    client: Client,
    done: Completion,
    blocked: Option<mpsc::Receiver<Mode>>,
    is_held: bool,
}

impl Guard {
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

    /// Modes that others wait for, as hints, for another thread to receive; empty when it was taken before. The stream ends with
    /// the lock or the session.
    pub fn take_blocked(&mut self) -> mpsc::Receiver<Mode> {
        self.blocked.take().unwrap_or_else(|| mpsc::channel().1)
    }

    /// Changes the mode and waits for it.
    ///
    /// # Errors
    /// Not granted (the lock keeps its mode), refused, or the session is over.
    pub fn convert(&mut self, mode: Mode, flags: Flags, lvb: Option<Lvb>) -> Result<&Completion, ClientError> {
        let lock = self.done.lock;
        let reply =
            self.client.shared.0.call(|serial| ClientRequest::Convert { serial, lock, mode, flags, owner: 0, timeout_ms: 0, lvb })?;
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
    /// Refused, or the session is over (the lock is void then as well).
    pub fn unlock(mut self, flags: Flags, lvb: Option<Lvb>) -> Result<(), ClientError> {
        self.is_held = false;
        let lock = self.done.lock;
        let reply = self.client.shared.0.call(|serial| ClientRequest::Unlock { serial, lock, flags, lvb });
        self.client.shared.0.routing().forget(lock);
        completion(reply?, "Unlock").map(|_| ())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.is_held {
            let lock = self.done.lock;
            let shared = &self.client.shared.0;
            let begun = shared.routing().begin(
                |serial| ClientRequest::Unlock { serial, lock, flags: Flags::NONE, lvb: None },
                Box::new(|_| {}),
                None,
            );
            if let Some((_, bytes)) = begun {
                shared.send(&bytes);
            }
            shared.routing().forget(lock);
        }
    }
}
