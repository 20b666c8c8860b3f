//! What: the shell of `sbd watch` in the simulated world: a trial life, the watchdog, the life; its feeder, its servant, its sampler.
//! Owns: the order in which what the lifeline says is done; the same as in sbd/src/watch, sbd/src/life.rs and sbd/src/feeder.rs.
//! Invariants: the watchdog is opened behind a whole first cycle; a lease is stored only while the one before still runs.
//! Does not: decide anything that the lifeline decides.
//! Called by: the world.

use super::{
    io::{Operation, Owner},
    world::{Event, Machine, Part, Pid, World, slot_of},
};
use crate::{
    disk::SECTOR_BYTES,
    io::Work,
    machine::{Answer, Feeder, Order, Watchdog},
};
use deadbolt_disk_format::{
    Beat, ByteOffset, Incarnation, SlotIndex, Timings, WatchdogKind,
    node_record::{NodeRecord, decode_node_record, encode_node_sector, node_record_place},
    sbd::{SbdNode, mailbox_offset, node_offset},
};
use deadbolt_sbd::{
    pill::{read_mailbox, signed_mailbox},
    watch::{SbdTimes, timings, with_granted},
};
use deadbolt_sbd_core::{
    BeatVersion, ClusterSay, ClusterSeen, CycleSeen, DiskFailed, FeedVerdict, HealthWatch, Input, LegacyPills, Lifeline, LifelineConfig,
    MailboxSeen, NameSeen, Opinion, Output, OwnPlace, PhaseName, Regime, Report, ResetCommand, Servant, Standing, StartMode, WatchRules,
    feed_verdict, reset_ms_of, watch_quorum,
};

const HASTE_MS: u64 = 2;
const TURN_MS: u64 = 250;
const RESET_AGAIN_MS: u64 = 200;
const NS_PER_MS: u64 = 1_000_000;
/// `-I`, as stock has it.
pub(crate) const IO_S: u32 = 3;
/// How often a servant asks, and the sampler reads.
const INTERVAL_MS: u64 = 1000;
/// How early a watchdog may fire, ms: as measured (docs/timing.md, softdog). One that fires at once leaves no time for an answer.
const EARLY_MS: u64 = 900;
/// How long all devices are waited for once enough are there, and how often they are tried.
const GRACE_MS: u64 = 10_000;
const AGAIN_US: u64 = 500_000;

/// What a tag of disk work was for; the low bits are the lifeline's.
const OWN: u64 = 1 << 60;
const MAILBOX: u64 = 2 << 60;
const CYCLE: u64 = 3 << 60;
const CLEAR: u64 = 4 << 60;
const SAMPLE: u64 = 5 << 60;
const KIND: u64 = 7 << 60;

/// A watcher's process with its life.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) pid: Pid,
    pub(crate) life: Lifeline,
    is_trial: bool,
    writer: Incarnation,
    /// The devices that counted at its start.
    pub(crate) devices: Vec<usize>,
    pub(crate) timings: Timings,
    first_cycle_ms: Option<u64>,
    turn_at_us: u64,
    answer: Option<Answer>,
    reset_due: Option<(u64, ResetCommand)>,
    health: Option<HealthWatch>,
    sample_due_ms: u64,
    sampling: Vec<bool>,
}

impl Watcher {
    /// It lives, and its feeder feeds.
    pub(crate) fn is_fed(&self, now_ms: u64) -> bool {
        let status = self.life.status();
        let margin_ms = 2 * u64::from(self.timings.lease_ms - self.timings.stall_ms);
        status.phase == PhaseName::Living && status.lease_end_ms.is_some_and(|end_ms| now_ms + margin_ms / 2 < end_ms)
    }

    /// W.
    pub(crate) fn expiry_ms(&self) -> u32 {
        self.timings.expiry_ms
    }
}

/// What the trial process found out.
#[derive(Clone, Debug)]
pub(crate) struct Tried {
    pid: Pid,
    writer: Incarnation,
    devices: Vec<usize>,
    beat: u64,
    since_ms: u64,
    unread: u32,
}

/// What stands in a node's sector on a device.
pub(crate) fn decode_place(device: usize, slot: SlotIndex, sector: &[u8]) -> OwnPlace {
    let uuid = [u8::try_from(device).unwrap_or(0) + 1; 16];
    match decode_node_record(sector, &node_record_place(uuid, slot, 512)) {
        NodeRecord::Beat(beat) => OwnPlace::Beat(beat),
        NodeRecord::Absent => OwnPlace::NeverWritten,
        NodeRecord::Damaged(_) => OwnPlace::Unreadable,
    }
}

impl Machine {
    fn kind(&self) -> WatchdogKind {
        if self.setup.has_watchdog { WatchdogKind::Device } else { WatchdogKind::None }
    }
}

impl World {
    pub(super) fn base_timings(&self) -> Timings {
        timings(IO_S, SbdTimes { watchdog_s: self.setup.times[0], loop_s: self.setup.times[2] })
    }

    /// The longest time from a watcher's last cycle to its end: the last feed, and then the watchdog, of which one before it may have left
    /// more than the present one knows of.
    pub(crate) fn needed_ms(&self, machine: usize) -> u32 {
        let base = self.base_timings();
        let timings = with_granted(base, self.machines[machine].setup.granted_ms(base.watchdog_ms));
        timings.lease_ms.saturating_sub(base.reset_ms)
    }

    // The start.

    pub(crate) fn start_watcher(&mut self, machine: usize) {
        let now_ms = self.local_ms(machine);
        let place = &mut self.machines[machine];
        if place.watcher.is_some() || place.stock.is_some() || place.tried.is_some() {
            return;
        }
        if place.is_stock {
            return self.start_stock(machine);
        }
        let devices: Vec<usize> = (0..place.paths.len()).filter(|device| place.paths[*device].is_open()).collect();
        let needed = watch_quorum(u32::try_from(place.paths.len()).unwrap_or(u32::MAX));
        let is_enough = u32::try_from(devices.len()).unwrap_or(0) >= needed;
        let began_ms = *place.looking_ms.get_or_insert(now_ms);
        if devices.len() < place.paths.len() && (!is_enough || now_ms < began_ms + GRACE_MS) {
            return self.start_later(machine, AGAIN_US);
        }
        place.looking_ms = None;
        let mut writer = [0; 16];
        let pid = self.new_pid();
        writer[..8].copy_from_slice(&self.random.number().to_le_bytes());
        writer[8..].copy_from_slice(&pid.to_le_bytes());
        let timings = self.base_timings();
        self.begin_life(machine, pid, (Incarnation(writer), devices), timings, None);
        let limit_ms = u64::from(timings.watchdog_ms + timings.stall_ms).next_multiple_of(1000);
        self.at_local(machine, now_ms + limit_ms, Event::TrialOver { machine, pid });
    }

    fn begin_life(
        &mut self,
        machine: usize,
        pid: Pid,
        (writer, devices): (Incarnation, Vec<usize>),
        timings: Timings,
        tried: Option<&Tried>,
    ) {
        let place = &self.machines[machine];
        let rules = WatchRules {
            devices: u32::try_from(place.paths.len()).unwrap_or(u32::MAX),
            cluster: place.setup.say,
            start: StartMode::Always,
            crash_reset_ms: 0,
        };
        let config = LifelineConfig {
            slot: slot_of(machine),
            boot: self.boot_id(machine),
            writer,
            devices: devices.len(),
            timings,
            watchdog: place.kind(),
            legacy: LegacyPills::Accept,
            regime: Regime::Watch(rules),
        };
        let asks = tried.is_some() && place.setup.say != ClusterSay::None;
        let watcher = Watcher {
            pid,
            life: self.new_lifeline(config),
            is_trial: tried.is_none(),
            writer,
            sampling: vec![false; devices.len()],
            devices,
            timings,
            first_cycle_ms: None,
            turn_at_us: 0,
            answer: None,
            reset_due: None,
            health: asks.then(|| HealthWatch::new(Servant::Cluster, timings.stall_ms)),
            sample_due_ms: 0,
        };
        self.machines[machine].watcher = Some(watcher);
        self.give(machine, tried.map_or(Input::Start, |tried| Input::Resume { beat: tried.beat, unread: tried.unread }));
        if asks {
            self.queue.after(1000, Event::Ask { machine, pid });
        }
        self.turn(machine);
    }

    #[cfg(feature = "planted")]
    fn new_lifeline(&self, config: LifelineConfig) -> Lifeline {
        let mut life = Lifeline::new(config);
        if let Some(crate::planted::Planted::Lifeline(mistake)) = self.mistake {
            life.plant(mistake);
        }
        life
    }

    #[cfg(not(feature = "planted"))]
    #[allow(clippy::unused_self, reason = "the same face as with planted mistakes")]
    fn new_lifeline(&self, config: LifelineConfig) -> Lifeline {
        Lifeline::new(config)
    }

    /// The trial has not been done in time, or was refused: the service is started again.
    pub(crate) fn end_trial(&mut self, machine: usize, pid: Pid) {
        if self.machines[machine].watcher.as_ref().is_some_and(|watcher| watcher.pid == pid && watcher.is_trial) {
            self.machines[machine].watcher = None;
            self.restart_later(machine);
        }
    }

    pub(crate) fn restart_later(&mut self, machine: usize) {
        let span = self.random.range(500_000, 5_000_000);
        self.start_later(machine, span);
    }

    /// Behind the trial: the watchdog is opened, and the life goes on.
    pub(crate) fn go_on(&mut self, machine: usize, pid: Pid) {
        let Some(tried) = self.machines[machine].tried.take_if(|tried| tried.pid == pid) else { return };
        let (now_ms, timings) = (self.local_ms(machine), self.base_timings());
        if now_ms.saturating_sub(tried.since_ms) >= u64::from(timings.stall_ms) {
            return self.restart_later(machine);
        }
        let granted_ms = self.open_watchdog(machine, timings);
        let timings = with_granted(timings, granted_ms);
        self.check_opened(machine, tried.since_ms + u64::from(timings.lease_ms));
        let pid = self.new_pid();
        self.begin_life(machine, pid, (tried.writer, tried.devices.clone()), timings, Some(&tried));
    }

    fn open_watchdog(&mut self, machine: usize, timings: Timings) -> u32 {
        let now_ms = self.local_ms(machine);
        let late_ms = i64::try_from(self.random.below(u64::from(timings.lateness_ms) + EARLY_MS + 1)).unwrap_or(0);
        let late_ms = late_ms - i64::try_from(EARLY_MS).unwrap_or(0);
        let place = &mut self.machines[machine];
        if !place.setup.has_watchdog {
            return timings.watchdog_ms;
        }
        let granted_ms = place.setup.granted_ms(timings.watchdog_ms);
        let look = place.watchdog.as_ref().map_or(0, |watchdog| watchdog.look);
        let (fires_ms, shortest_ms) = (now_ms + u64::from(granted_ms), place.setup.granted_ms(1000));
        place.watchdog = Some(Watchdog { fires_ms, granted_ms, shortest_ms, late_ms, look });
        self.check_fed(machine);
        self.watch_watchdog(machine);
        granted_ms
    }

    // Turns.

    fn give(&mut self, machine: usize, input: Input) {
        let now_ms = self.local_ms(machine);
        let Some(watcher) = &mut self.machines[machine].watcher else { return };
        let pid = watcher.pid;
        watcher.life.handle(now_ms, input);
        while let Some(watcher) = self.machines[machine].watcher.as_mut().filter(|watcher| watcher.pid == pid)
            && let Some(output) = watcher.life.poll_output()
        {
            self.act(machine, output);
        }
    }

    pub(crate) fn watcher_planned(&mut self, machine: usize, pid: Pid) {
        let now_us = self.queue.now_us();
        if self.machines[machine].watcher.as_ref().is_some_and(|watcher| watcher.pid == pid && now_us >= watcher.turn_at_us) {
            self.turn(machine);
        }
    }

    fn turn(&mut self, machine: usize) {
        let now_ms = self.local_ms(machine);
        let Some(watcher) = &mut self.machines[machine].watcher else { return };
        if let Some(seen) = watcher.health.as_ref().map(|health| seen_of(health, now_ms)) {
            self.give(machine, Input::ClusterSeen(seen));
        }
        self.sample(machine);
        let answer = self.machines[machine].watcher.as_mut().and_then(|watcher| watcher.answer.take());
        self.give(
            machine,
            match answer {
                Some(Answer::Retired(reset_ms)) => Input::FeederRetired { reset_ms },
                Some(Answer::Disarmed) => Input::Disarmed,
                None => Input::Tick,
            },
        );
        let due = self.machines[machine].watcher.as_ref().and_then(|watcher| watcher.reset_due);
        if let Some((_, command)) = due.filter(|(at_ms, _)| now_ms >= *at_ms) {
            self.begin_reset(machine, command);
        }
        self.plan_turn(machine);
    }

    fn plan_turn(&mut self, machine: usize) {
        let (now_us, now_ms) = (self.queue.now_us(), self.local_ms(machine));
        let place = &mut self.machines[machine];
        let Some(watcher) = &mut place.watcher else { return };
        let is_hasty = matches!(watcher.life.status().phase, PhaseName::Condemned | PhaseName::Stopping) && watcher.reset_due.is_none();
        let turn_ms = if is_hasty { HASTE_MS } else { TURN_MS.min(u64::from(watcher.timings.poll_ms)) };
        let deadline_ms = watcher.life.next_deadline().unwrap_or(u64::MAX).clamp(now_ms + 1, now_ms + turn_ms);
        watcher.turn_at_us = place.clock.when(now_us, deadline_ms);
        let (at_us, pid) = (watcher.turn_at_us, watcher.pid);
        self.queue.at(at_us, Event::Turn { machine, pid });
    }

    /// Somebody asks for a clean stop; services have ended before.
    pub(crate) fn stop_watcher(&mut self, machine: usize) {
        self.check_idle(machine);
        if self.machines[machine].stock.is_some() {
            return self.stop_stock(machine);
        }
        self.give(machine, Input::StopAsked);
        self.turn(machine);
    }

    // Disk work.

    fn work(&mut self, machine: usize, device: usize, tag: u64, work: Work) {
        let Some(watcher) = &self.machines[machine].watcher else { return };
        let (owner, device) = (Owner::Watcher(watcher.pid), watcher.devices[device]);
        self.submit(machine, owner, device, tag, work);
    }

    pub(crate) fn watcher_answer(&mut self, pid: Pid, operation: Operation) {
        let machine = operation.machine;
        // Behind a pause it is there when the process continues.
        if self.machines[machine].paused.contains_key(&Part::Watcher) {
            return self.queue.after(1, Event::Answered { machine, pid, operation: Box::new(operation) });
        }
        self.watcher_takes(machine, pid, operation);
    }

    pub(crate) fn watcher_takes(&mut self, machine: usize, pid: Pid, operation: Operation) {
        if self.machines[machine].stock.as_ref().is_some_and(|stock| stock.pid == pid) {
            return self.stock_takes(machine, operation.device, operation.tag, &operation.answer);
        }
        let Some(watcher) = self.machines[machine].watcher.as_mut().filter(|watcher| watcher.pid == pid) else { return };
        let Some(device) = watcher.devices.iter().position(|device| *device == operation.device) else { return };
        let (tag, bytes) = (operation.tag & !KIND, operation.answer.map_err(|()| DiskFailed));
        let input = match operation.tag & KIND {
            SAMPLE => {
                watcher.sampling[device] = false;
                self.take_sample(machine, operation.device, bytes.ok().as_deref());
                return self.turn(machine);
            }
            OWN => Input::OwnRead { tag, result: bytes.map(|bytes| decode_place(operation.device, slot_of(machine), &bytes)) },
            MAILBOX => Input::MailboxRead { tag, result: bytes.and_then(|bytes| mailbox_of(&bytes)) },
            CYCLE => Input::CycleDone { tag, result: bytes.and_then(|bytes| cycle_of(&bytes)) },
            CLEAR => Input::ClearDone { tag, result: bytes.map(drop) },
            _ => return,
        };
        self.give(machine, input);
        self.turn(machine);
    }

    fn write_beat(&mut self, machine: usize, tag: u64, device: usize, beat: &Beat) {
        let (now_ms, slot) = (self.local_ms(machine), slot_of(machine));
        let name = self.machines[machine].name.clone();
        let Some(watcher) = &mut self.machines[machine].watcher else { return };
        watcher.first_cycle_ms.get_or_insert(now_ms);
        let uuid = [u8::try_from(watcher.devices[device]).unwrap_or(0) + 1; 16];
        let sector = encode_node_sector(&SbdNode { is_in_use: true, name }, beat, &node_record_place(uuid, slot, 512), 512);
        let (node, mailbox) = (ByteOffset(node_offset(slot, 512)), ByteOffset(mailbox_offset(slot, 512)));
        self.work(machine, device, tag | CYCLE, Work::WriteThenRead(node, sector, mailbox, SECTOR_BYTES));
    }

    fn sample(&mut self, machine: usize) {
        let now_ms = self.local_ms(machine);
        let count = self.machines.len();
        let Some(watcher) = self.machines[machine].watcher.as_mut().filter(|watcher| !watcher.is_trial) else { return };
        if now_ms < watcher.sample_due_ms {
            return;
        }
        watcher.sample_due_ms = now_ms + INTERVAL_MS;
        let free: Vec<usize> = (0..watcher.devices.len()).filter(|device| !watcher.sampling[*device]).collect();
        for device in free {
            if let Some(watcher) = &mut self.machines[machine].watcher {
                watcher.sampling[device] = true;
            }
            let bytes = 2 * count * SECTOR_BYTES;
            self.work(machine, device, SAMPLE, Work::Read(ByteOffset(node_offset(SlotIndex(0), 512)), bytes));
        }
    }

    fn take_sample(&mut self, machine: usize, device: usize, bytes: Option<&[u8]>) {
        let now_ms = self.local_ms(machine);
        for (slot, sectors) in bytes.unwrap_or_default().chunks_exact(2 * SECTOR_BYTES).enumerate() {
            let slot = slot_of(slot);
            if let OwnPlace::Beat(beat) = decode_place(device, slot, &sectors[..SECTOR_BYTES]) {
                let (seen, version) = (&mut self.machines[machine].seen, BeatVersion::of(&beat));
                if seen.get(&(device, slot)).is_none_or(|(known, _)| *known != version) {
                    seen.insert((device, slot), (version, now_ms));
                }
            }
        }
    }

    // The servant.

    pub(crate) fn ask_servant(&mut self, machine: usize, pid: Pid) {
        if self.machines[machine].watcher.as_ref().is_none_or(|watcher| watcher.pid != pid) {
            return;
        }
        let (now_us, as_of_ms) = (self.queue.now_us(), self.local_ms(machine));
        let standing = self.machines[machine].standing;
        let otherwise = if standing.is_lost && now_us >= standing.known_us { Opinion::Unhealthy } else { Opinion::Healthy };
        let opinion = standing.says.unwrap_or(otherwise);
        let span = self.random.below(200_000);
        self.queue.after(span, Event::Report { machine, pid, opinion, as_of_ms });
        self.at_local(machine, as_of_ms + INTERVAL_MS, Event::Ask { machine, pid });
    }

    pub(crate) fn take_report(&mut self, machine: usize, pid: Pid, opinion: Opinion, as_of_ms: u64) {
        let now_ms = self.local_ms(machine);
        let notice_ms = self.machines[machine].setup.notice_ms;
        let Some(watcher) = self.machines[machine].watcher.as_mut().filter(|watcher| watcher.pid == pid) else { return };
        if let Some(health) = &mut watcher.health {
            health.handle_report(now_ms, &Report { opinion, as_of_ms, notice_ms });
        }
        self.turn(machine);
    }

    // What the lifeline says.

    fn act(&mut self, machine: usize, output: Output) {
        let slot = slot_of(machine);
        let (mailbox, node) = (ByteOffset(mailbox_offset(slot, 512)), ByteOffset(node_offset(slot, 512)));
        match output {
            Output::Cycle { tag, device, beat } => self.write_beat(machine, tag, device, &beat),
            Output::ReadOwn { tag, device } => self.work(machine, device, tag | OWN, Work::Read(node, SECTOR_BYTES)),
            Output::ReadMailbox { tag, device } => self.work(machine, device, tag | MAILBOX, Work::Read(mailbox, SECTOR_BYTES)),
            Output::ClearMailbox { tag, device } => {
                let empty = signed_mailbox(self.boot_id(machine), 512);
                self.work(machine, device, tag | CLEAR, Work::Write(mailbox, empty));
            }
            Output::Arm => self.arm(machine),
            Output::PublishLease { lease_end_ms, before_ms, .. } => self.publish_lease(machine, lease_end_ms, before_ms),
            Output::RetireFeeder { .. } => self.order_feeder(machine, Order::Retire),
            Output::Disarm => self.order_feeder(machine, Order::Disarm),
            Output::Reset { command, reason } => {
                let text = format!("{}: sbd resets: {reason:?}", self.machines[machine].name);
                self.note(&text);
                self.begin_reset(machine, command);
            }
            Output::Exit { is_recorded } => {
                let text = format!("{}: sbd has stopped, recorded: {is_recorded}", self.machines[machine].name);
                self.note(&text);
                self.end_processes(machine);
                self.restart_stopped(machine);
            }
            Output::Refuse(reason) => {
                let text = format!("{}: sbd does not start: {reason:?}", self.machines[machine].name);
                self.note(&text);
                self.machines[machine].watcher = None;
                self.restart_later(machine);
            }
            Output::Say(note) => {
                let text = format!("{}: {note:?}", self.machines[machine].name);
                self.note(&text);
            }
            // On a device of stock the name stands in the beat's own sector, and is not looked after.
            Output::RewriteName { .. } | Output::SetWatchdog { .. } | Output::Flush { .. } => {}
            // For the page of a node of ours.
            Output::EndLease | Output::PublishIdle { .. } | Output::PublishAcknowledged { .. } => {}
        }
    }

    /// Who stopped may come back, and it may be under the stock program.
    pub(crate) fn restart_stopped(&mut self, machine: usize) {
        if self.random.chance(300) {
            self.machines[machine].is_stock = !self.machines[machine].is_stock;
        }
        let span = self.random.range(1_000_000, 30_000_000);
        self.start_later(machine, span);
    }

    fn arm(&mut self, machine: usize) {
        let now_ms = self.local_ms(machine);
        let Some(watcher) = &mut self.machines[machine].watcher else { return };
        let (pid, timings) = (watcher.pid, watcher.timings);
        if watcher.is_trial {
            let status = watcher.life.status();
            let (writer, devices) = (watcher.writer, watcher.devices.clone());
            let since_ms = watcher.first_cycle_ms.unwrap_or(0);
            let tried = Tried { pid, writer, devices, beat: status.beat, since_ms, unread: status.unread };
            (self.machines[machine].watcher, self.machines[machine].tried) = (None, Some(tried));
            let is_slow = self.random.chance(50);
            let span = self.random.below(if is_slow { 6_000_000 } else { 20_000 });
            return self.queue.after(span, Event::Tried { machine, pid });
        }
        let granted_ms = self.machines[machine].setup.granted_ms(timings.watchdog_ms);
        let granted_ms = if self.machines[machine].setup.has_watchdog { granted_ms } else { timings.watchdog_ms };
        let reset_ms = reset_ms_of(granted_ms, timings.lateness_ms, timings.drift_ppm);
        self.machines[machine].feeder = Some(Feeder { pid, lease_end_ms: 0, order: Order::Feed, reset_ms, is_checked: false });
        self.queue.after(1, Event::Feeder { machine, pid });
        // As the shell does: the machine has already handled what led to it.
        if let Some(watcher) = &mut self.machines[machine].watcher {
            watcher.life.handle(now_ms, Input::Armed { reset_ms });
        }
    }

    fn publish_lease(&mut self, machine: usize, lease_end_ms: u64, before_ms: Option<u64>) {
        let now_ms = self.local_ms(machine);
        if let Some(before_ms) = before_ms.filter(|before_ms| now_ms >= *before_ms) {
            let text = format!("{}: sbd resets: its lease ended at {before_ms} ms, it is {now_ms} ms", self.machines[machine].name);
            self.note(&text);
            return self.begin_reset(machine, ResetCommand::Reset);
        }
        let Some(feeder) = &mut self.machines[machine].feeder else { return };
        feeder.lease_end_ms = lease_end_ms;
        self.check_leased(machine, lease_end_ms);
        if before_ms.is_none() {
            self.join(machine);
            self.check_acting(machine);
        }
    }

    pub(crate) fn begin_reset(&mut self, machine: usize, command: ResetCommand) {
        let now_ms = self.local_ms(machine);
        let place = &mut self.machines[machine];
        if let Some(feeder) = &mut place.feeder {
            feeder.lease_end_ms = 0;
        }
        if let Some(watcher) = &mut place.watcher {
            watcher.reset_due = Some((now_ms + RESET_AGAIN_MS, command));
        }
        // Where no watchdog runs nothing else would ever end the machine.
        if place.watchdog.is_none() || !self.random.chance(place.setup.reset_fails) {
            place.stays_off |= command == ResetCommand::Off;
            let boot = place.boot;
            self.queue.after(1, Event::Ends { machine, boot });
        }
    }

    // The feeder and the watchdog.

    fn order_feeder(&mut self, machine: usize, order: Order) {
        if let Some(feeder) = &mut self.machines[machine].feeder {
            feeder.order = order;
            let pid = feeder.pid;
            self.queue.after(20, Event::Feeder { machine, pid });
        }
        #[cfg(feature = "planted")]
        if order == Order::Retire && self.mistake == Some(crate::planted::Planted::Shell(crate::planted::Shell::AnswerBeforeFeeder)) {
            let reset_ms = reset_ms_of(1000, 1000, 10_000);
            if let Some(watcher) = &mut self.machines[machine].watcher {
                watcher.answer = Some(Answer::Retired(reset_ms));
            }
        }
    }

    pub(crate) fn feeder_turn(&mut self, machine: usize, pid: Pid) {
        let now_ms = self.local_ms(machine);
        let base = self.base_timings();
        let place = &mut self.machines[machine];
        let Some(feeder) = place.feeder.as_mut().filter(|feeder| feeder.pid == pid) else { return };
        let margin_ms = feeder.reset_ms;
        #[cfg(feature = "planted")]
        let margin_ms =
            if self.mistake == Some(crate::planted::Planted::Shell(crate::planted::Shell::FeedToTheEnd)) { 0 } else { margin_ms };
        let verdict = feed_verdict(now_ms * NS_PER_MS, feeder.lease_end_ms * NS_PER_MS, margin_ms);
        let is_leased = verdict == FeedVerdict::Feed || feeder.is_checked;
        feeder.is_checked = false;
        match (feeder.order, &mut place.watchdog) {
            (Order::Retire, watchdog) => {
                let mut reset_ms = feeder.reset_ms;
                if let Some(watchdog) = watchdog.as_mut().filter(|_| is_leased) {
                    watchdog.granted_ms = watchdog.shortest_ms;
                    watchdog.fires_ms = now_ms + u64::from(watchdog.granted_ms);
                    reset_ms = reset_ms_of(watchdog.granted_ms, base.lateness_ms, base.drift_ppm);
                }
                return self.feeder_ends(machine, Answer::Retired(reset_ms));
            }
            (Order::Disarm, watchdog) => {
                *watchdog = None;
                self.check_disarmed(machine);
                return self.feeder_ends(machine, Answer::Disarmed);
            }
            (Order::Feed, Some(watchdog)) if is_leased => {
                watchdog.fires_ms = now_ms + u64::from(watchdog.granted_ms);
                self.check_fed(machine);
            }
            (Order::Feed, _) => {}
        }
        self.at_local(machine, now_ms + u64::from(base.feed_ms), Event::Feeder { machine, pid });
    }

    fn feeder_ends(&mut self, machine: usize, answer: Answer) {
        self.watch_watchdog(machine);
        let place = &mut self.machines[machine];
        place.feeder = None;
        if let Some(watcher) = &mut place.watcher {
            watcher.answer = Some(answer);
        }
    }

    /// The feeder is paused, it may be after its check: then it feeds when it continues, whatever the lease says by then.
    pub(crate) fn stop_feeder(&mut self, machine: usize) {
        let now_ms = self.local_ms(machine);
        if let Some(feeder) = &mut self.machines[machine].feeder {
            let verdict = feed_verdict(now_ms * NS_PER_MS, feeder.lease_end_ms * NS_PER_MS, feeder.reset_ms);
            feeder.is_checked = verdict == FeedVerdict::Feed;
        }
    }

    /// Plans a look at the watchdog.
    pub(crate) fn watch_watchdog(&mut self, machine: usize) {
        let place = &mut self.machines[machine];
        let Some(watchdog) = &mut place.watchdog else { return };
        watchdog.look += 1;
        let (look, boot, due_ms) = (watchdog.look, place.boot, watchdog.due_ms());
        self.at_local(machine, due_ms, Event::Watchdog { machine, boot, look });
    }

    pub(crate) fn look_at_watchdog(&mut self, machine: usize, boot: u64, look: u64) {
        let now_ms = self.local_ms(machine);
        let place = &self.machines[machine];
        let Some(watchdog) = place.watchdog.as_ref().filter(|watchdog| place.boot == boot && watchdog.look == look) else { return };
        if now_ms < watchdog.due_ms() {
            return self.watch_watchdog(machine);
        }
        let text = format!("{}: the watchdog fires", place.name);
        self.note(&text);
        self.end_machine(machine);
    }
}

/// As the watcher joins its servants' words.
fn seen_of(health: &HealthWatch, now_ms: u64) -> ClusterSeen {
    let well_ms = (health.standing(now_ms) == Standing::Healthy).then(|| health.healthy_as_of_ms()).flatten();
    let is_shut_down = health.standing(now_ms) == Standing::ShutDown;
    ClusterSeen { all_ms: well_ms, any_ms: well_ms, is_shut_down, outlive_ms: health.outlive_ms() }
}

fn mailbox_of(bytes: &[u8]) -> Result<MailboxSeen, DiskFailed> {
    read_mailbox(bytes, None).map_err(|_| DiskFailed)
}

fn cycle_of(bytes: &[u8]) -> Result<CycleSeen, DiskFailed> {
    Ok(CycleSeen { mailbox: mailbox_of(bytes)?, name: NameSeen::NotRead })
}
