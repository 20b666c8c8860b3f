//! What: what the daemon's answers mean to a program.
//! Owns: the types that both client libraries give.
//! Invariants: an answer to something else than was asked is an error.
//! Does not: wait for answers.
//! Called by: the blocking and the async client.

use crate::routing::ClientError;
use deadbolt_dlm_core::{
    ClientReply, LockStatus, Mode, ResourceName, ResultFlags, Token,
    client::{Lvb, NONE_FAILED, QueriedLock},
};

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

/// Who has and who wants a resource, as its master sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queried {
    /// Its value block, where the master knows it.
    pub value: Option<Lvb>,
    /// The value block may not be the last one written.
    pub is_value_in_doubt: bool,
    /// Holders, then those that convert, then those that wait, each in their order.
    pub locks: Vec<QueriedLock>,
    /// How many more there are.
    pub left_out: u32,
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

/// The locks of a reply, all granted.
pub(crate) fn many(reply: ClientReply, modes: &[Mode]) -> Result<Vec<Completion>, ClientError> {
    let ClientReply::ManyCompleted { status, failed, locks, .. } = reply else { return Err(ClientError::Unexpected { to: "LockMany" }) };
    if status != LockStatus::Success {
        return Err(ClientError::NoneGranted { status, failed: (failed != NONE_FAILED).then_some(failed.into()) });
    }
    let done = |((lock, token), mode): ((u32, Token), &Mode)| {
        let (mode, flags, lvb) = (Some(*mode), ResultFlags::default(), None);
        Completion { lock, status, mode, flags, lvb, token }
    };
    Ok(locks.into_iter().zip(modes).map(done).collect())
}

/// The list in a reply.
pub(crate) fn queried(reply: ClientReply) -> Result<Queried, ClientError> {
    match reply {
        ClientReply::Queried { status: LockStatus::Success, lvb, left_out, locks, .. } => {
            Ok(Queried { value: lvb.value, is_value_in_doubt: lvb.is_invalid, locks, left_out })
        }
        ClientReply::Queried { status, .. } => Err(ClientError::NotGranted(status)),
        _ => Err(ClientError::Unexpected { to: "Query" }),
    }
}
