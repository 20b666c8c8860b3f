//! What: the daemon's word that the life is vouched for, or frozen: what it lengthens, and how far.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: imagine devices; the parent does.
//! Called by: `cargo test`.

use super::*;

/// A life whose disk hangs; answers the end of its lease by its last own cycle.
fn without_disk() -> (World, u64) {
    let mut world = World::living(1);
    world.health[0] = Health::Hung;
    world.run(200);
    let own_end_ms = *world.leases().last().unwrap();
    (world, own_end_ms)
}

fn newest(world: &World) -> (u64, u64) {
    let newest = world.log.iter().rev().find_map(|(_, output)| match output {
        Output::PublishLease { lease_end_ms, own_end_ms, .. } => Some((*lease_end_ms, *own_end_ms)),
        _ => None,
    });
    newest.unwrap()
}

#[test]
fn a_vouch_lengthens_the_lease_by_no_more_than_a_lease() {
    let (mut world, own_end_ms) = without_disk();
    world.run(1000);
    world.words.vouched_until_ms = world.now_ms + 2900;
    world.run(40);
    assert_eq!(newest(&world), (world.words.vouched_until_ms, own_end_ms));
    world.words.vouched_until_ms = u64::MAX;
    world.run(40);
    let most_ms = newest(&world).0;
    assert!(most_ms <= world.now_ms + 3100, "{most_ms}");
    world.run(2000);
    assert_eq!(newest(&world).0, most_ms, "the same word does not count again");
    world.run(2000);
    let (at_ms, _, reason) = world.reset().unwrap();
    assert_eq!(reason, ResetReason::LeaseEnded { lease_end_ms: most_ms, now_ms: at_ms });
}

#[test]
fn a_freeze_ends_f_behind_the_last_cycle_or_vouch() {
    let (mut world, _) = without_disk();
    world.run(1000);
    world.words.frozen_until_ms = u64::MAX;
    world.run(40);
    let (end_ms, _) = newest(&world);
    assert!(end_ms <= world.now_ms + 10_000 && end_ms >= world.now_ms + 9_900, "{end_ms}");
    world.run(8000);
    world.words.frozen_until_ms = u64::MAX - 1;
    world.run(40);
    let ((later_ms, own_end_ms), since_ms) = (newest(&world), world.now_ms);
    assert_eq!(later_ms, own_end_ms + 10_000, "a freeze under a freeze ends with the first ground");
    world.run(9000);
    assert!(world.reset().unwrap().0 >= later_ms && since_ms < later_ms);
}

#[test]
fn what_comes_after_the_lease_brings_nothing_back() {
    let (mut world, own_end_ms) = without_disk();
    world.run(4000);
    world.words.frozen_until_ms = world.now_ms + 5000;
    world.run(100);
    assert_eq!(newest(&world).0, own_end_ms);
    assert!(matches!(world.reset().unwrap().2, ResetReason::LeaseEnded { .. }));
}

#[test]
fn a_path_that_is_back_renews_the_own_lease_beside_the_freeze() {
    let (mut world, _) = without_disk();
    world.words.frozen_until_ms = world.now_ms + 10_000;
    world.run(6000);
    world.release();
    world.run(300);
    let (end_ms, own_end_ms) = newest(&world);
    assert_eq!(end_ms, world.words.frozen_until_ms);
    assert!(own_end_ms > world.now_ms + 2500 && world.reset().is_none());
    world.run(4000);
    let (end_ms, own_end_ms) = newest(&world);
    assert_eq!(end_ms, own_end_ms, "the freeze is behind it");
}

#[test]
fn a_daemon_that_takes_its_word_back_leaves_the_own_lease() {
    let (mut world, own_end_ms) = without_disk();
    world.words.frozen_until_ms = world.now_ms + 9000;
    world.run(100);
    world.words.frozen_until_ms = 0;
    world.run(100);
    assert_eq!(newest(&world), (own_end_ms, own_end_ms));
    world.words.frozen_until_ms = world.now_ms + 9000;
    world.run(4000);
    world.words.frozen_until_ms = 0;
    world.run(100);
    assert_eq!(world.reset().unwrap().2, ResetReason::LeaseEnded { lease_end_ms: own_end_ms, now_ms: world.reset().unwrap().0 });
}

#[test]
fn the_next_boot_carries_its_vouches_on_until_its_daemon_speaks() {
    let mut world = World::new(config(1));
    let vouches = vec![deadbolt_disk_format::Vouch { slot: SlotIndex(1), serial: 77 }];
    let mut before = beat_of(BootId([5; 16]), 3, NodeState::Member, false);
    before.daemon.vouches.clone_from(&vouches);
    world.own[0] = Some(before);
    world.start();
    world.run(2000);
    let own = world.own[0].as_ref().unwrap();
    assert_eq!((own.boot, own.daemon.state, &own.daemon.vouches), (BOOT, NodeState::None, &vouches));
}
