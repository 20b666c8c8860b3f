//! Numbers that a seed decides.

pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// The seeds to run: `full` of them with `DEADBOLT_FULL=1`, one with `DEADBOLT_DLM_SEED=n`.
pub(crate) fn seeds(usual: u64, full: u64) -> std::ops::Range<u64> {
    let seed = std::env::var("DEADBOLT_DLM_SEED").ok().and_then(|text| text.parse().ok());
    let count = if std::env::var_os("DEADBOLT_FULL").is_some() { full } else { usual };
    seed.map_or(0..count, |seed| seed..seed + 1)
}

/// Leaves out every step without which it fails, too.
pub(crate) fn shorten<T: Clone>(mut history: Vec<T>, mut error: String, replay: impl Fn(&[T]) -> Result<(), String>) -> (Vec<T>, String) {
    let mut at = history.len();
    while at > 0 {
        at -= 1;
        let mut shorter = history.clone();
        shorter.remove(at);
        if let Err(other) = replay(&shorter) {
            (history, error) = (shorter, other);
            at = history.len();
        }
    }
    (history, error)
}
