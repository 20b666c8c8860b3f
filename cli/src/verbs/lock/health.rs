//! What: small commands beside the one under a lock: its health check, and what is to be done before the lock goes back.
//! Owns: their time limits, how many checks in a row may fail.
//! Invariants: nothing here outlasts its limit by more than a moment; a command that cannot be ended is left behind, not waited for; what a
//!   small command left running in its group is ended with it, and reaped.
//! Does not: end the command under the lock, or give the lock back.
//! Called by: `deadbolt lock`.

use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};
use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    time::{Duration, Instant},
};

/// How often it is looked whether a small command has ended.
const LOOK: Duration = Duration::from_millis(10);
/// How many processes of a group, or looks at it, it is worth to wait for when they were killed.
const REAPS: u32 = 100;

/// Failures in a row.
#[derive(Debug)]
pub(super) struct Tally {
    failed: u32,
    allowed: u32,
}

impl Tally {
    pub(super) fn new(allowed: u32) -> Self {
        Self { failed: 0, allowed }
    }

    /// Is this one too many?
    pub(super) fn handle_check(&mut self, is_well: bool) -> bool {
        self.failed = if is_well { 0 } else { self.failed.saturating_add(1) };
        self.failed >= self.allowed
    }
}

/// Checks at each interval, each for an interval at the most; answers with the last reason when too many failed in a row, or without one
/// when the other end of `is_over` is gone.
pub(super) fn watch(interval: Duration, allowed: u32, check: impl Fn() -> Command, is_over: &Receiver<()>) -> Option<String> {
    let mut tally = Tally::new(allowed);
    loop {
        if is_over.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
            return None;
        }
        let result = run_within(&mut check(), Some(interval));
        // The end of the command takes its check along.
        if is_over.try_recv() != Err(TryRecvError::Empty) {
            return None;
        }
        let is_too_many = tally.handle_check(result.is_ok());
        if let Err(reason) = result {
            eprintln!("deadbolt lock: health check: {reason} ({} of {allowed})", tally.failed);
            if is_too_many {
                return Some(reason);
            }
        }
    }
}

/// Runs a command to its end, at the most for `limit` where there is one; its standard output is for nobody.
///
/// # Errors
/// It did not end with 0.
pub(super) fn run_within(command: &mut Command, limit: Option<Duration>) -> Result<(), String> {
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.spawn().map_err(|error| error.to_string())?;
    let group = Pid::from_raw(child.id().cast_signed());
    let end = limit.map(|limit| Instant::now() + limit);
    let result = loop {
        match waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(_, 0)) => break Ok(()),
            Ok(WaitStatus::Exited(_, code)) => break Err(format!("exit status: {code}")),
            Ok(WaitStatus::Signaled(_, signal, _)) => break Err(format!("ended by {signal}")),
            Ok(_) if end.is_none_or(|end| Instant::now() < end) => std::thread::sleep(LOOK),
            Ok(_) => break Err(format!("no answer within {:?}", limit.unwrap_or_default())),
            Err(errno) => break Err(errno.to_string()),
        }
    };
    end_group(group);
    result
}

/// Ends what is left of a group, whose first process is not reaped yet, so that the number is its own. Its orphans are children of this process, where that is their subreaper; one that is stuck is left.
fn end_group(group: Pid) {
    let _ = killpg(group, Signal::SIGKILL);
    for _ in 0..REAPS {
        match waitpid(Pid::from_raw(-group.as_raw()), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(LOOK),
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        command
    }

    #[test]
    fn only_failures_in_a_row_count() {
        for (allowed, checks, wanted) in [
            (1, &[true, false][..], &[false, true][..]),
            (2, &[false, true, false, false][..], &[false, false, false, true][..]),
            (3, &[false, false, true, false, false][..], &[false; 5][..]),
        ] {
            let mut tally = Tally::new(allowed);
            let verdicts: Vec<bool> = checks.iter().map(|is_well| tally.handle_check(*is_well)).collect();
            assert_eq!(verdicts, wanted, "{allowed} of {checks:?}");
        }
    }

    #[test]
    fn a_command_has_its_limit() {
        let long = Some(Duration::from_secs(60));
        assert_eq!(run_within(&mut shell("exit 0"), long), Ok(()));
        assert!(run_within(&mut shell("exit 3"), long).unwrap_err().contains('3'));
        assert!(run_within(&mut Command::new("/nonexistent"), long).is_err());
        let begin = Instant::now();
        let said = run_within(&mut shell("sleep 50; true"), Some(Duration::from_millis(50))).unwrap_err();
        assert!(said.contains("50ms") && begin.elapsed() < Duration::from_secs(20), "{said}");
    }
}
