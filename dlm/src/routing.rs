//! What: where each reply of the daemon goes, for both client libraries.
//! Owns: serials, the waiting requests, the sinks of blocking callbacks, the session's end.
//! Invariants: every waiting request is answered once, by its reply or by the session's end; a callback that comes right behind a grant
//!   finds its sink.
//! Does not: read or write sockets, or wait.
//! Called by: the blocking and the async client.

use deadbolt_dlm_core::{ClientReply, ClientRequest, LockStatus, Mode, ResourceName, ResultFlags, Token, client::Lvb};
use std::collections::BTreeMap;

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
    /// Not granted: the lock was busy, the wait ended, or it would deadlock.
    #[error("not granted: {0:?}")]
    NotGranted(LockStatus),
    /// The daemon answered with something else than was asked for.
    #[error("the daemon gave an unexpected answer to {to}; are the packages of one version?")]
    Unexpected {
        /// Which request.
        to: &'static str,
    },
}

/// What a completed operation says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Number of the lock; 0 where there is none.
    pub lock: u32,
    /// How it ended.
    pub status: LockStatus,
    /// Granted mode now.
    pub mode: Option<Mode>,
    /// DEMOTED, VALNOTVALID, ALTMODE.
    pub flags: ResultFlags,
    /// The value block, if asked for.
    pub lvb: Option<Lvb>,
    /// The grant's number.
    pub token: Token,
}

pub(crate) type Answer = Box<dyn FnOnce(Result<ClientReply, ClientError>) + Send>;
pub(crate) type BlockingSink = Box<dyn Fn(Mode) + Send>;

struct Waiter {
    answer: Answer,
    sink: Option<BlockingSink>,
}

/// See the module's head.
#[derive(Default)]
pub(crate) struct Routing {
    serial: u64,
    waiting: BTreeMap<u64, Waiter>,
    sinks: BTreeMap<u32, BlockingSink>,
    lost: Option<String>,
}

impl Routing {
    /// Numbers a request and keeps its answer's place. A session that is over answers at once.
    pub(crate) fn begin(
        &mut self,
        make: impl FnOnce(u64) -> ClientRequest,
        answer: Answer,
        sink: Option<BlockingSink>,
    ) -> Option<(u64, Vec<u8>)> {
        if let Some(reason) = &self.lost {
            answer(Err(ClientError::Lost { reason: reason.clone() }));
            return None;
        }
        self.serial += 1;
        let request = make(self.serial);
        // The answer to Hello carries no serial.
        let key = if matches!(request, ClientRequest::Hello { .. }) { 0 } else { self.serial };
        self.waiting.insert(key, Waiter { answer, sink });
        Some((key, deadbolt_dlm_core::client::frame(&request.encode())))
    }

    /// A lock is gone: nothing blocks any more.
    pub(crate) fn forget(&mut self, lock: u32) {
        self.sinks.remove(&lock);
    }

    /// Why the session is over, if it is.
    pub(crate) fn lost(&self) -> Option<String> {
        self.lost.clone()
    }

    pub(crate) fn handle(&mut self, reply: ClientReply) {
        let serial = match &reply {
            ClientReply::Welcome { .. } => 0,
            ClientReply::Blocking { lock, mode } => {
                if let Some(sink) = self.sinks.get(lock) {
                    sink(*mode);
                }
                return;
            }
            ClientReply::Lost { reason } => return self.end(reason),
            reply => match reply.answers() {
                Some(serial) => serial,
                None => return,
            },
        };
        let Some(waiter) = self.waiting.remove(&serial) else { return };
        if let (ClientReply::Completed { lock, mode: Some(_), .. }, Some(sink)) = (&reply, waiter.sink) {
            self.sinks.insert(*lock, sink);
        }
        (waiter.answer)(match reply {
            ClientReply::Refused { status, reason, .. } => Err(ClientError::Refused { status, reason }),
            reply => Ok(reply),
        });
    }

    /// The session is over: everybody who waits learns it.
    pub(crate) fn end(&mut self, reason: &str) {
        self.lost.get_or_insert_with(|| reason.to_owned());
        self.sinks.clear();
        for (_, waiter) in std::mem::take(&mut self.waiting) {
            (waiter.answer)(Err(ClientError::Lost { reason: reason.to_owned() }));
        }
    }
}

/// A name that can be sent.
pub(crate) fn resource_name(name: &[u8]) -> Result<ResourceName, ClientError> {
    ResourceName::new(name).ok_or_else(|| ClientError::Refused {
        status: LockStatus::Invalid,
        reason: format!("a resource name has 1 to 64 bytes, this one has {}; choose another", name.len()),
    })
}

/// The completion in a reply.
pub(crate) fn completion(reply: ClientReply, to: &'static str) -> Result<Completion, ClientError> {
    match reply {
        ClientReply::Completed { lock, status, mode, flags, lvb, token, .. } => Ok(Completion { lock, status, mode, flags, lvb, token }),
        _ => Err(ClientError::Unexpected { to }),
    }
}
