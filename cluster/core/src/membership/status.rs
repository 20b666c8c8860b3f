//! What: what the machine says of itself to people and programs.
//! Owns: the values behind `deadbolt status`.
//! Invariants: reading it changes nothing and waits for nothing.
//! Does not: format text.
//! Called by: the control socket.

use super::{Ground, Membership, OwnStanding, Role, quorum, total_votes};
use crate::evidence::Verdict;
use alloc::{string::String, vec::Vec};
use deadbolt_disk_format::{Life, NodeState, SlotIndex, ViewBody};

/// One configured node as seen from here.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Its place.
    pub slot: SlotIndex,
    /// Its name.
    pub name: String,
    /// Its votes.
    pub votes: u16,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// In the view?
    pub is_member: bool,
    /// Removed and not proved gone?
    pub is_owed: bool,
    /// Heard on the network within the detection time? (True for this node.)
    pub is_heard: bool,
    /// Time since its last beat changed; none if it was never seen.
    pub beat_age_ms: Option<u64>,
    /// What its beat says.
    pub state: NodeState,
    /// Verdict over its life in the view, if it is watched.
    pub verdict: Option<Verdict>,
    /// Score and preference, as it said last; none where nothing was read of it.
    pub said: Option<OwnStanding>,
    /// Could this node eject its life in the view from all that it may write? None: this node has registered nowhere.
    pub can_be_ejected: Option<bool>,
}

/// The machine as a whole.
#[derive(Clone, Debug)]
pub struct MembershipStatus {
    /// This life.
    pub me: Life,
    /// This life's state.
    pub state: NodeState,
    /// The newest view known.
    pub view: ViewBody,
    /// May new locks be granted (lease aside)?
    pub is_quorate: bool,
    /// Votes of the configured total, the disk's included.
    pub expected_votes: u16,
    /// Votes present: members with an edge to this node, and the disk.
    pub total_votes: u16,
    /// Votes needed.
    pub quorum: u16,
    /// End of the lease, `CLOCK_BOOTTIME`.
    pub lease_end_ms: u64,
    /// What that lease is by.
    pub ground: Ground,
    /// Something is held here.
    pub holds: bool,
    /// All configured nodes.
    pub peers: Vec<PeerStatus>,
}

impl Membership {
    /// The machine as people see it.
    #[must_use]
    pub fn status(&self, now_ms: u64) -> MembershipStatus {
        let configuration = &self.known.body.configuration;
        let hears = self.hears();
        let me = self.setup.me;
        let peers: Vec<PeerStatus> = configuration.nodes.iter().map(|node| self.peer_status(node, now_ms)).collect();
        let is_leased = now_ms < self.lease_end_ms;
        // Who lives on a vouch or a freeze has no disk to decide with.
        let has_disk = now_ms < self.own_end_ms;
        let present = |slot: SlotIndex| slot == me.slot || hears.contains(slot);
        let node_votes =
            peers.iter().filter(|peer| peer.is_member && present(peer.slot)).fold(0u16, |sum, peer| sum.saturating_add(peer.votes));
        MembershipStatus {
            me,
            state: match self.role {
                Role::Joining | Role::Leaving => NodeState::Joining,
                Role::Member => NodeState::Member,
                Role::Recording { .. } | Role::Left => NodeState::Left,
                Role::Condemned => NodeState::Condemned,
            },
            view: self.known.body.clone(),
            is_quorate: self.permit == Some(true) && is_leased,
            expected_votes: total_votes(configuration),
            total_votes: node_votes.saturating_add(if has_disk { configuration.disk_votes } else { 0 }),
            quorum: quorum(configuration),
            lease_end_ms: self.lease_end_ms,
            ground: self.ground(now_ms),
            holds: self.holds,
            peers,
        }
    }

    fn peer_status(&self, node: &deadbolt_disk_format::NodeEntry, now_ms: u64) -> PeerStatus {
        let body = &self.known.body;
        let watched = self.observer.watched(node.slot);
        let beat = watched.and_then(|watched| watched.beat.as_ref());
        let life = body.members.iter().copied().chain(body.owed.iter().map(|owed| owed.life)).find(|life| life.slot == node.slot);
        PeerStatus {
            slot: node.slot,
            name: node.name.clone(),
            votes: node.votes,
            addresses: node.addresses.clone(),
            is_member: body.members.iter().any(|life| life.slot == node.slot),
            is_owed: body.owed.iter().any(|owed| owed.life.slot == node.slot),
            is_heard: node.slot == self.setup.me.slot || self.hears().contains(node.slot),
            beat_age_ms: watched.filter(|_| beat.is_some()).map(|watched| watched.age_ms(now_ms)),
            state: beat.map_or(NodeState::None, |beat| beat.daemon.state),
            verdict: life.filter(|life| *life != self.setup.me).map(|life| self.judge(&life, now_ms)),
            said: self.fresh_life(node.slot).and_then(|life| self.said_by(&life)),
            can_be_ejected: life.filter(|life| *life != self.setup.me && self.setup.protected != 0).map(|life| self.can_eject(&life)),
        }
    }
}
