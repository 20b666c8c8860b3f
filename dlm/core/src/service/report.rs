//! What: what people and tools are shown of the locks.
//! Owns: the snapshot and status types.
//! Invariants: reads only.
//! Does not: format text.
//! Called by: `deadbolt locks`, `deadbolt status`, tests.

use super::LockService;
use super::holder::LocalLock;
use crate::mode::{Mode, Token};
use crate::name::Key;
use crate::queue::Entry;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use deadbolt_disk_format::types::{Life, ViewNumber};

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

/// One lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockSnapshot {
    /// Whose node.
    pub life: Life,
    /// Process of the session on that node.
    pub pid: u32,
    /// Number of the lock on that node.
    pub lock: u32,
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
}

/// One resource, as far as this node knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResourceSnapshot {
    /// Name of the lockspace, where it is known here.
    pub lockspace: Vec<u8>,
    /// Its name.
    pub resource: Vec<u8>,
    /// Its master, where it is known. When it is this node the list of locks is complete, else only this node's are listed.
    pub master: Option<Life>,
    /// Its locks, holders first.
    pub locks: Vec<LockSnapshot>,
}

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
    /// What is held and waited for: every resource of which this node is master, and this node's own locks elsewhere.
    #[must_use]
    pub fn snapshot(&self) -> Vec<ResourceSnapshot> {
        let name = |lockspace: u32| self.names.get(&lockspace).cloned().unwrap_or_default();
        let mut local: BTreeMap<u32, Vec<LockSnapshot>> = BTreeMap::new();
        for (id, lock) in self.locks.iter() {
            if self.places.get(lock.place).is_some_and(|place| place.mastered == 0) {
                local.entry(lock.place).or_default().push(self.local_snapshot(id, lock));
            }
        }
        let mut resources: Vec<(Key, ResourceSnapshot)> = Vec::new();
        for (number, place) in self.places.iter() {
            let Some(key) = self.places.key(number) else { continue };
            let locks = match self.mastered.get(place.mastered) {
                Some(resource) => resource.entries().map(|entry| self.snapshot_of(entry)).collect(),
                None => local.remove(&number).unwrap_or_default(),
            };
            let master = if place.is_master() { Some(self.me) } else { place.master.and_then(|master| self.peers.life(master)) };
            if !locks.is_empty() || place.is_master() {
                resources.push((key, ResourceSnapshot { lockspace: name(key.lockspace), resource: key.name().to_vec(), master, locks }));
            }
        }
        resources.sort_by_key(|(key, _)| *key);
        resources.into_iter().map(|(_, resource)| resource).collect()
    }

    fn local_snapshot(&self, id: u32, lock: &LocalLock) -> LockSnapshot {
        let state = match (lock.granted, &lock.pending) {
            (None, _) => LockState::Waiting,
            (Some(_), Some(_)) => LockState::Converting,
            (Some(_), None) => LockState::Granted,
        };
        LockSnapshot {
            life: self.me,
            pid: lock.pid,
            lock: id,
            state,
            granted: lock.granted,
            wanted: lock.pending.as_ref().map(|pending| pending.mode),
            since_ms: lock.since_ms,
            token: lock.token,
        }
    }

    fn snapshot_of(&self, entry: &Entry) -> LockSnapshot {
        let state = match (entry.granted, entry.wanted) {
            (None, _) => LockState::Waiting,
            (Some(_), Some(_)) => LockState::Converting,
            (Some(_), None) => LockState::Granted,
        };
        LockSnapshot {
            life: self.peers.life(entry.owner.peer).unwrap_or(self.me),
            pid: entry.pid,
            lock: entry.owner.lock,
            state,
            granted: entry.granted,
            wanted: entry.wanted,
            since_ms: entry.since_ms,
            token: entry.token,
        }
    }

    /// Where the service stands.
    #[must_use]
    pub fn status(&self) -> ServiceStatus {
        let gated = self.lockspaces.iter().filter_map(|(number, lockspace)| {
            let by: Vec<Life> = self.gated_by(*number).collect();
            if by.is_empty() { None } else { Some(GatedLockspace { lockspace: lockspace.name.clone(), by }) }
        });
        ServiceStatus {
            view: ViewNumber(self.view.number),
            is_member: self.view.is_member,
            may_grant: self.may_grant,
            awaited: self.recovery.as_ref().map(|recovery| recovery.awaited(&self.view.members)).unwrap_or_default(),
            gated: gated.collect(),
            holds: self.holds.is_said,
            sessions: self.sessions.len(),
            locks: self.locks.len(),
            waiting: self.locks.iter().filter(|(_, lock)| lock.pending.is_some()).count(),
            mastered: self.places.iter().filter(|(_, place)| place.is_master()).count(),
        }
    }
}
