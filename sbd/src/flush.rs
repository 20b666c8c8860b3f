//! What: a helper that writes what is in memory to the file systems, while there is still a lease.
//! Owns: the child that does it, and its deadline.
//! Invariants: nobody waits for it; it is ended by its deadline, before an answer to a pill, and with its parent.
//! Does not: decide when to flush.
//! Called by: the shell of the lifeline; `main_from` for the child.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::log::Log;
use crate::protect::end_with_parent;
use crate::servant::THIS_PROGRAM;

/// The child's verb.
pub(crate) const VERB: &str = "flush-file-systems";

/// A flush under way. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Flush {
    child: Child,
    until_ms: u64,
}

impl Flush {
    /// None where no process can be made, which is said: a flush is a service, not a duty.
    pub(crate) fn start(until_ms: u64, log: &Log) -> Option<Self> {
        let null = Stdio::null;
        // The front door runs its programs by their names.
        let started = Command::new(THIS_PROGRAM).arg0("sbd").arg(VERB).stdin(null()).stdout(null()).stderr(null()).spawn();
        match started {
            Ok(child) => Some(Self { child, until_ms }),
            Err(error) => {
                log.say(&format!("the file systems are not flushed: {error}"));
                None
            }
        }
    }

    /// It is done, or out of time.
    pub(crate) fn is_over(&mut self, now_ms: u64) -> bool {
        now_ms >= self.until_ms || !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // One that hangs in the kernel is left to it.
        let _ = self.child.try_wait();
    }
}

/// The child.
pub(crate) fn main() -> u8 {
    if end_with_parent() {
        nix::unistd::sync();
    }
    0
}
