//! What: which resources cannot come free before a node that lives on a vouch has its path back.
//! Owns: nothing.
//! Invariants: only what a client there cannot give back, or was granted without being told, is a reason, and what those have who wait for
//!   that; so everybody else has to be answered.
//! Does not: know masters or queues.
//! Called by: the check of what must happen.

use super::{Client, What, choice::space_name, name_of};
use crate::{
    machine::{Pid, Process},
    world::World,
};
use deadbolt_dlm_core::client::RangeKind;
use std::collections::BTreeSet;

impl What {
    /// Resources that it may wait for.
    fn wants(&self) -> Vec<usize> {
        match self {
            Self::Range { kind: RangeKind::Unlock, .. } => Vec::new(),
            Self::Lock { resource, .. } | Self::Convert { resource, .. } | Self::Range { resource, .. } | Self::Adopt { resource, .. } => {
                vec![*resource]
            }
            Self::Many { items, .. } => items.iter().map(|(resource, _)| *resource).collect(),
            Self::Join { .. } | Self::Leave { .. } | Self::Unlock { .. } | Self::Cancel | Self::Purge { .. } => Vec::new(),
        }
    }
}

impl Client {
    fn wanted(&self) -> impl Iterator<Item = usize> + '_ {
        self.asked.values().flat_map(|asked| asked.what.wants())
    }

    fn held(&self) -> impl Iterator<Item = usize> + '_ {
        self.locks.values().map(|lock| lock.resource)
    }

    fn waits_for(&self, stuck: &BTreeSet<usize>) -> bool {
        self.wanted().any(|resource| stuck.contains(&resource))
    }

    /// What a client without a disk cannot give back: locks under which it hangs in a write or a read, all of them where it ends, is stopped
    /// or may give nothing back; and what it has asked for, which may be granted to it without its being told.
    fn stuck_without_disk(&self, is_stopped: bool) -> BTreeSet<usize> {
        let keeps_all = is_stopped || (self.is_killed && self.outstanding > 0) || self.is_bound();
        let hanging = self.locks.values().filter(|lock| keeps_all || lock.has_io).map(|lock| lock.resource);
        hanging.chain(self.wanted()).collect()
    }

    /// What a client that waits for one of these keeps as long.
    fn stuck_behind(&self, stuck: &BTreeSet<usize>) -> BTreeSet<usize> {
        if !self.waits_for(stuck) {
            return BTreeSet::new();
        }
        let kept = self.held().filter(|_| self.is_bound());
        kept.chain(self.wanted()).collect()
    }
}

impl World {
    /// See the module's head.
    pub(crate) fn stuck(&self, without_disk: &[usize]) -> BTreeSet<usize> {
        let mut stuck = BTreeSet::new();
        for machine in without_disk {
            let is_stopped = self.machines[*machine].is_stopped(Process::Clients);
            let clients = self.machines[*machine].clients.values();
            stuck.extend(clients.flat_map(|client| client.stuck_without_disk(is_stopped)));
        }
        loop {
            let clients = self.machines.iter().flat_map(|machine| machine.clients.values());
            let behind: Vec<usize> = clients.flat_map(|client| client.stuck_behind(&stuck)).collect();
            let before = stuck.len();
            stuck.extend(behind);
            if stuck.len() == before {
                return stuck;
            }
        }
    }

    /// Is there nothing that a client of these machines could be granted?
    pub(crate) fn is_all_stuck(&self, core: &[usize], stuck: &BTreeSet<usize>) -> bool {
        let mut clients = core.iter().flat_map(|machine| self.machines[*machine].clients.values()).filter(|client| !client.is_over());
        !stuck.is_empty() && (stuck.len() == self.resource_count() || clients.all(|client| client.waits_for(stuck)))
    }

    fn resource_count(&self) -> usize {
        usize::try_from(self.options.resources * self.options.lockspaces).unwrap_or(1)
    }

    /// The resource of these names.
    pub(crate) fn resource_named(&self, lockspace: &[u8], name: &[u8]) -> Option<usize> {
        let per_space = usize::try_from(self.options.resources).unwrap_or(1);
        let is_it =
            |resource: &usize| lockspace == space_name(resource / per_space).as_slice() && name == name_of(*resource, per_space).as_bytes();
        (0..self.resource_count()).find(is_it)
    }

    /// The oldest request without an answer on a machine, but for those that wait for these resources.
    pub(crate) fn oldest_request(&self, machine: usize, stuck: &BTreeSet<usize>) -> Option<(Pid, &super::Asked)> {
        let clients = self.machines[machine].clients.values().filter(|client| !client.is_over());
        let asked = clients.flat_map(|client| client.asked.values().map(|asked| (client.pid, asked)));
        let is_free = |asked: &super::Asked| !asked.what.wants().iter().any(|resource| stuck.contains(resource));
        asked.filter(|(_, asked)| is_free(asked)).min_by_key(|(_, asked)| asked.since_us)
    }

    /// Has every client of a machine given back what it had, and nothing asked, but for these resources?
    pub(crate) fn is_idle(&self, machine: usize, stuck: &BTreeSet<usize>) -> bool {
        let is_left = |client: &Client| {
            let is_held = client.held().any(|resource| !stuck.contains(&resource));
            is_held || client.asked.values().any(|asked| !asked.what.wants().iter().any(|resource| stuck.contains(resource)))
        };
        !self.machines[machine].clients.values().any(is_left)
    }
}
