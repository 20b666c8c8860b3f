//! What: the daemon and the supervisor: what their ends and their silence mean.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: imagine devices; the parent does.
//! Called by: `cargo test`.

use super::*;

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
