//! What: what a life of sbd looks at before its first beat.
//! Owns: the judgement of what an earlier life left in the own place.
//! Invariants: nothing is begun beside a life that may still be alive; a majority of devices has answered.
//! Does not: write anything.
//! Called by: the lifeline machine.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use deadbolt_disk_format::{Beat, BootId, DaemonPart, Incarnation, NodeState};

use crate::cycle::Work;
use crate::mailbox::PillAge;
use crate::verdict::majority;
use crate::words::{OwnPlace, RefuseReason};

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum OpeningStep {
    Wait,
    Read,
    Refuse(RefuseReason),
    /// An earlier life of this boot, this writer, has answered a pill.
    Answered(Incarnation),
    Begin {
        beat: u64,
        part: Box<DaemonPart>,
        is_idle: bool,
    },
}

#[derive(Clone, Debug)]
enum Stage {
    First,
    /// The life before did not stop cleanly: does it still advance?
    Pausing {
        until_ms: u64,
    },
    Second,
    Mailboxes,
}

/// The opening.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    stage: Stage,
    answers: Vec<Option<OwnPlace>>,
    /// What the looks before showed last.
    before: Vec<Option<OwnPlace>>,
    mailboxes: Vec<bool>,
    first: Option<Beat>,
    /// How many looks in a row before this one showed nothing readable.
    bad_looks: Vec<u32>,
    /// On how many devices something must be seen.
    quorum: u32,
    /// Less than a majority is enough: then all devices get the time of one pause to answer, so that what an earlier life, or another
    /// machine, wrote to the slower ones is seen.
    waits_for_all: bool,
    all_until_ms: Option<u64>,
}

impl Opening {
    pub(crate) fn new(devices: usize, quorum: u32) -> Self {
        let waits_for_all = u32::try_from(devices).is_ok_and(|devices| quorum < majority(devices));
        Self {
            stage: Stage::First,
            answers: vec![None; devices],
            before: vec![None; devices],
            mailboxes: vec![false; devices],
            first: None,
            bad_looks: vec![0; devices],
            quorum,
            waits_for_all,
            all_until_ms: None,
        }
    }

    pub(crate) fn handle_own(&mut self, device: usize, found: Option<OwnPlace>) {
        self.answers[device] = found;
    }

    pub(crate) fn handle_mailbox(&mut self, device: usize, is_settled: bool) {
        self.mailboxes[device] = is_settled;
    }

    pub(crate) fn second_at_ms(&self) -> Option<u64> {
        match self.stage {
            Stage::Pausing { until_ms } => Some(until_ms),
            Stage::First | Stage::Second => self.all_until_ms,
            Stage::Mailboxes => None,
        }
    }

    /// Was the own place last written by this boot?
    pub(crate) fn age(&self, boot: BootId) -> PillAge {
        if self.first.as_ref().is_some_and(|beat| beat.boot == boot) { PillAge::ThisLife } else { PillAge::BeforeThisBoot }
    }

    /// The lease of an earlier life of this boot that did not stop: the watchdog that it fed may still run for it.
    pub(crate) fn earlier_lease_ms(&self, boot: BootId) -> u32 {
        self.first.as_ref().filter(|beat| beat.boot == boot && !beat.is_stopped).map_or(0, |beat| beat.lease_ms)
    }

    /// Is the mailbox of this device known to hold nothing from an earlier boot?
    pub(crate) fn is_read(&self, device: usize, boot: BootId) -> bool {
        self.mailboxes[device] || self.age(boot) == PillAge::ThisLife
    }

    /// What this device has still to be asked for.
    pub(crate) fn missing(&self, device: usize) -> Option<Work> {
        match self.stage {
            Stage::First | Stage::Second => self.answers[device].is_none().then_some(Work::ReadOwn),
            Stage::Pausing { .. } => None,
            Stage::Mailboxes => (!self.mailboxes[device]).then_some(Work::ReadMailbox),
        }
    }

    fn has_quorum(&self, count: usize) -> bool {
        u32::try_from(count).unwrap_or(0) >= self.quorum
    }

    /// The newest beat among the answers: each life goes on from the number of the one before.
    fn newest(&self) -> Option<Beat> {
        let places = self.before.iter().chain(&self.answers).flatten();
        let beats = places.filter_map(|place| if let OwnPlace::Beat(beat) = place { Some(beat.as_ref()) } else { None });
        beats.max_by_key(|beat| beat.beat).cloned()
    }

    fn is_damaged(&self) -> bool {
        self.answers.iter().flatten().any(|place| *place == OwnPlace::Unreadable)
    }

    fn readable(&self) -> usize {
        self.answers.iter().flatten().filter(|place| **place != OwnPlace::Unreadable).count()
    }

    pub(crate) fn advance(&mut self, now_ms: u64, boot: BootId, writer: Incarnation, wait_ms: u64) -> OpeningStep {
        let count = self.answers.iter().flatten().count();
        let has_answers = self.has_quorum(count) && self.is_patient_enough(now_ms, wait_ms, count);
        match self.stage {
            Stage::First if has_answers => self.judge_first(now_ms, boot, wait_ms),
            Stage::Pausing { until_ms } if now_ms >= until_ms => self.look_again(),
            // The looks before were bad, or did not show this: it is the first.
            Stage::Second if has_answers && self.newest() != self.first && !self.is_advancing() => self.judge_first(now_ms, boot, wait_ms),
            Stage::Second if has_answers => self.compare(now_ms, wait_ms),
            Stage::Mailboxes if self.has_quorum(self.mailboxes.iter().filter(|is_settled| **is_settled).count()) => {
                self.begin(boot, writer)
            }
            _ => OpeningStep::Wait,
        }
    }

    fn is_patient_enough(&mut self, now_ms: u64, wait_ms: u64, count: usize) -> bool {
        let is_asked = self.waits_for_all && matches!(self.stage, Stage::First | Stage::Second) && count < self.answers.len();
        !is_asked || now_ms >= *self.all_until_ms.get_or_insert(now_ms + wait_ms)
    }

    fn judge_first(&mut self, now_ms: u64, boot: BootId, wait_ms: u64) -> OpeningStep {
        self.first = self.newest();
        match &self.first {
            // Once more: a single read may have gone astray, to where nothing was written yet.
            None if !self.is_damaged() => {
                self.remember();
                return self.look_again();
            }
            Some(first) if first.boot == boot && first.acknowledged.is_some() => return OpeningStep::Answered(first.writer),
            Some(first) if first.is_stopped => {
                // A device that lags may show a life before that of a living owner; a majority that can be read shows the owner, too.
                if self.has_quorum(self.readable()) {
                    return self.go_on();
                }
            }
            Some(first) if first.boot == boot && !first.is_idle && !matches!(first.daemon.state, NodeState::None | NodeState::Left) => {
                return OpeningStep::Refuse(RefuseReason::LifeBeforeNotEnded { writer: first.writer });
            }
            // Damaged bytes are no news: somebody may beat there.
            None | Some(_) => {}
        }
        self.pause(now_ms, wait_ms)
    }

    fn pause(&mut self, now_ms: u64, wait_ms: u64) -> OpeningStep {
        self.remember();
        self.stage = Stage::Pausing { until_ms: now_ms + wait_ms };
        OpeningStep::Wait
    }

    fn look_again(&mut self) -> OpeningStep {
        self.stage = Stage::Second;
        self.all_until_ms = None;
        // What came late was read too near to what comes now.
        self.answers.fill(None);
        OpeningStep::Read
    }

    /// A bad look takes nothing away from a good one.
    fn remember(&mut self) {
        for ((before, bad), answer) in self.before.iter_mut().zip(&mut self.bad_looks).zip(&self.answers) {
            *bad = if *answer == Some(OwnPlace::Unreadable) { *bad + 1 } else { 0 };
            match answer {
                None => {}
                Some(OwnPlace::Unreadable) if before.is_some() => {}
                Some(place) => *before = Some(place.clone()),
            }
        }
    }

    fn go_on(&mut self) -> OpeningStep {
        self.stage = Stage::Mailboxes;
        OpeningStep::Read
    }

    /// Does one device show another beat than before? What two devices show says nothing: they need not have the same.
    fn advanced(&self) -> Option<(BootId, u64, u64)> {
        self.before.iter().zip(&self.answers).find_map(|looks| match looks {
            (Some(OwnPlace::Beat(first)), Some(OwnPlace::Beat(second))) if (second.writer, second.beat) != (first.writer, first.beat) => {
                Some((second.boot, first.beat, second.beat))
            }
            _ => None,
        })
    }

    fn is_advancing(&self) -> bool {
        self.advanced().is_some()
    }

    /// Devices that showed the same in both looks: who beats there beats on a majority, so that a majority of these would not be one.
    fn unchanged(&self) -> usize {
        let is_same = |before: &Option<OwnPlace>, now: &Option<OwnPlace>, bad: u32| match (before, now) {
            (Some(OwnPlace::Beat(_)), Some(OwnPlace::Beat(_))) | (Some(OwnPlace::NeverWritten), Some(OwnPlace::NeverWritten)) => true,
            // Who beats there would have written it anew; one bad read says nothing.
            (Some(_), Some(OwnPlace::Unreadable)) => bad >= 2,
            _ => false,
        };
        let looks = self.before.iter().zip(&self.answers).zip(&self.bad_looks);
        looks.filter(|((before, now), bad)| is_same(before, now, **bad)).count()
    }

    fn compare(&mut self, now_ms: u64, wait_ms: u64) -> OpeningStep {
        if let Some((boot, first, second)) = self.advanced() {
            return OpeningStep::Refuse(RefuseReason::SlotInUse { boot, first, second });
        }
        if self.has_quorum(self.unchanged()) {
            return self.go_on();
        }
        self.pause(now_ms, wait_ms)
    }

    /// A life of the same boot leaves its daemon's last words standing until a new daemon has read them, and with them that it held nothing.
    fn begin(&mut self, boot: BootId, writer: Incarnation) -> OpeningStep {
        let own = self.first.as_ref().filter(|beat| beat.boot == boot);
        // Whom an earlier boot vouched for may count on it still.
        let vouches = self.first.as_ref().map_or(Vec::new(), |beat| beat.daemon.vouches.clone());
        let carried =
            own.map_or_else(|| DaemonPart { vouches, ..DaemonPart::default() }, |beat| DaemonPart { number: 0, ..beat.daemon.clone() });
        let is_idle = own.is_some_and(|beat| beat.is_idle);
        let beat = match &self.first {
            Some(first) => first.beat,
            // The others take a beat of this boot for news only if its number is beyond every one that they have seen in this place.
            None if self.is_damaged() => far_beyond(writer),
            None => 0,
        };
        OpeningStep::Begin { beat, part: Box::new(carried), is_idle }
    }
}

/// A number that no life reaches by counting; another one each time, should the place be lost again.
fn far_beyond(writer: Incarnation) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = writer.0;
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> 3) | (1 << 61)
}
