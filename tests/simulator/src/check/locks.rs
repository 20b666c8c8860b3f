//! What: the history of locks as clients see it, against a reference model: no two incompatible ones, tokens that grow, value blocks.
//! Owns: who holds what in truth; the last value block sent.
//! Invariants: a client holds from the moment it reads its grant until it sends its unlock, is gone, or its machine's boot has ended.
//! Does not: know queues or masters: how a grant came about does not matter here.
//! Called by: the clients and machines of the world.

use crate::machine::Pid;
use deadbolt_dlm_core::{Mode, Token};
use std::collections::{BTreeMap, BTreeSet};

/// Somebody who holds a lock.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    /// On which machine.
    pub machine: usize,
    /// In which of its boots.
    pub boot: u64,
    /// Which process.
    pub client: Pid,
    /// In which mode.
    pub mode: Mode,
    /// The grant's number.
    pub token: Token,
}

#[derive(Debug, Default)]
struct Resource {
    holders: Vec<Holder>,
    /// The newest token granted in a mode that excludes others.
    newest: Option<(Token, Mode)>,
    /// Who has a lock or asks for one: while there is nobody the resource does not exist and its value block is forgotten.
    users: BTreeSet<Pid>,
    /// The last value block that a writer sent.
    value: Option<u64>,
}

/// All resources.
#[derive(Debug, Default)]
pub struct LockHistory {
    resources: BTreeMap<usize, Resource>,
}

impl LockHistory {
    fn resource(&mut self, resource: usize) -> &mut Resource {
        self.resources.entry(resource).or_default()
    }

    /// A client asks for a lock.
    pub fn asked(&mut self, resource: usize, client: Pid) {
        let resource = self.resource(resource);
        if resource.users.is_empty() {
            resource.value = None;
        }
        resource.users.insert(client);
    }

    /// It gets none.
    pub fn refused(&mut self, resource: usize, client: Pid) {
        self.resource(resource).users.remove(&client);
    }

    /// It reads its grant, with the value block if that came and was called valid.
    pub fn granted(&mut self, number: usize, holder: Holder, value: Option<u64>) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let resource = self.resource(number);
        for other in &resource.holders {
            if !other.mode.is_compatible(holder.mode) {
                found.push(("S2", format!("r{number}: {holder:?} is granted while {other:?} holds")));
            }
        }
        let is_exclusive = |mode: Mode| matches!(mode, Mode::Ex | Mode::Pw);
        if let Some((token, mode)) = resource.newest
            && !mode.is_compatible(holder.mode)
            && holder.token <= token
        {
            found.push(("S4", format!("r{number}: token {:?} of {:?} after {token:?} of {mode:?}", holder.token, holder.mode)));
        }
        if is_exclusive(holder.mode) && resource.newest.is_none_or(|(token, _)| holder.token > token) {
            resource.newest = Some((holder.token, holder.mode));
        }
        if let (Some(value), Some(last)) = (value, resource.value)
            && holder.mode != Mode::Nl
            && value != last
        {
            found.push(("S12", format!("r{number}: {holder:?} is handed value block {value} as valid, the last one sent is {last}")));
        }
        resource.holders.push(holder);
        found
    }

    /// It sends its unlock, from a writing mode with a value block.
    pub fn releasing(&mut self, resource: usize, client: Pid, value: Option<u64>) {
        let resource = self.resource(resource);
        resource.holders.retain(|holder| holder.client != client);
        resource.value = value.or(resource.value);
        resource.users.remove(&client);
    }

    /// It is gone.
    pub fn ended(&mut self, client: Pid) {
        for resource in self.resources.values_mut() {
            resource.holders.retain(|holder| holder.client != client);
            resource.users.remove(&client);
        }
    }

    /// All clients of a boot are gone.
    pub fn machine_ended(&mut self, machine: usize, boot: u64) {
        let clients: Vec<Pid> = self
            .resources
            .values()
            .flat_map(|resource| &resource.holders)
            .filter(|holder| (holder.machine, holder.boot) == (machine, boot))
            .map(|holder| holder.client)
            .collect();
        clients.into_iter().for_each(|client| self.ended(client));
    }

    /// A client of a boot that holds something.
    #[must_use]
    pub fn held_by(&self, machine: usize, boot: u64) -> Option<Pid> {
        let mut holders = self.resources.values().flat_map(|resource| &resource.holders);
        holders.find(|holder| (holder.machine, holder.boot) == (machine, boot) && holder.mode != Mode::Nl).map(|holder| holder.client)
    }
}
