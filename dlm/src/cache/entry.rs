//! What: one resource of the cache: who uses its lock here, in one word, and how the lock comes and goes.
//! Owns: the word, the node's lock behind it.
//! Invariants: users here exclude each other as the modes say, and use only what the node granted; once another wants it, nobody new uses it
//!   before it was given up.
//! Does not: decide how long it is kept.
//! Called by: `cache`.
//!
//! The word: number of readers, a writer, the mode that the node granted, whether another wants it, whether somebody here waits. Taking and
//! putting back without conflict is one change of the word each; everything else happens under the mutex.

use super::{keeper::Hint, lock};
use crate::blocking::{ClientError, Guard, Lockspace, Wishes};
use deadbolt_dlm_core::{Mode, ResourceName, Token};
use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

const READERS: u32 = 0x00ff_ffff;
const WRITER: u32 = 1 << 24;
/// The node granted PR.
const HELD_SHARED: u32 = 1 << 25;
/// The node granted EX.
const HELD_EXCLUSIVE: u32 = 1 << 26;
const HELD: u32 = HELD_SHARED | HELD_EXCLUSIVE;
/// Another wants it.
const WANTED: u32 = 1 << 27;
/// Somebody here waits.
const WAITED: u32 = 1 << 28;

/// How long a lock is kept at first once another wants it (chosen: a few round trips, far below what people notice).
const HOLD_FIRST_MS: u32 = 5;
/// Longest such time.
const HOLD_MAX_MS: u32 = 200;

/// How a lock is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    Shared,
    Exclusive,
}

impl Use {
    fn mode(self) -> Mode {
        match self {
            Self::Shared => Mode::Pr,
            Self::Exclusive => Mode::Ex,
        }
    }

    fn held(self) -> u32 {
        match self {
            Self::Shared => HELD_SHARED,
            Self::Exclusive => HELD_EXCLUSIVE,
        }
    }

    /// The word with this user in it; none while other users here stand in the way or the node granted too little.
    fn enter(self, word: u32) -> Option<u32> {
        match self {
            Self::Shared => (word & HELD != 0 && word & WRITER == 0 && word & READERS < READERS).then_some(word + 1),
            Self::Exclusive => (word & HELD == HELD_EXCLUSIVE && word & (WRITER | READERS) == 0).then_some(word | WRITER),
        }
    }
}

#[derive(Default)]
struct Inner {
    guard: Option<Guard>,
    token: Token,
    granted_at: Option<Instant>,
    /// Those who wait here are served in the order in which they came: the number of the next one, and of the one served now. Only that
    /// one asks the node.
    next: u64,
    served: u64,
}

pub(super) struct Entry {
    name: ResourceName,
    word: AtomicU32,
    touched: AtomicBool,
    is_queued: AtomicBool,
    hold_ms: AtomicU32,
    /// Number of grants: hints for an earlier one are void.
    grants: AtomicU32,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word.load(Ordering::Relaxed);
        f.debug_struct("CachedLock").field("name", &self.name).field("word", &format_args!("{word:#x}")).finish_non_exhaustive()
    }
}

impl Entry {
    pub(super) fn new(name: ResourceName) -> Self {
        Self {
            name,
            word: AtomicU32::new(0),
            touched: AtomicBool::new(false),
            is_queued: AtomicBool::new(false),
            hold_ms: AtomicU32::new(HOLD_FIRST_MS),
            grants: AtomicU32::new(0),
            inner: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Takes it if that needs neither node nor waiting.
    pub(super) fn take(&self, wanted: Use) -> bool {
        let enter = |word| if word & (WANTED | WAITED) == 0 { wanted.enter(word) } else { None };
        let is_taken = self.word.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_ok();
        if is_taken && !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
        is_taken
    }

    /// Puts it back; true: somebody is to be told.
    pub(super) fn put_back(&self, used: Use) -> bool {
        let left = match used {
            Use::Shared => self.word.fetch_sub(1, Ordering::Release) - 1,
            Use::Exclusive => self.word.fetch_and(!WRITER, Ordering::Release) & !WRITER,
        };
        left & (WRITER | READERS) == 0 && left & (WANTED | WAITED) != 0
    }

    /// After the last user has put it back: gives it up if another wants it, and wakes those who wait here.
    pub(super) fn settle(&self, kept: &AtomicUsize) {
        let mut inner = lock(&self.inner);
        if self.word.load(Ordering::Acquire) & WANTED != 0 {
            self.give_up(&mut inner, kept);
        }
        self.changed.notify_all();
    }

    /// Another wants it and its time here is over: nobody new uses it, and it goes as soon as it is free.
    pub(super) fn want(&self, grant: u32, kept: &AtomicUsize) {
        let mut inner = lock(&self.inner);
        if self.grants.load(Ordering::Relaxed) != grant || inner.guard.is_none() {
            return;
        }
        // Used again under this grant: keeping it was worth it.
        let was_busy = self.was_touched();
        let hold = self.hold_ms.load(Ordering::Relaxed);
        self.hold_ms.store(if was_busy { (hold * 2).clamp(1, HOLD_MAX_MS) } else { hold / 2 }, Ordering::Relaxed);
        self.word.fetch_or(WANTED, Ordering::AcqRel);
        self.give_up(&mut inner, kept);
    }

    /// Until when it is kept although another wants it.
    pub(super) fn keep_until(&self) -> Instant {
        let granted_at = lock(&self.inner).granted_at.unwrap_or_else(Instant::now);
        granted_at + Duration::from_millis(self.hold_ms.load(Ordering::Relaxed).into())
    }

    /// Gives the node's lock back if nobody uses it.
    fn give_up(&self, inner: &mut MutexGuard<'_, Inner>, kept: &AtomicUsize) -> bool {
        let leave = |word| (word & (WRITER | READERS) == 0).then_some(word & !(HELD | WANTED));
        let has_left = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, leave).is_ok();
        if has_left && let Some(guard) = inner.guard.take() {
            kept.fetch_sub(1, Ordering::Relaxed);
            drop(guard);
        }
        has_left
    }

    /// As above, for somebody who does not know whether it is held; false: it is in use.
    pub(super) fn give_up_if_free(&self, kept: &AtomicUsize) -> bool {
        self.give_up(&mut lock(&self.inner), kept)
    }

    /// Takes it with all that may be needed: waiting for users here, asking the node. True: the node granted it anew.
    pub(super) fn take_slowly(
        self: &Arc<Self>,
        wanted: Use,
        space: &Lockspace,
        hints: &mpsc::Sender<Hint>,
        kept: &AtomicUsize,
    ) -> Result<bool, ClientError> {
        let mut inner = lock(&self.inner);
        let number = inner.next;
        inner.next += 1;
        self.word.fetch_or(WAITED, Ordering::AcqRel);
        let wait = |inner| self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        while inner.served != number {
            inner = wait(inner);
        }
        let taken = loop {
            if let Err(error) = space.client().check() {
                break Err(error);
            }
            let enter = |word| if word & WANTED == 0 { wanted.enter(word) } else { None };
            if self.word.fetch_update(Ordering::Acquire, Ordering::Acquire, enter).is_ok() {
                break Ok(false);
            }
            if !self.give_up(&mut inner, kept) {
                inner = wait(inner);
                continue;
            }
            drop(inner);
            let asked = space.lock(self.name.as_bytes(), wanted.mode(), &Wishes::default());
            inner = lock(&self.inner);
            break asked.map(|guard| {
                self.keep(&mut inner, guard, wanted, hints);
                kept.fetch_add(1, Ordering::Relaxed);
                true
            });
        };
        inner.served += 1;
        if inner.served == inner.next {
            self.word.fetch_and(!WAITED, Ordering::AcqRel);
        }
        self.changed.notify_all();
        taken
    }

    /// The node granted it: its first user is in.
    fn keep(self: &Arc<Self>, inner: &mut Inner, guard: Guard, wanted: Use, hints: &mpsc::Sender<Hint>) {
        let grant = self.grants.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let (entry, hints) = (Arc::downgrade(self), hints.clone());
        guard.listen(Box::new(move |_| {
            let _ = hints.send(Hint { entry: entry.clone(), grant });
        }));
        inner.token = guard.token();
        inner.granted_at = Some(Instant::now());
        inner.guard = Some(guard);
        let first = match wanted {
            Use::Shared => 1,
            Use::Exclusive => WRITER,
        };
        self.word.fetch_or(wanted.held() | first, Ordering::AcqRel);
    }

    pub(super) fn token(&self) -> Token {
        lock(&self.inner).token
    }

    pub(super) fn is_kept(&self) -> bool {
        self.word.load(Ordering::Relaxed) & HELD != 0
    }

    /// Was it used since this was asked last?
    pub(super) fn was_touched(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }

    /// False: it is in the queue already.
    pub(super) fn join_queue(&self) -> bool {
        !self.is_queued.swap(true, Ordering::AcqRel)
    }

    pub(super) fn leave_queue(&self) {
        self.is_queued.store(false, Ordering::Release);
    }
}
