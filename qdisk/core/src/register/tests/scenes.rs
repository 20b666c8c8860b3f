//! What: situations one by one, on devices that do what they are told.
//! Owns: the calm world.
//! Invariants: operations come in order.
//! Does not: draw anything.
//! Called by: `cargo test`.

use super::*;

/// Devices that do what they are told, operations in order.
fn calm(nodes: u16, devices: usize) -> World {
    let mut world = World::new(Plan { nodes, devices, crashes: false, ..PLAIN }, 1);
    world.is_quiet = true;
    world.finish();
    world
}

impl World {
    fn finish(&mut self) {
        for _ in 0..2000 {
            match self.ops.iter().position(|op| !self.disks[op.device].is_silent && !self.nodes[op.node].is_paused) {
                Some(index) => self.progress(index),
                None => self.pass_time(),
            }
        }
        assert!(self.violation.is_none(), "{:?}", self.violation);
    }
    fn status(&self, node: usize) -> RegisterStatus {
        self.nodes[node].register.as_ref().unwrap().status()
    }
    fn view(&self, node: usize) -> u64 {
        self.status(node).view.unwrap_or_default().0
    }
    fn decide(&mut self, node: usize) {
        self.propose(node);
        self.finish();
    }
    fn flip(&mut self, device: usize, offset: ByteOffset) {
        self.disks[device].bytes[usize::try_from(offset.0).unwrap() + 300] ^= 1;
    }
}

#[test]
fn a_view_takes_five_operations_and_others_learn_it() {
    let mut world = calm(3, 1);
    assert_eq!((world.view(0), world.status(0).may_act), (0, true));
    let before = world.nodes[0].register.as_ref().unwrap().tag;
    world.decide(0);
    // Ballot and scan; body; ballot and scan; record; scan.
    assert_eq!(world.nodes[0].register.as_ref().unwrap().tag - before, 5);
    assert_eq!((world.view(0), world.view(1)), (1, 0));
    world.input(1, Input::Learn);
    world.finish();
    assert_eq!((world.view(1), world.status(1).may_act), (1, true));
}

#[test]
fn an_unreadable_vote_unit_stops_every_decision_until_its_owner_rewrites_it() {
    for index in 0..2 {
        let mut world = calm(3, 1);
        world.decide(2);
        world.input(0, Input::Learn);
        world.finish();
        let offset = world.disks[0].layout.vote(SlotIndex(2), index);
        world.flip(0, offset);
        world.decide(0);
        assert_eq!(world.view(0), 1, "stands still");
        assert!(world.figures.blocked > 0);
        world.input(2, Input::Learn);
        world.finish();
        assert_eq!(world.view(0), 2, "goes on by itself");
    }
}

#[test]
fn a_view_whose_last_scan_was_bad_is_learned_from_a_later_one() {
    let mut world = calm(3, 1);
    world.decide(2);
    world.input(0, Input::Learn);
    world.finish();
    world.propose(0);
    while [0, 1].into_iter().all(|index| world.disks[0].record(SlotIndex(0), index).is_none_or(|record| record.view.0 < 2)) {
        world.progress(0);
    }
    let offset = world.disks[0].layout.vote(SlotIndex(2), 0);
    world.flip(0, offset);
    world.finish();
    assert!(world.figures.blocked > 0 && !world.status(0).may_act);
    for node in [0, 2, 0] {
        world.input(node, Input::Learn);
        world.finish();
    }
    assert_eq!((world.view(0), world.status(0).may_act), (2, true));
}

#[test]
fn an_unreadable_vote_unit_binds_the_next_life_of_its_owner() {
    let mut world = calm(2, 1);
    world.decide(1);
    world.crash(1);
    let offset = world.disks[0].layout.vote(SlotIndex(1), 0);
    world.flip(0, offset);
    world.start(1);
    world.finish();
    assert_eq!(world.status(1).view, None);
    assert!(world.figures.blocked > 0);
}

#[test]
fn a_named_value_without_a_body_stops_the_instance() {
    let mut world = calm(2, 1);
    // Node 1 accepts its value and is gone before the record.
    world.propose(1);
    while world.disks[0].ballot(SlotIndex(1), 1).is_none_or(|ballot| ballot.accepted == 0)
        && world.disks[0].ballot(SlotIndex(1), 0).is_none_or(|ballot| ballot.accepted == 0)
    {
        world.progress(0);
    }
    world.crash(1);
    let bodies = world.disks[0].layout.body(SlotIndex(1), 0);
    let saved = world.disks[0].bytes.clone();
    for place in 0..u64::from(world.disks[0].layout.places) {
        world.flip(0, ByteOffset(bodies.0 + place * u64::from(PLACE_BYTES)));
    }
    world.decide(0);
    assert_eq!(world.view(0), 0);
    assert!(world.figures.blocked > 0);
    let at = usize::try_from(bodies.0).unwrap();
    world.disks[0].bytes[at..].copy_from_slice(&saved[at..]);
    world.finish();
    assert_eq!(world.view(0), 1);
    assert!(world.figures.lost > 0, "the dead node's value was taken on");
}

#[test]
fn a_body_that_rots_is_written_again_by_its_living_owner() {
    for devices in [1, 3] {
        let mut world = calm(2, devices);
        world.decide(0);
        for device in 0..devices {
            let bodies = world.disks[device].layout.body(SlotIndex(0), 0);
            for place in 0..u64::from(world.disks[device].layout.places) {
                world.flip(device, ByteOffset(bodies.0 + place * u64::from(PLACE_BYTES)));
            }
        }
        world.input(1, Input::Learn);
        world.finish();
        assert_eq!(world.view(1), 0, "there is no body to learn from");
        assert!(world.figures.blocked > 0);
        world.now_ms += 1000;
        world.input(0, Input::Learn);
        world.finish();
        assert_eq!((world.view(0), world.status(0).may_act), (1, true));
        assert_eq!(world.view(1), 1, "goes on by itself");
    }
}

#[test]
fn a_device_that_went_back_is_not_used_and_a_foreign_record_halts() {
    let mut world = calm(2, 3);
    world.decide(0);
    let saved = world.disks[2].bytes.clone();
    world.decide(0);
    world.disks[2].bytes = saved;
    world.nodes[0].register.as_mut().unwrap().handle(0, Input::Tick);
    world.input(0, Input::Learn);
    for _ in 0..200 {
        if let Some(index) = (!world.ops.is_empty()).then_some(0) {
            world.progress(index);
        }
    }
    assert_eq!(world.violation.take().map(|(violation, _)| violation), Some(Violation::Halted), "reported");
    assert_eq!((world.status(0).devices, world.view(0)), (2, 2));
    world.decide(0);
    assert_eq!(world.view(0), 3, "two of three go on");

    let mut world = calm(2, 1);
    world.decide(0);
    let at = place_at(world.disks[0].layout.vote(SlotIndex(0), 0), SlotIndex(0));
    let mut ballot = world.disks[0].ballot(SlotIndex(0), 0).unwrap();
    ballot.life.incarnation = Incarnation([99; 16]);
    ballot.sequence += 100;
    put(&mut world.disks[0].bytes, at.offset, &*ballot.encode(&at));
    world.input(0, Input::Learn);
    for _ in 0..200 {
        if !world.ops.is_empty() {
            world.progress(0);
        }
    }
    assert_eq!(world.status(0).phase, RegisterPhase::Halted);
    world.violation = None;
    assert!(!world.status(0).may_act);
}

#[test]
fn a_ballot_whose_write_failed_is_not_taken_back_by_a_rewrite() {
    let mut world = calm(2, 1);
    world.decide(0);
    world.propose(0);
    world.progress(0);
    let newest = |world: &World| (0..2).filter_map(|index| world.disks[0].ballot(SlotIndex(0), index)).max_by_key(|b| b.sequence);
    let index = (0..2).find(|&index| world.disks[0].ballot(SlotIndex(0), index) == newest(&world)).unwrap();
    assert_eq!(newest(&world).map(|ballot| ballot.view), Some(ViewNumber(2)), "landed");
    let op = world.ops.swap_remove(0);
    world.input(0, Input::Disk(DiskDone { tag: op.tag, device: 0, result: Err(IoFailed) }));
    let offset = world.disks[0].layout.vote(SlotIndex(0), index);
    world.flip(0, offset);
    world.input(0, Input::Abandon);
    world.finish();
    assert_eq!(newest(&world).map(|ballot| ballot.view), Some(ViewNumber(2)), "rewritten as it was");
}

#[test]
fn a_silent_device_of_three_is_survived_and_catches_up() {
    let mut world = calm(2, 3);
    world.disks[1].is_silent = true;
    world.decide(0);
    world.decide(0);
    assert_eq!((world.view(0), world.disks[1].recorded[0]), (2, 0));
    world.disks[1].is_silent = false;
    world.decide(0);
    assert_eq!((world.view(0), world.disks[1].recorded[0]), (3, 3));
    world.disks[0].is_silent = true;
    world.input(1, Input::Learn);
    world.finish();
    assert_eq!(world.view(1), 3);
    world.disks[2].is_silent = true;
    world.decide(1);
    assert_eq!(world.view(1), 3, "one of three decides nothing");
}

#[test]
fn a_new_life_is_bound_by_what_the_old_one_accepted() {
    let mut world = calm(2, 1);
    world.propose(0);
    while world.disks[0].ballot(SlotIndex(0), 1).is_none_or(|ballot| ballot.accepted == 0)
        && world.disks[0].ballot(SlotIndex(0), 0).is_none_or(|ballot| ballot.accepted == 0)
    {
        world.progress(0);
    }
    let accepted = [0, 1].map(|index| world.disks[0].ballot(SlotIndex(0), index).unwrap().digest);
    world.crash(0);
    world.start(0);
    world.finish();
    assert!(!world.status(0).may_act, "contested by the ballot of the life before");
    world.decide(0);
    assert_eq!(world.view(0), 1);
    assert!(accepted.contains(&world.status(0).digest));
}

#[test]
fn proposals_are_judged() {
    let mut world = calm(2, 1);
    world.decide(0);
    let mut refused = |body: ViewBody| {
        let register = world.nodes[0].register.as_mut().unwrap();
        register.handle(0, Input::Propose(body));
        register.poll_output()
    };
    let life = |slot| Life { slot: SlotIndex(slot), boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) };
    let far = ViewBody { view: ViewNumber(3), ..ViewBody::default() };
    assert!(matches!(refused(far), Some(Output::ProposalRefused { reason: ProposalError::NotNext { known: ViewNumber(1) } })));
    let old = ViewBody { view: ViewNumber(1), ..ViewBody::default() };
    assert_eq!(refused(old), Some(Output::ProposalLost { winner: ViewNumber(1) }));
    let twice = ViewBody { view: ViewNumber(2), members: vec![life(1), life(1)], ..ViewBody::default() };
    assert!(matches!(refused(twice), Some(Output::ProposalRefused { reason: ProposalError::Value(_) })));
    let members = (0..250).map(life).collect();
    let long = ViewBody { view: ViewNumber(2), members, ..ViewBody::default() };
    assert!(matches!(refused(long), Some(Output::ProposalRefused { reason: ProposalError::Size(_) })));
}
