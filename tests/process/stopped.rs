//! What: a daemon, an sbd and a client that stand still for longer than the lease and then go on.
//! Owns: a counter, incremented under an EX lock and protected by nothing else.
//! Invariants: a lost update would prove that somebody acted on an old belief.
//! Does not: stop the supervisor (see its module for what it covers).
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{Cluster, tie, wait};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(40);

/// Two nodes whose workers count.
struct Counting {
    cluster: Cluster,
    workers: Vec<Child>,
}

impl Counting {
    fn begin() -> Self {
        let cluster = Cluster::of(&["a", "b"]);
        cluster.wait_members(&["a", "b"]);
        fs::write(cluster.path().join("counter"), 0u64.to_le_bytes()).unwrap();
        let mut counting = Self { cluster, workers: Vec::new() };
        counting.work("a");
        counting.work("b");
        counting.wait_progress(&["a", "b"]);
        counting
    }

    fn work(&mut self, name: &str) {
        let mut command = self.cluster.verb("demo-worker", name);
        command.arg("--run").arg(self.cluster.path()).args(["--name", name, "--stubborn"]);
        self.workers.push(tie(command.stdin(Stdio::null()).stdout(Stdio::null())).spawn().unwrap());
    }

    fn tally(&self, name: &str) -> Vec<(String, String, u64)> {
        let text = fs::read_to_string(self.cluster.path().join(format!("tally-{name}"))).unwrap_or_default();
        let lines = text.lines().filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [step, token, value] = words[..] else { return None };
            Some((step.to_owned(), token.to_owned(), value.parse().ok()?))
        });
        lines.collect()
    }

    fn count(&self, name: &str, step: &str) -> usize {
        self.tally(name).iter().filter(|line| line.0 == step).count()
    }

    fn wait_progress(&self, names: &[&str]) {
        let before: Vec<usize> = names.iter().map(|name| self.count(name, "done")).collect();
        wait("all count", PATIENCE, || names.iter().zip(&before).all(|(name, before)| self.count(name, "done") > before + 3));
    }

    /// b's worker has the lock and keeps it.
    fn hold(&self) {
        fs::write(self.cluster.path().join("hold-b"), b"").unwrap();
        wait("b keeps the lock", PATIENCE, || self.count("b", "hold") > 0);
    }

    fn release(&self) {
        fs::remove_file(self.cluster.path().join("hold-b")).unwrap();
    }

    /// No update was lost, and tokens grew with the counter.
    fn end(mut self) {
        fs::write(self.cluster.path().join("stop-work"), b"").unwrap();
        for worker in &mut self.workers {
            wait("the workers end", PATIENCE, || worker.try_wait().unwrap().is_some());
        }
        let counter = u64::from_le_bytes(fs::read(self.cluster.path().join("counter")).unwrap().try_into().unwrap());
        let lines: Vec<_> = ["a", "b"].iter().flat_map(|name| self.tally(name)).collect();
        let intents = u64::try_from(lines.iter().filter(|line| line.0 == "intent").count()).unwrap();
        let number = |token: &str| -> (u64, u64) {
            let (view, counter) = token.split_once('.').unwrap();
            (view.parse().unwrap(), counter.parse().unwrap())
        };
        let mut done: Vec<(u64, (u64, u64))> = lines.iter().filter(|line| line.0 == "done").map(|line| (line.2, number(&line.1))).collect();
        done.sort_unstable();
        let values: BTreeSet<u64> = done.iter().map(|(value, _)| *value).collect();
        assert_eq!(values.len(), done.len(), "two workers made the same value: an update was lost");
        assert!(values.last() <= Some(&counter) && counter <= intents, "counter {counter}, intents {intents}");
        assert!(done.windows(2).all(|pair| pair[0].1 <= pair[1].1), "a token fell");
        eprintln!("counter {counter}, {} acknowledged, {intents} begun", done.len());
    }
}

/// Stops one process of b while b holds the lock, and later lets it go on.
fn stopped(which: &str) {
    let mut counting = Counting::begin();
    let cluster = &counting.cluster;
    // Besides the lock of the counter: a command that ignores what asks it to end, and forks away.
    let marker = format!("{}.{}", 40_000 + std::process::id() % 10_000, if which == "sbd" { 1 } else { 2 });
    let script = format!("trap '' TERM INT HUP; setsid sleep {marker} & sleep {marker}; exit 3");
    let mut lock = tie(&mut cluster.lock("b", "other", &[], &["sh", "-c", &script])).stdin(Stdio::null()).spawn().unwrap();
    let is_running = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes.filter(|entry| fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default().contains(&marker)).count()
    };
    wait("the command runs", PATIENCE, || is_running() >= 3);
    counting.hold();
    let info = cluster.info("b").unwrap();
    let pid = Pid::from_raw(if which == "sbd" { info.sbd } else { info.daemon }.unwrap());
    let before = counting.count("a", "done");
    kill(pid, Signal::SIGSTOP).unwrap();
    let time = wait("a has the lock", PATIENCE, || counting.count("a", "done") > before);
    eprintln!("{which} stopped: the lock was recovered after {time:?}");
    assert!(time > Duration::from_secs(1), "the lock was taken from a node that was not proved gone");
    // Nothing of that life is left to act when it is let go on.
    wait("the life has ended", PATIENCE, || cluster.info("b").is_some_and(|now| now.boot != info.boot));
    assert!(kill(pid, Signal::SIGCONT).is_err(), "the stopped process outlived its life");
    assert_eq!(is_running(), 0, "a command outlived its node");
    assert_eq!(lock.wait().unwrap().code(), Some(122));
    assert!(["expired", "rebooted", "acknowledged"].contains(&cluster.evidence("b").last().unwrap().as_str()));
    counting.release();
    counting.cluster.wait_member("b");
    counting.work("b");
    counting.wait_progress(&["a", "b"]);
    counting.end();
}

#[test]
fn a_stopped_daemon_is_fenced_and_does_not_act_again() {
    stopped("daemon");
}

#[test]
fn a_stopped_sbd_is_fenced_and_does_not_act_again() {
    stopped("sbd");
}

#[test]
fn a_stopped_client_keeps_its_lock_and_may_go_on() {
    let counting = Counting::begin();
    counting.hold();
    let boot = counting.cluster.info("b").unwrap().boot;
    // The worker itself runs inside the tree, below a handler; it is found by its arguments.
    let run = counting.cluster.path().to_str().unwrap().to_owned();
    let find = || {
        let numbers = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let line = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut found = numbers.filter(|pid| ["--inside", &run, "/b\0"].iter().all(|word| line(pid).contains(word)));
        found.next()
    };
    let worker = Pid::from_raw(find().unwrap());
    kill(worker, Signal::SIGSTOP).unwrap();
    // One increment of a may have been told just now.
    std::thread::sleep(Duration::from_millis(200));
    let before = counting.count("a", "done");
    std::thread::sleep(Duration::from_millis(4500));
    assert_eq!(counting.count("a", "done"), before, "a lock was taken from a living client");
    kill(worker, Signal::SIGCONT).unwrap();
    counting.wait_progress(&["b"]);
    counting.release();
    counting.wait_progress(&["a", "b"]);
    assert_eq!(counting.cluster.info("b").unwrap().boot, boot);
    counting.end();
}
