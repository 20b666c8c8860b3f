//! What: the monotonic clock of one machine: its own rate, its own beginning.
//! Owns: the conversion between true time and the machine's.
//! Invariants: never falls; stands still only while the machine is stopped together with its clock.
//! Does not: know wall time.
//! Called by: the machines.

const MILLION: u64 = 1_000_000;

/// A clock. Local time is in ms, true time in us.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Local ms at true time `since_us`.
    base_us: u64,
    since_us: u64,
    /// Local us per true second.
    rate: u64,
    is_still: bool,
}

impl Clock {
    /// A clock that shows `base_ms` now and runs `rate_ppm` fast (or slow).
    #[must_use]
    pub fn new(now_us: u64, base_ms: u64, rate_ppm: i64) -> Self {
        let rate = u64::try_from(1_000_000_i64 + rate_ppm).unwrap_or(MILLION).max(1);
        Self { base_us: base_ms * 1000, since_us: now_us, rate, is_still: false }
    }

    fn local_us(&self, now_us: u64) -> u64 {
        let elapsed = if self.is_still { 0 } else { now_us.saturating_sub(self.since_us) };
        self.base_us + elapsed / MILLION * self.rate + elapsed % MILLION * self.rate / MILLION
    }

    /// What it shows, ms.
    #[must_use]
    pub fn ms(&self, now_us: u64) -> u64 {
        self.local_us(now_us) / 1000
    }

    /// The first true instant at which it shows `local_ms`; now for one that is past.
    #[must_use]
    pub fn when(&self, now_us: u64, local_ms: u64) -> u64 {
        let wanted = local_ms.saturating_mul(1000);
        let missing = wanted.saturating_sub(self.local_us(now_us));
        if missing == 0 {
            return now_us;
        }
        let span = missing / self.rate * MILLION + (missing % self.rate * MILLION).div_ceil(self.rate);
        // Rounding of the two divisions may leave it a microsecond short.
        now_us.saturating_add(span + 2)
    }

    /// True span of a local one, us.
    #[must_use]
    pub fn span_us(&self, local_ms: u64) -> u64 {
        local_ms.saturating_mul(1000).saturating_mul(MILLION) / self.rate
    }

    /// Changes the rate from now on.
    pub fn set_rate(&mut self, now_us: u64, rate_ppm: i64) {
        let local_us = self.local_us(now_us);
        *self = Self { is_still: self.is_still, ..Self::new(now_us, 0, rate_ppm) };
        self.base_us = local_us;
    }

    /// Stops the clock, or lets it go on from where it stands.
    pub fn set_still(&mut self, now_us: u64, is_still: bool) {
        self.base_us = self.local_us(now_us);
        self.since_us = now_us;
        self.is_still = is_still;
    }

    /// Does it stand still?
    #[must_use]
    pub fn is_still(&self) -> bool {
        self.is_still
    }

    /// Jumps forward.
    pub fn jump(&mut self, now_us: u64, by_ms: u64) {
        self.base_us = self.local_us(now_us) + by_ms * 1000;
        self.since_us = now_us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_found_again() {
        for rate in [-10_000, -3, 0, 7, 10_000] {
            let clock = Clock::new(500, 1_000_000, rate);
            for local in [1_000_000, 1_000_001, 1_002_345, 9_999_999] {
                let at = clock.when(500, local);
                assert!(clock.ms(at) >= local, "rate {rate} local {local}");
                assert!(clock.ms(at.saturating_sub(4)) <= local);
            }
        }
    }

    #[test]
    fn a_change_of_rate_moves_nothing() {
        let mut clock = Clock::new(0, 10, 10_000);
        let before = clock.ms(5_000_000);
        clock.set_rate(5_000_000, -10_000);
        assert_eq!(clock.ms(5_000_000), before);
        clock.set_still(6_000_000, true);
        assert_eq!(clock.ms(6_000_000), clock.ms(60_000_000));
        clock.set_still(60_000_000, false);
        assert_eq!(clock.ms(60_000_000), clock.ms(60_000_000));
        clock.jump(60_000_000, 100);
        assert_eq!(clock.ms(60_000_000), clock.ms(60_000_000));
    }
}
