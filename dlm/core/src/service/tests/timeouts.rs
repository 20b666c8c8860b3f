//! What: waits that end by themselves.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: know the driver's insides.
//! Called by: `cargo test`.

use super::stage::Stage;
use super::*;

#[test]
fn a_wait_ends_at_its_time_and_not_before() {
    for slots in [1, 2] {
        let mut stage = Stage::new(slots);
        let far = (slots - 1, 3);
        let holder = stage.lock(far, b"r", Mode::Pr, Flags::NONE);
        let holder = stage.granted(holder);
        let mine = stage.lock((0, 1), b"r", Mode::Pr, Flags::NONE);
        let mine = stage.granted(mine);
        let new = stage.lock_for((0, 1), b"r", Mode::Ex, Flags::NONE, (0, 30));
        let converted = stage.convert((0, 1), mine, Mode::Ex, Flags::NONE, 20);
        assert_eq!(stage.nodes[&0].deadlines.first(), Some(1020));
        stage.pass(19);
        assert_eq!((stage.status(new), stage.status(converted)), (None, None));
        stage.pass(1);
        assert_eq!((stage.status(new), stage.status(converted)), (None, Some(LockStatus::TimedOut)));
        let kept = |reply: &ClientReply| matches!(reply, ClientReply::Completed { mode: Some(Mode::Pr), .. });
        assert!(kept(stage.answer(converted).unwrap()), "a conversion that fails leaves the lock");
        stage.pass(10);
        assert_eq!(stage.status(new), Some(LockStatus::TimedOut));
        assert_eq!(stage.nodes[&0].deadlines.first(), None);
        let again = stage.convert((0, 1), mine, Mode::Ex, Flags::NONE, 20);
        stage.unlock(far, holder, Flags::NONE);
        assert_eq!((stage.status(again), stage.nodes[&0].deadlines.first()), (Some(LockStatus::Success), None));
        stage.pass(50);
        assert_eq!(stage.granted(again), mine, "what was granted in time stays");
    }
}

#[test]
fn a_wait_that_nobody_knows_of_yet_and_one_whose_grant_is_on_its_way_end_once() {
    let mut stage = Stage::new(2);
    let holder = stage.lock((1, 1), b"r", Mode::Ex, Flags::NONE);
    let holder = stage.granted(holder);
    stage.is_held_back = true;
    let unknown = stage.lock_for((0, 1), b"r", Mode::Ex, Flags::NONE, (0, 5));
    stage.pass(5);
    assert_eq!(stage.status(unknown), None, "the other node may have granted it");
    stage.let_go();
    assert_eq!(stage.status(unknown), Some(LockStatus::TimedOut));
    let waiting = stage.lock_for((0, 1), b"r", Mode::Ex, Flags::NONE, (0, 5));
    stage.is_held_back = true;
    stage.unlock((1, 1), holder, Flags::NONE);
    stage.pass(5);
    stage.let_go();
    assert_eq!(stage.status(waiting), Some(LockStatus::Success), "it was granted first");
    let lock = stage.granted(waiting);
    stage.unlock((0, 1), lock, Flags::NONE);
    assert!(stage.nodes.values().all(|node| node.locks.is_empty() && node.deadlines.first().is_none()));
}

#[test]
fn a_wait_that_ends_otherwise_leaves_no_deadline() {
    let mut stage = Stage::new(1);
    let holder = stage.lock((0, 1), b"r", Mode::Ex, Flags::NONE);
    stage.granted(holder);
    let cancelled = stage.lock_for((0, 2), b"r", Mode::Ex, Flags::NONE, (0, 50));
    stage.ask(0, 2, |serial| ClientRequest::CancelRequest { serial, request: cancelled });
    assert_eq!(stage.status(cancelled), Some(LockStatus::Cancelled));
    stage.lock_for((0, 3), b"r", Mode::Ex, Flags::NONE, (0, 50));
    stage.input(0, Input::SessionClosed { session: 3 });
    assert_eq!(stage.nodes[&0].deadlines.first(), None);
    let tried = stage.lock_for((0, 2), b"r", Mode::Ex, Flags::NOQUEUE, (0, 50));
    assert_eq!((stage.status(tried), stage.nodes[&0].deadlines.first()), (Some(LockStatus::Again), None));
}

#[test]
fn a_wait_ends_in_the_view_after_its_master_died() {
    let mut stage = Stage::new(3);
    for slot in [2, 1] {
        let lock = stage.lock((slot, 1), b"r", Mode::Pr, Flags::NONE);
        stage.granted(lock);
    }
    let waiting = stage.lock_for((0, 1), b"r", Mode::Ex, Flags::NONE, (0, 50));
    stage.nodes.remove(&2);
    stage.next_view(&[]);
    assert_eq!(stage.status(waiting), None);
    stage.pass(50);
    assert_eq!(stage.status(waiting), Some(LockStatus::TimedOut));
}
