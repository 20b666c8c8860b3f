//! What: where each reply of the daemon goes, for both client libraries.
//! Owns: serials, the requests under way, the hints for locks held, the session's end.
//! Invariants: every request under way is answered once, by its reply or by the session's end; a lock granted to nobody any more is named
//!   to be given back; a hint that comes right behind a grant is kept until somebody listens.
//! Does not: read or write, or wait.
//! Called by: `session`.

use crate::numbers::Numbered;
use deadbolt_dlm_core::{ClientReply, ClientRequest, Cycle, Flags, LockStatus, Mode, client::Lvb};
use std::task::{Poll, Waker};

/// Why a client's call fails.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The daemon cannot be reached.
    #[error("cannot reach the node's lock service at {path}: {reason}; is the node started?")]
    Connect {
        /// The socket.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// The daemon refuses.
    #[error("{reason}")]
    Refused {
        /// For programs.
        status: LockStatus,
        /// For people.
        reason: String,
    },
    /// The session is over: every lock of it is void.
    #[error("the lock session has ended: {reason}")]
    Lost {
        /// Why.
        reason: String,
    },
    /// This process was forked from the one whose session it is.
    #[error(
        "this lock session belongs to process {pid}, of which this one is a fork; a child connects anew, its parent's locks are not its own"
    )]
    Forked {
        /// Whose.
        pid: u32,
    },
    /// Not granted (of several locks, none): those who wait would wait for each other for ever. The lock, if there was one, is as before.
    #[error("not granted: it would wait for ever: {}", deadlock(.cycle.as_ref()))]
    Deadlock {
        /// Who waits for whom; none where two conversions of this resource wait for each other.
        cycle: Option<Cycle>,
    },
    /// Not granted, or not done; the lock is as before.
    #[error("not granted: {_0:?}: {}", explain(*_0))]
    NotGranted(LockStatus),
    /// None of several locks is granted.
    #[error(
        "none of the locks is granted: {status:?}: {}{}",
        explain(*.status),
        failed.map_or(String::new(), |item| format!("; item {item} (counted from 0) failed"))
    )]
    NoneGranted {
        /// Why.
        status: LockStatus,
        /// Which one failed, counted from 0; none where that cannot be said of one.
        failed: Option<usize>,
    },
    /// The daemon answered with something else than was asked for.
    #[error("the daemon gave an unexpected answer to {to}; are the packages of one version?")]
    Unexpected {
        /// Which request.
        to: &'static str,
    },
}

fn deadlock(cycle: Option<&Cycle>) -> String {
    cycle.map_or_else(|| "another conversion of this resource waits for this one".into(), ToString::to_string)
}

/// What a status says about a request that was not granted.
fn explain(status: LockStatus) -> &'static str {
    match status {
        LockStatus::Again => "it would have to wait, and was asked not to",
        LockStatus::Deadlock => "it would wait for ever",
        LockStatus::Cancelled => "it was taken back",
        LockStatus::TimedOut => "it waited as long as it wanted to",
        LockStatus::Invalid => "the arguments make no sense together; docs/locks.md says which do",
        LockStatus::NotFound => "this session has no such lock or lockspace, or nobody left what was looked for",
        LockStatus::Busy => "another operation of this lock is under way; wait for its end",
        LockStatus::NoMemory => "the limit of this session or node is reached; give something back",
        LockStatus::Stopped => "the node stops and begins nothing new",
        LockStatus::Success | LockStatus::Unlocked => "the node answered something else than was asked",
    }
}

pub(crate) type Reply = Result<ClientReply, ClientError>;
/// Takes the hints for one lock. Called while the session is locked: it only hands on.
pub(crate) type HintSink = Box<dyn Fn(Mode) + Send>;

/// How a request that nobody waits for any more is taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Cancel {
    /// It has ended, or does not wait for others.
    #[default]
    Nothing,
    /// By its serial.
    Request,
    /// By its lock, which the node finds faster.
    Conversion(u32),
}

impl Cancel {
    fn of(request: &ClientRequest) -> Self {
        match request {
            ClientRequest::Lock { .. } | ClientRequest::LockMany { .. } | ClientRequest::Range { .. } => Self::Request,
            ClientRequest::Convert { lock, .. } => Self::Conversion(*lock),
            _ => Self::Nothing,
        }
    }
}

#[derive(Default)]
struct Waiter {
    answer: Option<Reply>,
    waker: Option<Waker>,
    /// Who waits for whom, where that is why it fails.
    cycle: Option<Cycle>,
    makes_lock: bool,
    cancel: Cancel,
    is_abandoned: bool,
}

#[derive(Default)]
struct Held {
    sink: Option<HintSink>,
    /// The strongest mode hinted at before somebody listened.
    hint: Option<Mode>,
}

/// See the module's head.
#[derive(Default)]
pub(crate) struct Routing {
    serial: u64,
    waiting: Numbered<u64, Waiter>,
    held: Numbered<u32, Held>,
    lost: Option<String>,
    leftovers: Vec<u32>,
}

impl Routing {
    fn number(&mut self) -> Result<u64, ClientError> {
        if let Some(reason) = &self.lost {
            return Err(ClientError::Lost { reason: reason.clone() });
        }
        self.serial += 1;
        Ok(self.serial)
    }

    /// Numbers a request and keeps its answer's place; gives the number and what to send.
    pub(crate) fn begin(&mut self, make: impl FnOnce(u64) -> ClientRequest) -> Result<(u64, ClientRequest), ClientError> {
        let serial = self.number()?;
        let request = make(serial);
        let makes_lock = matches!(request, ClientRequest::Lock { .. } | ClientRequest::LockMany { .. });
        self.waiting.insert(serial, Waiter { makes_lock, cancel: Cancel::of(&request), ..Waiter::default() });
        Ok((serial, request))
    }

    /// A request whose answer nobody waits for; none when the session is over.
    pub(crate) fn post(&mut self, make: impl FnOnce(u64) -> ClientRequest) -> Option<ClientRequest> {
        self.number().ok().map(make)
    }

    /// The posted request that gives a lock back, with whatever a dropped future left under way; none when the session is over, and the lock
    /// with it.
    pub(crate) fn release(&mut self, lock: u32, flags: Flags, lvb: Option<Lvb>) -> Option<ClientRequest> {
        self.held.remove(&lock);
        let is_lost = self.lost.is_some();
        (!is_lost).then_some(ClientRequest::Unlock { serial: 0, lock, flags: flags.with(Flags::FORCEUNLOCK), lvb })
    }

    /// The answer, if it has come.
    pub(crate) fn take(&mut self, serial: u64) -> Option<Reply> {
        self.waiting.get(&serial)?.answer.as_ref()?;
        self.waiting.remove(&serial)?.answer
    }

    /// The answer, or who is to be woken when it comes.
    pub(crate) fn poll(&mut self, serial: u64, waker: &Waker) -> Poll<Reply> {
        if let Some(answer) = self.take(serial) {
            return Poll::Ready(answer);
        }
        if let Some(waiter) = self.waiting.get_mut(&serial) {
            waiter.waker = Some(waker.clone());
        }
        Poll::Pending
    }

    /// Nobody waits for the answer any more; says how to take the request back. A lock it brings, or has brought, is named by
    /// [`Routing::take_leftovers`].
    pub(crate) fn abandon(&mut self, serial: u64) -> Cancel {
        let Some(waiter) = self.waiting.get_mut(&serial) else { return Cancel::Nothing };
        waiter.is_abandoned = true;
        let (makes_lock, cancel) = (waiter.makes_lock, waiter.cancel);
        let Some(answer) = self.take(serial) else { return cancel };
        if makes_lock && let Ok(reply) = answer {
            for lock in granted(&reply) {
                self.held.remove(&lock);
                self.leftovers.push(lock);
            }
        }
        Cancel::Nothing
    }

    /// Is there a lock that was granted to nobody?
    pub(crate) fn has_leftovers(&self) -> bool {
        !self.leftovers.is_empty()
    }

    /// Locks that were granted to nobody.
    pub(crate) fn take_leftovers(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.leftovers)
    }

    /// From here on hints for a lock go there, also one that came before.
    pub(crate) fn listen(&mut self, lock: u32, sink: HintSink) {
        if let Some(held) = self.held.get_mut(&lock) {
            if let Some(mode) = held.hint.take() {
                sink(mode);
            }
            held.sink = Some(sink);
        }
    }

    /// A lock is gone: nothing blocks any more.
    pub(crate) fn forget(&mut self, lock: u32) {
        self.held.remove(&lock);
    }

    /// Why the session is over, if it is.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Takes a reply; gives the number of the request that it answers.
    pub(crate) fn handle(&mut self, reply: ClientReply) -> Option<u64> {
        match &reply {
            ClientReply::Blocking { lock, mode } => self.hint(*lock, *mode),
            ClientReply::Lost { reason } | ClientReply::Refused { serial: 0, reason, .. } => self.end(reason),
            ClientReply::DeadlockCycle { serial, cycle } => {
                if let Some(waiter) = self.waiting.get_mut(serial) {
                    waiter.cycle = Some(cycle.clone());
                }
            }
            _ => {}
        }
        let serial = reply.answers()?;
        let waiter = self.waiting.get_mut(&serial)?;
        if waiter.makes_lock {
            for lock in granted(&reply) {
                if waiter.is_abandoned {
                    self.leftovers.push(lock);
                } else {
                    self.held.insert(lock, Held::default());
                }
            }
        }
        if waiter.is_abandoned {
            self.waiting.remove(&serial);
            return None;
        }
        waiter.answer = Some(match reply {
            ClientReply::Refused { status, reason, .. } => Err(ClientError::Refused { status, reason }),
            ClientReply::Completed { status: LockStatus::Deadlock, .. }
            | ClientReply::ManyCompleted { status: LockStatus::Deadlock, .. } => Err(ClientError::Deadlock { cycle: waiter.cycle.take() }),
            reply => Ok(reply),
        });
        if let Some(waker) = waiter.waker.take() {
            waker.wake();
        }
        Some(serial)
    }

    fn hint(&mut self, lock: u32, mode: Mode) {
        if let Some(held) = self.held.get_mut(&lock) {
            match &held.sink {
                Some(sink) => sink(mode),
                None => held.hint = held.hint.max(Some(mode)),
            }
        }
    }

    /// The session is over: everybody who waits learns it.
    pub(crate) fn end(&mut self, reason: &str) {
        let reason = self.lost.get_or_insert_with(|| reason.to_owned()).clone();
        self.held.clear();
        self.leftovers.clear();
        self.waiting.retain(|_, waiter| !waiter.is_abandoned);
        for waiter in self.waiting.values_mut() {
            waiter.answer.get_or_insert_with(|| Err(ClientError::Lost { reason: reason.clone() }));
            if let Some(waker) = waiter.waker.take() {
                waker.wake();
            }
        }
    }
}

/// The locks that a reply grants.
fn granted(reply: &ClientReply) -> impl Iterator<Item = u32> {
    let (one, many) = match reply {
        ClientReply::Completed { lock, mode: Some(_), .. } => (Some(*lock), [].as_slice()),
        ClientReply::ManyCompleted { locks, .. } => (None, locks.as_slice()),
        _ => (None, [].as_slice()),
    };
    one.into_iter().chain(many.iter().map(|(lock, _)| *lock))
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadbolt_dlm_core::{ResourceName, ResultFlags, Token};

    fn lock(serial: u64) -> ClientRequest {
        let resource = ResourceName::new(b"r").unwrap();
        ClientRequest::Lock { serial, lockspace: 1, resource, mode: Mode::Ex, flags: Flags::NONE, owner: 0, timeout_ms: 0, lvb: None }
    }

    fn granted(serial: u64, lock: u32) -> ClientReply {
        let (status, mode, flags, token) = (LockStatus::Success, Some(Mode::Ex), ResultFlags::default(), Token::default());
        ClientReply::Completed { serial, lock, status, mode, flags, lvb: None, token }
    }

    #[test]
    fn a_lock_for_somebody_who_left_is_given_back_whenever_it_comes() {
        let mut routing = Routing::default();
        let (early, _) = routing.begin(lock).unwrap();
        let (late, _) = routing.begin(lock).unwrap();
        routing.handle(granted(early, 7));
        assert_eq!(routing.abandon(early), Cancel::Nothing, "it has come already");
        assert_eq!(routing.abandon(late), Cancel::Request);
        routing.handle(granted(late, 8));
        assert_eq!(routing.take_leftovers(), [7, 8]);
        let (mode, flags) = (Mode::Pr, Flags::NONE);
        let convert = |serial| ClientRequest::Convert { serial, lock: 9, mode, flags, owner: 0, timeout_ms: 0, lvb: None };
        let (conversion, _) = routing.begin(convert).unwrap();
        routing.handle(granted(conversion, 9));
        routing.abandon(conversion);
        assert!(routing.take_leftovers().is_empty(), "a conversion's lock has an owner");
        assert!(routing.waiting.is_empty() && routing.held.is_empty());
    }

    #[test]
    fn a_hint_before_anybody_listens_is_kept_and_one_for_a_lock_that_is_gone_is_not() {
        let mut routing = Routing::default();
        let (serial, _) = routing.begin(lock).unwrap();
        routing.handle(granted(serial, 7));
        routing.handle(ClientReply::Blocking { lock: 7, mode: Mode::Pr });
        routing.handle(ClientReply::Blocking { lock: 7, mode: Mode::Cr });
        routing.handle(ClientReply::Blocking { lock: 8, mode: Mode::Ex });
        let (sender, hints) = std::sync::mpsc::channel();
        routing.listen(
            7,
            Box::new(move |mode| {
                let _ = sender.send(mode);
            }),
        );
        assert_eq!(hints.try_recv(), Ok(Mode::Pr));
        routing.forget(7);
        assert!(hints.recv().is_err());
        assert!(routing.held.is_empty());
    }

    #[test]
    fn the_end_answers_everybody_once() {
        let mut routing = Routing::default();
        let (serial, _) = routing.begin(lock).unwrap();
        routing.handle(ClientReply::Lost { reason: "first".into() });
        routing.end("second");
        let Some(Err(ClientError::Lost { reason })) = routing.take(serial) else { panic!("not answered") };
        assert_eq!(reason, "first");
        assert!(matches!(routing.begin(lock), Err(ClientError::Lost { .. })));
    }
}
