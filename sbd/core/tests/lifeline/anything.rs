//! What: any sequence of events.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: imagine devices; the parent does.
//! Called by: `cargo test`.

use super::*;
use proptest::prelude::*;

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
        1 => (0u8..11).prop_map(Event::Words),
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
            7 => world.words.vouched_until_ms = world.now_ms + 4000,
            8 => world.words.frozen_until_ms = world.now_ms + 20_000,
            9 => (world.words.vouched_until_ms, world.words.frozen_until_ms) = (0, 0),
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
