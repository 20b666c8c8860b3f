//! What: byte ranges from client to client: what is told, across nodes, views and deaths.
//! Owns: one scene each.
//! Invariants: none of its own.
//! Does not: compare with a model; `crate::ranges` does.
//! Called by: `cargo test`.

use super::stage::Stage;
use super::timed::Timed;
use super::*;
use crate::client::{RangeHolder, RangeKind};
use RangeKind::{Read, Unlock, Write};

const DONE: Option<LockStatus> = Some(LockStatus::Success);

/// A lock in NL on one file by session 1 of each node.
fn opened(slots: u16) -> (Timed, Vec<(u16, u64, u32)>) {
    let mut timed = Timed::new(slots);
    let files = (0..slots).map(|slot| (slot, 1, timed.take(slot, 1, b"file", Mode::Nl))).collect();
    (timed, files)
}

fn query(
    timed: &mut Timed,
    (slot, session, lock): (u16, u64, u32),
    owner: u64,
    kind: RangeKind,
    (start, end): (u64, u64),
) -> Option<RangeHolder> {
    let wanted = timed.ask(slot, session, |serial| ClientRequest::RangeQuery { serial, lock, owner, kind, start, end });
    timed.replies.iter().find_map(|(_, reply)| match reply {
        ClientReply::RangeConflict { serial, status: LockStatus::Success, conflict } if *serial == wanted => Some(*conflict),
        _ => None,
    })?
}

#[test]
fn parts_are_taken_given_back_and_waited_for_between_nodes() {
    let (mut timed, files) = opened(3);
    let whole = timed.range(files[0], 1, Write, (0, u64::MAX));
    let waiting = timed.range(files[1], 1, Read, (10, 19));
    let behind = timed.range(files[2], 1, Write, (15, 15));
    assert_eq!([whole, waiting, behind].map(|serial| timed.status(serial)), [DONE, None, None]);
    let conflict = RangeHolder { owner: 1, kind: Write, start: 0, end: u64::MAX, slot: 0, pid: 1 };
    assert_eq!(query(&mut timed, files[2], 1, Read, (5, 5)), Some(conflict));
    // A hole in the middle.
    let hole = timed.range(files[0], 1, Unlock, (10, 19));
    assert_eq!([hole, waiting, behind].map(|serial| timed.status(serial)), [DONE, DONE, None]);
    let left = query(&mut timed, files[2], 1, Read, (0, 12)).unwrap();
    assert_eq!((left.start, left.end, left.slot), (0, 9, 0));
    assert_eq!(query(&mut timed, files[2], 1, Read, (10, 19)), None);
    let back = timed.range(files[1], 1, Unlock, (0, u64::MAX));
    assert_eq!([back, behind].map(|serial| timed.status(serial)), [DONE, DONE]);
}

#[test]
fn who_asks_for_less_than_it_has_lets_others_in() {
    let (mut timed, files) = opened(2);
    timed.range(files[0], 1, Write, (0, 9));
    let reader = timed.range(files[1], 1, Read, (5, 5));
    assert_eq!(timed.status(reader), None);
    // More at one end, less where it was stronger.
    let both = timed.range(files[0], 1, Read, (0, 20));
    assert_eq!([both, reader].map(|serial| timed.status(serial)), [DONE, DONE]);
    let writer = timed.range(files[1], 1, Write, (20, 20));
    assert_eq!(timed.status(writer), None);
    // Owners of one lock exclude each other as those of two nodes do.
    let same = timed.range(files[0], 2, Write, (20, 25));
    assert_eq!(timed.status(same), None);
}

#[test]
fn a_try_a_cancel_and_a_timeout_end_a_wait() {
    let (mut timed, files) = opened(2);
    let (slot, session, lock) = files[1];
    timed.range(files[0], 1, Write, (0, 9));
    let wait = |timed: &mut Timed, flags, timeout_ms| {
        let (owner, kind, start, end) = (1, Read, 0, 0);
        timed.ask(slot, session, |serial| ClientRequest::Range { serial, lock, owner, kind, start, end, flags, timeout_ms })
    };
    let tried = wait(&mut timed, Flags::NOQUEUE, 0);
    assert_eq!(timed.status(tried), Some(LockStatus::Again));
    let limited = wait(&mut timed, Flags::NONE, 300);
    timed.pass(299);
    assert_eq!(timed.status(limited), None);
    timed.pass(1);
    assert_eq!(timed.status(limited), Some(LockStatus::TimedOut));
    let cancelled = wait(&mut timed, Flags::NONE, 300);
    let cancel = timed.ask(slot, session, |serial| ClientRequest::CancelRequest { serial, request: cancelled });
    assert_eq!([cancelled, cancel].map(|serial| timed.status(serial)), [Some(LockStatus::Cancelled), DONE]);
    timed.pass(1000);
    assert_eq!(timed.status(cancelled), Some(LockStatus::Cancelled), "and no timeout after it");
    let late = timed.ask(slot, session, |serial| ClientRequest::CancelRequest { serial, request: tried });
    assert_eq!(timed.status(late), Some(LockStatus::NotFound));
}

#[test]
fn a_lock_takes_its_ranges_along_and_waits_for_its_requests() {
    let (mut timed, files) = opened(2);
    timed.range(files[0], 1, Write, (0, 9));
    let waiting = timed.range(files[1], 1, Write, (0, 0));
    let busy = timed.unlock(1, 1, files[1].2);
    assert_eq!([busy, waiting].map(|serial| timed.status(serial)), [Some(LockStatus::Busy), None]);
    // The process dies: what it had is free, what it waited for is forgotten.
    timed.input(0, Input::SessionClosed { session: 1 });
    assert_eq!(timed.status(waiting), DONE);
    let next = timed.take(0, 2, b"file", Mode::Nl);
    let behind = timed.range((0, 2, next), 1, Write, (0, 0));
    timed.input(1, Input::SessionClosed { session: 1 });
    assert_eq!(timed.status(behind), DONE);
    assert!(timed.nodes.values().all(|node| node.ranges.is_within(1)));
}

#[test]
fn bad_requests_are_refused() {
    let (mut timed, files) = opened(1);
    let file = files[0];
    let foreign = timed.range((0, 2, file.2), 1, Write, (0, 0));
    let unknown = timed.range((0, 1, file.2 + 1), 1, Write, (0, 0));
    let reversed = timed.range(file, 1, Write, (5, 4));
    let flags = timed.ask(0, 1, |serial| ClientRequest::Range {
        serial,
        lock: file.2,
        owner: 1,
        kind: Read,
        start: 0,
        end: 0,
        flags: Flags::HEADQUE,
        timeout_ms: 0,
    });
    let ends = [foreign, unknown, reversed, flags].map(|serial| timed.status(serial).unwrap());
    assert_eq!(ends, [LockStatus::NotFound, LockStatus::NotFound, LockStatus::Invalid, LockStatus::Invalid]);
    timed.input(0, Input::Stop);
    let (stopped, back) = (timed.range(file, 1, Read, (0, 0)), timed.range(file, 1, Unlock, (0, 0)));
    assert_eq!([stopped, back].map(|serial| timed.status(serial)), [Some(LockStatus::Stopped), DONE]);
}

/// What everybody has, seen through queries of a stranger: kind by byte.
fn table(timed: &mut Timed, stranger: (u16, u64, u32)) -> Vec<Option<(u16, RangeKind)>> {
    (0..30).map(|byte| query(timed, stranger, 99, Write, (byte, byte)).map(|holder| (holder.slot, holder.kind))).collect()
}

#[test]
fn ranges_and_waits_survive_the_master_and_a_dead_holders_are_freed_when_it_is_gone() {
    // Every node is killed once: home, master, holder or none of these.
    for dead in 0..4 {
        let (mut timed, files) = opened(4);
        for (index, file) in files.iter().enumerate() {
            let start = u64::try_from(index).unwrap() * 7;
            let granted = timed.range(*file, 1, if index % 2 == 0 { Write } else { Read }, (start, start + 6));
            timed.range(*file, 1, Unlock, (start + 3, start + 3));
            assert_eq!(timed.status(granted), DONE);
        }
        let before = table(&mut timed, files[(dead + 1) % 4]);
        let others: Vec<usize> = (0..4).filter(|index| *index != dead).collect();
        // Two wait for what the dead one has, one for a living one's.
        let start = u64::try_from(dead).unwrap() * 7;
        let first = timed.range(files[others[0]], 1, Write, (start, start));
        let second = timed.range(files[others[1]], 1, Write, (start, start));
        let living = u64::try_from(others[0]).unwrap() * 7;
        let third = timed.range(files[others[2]], 1, Write, (living, living));
        let slot = u16::try_from(dead).unwrap();
        timed.nodes.remove(&slot);
        timed.view(2, &[slot]);
        timed.pass(500);
        assert_eq!([first, second, third].map(|serial| timed.status(serial)), [None; 3], "{dead}: nothing before it is gone");
        let less = timed.range(files[others[0]], 1, Unlock, (living + 1, living + 1));
        assert_eq!(timed.status(less), DONE, "giving up needs no open gate");
        timed.view(3, &[]);
        let ended = [first, second].map(|serial| timed.status(serial)).iter().filter(|end| **end == DONE).count();
        assert_eq!((ended, timed.status(third)), (1, None), "{dead}: one at a time");
        let after = table(&mut timed, files[others[1]]);
        for (byte, (was, is)) in before.iter().zip(&after).enumerate() {
            let byte = u64::try_from(byte).unwrap();
            let is_living = was.is_some_and(|(of, _)| of != slot);
            if byte == start || byte == living || byte == living + 1 || was.is_some_and(|(of, _)| usize::from(of) == others[1]) {
                continue;
            }
            assert_eq!(is.is_some() && is == was, is_living && is.is_some(), "byte {byte}");
            let is_own = is.is_none() && !is_living;
            assert!(is_own || is == was, "byte {byte} of {dead}: {was:?} became {is:?}");
        }
    }
}

#[test]
fn what_is_asked_and_given_up_while_nodes_recover_is_done_afterwards() {
    let (mut timed, files) = opened(3);
    timed.range(files[0], 1, Write, (0, 19));
    timed.nodes.remove(&2);
    // Node 0, the master, learns the view alone: it goes on; the other's word is of an older view.
    let members = vec![life(0, 1), life(1, 1)];
    let view = Input::View { number: ViewNumber(2), members, owed: vec![], is_member: true };
    timed.input(0, view.clone());
    let less = timed.range(files[0], 1, Unlock, (5, 9));
    let more = timed.range(files[0], 1, Write, (30, 39));
    let other = timed.range(files[1], 1, Write, (5, 5));
    assert_eq!([less, more, other].map(|serial| timed.status(serial)), [DONE, DONE, None]);
    timed.input(1, view);
    assert_eq!([less, more, other].map(|serial| timed.status(serial)), [DONE; 3]);
    assert_eq!(query(&mut timed, files[1], 1, Write, (35, 35)).map(|holder| holder.slot), Some(0));
}

#[test]
fn what_a_session_has_is_bounded() {
    let (mut timed, files) = opened(1);
    for byte in 0..u64::try_from(SESSION_RANGES_MAX).unwrap() {
        timed.range(files[0], 1, Read, (byte * 2, byte * 2));
    }
    timed.replies.clear();
    let more = timed.range(files[0], 1, Read, (1 << 40, 1 << 40));
    let again = timed.range(files[0], 1, Read, (8, 8));
    let less = timed.range(files[0], 1, Unlock, (8, 8));
    assert_eq!([more, again, less].map(|serial| timed.status(serial)), [Some(LockStatus::NoMemory), DONE, DONE]);
    let more = timed.range(files[0], 1, Read, (1 << 40, 1 << 40));
    assert_eq!(timed.status(more), DONE);
}

fn range(stage: &mut Stage, (slot, session, lock): (u16, u64, u32), kind: RangeKind, (start, end): (u64, u64), flags: Flags) -> u64 {
    let (owner, timeout_ms) = (1, 0);
    stage.ask(slot, session, |serial| ClientRequest::Range { serial, lock, owner, kind, start, end, flags, timeout_ms })
}

/// Two requests of one owner are granted together; the first weakens what the second has taken. What counts here must be what counts at the
/// master: else two writers have the same byte.
#[test]
fn a_grant_does_not_outlive_what_weakened_it_on_its_way() {
    let mut stage = Stage::new(1);
    let [first, other] = [1, 2].map(|session| {
        let lock = stage.lock((0, session), b"file", Mode::Nl, Flags::NONE);
        (0, session, stage.granted(lock))
    });
    range(&mut stage, first, Write, (0, 0), Flags::NONE);
    let held = range(&mut stage, other, Write, (1, 1), Flags::NONE);
    let both = [Read, Write].map(|kind| range(&mut stage, first, kind, (0, 1), Flags::NONE));
    range(&mut stage, other, Unlock, (1, 1), Flags::NONE);
    assert_eq!([held, both[0], both[1]].map(|serial| stage.status(serial)), [DONE; 3]);
    let again = [(first, Write), (other, Read)].map(|(who, kind)| range(&mut stage, who, kind, (0, 0), Flags::NOQUEUE));
    assert_eq!(again.map(|serial| stage.status(serial)), [DONE, Some(LockStatus::Again)]);
}

/// The same, where a grant and what gives it back cross between two nodes.
#[test]
fn a_grant_does_not_outlive_what_gave_it_back_on_its_way() {
    let mut stage = Stage::new(2);
    // The first to come is the master.
    let [near, far] = [0, 1].map(|slot| {
        let lock = stage.lock((slot, 1), b"file", Mode::Nl, Flags::NONE);
        (slot, 1, stage.granted(lock))
    });
    for who in [near, far] {
        range(&mut stage, who, Read, (0, 0), Flags::NONE);
    }
    let wanted = range(&mut stage, far, Write, (0, 0), Flags::NONE);
    stage.is_held_back = true;
    range(&mut stage, near, Unlock, (0, 0), Flags::NONE);
    let back = range(&mut stage, far, Unlock, (0, 0), Flags::NONE);
    stage.let_go();
    assert_eq!([wanted, back].map(|serial| stage.status(serial)), [DONE; 2]);
    let again = [near, far].map(|who| range(&mut stage, who, Write, (0, 0), Flags::NOQUEUE));
    assert_eq!(again.map(|serial| stage.status(serial)), [DONE, Some(LockStatus::Again)]);
}
