//! What: where the service stands, for people and tools.
//! Owns: the status types.
//! Invariants: reads only.
//! Does not: format text.
//! Called by: `deadbolt status`, tests.

use super::LockService;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use deadbolt_disk_format::types::{Life, ViewNumber};

/// A lockspace in which somebody waits for resources whose master or home is lost, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatedLockspace {
    /// Its name.
    pub lockspace: Vec<u8>,
    /// Removed lives that may have been master of them and are not gone yet.
    pub by: Vec<Life>,
}

/// Where the service stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceStatus {
    /// The view it works in.
    pub view: ViewNumber,
    /// This life is in it.
    pub is_member: bool,
    /// Grants may leave.
    pub may_grant: bool,
    /// Members whose answers this node waits for as home; empty when all have come.
    pub awaited: Vec<Life>,
    /// Lockspaces with resources of this node's share that wait for owed nodes.
    pub gated: Vec<GatedLockspace>,
    /// The daemon was last told that something is held.
    pub holds: bool,
    /// Open sessions.
    pub sessions: usize,
    /// Locks of this node's sessions, in every state.
    pub locks: usize,
    /// Of these, how many wait for an answer.
    pub waiting: usize,
    /// Resources of which this node is master.
    pub mastered: usize,
    /// Resources that came to this node because it works on them most, since it started.
    pub moved: u64,
}

impl LockService {
    /// Lockspaces in which somebody waits for what only nodes that are not gone yet may have.
    pub(super) fn gated(&self) -> Vec<GatedLockspace> {
        let by: Vec<Life> = self.view.owed.iter().map(|owed| owed.life).collect();
        if by.is_empty() {
            return Vec::new();
        }
        let waiting = self.parked.keys().chain(self.reports.keys()).filter_map(|number| self.places.get(*number));
        let waiting: BTreeSet<u32> = waiting.map(|place| place.lockspace).collect();
        let name = |lockspace: u32| self.names.get(&lockspace).cloned().unwrap_or_default();
        waiting.into_iter().map(|lockspace| GatedLockspace { lockspace: name(lockspace), by: by.clone() }).collect()
    }

    /// Where the service stands.
    #[must_use]
    pub fn status(&self) -> ServiceStatus {
        ServiceStatus {
            view: ViewNumber(self.view.number),
            is_member: self.view.is_member,
            may_grant: self.may_grant,
            awaited: self.awaited(),
            gated: self.gated(),
            holds: self.holds.is_said,
            sessions: self.sessions.len(),
            locks: self.locks.len(),
            waiting: self.locks.iter().filter(|(_, lock)| lock.pending.is_some()).count(),
            mastered: self.places.iter().filter(|(_, place)| place.is_master() && !place.is_kept()).count(),
            moved: self.moves.count,
        }
    }
}
