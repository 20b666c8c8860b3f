//! What: pills and names in the mailbox.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: imagine devices; the parent does.
//! Called by: `cargo test`.

use super::*;

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
fn who_answers_does_not_outlive_its_lease_meanwhile() {
    let mut world = World::living(1);
    world.answers_retire = false;
    let (lease_ms, poll_ms) = (timings().lease_ms, timings().poll_ms);
    // The next cycle comes back a moment before the lease of the one before ends.
    world.health[0] = Health::Fine(u64::from(lease_ms - poll_ms) - 20);
    world.mailbox[0] = pill(2, Some(BOOT));
    world.run(u64::from(lease_ms) + 1000);
    let (at_ms, _, reason) = world.reset().unwrap();
    assert!(matches!(reason, ResetReason::Pill { .. }), "{reason:?}");
    assert!(at_ms <= *world.leases().last().unwrap());
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
fn an_old_pill_on_a_device_that_answered_late_ends_no_new_boot() {
    for slow in [Health::Fine(60), Health::Hung] {
        let mut world = World::new(config(3));
        world.own.fill(Some(beat_of(BootId([8; 16]), 7, NodeState::None, false)));
        world.mailbox.fill(pill(2, None));
        world.health[2] = slow;
        world.start();
        world.run(1500);
        world.release();
        world.run(1500);
        assert_eq!(world.reset(), None, "{slow:?}");
        assert_eq!(world.machine.status().phase, PhaseName::Living);
        assert!(world.mailbox.iter().all(|mailbox| mailbox.command == 0), "{:?}", world.mailbox);
        // A new one is obeyed, there too.
        world.mailbox[2] = pill(2, None);
        world.run(300);
        assert!(matches!(world.reset(), Some((_, _, ResetReason::Pill { device: 2, .. }))));
    }
}
