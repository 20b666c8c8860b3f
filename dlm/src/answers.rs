//! What: what the daemon's answers mean to a program.
//! Owns: the types that both client libraries give.
//! Invariants: an answer to something else than was asked is an error.
//! Does not: wait for answers.
//! Called by: the blocking and the async client.

use crate::routing::ClientError;
use deadbolt_dlm_core::{
    ClientReply, Flags, LockStatus, Mode, ResourceName, ResultFlags, Token,
    client::{LOCKSPACE_BYTES_MAX, Lvb, MANY_LOCKS_MAX, NONE_FAILED, QueriedLock, RESOURCE_BYTES_MAX, RangeHolder},
    legal::check_unlock,
};
use std::{
    ops::{Bound, RangeBounds},
    time::Duration,
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
    let refused = || invalid(format!("a resource name has 1 to {RESOURCE_BYTES_MAX} bytes, this one has {}; choose another", name.len()));
    ResourceName::new(name).ok_or_else(refused)
}

/// A name that can be sent.
pub(crate) fn lockspace_name(name: &[u8]) -> Result<Vec<u8>, ClientError> {
    if (1..=LOCKSPACE_BYTES_MAX).contains(&name.len()) {
        return Ok(name.to_vec());
    }
    Err(invalid(format!("a lockspace name has 1 to {LOCKSPACE_BYTES_MAX} bytes, this one has {}; choose another", name.len())))
}

/// Names and modes of many locks that can be asked for at once.
pub(crate) fn many_items(items: &[(&[u8], Mode)]) -> Result<Vec<(ResourceName, Mode)>, ClientError> {
    if !(1..=MANY_LOCKS_MAX).contains(&items.len()) {
        return Err(invalid(format!("1 to {MANY_LOCKS_MAX} locks can be asked for at once, not {}; ask several times", items.len())));
    }
    items.iter().map(|(name, mode)| Ok((resource_name(name)?, *mode))).collect()
}

/// First and last of some bytes.
pub(crate) fn first_and_last(bytes: impl RangeBounds<u64>) -> Result<(u64, u64), ClientError> {
    let first = match bytes.start_bound() {
        Bound::Included(first) => Some(*first),
        Bound::Excluded(before) => before.checked_add(1),
        Bound::Unbounded => Some(0),
    };
    let last = match bytes.end_bound() {
        Bound::Included(last) => Some(*last),
        Bound::Excluded(behind) => behind.checked_sub(1),
        Bound::Unbounded => Some(u64::MAX),
    };
    let ends = first.zip(last).filter(|(first, last)| first <= last);
    ends.ok_or_else(|| invalid("a byte range has at least one byte, and its first one before its last; this one has none".into()))
}

/// A wait's end as it is sent: whole milliseconds, never less than wished; 0: for ever.
pub(crate) fn timeout_ms(timeout: Option<Duration>) -> u32 {
    let wished = timeout.map(|timeout| u32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX));
    wished.map_or(0, |ms| ms.max(1))
}

fn invalid(reason: String) -> ClientError {
    ClientError::Refused { status: LockStatus::Invalid, reason }
}

/// Why nothing was granted. `judged`: what is wrong with the arguments.
pub(crate) fn not_granted(status: LockStatus, judged: impl FnOnce() -> Result<(), &'static str>) -> ClientError {
    match judged() {
        Err(reason) if status == LockStatus::Invalid => invalid(reason.into()),
        _ => ClientError::NotGranted(status),
    }
}

/// Is a lock that was granted so given back so? Asked before the request is sent: what is posted has no answer.
pub(crate) fn may_unlock(done: &Completion, flags: Flags, lvb: Option<&Lvb>) -> Result<(), ClientError> {
    check_unlock(done.mode, flags, lvb).map_err(|reason| invalid(reason.into()))
}

/// Succeeds with a completion that says `wanted`.
pub(crate) fn expect(done: &Completion, wanted: LockStatus) -> Result<(), ClientError> {
    if done.status == wanted { Ok(()) } else { Err(ClientError::NotGranted(done.status)) }
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

/// Who stands in the way of a range.
pub(crate) fn conflict(reply: ClientReply) -> Result<Option<RangeHolder>, ClientError> {
    match reply {
        ClientReply::RangeConflict { status: LockStatus::Success, conflict, .. } => Ok(conflict),
        ClientReply::RangeConflict { status, .. } => Err(ClientError::NotGranted(status)),
        _ => Err(ClientError::Unexpected { to: "RangeQuery" }),
    }
}
