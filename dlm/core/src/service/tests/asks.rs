//! What: questions about a resource, answered by its master wherever it is; what is said of a grant.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: know the driver's insides.
//! Called by: `cargo test`.

use super::stage::Stage;
use super::*;
use crate::client::{QUERIED_LOCKS_MAX, QueriedLock};

fn query(stage: &mut Stage, who: (u16, u64), resource: &[u8]) -> u64 {
    let (lockspace, resource) = (stage.space, name(resource));
    stage.ask(who.0, who.1, |serial| ClientRequest::QueryResource { serial, lockspace, resource })
}

fn listed(stage: &Stage, serial: u64) -> (Vec<QueriedLock>, u32) {
    match stage.answer(serial) {
        Some(ClientReply::Queried { status: LockStatus::Success, locks, left_out, .. }) => (locks.clone(), *left_out),
        other => panic!("not told: {other:?}"),
    }
}

#[test]
fn everybody_is_told_who_holds_who_waits_since_when_and_for_whom() {
    let mut stage = Stage::new(3);
    let keeper = stage.lock_for((2, 1), b"r", Mode::Pr, Flags::NONE, (7, 0));
    let keeper = stage.granted(keeper);
    stage.pass(10);
    let other = stage.lock((1, 2), b"r", Mode::Pr, Flags::NONE);
    let other = stage.granted(other);
    stage.convert((1, 2), other, Mode::Ex, Flags::NONE, 0);
    stage.lock_for((0, 3), b"r", Mode::Cw, Flags::NONE, (8, 0));
    stage.pass(5);
    for slot in 0..3 {
        let asked = query(&mut stage, (slot, 1), b"r");
        let (locks, left_out) = listed(&stage, asked);
        let lock = |slot, session: u32, lock, owner, granted, wanted, age_ms| QueriedLock {
            slot,
            pid: 100 + session,
            lock,
            owner,
            granted,
            wanted,
            age_ms,
        };
        let waiting = locks.last().unwrap().lock;
        let wanted = [
            lock(2, 1, keeper, 7, Some(Mode::Pr), None, 15),
            lock(1, 2, other, 0, Some(Mode::Pr), Some(Mode::Ex), 5),
            lock(0, 3, waiting, 8, None, Some(Mode::Cw), 5),
        ];
        assert_eq!((&locks[..], left_out), (&wanted[..], 0), "asked on {slot}");
    }
    let by_lock = stage.ask(1, 2, |serial| ClientRequest::Query { serial, lock: other });
    assert_eq!(listed(&stage, by_lock).0.len(), 3);
    assert!(matches!(stage.answer(by_lock), Some(ClientReply::Queried { resource: Some(found), .. }) if *found == name(b"r")));
    let foreign = stage.ask(1, 1, |serial| ClientRequest::Query { serial, lock: other });
    let unknown = query(&mut stage, (0, 1), b"nobody's");
    assert_eq!((stage.status(foreign), listed(&stage, unknown)), (Some(LockStatus::NotFound), (vec![], 0)));
}

#[test]
fn a_lock_that_is_alone_is_told_like_any_other() {
    let mut stage = Stage::new(3);
    for slot in 0..3 {
        let lock = stage.lock((slot, 1), &[b'a' + u8::try_from(slot).unwrap()], Mode::Ex, Flags::NONE);
        let lock = stage.granted(lock);
        let asked = query(&mut stage, (1, 1), &[b'a' + u8::try_from(slot).unwrap()]);
        let (locks, _) = listed(&stage, asked);
        assert_eq!(locks.iter().map(|found| (found.slot, found.lock)).collect::<Vec<_>>(), [(slot, lock)]);
    }
}

#[test]
fn a_conversion_for_another_owner_is_told_under_that() {
    let mut stage = Stage::new(2);
    for slot in [1, 0] {
        let lock = stage.lock((slot, 1), b"r", Mode::Nl, Flags::NONE);
        let lock = stage.granted(lock);
        let convert =
            |serial| ClientRequest::Convert { serial, lock, mode: Mode::Cr, flags: Flags::NONE, owner: 5, timeout_ms: 0, lvb: None };
        stage.ask(slot, 1, convert);
    }
    let asked = query(&mut stage, (0, 2), b"r");
    assert_eq!(listed(&stage, asked).0.iter().map(|lock| lock.owner).collect::<Vec<_>>(), [5, 5]);
}

#[test]
fn a_long_list_is_cut_and_says_so() {
    let mut stage = Stage::new(1);
    for _ in 0..QUERIED_LOCKS_MAX + 3 {
        stage.lock((0, 1), b"r", Mode::Cr, Flags::NONE);
    }
    let asked = query(&mut stage, (0, 2), b"r");
    let (locks, left_out) = listed(&stage, asked);
    assert_eq!((locks.len(), left_out), (QUERIED_LOCKS_MAX, 3));
}

#[test]
fn a_question_whose_answer_is_lost_with_a_view_is_asked_again() {
    let mut stage = Stage::new(3);
    for slot in [2, 1] {
        stage.lock((slot, 1), b"r", Mode::Pr, Flags::NONE);
    }
    stage.is_held_back = true;
    let asked = query(&mut stage, (0, 1), b"r");
    stage.kept.clear();
    stage.is_held_back = false;
    assert_eq!(stage.status(asked), None);
    stage.nodes.remove(&2);
    stage.next_view(&[]);
    assert_eq!(listed(&stage, asked).0.len(), 1);
    assert!(stage.nodes.values().all(|node| node.asks.is_empty()));
}

#[test]
fn a_grant_without_a_turn_says_so_to_whom_asks() {
    for slots in [1, 2] {
        let mut stage = Stage::new(slots);
        let flags_of = |stage: &Stage, serial| match stage.answer(serial) {
            Some(ClientReply::Completed { flags, status: LockStatus::Success, .. }) => *flags,
            other => panic!("not granted: {other:?}"),
        };
        let first = stage.lock((slots - 1, 1), b"r", Mode::Pr, Flags::SYNCSTS);
        let (lock, unasked) = (stage.granted(first), stage.lock((0, 2), b"r", Mode::Nl, Flags::NONE));
        let waiting = stage.lock((0, 3), b"r", Mode::Ex, Flags::SYNCSTS);
        let second = stage.granted(unasked);
        let converted = stage.convert((0, 2), second, Mode::Cr, Flags::SYNCSTS, 0);
        let down = stage.convert((0, 2), second, Mode::Nl, Flags::SYNCSTS, 0);
        stage.unlock((slots - 1, 1), lock, Flags::NONE);
        let said = [first, unasked, converted, down, waiting].map(|serial| flags_of(&stage, serial));
        let (yes, no) = (ResultFlags::SYNCH, ResultFlags::default());
        assert_eq!(said, [yes, no, yes, yes, no]);
    }
}

#[test]
fn a_forced_unlock_of_what_is_on_its_way_back_succeeds_with_it() {
    let mut stage = Stage::new(2);
    let keeper = stage.lock((1, 1), b"r", Mode::Nl, Flags::NONE);
    stage.granted(keeper);
    let lock = stage.lock((0, 1), b"r", Mode::Ex, Flags::NONE);
    let lock = stage.granted(lock);
    stage.is_held_back = true;
    let [first, plain, forced] = [Flags::NONE, Flags::NONE, Flags::FORCEUNLOCK].map(|flags| stage.unlock((0, 1), lock, flags));
    assert_eq!([first, plain, forced].map(|serial| stage.status(serial)), [None, Some(LockStatus::Busy), None]);
    stage.let_go();
    assert_eq!([first, forced].map(|serial| stage.status(serial)), [Some(LockStatus::Unlocked), Some(LockStatus::Success)]);
}
