//! What: who has woken the loop: sockets and bells put themselves on a list.
//! Owns: the list.
//! Invariants: a source stands on it at most once until it is looked at; no task stands between a source and the loop.
//! Does not: look at them.
//! Called by: the server and its sessions.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake, Waker},
};

/// Where something may have happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    Listener,
    Socket(u64),
    Bell(u64),
}

/// What has woken the loop since it looked last.
#[derive(Debug, Default)]
pub(super) struct ReadyList {
    sources: Mutex<Vec<Source>>,
    turn: Mutex<Option<Waker>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ReadyList {
    fn add(&self, source: Source) {
        lock(&self.sources).push(source);
        self.wake();
    }

    /// Wakes the loop.
    pub(super) fn wake(&self) {
        if let Some(turn) = &*lock(&self.turn) {
            turn.wake_by_ref();
        }
    }

    /// Has anything been listed?
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.sources).is_empty()
    }

    /// Exchanges the list for an empty one.
    pub(super) fn exchange(&self, sources: &mut Vec<Source>) {
        std::mem::swap(sources, &mut *lock(&self.sources));
    }

    /// Puts back what was not looked at, before what was listed meanwhile.
    pub(super) fn put_back(&self, sources: impl Iterator<Item = Source>) {
        lock(&self.sources).splice(..0, sources);
    }

    /// Whom to wake from now on.
    pub(super) fn wakes(&self, waker: &Waker) {
        let mut turn = lock(&self.turn);
        if !turn.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *turn = Some(waker.clone());
        }
    }
}

/// Wakes the loop and tells it where to look: no task stands between a socket and the loop.
#[derive(Debug)]
struct SourceWaker {
    source: Source,
    list: Arc<ReadyList>,
    is_listed: AtomicBool,
}

impl Wake for SourceWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_listed.swap(true, Ordering::AcqRel) {
            self.list.add(self.source);
        }
    }
}

/// A waker of one source.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<SourceWaker>,
    waker: Waker,
}

impl Watch {
    pub(super) fn new(source: Source, list: &Arc<ReadyList>) -> Self {
        let shared = Arc::new(SourceWaker { source, list: list.clone(), is_listed: AtomicBool::new(false) });
        Self { waker: shared.clone().into(), shared }
    }

    /// The loop looks at the source now: from here on it may be listed again.
    pub(super) fn begin(&self) {
        self.shared.is_listed.store(false, Ordering::Release);
    }

    /// The loop did not finish with the source.
    pub(super) fn again(&self) {
        self.shared.wake_by_ref();
    }

    pub(super) fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }
}
