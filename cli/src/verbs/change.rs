//! What: `deadbolt change`: another name, votes or addresses of a node, other votes of the disk, while the cluster runs.
//! Owns: the wait for the view that has it.
//! Invariants: success is said only once a decided view shows it.
//! Does not: judge a change (the daemon does).
//! Called by: `deadbolt`.

use super::{EXIT_OK, NodeArguments};
use anyhow::{Result, bail};
use clap::{ArgGroup, Args};
use deadbolt_cluster::{ask::ask, config::NodeDirectory};
use deadbolt_cluster_core::membership::ALTERATION_MS;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").multiple(true)))]
pub(super) struct ChangeArguments {
    /// Name of the node to change
    #[arg(required_unless_present = "disk_votes", conflicts_with = "disk_votes", requires = "what")]
    subject: Option<String>,
    /// Its new name
    #[arg(long, group = "what", value_name = "NAME")]
    rename: Option<String>,
    /// Its votes
    #[arg(long, group = "what")]
    votes: Option<u16>,
    /// Its addresses as others reach it, ip:port; may be repeated, and replaces all
    #[arg(long = "address", group = "what", value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// Votes of the disk, from 1 to nodes - 1, or `auto`: nodes - 1, whatever comes
    #[arg(long, value_name = "VOTES", conflicts_with = "what", value_parser = parse_disk_votes)]
    disk_votes: Option<DiskVotes>,
    #[command(flatten)]
    node: NodeArguments,
}

/// Votes of the disk as they are asked for.
#[derive(Clone, Copy, Debug)]
enum DiskVotes {
    Auto,
    Votes(u16),
}

fn parse_disk_votes(text: &str) -> Result<DiskVotes, String> {
    match text {
        "auto" => Ok(DiskVotes::Auto),
        text => text.parse().map(DiskVotes::Votes).map_err(|_| "a number, or auto".to_owned()),
    }
}

impl DiskVotes {
    /// As the daemon takes them: none for auto.
    fn number(self) -> Option<u16> {
        match self {
            Self::Auto => None,
            Self::Votes(votes) => Some(votes),
        }
    }
}

impl ChangeArguments {
    fn request(&self) -> Value {
        if let Some(votes) = self.disk_votes {
            return json!({ "op": "change", "disk_votes": votes.number() });
        }
        let addresses = (!self.addresses.is_empty()).then_some(&self.addresses);
        json!({ "op": "change", "node": self.subject, "name": self.rename, "votes": self.votes, "addresses": addresses })
    }
}

pub(super) fn run(arguments: &ChangeArguments) -> Result<u8> {
    let directory = arguments.node.directory();
    let asked = ask(&directory, &arguments.request(), Duration::from_secs(5))?;
    if let Some(wanted) = arguments.disk_votes.map(DiskVotes::number) {
        return wait(&directory, |status| {
            let votes = status.get("disk_votes").and_then(Value::as_u64)?;
            let is_pinned = status.get("disk_votes_pinned").and_then(Value::as_bool)?;
            let is_so = is_pinned == wanted.is_some() && wanted.is_none_or(|wanted| u64::from(wanted) == votes);
            is_so.then(|| format!("the disk has {votes} votes"))
        });
    }
    let Some(slot) = asked.get("slot").map(Value::as_u64) else { bail!("the daemon's answer names no slot: {asked}") };
    wait(&directory, |status| {
        let nodes = status.get("nodes").and_then(Value::as_array)?;
        let node = nodes.iter().find(|node| node.get("slot").and_then(Value::as_u64) == slot)?;
        let is = |field: &str, wanted: Option<Value>| wanted.is_none_or(|wanted| node.get(field) == Some(&wanted));
        let addresses = (!arguments.addresses.is_empty()).then(|| json!(arguments.addresses));
        let is_so = is("name", arguments.rename.clone().map(Value::from))
            && is("votes", arguments.votes.map(Value::from))
            && is("addresses", addresses);
        let name = node.get("name").and_then(Value::as_str)?;
        is_so.then(|| format!("{name}: {} votes, {}", node.get("votes").unwrap_or(&Value::Null), list(node.get("addresses"))))
    })
}

fn list(addresses: Option<&Value>) -> String {
    let texts: Vec<&str> = addresses.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    texts.join(" ")
}

/// Until the daemon's view shows it.
fn wait(directory: &NodeDirectory, shown: impl Fn(&Value) -> Option<String>) -> Result<u8> {
    let deadline = Instant::now() + Duration::from_millis(ALTERATION_MS) + Duration::from_secs(1);
    while Instant::now() < deadline {
        let status = ask(directory, &json!({ "op": "status" }), Duration::from_secs(2))?;
        if let Some(words) = shown(&status) {
            println!("{words}, since view {} at the latest", status.get("view").unwrap_or(&Value::Null));
            return Ok(EXIT_OK);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!(
        "no view with this change was seen within {} s; this node proposes it no more, but a proposal on its way may still be decided: \
         `deadbolt status` shows what holds, and whether this node is quorate",
        ALTERATION_MS / 1000
    )
}
