//! The page docs/simulator.md names every option, and no other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use deadbolt_simulator::options::OPTIONS;
use std::collections::BTreeSet;

#[test]
fn the_page_names_every_option() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/simulator.md")).unwrap();
    let area = page.split("\n## ").find(|area| area.starts_with("The options")).unwrap();
    let rows = area.lines().filter(|line| line.starts_with('|'));
    // What stands between backquotes is every second piece.
    let mut named: Vec<&str> = rows.flat_map(|row| row.split('`').skip(1).step_by(2)).collect();
    named.sort_unstable();
    let known: BTreeSet<&str> = OPTIONS.iter().map(|info| info.name).collect();
    assert_eq!(named, Vec::from_iter(known), "docs/simulator.md, \"The options\"");
}
