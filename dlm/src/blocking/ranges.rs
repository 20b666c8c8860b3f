//! What: byte ranges of a locked resource, for the blocking client.
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

/// Byte ranges of the resource, as POSIX has them: an owner is whoever stands behind this lock (a process, an open file) by a number of the
/// program's own, 0 being the session. An owner's new range replaces what it had of these bytes, and any part can be given back; two owners
/// exclude each other where their ranges overlap and one is for writing. Ranges are independent of the lock's mode (NL will do), and end with
/// the lock.
///
/// ```no_run
/// use deadbolt_dlm::{Mode, RangeMode, blocking::{Client, Wishes}};
/// # fn main() -> Result<(), deadbolt_dlm::blocking::ClientError> {
/// let space = Client::connect("/var/lib/deadbolt/lock.sock", Default::default())?.join(b"my-files")?;
/// let file = space.lock(b"file 17", Mode::Nl, &Wishes::default())?;
/// file.lock_range(RangeMode::Write, 0..4096, &Wishes::default())?;
/// // From here on others may read the second half.
/// file.lock_range(RangeMode::Read, 2048..4096, &Wishes::default())?;
/// file.unlock_range(..2048, 0)?;
/// // Who is in the way of the rest, for owner 7?
/// if let Some(holder) = file.range_conflict(RangeMode::Write, 2048.., 7)? {
///     println!("process {} of slot {} has bytes {}..={}", holder.pid, holder.slot, holder.start, holder.end);
/// }
/// # Ok(()) }
/// ```
impl Guard {
    /// Takes bytes for `wishes.owner` and waits for them; of the wishes' flags, NOQUEUE and NODLCKWT go with it.
    ///
    /// # Errors
    /// Not granted in time, or a deadlock (the owner has what it had), refused, or the session is over.
    pub fn lock_range(&self, mode: RangeMode, bytes: impl RangeBounds<u64>, wishes: &Wishes) -> Result<(), ClientError> {
        self.change_range(Some(mode), bytes, wishes)
    }

    /// Takes bytes if nobody is in the way now; false: somebody is.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub fn try_lock_range(&self, mode: RangeMode, bytes: impl RangeBounds<u64>, owner: u64) -> Result<bool, ClientError> {
        match self.lock_range(mode, bytes, &Wishes { owner, ..Wishes::at_once() }) {
            Ok(()) => Ok(true),
            Err(ClientError::NotGranted(LockStatus::Again)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives back whatever `owner` has of these bytes, and waits until the node has taken it.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub fn unlock_range(&self, bytes: impl RangeBounds<u64>, owner: u64) -> Result<(), ClientError> {
        self.change_range(None, bytes, &Wishes { owner, ..Wishes::default() })
    }

    /// Would `owner` get these bytes now? None: yes; else one of those in its way, as POSIX's `F_GETLK` says it.
    ///
    /// # Errors
    /// Refused, or the session is over.
    pub fn range_conflict(&self, mode: RangeMode, bytes: impl RangeBounds<u64>, owner: u64) -> Result<Option<RangeHolder>, ClientError> {
        let (lock, (start, end), kind) = (self.done.lock, first_and_last(bytes)?, RangeKind::from(Some(mode)));
        conflict(self.client.call(|serial| ClientRequest::RangeQuery { serial, lock, owner, kind, start, end })?)
    }

    fn change_range(&self, mode: Option<RangeMode>, bytes: impl RangeBounds<u64>, wishes: &Wishes) -> Result<(), ClientError> {
        let (lock, (start, end), kind) = (self.done.lock, first_and_last(bytes)?, RangeKind::from(mode));
        let (flags, owner, timeout_ms) = (wishes.flags, wishes.owner, timeout_ms(wishes.timeout));
        let make = |serial| ClientRequest::Range { serial, lock, owner, kind, start, end, flags, timeout_ms };
        expect(&completion(self.client.call(make)?, "Range")?, LockStatus::Success)
    }
}
