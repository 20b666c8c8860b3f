//! What: mastery that is kept after the last lock has gone, and how it ends.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: search; `cluster` does.
//! Called by: `cargo test`.

use super::stage::{SESSIONS, Stage};
use super::*;
use crate::service::kept::KEEP_MS;

/// Three nodes, and a name whose home is node 1.
fn stage() -> (Stage, Vec<u8>) {
    let stage = Stage::new(3);
    (stage, name_at(3, 1))
}

fn name_at(nodes: u16, home: u16) -> Vec<u8> {
    let members: Vec<Life> = (0..nodes).map(|slot| life(slot, 1)).collect();
    let is_there = |name: &Vec<u8>| {
        let key = Key::new(1, name).unwrap();
        super::super::authority::home_among(&members, &key) == Some(life(home, 1))
    };
    (0..100_u8).map(|number| vec![b'k', number]).find(is_there).unwrap()
}

/// Takes it and gives it back; answers with what its value block said.
fn pair(stage: &mut Stage, who: (u16, u64), name: &[u8], written: Option<u8>) -> Option<[u8; 32]> {
    let asked = stage.lock(who, name, Mode::Ex, Flags::VALBLK);
    let Some(ClientReply::Completed { lock, lvb, status: LockStatus::Success, .. }) = stage.answer(asked).cloned() else {
        panic!("granted")
    };
    let flags = if written.is_some() { Flags::VALBLK } else { Flags::NONE };
    let written = written.map(|value| [value; 32]);
    stage.ask(who.0, who.1, |serial| ClientRequest::Unlock { serial, lock, flags, lvb: written });
    lvb
}

fn keepers(stage: &Stage) -> Vec<u16> {
    let is_keeper = |service: &LockService| service.places.iter().any(|(_, place)| place.is_kept());
    stage.nodes.iter().filter(|(_, node)| is_keeper(node)).map(|(slot, _)| *slot).collect()
}

#[test]
fn who_works_alone_on_a_name_asks_its_home_once() {
    let (mut stage, name) = stage();
    let fresh = pair(&mut stage, (0, 1), &name, Some(7));
    assert_eq!((keepers(&stage), stage.nodes[&0].status().mastered), (vec![0], 0));
    stage.is_held_back = true;
    assert_eq!(pair(&mut stage, (0, 2), &name, None), fresh, "the value block went with the last lock");
    assert!(stage.kept.is_empty(), "nobody was asked");
    stage.let_go();
    // The others find it at its master, by the home and at once.
    for slot in [1, 2] {
        pair(&mut stage, (slot, 1), &name, None);
    }
    assert_eq!(keepers(&stage), [0]);
}

#[test]
fn what_nobody_uses_goes_back_and_so_does_what_is_too_much() {
    let (mut stage, name) = stage();
    for _ in 0..3 {
        pair(&mut stage, (0, 1), &name, None);
        stage.pass(KEEP_MS);
        assert_eq!(keepers(&stage), [0], "it was used");
    }
    stage.pass(KEEP_MS);
    assert_eq!((keepers(&stage), stage.nodes[&0].next_deadline().is_some_and(|at_ms| at_ms <= stage.now_ms)), (vec![], false));
    let names: Vec<Vec<u8>> = (0..40_u8).map(|number| vec![b'n', number]).collect();
    for name in &names {
        pair(&mut stage, (0, 1), name, None);
    }
    let count = stage.nodes[&0].places.iter().filter(|(_, place)| place.is_kept()).count();
    assert_eq!(count, super::super::kept::KEPT_MAX);
}

#[test]
fn a_node_that_stops_or_leaves_the_lockspace_keeps_nothing() {
    let (mut stage, name) = stage();
    pair(&mut stage, (0, 1), &name, None);
    stage.input(0, Input::Stop);
    assert_eq!(keepers(&stage), []);
    pair(&mut stage, (2, 1), &name, None);
    assert_eq!(keepers(&stage), [2]);
    for session in 1..=SESSIONS {
        stage.input(2, Input::SessionClosed { session });
    }
    assert_eq!((keepers(&stage), stage.nodes[&2].lockspaces.len()), (vec![], 0));
    pair(&mut stage, (1, 1), &name, None);
}

#[test]
fn what_a_dead_node_kept_is_free_once_it_is_gone() {
    let (mut stage, name) = stage();
    pair(&mut stage, (0, 1), &name, None);
    stage.nodes.remove(&0);
    stage.next_view(&[0]);
    let asked = stage.lock((2, 1), &name, Mode::Ex, Flags::NONE);
    assert_eq!(stage.status(asked), None, "somebody may have it");
    stage.next_view(&[]);
    stage.granted(asked);
}

#[test]
fn it_is_kept_across_views_also_by_a_node_that_is_home_by_now() {
    let (mut stage, name) = stage();
    pair(&mut stage, (0, 1), &name, None);
    stage.nodes.remove(&1);
    stage.next_view(&[]);
    assert_eq!(keepers(&stage), [0]);
    pair(&mut stage, (2, 1), &name, None);
    pair(&mut stage, (0, 1), &name, None);
}

/// Where each message goes that node 0 sends for a pair.
fn asked_by_first(stage: &mut Stage, name: &[u8]) -> Vec<u16> {
    stage.is_held_back = true;
    let asked = stage.lock((0, 1), name, Mode::Ex, Flags::NONE);
    let to = stage.kept.iter().map(|(to, _)| *to).collect();
    stage.let_go();
    let lock = stage.granted(asked);
    stage.unlock((0, 1), lock, Flags::NONE);
    to
}

#[test]
fn a_master_is_remembered_and_may_be_none_any_more() {
    let (mut stage, name) = stage();
    let held = stage.lock((2, 1), &name, Mode::Nl, Flags::NONE);
    let held = stage.granted(held);
    assert_eq!(asked_by_first(&mut stage, &name), [1], "the home, which names the master");
    assert_eq!(asked_by_first(&mut stage, &name), [2], "the master at once");
    stage.unlock((2, 1), held, Flags::NONE);
    stage.input(2, Input::Stop);
    assert_eq!(asked_by_first(&mut stage, &name), [2], "it was master, and says that it is none");
    assert_eq!(keepers(&stage), [0]);
    for _ in 0..2 {
        stage.pass(KEEP_MS);
    }
    assert!(stage.nodes.values().all(|node| node.places.iter().next().is_none()), "all is forgotten");
}
