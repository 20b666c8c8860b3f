//! What: the own place on the devices: what is found there at the opening and later.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: imagine devices; the parent does.
//! Called by: `cargo test`.

use super::*;

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
