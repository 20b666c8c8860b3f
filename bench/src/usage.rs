//! What: what a process has used: processor time, and the memory that it has.
//! Owns: nothing.
//! Invariants: the time of all its threads counts, of those that have ended too.
//! Does not: know which processes belong together.
//! Called by: measurements of programs at rest.

use crate::memory::resident;
use anyhow::{Context, Result};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use std::time::Duration;

/// Processor time and resident bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Use {
    /// Since it began.
    pub time: Duration,
    /// Now.
    pub bytes: u64,
}

impl Use {
    /// Of one process.
    ///
    /// # Errors
    /// No such process.
    pub fn of(pid: i32) -> Result<Self> {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).with_context(|| format!("the clock of process {pid}"))?;
        Ok(Self { time: clock_gettime(clock)?.into(), bytes: resident(u32::try_from(pid)?)? })
    }

    /// Of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { time: self.time + other.time, bytes: self.bytes + other.bytes }
    }
}
