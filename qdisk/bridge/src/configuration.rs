//! What: corosync's configuration as this device needs it.
//! Owns: the keys.
//! Invariants: a value that cannot be read is an error, never a default.
//! Does not: judge the times.
//! Called by: the program's verbs.

use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

use deadbolt_corosync::{CallFailed, Corosync, Map};
use deadbolt_disk_format::{Configuration, NodeEntry, SlotIndex, Timings};
use deadbolt_qdevice_core::Found;
use deadbolt_qdisk_core::candidates::Standing;

use crate::BridgeError;

/// How long a starting corosync is waited for. Chosen: it answers within two seconds; a service manager tries again.
const AWAIT: Duration = Duration::from_secs(20);
/// Switches that corosync takes no device beside.
const SWITCHES: [&str; 4] = ["two_node", "last_man_standing", "auto_tie_breaker", "allow_downscale"];

/// A node of the node list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ConfiguredNode {
    /// corosync's node id.
    pub(crate) number: u32,
    name: String,
    votes: u16,
}

/// Everything that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Configured {
    pub(crate) found: Found,
    pub(crate) path: String,
    pub(crate) cluster: String,
    pub(crate) nodes: Vec<ConfiguredNode>,
    own: u32,
    disk_votes: u16,
}

/// A node's place on the device.
pub(crate) fn slot_of(number: u32) -> SlotIndex {
    SlotIndex(u16::try_from(number.saturating_sub(1)).unwrap_or(u16::MAX))
}

impl Configured {
    pub(crate) fn own_slot(&self) -> SlotIndex {
        slot_of(self.own)
    }

    pub(crate) fn standing(&self) -> Standing {
        Standing {
            votes: self.nodes.iter().map(|node| (slot_of(node.number), node.votes)).collect(),
            disk_votes: self.disk_votes,
            ..Standing::default()
        }
    }

    /// As the views on the disk say it.
    pub(crate) fn configuration(&self, timings: Timings) -> Configuration {
        let entry = |node: &ConfiguredNode| NodeEntry {
            slot: slot_of(node.number),
            votes: node.votes,
            name: node.name.clone(),
            addresses: Vec::new(),
        };
        let mut nodes: Vec<NodeEntry> = self.nodes.iter().map(entry).collect();
        nodes.sort_by_key(|node| node.slot);
        Configuration { version: 1, disk_votes: self.disk_votes, disk_votes_pinned: true, format_level: 1, timings, nodes }
    }
}

/// Reads it once corosync is there.
pub(crate) fn await_corosync(calls: Corosync) -> Result<Configured, BridgeError> {
    let end = Instant::now() + AWAIT;
    loop {
        match read(calls) {
            Err(BridgeError::Corosync(_)) if Instant::now() < end => std::thread::sleep(Duration::from_millis(100)),
            done => return done,
        }
    }
}

pub(crate) fn read(calls: Corosync) -> Result<Configured, BridgeError> {
    let map = Map::open(calls)?;
    let switches = SWITCHES.into_iter().filter_map(|switch| match map.flag(&key(&format!("quorum.{switch}"))) {
        Ok(is_on) => is_on.then_some(Ok(switch)),
        Err(error) => Some(Err(error)),
    });
    let found = Found {
        model: text(&map, "quorum.device.model")?,
        interval_ms: own_number(&map, "quorum.device.disk.interval")?,
        lease_ms: own_number(&map, "quorum.device.disk.lease")?,
        timeout_ms: map.number(c"quorum.device.timeout")?,
        sync_timeout_ms: map.number(c"quorum.device.sync_timeout")?,
        token_ms: map.number(c"runtime.config.totem.token")?.ok_or_else(|| missing("runtime.config.totem.token"))?,
        consensus_ms: map.number(c"runtime.config.totem.consensus")?.ok_or_else(|| missing("runtime.config.totem.consensus"))?,
        switches: switches.collect::<Result<_, CallFailed>>()?,
    };
    let nodes = read_nodes(&map)?;
    let position = map.number(c"nodelist.local_node_pos")?.and_then(|position| usize::try_from(position).ok());
    let own = position.and_then(|position| nodes.get(position)).ok_or_else(|| missing("nodelist.local_node_pos"))?.number;
    let by_default = u32::try_from(nodes.len().saturating_sub(1)).unwrap_or(u32::MAX);
    let set = map.number(c"quorum.device.votes")?;
    let votes = set.unwrap_or(by_default);
    let total = nodes.iter().map(|node| u32::from(node.votes)).sum::<u32>().saturating_add(votes);
    if set.is_some() && votes > 1 && votes != by_default && map.number(c"quorum.expected_votes")? != Some(total) {
        let what = format!(
            "{votes}: corosync does not count votes that are set here among those it expects; set quorum.expected_votes to {total}, or leave this key out"
        );
        return Err(BridgeError::Setting { key: "quorum.device.votes".into(), what });
    }
    Ok(Configured {
        found,
        path: text(&map, "quorum.device.disk.device")?.ok_or_else(|| missing("quorum.device.disk.device"))?,
        cluster: text(&map, "totem.cluster_name")?.unwrap_or_default(),
        own,
        disk_votes: votes_of("quorum.device.votes", votes)?,
        nodes,
    })
}

fn read_nodes(map: &Map) -> Result<Vec<ConfiguredNode>, BridgeError> {
    let mut nodes = Vec::new();
    for position in 0.. {
        let part = |name: &str| format!("nodelist.node.{position}.{name}");
        let Some(number) = map.number(&key(&part("nodeid")))? else { break };
        let name = match text(map, &part("name"))? {
            Some(name) => Some(name),
            None => text(map, &part("ring0_addr"))?,
        };
        let votes = map.number(&key(&part("quorum_votes")))?.unwrap_or(1);
        let name = name.unwrap_or_else(|| number.to_string());
        nodes.push(ConfiguredNode { number, name, votes: votes_of(&part("quorum_votes"), votes)? });
    }
    Ok(nodes)
}

fn votes_of(key: &str, votes: u32) -> Result<u16, BridgeError> {
    u16::try_from(votes).map_err(|_| BridgeError::Setting { key: key.into(), what: format!("{votes} votes are too many") })
}

fn missing(key: &str) -> BridgeError {
    BridgeError::Setting { key: key.into(), what: "is not set".into() }
}

/// No key of ours has a zero in it.
fn key(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

fn text(map: &Map, name: &str) -> Result<Option<String>, BridgeError> {
    let found = map.text(&key(name))?;
    Ok(found.as_deref().map(CStr::to_string_lossy).map(Into::into))
}

/// corosync keeps values of keys that it does not know as texts.
fn own_number(map: &Map, name: &str) -> Result<Option<u32>, BridgeError> {
    let Some(found) = text(map, name)? else { return Ok(None) };
    match found.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(BridgeError::Setting { key: name.into(), what: format!("{found:?} is no number of milliseconds") }),
    }
}
