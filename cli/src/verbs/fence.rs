//! What: `deadbolt fence NODE`.
//! Owns: its arguments and report.
//! Invariants: exit 0 only on evidence, which is named.
//! Does not: take a time-out for success.
//! Called by: the verbs.

use super::{EXIT_OK, NodeArguments, seconds};
use anyhow::Result;
use clap::Args;
use deadbolt_cluster::ask::ask;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct FenceArguments {
    /// Name of the node to end
    victim: String,
    #[command(flatten)]
    node: NodeArguments,
    /// You vouch that the node is gone: its machine is off, and no I/O of it can reach the disk any more
    #[arg(long)]
    i_vouch_that_it_is_gone: bool,
    /// One JSON object
    #[arg(long)]
    pub(super) json: bool,
    /// Give up waiting for evidence after this time (the pill stays)
    #[arg(long, default_value = "5m", value_parser = super::parse_time)]
    wait: u32,
}

pub(super) fn run(arguments: &FenceArguments) -> Result<u8> {
    let request = json!({ "op": "fence", "node": arguments.victim, "operator": arguments.i_vouch_that_it_is_gone });
    let answer = ask(&arguments.node.directory(), &request, Duration::from_millis(u64::from(arguments.wait)))?;
    if arguments.json {
        say!("{answer}");
    } else {
        let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
        let waited = answer.get("waited_ms").and_then(Value::as_u64).unwrap_or(0);
        say!("{}: gone after {}, evidence: {} (boot {})", text("node"), seconds(waited), text("evidence"), text("boot"));
    }
    Ok(EXIT_OK)
}
