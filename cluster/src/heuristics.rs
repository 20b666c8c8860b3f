//! What: the checks by which a node knows how well it fares: commands of the administrator, and addresses that it has to reach.
//! Owns: a thread per check; the last result of each; the score made of them.
//! Invariants: a check ends by its time limit and is taken for failed then; one that has not ended yet has not passed.
//! Does not: decide anything (membership does, and only among cliques of the same votes); hold up the daemon's loop.
//! Called by: the daemon.

use crate::{
    commands,
    config::{Heuristic, NodeFile},
};
use deadbolt_cluster_core::membership::{OwnStanding, SCORE_FULL};
use nix::sys::wait::WaitStatus;
use std::{
    net::TcpStream,
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// How one check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct CheckDone {
    index: usize,
    has_passed: bool,
}

/// The checks of this node. See the module's head.
pub(crate) struct Heuristics {
    weights: Vec<u32>,
    has_passed: Vec<bool>,
    minimum_score: u8,
    preference: u8,
    results: UnboundedReceiver<CheckDone>,
    /// Keeps the channel open where there is no check.
    _sender: UnboundedSender<CheckDone>,
}

impl Heuristics {
    /// Starts the checks; their threads end with the process.
    ///
    /// # Errors
    /// No thread.
    pub(crate) fn start(file: &NodeFile) -> std::io::Result<Self> {
        let (sender, results) = unbounded_channel();
        for (index, heuristic) in file.heuristics.iter().enumerate() {
            let (heuristic, sender) = (heuristic.clone(), sender.clone());
            std::thread::Builder::new().name("heuristic".into()).spawn(move || repeat(index, &heuristic, &sender))?;
        }
        Ok(Self {
            weights: file.heuristics.iter().map(|heuristic| u32::from(heuristic.weight)).collect(),
            has_passed: vec![false; file.heuristics.len()],
            minimum_score: file.minimum_score,
            preference: file.preference,
            results,
            _sender: sender,
        })
    }

    /// What this node says of itself after the next result.
    pub(crate) async fn next(&mut self) -> Option<OwnStanding> {
        let done = self.results.recv().await?;
        self.take(done);
        Some(self.standing())
    }

    fn take(&mut self, done: CheckDone) {
        if let Some(has_passed) = self.has_passed.get_mut(done.index) {
            *has_passed = done.has_passed;
        }
    }

    /// What this node says of itself now.
    pub(crate) fn standing(&self) -> OwnStanding {
        let score = score(&self.weights, &self.has_passed);
        OwnStanding { score: if score < self.minimum_score { 0 } else { score }, preference: self.preference }
    }
}

/// The part of the weights that passed, in hundredths, rounded down; full where nothing is checked.
fn score(weights: &[u32], has_passed: &[bool]) -> u8 {
    let total: u32 = weights.iter().sum();
    let passed: u32 = weights.iter().zip(has_passed).filter(|(_, has_passed)| **has_passed).map(|(weight, _)| *weight).sum();
    (passed * u32::from(SCORE_FULL)).checked_div(total).map_or(SCORE_FULL, |score| u8::try_from(score).unwrap_or(SCORE_FULL))
}

/// Runs a check for as long as the daemon lives; says in the log when its result changes.
fn repeat(index: usize, heuristic: &Heuristic, sender: &UnboundedSender<CheckDone>) {
    let interval = Duration::from_secs(u64::from(heuristic.interval_s));
    let mut last = None;
    loop {
        let began = Instant::now();
        let result = check(heuristic);
        let has_passed = result.is_ok();
        if last != Some(has_passed) {
            match &result {
                Ok(()) => tracing::info!(check = %heuristic, "the check passes"),
                Err(reason) => tracing::warn!(check = %heuristic, %reason, "the check fails"),
            }
        }
        last = Some(has_passed);
        if sender.send(CheckDone { index, has_passed }).is_err() {
            return;
        }
        std::thread::sleep(interval.saturating_sub(began.elapsed()));
    }
}

/// Passed, or why not.
fn check(heuristic: &Heuristic) -> Result<(), String> {
    let limit = Duration::from_secs(u64::from(heuristic.timeout_s));
    if let Some(address) = &heuristic.connect {
        return TcpStream::connect_timeout(address, limit).map(drop).map_err(|error| error.to_string());
    }
    let program = heuristic.program.as_deref().ok_or("there is nothing to check")?;
    let ended = commands::run(program, &heuristic.arguments, "", limit).map_err(|error| error.to_string())?;
    match ended.status {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, code) => Err(format!("it ended with {code}{}", ended.said)),
        other => Err(format!("it ended with {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener};

    fn connect(address: SocketAddr) -> Heuristic {
        Heuristic { program: None, arguments: Vec::new(), connect: Some(address), interval_s: 1, timeout_s: 1, weight: 1 }
    }

    fn program(path: &str, arguments: &[&str]) -> Heuristic {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Heuristic { program: Some(path.into()), arguments, connect: None, interval_s: 1, timeout_s: 1, weight: 1 }
    }

    fn shell(script: &str) -> Heuristic {
        program("/bin/sh", &["-c", script])
    }

    #[test]
    fn the_score_is_the_part_of_the_weights_that_passed() {
        assert_eq!(score(&[], &[]), 100);
        assert_eq!(score(&[1, 2], &[false, false]), 0);
        assert_eq!(score(&[1, 2], &[true, false]), 33);
        assert_eq!(score(&[1, 2], &[false, true]), 66);
        assert_eq!(score(&[1000; 16], &[true; 16]), 100);
    }

    #[test]
    fn a_command_passes_only_by_its_end_with_zero_in_time() {
        assert_eq!(check(&shell("exit 0")), Ok(()));
        assert!(check(&shell("echo no uplink >&2; exit 3")).unwrap_err().contains("3; it said: no uplink"));
        assert!(check(&shell("kill -9 $$")).is_err());
        assert!(check(&program("/nonexistent", &[])).unwrap_err().contains("started"));
        let began = Instant::now();
        assert!(check(&shell("sleep 300 & wait")).unwrap_err().contains("killed"));
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn an_address_is_reached_or_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(check(&connect(address)), Ok(()));
        drop(listener);
        assert!(check(&connect(address)).is_err());
    }

    #[test]
    fn what_a_node_says_follows_its_checks_and_is_nothing_below_the_minimum() {
        let mut heuristics = Heuristics::start(&crate::config::tests::node()).unwrap();
        assert_eq!(heuristics.standing(), OwnStanding { score: 100, preference: 0 });
        heuristics = Heuristics { weights: vec![3, 1], has_passed: vec![false; 2], minimum_score: 50, preference: 2, ..heuristics };
        assert_eq!(heuristics.standing(), OwnStanding { score: 0, preference: 2 });
        heuristics.take(CheckDone { index: 1, has_passed: true });
        assert_eq!(heuristics.standing().score, 0);
        heuristics.take(CheckDone { index: 0, has_passed: true });
        assert_eq!(heuristics.standing().score, 100);
        heuristics.take(CheckDone { index: 1, has_passed: false });
        assert_eq!(heuristics.standing().score, 75);
    }
}
