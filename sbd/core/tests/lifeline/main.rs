//! What: the lifeline machine on imagined devices: situations one by one, by subject, and any sequence of events.
//! Owns: the imagined devices, watchdog, daemon and supervisor.
//! Invariants: time moves only by the world's own hand; the checker sees every output.
//! Does not: sleep or touch a device.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::collections::BTreeMap;

use deadbolt_disk_format::{Beat, BootId, DaemonPart, Incarnation, NodeState, SlotIndex, Timings, WatchdogKind};
use deadbolt_sbd_core::{
    Authenticity, CycleSeen, DaemonSeen, DeviceTrouble, DeviceWork, DiskFailed, Input, LegacyPills, Lifeline, LifelineConfig, MailboxSeen,
    NameSeen, Note, Output, OwnPlace, PhaseName, RefuseReason, Regime, ResetCommand, ResetReason, TailSeen,
};

mod anything;
mod cycles;
mod daemon;
mod extension;
mod mailbox;
mod own_place;
mod watch;

const BOOT: BootId = BootId([1; 16]);
const WRITER: Incarnation = Incarnation([2; 16]);
const SHORTEST_MS: u32 = 400;

fn timings() -> Timings {
    Timings {
        stall_ms: 1000,
        poll_ms: 100,
        feed_ms: 100,
        watchdog_ms: 1000,
        lateness_ms: 200,
        cycle_ms: 150,
        reset_ms: 1210,
        lease_ms: 3100,
        expiry_ms: 3200,
        freeze_ms: 10_000,
        drift_ppm: 10_000,
        ..Timings::default()
    }
}

fn config(devices: usize) -> LifelineConfig {
    LifelineConfig {
        slot: SlotIndex(3),
        boot: BOOT,
        writer: WRITER,
        devices,
        timings: timings(),
        watchdog: WatchdogKind::Device,
        legacy: LegacyPills::Accept,
        regime: Regime::Node { absence_ms: 5000 },
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Health {
    Fine(u64),
    Hung,
    Broken,
}

#[derive(Debug)]
struct Pending {
    at_ms: Option<u64>,
    device: usize,
    output: Output,
    fails: bool,
}

/// One node's surroundings.
struct World {
    machine: Lifeline,
    config: LifelineConfig,
    now_ms: u64,
    health: Vec<Health>,
    own: Vec<Option<Beat>>,
    /// Own places of which no read is good until they are written.
    is_rotten: Vec<bool>,
    mailbox: Vec<MailboxSeen>,
    names: Vec<NameSeen>,
    pending: Vec<Pending>,
    words: DaemonSeen,
    part: Option<DaemonPart>,
    is_daemon_turning: bool,
    is_supervisor_turning: bool,
    answers_retire: bool,
    log: Vec<(u64, Output)>,
    checker: Checker,
}

/// What must never happen, whatever comes in.
#[derive(Default)]
struct Checker {
    issued: Vec<(u64, u64, usize)>,
    lease_end_ms: Option<u64>,
    is_condemned: bool,
    is_retired: bool,
    is_disarmed: bool,
    is_ended: bool,
    is_armed: bool,
    on_device: Vec<Vec<u64>>,
    is_watch: bool,
    busy: Vec<bool>,
    newest: Vec<u64>,
    /// As the last read of each device showed.
    names: BTreeMap<usize, NameSeen>,
    renamed_ms: BTreeMap<usize, u64>,
}

impl Checker {
    fn check(&mut self, now_ms: u64, devices: usize, words: &DaemonSeen, output: &Output) {
        self.busy.resize(devices, false);
        self.newest.resize(devices, 0);
        self.on_device.resize(devices, Vec::new());
        assert!(!self.is_ended, "nothing comes after the end: {output:?}");
        match output {
            Output::Cycle { device, beat, .. } => {
                self.take(*device);
                assert!(beat.beat > self.newest[*device], "beats only grow on a device");
                self.newest[*device] = beat.beat;
                assert_eq!(beat.acknowledged.is_some(), self.is_condemned, "{output:?}");
                assert!(beat.acknowledged.is_none() || self.is_retired);
                // A watcher under the rule disk says stopped before it disarms; it runs no cycles any more then.
                let is_leaving = self.is_watch && beat.rule == deadbolt_disk_format::Rule::Disk;
                assert!(!beat.is_stopped || self.is_disarmed || is_leaving);
                assert!(!self.is_disarmed || beat.is_stopped);
                self.issued.push((beat.beat, now_ms, *device));
            }
            Output::ReadOwn { device, .. } | Output::ReadMailbox { device, .. } | Output::ClearMailbox { device, .. } => self.take(*device),
            Output::RewriteName { device, .. } => {
                self.take(*device);
                assert!(!self.is_condemned && !self.is_disarmed);
                let seen = self.names.get(device).unwrap_or(&NameSeen::NotRead);
                assert!(matches!(seen, NameSeen::Empty | NameSeen::Damaged), "{seen:?} was overwritten");
                let before_ms = self.renamed_ms.insert(*device, now_ms);
                assert!(before_ms.is_none_or(|before_ms| now_ms >= before_ms + 400));
            }
            Output::PublishLease { lease_end_ms, own_end_ms, before_ms, beat, .. } => {
                assert!(self.is_armed && !self.is_condemned && !self.is_disarmed);
                assert_eq!(*before_ms, self.lease_end_ms);
                assert!(now_ms < *lease_end_ms, "a lease that has ended was given");
                assert!(self.lease_end_ms.is_none_or(|before_ms| now_ms < before_ms), "a late cycle changed something");
                self.lease_end_ms = Some(*lease_end_ms);
                if self.is_watch {
                    return;
                }
                let (span_ms, freeze_ms) = (u64::from(timings().lease_ms), u64::from(timings().freeze_ms));
                let mut counted = self.issued.iter().filter(|(number, ..)| number <= beat);
                assert!(counted.any(|(_, at_ms, _)| at_ms + span_ms == *own_end_ms), "{own_end_ms}: no cycle gives it");
                let is_extended = (words.vouched_until_ms, words.frozen_until_ms) != (0, 0);
                assert!(lease_end_ms >= own_end_ms && (is_extended || lease_end_ms == own_end_ms));
                assert!(*lease_end_ms <= now_ms + span_ms.max(freeze_ms), "lengthened beyond every bound");
                let count = self.on_device.iter().filter(|done| done.contains(beat)).count();
                assert!(count > devices / 2, "beat {beat} stands on {count} of {devices}");
            }
            Output::EndLease => {
                self.lease_end_ms = None;
                // Every lease that ends by decision ends for good.
                self.is_armed = false;
            }
            Output::RetireFeeder { .. } => self.is_condemned = true,
            Output::Reset { .. } => {
                assert!(self.lease_end_ms.is_none(), "the lease is taken away before the reset");
                self.is_condemned = true;
            }
            Output::Disarm => assert!(!words.holds && !self.is_condemned),
            Output::Exit { .. } | Output::Refuse(_) => self.is_ended = true,
            Output::SetWatchdog { .. } => assert!(self.is_watch),
            Output::Flush { .. } => assert!(self.is_watch && !self.is_condemned),
            Output::Arm | Output::PublishIdle { .. } | Output::PublishAcknowledged { .. } | Output::Say(_) => {}
        }
    }

    fn take(&mut self, device: usize) {
        assert!(!self.busy[device], "two operations on device {device}");
        self.busy[device] = true;
    }
}

impl World {
    fn new(config: LifelineConfig) -> Self {
        let devices = config.devices;
        Self {
            machine: Lifeline::new(config.clone()),
            now_ms: 10_000,
            health: vec![Health::Fine(5); devices],
            own: vec![None; devices],
            is_rotten: vec![false; devices],
            mailbox: vec![MailboxSeen::clear(); devices],
            names: vec![NameSeen::Own; devices],
            pending: Vec::new(),
            words: DaemonSeen { generation: 1, turn: 1, ..DaemonSeen::default() },
            part: None,
            is_daemon_turning: true,
            is_supervisor_turning: true,
            answers_retire: true,
            log: Vec::new(),
            config: config.clone(),
            checker: Checker { is_watch: matches!(config.regime, Regime::Watch(_)), ..Checker::default() },
        }
    }

    fn living(devices: usize) -> Self {
        let mut world = Self::new(config(devices));
        world.start();
        world.run(500);
        assert_eq!(world.machine.status().phase, PhaseName::Living);
        world
    }

    fn start(&mut self) {
        self.give(Input::Start);
    }

    fn give(&mut self, input: Input) {
        self.machine.handle(self.now_ms, input);
        while let Some(output) = self.machine.poll_output() {
            self.checker.check(self.now_ms, self.config.devices, &self.words, &output);
            self.log.push((self.now_ms, output.clone()));
            self.act(output);
        }
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Cycle { device, .. }
            | Output::ReadOwn { device, .. }
            | Output::ReadMailbox { device, .. }
            | Output::ClearMailbox { device, .. }
            | Output::RewriteName { device, .. } => {
                let (at_ms, fails) = match self.health[device] {
                    Health::Fine(latency_ms) => (Some(self.now_ms + latency_ms), false),
                    Health::Broken => (Some(self.now_ms), true),
                    Health::Hung => (None, false),
                };
                self.pending.push(Pending { at_ms, device, output, fails });
            }
            Output::Arm => {
                self.checker.is_armed = true;
                self.give(Input::Armed { reset_ms: 1210 });
            }
            Output::RetireFeeder { .. } if self.answers_retire => {
                self.checker.is_retired = true;
                self.give(Input::FeederRetired { reset_ms: SHORTEST_MS });
            }
            Output::Disarm => {
                self.checker.is_disarmed = true;
                self.give(Input::Disarmed);
            }
            _ => {}
        }
    }

    /// Devices that hung answer from now on.
    fn release(&mut self) {
        for pending in &mut self.pending {
            pending.at_ms.get_or_insert(self.now_ms);
        }
        self.health.fill(Health::Fine(5));
    }

    fn complete(&mut self, pending: Pending) {
        let device = pending.device;
        self.checker.busy[device] = false;
        let fail = |fails: bool| if fails { Err(DiskFailed) } else { Ok(()) };
        let input = match pending.output {
            Output::Cycle { tag, beat, .. } => {
                if !pending.fails {
                    self.checker.on_device[device].push(beat.beat);
                    self.own[device] = Some(*beat);
                    self.is_rotten[device] = false;
                }
                let (mailbox, name) = (self.mailbox[device].clone(), self.names[device].clone());
                if !pending.fails {
                    self.checker.names.insert(device, name.clone());
                }
                Input::CycleDone { tag, result: fail(pending.fails).map(|()| CycleSeen { mailbox, name }) }
            }
            Output::ReadOwn { tag, .. } => {
                let place = match self.own[device].clone() {
                    _ if self.is_rotten[device] => OwnPlace::Unreadable,
                    Some(beat) => OwnPlace::Beat(Box::new(beat)),
                    None => OwnPlace::NeverWritten,
                };
                Input::OwnRead { tag, result: fail(pending.fails).map(|()| place) }
            }
            Output::ReadMailbox { tag, .. } => {
                Input::MailboxRead { tag, result: fail(pending.fails).map(|()| self.mailbox[device].clone()) }
            }
            Output::ClearMailbox { tag, .. } => {
                if !pending.fails {
                    self.mailbox[device] = MailboxSeen::clear();
                }
                Input::ClearDone { tag, result: fail(pending.fails) }
            }
            Output::RewriteName { tag, .. } => {
                if !pending.fails {
                    self.names[device] = NameSeen::Own;
                }
                Input::NameDone { tag }
            }
            other => panic!("{other:?} is no disk work"),
        };
        self.give(input);
    }

    fn turn(&mut self) {
        if self.is_daemon_turning {
            self.words.turn += 1;
        }
        if self.is_supervisor_turning {
            self.words.supervisor_alive_ms = self.now_ms;
        }
        let part = self.part.take().map(Box::new);
        self.give(Input::Turned { words: self.words, part });
    }

    /// Lets time pass, a turn of the shell every 20 ms.
    fn run(&mut self, span_ms: u64) {
        let end_ms = self.now_ms + span_ms;
        while self.now_ms < end_ms {
            let due = self.pending.iter().position(|pending| pending.at_ms.is_some_and(|at_ms| at_ms <= self.now_ms));
            if let Some(index) = due {
                let pending = self.pending.remove(index);
                self.complete(pending);
                continue;
            }
            let step_ms = 20 - self.now_ms % 20;
            let next_ms = self
                .pending
                .iter()
                .filter_map(|pending| pending.at_ms)
                .chain(self.machine.next_deadline())
                .filter(|at_ms| *at_ms > self.now_ms)
                .min();
            self.now_ms = next_ms.unwrap_or(u64::MAX).min(self.now_ms + step_ms).min(end_ms);
            self.turn();
        }
    }

    fn leases(&self) -> Vec<u64> {
        self.log
            .iter()
            .filter_map(|(_, output)| if let Output::PublishLease { lease_end_ms, .. } = output { Some(*lease_end_ms) } else { None })
            .collect()
    }

    fn reset(&self) -> Option<(u64, ResetCommand, ResetReason)> {
        self.log.iter().find_map(|(at_ms, output)| {
            if let Output::Reset { command, reason } = output { Some((*at_ms, *command, reason.clone())) } else { None }
        })
    }

    fn refusal(&self) -> Option<RefuseReason> {
        self.log.iter().find_map(|(_, output)| if let Output::Refuse(reason) = output { Some(reason.clone()) } else { None })
    }

    fn has(&self, wanted: impl Fn(&Output) -> bool) -> bool {
        self.log.iter().any(|(_, output)| wanted(output))
    }

    fn publish(&mut self, number: u64, incarnation: u8, state: NodeState) {
        self.part = Some(DaemonPart { number, incarnation: Incarnation([incarnation; 16]), state, ..DaemonPart::default() });
    }
}

fn pill(command: u8, tail: Option<BootId>) -> MailboxSeen {
    let tail = tail.map(|boot| TailSeen { boot, serial: 1, authenticity: Authenticity::Verified });
    MailboxSeen { command, sender: "other".to_owned(), tail }
}

fn beat_of(boot: BootId, beat: u64, state: NodeState, is_stopped: bool) -> Beat {
    Beat {
        slot: SlotIndex(3),
        boot,
        writer: Incarnation([9; 16]),
        beat,
        lease_ms: 3100,
        reset_ms: 1210,
        rule: deadbolt_disk_format::Rule::Disk,
        watchdog: WatchdogKind::Device,
        is_stopped,
        is_idle: false,
        acknowledged: None,
        wall_ms: 0,
        boottime_ms: 0,
        outlive_ms: 0,
        daemon: DaemonPart { number: 8, state, incarnation: Incarnation([7; 16]), ..DaemonPart::default() },
    }
}
