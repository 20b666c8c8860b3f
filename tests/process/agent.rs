//! What: a fence agent that proves a dead node gone before its silence does.
//! Owns: the agent, a script; the node that is killed.
//! Invariants: the agent is called once, and for the node that was removed.
//! Does not: judge what counts as an agent's word (tests of cluster).
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{Cluster, wait};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

const PATIENCE: Duration = Duration::from_secs(40);

#[test]
fn an_agent_is_called_for_a_node_that_died() {
    let mut cluster = Cluster::new();
    cluster.stall = "5s";
    let mut cluster = cluster.with(&["a", "b"], &[]);
    cluster.wait_members(&["a", "b"]);
    let (program, notes) = (cluster.path().join("fence_test"), cluster.path().join("notes"));
    let script = format!(
        "#!/bin/sh\nwhile read -r line; do echo \"$line\" >> {notes}; case $line in action=status) code=2;; esac; done\nexit ${{code:-0}}\n",
        notes = notes.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    cluster.stop("a");
    let file = cluster.node("a").join("node.toml");
    let text = fs::read_to_string(&file).unwrap().replace("fence_agents = []\n", "");
    let agent = format!("[[fence_agents]]\nnode = \"b\"\nprogram = {program:?}\nparameters = {{ plug = \"2\" }}\n");
    fs::write(&file, format!("{text}\n{agent}")).unwrap();
    cluster.start("a");
    cluster.wait_members(&["a", "b"]);

    kill(Pid::from_raw(cluster.info("b").unwrap().supervisor), Signal::SIGKILL).unwrap();
    let took = wait("evidence", PATIENCE, || cluster.evidence("b").last().is_some_and(|word| word != "left"));
    assert_eq!(cluster.evidence("b"), ["agent"], "{}", cluster.log("a"));
    eprintln!("gone by an agent's word {took:?} after its death");
    assert!(took < Duration::from_secs(8), "{took:?}: silence alone takes 9 s");
    assert_eq!(fs::read_to_string(&notes).unwrap(), "action=off\nnodename=b\nplug=2\naction=status\nnodename=b\nplug=2\n");
}
