//! What: `deadbolt locks`.
//! Owns: the table.
//! Invariants: shows what this node masters or holds, as data.
//! Does not: ask other nodes.
//! Called by: the verbs.

use super::{EXIT_OK, NodeArguments, printable, seconds};
use anyhow::Result;
use clap::Args;
use deadbolt_cluster::ask::ask;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct LocksArguments {
    #[command(flatten)]
    node: NodeArguments,
    /// One JSON object
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(arguments: &LocksArguments) -> Result<u8> {
    let answer = ask(&arguments.node.directory(), &json!({ "op": "locks" }), Duration::from_secs(5))?;
    if arguments.json {
        say!("{answer}");
        return Ok(EXIT_OK);
    }
    let text = |lock: &Value, name: &str| printable(lock.get(name).and_then(Value::as_str).unwrap_or("-"));
    say!("{:<16} {:<24} {:<8} {:<8} {:<12} {:>8} {:>9}  token", "lockspace", "resource", "granted", "wanted", "node", "pid", "since");
    for lock in answer.get("locks").and_then(Value::as_array).into_iter().flatten() {
        let since = lock.get("since_ms").and_then(Value::as_u64).map_or_else(|| "-".into(), seconds);
        let pid = lock.get("pid").and_then(Value::as_i64).map_or_else(|| "-".into(), |pid| pid.to_string());
        say!(
            "{:<16} {:<24} {:<8} {:<8} {:<12} {:>8} {:>9}  {:<12} {}",
            text(lock, "lockspace"),
            text(lock, "resource"),
            text(lock, "granted"),
            text(lock, "requested"),
            text(lock, "node"),
            pid,
            since,
            text(lock, "master"),
            text(lock, "token")
        );
    }
    Ok(EXIT_OK)
}
