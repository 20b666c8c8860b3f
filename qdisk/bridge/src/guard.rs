//! What: a bound on a call: who is stopped in it is ended by the kernel when the lease ends.
//! Owns: one timer whose signal is KILL.
//! Invariants: between the look at the clock and the call's end the timer runs, so that no call is made after the lease, however long the
//!   process was stopped in between; a process that is stopped dies of it, too.
//! Does not: cover a machine that is stopped as a whole.
//! Called by: `run`, around each vote.

use deadbolt_disk::now_ns;
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use std::time::Duration;

/// Ends this process when it is armed and its time comes.
#[derive(Debug)]
pub(crate) struct Guard {
    timer: Timer,
}

impl Guard {
    pub(crate) fn new() -> nix::Result<Self> {
        let event = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGKILL, si_value: 0 });
        Ok(Self { timer: Timer::new(ClockId::CLOCK_BOOTTIME, event)? })
    }

    /// Does it if that can be over before the instant; none: it is too late.
    pub(crate) fn before<T>(&mut self, until_ms: u64, act: impl FnOnce() -> T) -> nix::Result<Option<T>> {
        let end = TimeSpec::from(Duration::from_millis(until_ms));
        self.timer.set(Expiration::OneShot(end), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        let done = (now_ns() / 1_000_000 < until_ms).then(act);
        self.timer.set(Expiration::OneShot(TimeSpec::from(Duration::ZERO)), TimerSetTimeFlags::empty())?;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_time_is_done_and_the_timer_is_off_after_it() {
        let mut guard = Guard::new().unwrap();
        let now_ms = now_ns() / 1_000_000;
        assert_eq!(guard.before(now_ms + 200, || 7).unwrap(), Some(7));
        std::thread::sleep(Duration::from_millis(300));
    }
}
