//! What: who has a say in a life besides the disk: a node's daemon, or in drop-in use the cluster that runs there.
//! Owns: the lease that a cluster's good word gives, and how it joins the disk's.
//! Invariants: under the rule *disk* no word of a cluster lengthens a lease.
//! Does not: ask a cluster; its words come with the instant as of which they hold.
//! Called by: the lifeline machine.

use deadbolt_disk_format::Rule;

use crate::verdict::majority;

/// Who has a say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Regime {
    /// A node of a Deadbolt cluster: its daemon's words decide.
    Node {
        /// How long sbd beats on without a living daemon, ms.
        absence_ms: u32,
    },
    /// The drop-in watcher: there is no daemon of ours.
    Watch(WatchRules),
}

/// What a drop-in watcher lives by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatchRules {
    /// How many devices are configured; one that was missing at the start counts as lost.
    pub devices: u32,
    /// What the word of the cluster on this node counts.
    pub cluster: ClusterSay,
    /// What a message that stands in the mailbox at the start does.
    pub start: StartMode,
    /// T of the time that a crash dump gets, ms; 0: the shortest.
    pub crash_reset_ms: u32,
}

/// What the word of the cluster on this node counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClusterSay {
    /// Nothing: the disk alone.
    None,
    /// Its good word keeps the node alive while the disk is lost.
    KeepsAlive,
    /// Once it was well it has to stay well, beside the disk.
    MustAgree,
    /// There is no disk: all of it.
    Alone,
}

/// What a message that stands in the mailbox at the start does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StartMode {
    /// One that was for an earlier boot is erased.
    #[default]
    Always,
    /// The node does not start before a person has cleared it.
    Clean,
}

impl Regime {
    /// The rule that stands in the beat.
    #[must_use]
    pub fn rule(self) -> Rule {
        match self {
            Self::Watch(WatchRules { cluster: ClusterSay::KeepsAlive | ClusterSay::Alone, .. }) => Rule::Cluster,
            Self::Watch(_) | Self::Node { .. } => Rule::Disk,
        }
    }

    /// On how many of `devices` a cycle must be complete.
    #[must_use]
    pub fn quorum(self, devices: u32) -> u32 {
        match self {
            Self::Node { .. } => majority(devices),
            Self::Watch(rules) => watch_quorum(rules.devices),
        }
    }
}

/// On how many of its devices a watcher must read its mailbox. One of two is enough, as for stock: a message is written to both.
#[must_use]
pub fn watch_quorum(devices: u32) -> u32 {
    if devices <= 2 { devices.min(1) } else { majority(devices) }
}

/// What the cluster on this node says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClusterSeen {
    /// The instant as of which all who were asked call the node well; none: somebody does not.
    pub all_ms: Option<u64>,
    /// The instant as of which at least one does; none: nobody.
    pub any_ms: Option<u64>,
    /// It was shut down cleanly: it need not be well any more.
    pub is_shut_down: bool,
    /// How long after the others have lost this node all may still call it well, ms; none: nothing bounds it.
    pub outlive_ms: Option<u32>,
}

/// The lease by the cluster's word.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClusterLease {
    all_end_ms: Option<u64>,
    any_end_ms: Option<u64>,
    /// All were well at some time: from now on they must be.
    has_appeared: bool,
    is_shut_down: bool,
    /// How long after its loss the cluster's word may last, ms.
    pub(crate) outlive_ms: Option<u32>,
}

/// A good word lasts for a lease; when it is taken back nothing is fed any more, and a watchdog that runs is what is left.
fn end_of(before_ms: Option<u64>, word_ms: Option<u64>, (now_ms, lease_ms, reset_ms): (u64, u32, u32)) -> Option<u64> {
    match word_ms {
        Some(at_ms) => Some(before_ms.unwrap_or(0).max(at_ms + u64::from(lease_ms))),
        None => before_ms.map(|end_ms| end_ms.min(now_ms + 2 * u64::from(reset_ms))),
    }
}

impl ClusterLease {
    pub(crate) fn handle(&mut self, now_ms: u64, seen: ClusterSeen, lease_ms: u32, reset_ms: u32) {
        let span = (now_ms, lease_ms, reset_ms);
        self.all_end_ms = end_of(self.all_end_ms, seen.all_ms, span);
        self.any_end_ms = end_of(self.any_end_ms, seen.any_ms, span);
        self.has_appeared = (self.has_appeared || seen.all_ms.is_some()) && !seen.is_shut_down;
        self.is_shut_down = seen.is_shut_down;
        self.outlive_ms = seen.outlive_ms;
    }

    /// Somebody on this node may run services of the cluster. The good word before a clean shutdown lasts, what it was given for has ended.
    pub(crate) fn may_serve(&self, now_ms: u64) -> bool {
        !self.is_shut_down && self.is_well(now_ms)
    }

    pub(crate) fn is_well(&self, now_ms: u64) -> bool {
        [self.all_end_ms, self.any_end_ms].into_iter().flatten().any(|end_ms| now_ms < end_ms)
    }

    /// The end of the lease, where the disk's ends at `disk_ms`.
    pub(crate) fn join(&self, say: ClusterSay, disk_ms: Option<u64>) -> Option<u64> {
        match say {
            ClusterSay::None => disk_ms,
            ClusterSay::KeepsAlive => disk_ms.max(self.all_end_ms),
            ClusterSay::MustAgree if self.has_appeared => disk_ms.zip(self.all_end_ms).map(|(disk_ms, all_ms)| disk_ms.min(all_ms)),
            ClusterSay::MustAgree => disk_ms,
            ClusterSay::Alone if self.has_appeared => self.all_end_ms,
            ClusterSay::Alone => self.any_end_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_good_word_adds() {
        // all, any (word at 1000, lease 500), the disk's end -> the lease's end
        let word = Some(1000);
        let table = [
            (ClusterSay::None, word, word, Some(1200), Some(1200)),
            (ClusterSay::KeepsAlive, word, word, Some(1200), Some(1500)),
            (ClusterSay::KeepsAlive, word, word, None, Some(1500)),
            (ClusterSay::KeepsAlive, None, word, None, None),
            (ClusterSay::KeepsAlive, None, word, Some(1200), Some(1200)),
            (ClusterSay::MustAgree, word, word, Some(1200), Some(1200)),
            (ClusterSay::MustAgree, word, word, Some(1700), Some(1500)),
            (ClusterSay::MustAgree, word, word, None, None),
            (ClusterSay::MustAgree, None, word, Some(1700), Some(1700)),
            (ClusterSay::Alone, None, word, None, Some(1500)),
            (ClusterSay::Alone, None, None, None, None),
        ];
        for (say, all_ms, any_ms, disk_ms, expected) in table {
            let mut lease = ClusterLease::default();
            lease.handle(1000, ClusterSeen { all_ms, any_ms, ..ClusterSeen::default() }, 500, 100);
            assert_eq!(lease.join(say, disk_ms), expected, "{say:?} {all_ms:?} {any_ms:?} {disk_ms:?}");
        }
    }

    #[test]
    fn a_word_taken_back_leaves_two_resets() {
        let mut lease = ClusterLease::default();
        lease.handle(1000, ClusterSeen { all_ms: Some(1000), any_ms: Some(1000), ..ClusterSeen::default() }, 500, 100);
        lease.handle(1100, ClusterSeen { any_ms: Some(1100), ..ClusterSeen::default() }, 500, 100);
        assert_eq!(lease.join(ClusterSay::KeepsAlive, None), Some(1300));
        assert_eq!(lease.join(ClusterSay::Alone, None), Some(1300), "one of two is not enough once both were well");
        lease.handle(1150, ClusterSeen { all_ms: Some(1150), any_ms: Some(1150), ..ClusterSeen::default() }, 500, 100);
        assert_eq!(lease.join(ClusterSay::KeepsAlive, None), Some(1650));
        assert!(lease.is_well(1649) && !lease.is_well(1650));
        lease.handle(1160, ClusterSeen { is_shut_down: true, ..ClusterSeen::default() }, 500, 100);
        assert!(lease.is_well(1161) && !lease.may_serve(1161), "shut down: nothing is served any more, whatever is left of the word");
    }

    #[test]
    fn how_many_devices_a_cycle_needs() {
        let watch = |devices| Regime::Watch(WatchRules { devices, cluster: ClusterSay::None, start: StartMode::Always, crash_reset_ms: 0 });
        assert_eq!([0, 1, 2, 3].map(|devices| watch(devices).quorum(devices)), [0, 1, 1, 2]);
        assert_eq!(watch(3).quorum(2), 2, "the third was missing at the start");
        assert_eq!([1, 2, 3].map(|devices| Regime::Node { absence_ms: 1 }.quorum(devices)), [1, 2, 2]);
    }
}
