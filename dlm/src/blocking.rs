//! What: the blocking client of the lock service.
//! Owns: sessions, lockspaces and guards as a program sees them.
//! Invariants: when the session ends every lock of it is void and every call says so; dropping a guard gives its lock back without waiting;
//!   a request that is given up brings no lock.
//! Does not: retry or reconnect: the program must know that its locks were lost.
//! Called by: `deadbolt lock`, `cache` and programs of users.
//!
//! ```no_run
//! use deadbolt_dlm::{blocking::{Client, Wishes}, Mode};
//! use std::time::Duration;
//! # fn main() -> Result<(), deadbolt_dlm::blocking::ClientError> {
//! let client = Client::connect("/var/lib/deadbolt/lock.sock", Default::default())?;
//! let space = client.join(b"my-programs")?;
//! {
//!     let guard = space.lock(b"the-file", Mode::Ex, &Wishes::default())?;
//!     println!("token {}", guard.token());
//! } // given back here
//!
//! // Only if it is free now.
//! if let Some(guard) = space.try_lock(b"the-file", Mode::Pr)? {
//!     drop(guard);
//! }
//!
//! // Not longer than a second, with the value block.
//! let wishes = Wishes { timeout: Some(Duration::from_secs(1)), ..Wishes::with_value() };
//! let mut guard = space.lock(b"the-file", Mode::Ex, &wishes)?;
//! println!("last value {:?}", guard.completion().lvb);
//!
//! // Another thread hears who waits for it.
//! let blocked = guard.take_blocked();
//! std::thread::spawn(move || blocked.iter().for_each(|mode| println!("somebody wants {mode:?}")));
//! guard.unlock_writing([7; 32])?;
//! # Ok(()) }
//! ```

mod ranges;

pub use crate::{
    answers::{Completion, Queried},
    routing::ClientError,
    session::Transport,
};
use crate::{
    answers::{completion, expect, lockspace_name, many, many_items, may_unlock, not_granted, queried, resource_name, timeout_ms},
    routing::{HintSink, Reply},
    session::{Owner, Session},
};
use deadbolt_dlm_core::{
    ClientReply, ClientRequest, Flags, LockStatus, Mode, Token,
    client::{LVB_BYTES, Lvb},
    legal::{check_convert, check_lock},
};
use std::{
    fmt,
    path::Path,
    sync::{Arc, mpsc},
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
    /// How long to wait, from the asking on; none: for ever. The node ends the wait, by whole milliseconds of its clock, rounded up; at most
    /// 49 days.
    pub timeout: Option<Duration>,
    /// For whom, as the search for deadlocks sees it: a transaction, by a number that the program chose and that may wait on several
    /// nodes; 0: this session.
    pub owner: u64,
}

impl Wishes {
    /// The completion brings the resource's value block.
    #[must_use]
    pub fn with_value() -> Self {
        Self { flags: Flags::VALBLK, lvb: Some([0; LVB_BYTES]), ..Self::default() }
    }

    /// Fails at once where it would have to wait.
    #[must_use]
    pub fn at_once() -> Self {
        Self { flags: Flags::NOQUEUE, ..Self::default() }
    }
}

/// A session. Clones share it; it ends with the last clone, its lockspaces and guards.
#[derive(Clone)]
pub struct Client {
    owner: Arc<Owner>,
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
    pub fn connect(path: impl AsRef<Path>, protection: Protection) -> Result<Self, ClientError> {
        Self::connect_over(path, protection, Transport::Ring)
    }

    /// Connects to a node's lock socket.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_over(path: impl AsRef<Path>, protection: Protection, transport: Transport) -> Result<Self, ClientError> {
        let session = Arc::new(Session::open(path.as_ref(), protection, transport, false)?);
        if !session.has_ring() {
            session.start_listener();
        }
        Ok(Self { owner: Arc::new(Owner(session)) })
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.owner.0
    }

    fn call(&self, make: impl FnOnce(u64) -> ClientRequest) -> Reply {
        let (serial, was_asleep) = self.session().begin(make)?;
        self.wait(serial, was_asleep)
    }

    fn wait(&self, serial: u64, was_asleep: bool) -> Reply {
        self.session().wait(serial, was_asleep)
    }

    /// Uses a lockspace: 1 to 64 bytes, the same on every node.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub fn join(&self, name: &[u8]) -> Result<Lockspace, ClientError> {
        let name = lockspace_name(name)?;
        match self.call(|serial| ClientRequest::JoinLockspace { serial, name })? {
            ClientReply::Joined { lockspace, .. } => Ok(Lockspace { client: self.clone(), number: lockspace }),
            _ => Err(ClientError::Unexpected { to: "JoinLockspace" }),
        }
    }

    /// Why the session is over; none while it stands.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.session().lost()
    }

    /// Does the session stand, in this process, as far as is known here?
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        self.session().check()
    }

    /// Does it speak through a ring?
    #[must_use]
    pub fn has_ring(&self) -> bool {
        self.session().has_ring()
    }
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
        self.begin(resource, mode, wishes)?.wait()
    }

    /// Takes a lock if it is free now; none: it is not.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub fn try_lock(&self, resource: &[u8], mode: Mode) -> Result<Option<Guard>, ClientError> {
        match self.lock(resource, mode, &Wishes::at_once()) {
            Ok(guard) => Ok(Some(guard)),
            Err(ClientError::NotGranted(LockStatus::Again)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes several locks, all or none, in an order in which two such requests never wait for each other; guards come in the order asked.
    /// At most 32 different resources; flags and time are for all together.
    ///
    /// # Errors
    /// Not all granted in time (then none is), refused, or the session is over.
    pub fn lock_many(&self, items: &[(&[u8], Mode)], wishes: &Wishes) -> Result<Vec<Guard>, ClientError> {
        let (lockspace, timeout_ms) = (self.number, timeout_ms(wishes.timeout));
        let Wishes { flags, owner, .. } = *wishes;
        let modes: Vec<Mode> = items.iter().map(|(_, mode)| *mode).collect();
        let items = many_items(items)?;
        let make = |serial| ClientRequest::LockMany { serial, lockspace, items, flags, owner, timeout_ms };
        let granted = many(self.client.call(make)?, &modes)?;
        Ok(granted.into_iter().map(|done| Guard::of(&self.client, done)).collect())
    }

    /// Who has and who wants a resource?
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub fn query(&self, resource: &[u8]) -> Result<Queried, ClientError> {
        let (lockspace, resource) = (self.number, resource_name(resource)?);
        queried(self.client.call(|serial| ClientRequest::QueryResource { serial, lockspace, resource })?)
    }

    /// Gives back the orphans that a process (0: any) left on a node ([`ALL_SLOTS`](crate::ALL_SLOTS): any).
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub fn purge(&self, slot: u16, pid: u32) -> Result<(), ClientError> {
        let lockspace = self.number;
        let done = completion(self.client.call(|serial| ClientRequest::Purge { serial, lockspace, slot, pid })?, "Purge")?;
        expect(&done, LockStatus::Success)
    }

    /// Asks for a lock; to be waited for later, so that many requests are on their way at once.
    ///
    /// # Errors
    /// The session is over.
    pub fn begin(&self, resource: &[u8], mode: Mode, wishes: &Wishes) -> Result<Pending, ClientError> {
        let (lockspace, resource, timeout_ms) = (self.number, resource_name(resource)?, timeout_ms(wishes.timeout));
        let Wishes { flags, lvb, owner, .. } = *wishes;
        let make = |serial| ClientRequest::Lock { serial, lockspace, resource, mode, flags, owner, timeout_ms, lvb };
        let (serial, was_asleep) = self.client.session().begin(make)?;
        Ok(Pending { client: self.client.clone(), serial, was_asleep, asked: (mode, flags), is_over: false })
    }
}

impl Lockspace {
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }
}

/// A lock asked for. Dropping it cancels the request.
#[derive(Debug)]
#[must_use = "dropping it cancels the request"]
pub struct Pending {
    client: Client,
    serial: u64,
    was_asleep: bool,
    asked: (Mode, Flags),
    is_over: bool,
}

impl Pending {
    /// Waits for the lock.
    ///
    /// # Errors
    /// Not granted in time, refused, or the session is over.
    pub fn wait(mut self) -> Result<Guard, ClientError> {
        self.is_over = true;
        let done = completion(self.client.wait(self.serial, self.was_asleep)?, "Lock")?;
        match done.status {
            LockStatus::Success => Ok(Guard::of(&self.client, done)),
            status => Err(not_granted(status, || check_lock(self.asked.0, self.asked.1))),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_over {
            self.client.session().abandon(self.serial);
        }
    }
}

/// A lock held. Dropping it gives it back without waiting; for a moment others may still find it taken.
#[derive(Debug)]
pub struct Guard {
    client: Client,
    done: Completion,
    is_listened_to: bool,
    is_held: bool,
}

impl Guard {
    fn of(client: &Client, done: Completion) -> Self {
        Self { client: client.clone(), done, is_listened_to: false, is_held: true }
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

    /// Modes that others wait for, as hints, for another thread to receive, also those that came before this; empty when it was taken
    /// before. The stream ends with the lock or the session.
    pub fn take_blocked(&mut self) -> mpsc::Receiver<Mode> {
        let (sender, blocked) = mpsc::channel();
        if !std::mem::replace(&mut self.is_listened_to, true) {
            self.listen(Box::new(move |mode| {
                let _ = sender.send(mode);
            }));
        }
        blocked
    }

    /// Hands hints on from a thread of the session, which is locked meanwhile.
    pub(crate) fn listen(&self, sink: HintSink) {
        let session = self.client.session();
        session.listen(self.done.lock, sink);
        session.start_listener();
    }

    /// Changes the mode and waits for it.
    ///
    /// # Errors
    /// Not granted (the lock keeps its mode), refused, or the session is over.
    pub fn convert(&mut self, mode: Mode, flags: Flags, lvb: Option<Lvb>) -> Result<&Completion, ClientError> {
        self.convert_within(mode, &Wishes { flags, lvb, ..Wishes::default() })
    }

    /// Changes the mode and waits for it as long as wished.
    ///
    /// # Errors
    /// Not granted in time (the lock keeps its mode), refused, or the session is over.
    pub fn convert_within(&mut self, mode: Mode, wishes: &Wishes) -> Result<&Completion, ClientError> {
        let (lock, timeout_ms) = (self.done.lock, timeout_ms(wishes.timeout));
        let Wishes { flags, lvb, owner, .. } = *wishes;
        let make = |serial| ClientRequest::Convert { serial, lock, mode, flags, owner, timeout_ms, lvb };
        let done = completion(self.client.call(make)?, "Convert")?;
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
    pub fn query(&self) -> Result<Queried, ClientError> {
        let lock = self.done.lock;
        queried(self.client.call(|serial| ClientRequest::Query { serial, lock })?)
    }

    /// Keeps the lock until the session ends; one asked for with PERSISTENT becomes an orphan then.
    pub fn leave(mut self) {
        self.is_held = false;
    }

    /// Gives the lock back and waits until the node has taken it.
    ///
    /// # Errors
    /// Refused (then it is given back as a dropped guard is, without a value), or the session is over (the lock is void then as well).
    pub fn unlock(mut self, flags: Flags, lvb: Option<Lvb>) -> Result<(), ClientError> {
        may_unlock(&self.done, flags, lvb.as_ref())?;
        let lock = self.done.lock;
        let reply = self.client.call(|serial| ClientRequest::Unlock { serial, lock, flags, lvb })?;
        expect(&completion(reply, "Unlock")?, LockStatus::Unlocked)?;
        self.is_held = false;
        self.client.session().forget(lock);
        Ok(())
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

    /// Gives the lock back, from PW or EX with a new value block, and waits until the node has taken it.
    ///
    /// # Errors
    /// As [`Guard::unlock`].
    pub fn unlock_writing(self, value: Lvb) -> Result<(), ClientError> {
        self.unlock(Flags::VALBLK, Some(value))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.is_held {
            self.client.session().release(self.done.lock, Flags::NONE, None);
        }
    }
}
