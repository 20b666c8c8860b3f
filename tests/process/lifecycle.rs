//! What: three nodes through their whole life, by the verbs alone.
//! Owns: nothing beyond its cluster.
//! Invariants: see the helpers.
//! Does not: cut or kill anything.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{Cluster, both, deadbolt, expect, run, tie, wait};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::symlink,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

#[test]
fn three_nodes_form_work_stop_start_and_leave() {
    let mut cluster = Cluster::of(&["a", "b", "c"]);
    cluster.wait_members(&["a", "b", "c"]);
    let status = cluster.status("b").unwrap();
    for (field, wanted) in [("expected_votes", 5), ("total_votes", 5), ("quorum", 3)] {
        assert_eq!(status[field], wanted, "{status}");
    }
    assert_eq!(status["quorate"], true);
    assert!(status["lease_left_ms"].as_u64().unwrap() > 0);
    assert!(status["disks"][0]["latency_us"].as_u64().is_some());
    expect(&mut cluster.verb("status", "a"), 0);

    let view = status["view"].as_u64().unwrap();
    let said = expect(&mut cluster.lock("a", "r", &[], &["sh", "-c", "echo $DEADBOLT_RESOURCE $DEADBOLT_VIEW $DEADBOLT_TOKEN"]), 0);
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words[..2], ["r", &view.to_string()]);
    assert!(words[2].starts_with(&format!("{view}.")), "{said}");

    // A held lock shows in `locks`, is not granted elsewhere, and is when it is free again.
    let release = cluster.path().join("release");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done", release.display());
    let mut holding = tie(&mut cluster.lock("a", "held", &[], &["sh", "-c", &script])).stdin(Stdio::null()).spawn().unwrap();
    wait("the lock shows", Duration::from_secs(10), || both(&run(&mut cluster.verb("locks", "a"))).contains("held"));
    let locks: Value = serde_json::from_str(&expect(cluster.verb("locks", "a").arg("--json"), 0)).unwrap();
    let lock = locks["locks"].as_array().unwrap().iter().find(|lock| lock["resource"] == "held").unwrap().clone();
    assert_eq!((lock["granted"].as_str(), lock["node"].as_str()), (Some("EX"), Some("a")), "{lock}");
    let begin = Instant::now();
    expect(&mut cluster.lock("b", "held", &["--wait", "300ms"], &["true"]), 121);
    assert!(begin.elapsed() >= Duration::from_millis(300));
    expect(&mut cluster.lock("c", "held", &["--mode", "NL"], &["true"]), 0);
    fs::write(&release, b"").unwrap();
    expect(&mut cluster.lock("b", "held", &["--wait", "5s"], &["true"]), 0);
    assert!(holding.wait().unwrap().success());

    // Stop and start: the view loses the node at once, without a fence, and takes it back.
    cluster.stop("c");
    cluster.wait_members(&["a", "b"]);
    assert_eq!(cluster.evidence("c").last().map(String::as_str), Some("left"));
    expect(&mut cluster.verb("status", "c"), 2);
    expect(&mut cluster.verb("stop", "c"), 0);
    cluster.start("c");
    cluster.wait_members(&["a", "b", "c"]);
    expect(&mut cluster.lock("c", "held", &["--wait", "5s"], &["true"]), 0);

    // Leave: out of the configuration, the votes follow, and the name is free for another node.
    expect(&mut cluster.verb("leave", "c"), 0);
    cluster.wait_members(&["a", "b"]);
    wait("the votes follow", Duration::from_secs(10), || cluster.field("a", "expected_votes").is_some_and(|votes| votes == 3));
    assert!(!cluster.node("c").join("node.toml").exists());
    cluster.add("c", 3);
    cluster.wait_members(&["a", "b", "c"]);

    // A machine that is gone for good: members take it out, but none that is in.
    expect(cluster.verb("remove", "a").arg("c"), 1);
    cluster.stop("c");
    cluster.wait_members(&["a", "b"]);
    expect(cluster.verb("remove", "a").arg("c"), 0);
    assert_eq!(cluster.field("a", "expected_votes").unwrap(), 3);
    // What is not configured cannot be fenced; asked for as JSON, the refusal is one object.
    let fenced = expect(cluster.verb("fence", "a").args(["c", "--json"]), 1);
    assert!(fenced.contains("no node"), "{fenced}");

    for name in ["b", "a"] {
        cluster.stop(name);
    }
    expect(deadbolt().arg("fsck").arg(&cluster.device), 0);
    // After a stop of all, the disk says who was active last, and the last one can begin alone.
    let last = expect(deadbolt().args(["why", "--last-view", "--device"]).arg(&cluster.device), 0);
    assert!(last.contains("members"), "{last}");
    cluster.start("a");
    assert_eq!(cluster.members("a"), ["a"]);
}

#[test]
fn lock_has_the_exit_codes_of_its_page() {
    let cluster = Cluster::of(&["a"]);
    let code = |options: &[&str], command: &[&str], wanted: i32| expect(&mut cluster.lock("a", "r", options, command), wanted);
    code(&[], &["sh", "-c", "exit 7"], 7);
    code(&[], &["sh", "-c", "kill -TERM $$"], 143);
    assert!(code(&[], &["/nonexistent/program"], 127).contains("/nonexistent/program"));
    assert!(code(&[], &["/etc/passwd"], 126).contains("/etc/passwd"));
    code(&["--mode", "XX"], &["true"], 125);
    expect(&mut cluster.lock("a", &"x".repeat(65), &[], &["true"]), 125);
    expect(&mut cluster.lock("nobody", "r", &[], &["true"]), 123);
    // What forks away outlives neither the node nor, where it matters, the lock: the lock is free once the command has ended.
    code(&[], &["sh", "-c", "(sleep 1; true) & exit 0"], 0);
    code(&["--wait", "10s"], &["true"], 0);
}

#[test]
fn a_node_whose_starter_has_ended_already_does_not_begin() {
    let mut cluster = Cluster::of(&["a"]);
    cluster.stop("a");
    let program = cluster.path().join("deadboltd");
    let log = cluster.node("a").join("deadbolt.log");
    symlink(deadbolt().get_program(), &program).unwrap();
    let script = format!("\"$0\" --supervise --tied $$ --dir {} & exit 0", cluster.node("a").display());
    let mut starter = Command::new("sh");
    starter.args(["-c", &script]).arg(&program);
    assert!(tie(&mut starter).status().unwrap().success());
    wait("it says why", Duration::from_secs(10), || fs::read_to_string(&log).is_ok_and(|text| text.contains("is tied, has ended")));
}

#[test]
fn a_running_cluster_is_changed() {
    let mut cluster = Cluster::of(&["a", "b", "c"]);
    cluster.wait_members(&["a", "b", "c"]);
    let change = |cluster: &Cluster, at: &str, words: &[&str], code: i32| expect(cluster.verb("change", at).args(words), code);
    let votes =
        |cluster: &Cluster| ["expected_votes", "disk_votes", "quorum"].map(|field| cluster.field("b", field).unwrap().as_u64().unwrap());
    assert!(change(&cluster, "a", &["c", "--votes", "3"], 0).contains("c: 3 votes"));
    cluster.wait_members(&["a", "b", "c"]);
    wait("the others know", Duration::from_secs(5), || votes(&cluster) == [7, 2, 4]);
    change(&cluster, "b", &["--disk-votes", "1"], 0);
    wait("the others know", Duration::from_secs(5), || votes(&cluster) == [6, 1, 4]);
    change(&cluster, "b", &["--disk-votes", "auto"], 0);

    // Twice before its sbd has seen either, and once while it is away.
    change(&cluster, "b", &["c", "--rename", "third"], 0);
    change(&cluster, "a", &["third", "--rename", "gamma", "--votes", "1"], 0);
    wait("the others know", Duration::from_secs(5), || cluster.members("b") == ["a", "b", "gamma"]);
    wait("its file follows", Duration::from_secs(5), || {
        fs::read_to_string(cluster.node("c").join("node.toml")).unwrap().contains("name = \"gamma\"")
    });
    expect(&mut cluster.lock("c", "r", &["--wait", "5s"], &["true"]), 0);
    cluster.stop("c");
    wait("it has left", Duration::from_secs(5), || cluster.members("a") == ["a", "b"]);
    cluster.start("c");
    wait("it is back under its name", Duration::from_secs(20), || cluster.members("a") == ["a", "b", "gamma"]);
    cluster.stop("c");
    wait("it has left", Duration::from_secs(5), || cluster.members("a") == ["a", "b"]);
    change(&cluster, "a", &["gamma", "--rename", "last"], 0);
    cluster.start("c");
    wait("it is back under another name", Duration::from_secs(20), || cluster.members("a") == ["a", "b", "last"]);

    for (words, code, reason) in [
        (&["nobody", "--votes", "1"][..], 1, "no node \"nobody\" is configured"),
        (&["b", "--rename", "LAST"], 1, "is taken by node last"),
        (&["b", "--address", "nowhere"], 1, "no address"),
        (&["--disk-votes", "9"], 1, "from 1 to nodes - 1"),
        (&["b", "--address", "192.0.2.1:7400"], 1, "keep one of these"),
        (&["--disk-votes", "some"], 125, "a number, or auto"),
        (&["--disk-votes", "1", "--votes", "2"], 125, "cannot be used with"),
        (&["b"], 125, "--votes"),
        (&[], 125, "<SUBJECT>"),
    ] {
        let said = change(&cluster, "a", words, code);
        assert!(said.contains(reason), "{words:?}: {said}");
    }
}
