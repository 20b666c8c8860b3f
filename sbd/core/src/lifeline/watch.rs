//! What: the lifeline of a drop-in watcher: no daemon, the cluster's word, *exit*, a clean start, a stop at any time.
//! Owns: how the disk's lease and the cluster's become one, and how a watcher leaves.
//! Invariants: under the rule *disk* it disarms only after its last beat, which says stopped, stands on enough devices; a node that
//! may run services of a cluster never says stopped.
//! Does not: judge the health of a cluster.
//! Called by: the lifeline machine.

use super::*;
use crate::mailbox::{EXIT, judge_mailbox};
use crate::regime::{ClusterSay, ClusterSeen, StartMode, WatchRules};
use deadbolt_disk_format::span::expiry_ms;
use deadbolt_disk_format::{Rule, Timings};

impl Lifeline {
    fn watch(&self) -> Option<&WatchRules> {
        match &self.config.regime {
            Regime::Watch(rules) => Some(rules),
            Regime::Node { .. } => None,
        }
    }

    pub(super) fn is_watch(&self) -> bool {
        self.watch().is_some()
    }

    pub(super) fn quorum(&self) -> u32 {
        self.config.regime.quorum(u32::try_from(self.devices.len()).unwrap_or(u32::MAX))
    }

    /// How long this node may live after its cluster has lost it: while the cluster's word lasts, and what a lease has behind its last feed;
    /// 0: nothing bounds it.
    pub(super) fn outlive_ms(&self) -> u32 {
        let word_ms = self.cluster.outlive_ms.filter(|_| self.config.regime.rule() == Rule::Cluster);
        let timings = &self.config.timings;
        let behind_ms = timings.lease_ms.saturating_sub(timings.stall_ms).max(2 * self.reset_ms);
        word_ms.and_then(|word_ms| word_ms.checked_add(behind_ms)).unwrap_or(0)
    }

    /// Judges the own mailbox. A watcher may be told to end, as stock does; a message for an earlier boot that it finds at its start is
    /// erased, for stock tools show it to people, and a sender of ours writes again until something is proved. An empty mailbox is
    /// signed at the start, and never later: a message of stock that came in between would be lost.
    pub(super) fn judge_mailbox(&self, seen: &MailboxSeen, age: PillAge) -> MailboxVerdict {
        let verdict = judge_mailbox(seen, self.config.boot, self.config.legacy, age);
        let is_opening = matches!(self.phase, Phase::Opening(_));
        let is_first = is_opening || age == PillAge::BeforeThisBoot;
        match verdict {
            MailboxVerdict::Empty if self.is_watch() && is_first && !seen.is_signed(self.config.boot) => MailboxVerdict::Unsigned,
            MailboxVerdict::Refused if self.is_watch() && seen.command == EXIT && is_opening => MailboxVerdict::Outdated,
            MailboxVerdict::Refused if self.is_watch() && seen.command == EXIT => MailboxVerdict::Stop,
            MailboxVerdict::Stale if self.is_watch() && is_opening => MailboxVerdict::Outdated,
            verdict => verdict,
        }
    }

    pub(super) fn is_dirty_start(&self, seen: &MailboxSeen) -> bool {
        let is_clean = seen.command == MailboxSeen::clear().command || seen.command == EXIT;
        !is_clean && self.watch().is_some_and(|rules| rules.start == StartMode::Clean)
    }

    /// The process before this one has completed a cycle of this very life.
    pub(super) fn resume(&mut self, now_ms: u64, beat: u64, unread: u32) {
        if matches!(self.phase, Phase::New) {
            self.beat = beat;
            for (device, state) in self.devices.iter_mut().enumerate() {
                state.is_unread = unread & (1 << device) != 0;
            }
            self.phase = Phase::Arming { is_asked: false };
            self.progress.begin(now_ms);
            self.next_cycle_ms = now_ms;
        }
    }

    /// A watcher lives with the time that its watchdog grants: the longer that is, the longer its lease, and what observers wait.
    pub(super) fn lengthen_lease(&mut self, reset_ms: u32) {
        if !self.is_watch() {
            return;
        }
        let timings = &mut self.config.timings;
        let needed_ms = timings.stall_ms.saturating_add(reset_ms.saturating_mul(2));
        if needed_ms > timings.lease_ms {
            timings.lease_ms = needed_ms;
            let expiry_ms = expiry_ms(needed_ms, timings.drift_ppm);
            timings.expiry_ms = timings.expiry_ms.max(u32::try_from(expiry_ms).unwrap_or(u32::MAX));
        }
    }

    /// What the beats say: at least the lease, that of a life before that may still be fed, and with a crash dump the time that it gets behind the last feed.
    pub(super) fn published_lease_ms(&self) -> u32 {
        let timings = &self.config.timings;
        let crash_ms = self.watch().map_or(0, |rules| rules.crash_reset_ms);
        let crash_ms = if crash_ms > 0 { timings.stall_ms.saturating_add(self.reset_ms).saturating_add(crash_ms) } else { 0 };
        #[cfg(feature = "planted")]
        if self.has_mistake(crate::planted::Mistake::GrantedTimeNotPublished) {
            let reset_ms = crate::verdict::reset_ms_of(timings.watchdog_ms, timings.lateness_ms, timings.drift_ppm);
            return timings.stall_ms + 2 * reset_ms;
        }
        timings.lease_ms.max(crash_ms).max(self.earlier_lease_ms)
    }

    /// Other times. The longer lease is published from now on, whichever of the two that is; each cycle gives what its own beat says, and
    /// the feeder sets a longer time only where the lease has room for it.
    pub(super) fn retime(&mut self, now_ms: u64, wanted: Timings) {
        let timings = self.config.timings;
        let is_same = (wanted.stall_ms, wanted.watchdog_ms) == (timings.stall_ms, timings.watchdog_ms);
        if !matches!(self.phase, Phase::Living) || !self.is_watch() || is_same {
            return;
        }
        let (lease_ms, expiry_ms) = (timings.lease_ms.max(wanted.lease_ms), timings.expiry_ms.max(wanted.expiry_ms));
        self.config.timings = Timings { lease_ms, expiry_ms, reset_ms: self.reset_ms, ..wanted };
        self.next_cycle_ms = now_ms;
        self.outputs.push_back(Output::SetWatchdog { watchdog_ms: wanted.watchdog_ms });
    }

    /// The watchdog has its new time: the lease is what follows from it. A shorter one counts at once, before any beat publishes it.
    pub(super) fn handle_watchdog_set(&mut self, now_ms: u64, reset_ms: u32) {
        if !matches!(self.phase, Phase::Living) {
            return;
        }
        self.reset_ms = reset_ms;
        let timings = &mut self.config.timings;
        timings.reset_ms = reset_ms;
        timings.lease_ms = timings.stall_ms.saturating_add(reset_ms.saturating_mul(2));
        timings.expiry_ms = u32::try_from(expiry_ms(timings.lease_ms, timings.drift_ppm)).unwrap_or(u32::MAX);
        let end_ms = now_ms + u64::from(timings.lease_ms);
        self.disk_end_ms = self.disk_end_ms.map(|disk_ms| disk_ms.min(end_ms));
        self.publish(self.progress.beat);
        self.next_cycle_ms = now_ms;
    }

    pub(super) fn handle_cluster(&mut self, now_ms: u64, seen: ClusterSeen) {
        let Some(say) = self.watch().map(|rules| rules.cluster) else { return };
        self.cluster.handle(now_ms, seen, self.config.timings.lease_ms, self.reset_ms);
        match &mut self.phase {
            // Without a disk the cluster's first word stands for the first cycle.
            Phase::Arming { is_asked } if say == ClusterSay::Alone && !*is_asked && self.cluster.is_well(now_ms) => {
                *is_asked = true;
                self.outputs.push_back(Output::Arm);
            }
            Phase::Living | Phase::Leaving => self.publish(self.progress.beat),
            _ => {}
        }
    }

    /// Publishes the lease that the disk and the cluster's or the daemon's word give together. A node of ours publishes after every cycle, for its daemon's sake.
    pub(super) fn publish(&mut self, beat: u64) {
        let end_ms = match self.watch() {
            Some(rules) => self.cluster.join(rules.cluster, self.disk_end_ms),
            None => self.disk_end_ms.map(|disk_end_ms| self.extension.join(disk_end_ms)),
        };
        let Some(lease_end_ms) = end_ms.filter(|end_ms| !self.is_watch() || self.lease_end_ms != Some(*end_ms)) else { return };
        let before_ms = self.lease_end_ms.replace(lease_end_ms);
        let number = self.completed_part.as_ref().map_or(0, |part| part.number);
        let (own_end_ms, cycle_ms) = (self.disk_end_ms.unwrap_or(0), self.cycle_ms);
        self.outputs.push_back(Output::PublishLease { lease_end_ms, own_end_ms, before_ms, number, beat, cycle_ms });
    }

    /// While there is still a lease: after its end nothing more may be written.
    pub(super) fn flush(&mut self) {
        if let Some(until_ms) = self.feed_end_ms().filter(|_| self.is_watch()) {
            self.outputs.push_back(Output::Flush { until_ms });
        }
    }

    /// A clean end. Under the rule *disk* the others take silence for death, so the last beat has to stand before anything is disarmed.
    /// Under the rule *cluster* it proves nothing: disarm first, as stock does, and say stopped only where nobody runs services here.
    pub(super) fn stop_watching(&mut self, now_ms: u64) {
        match self.phase {
            #[cfg(feature = "planted")]
            Phase::Living if self.has_mistake(crate::planted::Mistake::DisarmedBeforeWord) => self.disarm_after_leaving(),
            Phase::Living if self.config.regime.rule() == Rule::Disk => {
                self.phase = Phase::Leaving;
                self.next_cycle_ms = now_ms;
            }
            Phase::Living => {
                self.lease_end_ms = None;
                self.outputs.push_back(Output::EndLease);
                self.outputs.push_back(Output::Disarm);
                let may_say = !self.devices.is_empty() && !self.cluster.may_serve(now_ms);
                self.phase = Phase::Stopping { is_disarmed: false, until_ms: if may_say { now_ms + STOP_MS } else { now_ms } };
            }
            Phase::New | Phase::Opening(_) | Phase::Arming { .. } => self.refuse(RefuseReason::Stopped),
            Phase::Leaving | Phase::Condemned { .. } | Phase::Stopping { .. } | Phase::Ended => {}
        }
    }

    /// Writes the last beat, again and again until it stands or the lease ends.
    pub(super) fn leave(&mut self, now_ms: u64) {
        if now_ms >= self.next_cycle_ms {
            self.next_cycle_ms = now_ms + u64::from(self.config.timings.poll_ms);
            self.final_beat = None;
            self.write_final(now_ms, None);
        }
    }

    /// A pill has come while this life was leaving: its answer is a beat of its own.
    pub(super) fn forget_leaving(&mut self) {
        self.final_beat = None;
        self.devices.iter_mut().for_each(|state| state.is_final_done = false);
    }

    pub(super) fn disarm_after_leaving(&mut self) {
        self.lease_end_ms = None;
        self.outputs.push_back(Output::EndLease);
        self.outputs.push_back(Output::Disarm);
        self.phase = Phase::Stopping { is_disarmed: false, until_ms: u64::MAX };
    }

    pub(super) fn handle_disarmed(&mut self) {
        let Phase::Stopping { is_disarmed, .. } = &mut self.phase else { return };
        *is_disarmed = true;
        let count = self.devices.iter().filter(|state| state.is_final_done).count();
        if self.final_beat.is_some() && u32::try_from(count).unwrap_or(0) >= self.quorum() {
            self.phase = Phase::Ended;
            self.outputs.push_back(Output::Exit { is_recorded: true });
        }
    }
}
