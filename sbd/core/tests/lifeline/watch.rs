//! What: the life of a drop-in watcher.
//! Owns: nothing.
//! Invariants: none.
//! Does not: know a daemon.
//! Called by: cargo test.

use super::*;
use deadbolt_sbd_core::{ClusterSay, ClusterSeen, StartMode, WatchRules};

fn watch(devices: usize, cluster: ClusterSay) -> LifelineConfig {
    let rules = WatchRules { devices: u32::try_from(devices).unwrap(), cluster, start: StartMode::Always, crash_reset_ms: 0 };
    LifelineConfig { regime: Regime::Watch(rules), ..config(devices) }
}

fn living(devices: usize, cluster: ClusterSay) -> World {
    let mut world = World::new(watch(devices, cluster));
    world.start();
    world.run(500);
    assert_eq!(world.machine.status().phase, PhaseName::Living);
    world
}

impl World {
    /// Lets time pass while the cluster keeps saying this.
    fn run_with_cluster(&mut self, span_ms: u64, is_well: bool) {
        let end_ms = self.now_ms + span_ms;
        while self.now_ms < end_ms {
            let word_ms = is_well.then_some(self.now_ms);
            self.give(Input::ClusterSeen(ClusterSeen { all_ms: word_ms, any_ms: word_ms, is_shut_down: false, outlive_ms: Some(7000) }));
            self.run(100);
        }
    }
}

#[test]
fn one_of_two_devices_is_enough_and_one_of_three_is_not() {
    for (devices, lives) in [(1, false), (2, true), (3, true)] {
        let mut world = living(devices, ClusterSay::None);
        world.health[0] = Health::Hung;
        world.run(10_000);
        assert_eq!(world.reset().is_none(), lives, "{devices} devices");
    }
    let mut world = living(3, ClusterSay::None);
    world.health[0] = Health::Hung;
    world.health[1] = Health::Broken;
    world.run(10_000);
    assert!(matches!(world.reset(), Some((_, ResetCommand::Reset, ResetReason::LeaseEnded { .. }))));
}

#[test]
fn a_message_on_any_of_two_devices_is_obeyed() {
    for device in [0, 1] {
        let mut world = living(2, ClusterSay::None);
        world.mailbox[device] = pill(3, None);
        world.run(300);
        assert!(matches!(world.reset(), Some((_, ResetCommand::Off, ResetReason::Pill { .. }))), "{:?}", world.reset());
        assert!(world.own.iter().flatten().any(|beat| beat.acknowledged.is_some()));
    }
}

#[test]
fn under_the_rule_disk_it_disarms_only_when_its_last_beat_stands() {
    let mut world = living(1, ClusterSay::None);
    world.give(Input::StopAsked);
    world.run(200);
    assert!(world.has(|output| matches!(output, Output::Exit { is_recorded: true })));
    let stopped = world.log.iter().position(|(_, output)| matches!(output, Output::Cycle { beat, .. } if beat.is_stopped)).unwrap();
    let disarmed = world.log.iter().position(|(_, output)| *output == Output::Disarm).unwrap();
    assert!(stopped < disarmed && world.own[0].as_ref().unwrap().is_stopped);
    assert_eq!(world.own[0].as_ref().unwrap().rule, deadbolt_disk_format::Rule::Disk);
    // With a device that fails it tries again; with none that answers its lease ends.
    let mut world = living(1, ClusterSay::None);
    world.health[0] = Health::Broken;
    world.give(Input::StopAsked);
    world.run(300);
    assert!(!world.has(|output| *output == Output::Disarm));
    world.health[0] = Health::Fine(5);
    world.run(300);
    assert!(world.has(|output| matches!(output, Output::Exit { is_recorded: true })));
    let mut world = living(1, ClusterSay::None);
    world.health[0] = Health::Hung;
    world.give(Input::StopAsked);
    world.run(5000);
    assert!(!world.has(|output| *output == Output::Disarm) && world.reset().is_some());
}

#[test]
fn a_pill_that_comes_while_it_leaves_is_answered() {
    let mut world = living(1, ClusterSay::None);
    world.mailbox[0] = pill(2, Some(BOOT));
    world.give(Input::StopAsked);
    world.run(300);
    assert!(matches!(world.reset(), Some((_, ResetCommand::Reset, ResetReason::Pill { .. }))));
    assert!(world.own[0].as_ref().unwrap().acknowledged.is_some());
}

#[test]
fn the_cluster_keeps_it_alive_without_its_disk_and_no_longer() {
    let mut world = living(1, ClusterSay::KeepsAlive);
    world.run_with_cluster(500, true);
    let beat = world.own[0].clone().unwrap();
    assert_eq!((beat.rule, beat.outlive_ms), (deadbolt_disk_format::Rule::Cluster, 7000 + 2 * 1210));
    world.health[0] = Health::Hung;
    world.run_with_cluster(30_000, true);
    assert!(world.reset().is_none());
    let lost_ms = world.now_ms;
    world.run_with_cluster(10_000, false);
    let (reset_ms, _, reason) = world.reset().unwrap();
    assert!(matches!(reason, ResetReason::LeaseEnded { .. }));
    assert!(reset_ms <= lost_ms + 2 * 1210, "no feed after the word was taken back: {} ms", reset_ms - lost_ms);
    // A cluster that falls silent counts as long as its last word.
    let mut world = living(1, ClusterSay::KeepsAlive);
    world.run_with_cluster(500, true);
    world.health[0] = Health::Hung;
    world.run_with_cluster(5000, true);
    let silent_ms = world.now_ms;
    world.run(10_000);
    let reset_ms = world.reset().unwrap().0;
    assert!(reset_ms > silent_ms + 2000 && reset_ms <= silent_ms + u64::from(timings().stall_ms + 2 * 1210), "{}", reset_ms - silent_ms);
}

#[test]
fn a_cluster_that_must_agree_ends_it_once_it_was_well() {
    let mut world = living(1, ClusterSay::MustAgree);
    world.run_with_cluster(5000, false);
    assert!(world.reset().is_none(), "it has not appeared yet");
    world.run_with_cluster(1000, true);
    world.run_with_cluster(5000, false);
    assert!(world.reset().is_some());
}

#[test]
fn without_a_disk_it_lives_by_its_cluster() {
    let mut world = World::new(watch(0, ClusterSay::Alone));
    world.start();
    world.run_with_cluster(500, false);
    assert_eq!(world.machine.status().phase, PhaseName::Arming);
    world.run_with_cluster(5000, true);
    assert_eq!(world.machine.status().phase, PhaseName::Living);
    assert!(world.reset().is_none());
    world.run_with_cluster(5000, false);
    assert!(world.reset().is_some());
}

#[test]
fn under_the_rule_cluster_it_disarms_at_once_and_says_stopped_only_without_services() {
    let mut world = living(1, ClusterSay::KeepsAlive);
    world.give(Input::StopAsked);
    world.run(200);
    assert!(world.has(|output| matches!(output, Output::Exit { is_recorded: true })));
    let mut world = living(1, ClusterSay::KeepsAlive);
    world.run_with_cluster(500, true);
    world.give(Input::StopAsked);
    world.run(200);
    assert!(world.has(|output| matches!(output, Output::Exit { is_recorded: false })));
    assert!(!world.own[0].as_ref().unwrap().is_stopped, "services may run on");
}

#[test]
fn a_stop_right_behind_a_clean_shutdown_of_the_cluster_says_so_on_the_disk() {
    let mut world = living(1, ClusterSay::KeepsAlive);
    world.run_with_cluster(1000, true);
    world.give(Input::ClusterSeen(ClusterSeen { is_shut_down: true, ..ClusterSeen::default() }));
    world.give(Input::StopAsked);
    world.run(2000);
    assert!(world.own[0].as_ref().unwrap().is_stopped, "what is left of the good word serves nobody");
}

#[test]
fn exit_ends_a_watcher_and_is_erased_at_the_next_start() {
    let mut world = living(1, ClusterSay::None);
    world.mailbox[0] = pill(4, None);
    world.run(300);
    assert!(world.has(|output| matches!(output, Output::Exit { is_recorded: true })));
    assert!(world.reset().is_none());
    let mut world = World::new(watch(1, ClusterSay::None));
    world.mailbox[0] = pill(4, None);
    world.start();
    world.run(1000);
    assert_eq!((world.machine.status().phase, world.mailbox[0].command), (PhaseName::Living, 0));
}

#[test]
fn what_stands_in_the_mailbox_at_the_start() {
    // Message, its boot, the boot that beat here before, start mode -> refused, reset, lives
    let earlier = BootId([8; 16]);
    let table = [
        (pill(2, None), Some(earlier), StartMode::Always, "lives"),
        (pill(2, None), None, StartMode::Always, "lives"),
        (pill(2, Some(earlier)), Some(earlier), StartMode::Always, "lives"),
        (pill(2, Some(BOOT)), Some(earlier), StartMode::Always, "reset"),
        (pill(2, None), Some(BOOT), StartMode::Always, "reset"),
        (pill(1, None), Some(earlier), StartMode::Clean, "refused"),
        (pill(2, None), Some(earlier), StartMode::Clean, "refused"),
        (pill(2, Some(earlier)), Some(earlier), StartMode::Clean, "refused"),
        (pill(4, None), Some(earlier), StartMode::Clean, "lives"),
    ];
    for (message, before, start, expected) in table {
        let rules = WatchRules { devices: 1, cluster: ClusterSay::None, start, crash_reset_ms: 0 };
        let mut world = World::new(LifelineConfig { regime: Regime::Watch(rules), ..config(1) });
        world.mailbox[0] = message.clone();
        world.own[0] = before.map(|boot| beat_of(boot, 7, NodeState::None, false));
        world.start();
        world.run(2000);
        let found = match (world.refusal(), world.reset()) {
            (Some(RefuseReason::NotClean { .. }), None) => "refused",
            (None, Some(_)) => "reset",
            (None, None) if world.machine.status().phase == PhaseName::Living && world.mailbox[0].command == 0 => "lives",
            _ => "something else",
        };
        assert_eq!(found, expected, "{message:?} {before:?} {start:?}");
    }
}

#[test]
fn an_empty_mailbox_is_signed_at_the_start_and_never_later() {
    // The boot that it names, its serial -> clears
    let earlier = BootId([8; 16]);
    for (tail, clears) in [(None, 1), (Some((earlier, 1)), 1), (Some((BOOT, 0)), 1), (Some((BOOT, 1)), 0)] {
        let mut world = World::new(watch(1, ClusterSay::None));
        let tail = tail.map(|(boot, serial)| TailSeen { boot, serial, authenticity: Authenticity::Unchecked });
        world.mailbox[0] = MailboxSeen { tail, ..MailboxSeen::clear() };
        world.start();
        world.run(1000);
        // What a stock tool leaves.
        world.mailbox[0] = MailboxSeen::clear();
        world.run(1000);
        assert_eq!(world.machine.status().phase, PhaseName::Living);
        assert_eq!(world.log.iter().filter(|(_, output)| matches!(output, Output::ClearMailbox { .. })).count(), clears, "{tail:?}");
    }
}

#[test]
fn a_life_that_has_answered_a_pill_is_not_gone_on_with_in_the_same_boot() {
    for (boot, ends) in [(BOOT, true), (BootId([8; 16]), false)] {
        let mut world = World::new(watch(1, ClusterSay::None));
        let answer = Some(deadbolt_disk_format::Acknowledgement { reset_ms: 1000, command: 2 });
        world.own[0] = Some(Beat { acknowledged: answer, ..beat_of(boot, 7, NodeState::None, false) });
        world.start();
        world.run(1000);
        assert_eq!(matches!(world.reset(), Some((_, _, ResetReason::AnsweredBefore { .. }))), ends);
        assert!(!ends || !world.checker.is_armed);
    }
}

#[test]
fn a_slower_watchdog_lengthens_the_lease_that_is_published() {
    let mut world = World::new(watch(1, ClusterSay::None));
    world.give(Input::Resume { beat: 40, unread: 0 });
    world.run(200);
    assert_eq!(world.machine.status().phase, PhaseName::Living);
    assert_eq!(world.own[0].as_ref().unwrap().lease_ms, timings().stall_ms + 2 * 1210);
    assert!(world.own[0].as_ref().unwrap().beat > 40);
}

#[test]
fn a_cluster_that_was_shut_down_cleanly_is_not_missed() {
    let mut world = living(1, ClusterSay::MustAgree);
    world.run_with_cluster(1000, true);
    world.give(Input::ClusterSeen(ClusterSeen { is_shut_down: true, ..ClusterSeen::default() }));
    world.run(10_000);
    assert!(world.reset().is_none());
}

#[test]
fn what_is_in_memory_is_flushed_once_and_before_the_feeding_ends() {
    let mut world = living(1, ClusterSay::None);
    world.health[0] = Health::Hung;
    world.run(10_000);
    let flushes: Vec<(u64, u64)> = world
        .log
        .iter()
        .filter_map(|(at_ms, output)| if let Output::Flush { until_ms } = output { Some((*at_ms, *until_ms)) } else { None })
        .collect();
    let [(at_ms, until_ms)] = flushes[..] else { panic!("{flushes:?}") };
    assert!(at_ms < until_ms && until_ms + 2 * 1210 <= world.reset().unwrap().0);
    let mut node = World::living(1);
    node.health[0] = Health::Hung;
    node.run(10_000);
    assert!(!node.has(|output| matches!(output, Output::Flush { .. })), "what a node of ours leaves is its clients' own");
}

/// Other times, and a watchdog that is set after a while; every beat and every lease on the way.
fn retimed(watchdog_ms: u32, stall_ms: u32, reset_ms: u32) -> (World, u64) {
    let mut world = living(1, ClusterSay::None);
    let before = world.log.len();
    let lease_ms = stall_ms + 2 * reset_ms;
    let wanted = Timings { watchdog_ms, stall_ms, reset_ms, lease_ms, expiry_ms: lease_ms + 100, ..timings() };
    world.give(Input::Retimed(wanted));
    assert!(world.log[before..].iter().any(|(_, output)| *output == Output::SetWatchdog { watchdog_ms }));
    world.run(300);
    let set_ms = world.now_ms;
    world.give(Input::WatchdogSet { reset_ms });
    world.run(500);
    (world, set_ms)
}

#[test]
fn longer_times_are_published_before_they_are_lived_by() {
    let (world, set_ms) = retimed(2000, 2000, 2220);
    let lease_ms = 2000 + 2 * 2220;
    let mut published = BTreeMap::new();
    for (at_ms, output) in &world.log {
        match output {
            Output::Cycle { beat, .. } => drop(published.insert(beat.beat, (*at_ms, beat.lease_ms))),
            Output::PublishLease { lease_end_ms, beat, .. } => {
                let (issued_ms, said_ms) = published[beat];
                assert!(*lease_end_ms <= issued_ms + u64::from(said_ms), "beat {beat}");
            }
            _ => {}
        }
    }
    assert!(published.values().any(|(at_ms, said_ms)| *at_ms < set_ms && *said_ms == lease_ms), "published before the watchdog has it");
    assert_eq!(world.own[0].as_ref().unwrap().lease_ms, lease_ms);
    assert!(world.reset().is_none());
}

#[test]
fn shorter_times_are_lived_by_before_they_are_published() {
    let (mut world, set_ms) = retimed(500, 500, 705);
    let lease_ms = 500 + 2 * 705;
    let short: Vec<u64> = world
        .log
        .iter()
        .filter_map(
            |(at_ms, output)| if let Output::Cycle { beat, .. } = output { (beat.lease_ms == lease_ms).then_some(*at_ms) } else { None },
        )
        .collect();
    assert!(short.iter().all(|at_ms| *at_ms >= set_ms) && !short.is_empty());
    let lease = world.log.iter().find_map(|(at_ms, output)| match output {
        Output::PublishLease { lease_end_ms, .. } if *at_ms >= set_ms => Some((*at_ms, *lease_end_ms)),
        _ => None,
    });
    let (at_ms, end_ms) = lease.unwrap();
    assert!(at_ms == set_ms && end_ms <= set_ms + u64::from(lease_ms));
    world.health[0] = Health::Hung;
    let hung_ms = world.now_ms;
    world.run(5000);
    assert!(world.reset().unwrap().0 <= hung_ms + u64::from(lease_ms));
}

#[test]
fn the_time_of_a_crash_dump_is_part_of_what_is_published() {
    let rules = WatchRules { devices: 1, cluster: ClusterSay::None, start: StartMode::Always, crash_reset_ms: 60_000 };
    let mut world = World::new(LifelineConfig { regime: Regime::Watch(rules), ..config(1) });
    world.start();
    world.run(1000);
    assert_eq!(world.own[0].as_ref().unwrap().lease_ms, timings().stall_ms + 1210 + 60_000);
    world.health[0] = Health::Hung;
    let hung_ms = world.now_ms;
    world.run(10_000);
    assert!(world.reset().unwrap().0 <= hung_ms + u64::from(timings().stall_ms + 2 * 1210), "it lives no longer for that");
}

#[test]
fn an_old_pill_on_a_device_that_answered_late_ends_no_life_that_is_gone_on_with() {
    for (unread, ends) in [(2, false), (0, true)] {
        let mut world = World::new(watch(2, ClusterSay::None));
        world.mailbox[1] = pill(2, None);
        world.give(Input::Resume { beat: 40, unread });
        world.run(500);
        assert_eq!(world.reset().is_some(), ends);
        assert_eq!(world.mailbox[1].command == 0, !ends);
    }
}

#[test]
fn a_life_publishes_no_shorter_lease_than_the_one_before_until_its_watchdog_is_armed() {
    for (boot, is_stopped, first_ms) in [(BOOT, false, 90_000), (BOOT, true, 3100), (BootId([8; 16]), false, 3100)] {
        let mut world = World::new(watch(1, ClusterSay::None));
        world.own[0] = Some(Beat { lease_ms: 90_000, ..beat_of(boot, 7, NodeState::None, is_stopped) });
        world.start();
        world.run(1500);
        let leases =
            world.log.iter().filter_map(|(_, output)| if let Output::Cycle { beat, .. } = output { Some(beat.lease_ms) } else { None });
        let leases: Vec<u32> = leases.collect();
        assert_eq!((leases[0], *leases.last().unwrap()), (first_ms, 1000 + 2 * 1210), "{leases:?}");
    }
}

#[test]
fn a_stopped_record_on_the_faster_device_does_not_hide_a_life_on_the_slower_one() {
    let mut world = World::new(watch(2, ClusterSay::None));
    let other = BootId([8; 16]);
    world.own[0] = Some(beat_of(other, 7, NodeState::None, true));
    world.own[1] = Some(beat_of(other, 9, NodeState::None, false));
    world.health[1] = Health::Fine(100);
    world.start();
    for number in 10..30 {
        world.own[1] = Some(beat_of(other, number, NodeState::None, false));
        world.run(100);
    }
    assert!(matches!(world.refusal(), Some(RefuseReason::SlotInUse { .. })), "{:?}", world.refusal());
    // One that does not answer at all is waited for no longer than that.
    let mut world = World::new(watch(2, ClusterSay::None));
    world.health[1] = Health::Hung;
    world.start();
    world.run(1500);
    assert_eq!(world.machine.status().phase, PhaseName::Living);
}
