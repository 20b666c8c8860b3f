//! What: the lifeline machine on imagined devices: situations one by one, then any sequence of events.
//! Owns: the imagined devices, watchdog, daemon and supervisor.
//! Invariants: time moves only by the world's own hand; the checker sees every output.
//! Does not: sleep or touch a device.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::collections::BTreeMap;

use deadbolt_disk_format::{Beat, BootId, DaemonPart, Incarnation, NodeState, SlotIndex, Timings, WatchdogKind};
use deadbolt_sbd_core::{
    Authenticity, CycleSeen, DaemonSeen, DeviceTrouble, DeviceWork, DiskFailed, Input, LegacyPills, Lifeline, LifelineConfig, MailboxSeen,
    NameSeen, Note, Output, OwnPlace, PhaseName, RefuseReason, ResetCommand, ResetReason, TailSeen,
};
use proptest::prelude::*;

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
        absence_ms: 5000,
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
                assert!(!beat.is_stopped || self.is_disarmed);
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
            Output::PublishLease { lease_end_ms, before_ms, beat, .. } => {
                assert!(self.is_armed && !self.is_condemned && !self.is_disarmed);
                assert_eq!(*before_ms, self.lease_end_ms);
                assert!(now_ms < *lease_end_ms, "a lease that has ended was given");
                assert!(self.lease_end_ms.is_none_or(|before_ms| now_ms < before_ms), "a late cycle changed something");
                let first = self.issued.iter().filter(|(number, ..)| number == beat).map(|(_, at_ms, _)| *at_ms).min();
                assert_eq!(first.map(|at_ms| at_ms + u64::from(timings().lease_ms)), Some(*lease_end_ms));
                let count = self.on_device.iter().filter(|done| done.contains(beat)).count();
                assert!(count > devices / 2, "beat {beat} stands on {count} of {devices}");
                self.lease_end_ms = Some(*lease_end_ms);
            }
            Output::EndLease => {
                self.lease_end_ms = None;
                // Every lease that ends by decision ends for good.
                self.is_armed = false;
            }
            Output::RetireFeeder => self.is_condemned = true,
            Output::Reset { .. } => {
                assert!(self.lease_end_ms.is_none(), "the lease is taken away before the reset");
                self.is_condemned = true;
            }
            Output::Disarm => assert!(!words.holds && !self.is_condemned),
            Output::Exit { .. } | Output::Refuse(_) => self.is_ended = true,
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
            config,
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
            checker: Checker::default(),
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
            Output::RetireFeeder if self.answers_retire => {
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
        daemon: DaemonPart { number: 8, state, incarnation: Incarnation([7; 16]), ..DaemonPart::default() },
    }
}

#[test]
fn a_healthy_life_renews_its_lease_every_poll() {
    for devices in 1..=3 {
        let mut world = World::living(devices);
        world.publish(4, 1, NodeState::Member);
        world.run(10_000);
        let leases = world.leases();
        assert!(leases.len() > 90, "{} leases", leases.len());
        assert!(leases.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(world.has(|output| matches!(output, Output::PublishLease { number: 4, .. })));
        assert_eq!(world.reset(), None);
    }
}

#[test]
fn a_part_counts_only_when_its_beat_is_complete() {
    let mut world = World::living(1);
    world.health[0] = Health::Fine(60);
    world.publish(4, 1, NodeState::Member);
    world.run(400);
    let first_write =
        world.log.iter().find(|(_, output)| matches!(output, Output::Cycle { beat, .. } if beat.daemon.number == 4)).unwrap().0;
    let first_said = world.log.iter().find(|(_, output)| matches!(output, Output::PublishLease { number: 4, .. })).unwrap().0;
    assert_eq!(first_said, first_write + 60);
}

#[test]
fn a_cycle_that_completes_after_the_lease_changes_nothing() {
    let mut world = World::living(1);
    world.health[0] = Health::Hung;
    world.run(200);
    let end_ms = *world.leases().last().unwrap();
    let count = world.leases().len();
    world.run(end_ms - world.now_ms);
    world.release();
    world.run(500);
    assert_eq!(world.leases().len(), count);
    assert!(matches!(world.reset(), Some((at_ms, ResetCommand::Reset, ResetReason::LeaseEnded { .. })) if at_ms == end_ms));
}

#[test]
fn a_first_cycle_that_takes_longer_than_a_lease_gives_none() {
    let mut late = World::new(config(1));
    late.health[0] = Health::Fine(3150);
    late.start();
    late.run(20_000);
    assert!(late.has(|output| *output == Output::Arm));
    assert_eq!(late.leases(), []);
}

#[test]
fn a_stall_within_the_lease_is_survived_and_followed_at_once() {
    let mut world = World::living(1);
    world.health[0] = Health::Hung;
    world.run(2000);
    world.release();
    let released_ms = world.now_ms;
    world.run(1000);
    assert_eq!(world.reset(), None);
    let (next_ms, _) = world.log.iter().find(|(at_ms, output)| *at_ms >= released_ms && matches!(output, Output::Cycle { .. })).unwrap();
    assert_eq!(*next_ms, released_ms, "the next cycle follows a late one at once");
}

/// What people were told about the cycles, and when.
fn told(world: &World) -> Vec<(u64, Note)> {
    let is_progress = |note: &Note| matches!(note, Note::CyclesStalled { .. } | Note::FeedingStopped { .. } | Note::CyclesAgain { .. });
    let note = |(at_ms, output): &(u64, Output)| if let Output::Say(note) = output { Some((*at_ms, note.clone())) } else { None };
    world.log.iter().filter_map(note).filter(|(_, note)| is_progress(note)).collect()
}

#[test]
fn a_stall_is_told_before_it_ends_the_life() {
    let mut world = World::living(1);
    world.health[0] = Health::Hung;
    world.run(5000);
    let lease_end_ms = *world.leases().last().unwrap();
    let (issued_ms, beat) = (lease_end_ms - 3100, world.machine.status().beat);
    let completed_ms = issued_ms + 5;
    let told = told(&world);
    assert_eq!(told.len(), 2, "{told:?}");
    // 500 ms: half of the tolerance; the next cycle was issued a poll after the last completed one.
    let busy = DeviceTrouble::Busy { work: DeviceWork::Cycle { beat }, for_ms: 405 };
    let left_ms = Some((3100 - 2 * 1210 - 505, 3100 - 505));
    assert_eq!(told[0], (completed_ms + 500, Note::CyclesStalled { for_ms: 500, stall_ms: 1000, devices: vec![(0, busy)], left_ms }));
    let unfed = Note::FeedingStopped { lease_left_ms: 2420, reset_ms: 1210, beat: beat - 1, ago_ms: 675 };
    assert_eq!(told[1], (lease_end_ms - 2420, unfed));
    assert_eq!(world.reset().map(|(at_ms, ..)| at_ms), Some(lease_end_ms));
}

#[test]
fn a_recovery_is_told_once_and_a_healthy_life_is_silent() {
    for (span_ms, notes) in [(300, 0), (550, 2), (900, 3)] {
        let mut world = World::living(3);
        world.run(2000);
        assert_eq!(told(&world), []);
        world.health[1] = Health::Hung;
        world.run(2000);
        assert_eq!(told(&world), [], "two of three are enough");
        world.health[2] = Health::Broken;
        world.run(span_ms);
        world.release();
        world.run(1000);
        let told = told(&world);
        assert_eq!(told.len(), notes, "{span_ms}: {told:?}");
        if let Some((_, Note::CyclesStalled { devices, .. })) = told.first() {
            assert!(matches!(devices[..], [(1, DeviceTrouble::Busy { for_ms: 2000.., .. }), (2, DeviceTrouble::Failed)]), "{devices:?}");
        }
        if let Some((_, note)) = told.last() {
            assert!(matches!(note, Note::CyclesAgain { is_fed: true, lease_left_ms: Some(2900..), .. }), "{note:?}");
        }
        assert_eq!(world.reset(), None);
    }
}

#[test]
fn a_device_that_never_answers_is_told_before_the_first_lease() {
    let mut world = World::new(config(1));
    world.health[0] = Health::Hung;
    world.start();
    world.run(20_000);
    let told = told(&world);
    let busy = |for_ms| DeviceTrouble::Busy { work: DeviceWork::ReadOwn, for_ms };
    assert!(
        matches!(&told[..], [(_, Note::CyclesStalled { left_ms: None, devices, for_ms, .. })] if devices[..] == [(0, busy(*for_ms))]),
        "{told:?}"
    );
}

#[test]
fn one_hung_device_of_three_is_survived_two_are_not() {
    let mut world = World::living(3);
    world.health[2] = Health::Hung;
    world.run(20_000);
    assert_eq!(world.reset(), None);
    world.health[1] = Health::Hung;
    world.run(5000);
    assert!(matches!(world.reset(), Some((_, _, ResetReason::LeaseEnded { .. }))));
    let mut two = World::living(2);
    two.health[1] = Health::Broken;
    two.run(5000);
    assert!(matches!(two.reset(), Some((_, _, ResetReason::LeaseEnded { .. }))), "two devices need both");
}

#[test]
fn a_pill_is_acknowledged_and_obeyed() {
    for (command, expected) in [(2, ResetCommand::Reset), (3, ResetCommand::Off), (5, ResetCommand::Crash)] {
        for tail in [None, Some(BOOT)] {
            let mut world = World::living(3);
            world.mailbox[1] = pill(command, tail);
            world.run(1000);
            let (at_ms, done, reason) = world.reset().unwrap();
            assert_eq!((done, reason), (expected, ResetReason::Pill { device: 1, sender: "other".to_owned() }));
            let seen_ms = world.log.iter().find(|(_, output)| *output == Output::EndLease).unwrap().0;
            assert_eq!(at_ms - seen_ms, 5, "as long as the acknowledgement takes");
            let answered = world
                .own
                .iter()
                .flatten()
                .filter(|beat| beat.acknowledged.is_some_and(|answer| answer.reset_ms == SHORTEST_MS && answer.command == command));
            assert!(answered.count() >= 2);
        }
    }
}

#[test]
fn the_reset_never_waits_long_for_the_acknowledgement() {
    for answers_retire in [true, false] {
        let mut world = World::living(1);
        world.answers_retire = answers_retire;
        world.mailbox[0] = pill(2, Some(BOOT));
        while !world.has(|output| *output == Output::EndLease) {
            world.run(1);
            if world.mailbox[0].command == 2 && world.machine.status().busy == 0 {
                world.health[0] = Health::Fine(5);
            }
        }
        let seen_ms = world.now_ms;
        world.pending.clear();
        world.run(1000);
        assert!(world.reset().unwrap().0 <= seen_ms + 100);
    }
}

#[test]
fn pills_for_another_boot_are_left_alone_and_those_from_before_it_erased() {
    let mut world = World::living(1);
    world.mailbox[0] = pill(2, Some(BootId([5; 16])));
    world.run(500);
    assert_eq!((world.reset(), world.mailbox[0].command), (None, 2));
    let mut old = World::new(config(1));
    old.mailbox[0] = pill(2, None);
    old.own[0] = Some(beat_of(BootId([5; 16]), 40, NodeState::Member, false));
    old.start();
    old.run(2000);
    assert_eq!((old.reset(), old.mailbox[0].command, old.machine.status().phase), (None, 0, PhaseName::Living));
    assert!(old.own[0].as_ref().unwrap().beat > 40, "goes on from the number before");
}

#[test]
fn a_restart_of_sbd_makes_no_pill_stale() {
    for tail in [None, Some(BOOT)] {
        let mut world = World::new(config(1));
        world.mailbox[0] = pill(2, tail);
        world.own[0] = Some(beat_of(BOOT, 40, NodeState::Left, true));
        world.start();
        world.run(100);
        assert!(matches!(world.reset(), Some((_, _, ResetReason::Pill { .. }))), "{tail:?}");
    }
}

#[test]
fn test_messages_are_answered_and_unknown_ones_erased_late() {
    let mut world = World::living(1);
    for (command, least_reads) in [(1, 1), (4, 3), (77, 3)] {
        world.mailbox[0] = pill(command, None);
        let from = world.log.len();
        world.run(1000);
        assert_eq!(world.mailbox[0].command, 0, "{command}");
        let clear = world.log[from..].iter().position(|(_, output)| matches!(output, Output::ClearMailbox { .. })).unwrap();
        let cycles = world.log[from..from + clear].iter().filter(|(_, output)| matches!(output, Output::Cycle { .. })).count();
        assert!(cycles >= least_reads, "{command}: {cycles}");
    }
    world.mailbox[0] = pill(200, None);
    world.run(1000);
    assert_eq!((world.mailbox[0].command, world.reset()), (200, None), "negative for stock: left alone");
}

#[test]
fn a_lost_name_is_told_and_rewritten_within_one_cycle() {
    for devices in [1, 3] {
        let mut world = World::living(devices);
        let from = world.log.len();
        world.names[0] = NameSeen::Empty;
        world.run(120);
        assert_eq!(world.names[0], NameSeen::Own);
        let notes = |world: &World, from: usize| {
            let is_note = |output: &Output| matches!(output, Output::Say(Note::NameLost { .. }));
            world.log[from..].iter().filter(|(_, output)| is_note(output)).map(|(_, output)| output.clone()).collect::<Vec<_>>()
        };
        assert_eq!(notes(&world, from), [Output::Say(Note::NameLost { device: 0, found: NameSeen::Empty })]);
        let (from, leases) = (world.log.len(), world.leases().len());
        let taken = NameSeen::Other { name: "thief".to_owned() };
        world.run(400);
        world.names[0] = taken.clone();
        world.run(3000);
        assert_eq!(notes(&world, from), [Output::Say(Note::NameLost { device: 0, found: taken.clone() })], "said once");
        assert_eq!((&world.names[0], world.reset()), (&taken, None), "left alone, and the node lives");
        assert!(world.leases().len() > leases + 25);
    }
}

#[test]
fn a_pill_beside_a_lost_name_is_obeyed_and_no_name_delays_it() {
    let mut world = World::living(1);
    world.names[0] = NameSeen::Empty;
    world.mailbox[0] = pill(2, Some(BOOT));
    world.run(1000);
    assert!(matches!(world.reset(), Some((_, _, ResetReason::Pill { .. }))));
    assert!(!world.has(|output| matches!(output, Output::RewriteName { .. })));
    // A rewrite that never comes back is one more hung device.
    let mut hung = World::living(1);
    hung.names[0] = NameSeen::Empty;
    while !hung.has(|output| matches!(output, Output::RewriteName { .. })) {
        hung.health[0] = if hung.machine.status().busy == 0 { Health::Fine(5) } else { Health::Hung };
        hung.run(1);
    }
    hung.run(5000);
    assert!(matches!(hung.reset(), Some((_, _, ResetReason::LeaseEnded { .. }))));
}

#[test]
fn daemons_that_may_hold_something_end_the_life() {
    let mut hung = World::living(1);
    hung.is_daemon_turning = false;
    let stopped_ms = hung.now_ms;
    hung.run(3000);
    let (at_ms, _, reason) = hung.reset().unwrap();
    assert_eq!(reason, ResetReason::DaemonHung);
    assert!(at_ms - stopped_ms >= 960 && at_ms - stopped_ms <= 1200, "{}", at_ms - stopped_ms);
    assert!(hung.own[0].as_ref().unwrap().acknowledged.is_some());

    let mut died = World::living(1);
    (died.words.holds, died.words.ended) = (true, 1);
    died.run(200);
    assert_eq!(died.reset().unwrap().2, ResetReason::DaemonDiedHolding);
}

#[test]
fn an_idle_daemon_may_restart_once_it_is_recorded() {
    let mut world = World::living(1);
    world.publish(4, 1, NodeState::Member);
    world.run(300);
    world.words.ended = 1;
    world.is_daemon_turning = false;
    world.run(300);
    assert!(world.has(|output| *output == Output::PublishIdle { generation: 1 }));
    assert!(world.own[0].as_ref().unwrap().is_idle);
    world.words.generation = 2;
    world.is_daemon_turning = true;
    world.run(300);
    assert!(world.own[0].as_ref().unwrap().is_idle, "until the new one has spoken");
    world.publish(1, 2, NodeState::Joining);
    world.run(300);
    assert!(!world.own[0].as_ref().unwrap().is_idle && world.reset().is_none());

    let mut hasty = World::living(1);
    hasty.health[0] = Health::Hung;
    (hasty.words.ended, hasty.words.generation) = (1, 2);
    hasty.run(300);
    assert_eq!(hasty.reset().unwrap().2, ResetReason::DaemonRestartedUnrecorded { generation: 1 });
}

#[test]
fn without_a_daemon_it_beats_on_for_a_bounded_time() {
    let mut world = World::living(1);
    world.publish(4, 1, NodeState::Member);
    world.run(300);
    world.words.ended = 1;
    world.is_daemon_turning = false;
    world.run(4900);
    assert_eq!(world.machine.status().phase, PhaseName::Living);
    world.run(1000);
    assert!(world.has(|output| *output == Output::Exit { is_recorded: true }));
    assert!(world.own[0].as_ref().unwrap().is_stopped);
}

#[test]
fn a_clean_stop_needs_left_on_the_disk() {
    let mut world = World::living(3);
    world.publish(4, 1, NodeState::Member);
    world.run(300);
    world.words.is_stop_requested = true;
    world.run(300);
    assert_eq!(world.machine.status().phase, PhaseName::Living, "a member does not just stop");
    world.publish(5, 1, NodeState::Left);
    world.words.holds = true;
    world.run(300);
    assert_eq!(world.machine.status().phase, PhaseName::Living, "nor does one that holds something");
    world.words.holds = false;
    world.run(300);
    assert!(world.has(|output| *output == Output::Exit { is_recorded: true }));
    assert!(world.own.iter().flatten().filter(|beat| beat.is_stopped).count() >= 2);

    let mut hung = World::living(1);
    hung.publish(5, 1, NodeState::Left);
    hung.run(300);
    hung.health[0] = Health::Hung;
    hung.words.is_stop_requested = true;
    hung.run(3000);
    assert!(hung.has(|output| *output == Output::Exit { is_recorded: false }));
}

#[test]
fn a_jump_in_time_ends_the_life_before_anything_else() {
    let mut world = World::living(1);
    world.now_ms += 3201;
    let from = world.log.len();
    world.turn();
    assert!(
        matches!(world.log[from..], [(_, Output::EndLease), (_, Output::Reset { reason: ResetReason::TimeJump { elapsed_ms: 3201 }, .. })]),
        "{:?}",
        &world.log[from..]
    );
}

#[test]
fn a_foreign_beat_in_the_own_place_ends_the_life() {
    let mut foreign = World::living(3);
    foreign.health[2] = Health::Broken;
    foreign.own[2] = Some(beat_of(BOOT, 1, NodeState::Member, false));
    foreign.health[2] = Health::Fine(5);
    // Our own next write covers it unless the other writes again: play it as a clone does.
    for _ in 0..400 {
        foreign.own[2] = Some(beat_of(BOOT, 1, NodeState::Member, false));
        foreign.run(5);
    }
    assert!(matches!(foreign.reset(), Some((_, _, ResetReason::ForeignBeat { device: 2, .. }))));
}

#[test]
fn a_place_that_goes_back_in_time_does_not_count() {
    for (devices, ends) in [(1, true), (3, false)] {
        let mut world = World::living(devices);
        let old = world.own[0].clone();
        for _ in 0..400 {
            world.own[0].clone_from(&old);
            world.run(5);
        }
        assert_eq!(matches!(world.reset(), Some((_, _, ResetReason::OwnPlaceReverted { device: 0, .. }))), ends);
        assert_eq!(world.machine.status().away, 1);
    }
}

#[test]
fn nothing_begins_beside_a_life_that_may_still_live() {
    let mut same = World::new(config(1));
    same.own[0] = Some(beat_of(BOOT, 40, NodeState::Member, false));
    same.start();
    same.run(100);
    assert!(matches!(same.refusal(), Some(RefuseReason::LifeBeforeNotEnded { .. })));

    let mut other = World::new(config(1));
    other.own[0] = Some(beat_of(BootId([5; 16]), 40, NodeState::Member, false));
    other.start();
    other.run(200);
    other.own[0] = Some(beat_of(BootId([5; 16]), 41, NodeState::Member, false));
    other.run(1000);
    assert!(matches!(other.refusal(), Some(RefuseReason::SlotInUse { first: 40, second: 41, .. })));

    for stopped in [beat_of(BOOT, 40, NodeState::Left, true), beat_of(BOOT, 40, NodeState::None, false)] {
        let mut world = World::new(config(1));
        world.own[0] = Some(stopped.clone());
        world.start();
        world.run(1000);
        assert_eq!(world.machine.status().phase, PhaseName::Living);
        assert_eq!(world.own[0].as_ref().unwrap().daemon.state, stopped.daemon.state, "the last words stand until a daemon speaks");
    }
}

#[test]
fn a_daemon_that_held_nothing_stays_proved_over_a_restart_of_sbd() {
    let mut world = World::new(config(1));
    world.own[0] = Some(Beat { is_idle: true, ..beat_of(BOOT, 40, NodeState::Member, true) });
    world.start();
    world.run(1000);
    let own = world.own[0].clone().unwrap();
    assert!(own.is_idle && own.daemon.incarnation == Incarnation([7; 16]) && own.beat > 40);
    world.publish(1, 2, NodeState::Joining);
    world.run(300);
    assert!(!world.own[0].as_ref().unwrap().is_idle, "the new daemon has spoken");

    let mut next = World::new(config(1));
    next.own[0] = Some(Beat { is_idle: true, ..beat_of(BootId([5; 16]), 40, NodeState::Member, true) });
    next.start();
    next.run(1000);
    assert!(!next.own[0].as_ref().unwrap().is_idle, "another boot says nothing of the one before");
}

#[test]
fn opening_tries_again_and_needs_a_majority() {
    let mut world = World::new(config(3));
    world.health = vec![Health::Broken, Health::Broken, Health::Fine(5)];
    world.start();
    world.run(1000);
    assert_eq!(world.machine.status().phase, PhaseName::Opening);
    world.health[0] = Health::Fine(5);
    world.run(1000);
    assert_eq!(world.machine.status().phase, PhaseName::Living);
}

#[test]
fn a_device_that_answers_the_opening_late_does_not_end_the_life() {
    let mut world = World::new(config(3));
    world.own.fill(Some(beat_of(BootId([5; 16]), 40, NodeState::Member, false)));
    world.health[0] = Health::Fine(1500);
    world.start();
    world.run(1400);
    assert_eq!(world.machine.status().phase, PhaseName::Living, "two of three are enough");
    world.run(3000);
    assert!(world.reset().is_none(), "what the late one showed is of the life before: {:?}", world.reset());
    assert_eq!(world.machine.status().phase, PhaseName::Living);
}

#[test]
fn a_rotten_own_place_is_not_an_empty_one() {
    let far = |beat: u64| beat >= 1 << 61;
    let before = || Some(beat_of(BootId([5; 16]), 1_000_000, NodeState::Member, false));
    let mut world = World::new(config(1));
    (world.own[0], world.is_rotten[0]) = (before(), true);
    world.start();
    world.run(2000);
    assert_eq!(world.machine.status().phase, PhaseName::Living);
    assert!(far(world.machine.status().beat), "beyond what anybody has seen there, though it cannot be read");

    // A bad read is not a rotten place.
    let mut world = World::new(config(1));
    (world.own[0], world.is_rotten[0]) = (before(), true);
    world.start();
    world.run(100);
    world.is_rotten[0] = false;
    world.run(2000);
    assert!((1_000_001..1_000_100).contains(&world.machine.status().beat), "goes on from where the life before ended");

    // Nor does it hide somebody who beats there.
    for bad_ms in [100, 400] {
        let mut world = World::new(config(1));
        world.own[0] = before();
        world.is_rotten[0] = bad_ms == 100;
        world.start();
        world.run(200);
        world.is_rotten[0] = bad_ms == 400;
        world.own[0] = Some(Beat { beat: 1_000_002, ..before().unwrap() });
        world.run(300);
        world.is_rotten[0] = false;
        world.own[0] = Some(Beat { beat: 1_000_004, ..before().unwrap() });
        world.run(2000);
        let is_refused = world.log.iter().any(|(_, output)| matches!(output, Output::Refuse(RefuseReason::SlotInUse { .. })));
        assert!(is_refused, "one bad look at {bad_ms} ms: {:?}", world.machine.status());
    }
}

#[test]
fn one_read_that_shows_nothing_does_not_make_the_own_place_empty() {
    let before = beat_of(BootId([5; 16]), 1_000_000, NodeState::Member, false);
    let mut world = World::new(config(1));
    world.health[0] = Health::Fine(50);
    world.start();
    world.run(60);
    world.own[0] = Some(before);
    world.run(2000);
    assert!(world.machine.status().beat > 1_000_000, "goes on from where the life before ended: {:?}", world.machine.status());
}

#[test]
fn a_process_watchdog_needs_its_supervisor() {
    let mut world = World::new(LifelineConfig { watchdog: WatchdogKind::Process, ..config(1) });
    world.start();
    world.run(1000);
    let count = world.leases().len();
    assert!(count > 5);
    world.is_supervisor_turning = false;
    world.run(5000);
    assert!(matches!(world.reset(), Some((_, _, ResetReason::LeaseEnded { .. }))));
    assert!(world.leases().len() <= count + 11);
}

#[test]
fn the_daemon_may_ask_for_fast_polls() {
    let mut world = World::living(1);
    let before = world.leases().len();
    world.words.fast_poll_until_ms = world.now_ms + 1000;
    world.run(1000);
    let fast = world.leases().len() - before;
    world.run(1000);
    let slow = world.leases().len() - before - fast;
    assert!((17..=21).contains(&fast) && (9..=11).contains(&slow), "{fast} {slow}");
    let from = world.leases().len();
    world.give(Input::Woken);
    world.run(6);
    assert!(world.leases().len() > from, "woken: at once");
}

#[derive(Clone, Debug)]
enum Event {
    Run(u64),
    Jump(u64),
    Health(usize, u8),
    Mailbox(usize, u8, u8),
    Words(u8),
    Part(u8),
    Own(usize, u8),
    Name(usize, u8),
    Woken,
    StopAsked,
    Release,
    LateAnswers,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1u64..700).prop_map(Event::Run),
        1 => (1u64..5000).prop_map(Event::Jump),
        3 => (0usize..3, 0u8..5).prop_map(|(device, kind)| Event::Health(device, kind)),
        1 => (0usize..3, any::<u8>().prop_map(|byte| byte % 9), 0u8..4).prop_map(|(device, command, tail)| Event::Mailbox(device, command, tail)),
        1 => (0u8..8).prop_map(Event::Words),
        2 => (0u8..6).prop_map(Event::Part),
        1 => (0usize..3, 0u8..3).prop_map(|(device, kind)| Event::Own(device, kind)),
        1 => (0usize..3, 0u8..5).prop_map(|(device, kind)| Event::Name(device, kind)),
        1 => Just(Event::Woken),
        1 => Just(Event::StopAsked),
        2 => Just(Event::Release),
        1 => Just(Event::LateAnswers),
    ]
}

fn play(world: &mut World, event: Event) {
    let devices = world.config.devices;
    match event {
        Event::Run(span_ms) => world.run(span_ms),
        Event::Jump(span_ms) => world.now_ms += span_ms,
        Event::Health(device, kind) => {
            world.health[device % devices] =
                [Health::Fine(1), Health::Fine(80), Health::Fine(900), Health::Hung, Health::Broken][usize::from(kind)];
        }
        Event::Mailbox(device, command, tail) => {
            let tails = [
                None,
                Some((BOOT, Authenticity::Verified)),
                Some((BootId([5; 16]), Authenticity::Verified)),
                Some((BOOT, Authenticity::Forged)),
            ];
            let tail = tails[usize::from(tail)].map(|(boot, authenticity)| TailSeen { boot, serial: 1, authenticity });
            world.mailbox[device % devices] = MailboxSeen { command, sender: String::new(), tail };
        }
        Event::Words(kind) => match kind {
            0 => world.words.holds = true,
            1 => world.words.holds = false,
            2 => world.words.ended = world.words.generation,
            3 => world.words.generation += 1,
            4 => world.is_daemon_turning = !world.is_daemon_turning,
            5 => world.words.is_stop_requested = true,
            6 => world.words.fast_poll_until_ms = world.now_ms + 300,
            _ => world.is_supervisor_turning = !world.is_supervisor_turning,
        },
        Event::Part(kind) => {
            let state = [NodeState::None, NodeState::Joining, NodeState::Member, NodeState::Left, NodeState::Condemned, NodeState::Left]
                [usize::from(kind)];
            world.publish(world.now_ms, kind % 3, state);
        }
        Event::Own(device, kind) => {
            world.own[device % devices] = match kind {
                0 => None,
                1 => Some(beat_of(BootId([5; 16]), 3, NodeState::Member, false)),
                _ => world.own[device % devices].take().map(|beat| Beat { beat: beat.beat.saturating_sub(5), ..beat }),
            };
        }
        Event::Name(device, kind) => {
            let other = NameSeen::Other { name: "other".to_owned() };
            world.names[device % devices] =
                [NameSeen::NotRead, NameSeen::Own, NameSeen::Empty, NameSeen::Damaged, other][usize::from(kind)].clone();
        }
        Event::Woken => world.give(Input::Woken),
        Event::StopAsked => world.give(Input::StopAsked),
        Event::Release => world.release(),
        Event::LateAnswers => {
            for tag in [0, 1, 7, u64::MAX] {
                let seen = CycleSeen { mailbox: MailboxSeen::clear(), name: NameSeen::Empty };
                world.give(Input::CycleDone { tag: tag ^ 0xffff_0000, result: Ok(seen) });
                world.give(Input::NameDone { tag: tag ^ 0xffff_0000 });
                world.give(Input::ClearDone { tag: tag ^ 0xffff_0000, result: Ok(()) });
            }
            world.give(Input::FeederRetired { reset_ms: 1 });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn whatever_happens_the_rules_hold(devices in 1usize..=3, process in any::<bool>(), events in proptest::collection::vec(event(), 1..40)) {
        let watchdog = if process { WatchdogKind::Process } else { WatchdogKind::Device };
        let mut world = World::new(LifelineConfig { watchdog, ..config(devices) });
        world.start();
        for event in events {
            play(&mut world, event);
            if matches!(world.machine.status().phase, PhaseName::Ended) {
                break;
            }
        }
    }
}

#[test]
fn devices_that_differ_are_not_somebody_who_beats() {
    // One device missed the last beat of the life before; which two answer first differs from look to look.
    let before = |number: u64| Some(beat_of(BootId([5; 16]), number, NodeState::Member, false));
    for order in [[5, 10, 15], [15, 5, 10], [10, 15, 5]] {
        let mut world = World::new(config(3));
        (world.own[0], world.own[1], world.own[2]) = (before(325), before(324), before(324));
        for (device, latency_ms) in order.into_iter().enumerate() {
            world.health[device] = Health::Fine(latency_ms);
        }
        world.start();
        world.run(100);
        world.health.rotate_left(1);
        world.run(2000);
        assert_eq!(world.machine.status().phase, PhaseName::Living, "{order:?}");
        assert!(world.machine.status().beat > 325);
    }
}

#[test]
fn somebody_who_beats_on_two_of_three_devices_is_seen() {
    let other = |number: u64| Some(beat_of(BootId([5; 16]), number, NodeState::Member, false));
    for away in 0..3 {
        for order in [[5, 10, 400], [400, 5, 10], [10, 400, 5]] {
            let mut world = World::new(config(3));
            (0..3).for_each(|device| world.own[device] = other(100));
            for (device, latency_ms) in order.into_iter().enumerate() {
                world.health[device] = Health::Fine(latency_ms);
            }
            world.start();
            let is_refused =
                |world: &World| world.log.iter().any(|(_, output)| matches!(output, Output::Refuse(RefuseReason::SlotInUse { .. })));
            for turn in 1..60 {
                for device in (0..3).filter(|device| *device != away) {
                    world.own[device] = other(100 + turn);
                }
                world.run(50);
                assert!(world.machine.status().phase != PhaseName::Living, "{away} {order:?}");
            }
            assert!(is_refused(&world), "{away} {order:?}");
        }
    }
}

#[test]
fn a_bad_read_hides_nobody_who_beats_on_two_of_three_devices() {
    let other = |number: u64, is_stopped: bool| Some(beat_of(BootId([5; 16]), number, NodeState::Member, is_stopped));
    // The first device lags. The owner pauses until the third has shown the same as the second; the second is read badly then, twice.
    let mut world = World::new(config(3));
    world.own.fill(other(100, false));
    world.health = vec![Health::Fine(5), Health::Fine(10), Health::Fine(400)];
    world.start();
    world.run(100);
    world.health[1] = Health::Fine(400);
    world.run(350);
    world.is_rotten[1] = true;
    world.health = vec![Health::Fine(5), Health::Fine(10), Health::Hung];
    see_owner_found(&mut world, other, 800);

    // The first device shows where a life before the owner's stopped.
    let mut world = World::new(config(3));
    world.own[0] = other(40, true);
    world.is_rotten[1] = true;
    world.health[2] = Health::Fine(400);
    world.start();
    see_owner_found(&mut world, other, 200);
}

/// The owner beats on the second and the third device; the second is read badly for a while.
fn see_owner_found(world: &mut World, other: impl Fn(u64, bool) -> Option<Beat>, bad_ms: u64) {
    let until_ms = world.now_ms + bad_ms;
    for turn in 1..60 {
        world.own[1] = other(100 + turn, false);
        world.own[2] = other(100 + turn, false);
        world.run(50);
        world.is_rotten[1] &= world.now_ms < until_ms;
        assert!(world.machine.status().phase != PhaseName::Living, "turn {turn}");
    }
    assert!(matches!(world.refusal(), Some(RefuseReason::SlotInUse { .. })), "{:?}", world.machine.status());
}
