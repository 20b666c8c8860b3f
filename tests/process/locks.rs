//! What: what `deadbolt locks` and `deadbolt lockspaces` print of two real nodes with holders, waiters and byte ranges.
//! Owns: the locks of the scene.
//! Invariants: see the helpers.
//! Does not: test the texts of every case (their unit tests do).
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{Cluster, expect, tie, wait};
use deadbolt_dlm::{
    Mode, RangeMode,
    blocking::{Client, Guard, Protection, Wishes},
};
use serde_json::Value;
use std::{
    fs,
    process::{Child, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A session of this process on a node, with a lock that its ranges belong to.
fn opened(cluster: &Cluster, node: &str) -> Guard {
    let socket = cluster.node(node).join("lock.sock");
    let space = Client::connect(socket, Protection { is_unprotected: true }).unwrap().join(b"files").unwrap();
    space.lock(b"f", Mode::Nl, &Wishes::default()).unwrap()
}

fn in_background(cluster: &Cluster, node: &str, mode: &str, script: &str) -> Child {
    let mut lock = cluster.lock(node, "inode 7", &["--mode", mode], &["sh", "-c", script]);
    tie(lock.stdin(Stdio::null()).stdout(Stdio::null())).spawn().unwrap()
}

fn locks(cluster: &Cluster, node: &str, arguments: &[&str]) -> String {
    expect(cluster.verb("locks", node).args(arguments), 0)
}

fn json(cluster: &Cluster, node: &str, arguments: &[&str]) -> Value {
    serde_json::from_str(&locks(cluster, node, &[arguments, &["--json"]].concat())).unwrap()
}

/// Lines that begin like this once their spaces are single.
fn has_line(text: &str, start: &str) -> bool {
    text.lines().any(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(start))
}

fn show_errors(cluster: &Cluster) {
    let refused = |arguments: &[&str], code| expect(cluster.verb("locks", "a").args(arguments), code);
    assert!(refused(&["--mode", "XX"], 125).contains("use NL, CR, CW, PR, PW or EX"));
    assert!(refused(&["a\\q"], 125).contains("a backslash stands before"));
    assert!(refused(&["--lockspace", ""], 125).contains("the pattern is empty"));
    assert!(refused(&["--pid=-1"], 125).contains("--pid"));
    assert!(refused(&["--graph=png"], 125).contains("dot"));
    assert!(refused(&["--node", "zz"], 1).contains("configured are a, b"));
    assert!(refused(&["--with", "/nonexistent"], 1).contains("/nonexistent"));
    assert!(refused(&["--with", cluster.device.to_str().unwrap()], 1).contains("--with"));
    let object: Value = serde_json::from_str(&refused(&["--node", "zz", "--json"], 1)).unwrap();
    assert_eq!(object["ok"], false);
}

fn show_lockspaces(cluster: &Cluster) {
    let spaces = expect(&mut cluster.verb("lockspaces", "a"), 0);
    eprintln!("{spaces}");
    assert!(spaces.lines().any(|line| line.starts_with("files ") && line.contains("a,b") && line.ends_with("runs")), "{spaces}");
    let object: Value = serde_json::from_str(&expect(cluster.verb("lockspaces", "b").args(["dead*", "--node", "b", "--json"]), 0)).unwrap();
    let row = &object["lockspaces"][0];
    assert_eq!((row["lockspace"].as_str(), row["waiting"].as_u64(), &row["members"][1]), (Some("deadbolt"), Some(1), &"b".into()));
    assert!(expect(cluster.verb("lockspaces", "a").arg("--gated"), 0).contains("no lockspace that fits"));
    assert!(expect(cluster.verb("lockspaces", "a").args(["--node", "zz"]), 1).contains("members are a, b"));
}

#[test]
fn locks_waits_ranges_and_lockspaces_are_shown() {
    let cluster = Cluster::of(&["a", "b"]);
    cluster.wait_members(&["a", "b"]);
    let release = cluster.path().join("release");
    let mut holder = in_background(&cluster, "a", "EX", &format!("while [ ! -e {} ]; do sleep 0.02; done", release.display()));
    wait("EX is held", PATIENCE, || locks(&cluster, "a", &["inode*"]).contains("EX"));
    let mut waiter = in_background(&cluster, "b", "PR", "true");
    let (one, other) = (opened(&cluster, "a"), opened(&cluster, "b"));
    one.lock_range(RangeMode::Write, 0..100, &Wishes { owner: 5, ..Wishes::default() }).unwrap();
    let ranging = std::thread::spawn(move || other.lock_range(RangeMode::Read, 50.., &Wishes { owner: 6, ..Wishes::default() }));

    // Each node knows its own; with the other's answer added, everything, once.
    let on_b = cluster.path().join("b.json");
    let whole = |arguments: &[&str]| {
        fs::write(&on_b, json(&cluster, "b", &[]).to_string()).unwrap();
        locks(&cluster, "a", &[arguments, &["--with", on_b.to_str().unwrap()]].concat())
    };
    wait("both wait", PATIENCE, || whole(&["--waiting"]).lines().filter(|line| line.contains(" waits ")).count() == 2);
    let (me, text) = (std::process::id(), whole(&[]));
    eprintln!("{text}");
    assert!(text.ends_with("Seen from all members: a, b.\n"), "{text}");
    assert!(has_line(&text, "deadbolt \"inode 7\" a "), "{text}");
    assert!(has_line(&text, &format!("files f a {me} 5 write 0-99 -")), "{text}");
    assert!(has_line(&text, &format!("files f b {me} 6 - read 50-")), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("EX")).count(), 1, "{text}");

    let waiting = whole(&["--waiting"]);
    eprintln!("{waiting}");
    assert!(has_line(&waiting, "deadbolt/\"inode 7\", master "), "{waiting}");
    assert!(waiting.lines().any(|line| line.trim_start().starts_with("a:") && line.ends_with(" has EX")), "{waiting}");
    assert!(has_line(&waiting, &format!("a:{me} range owner 5 has write 0-99")), "{waiting}");
    let graph = whole(&["--graph"]);
    eprintln!("{graph}");
    assert!(graph.contains(&format!("b:{me} range owner 6 -> a:{me} range owner 5: waits ")), "{graph}");
    assert!(graph.contains("waits for nobody itself: a:"), "{graph}");
    let dot = whole(&["--graph=dot"]);
    eprintln!("{dot}");
    assert!(dot.starts_with("digraph waits_for {") && dot.contains(" -> p") && dot.contains("\n// Seen from all members"), "{dot}");

    // Filters, and what is left out.
    let me = me.to_string();
    let count = |arguments: &[&str]| {
        let (on_a, on_b) = (json(&cluster, "a", arguments), json(&cluster, "b", arguments));
        let rows = |answer: &Value, kind: &str| answer[kind].as_array().unwrap().iter().filter(|row| row["node"] == "b").count();
        ["locks", "ranges"].map(|kind| rows(&on_a, kind).max(rows(&on_b, kind)))
    };
    assert_eq!(count(&["--lockspace", "fil?s"]), [1, 1]);
    assert_eq!(count(&["--pid", &me, "--node", "b"]), [1, 1]);
    assert_eq!(count(&["--node", "1", "--mode", "pr"]), [1, 0]);
    assert_eq!(count(&["--owner", "6"]), [0, 1]);
    assert_eq!(count(&["--waiting", "--owner", "5"]), [0, 1], "who waits for owner 5, where its master is asked");
    assert_eq!(count(&["nothing*"]), [0, 0]);
    let cut = json(&cluster, "a", &["--limit", "1"]);
    assert_eq!(cut["locks"].as_array().unwrap().len() + cut["ranges"].as_array().unwrap().len(), 1);
    assert!(cut["left_out"].as_u64().unwrap() > 0, "{cut}");
    assert!(locks(&cluster, "a", &["--limit", "1"]).contains("more fit and are not shown"));

    show_errors(&cluster);
    show_lockspaces(&cluster);

    fs::write(&release, b"").unwrap();
    assert!(holder.wait().unwrap().success() && waiter.wait().unwrap().success());
    one.leave();
    ranging.join().unwrap().unwrap();
}
