//! What: changes of the configuration that somebody asked for: judged, kept until a view has them, applied.
//! Owns: the wishes; what makes one impossible; the next configuration.
//! Invariants: a change is proposed only where the members have a quorum by the new rule (that they have one by the old rule is the
//!   arbiter's word), and never one by which the disk alone has one; an alteration that no view has taken in time is proposed no more.
//! Does not: decide; say when the view is proposed.
//! Called by: the membership machine, and who takes requests.

use super::{Membership, Output, quorum, total_votes};
use alloc::{
    collections::{BTreeSet, VecDeque},
    format,
    string::String,
    vec::Vec,
};
use core::net::SocketAddr;
use deadbolt_disk_format::{Configuration, Life, NAME_BYTES_MAX, NodeEntry, Owed, SlotIndex, SlotSet};

/// How long an alteration is wanted. Chosen: what `deadbolt change` waits for its view.
pub const ALTERATION_MS: u64 = 30_000;
/// The most addresses of a node.
const ADDRESSES_MAX: usize = 4;

/// A change of the configuration that somebody asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangeRequest {
    /// A new node.
    AddNode(Addition),
    /// Takes a node out once it is neither member nor owed.
    RemoveNode {
        /// Its place.
        slot: SlotIndex,
    },
    /// Another name, other votes, other addresses, or other votes of the disk.
    Alter(Alteration),
}

/// What is to be otherwise about what is configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Alteration {
    /// A node; what is none stays.
    Node {
        /// Its place.
        slot: SlotIndex,
        /// Its name.
        name: Option<String>,
        /// Its votes.
        votes: Option<u16>,
        /// Its addresses, all of them.
        addresses: Option<Vec<String>>,
    },
    /// Votes of the disk; none: nodes - 1, whatever comes.
    DiskVotes(Option<u16>),
}

impl Alteration {
    fn apply(&self, configuration: &mut Configuration) {
        match self {
            Self::Node { slot, name, votes, addresses } => {
                let Some(node) = configuration.nodes.iter_mut().find(|node| node.slot == *slot) else { return };
                node.name = name.clone().unwrap_or_else(|| core::mem::take(&mut node.name));
                node.votes = votes.unwrap_or(node.votes);
                node.addresses = addresses.clone().unwrap_or_else(|| core::mem::take(&mut node.addresses));
            }
            Self::DiskVotes(votes) => {
                configuration.disk_votes_pinned = votes.is_some();
                configuration.disk_votes = votes.unwrap_or_else(|| default_disk_votes(configuration.nodes.len()));
            }
        }
    }
}

/// A node to be added, before it has a slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Addition {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its votes.
    pub votes: u16,
    /// Slots that others use in the SBD area: they must not be given away.
    pub occupied: SlotSet,
}

/// What is wanted, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    additions: VecDeque<Addition>,
    removals: BTreeSet<SlotIndex>,
    /// And until when.
    alterations: VecDeque<(Alteration, u64)>,
}

impl Changes {
    pub(crate) fn push(&mut self, change: ChangeRequest, now_ms: u64) {
        match change {
            ChangeRequest::AddNode(addition) => {
                let is_waiting = self.additions.iter().any(|wish| wish.name.eq_ignore_ascii_case(&addition.name));
                if !is_waiting {
                    self.additions.push_back(addition);
                }
            }
            ChangeRequest::RemoveNode { slot } => {
                self.removals.insert(slot);
            }
            ChangeRequest::Alter(alteration) => self.alterations.push_back((alteration, now_ms.saturating_add(ALTERATION_MS))),
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.additions.is_empty() && self.removals.is_empty() && self.alterations.is_empty()
    }

    /// Drops what the configuration has already.
    pub(crate) fn forget_settled(&mut self, configuration: &Configuration) {
        let nodes = &configuration.nodes;
        self.additions.retain(|wish| !nodes.iter().any(|node| node.name.eq_ignore_ascii_case(&wish.name)));
        self.removals.retain(|slot| nodes.iter().any(|node| node.slot == *slot));
        self.alterations.retain(|(alteration, _)| {
            let mut after = configuration.clone();
            alteration.apply(&mut after);
            after != *configuration
        });
    }
}

impl Membership {
    /// What cannot be done any more (the last slot was taken meanwhile) must not stand in the way of others.
    pub(crate) fn drop_impossible_changes(&mut self) {
        self.changes.forget_settled(&self.known.body.configuration);
        let reason = self.changes.additions.front().and_then(|wish| self.refuse_addition(wish));
        if let Some(reason) = reason
            && let Some(wish) = self.changes.additions.pop_front()
        {
            self.outputs.push_back(Output::Journal(format!("node {} is not added: {reason}", wish.name)));
        }
        let reason = self.changes.alterations.front().and_then(|(alteration, until_ms)| {
            let is_late = self.now_ms >= *until_ms;
            self.refuse_alteration(alteration).or_else(|| is_late.then(|| String::from("no view was decided in time")))
        });
        if let Some(reason) = reason {
            self.changes.alterations.pop_front();
            self.outputs.push_back(Output::Journal(format!("the configuration is not changed: {reason}")));
        }
    }

    /// Applies what was asked for, as far as the old and the new quorum both hold; an addition that waits for a quorum keeps nothing else
    /// waiting.
    pub(crate) fn next_configuration(&self, members: &[Life], owed: &[Owed]) -> Configuration {
        let present = &self.known.body.configuration;
        let addition = self.changes.additions.front();
        let possible = [addition, None].into_iter().map(|addition| self.with_changes(addition, members, owed));
        possible.into_iter().find(|next| refuse_quorum(next, members).is_none()).map_or_else(
            || present.clone(),
            |mut next| {
                next.version += u64::from(next != *present);
                next
            },
        )
    }

    fn with_changes(&self, addition: Option<&Addition>, members: &[Life], owed: &[Owed]) -> Configuration {
        let present = &self.known.body.configuration;
        let mut next = present.clone();
        let is_away = |slot: SlotIndex| !members.iter().any(|life| life.slot == slot) && !owed.iter().any(|entry| entry.life.slot == slot);
        next.nodes.retain(|node| !(self.changes.removals.contains(&node.slot) && is_away(node.slot)));
        if let Some(wish) = addition {
            add_node(&mut next, wish, self.setup.slots, owed);
        }
        if let Some((alteration, _)) = self.changes.alterations.front() {
            alteration.apply(&mut next);
        }
        if next != *present {
            let (count, most) = (next.nodes.len(), default_disk_votes(next.nodes.len().max(2)));
            // What was set for more nodes is too much for fewer.
            next.disk_votes = if next.disk_votes_pinned { next.disk_votes.min(most) } else { default_disk_votes(count) };
        }
        next
    }

    /// Why the configuration cannot be altered so, if it cannot; asked before the request is taken.
    #[must_use]
    pub fn refuse_alteration(&self, alteration: &Alteration) -> Option<String> {
        let (present, members) = (&self.known.body.configuration, &self.known.body.members);
        let refused = match alteration {
            Alteration::Node { slot, name, addresses, .. } => refuse_node(present, members, *slot, name.as_deref(), addresses.as_deref()),
            Alteration::DiskVotes(votes) => votes.and_then(|votes| refuse_disk_votes(present.nodes.len(), votes)),
        };
        refused.or_else(|| {
            let mut next = present.clone();
            alteration.apply(&mut next);
            refuse_quorum(&next, members)
        })
    }

    /// Why a node cannot be added, if it cannot; asked before the request is taken.
    #[must_use]
    pub fn refuse_addition(&self, wish: &Addition) -> Option<String> {
        let nodes = &self.known.body.configuration.nodes;
        let refused = refuse_name(nodes.iter(), &wish.name).or_else(|| refuse_addresses(nodes.iter(), &wish.addresses));
        if refused.is_some() {
            return refused;
        }
        if free_slot(nodes, &self.known.body.owed, self.setup.slots, &wish.occupied).is_none() {
            return Some(format!(
                "all {} slots of the device are taken; remove a node with `deadbolt leave`, or format with more slots",
                self.setup.slots
            ));
        }
        None
    }
}

/// Votes of these members, and of the disk.
fn votes_of(configuration: &Configuration, members: &[Life]) -> u16 {
    let votes = members.iter().filter_map(|life| configuration.nodes.iter().find(|node| node.slot == life.slot)).map(|node| node.votes);
    votes.fold(configuration.disk_votes, u16::saturating_add)
}

/// Why votes of this configuration would be wrong, or these members without a quorum.
fn refuse_quorum(next: &Configuration, members: &[Life]) -> Option<String> {
    let (total, needed) = (total_votes(next), quorum(next));
    let sum = next.nodes.iter().fold(u32::from(next.disk_votes), |sum, node| sum.saturating_add(u32::from(node.votes)));
    if sum != u32::from(total) {
        return Some(format!("{sum} votes in all; there may be {} at the most", u16::MAX));
    }
    if next.disk_votes >= needed {
        return Some(format!(
            "the disk would have {} of {total} votes, so that it alone would decide; give the nodes more votes, or it fewer",
            next.disk_votes
        ));
    }
    let votes = votes_of(next, members);
    (votes < needed).then(|| {
        format!("the members of this view and the disk would have {votes} of {total} votes, which is no quorum; start more nodes first")
    })
}

fn refuse_node(
    present: &Configuration,
    members: &[Life],
    slot: SlotIndex,
    name: Option<&str>,
    addresses: Option<&[String]>,
) -> Option<String> {
    let others = || present.nodes.iter().filter(|node| node.slot != slot);
    let Some(node) = present.nodes.iter().find(|node| node.slot == slot) else {
        return Some(format!("no node is configured in slot {slot}"));
    };
    let is_member = members.iter().any(|life| life.slot == slot);
    let is_cut_off = |addresses: &[String]| {
        (is_member && !addresses.iter().any(|address| node.addresses.contains(address))).then(|| {
            format!(
                "node {} is a member and listens at {}: keep one of these beside the new ones, or stop it, change its node.toml, and then this",
                node.name,
                node.addresses.join(" ")
            )
        })
    };
    name.and_then(|name| refuse_name(others(), name))
        .or_else(|| addresses.and_then(|addresses| refuse_addresses(others(), addresses).or_else(|| is_cut_off(addresses))))
}

fn refuse_name<'a>(mut others: impl Iterator<Item = &'a NodeEntry>, name: &str) -> Option<String> {
    check_name(name).err().or_else(|| {
        let other = others.find(|node| node.name.eq_ignore_ascii_case(name))?;
        Some(format!(
            "the name {name} is taken by node {} in slot {}; choose another name, or remove that node first",
            other.name, other.slot
        ))
    })
}

fn refuse_addresses<'a>(others: impl Iterator<Item = &'a NodeEntry> + Clone, addresses: &[String]) -> Option<String> {
    if !(1..=ADDRESSES_MAX).contains(&addresses.len()) {
        return Some(format!("{} addresses; a node has 1 to {ADDRESSES_MAX}", addresses.len()));
    }
    addresses.iter().enumerate().find_map(|(index, address)| {
        let is_usable = address.parse::<SocketAddr>().is_ok_and(|parsed| !parsed.ip().is_unspecified() && parsed.port() != 0);
        if !is_usable {
            return Some(format!("{address:?} is no address that others can reach; write ip:port"));
        }
        if addresses.iter().take(index).any(|other| other == address) {
            return Some(format!("the address {address} is given twice"));
        }
        let other = others.clone().find(|node| node.addresses.contains(address))?;
        Some(format!("the address {address} is that of node {}; every node needs its own", other.name))
    })
}

/// Why the disk of a cluster of so many nodes cannot have so many votes, if it cannot. One node alone with its disk is a cluster that
/// others will join.
#[must_use]
pub fn refuse_disk_votes(nodes: usize, votes: u16) -> Option<String> {
    let most = default_disk_votes(nodes.max(2));
    (!(1..=most).contains(&votes)).then(|| {
        format!("disk votes of {votes} with {nodes} nodes: they must be from 1 to nodes - 1, else the disk alone (or nobody) would decide")
    })
}

/// Refuses names that the device or people could not tell apart.
///
/// # Errors
/// The reason, for people.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the node's name is empty; give it 1 to 63 letters, digits, dots, dashes or underscores".into());
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("the node's name has {} bytes; the device carries at most {NAME_BYTES_MAX}", name.len()));
    }
    if let Some(found) = name.chars().find(|letter| !(letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_'))) {
        return Err(format!("the node's name {name:?} contains {found:?}; allowed are letters, digits, dots, dashes and underscores"));
    }
    if name.eq_ignore_ascii_case("LOCAL") {
        return Err("the name LOCAL means `this node` to SBD tools; choose another".into());
    }
    Ok(())
}

/// nodes - 1, so that one survivor with the disk can carry on.
#[must_use]
pub fn default_disk_votes(nodes: usize) -> u16 {
    u16::try_from(nodes.saturating_sub(1)).unwrap_or(u16::MAX)
}

fn free_slot(nodes: &[NodeEntry], owed: &[Owed], slots: u16, occupied: &SlotSet) -> Option<SlotIndex> {
    (0..slots).map(SlotIndex).find(|slot| {
        !occupied.contains(*slot) && !nodes.iter().any(|node| node.slot == *slot) && !owed.iter().any(|entry| entry.life.slot == *slot)
    })
}

fn add_node(configuration: &mut Configuration, wish: &Addition, slots: u16, owed: &[Owed]) {
    if let Some(slot) = free_slot(&configuration.nodes, owed, slots, &wish.occupied) {
        configuration.nodes.push(NodeEntry { slot, votes: wish.votes, name: wish.name.clone(), addresses: wish.addresses.clone() });
        configuration.nodes.sort_by_key(|node| node.slot);
    }
}
