//! What: `deadbolt status`.
//! Owns: the text that people read; the JSON is the daemon's.
//! Invariants: never waits longer than a second; exit 0 quorate, 1 not, 2 no daemon.
//! Does not: judge.
//! Called by: the verbs.

use super::{EXIT_FAILED, EXIT_NO_DAEMON, EXIT_OK, NodeArguments, seconds};
use clap::Args;
use deadbolt_cluster::ask::ask;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    #[command(flatten)]
    node: NodeArguments,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &StatusArguments) -> u8 {
    match ask(&arguments.node.directory(), &json!({ "op": "status" }), Duration::from_secs(1)) {
        Ok(status) => {
            if arguments.json {
                say!("{status}");
            } else {
                print(&status);
            }
            if flag(&status, "quorate") { EXIT_OK } else { EXIT_FAILED }
        }
        Err(error) => {
            let reason = why_no_node(&arguments.node).unwrap_or_else(|| error.to_string());
            if arguments.json {
                say!("{}", json!({ "ok": false, "error": reason }));
            } else {
                eprintln!("deadbolt: {reason}");
            }
            EXIT_NO_DAEMON
        }
    }
}

/// Where no node was ever made nothing can be started.
fn why_no_node(node: &NodeArguments) -> Option<String> {
    let directory = node.directory();
    if directory.node_file().exists() { None } else { directory.read_node().err().map(|error| error.to_string()) }
}

fn flag(value: &Value, name: &str) -> bool {
    value.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn list(value: &Value, name: &str) -> Vec<Value> {
    value.get(name).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn names(value: &Value, name: &str) -> String {
    let names: Vec<String> = list(value, name).iter().filter_map(|item| item.as_str().map(str::to_owned)).collect();
    if names.is_empty() { "-".into() } else { names.join(" ") }
}

fn yes_no(is: bool) -> &'static str {
    if is { "Yes" } else { "No" }
}

fn print(status: &Value) {
    say!("Cluster:          {} ({})", text(status, "cluster"), text(status, "cluster_uuid"));
    say!("Node:             {} (slot {}), {}", text(status, "node"), text(status, "slot"), text(status, "state"));
    say!("Quorate:          {}", yes_no(flag(status, "quorate")));
    say!("Expected votes:   {}", text(status, "expected_votes"));
    say!("Total votes:      {}", text(status, "total_votes"));
    say!("Quorum:           {}", text(status, "quorum"));
    say!("View:             {}", text(status, "view"));
    say!("Members:          {}", names(status, "members"));
    say!("Owed:             {}", names(status, "owed"));
    let lease = status.get("lease_left_ms").and_then(Value::as_u64).unwrap_or(0);
    say!("Lease left:       {} (watchdog {}, reset within {} ms)", seconds(lease), text(status, "watchdog"), text(status, "reset_ms"));
    if let Some(ground) = status.get("lives_on").and_then(Value::as_str).filter(|ground| *ground != "disk") {
        say!("Lives on:         {ground}, not on cycles of its own: its path to the disk is lost");
    }
    for disk in list(status, "disks") {
        let latency =
            disk.get("latency_us").and_then(Value::as_u64).map_or_else(|| "-".into(), |us| format!("{}.{:03} ms", us / 1000, us % 1000));
        let state = if flag(&disk, "hung") { format!("hung for {} ms", text(&disk, "oldest_ms")) } else { "answers".into() };
        say!("Disk:             {} ({}), last cycle {latency}, {}", text(&disk, "path"), text(&disk, "backend"), state);
    }
    if let Some(blocked) = status.get("blocked").and_then(Value::as_str) {
        say!("Blocked:          {blocked}");
    }
    say!("\n{:<16} {:>5} {:>6} {:<10} {:>5} {:<7} {:>10}  verdict", "node", "slot", "votes", "state", "score", "heard", "beat age");
    for node in list(status, "nodes") {
        let age = node.get("beat_age_ms").and_then(Value::as_u64).map_or_else(|| "-".into(), seconds);
        say!(
            "{:<16} {:>5} {:>6} {:<10} {:>5} {:<7} {:>10}  {}",
            text(&node, "name"),
            text(&node, "slot"),
            text(&node, "votes"),
            text(&node, "state"),
            text(&node, "score"),
            yes_no(flag(&node, "heard")),
            age,
            if flag(&node, "heard") && text(&node, "verdict") == "may live" { "-".into() } else { text(&node, "verdict") }
        );
    }
    print_links(status);
    for warning in list(status, "warnings") {
        say!("Warning:          {}", warning.as_str().unwrap_or_default());
    }
}

/// A line per link, and what was refused, if anything was.
fn print_links(status: &Value) {
    let nodes = list(status, "nodes");
    let links: Vec<(String, Value)> =
        nodes.iter().flat_map(|node| list(node, "links").into_iter().map(|link| (text(node, "name"), link))).collect();
    if !links.is_empty() {
        say!(
            "\n{:<4} {:<16} {:<21} {:<21} {:<10} {:>7} {:>7} {:>10} {:>6}  messages",
            "link",
            "node",
            "own",
            "its",
            "state",
            "lost",
            "there",
            "round trip",
            "full"
        );
    }
    for (node, link) in links {
        let round_trip =
            link.get("round_trip_us").and_then(Value::as_u64).map_or_else(|| "-".into(), |us| format!("{}.{:03} ms", us / 1000, us % 1000));
        let is_full_lost = flag(&link, "full_lost_in") || flag(&link, "full_lost_out");
        say!(
            "{:<4} {:<16} {:<21} {:<21} {:<10} {:>7} {:>7} {:>10} {:>6}  {}",
            text(&link, "link"),
            node,
            text(&link, "own"),
            text(&link, "address"),
            text(&link, "state"),
            lost(&link, "lost_in"),
            lost(&link, "lost_out"),
            round_trip,
            if is_full_lost { "lost".into() } else { text(&link, "full_bytes") },
            if flag(&link, "stream") { "here" } else { "-" }
        );
    }
    let count = |way: &str, kind: &str| status.pointer(&format!("/refused/{way}/{kind}")).and_then(Value::as_u64).unwrap_or(0);
    for way in ["datagrams", "connections"] {
        let kinds = ["foreign", "forged", "replayed", "malformed"];
        if kinds.iter().any(|kind| count(way, kind) > 0) {
            let counts: Vec<String> = kinds.iter().map(|kind| format!("{} {kind}", count(way, kind))).collect();
            say!("Refused:          {way}: {}", counts.join(", "));
        }
    }
}

/// A part in percent.
fn lost(link: &Value, name: &str) -> String {
    let number = |field: &str| link.get(name).and_then(|part| part.get(field)).and_then(Value::as_u64);
    match (number("lost"), number("of").filter(|of| *of > 0)) {
        (Some(lost), Some(of)) => format!("{} %", (lost * 100).div_ceil(of)),
        _ => "-".into(),
    }
}
