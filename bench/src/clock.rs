//! What: the processor time of this thread.
//! Owns: nothing.
//! Invariants: time while another program has the core does not count; what the kernel does for this thread does.
//! Does not: tell how long somebody waited: those rows read the machine's clock.
//! Called by: the rows of one thread.

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Processor time that this thread has used.
pub(crate) fn used() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("asking for processor time")?))
}

/// Nanoseconds of processor time for each of `count` pieces of this work.
pub(crate) fn time_each(count: u64, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let before = used()?;
    work()?;
    Ok(used()?.saturating_sub(before).as_secs_f64() * 1e9 / count as f64)
}
