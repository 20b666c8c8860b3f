//! Lives beyond the own beat, in the small world: paths that hang, questions, consents, vouches.

use super::*;

fn lease_ms() -> u64 {
    u64::from(timings().lease_ms)
}

fn freeze_ms() -> u64 {
    u64::from(timings().freeze_ms)
}

impl World {
    /// Everybody is in and knows it.
    fn settled(nodes: usize) -> Self {
        let mut world = Self::whole(nodes);
        world.run(500);
        world
    }

    fn cut_off(&mut self, slots: &[usize]) {
        slots.iter().for_each(|slot| self.places[*slot].is_cut_off = true);
    }

    fn run(&mut self, span_ms: u64) {
        let end_ms = self.now_ms + span_ms;
        while self.now_ms < end_ms {
            self.step();
        }
    }

    fn living(&self) -> Vec<usize> {
        (0..self.places.len()).filter(|slot| self.places[*slot].machine.is_some()).collect()
    }

    fn ground(&self, slot: usize) -> Ground {
        self.places[slot].machine.as_ref().map_or(Ground::None, |machine| machine.ground(self.now_ms))
    }

    fn witness(&self, of: usize, slot: usize) -> Witness {
        let life = self.places[slot].machine.as_ref().unwrap().setup.me;
        self.places[of].machine.as_ref().unwrap().witness_of(&life)
    }
}

#[test]
fn a_member_without_a_path_lives_on_a_vouch_and_proposes_nothing() {
    let mut world = World::settled(3);
    let views = world.views.len();
    world.cut_off(&[0]);
    world.run(10 * lease_ms());
    assert_eq!((world.living(), world.views.len()), (vec![0, 1, 2], views), "its beat is silent, the vouches for it are not");
    assert_eq!((world.ground(0), world.ground(1)), (Ground::Vouch, Ground::Own));
    world.kill(2);
    world.run_until(20_000, "the dead one is removed", |world| world.members() == [0, 1]);
    assert_eq!(world.views.last().unwrap().proposer.unwrap().slot, SlotIndex(1), "though node 0 comes first");
    world.places[0].is_cut_off = false;
    world.run(1000);
    assert_eq!(world.ground(0), Ground::Own);
}

#[test]
fn a_voucher_that_dies_is_followed_by_another() {
    let mut world = World::settled(3);
    world.cut_off(&[0]);
    world.run(5000);
    world.kill(1);
    world.run(2 * lease_ms());
    assert_eq!((world.living(), world.members()), (vec![0, 2], vec![0, 2]));
    world.kill(2);
    world.run(2 * lease_ms());
    assert_eq!(world.living(), Vec::<usize>::new(), "nobody vouches, and the peer is silent");
}

#[test]
fn who_cannot_learn_a_later_view_is_given_up_after_a_lease() {
    let mut world = World::settled(3);
    world.cut_off(&[0]);
    world.run(5000);
    world.kill(1);
    world.run_until(10_000, "a view without node 1", |world| world.members() == [0, 2]);
    world.run(lease_ms() - 500);
    assert_eq!(world.living(), [0, 2]);
    // Also where further views follow: one says that node 1 is gone.
    world.run_until(lease_ms() + 1500, "a view of node 2 alone", |world| world.members() == [2]);
    assert_eq!(world.living(), [2]);
}

#[test]
fn a_vouch_stands_across_the_lives_of_its_voucher() {
    let mut world = World::settled(2);
    world.cut_off(&[0]);
    world.run(5000);
    let stood = world.beats[&SlotIndex(1)].daemon.vouches.clone();
    assert_eq!(stood.len(), 1);
    world.places[0].is_cut_off = false;
    world.run(3000);
    let newest = world.beats[&SlotIndex(1)].daemon.vouches.clone();
    assert_eq!(newest.len(), 1, "also when the node's own beat has advanced");
    world.kill(1);
    world.places[1].incarnation += 1;
    world.boot(1, 2);
    world.run(500);
    assert_eq!(world.beats[&SlotIndex(1)].daemon.vouches, newest);
}

#[test]
fn all_members_freeze_and_go_on_where_they_were() {
    let mut world = World::settled(3);
    let views = world.views.len();
    world.cut_off(&[0, 1, 2]);
    world.run(freeze_ms() - 2000);
    assert_eq!((world.living(), world.views.len()), (vec![0, 1, 2], views));
    assert_eq!(world.ground(0), Ground::Freeze);
    // One path is back before the others.
    world.places[1].is_cut_off = false;
    world.run(3 * lease_ms());
    assert_eq!((world.living(), world.views.len()), (vec![0, 1, 2], views));
    assert_eq!((world.ground(1), world.ground(0)), (Ground::Own, Ground::Vouch), "it vouches for the others");
    world.places[0].is_cut_off = false;
    world.places[2].is_cut_off = false;
    world.run(2 * freeze_ms());
    assert_eq!((world.living(), world.views.len(), world.resets), (vec![0, 1, 2], views, 0));
}

#[test]
fn a_freeze_ends_after_f() {
    let mut world = World::settled(2);
    world.cut_off(&[0, 1]);
    let lost_ms = world.now_ms;
    world.run_until(2 * freeze_ms(), "the end", |world| world.living().is_empty());
    let span_ms = world.now_ms - lost_ms;
    assert!(span_ms >= freeze_ms() && span_ms <= freeze_ms() + lease_ms(), "{span_ms}");
}

#[test]
fn without_the_disk_and_with_a_silent_peer_everybody_stops() {
    let mut world = World::settled(3);
    world.cut_off(&[0, 1, 2]);
    world.cut.extend([(0, 2), (1, 2)]);
    world.run(2 * lease_ms());
    assert_eq!(world.living(), Vec::<usize>::new());
    // A chain that breaks in the same instant: who holds all consents lives on.
    let mut chain = World::settled(3);
    chain.cut_off(&[0, 1, 2]);
    chain.cut.push((0, 2));
    chain.run(2 * lease_ms());
    assert_eq!(chain.living(), [1]);
}

#[test]
fn paths_lost_one_long_after_the_other_freeze_on_vouches() {
    let mut world = World::settled(3);
    for slot in 0..3 {
        world.cut_off(&[slot]);
        world.run(2 * lease_ms());
    }
    world.run(freeze_ms() / 2);
    assert_eq!(world.living(), [0, 1, 2]);
}

#[test]
fn w_is_enough_only_for_who_is_removed_and_was_with_this_node_and_not_frozen_with_it() {
    let mut world = World::settled(3);
    assert_eq!(world.witness(0, 1), Witness::Outsider, "not removed");
    world.cut.push((1, 0));
    world.cut.push((1, 2));
    world.hold(1);
    world.places[1].is_blind = true;
    world.run_until(10_000, "node 1 is removed", |world| world.members() == [0, 2]);
    world.step();
    let life = world.views[world.views.len() - 2].members[1];
    let witness = |world: &World, of: usize| world.places[of].machine.as_ref().unwrap().witness_of(&life);
    assert_eq!(witness(&world, 0), Witness::MemberOfLastView { from_ms: 0 });
    assert_eq!(
        witness(&world, 2),
        Witness::MemberOfLastView { from_ms: 0 },
        "both were let in by one view: it can have asked nobody before"
    );
    // Who was there before had to say that it had asked for no freeze.
    let first = world.places[0].machine.as_ref().unwrap().setup.me;
    let unfrozen_ms = world.places[2].machine.as_ref().unwrap().proposal.unfrozen_ms(&first).unwrap();
    assert!(unfrozen_ms > 0 && unfrozen_ms <= world.now_ms);
}

#[test]
fn a_consent_binds_towards_who_asked_and_towards_nobody_else() {
    let mut world = World::settled(2);
    world.cut_off(&[0, 1]);
    world.run(2000);
    world.places.iter_mut().for_each(|place| place.is_cut_off = false);
    let bound_ms = |world: &World, of: usize, life: &Life| world.places[of].machine.as_ref().unwrap().bound_until_ms(life);
    let before = world.places[1].machine.as_ref().unwrap().setup.me;
    world.kill(1);
    world.places[1].boot += 1;
    world.boot(1, 2);
    let next = world.places[1].machine.as_ref().unwrap().setup.me;
    assert!(bound_ms(&world, 0, &before) > world.now_ms && bound_ms(&world, 0, &next) == 0);
}

#[test]
fn a_question_that_nobody_can_answer_any_more_holds_up_nobody() {
    let mut world = World::settled(2);
    world.cut_off(&[0]);
    // No vouch reaches it, and no consent: the other one has the disk.
    world.run(1000);
    let left_ms = |world: &World| world.places[0].machine.as_ref().unwrap().freeze_left_ms();
    let asked = world.places[0].machine.as_mut().unwrap();
    asked.beyond = crate::membership::beyond::Beyond::default();
    asked.handle(world.now_ms, Input::Tick);
    assert!(left_ms(&world) > 0, "a consent may still come");
    world.places[0].is_cut_off = false;
    world.run(500);
    assert_eq!(left_ms(&world), 0);
}

#[test]
fn a_member_that_is_about_to_leave_takes_part_in_the_freeze() {
    let mut world = World::settled(2);
    world.cut_off(&[0, 1]);
    let now_ms = world.now_ms;
    world.places[1].machine.as_mut().unwrap().handle(now_ms, Input::Stop);
    world.run(freeze_ms() / 2);
    assert_eq!((world.ground(0), world.ground(1)), (Ground::Freeze, Ground::Freeze));
    world.places.iter_mut().for_each(|place| place.is_cut_off = false);
    world.run_until(20_000, "it has left", |world| world.places[1].is_stopped && world.members() == [0]);
    assert_eq!(world.resets, 0);
}

#[test]
fn who_has_not_learned_the_view_of_a_question_binds_itself_all_the_same() {
    let mut world = World::settled(2);
    world.cut_off(&[0, 1]);
    world.run(lease_ms() / 2);
    let (now_ms, from) = (world.now_ms, world.places[0].machine.as_ref().unwrap().setup.me);
    let machine = world.places[1].machine.as_mut().unwrap();
    let view = machine.known.body.view;
    let mut answers = |view: u64, serial: u32| {
        machine.handle(now_ms, Input::Told { from, message: Message::AskFreeze { view: ViewNumber(view), serial } });
        core::iter::from_fn(|| machine.poll_output())
            .filter(|output| matches!(output, Output::Tell { message: Message::Consent { .. }, .. }))
            .count()
    };
    assert_eq!((answers(view.0 - 1, 1), answers(view.0 + 1, 2)), (0, 1), "one for a view that is over, one for a later one");
    assert!(machine.bound_until_ms(&from) > now_ms);
}

#[test]
fn a_consent_binds_its_giver_for_f_and_a_new_life_is_an_outsider() {
    let mut world = World::settled(2);
    world.cut_off(&[0, 1]);
    world.run(2000);
    world.places[0].is_cut_off = false;
    world.places[1].is_cut_off = false;
    let peer = world.places[1].machine.as_ref().unwrap().setup.me;
    let bound_ms = |world: &World| world.places[0].machine.as_ref().unwrap().bound_until_ms(&peer);
    let until_ms = bound_ms(&world);
    assert!(until_ms > world.now_ms + freeze_ms() - 2000 && until_ms < world.now_ms + freeze_ms() + 2000, "{until_ms}");
    world.run(3000);
    assert_eq!(bound_ms(&world), until_ms, "a beat of its own does not make it forget");
    let left_ms = world.places[1].machine.as_ref().unwrap().freeze_left_ms();
    assert!(u64::from(left_ms) > freeze_ms() - 6000 && left_ms < timings().freeze_ms);
    // Whoever comes to node 1 now is told of it.
    world.kill(0);
    world.places[0].boot += 1;
    world.boot(0, 2);
    world.run_until(20_000, "the next life is in", |world| world.members() == [0, 1] && world.views.len() > 3);
    world.run(1000);
    let unfrozen_ms = world.places[0].machine.as_ref().unwrap().proposal.unfrozen_ms(&peer).unwrap();
    assert!(unfrozen_ms > world.now_ms + freeze_ms() / 2, "{unfrozen_ms}");
}

#[test]
fn who_was_removed_and_is_let_in_again_has_to_say_what_it_asked_before() {
    let [me, removed, new] = [0, 1, 2].map(|slot| Life { slot: SlotIndex(slot), boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) });
    let before = ViewBody {
        view: ViewNumber(4),
        members: vec![me],
        owed: vec![deadbolt_disk_format::Owed { life: removed, removed_in: ViewNumber(3) }],
        ..ViewBody::default()
    };
    let body = ViewBody { view: ViewNumber(5), members: vec![me, removed, new], ..ViewBody::default() };
    let mut proposals = crate::membership::proposal::Proposals::default();
    proposals.handle_view(&body, &before, true, 0);
    assert_eq!((proposals.unfrozen_ms(&removed), proposals.unfrozen_ms(&new)), (None, Some(0)));
}

fn outputs(machine: &mut Membership) -> Vec<Output> {
    core::iter::from_fn(|| machine.poll_output()).collect()
}

#[test]
fn a_grant_leaves_when_the_vouch_is_complete_and_a_look_after_that_has_found_nothing() {
    let mut world = World::settled(2);
    let (now_ms, from) = (world.now_ms, world.places[0].machine.as_ref().unwrap().setup.me);
    let machine = world.places[1].machine.as_mut().unwrap();
    for (serial, is_free) in [(7, false), (8, true)] {
        machine.handle(now_ms, Input::Told { from, message: Message::AskVouch { serial } });
        let asked = outputs(machine);
        assert!(!asked.iter().any(|output| matches!(output, Output::Tell { .. } | Output::LookFor { .. })), "{asked:?}");
        let number = machine.number;
        let lifeline = |published| Input::Lifeline { lease_end_ms: now_ms + lease_ms(), own_end_ms: now_ms + lease_ms(), published };
        machine.handle(now_ms, lifeline(number - 1));
        assert!(!outputs(machine).iter().any(|output| matches!(output, Output::LookFor { .. })));
        machine.handle(now_ms, lifeline(number));
        let looked = outputs(machine);
        assert!(looked.iter().any(|output| matches!(output, Output::LookFor { serial: of, .. } if *of == serial)), "{looked:?}");
        assert!(!looked.iter().any(|output| matches!(output, Output::Tell { .. })), "{looked:?}");
        machine.handle(now_ms, Input::Looked { life: from, serial, is_free });
        let grant = Output::Tell { peer: from, message: Message::Grant { serial } };
        assert_eq!(outputs(machine).contains(&grant), is_free);
    }
}

#[test]
fn the_lease_by_a_vouch_counts_from_the_request_however_late_its_grant_comes() {
    let mut world = World::settled(2);
    let from = world.places[1].machine.as_ref().unwrap().setup.me;
    let machine = world.places[0].machine.as_mut().unwrap();
    let asked_ms = world.now_ms + lease_ms() / 2;
    machine.handle(asked_ms, Input::Tick);
    let serials: Vec<u32> = outputs(machine)
        .iter()
        .filter_map(|output| match output {
            Output::Tell { message: Message::AskVouch { serial }, .. } => Some(*serial),
            _ => None,
        })
        .collect();
    machine.handle(asked_ms + 1000, Input::Told { from, message: Message::Grant { serial: serials[0] } });
    let until_ms = asked_ms + lease_ms();
    assert!(outputs(machine).contains(&Output::Extend { vouched_until_ms: until_ms, frozen_until_ms: 0 }));
}
