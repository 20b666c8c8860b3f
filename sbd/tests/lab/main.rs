//! What: stock sbd and ours in the same places: faults under which stock reports a fence that did not happen, times in which a node
//! outlives the report of its death, and messages of each to watchers of each.
//! Owns: the disks, the nodes (PID namespaces that reboot(2) or a watchdog ends) and the clock by which a report is judged.
//! Invariants: stock has to show its fault: a test of ours that passes where stock does not fail would prove nothing.
//! Does not: change or imitate sbd; only the watchdog device is none of the kernel's.
//! Called by: `cargo test`; `cargo xtask stock` prints what was measured, `cargo xtask stock all` does all that takes longer.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod crossed;
mod faults;
mod fences;
mod times;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{STOCK, has_stock, made, ours, sbd};
use deadbolt_tests::hung_disk::serve_if_asked;
use deadbolt_tests::node::{Node, Sent, message};

#[test]
fn hung_disk_server() {
    serve_if_asked();
}

/// How long a watcher may take to be at work.
const START: Duration = Duration::from_secs(30);

/// Whose program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Stock,
    Ours,
}

impl Whose {
    fn program(self) -> PathBuf {
        match self {
            Self::Stock => STOCK.into(),
            Self::Ours => ours(),
        }
    }

    /// It is here.
    fn is_here(self) -> bool {
        self == Self::Ours || has_stock()
    }
}

/// The long set was asked for.
fn is_all() -> bool {
    std::env::var("DEADBOLT_STOCK").is_ok_and(|value| value == "all")
}

/// Makes the area and gives these nodes a slot each.
fn create(program: &Path, device: &Path, times: &str, names: &[&str]) {
    let run = |line: String| {
        let output = sbd(program, &line);
        assert!(output.status.success(), "{line}: {output:?}");
    };
    let device = device.display();
    run(format!("-d {device} {times} -2 0 create"));
    for name in names {
        run(format!("-d {device} allocate {name}"));
    }
}

/// Prints a row: what its sender said, when the node died.
fn report(what: &str, sent: &Sent, node: &Node) {
    let since = |moment: Instant| format!("{:.2} s", (moment - sent.began).as_secs_f64());
    let died = node.died().map_or_else(|| "not yet".to_owned(), since);
    let code = sent.output.status.code().map_or_else(|| "none".to_owned(), |code| code.to_string());
    let outlived = node.died().and_then(|died| sent.outlived(died)).filter(|span| !span.is_zero());
    let two_owners = outlived.map(|span| format!(", {:.2} s with two owners", span.as_secs_f64())).unwrap_or_default();
    eprintln!("{what}: the sender says {code} after {:.2} s, dead after {died}{two_owners}", sent.took().as_secs_f64());
}

fn send(whose: Whose, device: &Path, name: &str, word: &str) -> Sent {
    message(&whose.program(), device, "", name, word).unwrap()
}

/// The imitated watchdog's library.
fn library() -> Option<PathBuf> {
    made(deadbolt_tests::watchdog::library(common::folder()))
}
