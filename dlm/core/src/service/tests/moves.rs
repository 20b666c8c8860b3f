//! What: resources that move to another master, by load and before a leave, with all that is on them.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: search; `cluster` does, with moves all the time.
//! Called by: `cargo test`.

use super::stage::Stage;
use super::*;

/// Slot 0 is master, because it had the first lock (NL); everybody asks for every lock.
fn mastered_by_first() -> (Stage, u32) {
    let mut stage = Stage::new(3);
    for node in stage.nodes.values_mut() {
        node.follow_load(MoveRule { sample: 1, turns: 6 });
    }
    let first = stage.lock((0, 1), b"r", Mode::Nl, Flags::NONE);
    let first = stage.granted(first);
    (stage, first)
}

fn master(stage: &Stage) -> u16 {
    let is_master = |service: &LockService| service.places.iter().any(|(_, place)| place.is_master());
    let masters: Vec<u16> = stage.nodes.iter().filter(|(_, node)| is_master(node)).map(|(slot, _)| *slot).collect();
    assert_eq!(masters.len(), 1, "{masters:?}");
    masters[0]
}

fn write(stage: &mut Stage, (slot, session): (u16, u64), value: u8) {
    let lock = stage.lock((slot, session), b"r", Mode::Ex, Flags::NONE);
    let lock = stage.granted(lock);
    let lvb = Some([value; 32]);
    stage.ask(slot, session, |serial| ClientRequest::Unlock { serial, lock, flags: Flags::VALBLK, lvb });
}

fn read(stage: &mut Stage, who: (u16, u64)) -> (bool, Option<[u8; 32]>) {
    let asked = stage.lock(who, b"r", Mode::Cr, Flags::VALBLK);
    let Some(ClientReply::Completed { lock, flags, lvb, .. }) = stage.answer(asked).cloned() else { panic!("answered") };
    stage.unlock(who, lock, Flags::NONE);
    (!flags.has(ResultFlags::VALNOTVALID), lvb)
}

#[test]
fn a_resource_follows_the_one_that_works_on_it_with_its_value_block_and_tokens() {
    let (mut stage, first) = mastered_by_first();
    assert_eq!(master(&stage), 0);
    for value in 1..=3 {
        write(&mut stage, (1, 1), value);
        assert_eq!(master(&stage), u16::from(value == 3), "six operations in a row");
    }
    assert_eq!(stage.nodes[&1].status().moved, 1);
    assert_eq!(read(&mut stage, (2, 1)), (true, Some([3; 32])));
    // Its first lock is still there, with the new master.
    let up = stage.convert((0, 1), first, Mode::Ex, Flags::NONE, 0);
    assert_eq!(stage.status(up), Some(LockStatus::Success));
    let tried = stage.lock((1, 1), b"r", Mode::Cr, Flags::NOQUEUE);
    assert_eq!(stage.status(tried), Some(LockStatus::Again));
}

#[test]
fn work_of_the_master_itself_keeps_the_resource() {
    let (mut stage, _) = mastered_by_first();
    for value in 1..=20 {
        write(&mut stage, (1, 1), value);
        write(&mut stage, (0, 2), value);
    }
    assert_eq!(master(&stage), 0);
}

#[test]
fn who_waits_keeps_its_place() {
    let (mut stage, _) = mastered_by_first();
    let holder = stage.lock((1, 1), b"r", Mode::Ex, Flags::NONE);
    let holder = stage.granted(holder);
    // The last two stand at the front, the later one first.
    let waiters: Vec<((u16, u64), Flags)> =
        vec![((2, 1), Flags::NONE), ((0, 2), Flags::NONE), ((2, 3), Flags::NONE), ((1, 2), Flags::HEADQUE), ((2, 2), Flags::HEADQUE)];
    let mut asked: Vec<((u16, u64), u64)> = waiters.into_iter().map(|(who, flags)| (who, stage.lock(who, b"r", Mode::Ex, flags))).collect();
    asked.rotate_left(3);
    asked.swap(0, 1);
    stage.input(0, Input::Stop);
    assert_eq!(master(&stage), 1);
    let mut last = (1, 1, holder);
    for (who, asked) in asked {
        assert_eq!(stage.answer(asked), None);
        stage.unlock((last.0, last.1), last.2, Flags::NONE);
        last = (who.0, who.1, stage.granted(asked));
    }
}

#[test]
fn a_request_during_a_move_is_answered_by_the_new_master_or_by_the_one_that_stays() {
    for is_cut_short in [false, true] {
        let (mut stage, _) = mastered_by_first();
        for value in 1..=2 {
            write(&mut stage, (1, 1), value);
        }
        stage.is_held_back = true;
        let asked: Vec<u64> = (0..3).map(|slot| stage.lock((slot, 3), b"r", Mode::Pr, Flags::VALBLK)).collect();
        // Bit by bit: what is asked in between meets every moment of it.
        let mut later = Vec::new();
        for turn in 0..40_u16 {
            let Some((to, input)) = stage.kept.pop_front() else { break };
            stage.input(to, input);
            later.push(stage.lock((turn % 3, 2), b"r", Mode::Pr, Flags::NONE));
            if is_cut_short && turn == 12 {
                stage.kept.clear();
                stage.is_held_back = false;
                stage.next_view(&[]);
            }
        }
        stage.let_go();
        for asked in asked.into_iter().chain(later) {
            assert_eq!(stage.status(asked), Some(LockStatus::Success));
        }
        master(&stage);
    }
}

#[test]
fn a_master_that_leaves_hands_its_resources_over_and_their_value_blocks_stay_good() {
    for is_handed_over in [true, false] {
        let mut stage = Stage::new(3);
        let keeper = stage.lock((0, 1), b"r", Mode::Nl, Flags::NONE);
        let keeper = stage.granted(keeper);
        write(&mut stage, (2, 1), 7);
        let other = stage.lock((2, 1), b"r", Mode::Nl, Flags::NONE);
        stage.granted(other);
        assert_eq!(master(&stage), 0);
        if is_handed_over {
            stage.input(0, Input::Stop);
            assert!(stage.nodes[&0].has_handed_over());
            assert_eq!(master(&stage), 2);
        }
        stage.unlock((0, 1), keeper, Flags::NONE);
        stage.nodes.remove(&0);
        stage.next_view(&[]);
        assert_eq!(read(&mut stage, (1, 1)).0, is_handed_over);
    }
}
