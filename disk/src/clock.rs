//! What: the one clock that leases, waits and completions are stamped with.
//! Owns: the choice of CLOCK_BOOTTIME, which goes on through a suspend of the machine.
//! Invariants: never falls within one boot; comparable between the processes of one machine.
//! Does not: read a wall clock.
//! Called by: the engine; shells that pass `now` to their machines.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_BOOTTIME.
///
/// # Panics
/// If the kernel has no such clock (older than 2.6.39): no lease can be kept there.
#[must_use]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
    let spans = now.ok().and_then(|time| Some((u64::try_from(time.tv_sec()).ok()?, u64::try_from(time.tv_nsec()).ok()?)));
    match spans {
        Some((seconds, nanoseconds)) => seconds * 1_000_000_000 + nanoseconds,
        None => panic!("CLOCK_BOOTTIME cannot be read: no lease can be kept on this kernel"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn never_falls() {
        let first = super::now_ns();
        assert!(first > 0 && super::now_ns() >= first);
    }
}
