//! What: is the node that was sent a message gone, and by which evidence (design, section 7); for a sender without a daemon.
//! Owns: the evidence ladder of `sbd message` and of the fence agent, and its waits.
//! Invariants: nothing is evidence but what a read issued after the message showed, or the times of an area that can be true; every
//! wait runs from the end of a read or a write; silence counts only on so many devices that the victim cannot live on the others;
//! where devices show different lives, each counts as the present one until a sign of life shows which is.
//! Does not: read, write, or ask a cluster.
//! Called by: the fence shell, the simulator.

use alloc::vec;
use alloc::vec::Vec;

use deadbolt_disk_format::span::{expiry_ms, observed_ms};
use deadbolt_disk_format::{Beat, BootId, Incarnation, NodeState, Rule, WatchdogKind};

#[cfg(feature = "planted")]
use crate::planted::FenceMistake;
use crate::regime::watch_quorum;
use crate::verdict::majority;
use crate::words::OwnPlace;

/// What proves that a victim is gone, strongest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Proof {
    /// It recorded that it held nothing, and disarmed.
    Left,
    /// Its reservation keys were taken away on every protected device, what it had under way was aborted, and that was read back.
    Ejected,
    /// Its place shows another boot than the one that was to end; D has passed since.
    Rebooted,
    /// It answered that its watchdog will not be fed again; T + D have passed since.
    Acknowledged,
    /// It was silent for W + D.
    Expired,
    /// Its cluster has lost it, and the time that it may live on after that has passed.
    ClusterLost,
    /// A node without a record of ours: the times of the area have passed since the message was written.
    Msgwait,
}

impl Proof {
    /// The word for it in reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Ejected => "ejected",
            Self::Rebooted => "rebooted",
            Self::Acknowledged => "acknowledged",
            Self::Expired => "expired",
            Self::ClusterLost => "cluster-lost",
            Self::Msgwait => "msgwait",
        }
    }
}

impl core::fmt::Display for Proof {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.word())
    }
}

/// What the fencer goes by.
#[derive(Clone, Copy, Debug)]
pub struct FencerConfig {
    /// All devices of the cluster's sbd, those that cannot be reached too.
    pub devices: usize,
    /// D, ms.
    pub storage_delay_ms: u32,
    /// Bound of the rate error of clocks.
    pub drift_ppm: u32,
    /// How long after the message a node without a record of ours counts as dead, ms; none: the area's times prove nothing.
    pub msgwait_ms: Option<u64>,
    /// On a stock device a node that stopped, or that is silent, may run the stock program since, which leaves our record standing.
    pub may_be_stock: bool,
    /// Since when the sender knows that the cluster has lost the victim, ms.
    pub lost_ms: Option<u64>,
    /// How long the message has to stand so that a node without a record of ours has read it, or has lost its disk, ms.
    pub stand_ms: u64,
}

/// A beat's identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BeatVersion {
    /// The life of the machine.
    pub boot: BootId,
    /// The life of the sbd.
    pub writer: Incarnation,
    /// Its number.
    pub beat: u64,
}

impl BeatVersion {
    /// Of a beat.
    #[must_use]
    pub fn of(beat: &Beat) -> Self {
        Self { boot: beat.boot, writer: beat.writer, beat: beat.beat }
    }
}

/// One read of the victim's place on one device.
#[derive(Clone, Debug)]
pub struct VictimRead {
    /// Which device.
    pub device: usize,
    /// When the read was issued.
    pub issued_ms: u64,
    /// When it ended.
    pub ended_ms: u64,
    /// What it showed.
    pub place: OwnPlace,
    /// The message stood in the mailbox through this path: what was read is not older than that.
    pub is_current: bool,
    /// The mailbox is as the life that the place shows has left it, but for messages of ours: nobody has started stock there since.
    pub is_signed: bool,
}

/// What is known now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FenceVerdict {
    /// Gone.
    Gone(Proof),
    /// Not yet; at that instant something will be proved if nothing changes. None: only news can prove it.
    Wait(Option<(u64, Proof)>),
}

#[derive(Clone, Debug, Default)]
struct DeviceView {
    /// The newest beat of the life that this device showed first: on this device that one is to end.
    beat: Option<Beat>,
    /// Since when it stands there.
    shown_ms: u64,
    /// Since when its answer is seen.
    answered_ms: Option<u64>,
    /// What was read last is no beat and not empty either.
    is_damaged: bool,
    /// It was read beside a mailbox that somebody else had written.
    is_unsigned: bool,
    /// When the last read was issued that showed the same with the message beside it.
    silent_until_ms: u64,
    /// A read that showed the message has shown that life, or none: the first look may have been older than it seemed.
    is_confirmed: bool,
    /// Another boot behind that life, and since when it is seen.
    other: Option<(BootId, u64)>,
    written_ms: Option<u64>,
    /// When the last read was issued that found the message standing.
    stood_ms: u64,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Fencer {
    config: FencerConfig,
    devices: Vec<DeviceView>,
    /// The boot that gave a sign of life under our eyes: the machine has no other one.
    living: Option<BootId>,
    /// The longest lease that was published.
    lease_ms: u32,
    #[cfg(feature = "planted")]
    mistake: Option<FenceMistake>,
}

impl Fencer {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(config: FencerConfig) -> Self {
        Self {
            devices: vec![DeviceView::default(); config.devices],
            config,
            living: None,
            lease_ms: 0,
            #[cfg(feature = "planted")]
            mistake: None,
        }
    }

    /// Plants a mistake.
    #[cfg(feature = "planted")]
    pub fn plant(&mut self, mistake: FenceMistake) {
        self.mistake = Some(mistake);
    }

    #[cfg(feature = "planted")]
    fn has_mistake(&self, mistake: FenceMistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// The boot that the message on this device has to name; none: nobody of ours was seen. A device that was lost for a while shows a
    /// life from before: whoever reads its mailbox writes there, too.
    #[must_use]
    pub fn boot_on(&self, device: usize) -> Option<BootId> {
        let shown = self.devices.get(device).and_then(|view| view.beat.as_ref());
        shown.or_else(|| self.victim()).map(|beat| beat.boot)
    }

    /// The newest beat of the life that is to end.
    #[must_use]
    pub fn victim(&self) -> Option<&Beat> {
        self.lives().max_by_key(|beat| (!beat.is_stopped, beat.beat))
    }

    /// Lives that may be the machine's present one. Devices that do not agree show lives from before beside it. What one of them shows
    /// that is older than another's newest of the same life says nothing: that life may have stopped since.
    fn lives(&self) -> impl Iterator<Item = &Beat> {
        self.shown().filter(|beat| self.is_present(beat) && self.is_newest(beat))
    }

    fn shown(&self) -> impl Iterator<Item = &Beat> {
        self.devices.iter().filter_map(|view| view.beat.as_ref())
    }

    fn is_newest(&self, beat: &Beat) -> bool {
        !self.shown().any(|other| other.writer == beat.writer && other.beat > beat.beat)
    }

    fn is_present(&self, beat: &Beat) -> bool {
        self.living.is_none_or(|boot| boot == beat.boot)
    }

    /// What the sender's own cluster says now: since when it has lost the victim, without a break; none: it has not, or says nothing.
    pub fn handle_lost(&mut self, lost_ms: Option<u64>) {
        self.config.lost_ms = lost_ms;
    }

    /// The message was written and read back.
    pub fn handle_written(&mut self, device: usize, ended_ms: u64) {
        if let Some(view) = self.devices.get_mut(device) {
            view.written_ms.get_or_insert(ended_ms);
        }
    }

    /// Takes in a read. `known` is what this machine saw earlier: that beat stood there at that instant already.
    pub fn handle_read(&mut self, read: &VictimRead, known: Option<(BeatVersion, u64)>) {
        #[cfg(feature = "planted")]
        let known = known.filter(|_| !self.has_mistake(FenceMistake::SeenForgotten));
        let is_late = self.written_ms().is_some();
        let newest = self.lives().map(|beat| beat.beat).max();
        let is_known_boot = |beat: &Beat| self.devices.iter().any(|view| view.beat.as_ref().is_some_and(|shown| shown.boot == beat.boot));
        let is_new_boot = |beat: &Beat| is_late && newest.is_some_and(|newest| beat.beat > newest) && !is_known_boot(beat);
        let is_behind = matches!(&read.place, OwnPlace::Beat(beat) if is_new_boot(beat));
        let Some(view) = self.devices.get_mut(read.device) else { return };
        let is_damaged = read.place == OwnPlace::Unreadable;
        #[cfg(feature = "planted")]
        let is_damaged = is_damaged && self.mistake != Some(FenceMistake::UnreadableIsMissing);
        view.is_damaged = is_damaged;
        view.is_unsigned |= !read.is_signed;
        if read.is_current {
            view.stood_ms = view.stood_ms.max(read.issued_ms);
        }
        let is_same = match (&read.place, &view.beat) {
            (OwnPlace::Beat(beat), Some(shown)) if beat.boot != shown.boot => {
                let is_behind = beat.beat > shown.beat;
                // It was there before the message: the message names a boot that was over, and the one that lives does not obey it.
                if is_behind && !view.is_confirmed {
                    (view.shown_ms, view.beat) = (read.ended_ms, Some((**beat).clone()));
                } else if is_behind {
                    let since_ms = view.other.filter(|(boot, _)| *boot == beat.boot).map_or(read.ended_ms, |(_, since_ms)| since_ms);
                    view.other = Some((beat.boot, since_ms));
                }
                return;
            }
            // A device that answers only now, and shows what came behind the lives that the others showed.
            (OwnPlace::Beat(beat), None) if is_behind => {
                let since_ms = view.other.filter(|(boot, _)| *boot == beat.boot).map_or(read.ended_ms, |(_, since_ms)| since_ms);
                view.other = Some((beat.boot, since_ms));
                return;
            }
            (OwnPlace::Beat(beat), None) => {
                let version = BeatVersion::of(beat);
                let seen_ms = known.filter(|(known, _)| *known == version).map_or(read.ended_ms, |(_, at_ms)| at_ms);
                (view.shown_ms, view.beat) = (seen_ms.min(read.ended_ms), Some((**beat).clone()));
                true
            }
            (OwnPlace::Beat(beat), Some(shown)) => {
                view.other = None;
                view.is_confirmed |= read.is_current;
                let is_same = BeatVersion::of(beat) == BeatVersion::of(shown);
                if !is_same {
                    (view.shown_ms, view.beat) = (read.ended_ms, Some((**beat).clone()));
                    self.living = Some(beat.boot);
                }
                is_same
            }
            // Who lives by this device writes there.
            (OwnPlace::NeverWritten, None) => {
                view.is_confirmed |= read.is_current;
                true
            }
            (OwnPlace::NeverWritten | OwnPlace::Unreadable, _) => false,
        };
        if is_same && read.is_current {
            view.silent_until_ms = view.silent_until_ms.max(read.issued_ms);
        }
        let OwnPlace::Beat(beat) = &read.place else { return };
        self.lease_ms = self.lease_ms.max(beat.lease_ms);
        view.answered_ms = beat.acknowledged.map(|_| view.answered_ms.unwrap_or(read.ended_ms));
    }

    fn wait_ms(&self, wait_ms: u64) -> u64 {
        observed_ms(wait_ms, self.config.drift_ppm)
    }

    fn delay_ms(&self) -> u64 {
        #[cfg(feature = "planted")]
        if self.has_mistake(FenceMistake::NoDelay) {
            return 0;
        }
        self.wait_ms(u64::from(self.config.storage_delay_ms))
    }

    fn count(&self) -> u32 {
        u32::try_from(self.devices.len()).unwrap_or(u32::MAX)
    }

    /// The instant at which more than half of these have come about.
    fn majority_ms(&self, instants: impl Iterator<Item = u64>) -> Option<u64> {
        let mut instants: Vec<u64> = instants.collect();
        instants.sort_unstable();
        let needed = majority(self.count());
        #[cfg(feature = "planted")]
        let needed = if self.has_mistake(FenceMistake::OneDevice) { 1 } else { needed };
        instants.get(usize::try_from(needed).unwrap_or(usize::MAX) - 1).copied()
    }

    /// Since when the message stands on more than half of the devices.
    #[must_use]
    pub fn written_ms(&self) -> Option<u64> {
        self.majority_ms(self.devices.iter().filter_map(|view| view.written_ms))
    }

    /// Judges. A message on too few devices proves nothing, whatever else is seen, but another boot.
    #[must_use]
    pub fn judge(&self, now_ms: u64) -> FenceVerdict {
        let mut due: Option<(u64, Proof)> = None;
        for candidate in
            [self.rebooted(), self.left(), self.acknowledged(), self.expired(), self.lost(), self.by_times()].into_iter().flatten()
        {
            if now_ms >= candidate.0 && self.is_confirmed(candidate) {
                return FenceVerdict::Gone(candidate.1);
            }
            due = Some(due.map_or(candidate, |known| known.min(candidate)));
        }
        FenceVerdict::Wait(due)
    }

    /// Silence, and that somebody has left, have to be seen by a read issued at that instant or later, on so many devices that the
    /// victim cannot live on the others. A node that leaves no record has to have had the time to read the message.
    fn is_confirmed(&self, (due_ms, proof): (u64, Proof)) -> bool {
        let views = self.devices.iter();
        match proof {
            Proof::Expired | Proof::Left => {
                let silent = views.filter(|view| view.silent_until_ms >= due_ms).count();
                #[cfg(feature = "planted")]
                if self.has_mistake(FenceMistake::OneDevice) {
                    return silent > 0;
                }
                u32::try_from(silent).unwrap_or(0) + watch_quorum(self.count()) > self.count()
            }
            Proof::Msgwait => {
                let has_stood = |view: &&DeviceView| view.written_ms.is_some_and(|at_ms| view.stood_ms >= at_ms + self.config.stand_ms);
                let is_read = u32::try_from(views.filter(has_stood).count()).unwrap_or(0) >= majority(self.count());
                is_read && (!self.is_guarded() || self.is_confirmed((due_ms, Proof::Expired)))
            }
            // On so many devices the present life has been seen, whatever the first looks showed.
            Proof::ClusterLost => u32::try_from(views.filter(|view| view.is_confirmed).count()).unwrap_or(0) >= majority(self.count()),
            // Ejected is no candidate: no read of these devices shows it.
            Proof::Ejected | Proof::Rebooted | Proof::Acknowledged => true,
        }
    }

    fn rebooted(&self) -> Option<(u64, Proof)> {
        let since_ms = self.majority_ms(self.devices.iter().filter_map(|view| view.other).map(|(_, since_ms)| since_ms))?;
        Some((since_ms + self.delay_ms(), Proof::Rebooted))
    }

    fn left(&self) -> Option<(u64, Proof)> {
        let has_left = |beat: &Beat| beat.is_stopped || beat.daemon.state == NodeState::Left;
        let is_left = self.victim().is_some() && self.lives().all(has_left);
        (is_left && !self.config.may_be_stock).then_some((self.written_ms()?, Proof::Left))
    }

    /// A watchdog ends every life that was not ended cleanly, if it says no more, or what it promised.
    fn is_guarded(&self) -> bool {
        let mut lives = self.lives().filter(|beat| !beat.is_stopped).peekable();
        lives.peek().is_some() && lives.all(|beat| beat.watchdog != WatchdogKind::None)
    }

    /// The record of a life that gave no sign under our eyes, on a stock device where somebody else has written into its mailbox: it may
    /// have ended long ago, and the stock program live there, which does not touch the record but empties the mailbox when it starts.
    fn may_be_another(&self) -> bool {
        let is_old = |view: &DeviceView| view.beat.is_some() && view.is_unsigned;
        self.config.may_be_stock && self.living.is_none() && self.devices.iter().any(is_old)
    }

    /// Every life that was not ended cleanly is under the rule *disk*.
    fn is_disk(&self) -> bool {
        #[cfg(feature = "planted")]
        if self.has_mistake(FenceMistake::ClusterSilence) {
            return true;
        }
        self.lives().all(|beat| beat.is_stopped || beat.rule == Rule::Disk)
    }

    fn acknowledged(&self) -> Option<(u64, Proof)> {
        let boot = self.victim().filter(|_| self.is_guarded() && !self.may_be_another())?.boot;
        // An answer from before, beside another life: nothing shows which of them is the present one.
        if self.lives().any(|beat| beat.boot != boot) {
            return None;
        }
        let answer = |view: &DeviceView| {
            let beat = view.beat.as_ref().filter(|beat| view.is_confirmed && beat.boot == boot)?;
            let span_ms = u64::from(beat.acknowledged?.reset_ms) + u64::from(self.config.storage_delay_ms);
            #[cfg(feature = "planted")]
            let span_ms = if self.has_mistake(FenceMistake::AnswerAtOnce) { 0 } else { span_ms };
            Some(view.answered_ms? + self.wait_ms(span_ms))
        };
        let due_ms = self.devices.iter().filter_map(answer).min()?;
        Some((due_ms, Proof::Acknowledged))
    }

    /// When the lease of the last change has ended.
    fn silence_ms(&self) -> u64 {
        let views = self.devices.iter().filter_map(|view| Some((view.beat.as_ref()?, view.shown_ms)));
        let is_newest = |beat: &Beat| self.is_present(beat) && self.is_newest(beat);
        let changed_ms = views.filter(|(beat, _)| is_newest(beat)).map(|(_, shown_ms)| shown_ms).max().unwrap_or(0);
        #[cfg(feature = "planted")]
        if self.has_mistake(FenceMistake::SilenceWithoutLease) {
            return changed_ms + self.delay_ms();
        }
        changed_ms + expiry_ms(self.lease_ms, self.config.drift_ppm) + self.delay_ms()
    }

    fn expired(&self) -> Option<(u64, Proof)> {
        self.written_ms()?;
        (self.is_guarded() && self.is_disk() && !self.may_be_another()).then(|| (self.silence_ms(), Proof::Expired))
    }

    /// Never shorter than what stock waits, nor than the lease that its disk may have given it last.
    fn lost(&self) -> Option<(u64, Proof)> {
        let is_bounded = |beat: &Beat| beat.is_stopped || (beat.rule == Rule::Cluster && beat.outlive_ms > 0);
        if !self.is_guarded() || self.is_disk() || !self.lives().all(is_bounded) {
            return None;
        }
        let outlive_ms = self.lives().map(|beat| beat.outlive_ms).max()?;
        let bound_ms = self.config.lost_ms? + self.wait_ms(u64::from(outlive_ms) + u64::from(self.config.storage_delay_ms));
        let written_ms = self.written_ms()?;
        let lease_ms = written_ms + expiry_ms(self.lease_ms, self.config.drift_ppm) + self.delay_ms();
        Some((bound_ms.max(written_ms + self.config.msgwait_ms?).max(lease_ms), Proof::ClusterLost))
    }

    /// What stock goes by: for a node that is not ours, or has no watchdog, or stopped or fell silent and may be another's since. One that
    /// has no watchdog ends itself when its lease ends; a record that cannot be read is no record that is missing.
    fn by_times(&self) -> Option<(u64, Proof)> {
        let msgwait_ms = self.written_ms()? + self.config.msgwait_ms?;
        if self.victim().is_none() {
            let is_damaged = self.devices.iter().any(|view| view.is_damaged);
            return (!is_damaged).then_some((msgwait_ms, Proof::Msgwait));
        }
        // Who has answered is ended by its watchdog, whatever its cluster says.
        let has_answered = |beat: &Beat| beat.acknowledged.is_some() && beat.watchdog != WatchdogKind::None;
        let is_bounded = |beat: &Beat| beat.is_stopped || beat.rule == Rule::Disk || has_answered(beat);
        let is_stopped = self.lives().all(|beat| beat.is_stopped);
        let due_ms = if is_stopped { msgwait_ms } else { msgwait_ms.max(self.silence_ms()) };
        (self.lives().all(is_bounded) && (!self.is_guarded() || self.may_be_another())).then_some((due_ms, Proof::Msgwait))
    }
}

#[cfg(test)]
mod tests;
