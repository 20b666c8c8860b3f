//! What: judgement of the node's daemon from the words it leaves in the shared page.
//! Owns: when a daemon counts as hung, dead with something held, or dead with nothing held.
//! Invariants: a daemon that may still hold something is never called idle.
//! Does not: read the page.
//! Called by: the lifeline machine.

/// The daemon's and the supervisor's words in one turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DaemonSeen {
    /// Advanced by every turn of the daemon's loop.
    pub turn: u64,
    /// Something may be held by a client.
    pub holds: bool,
    /// Cycles every 50 ms until then.
    pub fast_poll_until_ms: u64,
    /// *Left* is published: stop cleanly.
    pub is_stop_requested: bool,
    /// The daemon's generation that was started last; 0: none.
    pub generation: u64,
    /// The last generation that was reaped.
    pub ended: u64,
    /// When the supervisor last said that it is at work.
    pub supervisor_alive_ms: u64,
    /// End of the lease by the last grant of a vouch; 0: none.
    pub vouched_until_ms: u64,
    /// End of the freeze to which every member has consented; 0: none.
    pub frozen_until_ms: u64,
}

/// What the words mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DaemonVerdict {
    /// No daemon was started, or it has made no turn yet.
    Absent,
    /// It runs.
    Running,
    /// Its loop has made no turn for the stall tolerance: it counts as dead with something held.
    Hung,
    /// It is dead and may hold something.
    DiedHolding,
    /// It is dead and held nothing.
    Idle {
        /// Which one.
        generation: u64,
    },
    /// A new one was started before "held nothing" of the one before stood on the disk.
    RestartedUnrecorded {
        /// Whose record is missing.
        generation: u64,
    },
}

/// Watches the daemon's turns.
#[derive(Clone, Debug, Default)]
pub struct DaemonWatch {
    seen: DaemonSeen,
    still_ms: u64,
    last_ms: Option<u64>,
    has_turned: bool,
    recorded: u64,
}

impl DaemonWatch {
    /// The newest words.
    #[must_use]
    pub fn seen(&self) -> &DaemonSeen {
        &self.seen
    }

    /// "Held nothing" of this generation stands on the disk.
    pub fn handle_recorded(&mut self, generation: u64) {
        self.recorded = self.recorded.max(generation);
    }

    /// The last generation whose "held nothing" stands on the disk.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Takes in the words of one turn. Time in which sbd itself was stopped is not held against the daemon: one turn of ours
    /// counts for at most `turn_ms_max`.
    pub fn handle_words(&mut self, now_ms: u64, seen: DaemonSeen, stall_ms: u32, turn_ms_max: u32) -> DaemonVerdict {
        let elapsed_ms = self.last_ms.map_or(0, |last_ms| now_ms.saturating_sub(last_ms)).min(u64::from(turn_ms_max));
        self.last_ms = Some(now_ms);
        let is_new = seen.generation > self.seen.generation;
        let has_moved = seen.turn != self.seen.turn;
        self.has_turned = has_moved || (self.has_turned && !is_new);
        self.still_ms = if has_moved || is_new { 0 } else { self.still_ms + elapsed_ms };
        self.seen = seen;
        let before = seen.generation.saturating_sub(1);
        if seen.generation > 0 && seen.ended >= seen.generation {
            if seen.holds { DaemonVerdict::DiedHolding } else { DaemonVerdict::Idle { generation: seen.generation } }
        } else if before > self.recorded {
            DaemonVerdict::RestartedUnrecorded { generation: before }
        } else if (self.has_turned || seen.holds) && self.still_ms >= u64::from(stall_ms) {
            DaemonVerdict::Hung
        } else if self.has_turned {
            DaemonVerdict::Running
        } else {
            DaemonVerdict::Absent
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(turn: u64, holds: bool, generation: u64, ended: u64) -> DaemonSeen {
        DaemonSeen { turn, holds, generation, ended, ..DaemonSeen::default() }
    }

    #[test]
    fn a_daemon_is_judged_by_its_turns_and_its_end() {
        use DaemonVerdict as V;
        // now, turn, holds, generation, ended -> verdict; stall 1000, one turn of ours counts at most 500
        let table = [
            (0, 0, false, 0, 0, V::Absent),
            (400, 0, false, 1, 0, V::Absent),
            (800, 0, false, 1, 0, V::Absent),
            (5000, 1, false, 1, 0, V::Running),
            (5400, 1, false, 1, 0, V::Running),
            (5800, 1, false, 1, 0, V::Running),
            (9000, 1, false, 1, 0, V::Hung), // 400 + 400 + 500
            (9100, 2, false, 1, 0, V::Running),
            (9500, 2, true, 1, 0, V::Running),
            (9600, 2, true, 1, 1, V::DiedHolding),
            (9600, 2, false, 1, 1, V::Idle { generation: 1 }),
            (9700, 2, false, 2, 1, V::RestartedUnrecorded { generation: 1 }),
        ];
        let mut watch = DaemonWatch::default();
        for (now, turn, holds, generation, ended, expected) in table {
            assert_eq!(watch.handle_words(now, words(turn, holds, generation, ended), 1000, 500), expected, "at {now}");
        }
        watch.handle_recorded(1);
        assert_eq!(watch.handle_words(9800, words(2, false, 2, 1), 1000, 500), V::Absent);
        for now in [10_200, 10_600, 11_000, 11_400] {
            assert_eq!(watch.handle_words(now, words(2, false, 2, 1), 1000, 500), V::Absent, "a daemon may take its time to start");
        }
        assert_eq!(watch.handle_words(11_900, words(2, true, 2, 1), 1000, 500), V::Hung, "but not once it holds something");
    }
}
