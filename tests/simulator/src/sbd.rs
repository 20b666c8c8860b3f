//! What: the shell of sbd in the simulated world: the lifeline machine joined to disk, feeder, watchdog and page.
//! Owns: the order in which what the lifeline says is done; the same order as in the real shell.
//! Invariants: a lease is stored only while the one before still runs; the watchdog fires at the time it was set to, whatever hangs.
//! Does not: decide anything that the lifeline decides.
//! Called by: the world.

use crate::{
    io::{Operation, Owner, Work},
    machine::{Answer, Feeder, Order, Pid, Process, Sbd, SbdState, Watchdog},
    world::{Event, World},
};
use deadbolt_disk_format::{
    Beat, ByteOffset, DaemonPart, Incarnation, Place, RecordError, SuperblockChoice, UNIT_BYTES, WatchdogKind, choose_superblock,
    read_superblocks,
    sbd::{SbdNode, mailbox_offset, node_offset},
};
use deadbolt_sbd::pill::read_mailbox;
use deadbolt_sbd_core::{
    CycleSeen, DaemonSeen, DiskFailed, FeedVerdict, Input, LegacyPills, Lifeline, LifelineConfig, MailboxSeen, NameSeen, Output, OwnPlace,
    PhaseName, Regime, ResetCommand, ResetReason, feed_verdict, reset_ms_of,
};

/// The shell's longest turn, local ms: the fast poll interval of the real one. Idle turns that change nothing are left out, so that an idle
/// cluster costs little; see `plan_sbd`.
const HASTE_MS: u64 = 2;
/// Sector of the SBD area.
const SECTOR: usize = 512;
/// How long sbd beats on without a living daemon.
const ABSENCE_MS: u32 = 60_000;
const NS_PER_MS: u64 = 1_000_000;

/// What a tag of sbd's disk work was for; the low bits of the tag are the lifeline's.
const OWN: u64 = 1 << 60;
const MAILBOX: u64 = 2 << 60;
const CYCLE: u64 = 3 << 60;
const CLEAR: u64 = 4 << 60;
const NAME: u64 = 5 << 60;
const KIND: u64 = 7 << 60;

impl World {
    /// Starts sbd on a machine that is on.
    pub(crate) fn start_sbd(&mut self, machine: usize) {
        let is_open = |world: &mut Self, device| world.is_own_device(machine, device) && world.claims_name(machine, device);
        if let Some(device) = (0..self.disks.len()).find(|device| !is_open(self, *device)) {
            self.note(&format!("{}: sbd does not start: device {device} fails, or is not this node's", self.machines[machine].name));
            return self.sbd_refused(machine);
        }
        let pid = self.new_pid();
        let mut writer = [0; 16];
        writer[..8].copy_from_slice(&self.random.number().to_le_bytes());
        writer[8..].copy_from_slice(&pid.to_le_bytes());
        let config = LifelineConfig {
            slot: self.machines[machine].slot,
            boot: self.machines[machine].boot(machine),
            writer: Incarnation(writer),
            devices: self.disks.len(),
            timings: self.timings,
            watchdog: self.watchdog_kind(),
            legacy: LegacyPills::Accept,
            regime: Regime::Node { absence_ms: ABSENCE_MS },
        };
        let lifeline = self.new_lifeline(config);
        self.machines[machine].sbd = Some(Sbd { pid, lifeline, turn_at_us: 0, is_woken: false, answer: None, reset_due: None });
        self.sbd_give(machine, Input::Start);
        self.sbd_turn(machine);
    }

    #[cfg(feature = "planted")]
    fn new_lifeline(&self, config: LifelineConfig) -> Lifeline {
        let mut lifeline = Lifeline::new(config);
        if let Some(crate::planted::Planted::Lifeline(mistake)) = self.mistake() {
            lifeline.plant(mistake);
        }
        lifeline
    }

    #[cfg(not(feature = "planted"))]
    #[allow(clippy::unused_self, reason = "the same face as with planted mistakes")]
    fn new_lifeline(&self, config: LifelineConfig) -> Lifeline {
        Lifeline::new(config)
    }

    /// As the shell opens its devices: two equal copies of the superblock, of this cluster, at its number.
    fn is_own_device(&mut self, machine: usize, device: usize) -> bool {
        let copies = read_superblocks(self.disks[device].bytes(), |offset| {
            self.look(machine, device, offset, UNIT_BYTES).map(|bytes| bytes.to_vec())
        });
        match choose_superblock(&copies) {
            SuperblockChoice::Agreed { superblock, .. } => {
                superblock.cluster == self.cluster && usize::from(superblock.device_number) == device
            }
            _ => false,
        }
    }

    /// As the shell looks for its name: written where none stands; another name is a refusal.
    fn claims_name(&mut self, machine: usize, device: usize) -> bool {
        let offset = ByteOffset(node_offset(self.machines[machine].slot, 512));
        let name = self.machines[machine].name.clone();
        let Some(found) = self.look(machine, device, offset, SECTOR) else { return false };
        match SbdNode::decode(&found) {
            Ok(node) if node.is_in_use => node.name == name,
            Ok(_) | Err(_) if self.machines[machine].paths[device].fails_writes => false,
            Ok(_) | Err(_) => {
                self.target(machine, device).write(offset, &SbdNode { is_in_use: true, name }.encode(512));
                true
            }
        }
    }

    pub(crate) fn watchdog_kind(&self) -> WatchdogKind {
        if self.options.process_watchdog == 1 { WatchdogKind::Process } else { WatchdogKind::Device }
    }

    /// One input, and everything that follows from it.
    fn sbd_give(&mut self, machine: usize, input: Input) {
        let now_ms = self.local_ms(machine);
        let Some(sbd) = self.machines[machine].sbd.as_mut() else { return };
        sbd.lifeline.handle(now_ms, input);
        while let Some(output) = self.machines[machine].sbd.as_mut().and_then(|sbd| sbd.lifeline.poll_output()) {
            self.sbd_act(machine, output);
        }
    }

    /// One turn of the shell's loop, after its completions.
    pub(crate) fn sbd_turn(&mut self, machine: usize) {
        let words = self.daemon_words(machine);
        let page = &mut self.machines[machine].page;
        let part = if std::mem::take(&mut page.is_part_new) { page.part.clone() } else { None };
        self.sbd_give(machine, Input::Turned { words, part });
        let Some(sbd) = self.machines[machine].sbd.as_mut() else { return };
        if std::mem::take(&mut sbd.is_woken) {
            self.sbd_give(machine, Input::Woken);
        }
        let Some(sbd) = self.machines[machine].sbd.as_mut() else { return };
        let input = match sbd.answer.take() {
            Some(Answer::Retired(reset_ms)) => Input::FeederRetired { reset_ms },
            Some(Answer::Disarmed) => Input::Disarmed,
            None => Input::Tick,
        };
        self.sbd_give(machine, input);
        self.reset_again(machine);
        self.plan_sbd(machine);
    }

    fn daemon_words(&mut self, machine: usize) -> DaemonSeen {
        let now_ms = self.local_ms(machine);
        let place = &mut self.machines[machine];
        let is_stopped = place.is_stopped(Process::Daemon);
        if let Some(daemon) = &place.daemon
            && !is_stopped
            && !matches!(daemon.stage, crate::machine::Stage::Zombie { .. })
        {
            // Its loop advances the counter at least every 50 ms.
            place.page.turn = now_ms / 50 + 1;
        }
        let page = &place.page;
        DaemonSeen {
            turn: page.turn,
            holds: page.holds,
            fast_poll_until_ms: page.fast_until_ms,
            is_stop_requested: page.is_stop_requested,
            generation: page.generation,
            ended: page.ended,
            supervisor_alive_ms: now_ms,
            vouched_until_ms: page.vouched_until_ms,
            frozen_until_ms: page.frozen_until_ms,
        }
    }

    /// Plans the next turn: at the lifeline's deadline, and often enough to see what the daemon leaves in the page.
    fn plan_sbd(&mut self, machine: usize) {
        let now_us = self.queue.now_us();
        let now_ms = self.local_ms(machine);
        let turn_ms = u64::from(self.timings.poll_ms);
        let place = &mut self.machines[machine];
        let clock = place.clock;
        let Some(sbd) = place.sbd.as_mut() else { return };
        let is_hasty = matches!(sbd.lifeline.status().phase, PhaseName::Condemned | PhaseName::Stopping) && sbd.reset_due.is_none();
        let turn_ms = if is_hasty { HASTE_MS } else { turn_ms };
        let deadline_ms = sbd.lifeline.next_deadline().unwrap_or(u64::MAX).clamp(now_ms + 1, now_ms + turn_ms);
        sbd.turn_at_us = clock.when(now_us, deadline_ms);
        let (at_us, pid) = (sbd.turn_at_us, sbd.pid);
        self.queue.at(at_us, Event::SbdTurn { machine, pid });
    }

    /// A planned turn has come.
    pub(crate) fn sbd_planned(&mut self, machine: usize, pid: Pid) {
        let now_us = self.queue.now_us();
        if self.machines[machine].sbd.as_ref().is_some_and(|sbd| sbd.pid == pid && now_us >= sbd.turn_at_us) {
            self.sbd_turn(machine);
        }
    }

    /// The bell between daemon and sbd.
    pub(crate) fn wake_sbd(&mut self, machine: usize) {
        let now_us = self.queue.now_us();
        if let Some(sbd) = self.machines[machine].sbd.as_mut() {
            sbd.is_woken = true;
            sbd.turn_at_us = now_us;
            let pid = sbd.pid;
            self.queue.after(5, Event::SbdTurn { machine, pid });
        }
    }

    fn sbd_submit(&mut self, machine: usize, device: usize, tag: u64, work: Work) {
        if let Some(sbd) = &self.machines[machine].sbd {
            let owner = Owner::Sbd(sbd.pid);
            self.submit(machine, owner, device, tag, work);
        }
    }

    /// sbd's disk work came back.
    pub(crate) fn sbd_completion(&mut self, machine: usize, pid: Pid, operation: Operation) {
        if self.machines[machine].sbd.as_ref().is_none_or(|sbd| sbd.pid != pid) {
            return;
        }
        if self.machines[machine].is_stopped(Process::Sbd) {
            self.defer(machine, Process::Sbd, Event::SbdDisk(Box::new(operation)));
            return;
        }
        let bytes = match operation.result {
            Ok(crate::io::Answer::Bytes(bytes)) => Ok(bytes),
            Ok(crate::io::Answer::Cell(_)) | Err(()) => Err(DiskFailed),
        };
        let (tag, device) = (operation.tag & !KIND, operation.device);
        let input = match operation.tag & KIND {
            OWN => Input::OwnRead { tag, result: bytes.map(|bytes| self.own_of(machine, device, &bytes)) },
            MAILBOX => Input::MailboxRead { tag, result: bytes.and_then(|bytes| self.mailbox_of(&bytes)) },
            CYCLE => Input::CycleDone { tag, result: bytes.and_then(|bytes| self.cycle_of(machine, &bytes)) },
            CLEAR => Input::ClearDone { tag, result: bytes.map(drop) },
            _ => Input::NameDone { tag },
        };
        self.sbd_give(machine, input);
        self.sbd_turn(machine);
    }

    fn place(&self, machine: usize, device: usize) -> Place {
        let slot = self.machines[machine].slot;
        Place { cluster: self.cluster, offset: self.disks[device].layout().beat(slot), slot }
    }

    fn own_of(&self, machine: usize, device: usize, bytes: &[u8]) -> OwnPlace {
        match Beat::decode(bytes, &self.place(machine, device)) {
            Ok(beat) => OwnPlace::Beat(Box::new(beat)),
            Err(RecordError::NotARecord { is_all_zero: true, .. }) => OwnPlace::NeverWritten,
            Err(_) => OwnPlace::Unreadable,
        }
    }

    fn mailbox_of(&self, bytes: &[u8]) -> Result<MailboxSeen, DiskFailed> {
        read_mailbox(bytes, Some(&self.pill_key)).map_err(|_| DiskFailed)
    }

    fn cycle_of(&self, machine: usize, bytes: &[u8]) -> Result<CycleSeen, DiskFailed> {
        let (node, mailbox) = bytes.split_at(bytes.len().saturating_sub(SECTOR));
        let name = match SbdNode::decode(node) {
            Ok(node) if !node.is_in_use => NameSeen::Empty,
            Ok(node) if node.name == self.machines[machine].name => NameSeen::Own,
            Ok(node) => NameSeen::Other { name: node.name },
            Err(_) => NameSeen::Damaged,
        };
        Ok(CycleSeen { mailbox: self.mailbox_of(mailbox)?, name })
    }

    fn sbd_act(&mut self, machine: usize, output: Output) {
        let slot = self.machines[machine].slot;
        let (mailbox, node) = (ByteOffset(mailbox_offset(slot, 512)), ByteOffset(node_offset(slot, 512)));
        match output {
            Output::Cycle { tag, device, beat } => {
                let place = self.place(machine, device);
                let mut beat = *beat;
                beat.wall_ms = self.wall_ms(machine);
                let data = beat.encode(&place).to_vec();
                self.sbd_submit(machine, device, tag | CYCLE, Work::WriteThenRead(place.offset, data, node, 2 * SECTOR));
            }
            Output::ReadOwn { tag, device } => {
                let offset = self.place(machine, device).offset;
                self.sbd_submit(machine, device, tag | OWN, Work::Read(offset, UNIT_BYTES));
            }
            Output::ReadMailbox { tag, device } => self.sbd_submit(machine, device, tag | MAILBOX, Work::Read(mailbox, SECTOR)),
            Output::ClearMailbox { tag, device } => {
                self.sbd_submit(machine, device, tag | CLEAR, Work::Write(mailbox, vec![0; SECTOR]));
            }
            Output::RewriteName { tag, device } => {
                let name = SbdNode { is_in_use: true, name: self.machines[machine].name.clone() };
                self.sbd_submit(machine, device, tag | NAME, Work::Write(node, name.encode(512)));
            }
            Output::Arm => self.arm(machine),
            Output::PublishLease { lease_end_ms, own_end_ms, before_ms, number, beat, .. } => {
                self.publish_lease(machine, (lease_end_ms, own_end_ms), before_ms, number, beat);
            }
            Output::EndLease => {
                let is_condemned =
                    self.machines[machine].sbd.as_ref().is_some_and(|sbd| sbd.lifeline.status().phase == PhaseName::Condemned);
                self.machines[machine].page.lease_end_ms = 0;
                if is_condemned {
                    self.machines[machine].page.state = SbdState::Condemned;
                }
                self.ring_daemon(machine);
            }
            Output::PublishIdle { generation } => self.machines[machine].page.idle_generation = generation,
            // Of drop-in watchers.
            Output::Flush { .. } | Output::SetWatchdog { .. } => {}
            Output::RetireFeeder { .. } => self.order_feeder(machine, Order::Retire),
            Output::PublishAcknowledged { .. } => {}
            Output::Reset { command, reason } => {
                if matches!(reason, ResetReason::LeaseEnded { .. }) {
                    self.check_outage(machine);
                }
                self.note(&format!("{}: sbd resets: {reason:?}", self.machines[machine].name));
                self.begin_reset(machine, command);
            }
            Output::Disarm => self.order_feeder(machine, Order::Disarm),
            Output::Exit { is_recorded } => {
                self.note(&format!("{}: sbd has stopped, recorded: {is_recorded}", self.machines[machine].name));
                self.machines[machine].page.state = SbdState::Stopped;
                self.machines[machine].page.lease_end_ms = 0;
                self.machines[machine].sbd = None;
                self.sbd_stopped(machine);
            }
            Output::Refuse(reason) => {
                self.note(&format!("{}: sbd refuses to start: {reason:?}", self.machines[machine].name));
                self.machines[machine].sbd = None;
                self.sbd_refused(machine);
            }
            Output::Say(_) => {}
        }
    }

    fn arm(&mut self, machine: usize) {
        let timings = self.timings;
        let spread_ms = u64::from(timings.earliness_ms) + u64::from(timings.lateness_ms);
        let late_ms = i64::try_from(self.random.below(spread_ms + 1)).unwrap_or(0) - i64::from(timings.earliness_ms);
        let is_beyond = self.random.chance(self.options.unfair_watchdog);
        let late_ms = if is_beyond { late_ms.saturating_add(i64::from(timings.expiry_ms)) } else { late_ms };
        let shortest_ms = self.driver.least_ms;
        let now_ms = self.local_ms(machine);
        let pid = self.new_pid();
        let granted_ms = timings.watchdog_ms;
        let reset_ms = reset_ms_of(granted_ms, timings.lateness_ms, timings.drift_ppm);
        let place = &mut self.machines[machine];
        place.watchdog = Some(Watchdog { fires_ms: now_ms + u64::from(granted_ms), granted_ms, shortest_ms, late_ms, look: 0 });
        place.feeder = Some(Feeder { pid, lease_end_ms: 0, order: Order::Feed, reset_ms, is_checked: false });
        self.watch_watchdog(machine);
        self.queue.after(1, Event::FeederTurn { machine, pid });
        // As the shell does: the machine has already handled what led to it.
        if let Some(sbd) = self.machines[machine].sbd.as_mut() {
            sbd.lifeline.handle(now_ms, Input::Armed { reset_ms });
        }
    }

    fn publish_lease(&mut self, machine: usize, (lease_end_ms, own_end_ms): (u64, u64), before_ms: Option<u64>, number: u64, beat: u64) {
        let now_ms = self.local_ms(machine);
        if before_ms.is_some_and(|before_ms| now_ms >= before_ms) {
            self.machines[machine].page.lease_end_ms = 0;
            self.begin_reset(machine, ResetCommand::Reset);
            return;
        }
        let place = &mut self.machines[machine];
        if let Some(feeder) = &mut place.feeder {
            feeder.lease_end_ms = lease_end_ms;
        }
        place.page.beat = beat;
        place.page.published = number;
        place.page.lease_end_ms = lease_end_ms;
        let is_own = std::mem::replace(&mut place.page.own_end_ms, own_end_ms) != own_end_ms;
        if before_ms.is_none() {
            place.page.state = SbdState::Alive;
        }
        self.facts.leased(machine, self.machines[machine].boot_number, lease_end_ms);
        if is_own {
            self.lease_renewed(machine);
        }
        self.ring_daemon(machine);
    }

    fn begin_reset(&mut self, machine: usize, command: ResetCommand) {
        let now_ms = self.local_ms(machine);
        let is_drawn = self.random.chance(self.options.reset_fails);
        let place = &mut self.machines[machine];
        // Where no watchdog is armed yet nothing else would ever end the machine.
        let fails = is_drawn && place.watchdog.is_some();
        if let Some(feeder) = &mut place.feeder {
            feeder.lease_end_ms = 0;
        }
        place.page.lease_end_ms = 0;
        place.page.state = SbdState::Condemned;
        if let Some(sbd) = &mut place.sbd {
            sbd.reset_due = Some((now_ms + 200, command));
        }
        if !fails {
            let boot = self.machines[machine].boot_number;
            self.queue.after(1, Event::MachineEnds { machine, boot });
        }
        self.ring_daemon(machine);
    }

    fn reset_again(&mut self, machine: usize) {
        let now_ms = self.local_ms(machine);
        let due = self.machines[machine].sbd.as_ref().and_then(|sbd| sbd.reset_due);
        if let Some((at_ms, command)) = due
            && now_ms >= at_ms
        {
            self.begin_reset(machine, command);
        }
    }

    // The feeder and the watchdog.

    fn order_feeder(&mut self, machine: usize, order: Order) {
        if let Some(feeder) = &mut self.machines[machine].feeder {
            feeder.order = order;
            let pid = feeder.pid;
            self.queue.after(20, Event::FeederTurn { machine, pid });
        }
    }

    /// One turn of the feeding thread; it may be stopped between its check and its feed.
    pub(crate) fn feeder_turn(&mut self, machine: usize, pid: Pid) {
        let now_ms = self.local_ms(machine);
        #[cfg(feature = "planted")]
        let has_no_margin = self.has_shell_mistake(crate::planted::Shell::FeedToTheEnd);
        let place = &mut self.machines[machine];
        let Some(feeder) = place.feeder.as_mut().filter(|feeder| feeder.pid == pid) else { return };
        let margin_ms = feeder.reset_ms;
        #[cfg(feature = "planted")]
        let margin_ms = if has_no_margin { 0 } else { margin_ms };
        let is_leased =
            feed_verdict(now_ms * NS_PER_MS, feeder.lease_end_ms * NS_PER_MS, margin_ms) == FeedVerdict::Feed || feeder.is_checked;
        let Some(watchdog) = place.watchdog.as_mut() else { return };
        let full_ms = feeder.reset_ms;
        let (late_ms, drift_ppm) = (self.timings.lateness_ms, self.timings.drift_ppm);
        feeder.is_checked = false;
        match feeder.order {
            Order::Retire => {
                let mut reset_ms = full_ms;
                if is_leased {
                    watchdog.granted_ms = watchdog.granted_ms.min(watchdog.shortest_ms);
                    watchdog.fires_ms = now_ms + u64::from(watchdog.granted_ms);
                    reset_ms = reset_ms_of(watchdog.granted_ms, late_ms, drift_ppm).min(full_ms);
                }
                place.feeder = None;
                self.watch_watchdog(machine);
                self.feeder_answers(machine, Answer::Retired(reset_ms));
                return;
            }
            Order::Disarm => {
                place.watchdog = None;
                place.feeder = None;
                self.check_disarm(machine);
                self.feeder_answers(machine, Answer::Disarmed);
                return;
            }
            Order::Feed if is_leased => watchdog.fires_ms = now_ms + u64::from(watchdog.granted_ms),
            Order::Feed => {}
        }
        let span = self.machines[machine].clock.span_us(u64::from(self.timings.feed_ms));
        self.queue.after(span, Event::FeederTurn { machine, pid });
    }

    /// The feeder is stopped, it may be after its check: then it feeds when it continues, whatever the lease says by then.
    pub(crate) fn stop_feeder(&mut self, machine: usize) {
        let now_ms = self.local_ms(machine);
        if let Some(feeder) = &mut self.machines[machine].feeder {
            let verdict = feed_verdict(now_ms * NS_PER_MS, feeder.lease_end_ms * NS_PER_MS, feeder.reset_ms);
            feeder.is_checked = verdict == FeedVerdict::Feed;
        }
    }

    fn feeder_answers(&mut self, machine: usize, answer: Answer) {
        if let Some(sbd) = &mut self.machines[machine].sbd {
            sbd.answer = Some(answer);
        }
    }

    /// Plans a look at the watchdog.
    pub(crate) fn watch_watchdog(&mut self, machine: usize) {
        let now_us = self.queue.now_us();
        let place = &mut self.machines[machine];
        let clock = place.clock;
        let Some(watchdog) = &mut place.watchdog else { return };
        watchdog.look += 1;
        let at_us = clock.when(now_us, watchdog.due_ms());
        let (look, boot) = (watchdog.look, place.boot_number);
        self.queue.at(at_us, Event::Watchdog { machine, boot, look });
    }

    /// Does it fire?
    pub(crate) fn look_at_watchdog(&mut self, machine: usize, boot: u64, look: u64) {
        let now_ms = self.local_ms(machine);
        let place = &self.machines[machine];
        let Some(watchdog) = place.watchdog.as_ref().filter(|watchdog| place.boot_number == boot && watchdog.look == look) else { return };
        if now_ms >= watchdog.due_ms() {
            self.note(&format!("{}: the watchdog fires", place.name));
            self.check_outage(machine);
            self.end_machine(machine);
        } else {
            self.watch_watchdog(machine);
        }
    }

    /// Leaves a part for sbd.
    pub(crate) fn publish_part(&mut self, machine: usize, part: DaemonPart) {
        let page = &mut self.machines[machine].page;
        page.part = Some(Box::new(part));
        page.is_part_new = true;
    }
}
