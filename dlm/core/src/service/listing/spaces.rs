//! What: the lockspaces that this node knows of: who uses them, how much of them is here, what stops them.
//! Owns: these types, the counting.
//! Invariants: counts come piece by piece, by the walk of the list; their sum is the whole.
//! Does not: ask other nodes.
//! Called by: `deadbolt lockspaces` through the daemon.

use super::{LOOKS_MAX, LockService, ROWS_MAX, Room};
use crate::pattern::Pattern;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use deadbolt_disk_format::types::Life;

/// A lockspace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LockspaceSnapshot {
    /// Its name.
    pub lockspace: Vec<u8>,
    /// Its number, the same on every node.
    pub number: u32,
    /// Members that use it.
    pub members: Vec<Life>,
    /// Sessions of this node that use it.
    pub sessions: usize,
    /// Locks of these.
    pub locks: usize,
    /// Of these, how many wait for an answer.
    pub waiting: usize,
    /// Resources of which this node is master.
    pub resources: usize,
    /// Removed lives that are not gone yet and keep something in it from being granted.
    pub gated_by: Vec<Life>,
}

/// A piece: the first has every lockspace, the others those in which something more was counted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LockspacePage {
    /// Grants may leave.
    pub may_grant: bool,
    /// Members that recovery waits for.
    pub awaited: Vec<Life>,
    /// By number.
    pub lockspaces: Vec<LockspaceSnapshot>,
    /// Where the next piece begins; none: this was the last.
    pub next: Option<u64>,
}

impl LockService {
    /// A piece of the list of lockspaces: from where the last one says, 0 is the beginning.
    #[must_use]
    pub fn list_lockspaces(&self, pattern: Option<&Pattern>, from: u64) -> LockspacePage {
        let mut found: BTreeMap<u32, LockspaceSnapshot> = BTreeMap::new();
        if from == 0 {
            let gated = self.gated();
            for (number, name) in &self.names {
                let known = self.described(*number, name);
                let gated_by = gated.iter().find(|gated| gated.lockspace == *name).map(|gated| gated.by.clone()).unwrap_or_default();
                found.insert(*number, LockspaceSnapshot { gated_by, ..known });
            }
        }
        let mut room = Room { looks: LOOKS_MAX, rows: ROWS_MAX, wanted: 0, left_out: 0 };
        let next = self.walk(from, &mut room, |number, is_own, _| {
            let lock = self.locks.get(number).filter(|_| is_own);
            let Some(place) = self.places.get(lock.map_or(number, |lock| lock.place)) else { return };
            let counts = found.entry(place.lockspace).or_default();
            if let Some(lock) = lock {
                counts.locks += 1;
                counts.waiting += usize::from(lock.pending.is_some());
            } else {
                counts.resources += usize::from(place.is_master());
            }
        });
        for (number, counts) in &mut found {
            let name = self.names.get(number).cloned().unwrap_or_default();
            (counts.number, counts.lockspace) = (*number, name);
        }
        let mut lockspaces: Vec<LockspaceSnapshot> = found.into_values().collect();
        lockspaces.retain(|it| pattern.is_none_or(|pattern| pattern.matches(&it.lockspace)));
        LockspacePage { may_grant: self.may_grant, awaited: self.awaited(), lockspaces, next }
    }

    fn described(&self, number: u32, name: &[u8]) -> LockspaceSnapshot {
        let joined = self.joins.iter().filter(|(life, joined)| self.is_member(life) && joined.contains(&number));
        LockspaceSnapshot {
            lockspace: name.to_vec(),
            number,
            members: joined.map(|(life, _)| *life).collect(),
            sessions: self.lockspaces.get(&number).map_or(0, |lockspace| lockspace.sessions.len()),
            ..LockspaceSnapshot::default()
        }
    }
}
