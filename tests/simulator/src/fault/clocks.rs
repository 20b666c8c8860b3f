//! What: faults of clocks.
//! Owns: by how much they are wrong.
//! Invariants: the rate of a monotonic clock stays within the run's bound; a wall clock may show anything.
//! Does not: know what hangs on a clock.
//! Called by: the table of faults.

use crate::{clock::Clock, world::World};

/// Where a wall clock may be set to, ms since 1970: about 60 years.
const WALL_MOST_MS: u64 = 2_000_000_000_000;

impl World {
    /// No decision may hang on it, so nothing of the new time is in the log: it must not change the run.
    pub(super) fn inject_wall_jump(&mut self) {
        let machine = self.some_machine();
        let wall_ms = self.faults.own.below(WALL_MOST_MS);
        self.note_fault(&format!("{}: the wall clock is set", self.machines[machine].name));
        self.machines[machine].wall_offset_ms = wall_ms;
    }

    /// A temperature, a virtual machine's new host: another rate from now on.
    pub(super) fn inject_clock_rate(&mut self) {
        let machine = self.some_machine();
        let bound = self.options.drift_ppm;
        let rate_ppm = i64::try_from(self.faults.own.below(2 * bound + 1)).unwrap_or(0) - i64::try_from(bound).unwrap_or(0);
        self.note_fault(&format!("{}: the clock is {rate_ppm} ppm fast from now on", self.machines[machine].name));
        self.set_clock(machine, |clock, now_us| clock.set_rate(now_us, rate_ppm));
    }

    /// Changes a clock; the watchdog goes by it.
    pub(super) fn set_clock(&mut self, machine: usize, change: impl FnOnce(&mut Clock, u64)) {
        change(&mut self.machines[machine].clock, self.queue.now_us());
        self.watch_watchdog(machine);
    }
}
