//! What: locks, ranges and waits as values for people and tools, and the filter that picks among them.
//! Owns: these types.
//! Invariants: a wait fits a filter when it or somebody in its way does.
//! Does not: know where they come from.
//! Called by: `listing`; the daemon's documents.

use crate::cycle::Claim;
use crate::mode::{Mode, Token};
use crate::pattern::Pattern;
use crate::ranges::Span;
use alloc::vec::Vec;
use deadbolt_disk_format::types::{Life, SlotIndex};

/// On which queue a lock stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockState {
    /// Held.
    Granted,
    /// Held, and waits for another mode.
    Converting,
    /// Waits.
    Waiting,
}

/// Whose a lock is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Who {
    /// Whose node.
    pub life: Life,
    /// Process of the session on that node.
    pub pid: u32,
    /// Number of the lock on that node.
    pub lock: u32,
    /// Number of the session on that node, where the lock is for that.
    pub session: Option<u64>,
    /// Number of the transaction that it is for, the same on every node.
    pub owner: Option<u64>,
    /// Its process is gone, and it stays.
    pub is_orphan: bool,
}

/// Somebody who keeps another waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InTheWay {
    /// Who.
    pub who: Who,
    /// With bytes: whose they are among those who share the lock.
    pub part: u64,
    /// By what.
    pub claim: Claim,
    /// It has that; else it waits for it and came first.
    pub is_held: bool,
}

/// Everybody who keeps one waiting, as its master knows them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WaitsFor {
    /// The first of them. Nobody: the wait is for recovery, or for the permission to grant.
    pub first: Vec<InTheWay>,
    /// How many more, or at least so many.
    pub left_out: usize,
}

/// One lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockSnapshot {
    /// Whose.
    pub who: Who,
    /// On which queue.
    pub state: LockState,
    /// Mode held.
    pub granted: Option<Mode>,
    /// Mode waited for.
    pub wanted: Option<Mode>,
    /// When it came into this state, by this node's clock.
    pub since_ms: u64,
    /// Number of its last grant.
    pub token: Token,
    /// Of one that waits: for whom; none: not known here, or left out.
    pub waits_for: Option<WaitsFor>,
}

/// Bytes that a lock has or waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeSnapshot {
    /// Whose lock.
    pub who: Who,
    /// Whose bytes among those who share the lock; 0: the session's.
    pub part: u64,
    /// Which bytes.
    pub bytes: Span,
    /// It has them; else it waits for them.
    pub is_held: bool,
    /// Since when it waits, by this node's clock, where that is known.
    pub since_ms: Option<u64>,
    /// Of one that waits: for whom; none: not known here, or left out.
    pub waits_for: Option<WaitsFor>,
}

/// One resource, as far as this node knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResourceSnapshot {
    /// Name of the lockspace, where it is known here.
    pub lockspace: Vec<u8>,
    /// Its name.
    pub resource: Vec<u8>,
    /// Its master, where it is known.
    pub master: Option<Life>,
    /// This is its master's word and complete; else only locks of this node are here.
    pub is_masters_word: bool,
    /// Its locks, holders first.
    pub locks: Vec<LockSnapshot>,
    /// Its byte ranges, held ones first.
    pub ranges: Vec<RangeSnapshot>,
}

/// Which locks are wanted: those that fit everything that is given.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Name of the lockspace.
    pub lockspace: Option<Pattern>,
    /// Name of the resource.
    pub resource: Option<Pattern>,
    /// Locks of this node.
    pub slot: Option<SlotIndex>,
    /// Locks of this process (of any node).
    pub pid: Option<u32>,
    /// Locks of this transaction, ranges of this owner.
    pub owner: Option<u64>,
    /// Locks that have or want this mode.
    pub mode: Option<Mode>,
    /// Only what waits; who is in the way is told with it.
    pub is_waiting: bool,
}

impl Filter {
    /// Is a resource of this name wanted at all?
    pub(super) fn fits_name(&self, lockspace: &[u8], resource: &[u8]) -> bool {
        let fits = |pattern: &Option<Pattern>, name| pattern.as_ref().is_none_or(|pattern| pattern.matches(name));
        fits(&self.lockspace, lockspace) && fits(&self.resource, resource)
    }

    fn fits(&self, who: &Who, part: u64, modes: &[Mode]) -> bool {
        self.slot.is_none_or(|slot| slot == who.life.slot)
            && self.pid.is_none_or(|pid| pid == who.pid)
            && self.owner.is_none_or(|owner| who.owner == Some(owner) || part == owner)
            && self.mode.is_none_or(|mode| modes.contains(&mode))
    }

    pub(super) fn fits_in_the_way(&self, blocker: &InTheWay) -> bool {
        let mode = match blocker.claim {
            Claim::Mode(mode) => Some(mode),
            Claim::Range(_) => None,
        };
        self.fits(&blocker.who, blocker.part, mode.as_slice())
    }

    /// `is_near`: somebody in its way fits.
    pub(super) fn fits_lock(&self, lock: &LockSnapshot, is_near: bool) -> bool {
        let is_wanted = self.fits(&lock.who, 0, lock.granted.as_slice()) || self.fits(&lock.who, 0, lock.wanted.as_slice());
        if self.is_waiting { lock.wanted.is_some() && (is_wanted || is_near) } else { is_wanted }
    }

    /// As [`Self::fits_lock`].
    pub(super) fn fits_range(&self, range: &RangeSnapshot, is_near: bool) -> bool {
        let is_wanted = self.fits(&range.who, range.part, &[]);
        if self.is_waiting { !range.is_held && (is_wanted || is_near) } else { is_wanted }
    }
}
