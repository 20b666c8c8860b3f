//! What: byte ranges of a locked resource, for the async client.
//! Owns: nothing; what an owner has is kept by the node.
//! Invariants: an owner's ranges are those of POSIX; they end with the lock.
//! Does not: give ranges back by itself while the lock is held.
//! Called by: programs of users.

use super::{ClientError, Guard, Wishes};
use crate::answers::{completion, conflict, expect, first_and_last, timeout_ms};
use deadbolt_dlm_core::{
    ClientRequest, LockStatus, RangeMode,
    client::{RangeHolder, RangeKind},
};
use std::ops::RangeBounds;

/// Byte ranges of the resource; what they are is said at the blocking client's [`Guard`](crate::blocking::Guard).
///
/// Dropping a future takes its request back. Where the grant was faster, the owner has the bytes: it gives them back, or asks again to know.
impl Guard {
    /// Takes bytes for `wishes.owner` and waits for them; of the wishes' flags, NOQUEUE and NODLCKWT go with it.
    ///
    /// # Errors
    /// Not granted in time, or a deadlock (the owner has what it had), refused, or the session is over.
    pub async fn lock_range(&self, mode: RangeMode, bytes: impl RangeBounds<u64>, wishes: &Wishes) -> Result<(), ClientError> {
        self.change_range(Some(mode), bytes, wishes).await
    }

    /// Takes bytes if nobody is in the way now; false: somebody is.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub async fn try_lock_range(&self, mode: RangeMode, bytes: impl RangeBounds<u64>, owner: u64) -> Result<bool, ClientError> {
        match self.lock_range(mode, bytes, &Wishes { owner, ..Wishes::at_once() }).await {
            Ok(()) => Ok(true),
            Err(ClientError::NotGranted(LockStatus::Again)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives back whatever `owner` has of these bytes, and waits until the node has taken it.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub async fn unlock_range(&self, bytes: impl RangeBounds<u64>, owner: u64) -> Result<(), ClientError> {
        self.change_range(None, bytes, &Wishes { owner, ..Wishes::default() }).await
    }

    /// Would `owner` get these bytes now? None: yes; else one of those in its way, as POSIX's `F_GETLK` says it.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub async fn range_conflict(
        &self,
        mode: RangeMode,
        bytes: impl RangeBounds<u64>,
        owner: u64,
    ) -> Result<Option<RangeHolder>, ClientError> {
        let (lock, (start, end), kind) = (self.done.lock, first_and_last(bytes)?, RangeKind::from(Some(mode)));
        conflict(self.client.begin(|serial| ClientRequest::RangeQuery { serial, lock, owner, kind, start, end })?.await?)
    }

    async fn change_range(&self, mode: Option<RangeMode>, bytes: impl RangeBounds<u64>, wishes: &Wishes) -> Result<(), ClientError> {
        let (lock, (start, end), kind) = (self.done.lock, first_and_last(bytes)?, RangeKind::from(mode));
        let (flags, owner, timeout_ms) = (wishes.flags, wishes.owner, timeout_ms(wishes.timeout));
        let make = |serial| ClientRequest::Range { serial, lock, owner, kind, start, end, flags, timeout_ms };
        expect(&completion(self.client.begin(make)?.await?, "Range")?, LockStatus::Success)
    }
}
