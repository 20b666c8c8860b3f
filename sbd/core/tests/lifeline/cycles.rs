//! What: the cycles of a life: leases, stalls, what people are told of them.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: imagine devices; the parent does.
//! Called by: `cargo test`.

use super::*;

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
