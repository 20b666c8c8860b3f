//! What: a cache of locks in the client, for programs that take the same locks again and again: what is released stays with this process
//!   until another wants it.
//! Owns: which locks are kept, for how long once another wants them, and which go first when there are too many.
//! Invariants: a kept lock is a held lock for everybody else; whoever waits elsewhere gets it when it is free here and its time is over, and no
//!   local user slips in before; locks with a stream of hints of the program's own are never kept.
//! Does not: keep value blocks, or modes other than PR and EX.
//! Called by: programs of users.
//!
//! ```no_run
//! use deadbolt_dlm::{blocking::Client, cache::CachedLockspace};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let space = Client::connect("/var/lib/deadbolt/lock.sock", Default::default())?.join(b"my-files")?;
//! let cache = CachedLockspace::new(space, 1000)?;
//! let file = cache.resource(b"inode 17")?;
//! for _ in 0..1_000_000 {
//!     // Asks the node the first time, and again after another node or process wanted it.
//!     let _guard = file.exclusive()?;
//! }
//! let _reading = file.shared()?;
//! # Ok(()) }
//! ```

mod entry;
mod keeper;

use crate::{
    answers::resource_name,
    blocking::{ClientError, Lockspace},
};
use deadbolt_dlm_core::{ResourceName, Token};
use entry::{Entry, Use};
use keeper::Hint;
use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the entries share.
struct Shared {
    space: Lockspace,
    capacity: usize,
    hints: mpsc::Sender<Hint>,
    entries: Mutex<HashMap<ResourceName, Arc<Entry>>>,
    /// Entries that got a lock, in the order in which they are looked at when there are too many.
    queue: Mutex<VecDeque<Arc<Entry>>>,
    kept: Arc<AtomicUsize>,
}

impl Shared {
    /// Gives up locks that were not used since they were looked at last, until there are not too many; those in use stay.
    fn shrink(&self) {
        let mut queue = lock(&self.queue);
        for _ in 0..2 * queue.len() {
            if self.kept.load(Ordering::Relaxed) <= self.capacity {
                return;
            }
            let Some(entry) = queue.pop_front() else { return };
            entry.leave_queue();
            let stays = entry.was_touched() || !entry.give_up_if_free(&self.kept);
            if stays && entry.join_queue() {
                queue.push_back(entry);
            }
        }
    }

    /// Resources that are neither locked nor in anybody's hands are forgotten.
    fn forget_unused(entries: &mut HashMap<ResourceName, Arc<Entry>>) {
        entries.retain(|_, entry| Arc::strong_count(entry) > 1 || entry.is_kept());
    }
}

/// A lockspace whose locks stay with this process until somebody else wants them. Clones share it.
#[derive(Clone)]
pub struct CachedLockspace {
    shared: Arc<Shared>,
}

impl fmt::Debug for CachedLockspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedLockspace").field("kept", &self.kept()).field("capacity", &self.shared.capacity).finish_non_exhaustive()
    }
}

impl CachedLockspace {
    /// Keeps at most `capacity` locks that nobody uses.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn new(space: Lockspace, capacity: usize) -> io::Result<Self> {
        let kept = Arc::<AtomicUsize>::default();
        let hints = keeper::start(kept.clone())?;
        let (entries, queue) = (Mutex::default(), Mutex::default());
        Ok(Self { shared: Arc::new(Shared { space, capacity, hints, entries, queue, kept }) })
    }

    /// A resource, to be locked as often as wanted. Takes no lock yet.
    ///
    /// # Errors
    /// The name is empty or longer than 64 bytes.
    pub fn resource(&self, name: &[u8]) -> Result<CachedLock, ClientError> {
        let name = resource_name(name)?;
        let mut entries = lock(&self.shared.entries);
        if entries.len() > 2 * self.shared.capacity.max(64) && !entries.contains_key(&name) {
            Shared::forget_unused(&mut entries);
        }
        let entry = entries.entry(name).or_insert_with(|| Arc::new(Entry::new(name))).clone();
        Ok(CachedLock { shared: self.shared.clone(), entry })
    }

    /// Locks that this process has now, used or kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.shared.kept.load(Ordering::Relaxed)
    }

    /// Gives up every lock that nobody uses.
    pub fn clear(&self) {
        let entries: Vec<Arc<Entry>> = lock(&self.shared.entries).values().cloned().collect();
        for entry in entries {
            entry.give_up_if_free(&self.shared.kept);
        }
    }

    /// Why the session is over, and every lock void; none while it stands.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.shared.space.client().lost()
    }
}

/// A resource of a [`CachedLockspace`]. Clones share it, also between threads, which exclude each other as processes do.
#[derive(Clone)]
pub struct CachedLock {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
}

impl fmt::Debug for CachedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entry.fmt(f)
    }
}

impl CachedLock {
    /// Takes it for reading (PR): others may read, too. Waits for it.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub fn shared(&self) -> Result<CachedGuard<'_>, ClientError> {
        self.take(Use::Shared)
    }

    /// Takes it for writing (EX). Waits for it.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub fn exclusive(&self) -> Result<CachedGuard<'_>, ClientError> {
        self.take(Use::Exclusive)
    }

    fn take(&self, wanted: Use) -> Result<CachedGuard<'_>, ClientError> {
        self.shared.space.client().check()?;
        if !self.entry.take(wanted) {
            self.take_slowly(wanted)?;
        }
        Ok(CachedGuard { lock: self, used: wanted })
    }

    #[cold]
    fn take_slowly(&self, wanted: Use) -> Result<(), ClientError> {
        let shared = &self.shared;
        let is_new = self.entry.take_slowly(wanted, &shared.space, &shared.hints, &shared.kept)?;
        if is_new {
            if self.entry.join_queue() {
                lock(&shared.queue).push_back(self.entry.clone());
            }
            shared.shrink();
        }
        Ok(())
    }
}

/// A lock in use. Dropping it gives it back to the cache.
#[must_use = "dropping it releases the lock"]
pub struct CachedGuard<'a> {
    lock: &'a CachedLock,
    used: Use,
}

impl fmt::Debug for CachedGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedGuard").field("lock", &self.lock).field("used", &self.used).finish()
    }
}

impl CachedGuard<'_> {
    /// Number of the grant under which the lock is kept: it grows when the lock was away meanwhile.
    #[must_use]
    pub fn token(&self) -> Token {
        self.lock.entry.token()
    }
}

impl Drop for CachedGuard<'_> {
    fn drop(&mut self) {
        if self.lock.entry.put_back(self.used) && self.lock.shared.space.client().check().is_ok() {
            self.lock.entry.settle(&self.lock.shared.kept);
        }
    }
}
