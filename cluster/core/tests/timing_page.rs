//! What: docs/timing.md compared with the one place that derives times.
//! Owns: the reading of the page's two tables.
//! Invariants: every figure of the tables is computed again; a figure that differs is a failed test, which prints the right row.
//! Does not: check the prose.
//! Called by: `cargo test`.

use std::fmt::Write;

use deadbolt_cluster_core::timing::{DRIVERS, UNKNOWN_DRIVER, Wishes, budget_crash, budget_partition, derive, driver};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/timing.md");
    std::fs::read_to_string(path).expect("docs/timing.md")
}

/// The cells of the rows of the table whose head begins with `first`.
fn rows(page: &str, first: &str) -> Vec<Vec<String>> {
    let mut lines = page.lines().skip_while(|line| !line.starts_with(&format!("| {first} |")));
    let head = lines.next().unwrap_or_else(|| panic!("no table that begins with {first}"));
    let columns = head.matches('|').count();
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|line| {
        let cells: Vec<String> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        assert_eq!(cells.len() + 1, columns, "{line}");
        cells
    })
    .collect()
}

/// Seconds with two digits; a third would be rounding noise of formulas that round up to 10 ms.
fn seconds(time_ms: u64) -> String {
    format!("{}.{:02}", time_ms / 1000, time_ms % 1000 / 10)
}

fn right_row(stall_ms: u32, name: &str) -> Vec<String> {
    let timings = derive(&Wishes { driver: driver(name), ..Wishes::stall(stall_ms) }).expect("a usual stall");
    let times = [timings.stall_ms, timings.poll_ms, timings.watchdog_ms, timings.reset_ms, timings.lease_ms, timings.expiry_ms];
    let mut cells: Vec<String> = times.into_iter().map(|time| seconds(u64::from(time))).collect();
    cells.insert(1, name.to_owned());
    cells.extend([budget_crash(&timings), budget_partition(&timings)].map(|budget| seconds(budget.total_ms())));
    cells
}

#[test]
fn the_derived_values_are_those_of_the_code() {
    let page = page();
    let found = rows(&page, "stall");
    assert!(found.len() >= 10, "only {} rows", found.len());
    let mut wrong = String::new();
    for row in found {
        let (whole, hundredths) = row[0].split_once('.').expect("seconds with two digits");
        let stall_ms = whole.parse::<u32>().expect("seconds") * 1000 + hundredths.parse::<u32>().expect("hundredths") * 10;
        let right = right_row(stall_ms, &row[1]);
        if row != right {
            let _ = writeln!(wrong, "| {} |", right.join(" | "));
        }
    }
    assert!(wrong.is_empty(), "docs/timing.md is out of date; these rows are right:\n{wrong}");
}

#[test]
fn the_drivers_are_those_of_the_code() {
    let page = page();
    let found = rows(&page, "driver");
    let known = DRIVERS.iter().chain([&UNKNOWN_DRIVER]);
    let right: Vec<Vec<String>> = known
        .map(|driver| {
            let times = [driver.lateness_ms, driver.earliness_ms, driver.least_ms].map(|time| seconds(u64::from(time)));
            std::iter::once(driver.name.to_owned()).chain(times).collect()
        })
        .collect();
    let without_remarks: Vec<Vec<String>> = found.into_iter().map(|row| row.into_iter().take(4).collect()).collect();
    assert_eq!(without_remarks, right);
}
