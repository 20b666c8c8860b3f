//! What: `deadbolt why`: the last views and fences, from the disk alone.
//! Owns: the order and words of the history.
//! Invariants: reads only; needs no daemon and no key.
//! Does not: judge.
//! Called by: the verbs.

use super::{EXIT_OK, NodeArguments};
use anyhow::{Context, Result};
use clap::Args;
use deadbolt_cluster::{daemon::status::view_json, devices};
use deadbolt_disk::Access;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct WhyArguments {
    /// Device to read instead of the node's
    #[arg(long)]
    device: Option<PathBuf>,
    #[command(flatten)]
    node: NodeArguments,
    /// How many journal entries
    #[arg(long, default_value_t = 40)]
    entries: usize,
    /// Only the newest view: who was active last
    #[arg(long)]
    last_view: bool,
    /// One JSON object
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(arguments: &WhyArguments) -> Result<u8> {
    let paths = match &arguments.device {
        Some(path) => vec![path.clone()],
        None => arguments.node.directory().read_node()?.devices,
    };
    let devices = devices::open(&paths, Access::Read)?;
    let first = devices.first().context("no device")?;
    let mut views: Vec<Value> = first.views()?.iter().filter_map(|(_, body)| body.as_ref()).map(view_json).collect();
    views.reverse();
    if arguments.last_view {
        let newest = views.pop();
        views.clear();
        views.extend(newest);
    }
    let nodes = first.newest_view().map(|view| view.configuration.nodes).unwrap_or_default();
    let name = |slot| nodes.iter().find(|node| node.slot == slot).map_or_else(|| format!("slot {slot}"), |node| node.name.clone());
    let entries: Vec<Value> = if arguments.last_view {
        Vec::new()
    } else {
        let all = first.journal()?;
        let skip = all.len().saturating_sub(arguments.entries);
        all.into_iter()
            .skip(skip)
            .map(|entry| json!({ "wall_ms": entry.wall_ms, "node": name(entry.life.slot), "view": entry.view.0, "text": entry.text }))
            .collect()
    };
    if arguments.json {
        say!("{}", json!({ "cluster": first.superblock.name, "views": views, "journal": entries }));
    } else {
        print(&views, &entries);
    }
    Ok(EXIT_OK)
}

fn print(views: &[Value], entries: &[Value]) {
    say!("Views that stand on the disk:");
    for view in views {
        let text =
            |name: &str| view.get(name).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).unwrap_or_default();
        say!("  {:>6}  {:<10} members {}  by {}", text("view"), text("reason"), joined(view, "members"), text("proposer"));
        for owed in view.get("owed").and_then(Value::as_array).into_iter().flatten() {
            say!("          owed: {} since view {}", word(owed, "node"), word(owed, "since_view"));
        }
        for released in view.get("released").and_then(Value::as_array).into_iter().flatten() {
            say!(
                "          gone: {}, evidence {}, seen by {} after {} ms",
                word(released, "node"),
                word(released, "evidence"),
                word(released, "witness"),
                word(released, "waited_ms")
            );
        }
    }
    if !entries.is_empty() {
        say!("\nLast words of the nodes (their own clocks):");
    }
    for entry in entries {
        say!("  {}  {:<12} {}", clock(entry.get("wall_ms").and_then(Value::as_u64).unwrap_or(0)), word(entry, "node"), word(entry, "text"));
    }
}

fn word(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "-".into(),
    }
}

fn joined(value: &Value, name: &str) -> String {
    let words: Vec<String> =
        value.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect();
    if words.is_empty() { "-".into() } else { words.join(" ") }
}

/// Time of day, UTC.
fn clock(wall_ms: u64) -> String {
    let seconds = wall_ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, wall_ms % 1000)
}
