//! What: the node's status as the JSON object that `deadbolt status --json` prints.
//! Owns: the field names that scripts parse; docs/status.md lists them.
//! Invariants: made from memory alone; names only ever get added.
//! Does not: print for people (the front door does).
//! Called by: the daemon's loop.

use crate::{
    links::{
        LinkReport, Links,
        refused::{Channel, Counts},
        say,
    },
    node::NodeStatus,
};
use deadbolt_cluster_core::{
    evidence::Verdict,
    membership::{Ground, MembershipStatus, PeerStatus},
};
use deadbolt_disk_format::{Life, NodeState, ViewBody};
use serde_json::{Value, json};

/// What the shell knows besides the machines.
#[derive(Clone, Debug)]
pub struct ShellStatus {
    /// This node's name.
    pub name: String,
    /// Cluster name.
    pub cluster: String,
    /// Cluster uuid.
    pub cluster_uuid: String,
    /// Now, `CLOCK_BOOTTIME`, ms.
    pub now_ms: u64,
    /// One entry per device.
    pub devices: Vec<DeviceStatus>,
    /// T of the watchdog as granted, ms.
    pub reset_ms: u32,
    /// `device` or `process`.
    pub watchdog: String,
}

/// One device.
#[derive(Clone, Debug)]
pub struct DeviceStatus {
    /// Its path.
    pub path: String,
    /// Latency of the last cycle, microseconds; none before the first.
    pub latency_us: Option<u64>,
    /// Oldest operation that has not come back, ms.
    pub oldest_ms: Option<u64>,
    /// `io_uring` or `threads`.
    pub backend: String,
}

/// The field's word for a state.
#[must_use]
pub fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::None => "offline",
        NodeState::Joining => "joining",
        NodeState::Member => "member",
        NodeState::Left => "left",
        NodeState::Condemned => "condemned",
    }
}

/// The field's word for what a lease is by.
#[must_use]
fn ground_word(ground: Ground) -> &'static str {
    match ground {
        Ground::Own => "disk",
        Ground::Vouch => "vouch",
        Ground::Freeze => "freeze",
        Ground::None => "nothing",
    }
}

/// The object of `status`.
#[must_use]
pub fn status_json(status: &NodeStatus, shell: &ShellStatus, links: &Links) -> Value {
    let reports = links.reports();
    let membership = &status.membership;
    let lease_left_ms = membership.lease_end_ms.saturating_sub(shell.now_ms);
    let members: Vec<&str> = names(membership, |peer| peer.is_member);
    let owed: Vec<&str> = names(membership, |peer| peer.is_owed);
    json!({
        "ok": true,
        "cluster": shell.cluster,
        "cluster_uuid": shell.cluster_uuid,
        "node": shell.name,
        "slot": membership.me.slot.0,
        "boot": membership.me.boot.to_string(),
        "incarnation": membership.me.incarnation.to_string(),
        "state": state_word(membership.state),
        "quorate": membership.is_quorate,
        "expected_votes": membership.expected_votes,
        "total_votes": membership.total_votes,
        "quorum": membership.quorum,
        "disk_votes": membership.view.configuration.disk_votes,
        "disk_votes_pinned": membership.view.configuration.disk_votes_pinned,
        "view": membership.view.view.0,
        "members": members,
        "owed": owed,
        "holds": membership.holds,
        "lease_left_ms": lease_left_ms,
        "lives_on": ground_word(membership.ground),
        "watchdog": shell.watchdog,
        "reset_ms": shell.reset_ms,
        "register": format!("{:?}", status.register.phase),
        "blocked": status.blocked,
        "disks": shell.devices.iter().map(|device| json!({
            "path": device.path,
            "latency_us": device.latency_us,
            "oldest_ms": device.oldest_ms,
            "hung": device.oldest_ms.is_some_and(|age| age > u64::from(membership.view.configuration.timings.stall_ms.max(1000))),
            "backend": device.backend,
        })).collect::<Vec<Value>>(),
        "nodes": membership.peers.iter().map(|peer| peer_json(peer, &reports)).collect::<Vec<Value>>(),
        "last_view": view_json(&membership.view),
        "locks": {
            "sessions": status.locks.sessions,
            "locks": status.locks.locks,
            "waiting": status.locks.waiting,
            "mastered": status.locks.mastered,
            "moved": status.locks.moved,
            "may_grant": status.locks.may_grant,
            "recovery_waits_for": lives(membership, &status.locks.awaited),
            "gated": status.locks.gated.iter().map(|gated| json!({
                "lockspace": String::from_utf8_lossy(&gated.lockspace),
                "by": lives(membership, &gated.by),
            })).collect::<Vec<Value>>(),
        },
        "refused": {
            "datagrams": counts_json(links.refused().counts(Channel::Datagram)),
            "connections": counts_json(links.refused().counts(Channel::Connection)),
        },
        "datagrams_overrun": links.refused().overrun(),
        "warnings": warnings(membership, &reports),
    })
}

fn names(membership: &MembershipStatus, chosen: impl Fn(&PeerStatus) -> bool) -> Vec<&str> {
    membership.peers.iter().filter(|peer| chosen(peer)).map(|peer| peer.name.as_str()).collect()
}

/// Links that do not work, and a network that does not carry what the disk shows.
fn warnings(membership: &MembershipStatus, reports: &[LinkReport]) -> Vec<String> {
    let mut warnings = say::warnings(reports);
    let window_ms = u64::from(membership.view.configuration.timings.lease_ms);
    let others = || membership.peers.iter().filter(|peer| peer.slot != membership.me.slot);
    let beats = others().any(|peer| peer.beat_age_ms.is_some_and(|age| age < window_ms) && peer.state == NodeState::Member);
    if beats && others().all(|peer| !peer.is_heard) {
        warnings.push("other nodes beat on the disk, but none is heard on the network: compare addresses, firewall and cluster.key".into());
    }
    for peer in others().filter(|peer| peer.is_member && peer.can_be_ejected == Some(false)) {
        warnings.push(format!(
            "node {} could not be ejected: its protected_devices are not the same disks as here, or it has registered on none",
            peer.name
        ));
    }
    warnings
}

/// Names of nodes for a list of lives.
fn lives(membership: &MembershipStatus, lives: &[Life]) -> Vec<String> {
    let name = |life: &Life| {
        membership.peers.iter().find(|peer| peer.slot == life.slot).map_or_else(|| format!("slot {}", life.slot), |peer| peer.name.clone())
    };
    lives.iter().map(name).collect()
}

fn counts_json(counts: Counts) -> Value {
    json!({ "foreign": counts.foreign, "forged": counts.forged, "replayed": counts.replayed, "malformed": counts.malformed })
}

fn link_json(report: &LinkReport) -> Value {
    let status = &report.status;
    let part = |(lost, expected): (u8, u8)| (expected > 0).then(|| json!({ "lost": lost, "of": expected }));
    let known = |bytes: u16| (bytes > 0).then_some(bytes);
    json!({
        "link": status.link,
        "own": report.own.to_string(),
        "address": report.address.to_string(),
        "state": say::state_word(status.state),
        "stream": report.has_stream,
        "lost_in": part(status.lost_in),
        "lost_out": part(status.lost_out),
        "round_trip_us": status.round_trip_us,
        "full_bytes": known(status.full_bytes),
        "full_lost_in": status.loses_full_in,
        "full_lost_out": status.loses_full_out,
        "mtu": known(status.mtu.0),
        "peer_mtu": known(status.mtu.1),
    })
}

fn peer_json(peer: &PeerStatus, reports: &[LinkReport]) -> Value {
    let verdict = peer.verdict.map(|verdict| match verdict {
        Verdict::MayLive => "may live".to_owned(),
        Verdict::GoneAt { evidence, .. } => format!("{}, waiting", evidence.word()),
        Verdict::Gone(evidence) => format!("gone: {}", evidence.word()),
    });
    json!({
        "name": peer.name,
        "slot": peer.slot.0,
        "votes": peer.votes,
        "addresses": peer.addresses,
        "member": peer.is_member,
        "owed": peer.is_owed,
        "heard": peer.is_heard,
        "beat_age_ms": peer.beat_age_ms,
        "state": state_word(peer.state),
        "verdict": verdict,
        "can_be_ejected": peer.can_be_ejected,
        "score": peer.said.map(|said| said.score),
        "preference": peer.said.map(|said| said.preference),
        "links": reports.iter().filter(|report| report.status.slot == peer.slot).map(link_json).collect::<Vec<Value>>(),
    })
}

/// A view for people and scripts.
#[must_use]
pub fn view_json(body: &ViewBody) -> Value {
    let name = |slot| {
        body.configuration.nodes.iter().find(|node| node.slot == slot).map_or_else(|| format!("slot {slot}"), |node| node.name.clone())
    };
    json!({
        "view": body.view.0,
        "reason": body.reason.word(),
        "proposer": body.proposer.map(|life| name(life.slot)),
        "members": body.members.iter().map(|life| name(life.slot)).collect::<Vec<String>>(),
        "owed": body.owed.iter().map(|owed| json!({ "node": name(owed.life.slot), "since_view": owed.removed_in.0 })).collect::<Vec<Value>>(),
        "released": body.released.iter().map(|released| json!({
            "node": name(released.life.slot),
            "evidence": released.evidence.word(),
            "waited_ms": released.waited_ms,
            "witness": name(released.witness),
        })).collect::<Vec<Value>>(),
        "configuration": body.configuration.version,
    })
}
