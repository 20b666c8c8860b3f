//! What: the lease of a node of ours beyond that of its last own cycle: by a vouch, by a freeze.
//! Owns: how far the daemon's word is believed.
//! Invariants: a word counts once, when it is new: a vouch for no more than L from then on, a freeze for no more than F, and for no more
//! than F behind the lease of the last own cycle or vouch.
//! Does not: know requests, grants and consents; they are the daemon's.
//! Called by: the lifeline machine.

use super::{Lifeline, Phase, ResetReason};

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extension {
    vouched: Word,
    frozen: Word,
}

/// A word of the daemon: as it said it, and what of it counts.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    said_ms: u64,
    end_ms: u64,
}

impl Word {
    /// True if it is a new one.
    fn handle(&mut self, said_ms: u64, most_ms: u64) -> bool {
        let is_new = self.said_ms != said_ms;
        if is_new {
            *self = Self { said_ms, end_ms: said_ms.min(most_ms) };
        }
        is_new
    }
}

impl Extension {
    /// The end of the lease, where the disk's ends at `disk_end_ms`.
    pub(super) fn join(&self, disk_end_ms: u64) -> u64 {
        disk_end_ms.max(self.vouched.end_ms).max(self.frozen.end_ms)
    }
}

impl Lifeline {
    /// Takes the daemon's words; they lengthen a lease that runs and bring none back.
    pub(super) fn extend(&mut self, now_ms: u64, vouched_until_ms: u64, frozen_until_ms: u64) {
        let Some(disk_end_ms) = self.disk_end_ms.filter(|_| matches!(self.phase, Phase::Living)) else { return };
        let (lease_ms, freeze_ms) = (u64::from(self.config.timings.lease_ms), u64::from(self.config.timings.freeze_ms));
        if (self.extension.vouched.said_ms, self.extension.frozen.said_ms) == (vouched_until_ms, frozen_until_ms)
            || !self.is_supervised(now_ms)
        {
            return;
        }
        let extension = &mut self.extension;
        extension.vouched.handle(vouched_until_ms, now_ms + lease_ms);
        let ground_end_ms = disk_end_ms.max(extension.vouched.end_ms);
        extension.frozen.handle(frozen_until_ms, now_ms.min(ground_end_ms) + freeze_ms);
        let end_ms = self.extension.join(disk_end_ms);
        if now_ms >= end_ms {
            // The next daemon of this life knows of no vouch and no freeze.
            self.condemn_at_once(ResetReason::LeaseEnded { lease_end_ms: end_ms, now_ms });
        } else if self.lease_end_ms != Some(end_ms) {
            self.publish(self.progress.beat);
        }
    }
}
