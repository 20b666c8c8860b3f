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
    #[arg(long, value_name = "VOTES")]
    disk_votes: Option<String>,
    #[command(flatten)]
    node: NodeArguments,
}

impl ChangeArguments {
    fn request(&self) -> Result<Value> {
        let Some(votes) = &self.disk_votes else {
            let addresses = (!self.addresses.is_empty()).then_some(&self.addresses);
            return Ok(json!({ "op": "change", "node": self.subject, "name": self.rename, "votes": self.votes, "addresses": addresses }));
        };
        let votes = match votes.as_str() {
            "auto" => Value::Null,
            text => match text.parse::<u16>() {
                Ok(votes) => json!(votes),
                Err(_) => bail!("--disk-votes {text}: a number, or auto"),
            },
        };
        Ok(json!({ "op": "change", "disk_votes": votes }))
    }
}

pub(super) fn run(arguments: &ChangeArguments) -> Result<u8> {
    let directory = arguments.node.directory();
    let asked = ask(&directory, &arguments.request()?, Duration::from_secs(5))?;
    let Some(slot) = asked.get("slot").map(Value::as_u64) else {
        return wait(&directory, |status| {
            let is_pinned = arguments.disk_votes.as_deref() != Some("auto");
            let votes = status.get("disk_votes").filter(|_| status.get("disk_votes_pinned") == Some(&json!(is_pinned)))?;
            let is_so = !is_pinned || Some(votes.to_string().as_str()) == arguments.disk_votes.as_deref();
            is_so.then(|| format!("the disk has {votes} votes"))
        });
    };
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
        "no view with this change was decided within {} s; it is given up; `deadbolt status` says whether this node is quorate",
        ALTERATION_MS / 1000
    )
}
