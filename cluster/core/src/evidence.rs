//! What: the one place that says whether a life is gone, and by what (design section 7).
//! Owns: the evidence ladder and its waits.
//! Invariants: nothing is evidence but what a read of the disk showed, a fence agent saw, a person said, or this node's own ejection; every
//!   wait runs from the end of that read.
//! Does not: write pills or propose views.
//! Called by: the membership machine.

use crate::observer::Observer;
use alloc::{collections::BTreeMap, vec::Vec};
use deadbolt_disk_format::span::{expiry_ms, observed_ms};
use deadbolt_disk_format::{Beat, BootId, DEVICES_MAX, Evidence, Life, NodeState, Rule, Timings};

/// Who judges decides how long silence must last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Witness {
    /// A member of the life's last view that has given no consent to a freeze in the last F: W is enough.
    MemberOfLastView {
        /// The confirming read is issued no earlier: until then the life may be frozen.
        from_ms: u64,
    },
    /// Everybody else, a starter too: W + F.
    Outsider,
}

/// What is known against a life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It may live.
    MayLive,
    /// Something was shown; it counts as gone at the instant named.
    GoneAt {
        /// CLOCK_BOOTTIME of the observer.
        due_ms: u64,
        /// By what.
        evidence: Evidence,
    },
    /// Proved gone.
    Gone(Evidence),
}

/// When a read first showed something against a life. A life's sightings stay until it is forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Sightings {
    left: bool,
    idle: bool,
    operator: bool,
    ejected: bool,
    /// When a fence agent had first seen its machine off.
    agent_ms: Option<u64>,
    /// Per device: another boot than the life's that it shows.
    others: [Option<OtherBoot>; DEVICES_MAX],
    /// Newest beat seen under the life's own boot: beats are numbered on across boots, so an older one is an old read or a stale device.
    own_boot_beat: u64,
    /// End of the read and T of the answer.
    acknowledged: Option<(u64, u32)>,
}

/// Another boot in a life's slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct OtherBoot {
    boot: BootId,
    beat: u64,
    /// End of the read that first showed it.
    since_ms: u64,
}

impl Sightings {
    /// Since when a majority of devices shows a later boot. Before it was named in a view, a life had a beat on a majority: one device that
    /// lags behind may still show the boot before.
    fn rebooted_ms(&self, devices: usize) -> Option<u64> {
        let later = self.others.iter().flatten().filter(|other| other.beat > self.own_boot_beat);
        let mut since: Vec<u64> = later.map(|other| other.since_ms).collect();
        since.sort_unstable();
        since.get(devices / 2).copied()
    }
}

/// Collects sightings per life.
#[derive(Clone, Debug, Default)]
pub struct Evidences {
    sightings: BTreeMap<Life, Sightings>,
}

impl Evidences {
    /// Takes one beat that a read of a device ending at `ended_ms` showed, against every life that is watched in its slot. `may_be_newer`
    /// names the lives for which another boot in this beat may be a later one: the read returned the observer's own newest beat and was
    /// issued after the life was first named here.
    pub fn handle_beat(
        &mut self,
        beat: &Beat,
        (device, ended_ms): (usize, u64),
        lives: impl Iterator<Item = Life>,
        may_be_newer: impl Fn(&Life) -> bool,
    ) {
        for life in lives.filter(|life| life.slot == beat.slot) {
            let seen = self.sightings.entry(life).or_default();
            let other = seen.others.get_mut(device);
            if beat.boot != life.boot {
                if let Some(other) = other.filter(|_| may_be_newer(&life)) {
                    let since_ms = other.filter(|known| known.boot == beat.boot).map_or(ended_ms, |known| known.since_ms);
                    *other = Some(OtherBoot { boot: beat.boot, beat: beat.beat, since_ms });
                }
                continue;
            }
            if let Some(other) = other {
                *other = None;
            }
            seen.own_boot_beat = seen.own_boot_beat.max(beat.beat);
            let daemon = &beat.daemon;
            seen.left |= (daemon.incarnation == life.incarnation && daemon.state == NodeState::Left) || daemon.left.has(life.incarnation);
            seen.idle |= beat.is_idle && daemon.incarnation == life.incarnation;
            if let Some(answer) = beat.acknowledged {
                seen.acknowledged.get_or_insert((ended_ms, answer.reset_ms));
            }
        }
    }

    /// A person vouches that the life is gone.
    pub fn handle_operator(&mut self, life: Life) {
        self.sightings.entry(life).or_default().operator = true;
    }

    /// A fence agent has put the life's machine out of action and seen it so, which ended at `ended_ms`.
    pub fn handle_agent(&mut self, life: Life, ended_ms: u64) {
        self.sightings.entry(life).or_default().agent_ms.get_or_insert(ended_ms);
    }

    /// This node has taken the life's keys away on every protected device, with abort, and read that back.
    pub fn handle_ejected(&mut self, life: Life) {
        self.sightings.entry(life).or_default().ejected = true;
    }

    /// Drops everything about lives that are watched no more.
    pub fn keep(&mut self, is_watched: impl Fn(&Life) -> bool) {
        self.sightings.retain(|life, _| is_watched(life));
    }

    /// Judges a life that the observer has known of since `named_ms`, strongest evidence first.
    #[must_use]
    pub fn judge(&self, life: &Life, observer: &Observer, timings: &Timings, (witness, named_ms): (Witness, u64), now_ms: u64) -> Verdict {
        let seen = self.sightings.get(life).copied().unwrap_or_default();
        if seen.left {
            return Verdict::Gone(Evidence::Left);
        }
        if seen.idle {
            return Verdict::Gone(Evidence::IdleRestart);
        }
        if seen.ejected {
            return Verdict::Gone(Evidence::Ejected);
        }
        if seen.operator {
            return Verdict::Gone(Evidence::Operator);
        }
        let delay_ms = u64::from(timings.storage_delay_ms);
        let wait = |wait_ms: u64| observed_ms(wait_ms, timings.drift_ppm);
        let rebooted = seen.rebooted_ms(observer.devices()).map(|at| (at + wait(delay_ms), Evidence::Rebooted));
        let acknowledged = |(at, reset_ms)| (at + wait(u64::from(reset_ms) + delay_ms), Evidence::Acknowledged);
        let off = seen.agent_ms.map(|at| (at + wait(delay_ms), Evidence::Agent));
        let due = [rebooted, seen.acknowledged.map(acknowledged), off].into_iter().flatten().min();
        match due {
            Some((due_ms, evidence)) if now_ms >= due_ms => return Verdict::Gone(evidence),
            _ => {}
        }
        if Self::is_expired(life, observer, timings, (witness, named_ms)) {
            return Verdict::Gone(Evidence::Expired);
        }
        due.map_or(Verdict::MayLive, |(due_ms, evidence)| Verdict::GoneAt { due_ms, evidence })
    }

    /// Silent for W + D (W + F + D for an outsider). Silence proves nothing of a node under the rule *cluster*.
    /// What was silent before the life's own beats were seen there may have been another life.
    fn is_expired(life: &Life, observer: &Observer, timings: &Timings, (witness, named_ms): (Witness, u64)) -> bool {
        let Some(watched) = observer.watched(life.slot) else {
            return false;
        };
        if watched.beat.as_ref().is_some_and(|beat| beat.rule == Rule::Cluster) {
            return false;
        }
        // A lease published in the beat itself can only lengthen the wait, never shorten it.
        let published_ms = watched.beat.as_ref().map_or(0, |beat| beat.lease_ms);
        let own_wait_ms = expiry_ms(published_ms, timings.drift_ppm);
        // F, too, is measured by the other node's clock.
        let (freeze_ms, from_ms) = match witness {
            Witness::MemberOfLastView { from_ms } => (0, from_ms),
            Witness::Outsider if timings.freeze_ms == 0 => (0, 0),
            Witness::Outsider => (expiry_ms(timings.freeze_ms, timings.drift_ppm), 0),
        };
        let wait_ms =
            u64::from(timings.expiry_ms).max(own_wait_ms) + freeze_ms + observed_ms(u64::from(timings.storage_delay_ms), timings.drift_ppm);
        let is_seen = watched.beat.as_ref().is_some_and(|beat| beat.life() == *life);
        observer.is_silent_until(life.slot, if is_seen { 0 } else { named_ms }, wait_ms, from_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::{BeatsRead, tests::beat};
    use crate::timing::{Wishes, derive};
    use deadbolt_disk_format::{Acknowledgement, Incarnation, SlotIndex};

    fn life() -> Life {
        Life { slot: SlotIndex(1), boot: BootId([1; 16]), incarnation: Incarnation([3; 16]) }
    }

    fn timings() -> Timings {
        derive(&Wishes::stall(1000)).unwrap()
    }

    fn judge(evidences: &Evidences, observer: &Observer, witness: Witness, now_ms: u64) -> Verdict {
        evidences.judge(&life(), observer, &timings(), (witness, 0), now_ms)
    }

    fn show(beat: &Beat, ended_ms: u64) -> (Evidences, Observer) {
        let mut evidences = Evidences::default();
        evidences.handle_beat(beat, (0, ended_ms), core::iter::once(life()), |_| true);
        (evidences, Observer::new(SlotIndex(0), 1))
    }

    #[test]
    fn left_counts_at_once_and_is_not_missed_when_the_next_incarnation_carries_it() {
        let mut seen = beat(1, 5);
        seen.daemon.state = NodeState::Left;
        let (evidences, observer) = show(&seen, 100);
        assert_eq!(judge(&evidences, &observer, Witness::Outsider, 100), Verdict::Gone(Evidence::Left));
        let mut later = beat(1, 9);
        later.daemon.incarnation = Incarnation([4; 16]);
        later.daemon.state = NodeState::Joining;
        later.daemon.left.newest = life().incarnation;
        let (evidences, observer) = show(&later, 100);
        assert_eq!(judge(&evidences, &observer, Witness::Outsider, 100), Verdict::Gone(Evidence::Left));
    }

    #[test]
    fn a_new_incarnation_on_the_same_boot_proves_nothing() {
        let mut seen = beat(1, 5);
        seen.daemon.incarnation = Incarnation([4; 16]);
        let (evidences, observer) = show(&seen, 100);
        assert_eq!(judge(&evidences, &observer, Witness::MemberOfLastView { from_ms: 0 }, 100_000), Verdict::MayLive);
    }

    #[test]
    fn another_boot_counts_after_d() {
        let mut seen = beat(1, 5);
        seen.boot = BootId([9; 16]);
        let (evidences, observer) = show(&seen, 100);
        assert_eq!(judge(&evidences, &observer, Witness::Outsider, 614), Verdict::GoneAt { due_ms: 615, evidence: Evidence::Rebooted });
        assert_eq!(judge(&evidences, &observer, Witness::Outsider, 615), Verdict::Gone(Evidence::Rebooted));
    }

    #[test]
    fn an_older_boot_shown_by_a_late_read_or_a_stale_device_proves_nothing() {
        let (mut evidences, observer) = show(&beat(1, 50), 100);
        let mut old = beat(1, 49);
        old.boot = BootId([8; 16]);
        evidences.handle_beat(&old, (0, 200), core::iter::once(life()), |_| true);
        assert_eq!(judge(&evidences, &observer, Witness::Outsider, 10_000), Verdict::MayLive, "numbered before what the life wrote");
        let mut unknown = Evidences::default();
        unknown.handle_beat(&old, (0, 200), core::iter::once(life()), |_| false);
        assert_eq!(judge(&unknown, &observer, Witness::Outsider, 10_000), Verdict::MayLive, "read before the life was named");
    }

    #[test]
    fn of_three_devices_two_have_to_show_another_boot() {
        let observer = Observer::new(SlotIndex(0), 3);
        let (mut late, mut next) = (beat(1, 49), beat(1, 60));
        late.boot = BootId([8; 16]);
        next.boot = BootId([9; 16]);
        let mut evidences = Evidences::default();
        let mut verdict_after = |beat: &Beat, device: usize, ended_ms: u64| {
            evidences.handle_beat(beat, (device, ended_ms), core::iter::once(life()), |_| true);
            judge(&evidences, &observer, Witness::Outsider, 10_000)
        };
        // The device that this read was issued to first has missed the life's beats.
        assert_eq!(verdict_after(&late, 1, 100), Verdict::MayLive);
        assert_eq!(verdict_after(&late, 1, 200), Verdict::MayLive);
        assert_eq!(verdict_after(&beat(1, 50), 0, 300), Verdict::MayLive);
        assert_eq!(verdict_after(&next, 1, 9000), Verdict::MayLive, "one device");
        assert_eq!(verdict_after(&next, 2, 9900), Verdict::GoneAt { due_ms: 10_415, evidence: Evidence::Rebooted });
        assert_eq!(verdict_after(&beat(1, 51), 2, 9950), Verdict::MayLive, "what was on its way of the old boot is over it again");
    }

    #[test]
    fn an_acknowledgement_counts_after_its_own_t_and_d() {
        let mut seen = beat(1, 5);
        seen.acknowledged = Some(Acknowledgement { reset_ms: 700, command: 2 });
        let (evidences, observer) = show(&seen, 100);
        assert_eq!(
            judge(&evidences, &observer, Witness::Outsider, 1321),
            Verdict::GoneAt { due_ms: 1322, evidence: Evidence::Acknowledged }
        );
        assert_eq!(judge(&evidences, &observer, Witness::Outsider, 1322), Verdict::Gone(Evidence::Acknowledged));
    }

    #[test]
    fn what_an_agent_saw_counts_after_d() {
        let mut evidences = Evidences::default();
        let observer = Observer::new(SlotIndex(0), 1);
        evidences.handle_agent(life(), 100);
        evidences.handle_agent(life(), 5000);
        let verdict = |now_ms| judge(&evidences, &observer, Witness::Outsider, now_ms);
        assert_eq!(verdict(614), Verdict::GoneAt { due_ms: 615, evidence: Evidence::Agent }, "the first time that it was seen");
        assert_eq!(verdict(615), Verdict::Gone(Evidence::Agent));
        let other = Life { boot: BootId([9; 16]), ..life() };
        let later = evidences.judge(&other, &observer, &timings(), (Witness::Outsider, 0), 10_000);
        assert_eq!(later, Verdict::MayLive, "of another boot it says nothing");
        evidences.keep(|_| false);
        assert_eq!(judge(&evidences, &observer, Witness::Outsider, 615), Verdict::MayLive);
    }

    #[test]
    fn who_was_ejected_is_gone_at_once_and_its_next_boot_is_another_life() {
        let mut evidences = Evidences::default();
        let observer = Observer::new(SlotIndex(0), 1);
        evidences.handle_ejected(life());
        assert_eq!(judge(&evidences, &observer, Witness::Outsider, 0), Verdict::Gone(Evidence::Ejected));
        let next = Life { boot: BootId([9; 16]), ..life() };
        assert_eq!(evidences.judge(&next, &observer, &timings(), (Witness::Outsider, 0), 10_000), Verdict::MayLive);
    }

    fn silent_until(issued_ms: u64, rule: Rule) -> Observer {
        let mut observer = Observer::new(SlotIndex(0), 1);
        let mut peer = beat(1, 5);
        peer.rule = rule;
        for issued in [0, issued_ms] {
            let beats = [(SlotIndex(0), beat(0, 1)), (SlotIndex(1), peer.clone())].into_iter().collect();
            observer
                .handle_read(&BeatsRead { device: 0, issued_ms: issued, ended_ms: issued + 1, own_beat: 1, beats }, core::iter::empty());
        }
        observer
    }

    #[test]
    fn silence_takes_w_and_d_for_a_member_and_f_more_for_an_outsider() {
        let wait_ms = u64::from(timings().expiry_ms) + observed_ms(u64::from(timings().storage_delay_ms), 10_000) + 1;
        let evidences = Evidences::default();
        assert_eq!(
            judge(&evidences, &silent_until(wait_ms - 1, Rule::Disk), Witness::MemberOfLastView { from_ms: 0 }, wait_ms),
            Verdict::MayLive
        );
        let observer = silent_until(wait_ms, Rule::Disk);
        assert_eq!(judge(&evidences, &observer, Witness::MemberOfLastView { from_ms: 0 }, wait_ms), Verdict::Gone(Evidence::Expired));
        assert_eq!(judge(&evidences, &observer, Witness::Outsider, wait_ms), Verdict::MayLive);
        let late = silent_until(wait_ms + 62_000, Rule::Disk);
        assert_eq!(judge(&evidences, &late, Witness::Outsider, wait_ms + 62_000), Verdict::Gone(Evidence::Expired));
        assert_eq!(
            judge(&evidences, &silent_until(900_000, Rule::Cluster), Witness::MemberOfLastView { from_ms: 0 }, 900_000),
            Verdict::MayLive
        );
    }

    #[test]
    fn the_silence_of_an_earlier_life_proves_nothing_of_a_later_one() {
        let observer = silent_until(50_000, Rule::Disk);
        let later = [Life { boot: BootId([9; 16]), ..life() }, Life { incarnation: Incarnation([9; 16]), ..life() }];
        for named in later {
            let judge = |observer: &Observer, now_ms| {
                Evidences::default().judge(&named, observer, &timings(), (Witness::MemberOfLastView { from_ms: 0 }, 50_000), now_ms)
            };
            assert_eq!(judge(&observer, 50_001), Verdict::MayLive, "nothing of it was seen yet");
            assert_eq!(judge(&silent_until(90_000, Rule::Disk), 90_001), Verdict::Gone(Evidence::Expired), "silent since it was named");
        }
    }
}
