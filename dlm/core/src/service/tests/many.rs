//! What: several locks by one request: all or none, without waiting for each other, whatever happens in between.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: know the driver's insides.
//! Called by: `cargo test`.

use super::stage::Stage;
use super::*;
use crate::client::NONE_FAILED;
use crate::service::kept::KEEP_MS;

fn many(stage: &mut Stage, (slot, session): (u16, u64), wanted: &[(&[u8], Mode)], flags: Flags, timeout_ms: u32) -> u64 {
    let lockspace = stage.space;
    let items = wanted.iter().map(|(resource, mode)| (name(resource), *mode)).collect();
    stage.ask(slot, session, |serial| ClientRequest::LockMany { serial, lockspace, items, flags, owner: 0, timeout_ms })
}

/// How it ended, which item failed, and the locks.
fn ended(stage: &Stage, serial: u64) -> Option<(LockStatus, u16, Vec<u32>)> {
    stage.answer(serial).map(|reply| match reply {
        ClientReply::ManyCompleted { status, failed, locks, .. } => (*status, *failed, locks.iter().map(|(lock, _)| *lock).collect()),
        other => panic!("not an end of many: {other:?}"),
    })
}

fn free(stage: &mut Stage, resource: &[u8]) -> bool {
    let tried = stage.lock((0, 3), resource, Mode::Ex, Flags::NOQUEUE);
    let is_free = stage.status(tried) == Some(LockStatus::Success);
    if is_free {
        let lock = stage.granted(tried);
        stage.unlock((0, 3), lock, Flags::NONE);
    }
    is_free
}

const BOTH: [(&[u8], Mode); 2] = [(b"b", Mode::Ex), (b"a", Mode::Pr)];

#[test]
fn all_are_granted_and_told_in_the_order_asked() {
    for slots in [1, 3] {
        let mut stage = Stage::new(slots);
        let asked = many(&mut stage, (0, 1), &BOTH, Flags::NONE, 0);
        let (status, failed, locks) = ended(&stage, asked).unwrap();
        assert_eq!((status, failed, locks.len()), (LockStatus::Success, NONE_FAILED, 2));
        let Some(ClientReply::ManyCompleted { locks: tokens, .. }) = stage.answer(asked) else { panic!("answered") };
        assert!(tokens.iter().all(|(_, token)| *token != Token::default()));
        let reader = stage.lock((0, 2), b"a", Mode::Pr, Flags::NOQUEUE);
        assert_eq!(stage.status(reader), Some(LockStatus::Success), "the second is the reader's");
        assert!(!free(&mut stage, b"b"));
        let unlocked = stage.unlock((0, 1), locks[0], Flags::NONE);
        assert_eq!(stage.status(unlocked), Some(LockStatus::Unlocked));
        assert!(free(&mut stage, b"b"));
    }
}

#[test]
fn two_that_want_the_same_never_wait_for_each_other() {
    let mut stage = Stage::new(2);
    let reversed: Vec<(&[u8], Mode)> = BOTH.iter().rev().map(|(resource, _)| (*resource, Mode::Ex)).collect();
    let holder = stage.lock((1, 3), b"a", Mode::Ex, Flags::NONE);
    let holder = stage.granted(holder);
    let first = many(&mut stage, (0, 1), &BOTH, Flags::NONE, 0);
    let second = many(&mut stage, (1, 1), &reversed, Flags::NONE, 0);
    assert_eq!((ended(&stage, first), ended(&stage, second)), (None, None));
    stage.unlock((1, 3), holder, Flags::NONE);
    let (_, _, locks) = ended(&stage, first).unwrap();
    assert_eq!(ended(&stage, second), None);
    for lock in locks {
        stage.unlock((0, 1), lock, Flags::NONE);
    }
    assert_eq!(ended(&stage, second).map(|end| end.0), Some(LockStatus::Success));
}

#[test]
fn one_that_fails_gives_all_back() {
    for slots in [1, 2] {
        for (flags, timeout_ms, status) in [(Flags::NOQUEUE, 0, LockStatus::Again), (Flags::NONE, 20, LockStatus::TimedOut)] {
            let mut stage = Stage::new(slots);
            let holder = stage.lock((slots - 1, 2), b"b", Mode::Pr, Flags::NONE);
            stage.granted(holder);
            let asked = many(&mut stage, (0, 1), &BOTH, flags, timeout_ms);
            stage.pass(20);
            assert_eq!(ended(&stage, asked), Some((status, 0, vec![])));
            assert!(free(&mut stage, b"a"));
            for span_ms in [super::super::IDLE_MS, KEEP_MS, KEEP_MS] {
                stage.pass(span_ms);
            }
            assert_eq!(stage.nodes[&0].next_deadline(), None);
        }
    }
}

#[test]
fn a_cancelled_one_ends_at_the_lock_it_waits_for_or_at_the_next() {
    let mut stage = Stage::new(2);
    let holder = stage.lock((1, 2), b"a", Mode::Ex, Flags::NONE);
    let holder = stage.granted(holder);
    let asked = many(&mut stage, (0, 1), &BOTH, Flags::NONE, 0);
    let cancel = stage.ask(0, 1, |serial| ClientRequest::CancelRequest { serial, request: asked });
    assert_eq!((ended(&stage, asked), stage.status(cancel)), (Some((LockStatus::Cancelled, 1, vec![])), Some(LockStatus::Success)));
    // The first is granted before its master hears of the cancel: the second is not asked for.
    let asked = many(&mut stage, (0, 1), &BOTH, Flags::NONE, 0);
    stage.is_held_back = true;
    stage.unlock((1, 2), holder, Flags::NONE);
    stage.ask(0, 1, |serial| ClientRequest::CancelRequest { serial, request: asked });
    stage.let_go();
    assert_eq!(ended(&stage, asked), Some((LockStatus::Cancelled, 0, vec![])));
    assert!(free(&mut stage, b"a") && free(&mut stage, b"b"));
}

#[test]
fn a_death_in_the_middle_gives_all_back_whatever_the_flags() {
    let mut stage = Stage::new(2);
    let holder = stage.lock((1, 2), b"b", Mode::Ex, Flags::NONE);
    let holder = stage.granted(holder);
    many(&mut stage, (0, 1), &BOTH, Flags::PERSISTENT, 0);
    stage.input(0, Input::SessionClosed { session: 1 });
    stage.unlock((1, 2), holder, Flags::NONE);
    assert!(free(&mut stage, b"a") && free(&mut stage, b"b"));
    // Once they are told, they are like any others.
    many(&mut stage, (0, 2), &BOTH, Flags::PERSISTENT, 0);
    stage.input(0, Input::SessionClosed { session: 2 });
    assert!(!free(&mut stage, b"a"));
}

#[test]
fn they_are_told_only_when_grants_may_leave_and_callbacks_come_behind() {
    let mut stage = Stage::new(1);
    stage.input(0, Input::Permit { may_grant: false });
    let asked = many(&mut stage, (0, 1), &BOTH, Flags::NONE, 0);
    stage.input(0, Input::Permit { may_grant: true });
    let (.., locks) = ended(&stage, asked).unwrap();
    for lock in locks {
        stage.unlock((0, 1), lock, Flags::NONE);
    }
    let holder = stage.lock((0, 2), b"b", Mode::Ex, Flags::NONE);
    let holder = stage.granted(holder);
    let asked = many(&mut stage, (0, 1), &BOTH, Flags::NONE, 0);
    // It has the first by now, and somebody wants that.
    stage.lock((0, 3), b"a", Mode::Ex, Flags::NONE);
    let locks: Vec<u32> = stage.nodes[&0].locks.iter().map(|(id, _)| id).collect();
    let foreign = locks.into_iter().map(|lock| stage.unlock((0, 1), lock, Flags::FORCEUNLOCK)).collect::<Vec<_>>();
    assert!(foreign.into_iter().all(|serial| stage.status(serial) == Some(LockStatus::NotFound)), "it does not know them yet");
    stage.blocking();
    stage.unlock((0, 2), holder, Flags::NONE);
    let (.., locks) = ended(&stage, asked).unwrap();
    assert_eq!(stage.blocking(), [(locks[1], Mode::Ex)]);
}

#[test]
fn a_view_in_the_middle_changes_nothing() {
    let mut stage = Stage::new(3);
    let holders = [(2, b"b"), (1, b"b")].map(|(slot, resource)| stage.lock((slot, 1), resource, Mode::Pr, Flags::NONE));
    let holder = stage.granted(holders[1]);
    let asked = many(&mut stage, (0, 1), &BOTH, Flags::NONE, 0);
    stage.nodes.remove(&2);
    stage.next_view(&[]);
    assert_eq!(ended(&stage, asked), None);
    stage.unlock((1, 1), holder, Flags::NONE);
    assert_eq!(ended(&stage, asked).map(|end| end.0), Some(LockStatus::Success));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut stage = Stage::new(1);
    let twice: [(&[u8], Mode); 3] = [(b"a", Mode::Pr), (b"b", Mode::Pr), (b"a", Mode::Pr)];
    let refused = [
        many(&mut stage, (0, 1), &twice, Flags::NONE, 0),
        many(&mut stage, (0, 1), &BOTH, Flags::ALTPR, 0),
        many(&mut stage, (0, 1), &[], Flags::NONE, 0),
    ];
    let ends = refused.map(|serial| ended(&stage, serial).map(|end| (end.0, end.1)));
    assert_eq!(ends, [2, NONE_FAILED, NONE_FAILED].map(|failed| Some((LockStatus::Invalid, failed))));
    stage.input(0, Input::Stop);
    let late = many(&mut stage, (0, 1), &BOTH, Flags::NONE, 0);
    assert_eq!(ended(&stage, late).map(|end| end.0), Some(LockStatus::Stopped));
}
