//! What: the short form of `cargo xtask torture`: real nodes and clients under kill -9.
//! Owns: nothing beyond the run's own directory.
//! Invariants: after the test no process, mount or loop device of the run is left, and no directory.
//! Does not: judge: the run's checker does.
//! Called by: `cargo test`; skipped where there is no root.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{deadbolt, directory, is_root, left_of, tie, wait};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Longest time for all of it.
const PATIENCE: Duration = Duration::from_secs(240);

fn can_run() -> bool {
    if !is_root() {
        eprintln!("skipped: needs root");
        return false;
    }
    if let Err(error) = deadbolt_cluster::supervisor::check_pid_namespace() {
        eprintln!("skipped: {error}");
        return false;
    }
    true
}

fn torture(arguments: &[&str]) -> Command {
    let mut command = deadbolt();
    command.args(["torture", "run"]).args(arguments);
    command
}

#[test]
fn nothing_is_lost_and_nobody_is_stuck() {
    if !can_run() {
        return;
    }
    let base = directory();
    let mut command = torture(&["--seconds", "20", "--clients", "24", "--queue-ms", "20000", "--json"]);
    command.env("TMPDIR", base.path()).stdin(Stdio::null()).stdout(Stdio::piped());
    let child = tie(&mut command).spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if is_done.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let begin = Instant::now();
    let output = child.wait_with_output().unwrap();
    drop(done);
    guard.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let object: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    eprintln!("{object}, in {:?}", begin.elapsed());
    assert_eq!(object["verdict"], "held", "{text}");
    assert_eq!(output.status.code(), Some(0), "{text}");
    for (count, least) in [("grants", 200), ("conversions", 20), ("increments", 200), ("values_good", 50), ("clients_killed", 3)] {
        assert!(object[count].as_u64().unwrap() >= least, "only {count}: {text}");
    }
    assert!(!object["faults"].as_object().unwrap().is_empty(), "{text}");
    wait("everything goes", Duration::from_secs(5), || left_of(base.path()).is_empty());
    assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0, "the run's directory is left");
}

#[test]
fn a_killed_run_leaves_nothing_but_its_directory() {
    if !can_run() {
        return;
    }
    let base = directory();
    let mut command = torture(&["--clients", "6"]);
    command.env("TMPDIR", base.path()).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = tie(&mut command).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(6));
    assert!(!left_of(base.path()).is_empty(), "the run had not begun");
    child.kill().unwrap();
    child.wait().unwrap();
    wait("the kill leaves nothing", Duration::from_secs(5), || left_of(base.path()).is_empty());
    let swept = deadbolt_cluster::supervisor::sweep(base.path(), "deadbolt-torture-").unwrap();
    assert_eq!(swept.len(), 1);
}
