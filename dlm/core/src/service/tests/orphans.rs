//! What: locks that outlive their process: who gets them, what they keep out, how they end.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: know the driver's insides.
//! Called by: `cargo test`.

use super::stage::Stage;
use super::*;

const KEEP: Flags = Flags::PERSISTENT.with(Flags::VALBLK);
const TRY: Flags = Flags::NOQUEUE;

fn adopt(stage: &mut Stage, who: (u16, u64), mode: Mode) -> u64 {
    stage.lock(who, b"r", mode, Flags::ORPHAN.with(Flags::PERSISTENT))
}

/// What a reader of another session gets from the value block: flags and content.
fn value(stage: &mut Stage, who: (u16, u64)) -> (ResultFlags, Option<[u8; 32]>) {
    let serial = stage.lock(who, b"r", Mode::Cr, Flags::VALBLK);
    match stage.answer(serial) {
        Some(ClientReply::Completed { flags, lvb, status: LockStatus::Success, .. }) => (*flags, *lvb),
        other => panic!("not read: {other:?}"),
    }
}

fn purge(stage: &mut Stage, who: (u16, u64), slot: u16, pid: u32) -> u64 {
    let lockspace = stage.space;
    stage.ask(who.0, who.1, |serial| ClientRequest::Purge { serial, lockspace, slot, pid })
}

fn locks(stage: &Stage, slot: u16) -> usize {
    stage.nodes[&slot].locks.len()
}

#[test]
fn an_orphan_is_held_until_it_is_adopted_by_name_and_mode() {
    for slots in [1, 2] {
        let mut stage = Stage::new(slots);
        // A keeper on the last node makes it the master.
        let far = (slots - 1, 3);
        stage.lock(far, b"r", Mode::Nl, Flags::NONE);
        let lock = stage.lock((0, 1), b"r", Mode::Pw, KEEP);
        let lock = stage.granted(lock);
        let early = adopt(&mut stage, (0, 2), Mode::Pw);
        assert_eq!(stage.status(early), Some(LockStatus::NotFound), "its process lives");
        stage.input(0, Input::SessionClosed { session: 1 });
        let shown = stage.nodes[&far.0].snapshot().remove(0).locks;
        assert_eq!(shown.iter().map(|lock| lock.who.is_orphan).collect::<Vec<_>>(), [true, false], "its master says so, too");
        let try_it = stage.lock(far, b"r", Mode::Pr, TRY);
        assert_eq!(stage.status(try_it), Some(LockStatus::Again));
        assert_eq!(value(&mut stage, far), (ResultFlags::default(), None), "its holder has given up nothing");
        let waiting = stage.lock(far, b"r", Mode::Pr, Flags::NONE);
        let others = [(Mode::Ex, b"r"), (Mode::Pw, b"s")].map(|(mode, resource)| stage.lock((0, 2), resource, mode, Flags::ORPHAN));
        assert_eq!(others.map(|serial| stage.status(serial)), [Some(LockStatus::Again), Some(LockStatus::NotFound)]);
        stage.blocking();
        let adopted = adopt(&mut stage, (0, 2), Mode::Pw);
        assert_eq!(stage.granted(adopted), lock);
        assert_eq!(stage.blocking(), [(lock, Mode::Pr)], "who has it now hears who waits");
        let twice = adopt(&mut stage, (0, 3), Mode::Pw);
        assert_eq!(stage.status(twice), Some(LockStatus::NotFound));
        // A death again: it has stayed what it was.
        stage.input(0, Input::SessionClosed { session: 2 });
        assert_eq!(stage.status(waiting), None);
        let adopted = adopt(&mut stage, (0, 3), Mode::Pw);
        let lock = stage.granted(adopted);
        stage.unlock((0, 3), lock, Flags::NONE);
        assert_eq!(stage.status(waiting), Some(LockStatus::Success));
    }
}

#[test]
fn whoever_adopts_hears_who_waits_though_the_process_is_the_same() {
    let mut stage = Stage::new(1);
    stage.input(0, Input::SessionOpened { session: 9, info: stage.nodes[&0].sessions[&1].info.clone() });
    let request = ClientRequest::JoinLockspace { serial: 0, name: b"space".to_vec() };
    stage.input(0, Input::Request { session: 9, request });
    let lock = stage.lock((0, 1), b"r", Mode::Ex, Flags::PERSISTENT);
    let lock = stage.granted(lock);
    stage.lock((0, 2), b"r", Mode::Pr, Flags::NONE);
    assert_eq!(stage.blocking(), [(lock, Mode::Pr)]);
    stage.input(0, Input::SessionClosed { session: 1 });
    let adopted = adopt(&mut stage, (0, 9), Mode::Ex);
    assert_eq!((stage.granted(adopted), stage.blocking()), (lock, vec![(lock, Mode::Pr)]));
}

#[test]
fn the_last_request_or_conversion_says_whether_a_lock_outlives_its_process() {
    for (first, second, is_kept) in [(Flags::PERSISTENT, Flags::NONE, false), (Flags::NONE, Flags::PERSISTENT, true)] {
        let mut stage = Stage::new(1);
        let lock = stage.lock((0, 1), b"r", Mode::Pr, first);
        let lock = stage.granted(lock);
        stage.convert((0, 1), lock, Mode::Cr, second, 0);
        stage.input(0, Input::SessionClosed { session: 1 });
        assert_eq!(locks(&stage, 0), usize::from(is_kept));
    }
}

#[test]
fn what_was_under_way_at_a_death_is_taken_back() {
    for slots in [1, 2] {
        let mut stage = Stage::new(slots);
        let far = (slots - 1, 3);
        let reader = stage.lock(far, b"r", Mode::Pr, Flags::NONE);
        let reader = stage.granted(reader);
        let lock = stage.lock((0, 1), b"r", Mode::Pr, KEEP);
        let lock = stage.granted(lock);
        stage.convert((0, 1), lock, Mode::Ex, KEEP, 0);
        let waiting = stage.lock((0, 1), b"r", Mode::Ex, KEEP);
        stage.input(0, Input::SessionClosed { session: 1 });
        assert_eq!((stage.status(waiting), locks(&stage, 0)), (None, if slots == 1 { 2 } else { 1 }));
        stage.unlock(far, reader, Flags::NONE);
        let next = stage.lock(far, b"r", Mode::Pr, TRY);
        assert_eq!(stage.status(next), Some(LockStatus::Success), "it is held in the mode that was granted");
        let adopted = adopt(&mut stage, (0, 2), Mode::Pr);
        assert_eq!(stage.granted(adopted), lock);
    }
}

#[test]
fn an_orphan_whose_conversion_cannot_be_taken_back_yet_is_busy() {
    let mut stage = Stage::new(2);
    stage.lock((1, 3), b"r", Mode::Pr, Flags::NONE);
    let lock = stage.lock((0, 1), b"r", Mode::Pr, KEEP);
    let lock = stage.granted(lock);
    stage.is_held_back = true;
    stage.convert((0, 1), lock, Mode::Ex, KEEP, 0);
    stage.input(0, Input::SessionClosed { session: 1 });
    let early = adopt(&mut stage, (0, 2), Mode::Pr);
    assert_eq!(stage.status(early), Some(LockStatus::Busy));
    stage.let_go();
    let adopted = adopt(&mut stage, (0, 2), Mode::Pr);
    assert_eq!(stage.granted(adopted), lock);
}

#[test]
fn a_purge_gives_back_what_a_process_left_and_marks_what_it_may_have_written() {
    for (asker, slot, pid, left) in [
        ((0, 3), 0, 101, [1, 2]),
        ((0, 3), 0, 0, [0, 2]),
        ((1, 3), 0, 102, [1, 2]),
        ((1, 3), crate::client::ALL_SLOTS, 101, [1, 1]),
        ((0, 3), crate::client::ALL_SLOTS, 0, [0, 0]),
    ] {
        let mut stage = Stage::new(2);
        for slot in [0, 1] {
            for (session, resource) in [(1, b"a"), (2, b"b")] {
                stage.lock((slot, session), resource, Mode::Cw, KEEP);
            }
        }
        for slot in [0, 1] {
            for session in [1, 2] {
                stage.input(slot, Input::SessionClosed { session });
            }
        }
        let purged = purge(&mut stage, asker, slot, pid);
        assert_eq!(stage.status(purged), Some(LockStatus::Success));
        assert_eq!([locks(&stage, 0), locks(&stage, 1)], left, "{asker:?} {slot} {pid}");
        assert!(stage.nodes.values().all(|node| node.asks.is_empty()));
    }
    let mut stage = Stage::new(2);
    let keeper = stage.lock((1, 2), b"r", Mode::Nl, Flags::NONE);
    stage.granted(keeper);
    stage.lock((0, 1), b"r", Mode::Pw, KEEP);
    stage.input(0, Input::SessionClosed { session: 1 });
    purge(&mut stage, (1, 1), 0, 0);
    assert!(value(&mut stage, (1, 1)).0.has(ResultFlags::VALNOTVALID));
    let unknown = purge(&mut stage, (1, 1), 9, 0);
    assert_eq!(stage.status(unknown), Some(LockStatus::NotFound));
}

#[test]
fn a_purge_whose_answer_is_lost_with_a_view_is_asked_again() {
    let mut stage = Stage::new(3);
    for slot in [1, 2] {
        stage.lock((slot, 1), b"r", Mode::Cw, KEEP);
        stage.input(slot, Input::SessionClosed { session: 1 });
    }
    stage.is_held_back = true;
    let purged = purge(&mut stage, (0, 1), crate::client::ALL_SLOTS, 0);
    stage.kept.clear();
    stage.is_held_back = false;
    assert_eq!(stage.status(purged), None);
    stage.nodes.remove(&2);
    stage.next_view(&[]);
    assert_eq!((stage.status(purged), locks(&stage, 1)), (Some(LockStatus::Success), 0));
}

#[test]
fn an_orphan_survives_its_master_and_keeps_its_node_in_the_lockspace() {
    let mut stage = Stage::new(3);
    let keeper = stage.lock((2, 1), b"r", Mode::Nl, Flags::NONE);
    stage.granted(keeper);
    let lock = stage.lock((0, 1), b"r", Mode::Ex, KEEP);
    let lock = stage.granted(lock);
    for session in 1..=super::stage::SESSIONS {
        stage.input(0, Input::SessionClosed { session });
    }
    stage.nodes.remove(&2);
    stage.next_view(&[]);
    let waiting = stage.lock((1, 1), b"r", Mode::Pr, Flags::NONE);
    assert_eq!(stage.status(waiting), None);
    stage.open(0, 9);
    let adopted = stage.lock((0, 9), b"r", Mode::Ex, Flags::ORPHAN);
    assert_eq!(stage.granted(adopted), lock);
    stage.unlock((0, 9), lock, Flags::NONE);
    assert_eq!(stage.status(waiting), Some(LockStatus::Success));
}

#[test]
fn a_node_that_stops_lets_a_new_session_purge_what_keeps_it() {
    let mut stage = Stage::new(1);
    stage.lock((0, 1), b"r", Mode::Pw, KEEP);
    for session in 1..=super::stage::SESSIONS {
        stage.input(0, Input::SessionClosed { session });
    }
    stage.input(0, Input::Stop);
    stage.open(0, 9);
    let refused = stage.lock((0, 9), b"r", Mode::Pw, Flags::ORPHAN);
    assert_eq!(stage.status(refused), Some(LockStatus::Stopped), "nothing is begun");
    let purged = purge(&mut stage, (0, 9), 0, 0);
    assert_eq!((stage.status(purged), locks(&stage, 0)), (Some(LockStatus::Success), 0));
}
