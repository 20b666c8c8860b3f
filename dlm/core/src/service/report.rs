//! What: where the service stands, for people and tools.
//! Owns: the status types.
//! Invariants: reads only.
//! Does not: format text.
//! Called by: `deadbolt status`, tests.

use super::LockService;
use alloc::vec::Vec;
use deadbolt_disk_format::types::{Life, ViewNumber};

/// A lockspace that grants nothing new, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatedLockspace {
    /// Its name.
    pub lockspace: Vec<u8>,
    /// Removed lives that may have joined it and are not gone yet.
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
    /// Members that recovery waits for; empty when it is finished.
    pub awaited: Vec<Life>,
    /// Lockspaces of this node that wait for owed nodes.
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
}

impl LockService {
    /// Members that recovery waits for.
    pub(super) fn awaited(&self) -> Vec<Life> {
        self.recovery.as_ref().map(|recovery| recovery.awaited(&self.view.members)).unwrap_or_default()
    }

    /// Lockspaces in which something is not granted because of nodes that are not gone yet.
    pub(super) fn gated(&self) -> Vec<GatedLockspace> {
        let gated = self.lockspaces.iter().filter_map(|(number, lockspace)| {
            let by: Vec<Life> = self.gated_by(*number).collect();
            if by.is_empty() { None } else { Some(GatedLockspace { lockspace: lockspace.name.clone(), by }) }
        });
        gated.collect()
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
            mastered: self.places.iter().filter(|(_, place)| place.is_master()).count(),
        }
    }
}
