//! What: `deadbolt why`: the last views and fences, from the disk alone.
//! Owns: the order and words of the history.
//! Invariants: reads only; needs no daemon and no key.
//! Does not: judge.
//! Called by: the verbs.

use super::{EXIT_OK, NodeArguments};
use anyhow::{Context, Result};
use clap::Args;
use deadbolt_cluster::{daemon::status::view_json, devices, look::newest_view_on};
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
    let nodes = newest_view_on(&devices).map(|view| view.configuration.nodes).unwrap_or_default();
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

/// Date and time, UTC.
fn clock(wall_ms: u64) -> String {
    let (days, seconds) = (wall_ms / 86_400_000, wall_ms / 1000 % 86_400);
    // Days since 1970 to a date of the Gregorian calendar, in eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03}Z", wall_ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::clock;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(clock(0), "1970-01-01 00:00:00.000Z");
        assert_eq!(clock(951_782_400_000), "2000-02-29 00:00:00.000Z");
        assert_eq!(clock(1_795_305_599_999), "2026-11-21 23:59:59.999Z");
    }
}
