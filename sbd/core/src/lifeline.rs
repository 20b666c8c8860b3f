//! What: the machine of one sbd life: opening, cycles, lease, pill, acknowledgement, daemon, clean stop.
//! Owns: the lease, and every decision to end this life.
//! Invariants: a lease is published only for a cycle completed on a majority before the lease before it ended, and ends L after
//! that cycle's issue; once condemned no lease is published and no beat is written but the acknowledgement, and that only after
//! the feeder has retired; the stopped beat is written only after the watchdog was disarmed. What lengthens a lease beyond that is the
//! daemon's word, within the bounds of `extension`.
//! Does not: touch a device, a watchdog or a clock.
//! Called by: the shell `run`, the simulator.

mod extension;
mod watch;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use deadbolt_disk_format::{Acknowledgement, Beat, DaemonPart, NodeState, WatchdogKind};

use crate::DiskFailed;
use crate::cycle::{Cycle, Cycles, DeviceState, Work};
use crate::daemon::{DaemonSeen, DaemonVerdict, DaemonWatch};
use crate::mailbox::{MailboxSeen, MailboxVerdict, PillAge};
use crate::name::NameSeen;
use crate::opening::{Opening, OpeningStep};
use crate::progress::{Progress, Told, feed_end_ms, is_fed};
use crate::regime::{ClusterLease, Regime};
pub use crate::words::*;

/// Interval of cycles while the daemon asks for it (design, section 5).
const FAST_POLL_MS: u64 = 50;
/// Least time between two cycles, however often the daemon rings. Chosen: a cycle takes about this long on a fast device.
const CYCLE_GAP_MS: u64 = 5;
/// Least polls between two rewrites of the own name on one device. Chosen: a device that loses them is not busied in every cycle.
const NAME_GAP_POLLS: u64 = 4;
/// Stands for the daemon of an earlier sbd of this boot: its "held nothing" is repeated until a new daemon has spoken. Daemons count from 1.
const IDLE_BEFORE: u64 = 0;
/// How often the own place is read back. Chosen: often enough to notice a clone within a lease.
const OWN_CHECK_MS: u64 = 1000;
/// The reset is not held up by the acknowledgement for longer than this, nor for less: room for one write on a healthy device.
const ACKNOWLEDGE_MS: (u32, u32) = (20, 100);
/// How long the last beat of a clean stop may take before sbd ends without it. The watchdog is disarmed by then.
const STOP_MS: u64 = 2000;

#[derive(Clone, Debug)]
enum Phase {
    New,
    Opening(Box<Opening>),
    Arming {
        is_asked: bool,
    },
    Living,
    /// The last beat is being written under the lease; disarmed once it stands.
    Leaving,
    Condemned {
        command: ResetCommand,
        reason: ResetReason,
        reset_at_ms: u64,
        answer: Option<Acknowledgement>,
        is_reset_out: bool,
    },
    Stopping {
        is_disarmed: bool,
        until_ms: u64,
    },
    Ended,
}

/// The machine. See the head of this file.
#[derive(Clone, Debug)]
pub struct Lifeline {
    config: LifelineConfig,
    phase: Phase,
    devices: Vec<DeviceState>,
    cycles: Cycles,
    outputs: VecDeque<Output>,
    next_tag: u64,
    beat: u64,
    part: DaemonPart,
    /// Number of the last beat of this life, once it is known to be the last.
    final_beat: Option<u64>,
    /// The newest part that stands on a majority of devices.
    completed_part: Option<DaemonPart>,
    lease_end_ms: Option<u64>,
    /// What the disk alone gives.
    disk_end_ms: Option<u64>,
    extension: extension::Extension,
    /// Length of the last cycle that counted, ms.
    cycle_ms: u64,
    cluster: ClusterLease,
    /// Before it no lease may count: the watchdog was armed then.
    armed_ms: u64,
    /// What an earlier life of this boot published: until the watchdog has the time of this one, no beat publishes less.
    earlier_lease_ms: u32,
    reset_ms: u32,
    last_ms: Option<u64>,
    next_cycle_ms: u64,
    last_cycle_ms: u64,
    progress: Progress,
    daemon: DaemonWatch,
    /// "Held nothing" is being said of this generation, until a new incarnation publishes.
    idle: Option<u64>,
    absent_since_ms: Option<u64>,
    is_supervisor_silent: bool,
    has_refused_stop: bool,
    is_stop_asked: bool,
    #[cfg(feature = "planted")]
    mistake: Option<crate::planted::Mistake>,
}

impl Lifeline {
    /// A life that has not begun.
    #[must_use]
    pub fn new(config: LifelineConfig) -> Self {
        let devices = vec![DeviceState::default(); config.devices];
        Self {
            reset_ms: config.timings.reset_ms,
            config,
            phase: Phase::New,
            devices,
            cycles: Cycles::default(),
            outputs: VecDeque::new(),
            next_tag: 1,
            beat: 0,
            part: DaemonPart::default(),
            final_beat: None,
            completed_part: None,
            lease_end_ms: None,
            disk_end_ms: None,
            extension: extension::Extension::default(),
            cycle_ms: 0,
            cluster: ClusterLease::default(),
            armed_ms: 0,
            earlier_lease_ms: 0,
            last_ms: None,
            next_cycle_ms: 0,
            last_cycle_ms: 0,
            progress: Progress::default(),
            daemon: DaemonWatch::default(),
            idle: None,
            absent_since_ms: None,
            is_supervisor_silent: false,
            has_refused_stop: false,
            is_stop_asked: false,
            #[cfg(feature = "planted")]
            mistake: None,
        }
    }

    /// Plants a mistake.
    #[cfg(feature = "planted")]
    pub fn plant(&mut self, mistake: crate::planted::Mistake) {
        self.mistake = Some(mistake);
    }

    #[cfg(feature = "planted")]
    fn has_mistake(&self, mistake: crate::planted::Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// Takes in one event. `now_ms` never falls.
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        if matches!(self.phase, Phase::Ended) {
            return;
        }
        let elapsed_ms = self.last_ms.map_or(0, |last_ms| now_ms.saturating_sub(last_ms));
        self.last_ms = Some(now_ms);
        if self.is_armed() && elapsed_ms > u64::from(self.config.timings.expiry_ms) {
            self.condemn_at_once(ResetReason::TimeJump { elapsed_ms });
        }
        self.check_lease(now_ms);
        self.handle_input(now_ms, input);
        self.advance(now_ms);
        self.tell_trouble(now_ms);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When `Tick` must come at the latest, if nothing else does.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        match &self.phase {
            Phase::New | Phase::Ended => None,
            Phase::Opening(opening) => Some(opening.second_at_ms().unwrap_or(self.next_cycle_ms)),
            Phase::Condemned { reset_at_ms, is_reset_out, .. } => (!is_reset_out).then_some(*reset_at_ms),
            Phase::Stopping { until_ms, .. } => Some(*until_ms),
            Phase::Leaving => [self.lease_end_ms, Some(self.next_cycle_ms)].into_iter().flatten().min(),
            Phase::Arming { .. } | Phase::Living => {
                let can_cycle = self.devices.iter().any(|device| device.busy.is_none() && !device.is_away);
                let cycle = can_cycle.then_some(self.next_cycle_ms);
                let told = self.progress.due_ms(self.half_stall_ms(), self.feed_end_ms());
                [cycle, self.lease_end_ms, told].into_iter().flatten().min()
            }
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn status(&self) -> LifelineStatus {
        let phase = match self.phase {
            Phase::New => PhaseName::New,
            Phase::Opening(_) => PhaseName::Opening,
            Phase::Arming { .. } => PhaseName::Arming,
            Phase::Living => PhaseName::Living,
            Phase::Leaving => PhaseName::Stopping,
            Phase::Condemned { .. } => PhaseName::Condemned,
            Phase::Stopping { .. } => PhaseName::Stopping,
            Phase::Ended => PhaseName::Ended,
        };
        let busy = self.devices.iter().filter(|device| device.busy.is_some()).count();
        let away = self.devices.iter().filter(|device| device.is_away).count();
        let unread = self.devices.iter().enumerate().filter(|(_, device)| device.is_unread).map(|(index, _)| 1 << index).sum();
        LifelineStatus { phase, beat: self.beat, lease_end_ms: self.lease_end_ms, busy, away, unread }
    }

    fn is_armed(&self) -> bool {
        matches!(self.phase, Phase::Living | Phase::Leaving)
    }

    fn say(&mut self, note: Note) {
        self.outputs.push_back(Output::Say(note));
    }

    fn check_lease(&mut self, now_ms: u64) {
        if let Some(lease_end_ms) = self.lease_end_ms.filter(|_| self.is_armed())
            && now_ms >= lease_end_ms
        {
            self.condemn_at_once(ResetReason::LeaseEnded { lease_end_ms, now_ms });
        }
    }

    fn handle_input(&mut self, now_ms: u64, input: Input) {
        match input {
            Input::Start => self.start(now_ms),
            Input::Turned { words, part } => {
                if !self.is_watch() {
                    self.handle_words(now_ms, words, part);
                }
            }
            Input::Woken => self.next_cycle_ms = self.next_cycle_ms.min(now_ms.max(self.last_cycle_ms + CYCLE_GAP_MS)),
            Input::OwnRead { tag, result } => self.handle_own(tag, result),
            Input::MailboxRead { tag, result } => self.handle_mailbox_read(tag, result),
            Input::CycleDone { tag, result } => self.handle_cycle(now_ms, tag, result),
            Input::ClearDone { tag, result } => {
                if let Some((device, Work::Clear)) = self.take_work(tag) {
                    // One that failed is found again by the next read.
                    self.devices[device].needs_clear = false;
                    self.devices[device].is_unread &= result.is_err();
                    if let Phase::Opening(opening) = &mut self.phase {
                        opening.handle_mailbox(device, result.is_ok());
                    }
                }
            }
            // One that failed is found again by the next read.
            Input::NameDone { tag } => drop(self.take_work(tag)),
            Input::Armed { reset_ms } => self.handle_armed(now_ms, reset_ms),
            Input::ArmFailed => {
                if matches!(self.phase, Phase::Arming { .. }) {
                    self.refuse(RefuseReason::NotArmed);
                }
            }
            Input::FeederRetired { reset_ms } => self.handle_retired(reset_ms),
            Input::Disarmed => self.handle_disarmed(),
            Input::StopAsked if self.is_watch() => self.stop_watching(now_ms),
            // Decided with the next words: the holds word must be newer than the wish.
            Input::StopAsked => self.is_stop_asked = true,
            Input::ClusterSeen(seen) => self.handle_cluster(now_ms, seen),
            Input::Resume { beat, unread } => self.resume(now_ms, beat, unread),
            Input::Retimed(timings) => self.retime(now_ms, timings),
            Input::WatchdogSet { reset_ms } => self.handle_watchdog_set(now_ms, reset_ms),
            Input::Tick => {}
        }
    }

    /// Whatever is due now.
    fn advance(&mut self, now_ms: u64) {
        match &self.phase {
            Phase::New | Phase::Ended => {}
            Phase::Opening(_) => self.advance_opening(now_ms),
            Phase::Arming { .. } | Phase::Living => {
                self.start_clears();
                self.start_names(now_ms);
                if now_ms >= self.next_cycle_ms {
                    self.start_cycle(now_ms);
                }
            }
            Phase::Condemned { reset_at_ms, answer, .. } => {
                let answer = *answer;
                if now_ms >= *reset_at_ms {
                    self.reset();
                } else if answer.is_some() {
                    self.write_final(now_ms, answer);
                }
            }
            Phase::Leaving => self.leave(now_ms),
            Phase::Stopping { until_ms, is_disarmed } => {
                if *is_disarmed && now_ms >= *until_ms {
                    self.phase = Phase::Ended;
                    self.outputs.push_back(Output::Exit { is_recorded: false });
                } else if *is_disarmed {
                    self.write_final(now_ms, None);
                }
            }
        }
    }

    // Work on devices.

    fn give_work(&mut self, device: usize, work: Work) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.devices[device].busy = Some((tag, work));
        // The clock of the input that is being handled.
        self.devices[device].busy_since_ms = self.last_ms.unwrap_or(0);
        tag
    }

    /// The device and the work of a tag; a tag that is not on its way is nobody's.
    fn take_work(&mut self, tag: u64) -> Option<(usize, Work)> {
        let device = self.devices.iter().position(|device| device.busy.is_some_and(|(busy, _)| busy == tag))?;
        let (_, work) = self.devices[device].busy.take()?;
        Some((device, work))
    }

    fn start_clears(&mut self) {
        for device in 0..self.devices.len() {
            let state = &self.devices[device];
            if state.needs_clear && state.busy.is_none() && !state.is_away {
                let tag = self.give_work(device, Work::Clear);
                self.outputs.push_back(Output::ClearMailbox { tag, device });
            }
        }
    }

    /// A name that the last read did not find. Behind the clears: an answer is awaited, a name is not.
    fn start_names(&mut self, now_ms: u64) {
        for device in 0..self.devices.len() {
            let state = &mut self.devices[device];
            if state.name.is_due() && state.busy.is_none() && !state.is_away {
                state.name.handle_rewriting(now_ms);
                let tag = self.give_work(device, Work::Rename);
                self.outputs.push_back(Output::RewriteName { tag, device });
            }
        }
    }

    // Opening.

    fn start(&mut self, now_ms: u64) {
        if !matches!(self.phase, Phase::New) {
            return;
        }
        self.phase = Phase::Opening(Box::new(Opening::new(self.devices.len(), self.quorum())));
        self.progress.begin(now_ms);
        self.read_missing(now_ms);
    }

    /// Asks every free device for what it has not answered yet; again after a poll interval where a read failed.
    fn read_missing(&mut self, now_ms: u64) {
        self.next_cycle_ms = now_ms + u64::from(self.config.timings.poll_ms);
        for device in 0..self.devices.len() {
            let Phase::Opening(opening) = &self.phase else { return };
            let Some(work) = opening.missing(device) else { continue };
            if self.devices[device].busy.is_some() {
                continue;
            }
            let tag = self.give_work(device, work);
            self.outputs.push_back(if work == Work::ReadOwn {
                Output::ReadOwn { tag, device }
            } else {
                Output::ReadMailbox { tag, device }
            });
        }
    }

    fn advance_opening(&mut self, now_ms: u64) {
        let (boot, writer) = (self.config.boot, self.config.writer);
        let wait_ms = u64::from(self.config.timings.poll_ms) * 2 + u64::from(self.config.timings.cycle_ms);
        let Phase::Opening(opening) = &mut self.phase else { return };
        match opening.advance(now_ms, boot, writer, wait_ms) {
            OpeningStep::Wait if now_ms >= self.next_cycle_ms => self.read_missing(now_ms),
            OpeningStep::Wait => {}
            OpeningStep::Read => self.read_missing(now_ms),
            OpeningStep::Refuse(reason) => self.refuse(reason),
            OpeningStep::Answered(writer) => self.condemn_at_once(ResetReason::AnsweredBefore { writer }),
            OpeningStep::Begin { beat, part, is_idle } => {
                for (device, state) in self.devices.iter_mut().enumerate() {
                    state.is_unread = !opening.is_read(device, boot);
                }
                self.earlier_lease_ms = opening.earlier_lease_ms(boot);
                self.beat = beat;
                if self.part.number == 0 {
                    self.part = *part;
                    #[cfg(feature = "planted")]
                    let is_idle = is_idle && !self.has_mistake(crate::planted::Mistake::HeldNothingForgotten);
                    self.idle = is_idle.then_some(IDLE_BEFORE);
                }
                self.phase = Phase::Arming { is_asked: false };
                self.progress.begin(now_ms);
                self.next_cycle_ms = now_ms;
                self.advance(now_ms);
            }
        }
    }

    fn refuse(&mut self, reason: RefuseReason) {
        self.phase = Phase::Ended;
        self.outputs.push_back(Output::EndLease);
        self.outputs.push_back(Output::Refuse(reason));
    }

    fn handle_mailbox_read(&mut self, tag: u64, result: Result<MailboxSeen, DiskFailed>) {
        let Some((device, Work::ReadMailbox)) = self.take_work(tag) else { return };
        self.devices[device].has_failed = result.is_err();
        let Phase::Opening(opening) = &self.phase else { return };
        let age = opening.age(self.config.boot);
        let Ok(seen) = result else {
            if let Phase::Opening(opening) = &mut self.phase {
                opening.handle_mailbox(device, false);
            }
            return;
        };
        let verdict = self.judge_mailbox(&seen, age);
        if self.is_dirty_start(&seen) {
            self.refuse(RefuseReason::NotClean { device, seen });
            return;
        }
        let sender = seen.sender.clone();
        let step = self.devices[device].mailbox.handle_read(seen.clone(), verdict);
        if step.is_new {
            self.say(Note::Mailbox { device, seen, verdict });
        }
        if let MailboxVerdict::Obey(command) = verdict {
            // Nothing is armed and no lease was given in this life: there is nobody to acknowledge to, and nothing to wait for.
            self.condemn_now(command, ResetReason::Pill { device, sender });
        } else if step.clear {
            let tag = self.give_work(device, Work::Clear);
            self.outputs.push_back(Output::ClearMailbox { tag, device });
        } else if step.counts {
            if let Phase::Opening(opening) = &mut self.phase {
                opening.handle_mailbox(device, true);
            }
        } else {
            let tag = self.give_work(device, Work::ReadMailbox);
            self.outputs.push_back(Output::ReadMailbox { tag, device });
        }
    }

    // Cycles.

    fn ready_devices(&self) -> Vec<usize> {
        let is_ready = |state: &DeviceState| state.busy.is_none() && !state.is_away;
        (0..self.devices.len()).filter(|device| is_ready(&self.devices[*device])).collect()
    }

    fn start_cycle(&mut self, now_ms: u64) {
        let ready = self.ready_devices();
        if ready.is_empty() {
            return;
        }
        self.beat += 1;
        let beat = self.make_beat(now_ms, None, false);
        for device in ready {
            self.write_beat(device, &beat);
        }
        self.cycles.open(&beat, now_ms, self.part.clone(), self.idle);
        self.last_cycle_ms = now_ms;
        let fast = now_ms < self.daemon.seen().fast_poll_until_ms;
        let poll_ms = u64::from(self.config.timings.poll_ms);
        self.next_cycle_ms = now_ms + if fast { poll_ms.min(FAST_POLL_MS) } else { poll_ms };
    }

    fn write_beat(&mut self, device: usize, beat: &Beat) {
        let tag = self.give_work(device, Work::Cycle(beat.beat));
        self.devices[device].issued_beat = beat.beat;
        self.outputs.push_back(Output::Cycle { tag, device, beat: Box::new(beat.clone()) });
    }

    /// The last beat of this life, once to each device as soon as it is free: the acknowledgement or the clean stop.
    fn write_final(&mut self, now_ms: u64, acknowledged: Option<Acknowledgement>) {
        let number = *self.final_beat.get_or_insert(self.beat + 1);
        self.beat = number;
        let beat = self.make_beat(now_ms, acknowledged, acknowledged.is_none());
        for device in self.ready_devices() {
            if self.devices[device].issued_beat < number {
                self.write_beat(device, &beat);
            }
        }
    }

    fn handle_final_done(&mut self, device: usize) {
        self.devices[device].is_final_done = true;
        let count = self.devices.iter().filter(|state| state.is_final_done).count();
        if u32::try_from(count).unwrap_or(0) < self.quorum() {
            return;
        }
        match self.phase {
            Phase::Condemned { .. } => self.reset(),
            Phase::Leaving => self.disarm_after_leaving(),
            Phase::Stopping { .. } => {
                self.phase = Phase::Ended;
                self.outputs.push_back(Output::Exit { is_recorded: true });
            }
            Phase::New | Phase::Opening(_) | Phase::Arming { .. } | Phase::Living | Phase::Ended => {}
        }
    }

    fn make_beat(&self, now_ms: u64, acknowledged: Option<Acknowledgement>, is_stopped: bool) -> Beat {
        Beat {
            slot: self.config.slot,
            boot: self.config.boot,
            writer: self.config.writer,
            beat: self.beat,
            lease_ms: self.published_lease_ms(),
            reset_ms: self.reset_ms,
            rule: self.config.regime.rule(),
            watchdog: self.config.watchdog,
            is_stopped,
            is_idle: self.idle.is_some(),
            acknowledged,
            wall_ms: 0,
            boottime_ms: now_ms,
            outlive_ms: self.outlive_ms(),
            daemon: self.part.clone(),
        }
    }

    fn handle_cycle(&mut self, now_ms: u64, tag: u64, result: Result<CycleSeen, DiskFailed>) {
        let Some((device, Work::Cycle(beat))) = self.take_work(tag) else { return };
        self.devices[device].has_failed = result.is_err();
        let Ok(seen) = result else {
            self.cycles.prune(&self.devices);
            return;
        };
        self.devices[device].completed_beat = self.devices[device].completed_beat.max(beat);
        let is_clean = self.judge_cycle_mailbox(now_ms, device, seen.mailbox);
        self.handle_name(now_ms, device, seen.name);
        if self.final_beat == Some(beat) {
            self.handle_final_done(device);
        } else if is_clean && matches!(self.phase, Phase::Arming { .. } | Phase::Living) {
            self.count_cycle(now_ms, beat);
        }
        self.cycles.prune(&self.devices);
        self.start_own_check(now_ms, device);
    }

    fn count_cycle(&mut self, now_ms: u64, beat: u64) {
        let Some(cycle) = self.cycles.handle_done(beat, self.quorum()) else { return };
        self.renew(now_ms, beat, cycle);
        let left_ms = self.lease_end_ms.map(|lease_end_ms| lease_end_ms.saturating_sub(now_ms));
        let is_fed = self.lease_end_ms.is_some_and(|lease_end_ms| is_fed(now_ms, lease_end_ms, self.reset_ms));
        if let Some(after_ms) = self.progress.handle_completed(now_ms, beat, is_fed) {
            self.say(Note::CyclesAgain { beat, after_ms, lease_left_ms: left_ms, is_fed });
        }
    }

    /// What follows from a complete cycle.
    fn renew(&mut self, now_ms: u64, beat: u64, cycle: Cycle) {
        self.completed_part = Some(cycle.part);
        if let Some(generation) = cycle.idle_generation {
            self.daemon.handle_recorded(generation);
            self.outputs.push_back(Output::PublishIdle { generation });
        }
        if let Phase::Arming { is_asked } = &mut self.phase {
            if !*is_asked {
                *is_asked = true;
                self.outputs.push_back(Output::Arm);
            }
            return;
        }
        if !self.is_supervised(now_ms) {
            return;
        }
        // A beat gives no longer a lease than it publishes; while times change that may be shorter than the present one.
        let lease_end_ms = cycle.issued_ms + u64::from(self.config.timings.lease_ms.min(cycle.lease_ms));
        if cycle.issued_ms < self.armed_ms {
            return;
        }
        if now_ms >= lease_end_ms {
            self.say(Note::CycleTooLate { beat });
            return;
        }
        self.disk_end_ms = Some(lease_end_ms);
        self.cycle_ms = now_ms.saturating_sub(cycle.issued_ms);
        self.publish(beat);
    }

    /// Under a process watchdog there is no lease unless the supervisor said lately that it is at work.
    fn is_supervised(&mut self, now_ms: u64) -> bool {
        let limit_ms = u64::from(self.config.timings.watchdog_ms);
        let silent_ms = now_ms.saturating_sub(self.daemon.seen().supervisor_alive_ms);
        let is_silent = self.config.watchdog == WatchdogKind::Process && silent_ms > limit_ms;
        if is_silent && !self.is_supervisor_silent {
            self.say(Note::SupervisorSilent);
        }
        self.is_supervisor_silent = is_silent;
        !is_silent
    }

    /// Looks at the mailbox of a cycle; false: it does not count.
    fn judge_cycle_mailbox(&mut self, now_ms: u64, device: usize, seen: MailboxSeen) -> bool {
        let age = if self.devices[device].is_unread { PillAge::BeforeThisBoot } else { PillAge::ThisLife };
        let verdict = self.judge_mailbox(&seen, age);
        let sender = seen.sender.clone();
        let step = self.devices[device].mailbox.handle_read(seen.clone(), verdict);
        if step.is_new {
            self.say(Note::Mailbox { device, seen, verdict });
        }
        self.devices[device].needs_clear |= step.clear;
        self.devices[device].is_unread &= step.clear || !step.counts;
        if verdict == MailboxVerdict::Stop {
            self.stop_watching(now_ms);
        }
        if let MailboxVerdict::Obey(command) = verdict {
            match self.phase {
                Phase::Living | Phase::Leaving => self.condemn(now_ms, command, ResetReason::Pill { device, sender }),
                Phase::Arming { .. } => self.condemn_now(command, ResetReason::Pill { device, sender }),
                // Already on its way out; a node that stops holds nothing and ends by itself.
                Phase::Condemned { .. } | Phase::Stopping { .. } | Phase::Ended | Phase::New | Phase::Opening(_) => {}
            }
        }
        step.counts
    }

    // What people learn about the cycles.

    fn half_stall_ms(&self) -> u64 {
        let timings = &self.config.timings;
        (u64::from(timings.stall_ms) / 2).max(2 * u64::from(timings.poll_ms))
    }

    fn feed_end_ms(&self) -> Option<u64> {
        self.lease_end_ms.map(|lease_end_ms| feed_end_ms(lease_end_ms, self.reset_ms))
    }

    fn tell_trouble(&mut self, now_ms: u64) {
        if !matches!(self.phase, Phase::Opening(_) | Phase::Arming { .. } | Phase::Living) {
            return;
        }
        while let Some(told) = self.progress.poll(now_ms, self.half_stall_ms(), self.feed_end_ms()) {
            if told == Told::Stalled {
                self.flush();
            }
            let left = |end_ms: Option<u64>| end_ms.map(|end_ms| end_ms.saturating_sub(now_ms));
            let (for_ms, lease_left_ms) = (self.progress.silent_ms(now_ms), left(self.lease_end_ms));
            self.say(match told {
                Told::Stalled => Note::CyclesStalled {
                    for_ms,
                    stall_ms: self.config.timings.stall_ms,
                    devices: self.troubles(now_ms),
                    left_ms: left(self.feed_end_ms()).zip(lease_left_ms),
                },
                Told::Unfed => Note::FeedingStopped {
                    lease_left_ms: lease_left_ms.unwrap_or(0),
                    reset_ms: self.reset_ms,
                    beat: self.progress.beat,
                    ago_ms: for_ms,
                },
            });
        }
    }

    fn troubles(&self, now_ms: u64) -> Vec<(usize, DeviceTrouble)> {
        let poll_ms = u64::from(self.config.timings.poll_ms);
        let trouble = |state: &DeviceState| {
            let for_ms = now_ms.saturating_sub(state.busy_since_ms);
            match state.busy {
                _ if state.is_away => Some(DeviceTrouble::Away),
                // A try that has just begun says less than how the last one ended.
                _ if state.has_failed && (state.busy.is_none() || for_ms < poll_ms) => Some(DeviceTrouble::Failed),
                Some((_, work)) if for_ms >= poll_ms => Some(DeviceTrouble::Busy { work: work.name(), for_ms }),
                _ => None,
            }
        };
        self.devices.iter().enumerate().filter_map(|(device, state)| trouble(state).map(|trouble| (device, trouble))).collect()
    }

    // The own name and the own place.

    fn handle_name(&mut self, now_ms: u64, device: usize, found: NameSeen) {
        if !matches!(self.phase, Phase::Arming { .. } | Phase::Living) {
            return;
        }
        let gap_ms = NAME_GAP_POLLS * u64::from(self.config.timings.poll_ms);
        if let Some(found) = self.devices[device].name.handle_read(now_ms, gap_ms, found) {
            self.say(Note::NameLost { device, found });
        }
    }

    fn start_own_check(&mut self, now_ms: u64, device: usize) {
        let state = &self.devices[device];
        let is_due = now_ms >= state.checked_ms + OWN_CHECK_MS && now_ms < self.next_cycle_ms;
        if matches!(self.phase, Phase::Living) && is_due && state.busy.is_none() && !state.needs_clear && !state.name.is_due() {
            self.devices[device].checked_ms = now_ms;
            let tag = self.give_work(device, Work::ReadOwn);
            self.outputs.push_back(Output::ReadOwn { tag, device });
        }
    }

    fn handle_own(&mut self, tag: u64, result: Result<OwnPlace, DiskFailed>) {
        let Some((device, Work::ReadOwn)) = self.take_work(tag) else { return };
        self.devices[device].has_failed = result.is_err();
        if let Phase::Opening(opening) = &mut self.phase {
            opening.handle_own(device, result.ok());
            return;
        }
        let Ok(OwnPlace::Beat(found)) = result else { return };
        // A look of the opening at a device that answers only now shows the life before this one.
        if !matches!(self.phase, Phase::Living) || self.devices[device].completed_beat == 0 {
            return;
        }
        let is_own = (found.boot, found.writer) == (self.config.boot, self.config.writer);
        // A copy of this very life, ahead of it, is somebody else too.
        if !is_own || found.beat > self.devices[device].issued_beat {
            self.condemn_at_once(ResetReason::ForeignBeat { device, boot: found.boot, writer: found.writer });
            return;
        }
        let completed = self.devices[device].completed_beat;
        if found.beat >= completed {
            return;
        }
        self.devices[device].is_away = true;
        // What it said about the cycles in flight is worth nothing.
        self.cycles = Cycles::default();
        let left = self.devices.iter().filter(|state| !state.is_away).count();
        if u32::try_from(left).unwrap_or(0) < self.quorum() {
            self.condemn_at_once(ResetReason::OwnPlaceReverted { device, found: found.beat, completed });
        } else {
            self.say(Note::DeviceAway { device, found: found.beat, completed });
        }
    }

    // The watchdog.

    fn handle_armed(&mut self, now_ms: u64, reset_ms: u32) {
        if !matches!(self.phase, Phase::Arming { is_asked: true }) {
            return;
        }
        self.reset_ms = reset_ms;
        self.lengthen_lease(reset_ms);
        self.armed_ms = now_ms;
        self.earlier_lease_ms = 0;
        self.phase = Phase::Living;
        self.progress.begin(now_ms);
        self.next_cycle_ms = now_ms;
    }

    fn handle_retired(&mut self, reset_ms: u32) {
        if let Phase::Condemned { command, answer, is_reset_out: false, .. } = &mut self.phase
            && answer.is_none()
        {
            *answer = Some(Acknowledgement { reset_ms, command: command.byte() });
            self.reset_ms = reset_ms;
            self.outputs.push_back(Output::PublishAcknowledged { reset_ms });
        }
    }

    /// Ends this life after the acknowledgement had its bounded chance.
    fn condemn(&mut self, now_ms: u64, command: ResetCommand, reason: ResetReason) {
        self.forget_leaving();
        let grace_ms = self.config.timings.cycle_ms.clamp(ACKNOWLEDGE_MS.0, ACKNOWLEDGE_MS.1);
        // Where no watchdog runs, nothing else ends this life with its lease.
        let due_ms = now_ms + u64::from(grace_ms);
        let reset_at_ms = self.lease_end_ms.take().map_or(due_ms, |end_ms| end_ms.min(due_ms));
        self.outputs.push_back(Output::EndLease);
        self.outputs.push_back(Output::RetireFeeder { is_crash: command == ResetCommand::Crash });
        self.phase = Phase::Condemned { command, reason, reset_at_ms, answer: None, is_reset_out: false };
    }

    /// Ends this life before anything else happens.
    fn condemn_at_once(&mut self, reason: ResetReason) {
        self.condemn_now(ResetCommand::Reset, reason);
    }

    fn condemn_now(&mut self, command: ResetCommand, reason: ResetReason) {
        self.lease_end_ms = None;
        // Nothing that was decided before may be done after this.
        self.outputs.clear();
        self.outputs.push_back(Output::EndLease);
        self.outputs.push_back(Output::Reset { command, reason: reason.clone() });
        self.phase = Phase::Condemned { command, reason, reset_at_ms: 0, answer: None, is_reset_out: true };
    }

    fn reset(&mut self) {
        if let Phase::Condemned { command, reason, is_reset_out, .. } = &mut self.phase
            && !*is_reset_out
        {
            *is_reset_out = true;
            self.outputs.push_back(Output::Reset { command: *command, reason: reason.clone() });
        }
    }

    // The daemon.

    fn handle_words(&mut self, now_ms: u64, words: DaemonSeen, part: Option<Box<DaemonPart>>) {
        self.extend(now_ms, words.vouched_until_ms, words.frozen_until_ms);
        let timings = &self.config.timings;
        let verdict = self.daemon.handle_words(now_ms, words, timings.stall_ms, timings.poll_ms.saturating_mul(2));
        let fast_ms = FAST_POLL_MS.min(u64::from(timings.poll_ms));
        if let Some(part) = part
            && matches!(self.phase, Phase::New | Phase::Opening(_) | Phase::Arming { .. } | Phase::Living)
        {
            if part.incarnation != self.part.incarnation {
                self.idle = None;
            }
            self.part = *part;
        }
        if now_ms < words.fast_poll_until_ms {
            self.next_cycle_ms = self.next_cycle_ms.min(self.last_cycle_ms + fast_ms);
        }
        if words.is_stop_requested || self.is_stop_asked {
            self.stop(now_ms);
        }
        if !matches!(self.phase, Phase::Arming { .. } | Phase::Living) {
            return;
        }
        #[cfg(feature = "planted")]
        let verdict = match verdict {
            DaemonVerdict::DiedHolding if self.has_mistake(crate::planted::Mistake::DeadHolderIsIdle) => {
                DaemonVerdict::Idle { generation: words.generation }
            }
            verdict => verdict,
        };
        match verdict {
            DaemonVerdict::Running => self.absent_since_ms = None,
            DaemonVerdict::Absent => self.handle_absent(now_ms),
            DaemonVerdict::Idle { generation } => {
                if self.daemon.recorded() < generation && self.idle != Some(generation) {
                    self.idle = Some(generation);
                    self.next_cycle_ms = now_ms;
                    self.say(Note::DaemonAbsent);
                }
                self.handle_absent(now_ms);
            }
            DaemonVerdict::Hung => self.condemn_for_daemon(now_ms, ResetReason::DaemonHung),
            DaemonVerdict::DiedHolding => self.condemn_for_daemon(now_ms, ResetReason::DaemonDiedHolding),
            DaemonVerdict::RestartedUnrecorded { generation } => {
                self.condemn_for_daemon(now_ms, ResetReason::DaemonRestartedUnrecorded { generation })
            }
        }
    }

    fn condemn_for_daemon(&mut self, now_ms: u64, reason: ResetReason) {
        if self.is_armed() {
            self.condemn(now_ms, ResetCommand::Reset, reason);
        } else if matches!(self.phase, Phase::Arming { .. }) {
            self.condemn_at_once(reason);
        }
    }

    fn handle_absent(&mut self, now_ms: u64) {
        let Regime::Node { absence_ms } = self.config.regime else { return };
        match self.absent_since_ms {
            None => self.absent_since_ms = Some(now_ms),
            Some(since_ms) if now_ms.saturating_sub(since_ms) > u64::from(absence_ms) => self.stop(now_ms),
            Some(_) => {}
        }
    }

    /// A clean stop, when nothing can be held: *left* stands on the disk, or no daemon ever published, or the last one's "held nothing" does.
    fn stop(&mut self, now_ms: u64) {
        let words = *self.daemon.seen();
        let state = self.completed_part.as_ref().map_or(NodeState::None, |part| part.state);
        let is_left = match state {
            NodeState::Left => self.completed_part.as_ref().is_some_and(|part| part.incarnation == self.part.incarnation),
            NodeState::None => self.part.state == NodeState::None,
            NodeState::Joining | NodeState::Member | NodeState::Condemned => false,
        };
        let is_idle = words.generation > 0 && words.ended >= words.generation && self.daemon.recorded() >= words.generation;
        let may_stop = !words.holds && (is_left || is_idle);
        match &self.phase {
            Phase::Living if may_stop => {
                self.lease_end_ms = None;
                self.outputs.push_back(Output::EndLease);
                self.outputs.push_back(Output::Disarm);
                self.phase = Phase::Stopping { is_disarmed: false, until_ms: now_ms + STOP_MS };
            }
            Phase::Arming { is_asked: true } => {}
            Phase::New | Phase::Opening(_) | Phase::Arming { .. } => self.refuse(RefuseReason::Stopped),
            Phase::Living if !self.has_refused_stop => {
                self.has_refused_stop = true;
                self.say(Note::StopRefused);
            }
            Phase::Living | Phase::Leaving | Phase::Condemned { .. } | Phase::Stopping { .. } | Phase::Ended => {}
        }
    }
}
