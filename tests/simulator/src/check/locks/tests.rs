//! What: histories that keep the rules, and ones that break each of them.
//! Owns: nothing.
//! Invariants: none.
//! Does not: simulate.
//! Called by: `cargo test`.

use super::*;
use Mode::{Cr, Cw, Ex, Nl, Pr, Pw};
use deadbolt_dlm_core::LockStatus;

/// A history with a clock and a counter of tokens.
#[derive(Default)]
struct Tale {
    history: LockHistory,
    now_us: u64,
    counter: u64,
}

fn key(client: Pid) -> LockKey {
    LockKey { client, lock: 1 }
}

fn names(found: &[Found]) -> Vec<&'static str> {
    found.iter().map(|(promise, _)| *promise).collect()
}

impl Tale {
    fn grant(&mut self, client: Pid, before: Option<Mode>, mode: Mode, block: Block, floor: u64) -> Vec<&'static str> {
        self.counter += 1;
        let token = Token { view: 1, counter: self.counter };
        self.grant_with(client, &Grant { place: (0, 1), resource: 0, before, mode, token, block, floor, written: None })
    }

    fn grant_with(&mut self, client: Pid, grant: &Grant) -> Vec<&'static str> {
        self.now_us += 10;
        names(&self.history.granted(self.now_us, key(client), grant))
    }

    fn new_lock(&mut self, client: Pid, mode: Mode) -> Vec<&'static str> {
        self.grant(client, None, mode, Block::Unread, 0)
    }

    fn unlock(&mut self, client: Pid, is_written: bool) -> u64 {
        self.now_us += 10;
        let written = is_written.then(|| Written { number: self.history.new_number(), is_mark: false });
        self.history.releasing(self.now_us, key(client), written);
        written.map_or(0, |written| written.number)
    }

    fn done(&mut self, number: u64) {
        self.history.done(0, Written { number, is_mark: false });
    }

    fn end(&mut self, client: Pid) {
        self.now_us += 10;
        self.history.ended(self.now_us, client, std::iter::empty());
    }

    /// A client that keeps the resource known, and one that has written once, and has the answer.
    fn written() -> (Self, u64) {
        let mut tale = Self::default();
        assert!(tale.new_lock(9, Nl).is_empty());
        assert!(tale.new_lock(1, Ex).is_empty());
        let number = tale.unlock(1, true);
        tale.done(number);
        (tale, number)
    }
}

#[test]
fn what_excludes_each_other_is_not_held_by_two() {
    let mut tale = Tale::default();
    assert!(tale.new_lock(1, Pr).is_empty());
    assert!(tale.new_lock(2, Pr).is_empty());
    assert_eq!(tale.new_lock(3, Pw), ["S2", "S2"]);
    tale.unlock(1, false);
    tale.end(2);
    tale.end(3);
    assert!(tale.new_lock(4, Ex).is_empty());
    tale.history.machine_ended(tale.now_us, 0, 1);
    assert!(tale.new_lock(5, Ex).is_empty());
}

#[test]
fn a_lock_under_conversion_excludes_only_what_every_mode_of_it_excludes() {
    for (modes, wanted) in [(vec![Pr], vec!["S2"]), (vec![Pr, Nl], vec![]), (vec![Pr, Cw], vec![])] {
        let mut tale = Tale::default();
        tale.new_lock(1, Pr);
        tale.history.converting(tale.now_us, key(1), modes.clone(), None, false);
        assert_eq!(tale.new_lock(2, Cw), wanted, "{modes:?}");
    }
    let mut tale = Tale::default();
    tale.new_lock(1, Pr);
    tale.history.converting(tale.now_us, key(1), vec![Pr, Cw], None, false);
    tale.new_lock(2, Cw);
    assert_eq!(names(&tale.history.kept(key(1), Pr, None)), ["S2"], "what is kept is a promise");
    assert!(tale.history.kept(key(1), Cr, None).is_empty());
}

#[test]
fn tokens_grow_and_are_not_used_twice() {
    let mut tale = Tale::default();
    tale.new_lock(1, Ex);
    tale.unlock(1, false);
    tale.counter -= 1;
    assert_eq!(tale.new_lock(2, Pr), ["S4"], "the same token for what excludes the first");
    tale.unlock(2, false);
    tale.counter -= 1;
    assert_eq!(tale.new_lock(3, Pr), ["S4"], "the same token");
    tale.counter = 9;
    assert!(tale.new_lock(4, Pr).is_empty());
    tale.counter = 7;
    assert!(tale.new_lock(5, Pr).is_empty(), "two that go together may be read in any order");
    tale.counter = 8;
    for client in 3..6 {
        tale.unlock(client, false);
    }
    assert_eq!(tale.new_lock(6, Ex), ["S4"], "smaller than what it excludes");
    tale.counter = 0;
    assert!(tale.grant(6, Some(Ex), Cr, Block::Unread, 0).is_empty(), "a lock given up has no new token");
}

#[test]
fn a_stable_reader_reads_the_last_block_that_was_sent() {
    for (mode, block, wanted) in [
        (Pr, Block::Value(2), vec![]),
        (Pr, Block::Value(1), vec!["S12"]),
        (Cw, Block::Value(1), vec!["S12"]),
        (Pr, Block::Value(3), vec!["S12"]),
        (Pr, Block::Nothing, vec!["S12"]),
        (Pr, Block::Invalid, vec![]),
        // Its write may still be on its way.
        (Cr, Block::Value(1), vec![]),
        (Cr, Block::Value(0), vec!["S12"]),
        (Nl, Block::Nothing, vec![]),
    ] {
        let (mut tale, first) = Tale::written();
        tale.new_lock(2, Pw);
        assert_eq!((first, tale.unlock(2, true)), (1, 2));
        assert_eq!(tale.grant(3, None, mode, block, 1), wanted, "{mode} {block:?}");
    }
}

#[test]
fn a_weak_reader_reads_nothing_older_than_what_was_done_before_it_asked() {
    for (floor, block, wanted) in [(1, Block::Value(1), vec![]), (2, Block::Value(1), vec!["S12"]), (2, Block::Nothing, vec!["S12"])] {
        let (mut tale, _) = Tale::written();
        tale.new_lock(2, Pw);
        let second = tale.unlock(2, true);
        tale.done(second);
        assert_eq!(tale.grant(3, None, Cr, block, floor), wanted, "{floor} {block:?}");
    }
}

#[test]
fn a_block_may_be_forgotten_only_with_the_resource() {
    let (mut tale, number) = Tale::written();
    assert_eq!(tale.grant(2, None, Pr, Block::Nothing, number), ["S12"]);
    tale.end(9);
    tale.end(2);
    assert!(tale.grant(3, None, Pr, Block::Nothing, number).is_empty());
}

#[test]
fn a_dead_writer_leaves_the_block_in_doubt_until_somebody_writes() {
    let (mut tale, number) = Tale::written();
    tale.new_lock(2, Ex);
    tale.end(2);
    assert_eq!(tale.grant(3, None, Pr, Block::Value(number), number), ["S12"]);
    assert!(tale.grant(4, None, Pr, Block::Invalid, number).is_empty());
    for client in 3..5 {
        tale.unlock(client, false);
    }
    tale.new_lock(5, Ex);
    let next = tale.unlock(5, true);
    assert!(tale.grant(6, None, Pr, Block::Value(next), next).is_empty());
}

#[test]
fn a_block_that_was_written_is_not_called_invalid_for_no_reason() {
    let (mut tale, number) = Tale::written();
    assert_eq!(tale.grant(2, None, Pr, Block::Invalid, number), ["S9"]);
    tale.history.view_learned(tale.now_us);
    assert!(tale.grant(3, None, Pr, Block::Invalid, number).is_empty());
    let (mut tale, number) = Tale::written();
    tale.history.ended(0, 7, std::iter::once(0));
    assert!(tale.grant(3, None, Pr, Block::Invalid, number).is_empty(), "what the dead one asked for may have been granted");
}

#[test]
fn a_write_of_a_conversion_counts_as_its_result_says() {
    let maybe = Written { number: 2, is_mark: false };
    for (mode, wanted) in [(Pr, vec![]), (Ex, vec!["S12"])] {
        let (mut tale, _) = Tale::written();
        tale.new_lock(2, Pw);
        tale.history.new_number();
        tale.history.converting(tale.now_us, key(2), vec![Pw, Pr], Some(maybe), false);
        tale.counter += 1;
        let token = Token { view: 1, counter: tale.counter };
        let grant =
            Grant { place: (0, 1), resource: 0, before: Some(Pw), mode, token, block: Block::Unread, floor: 1, written: Some(maybe) };
        assert!(tale.grant_with(2, &grant).is_empty());
        tale.unlock(2, false);
        assert_eq!(tale.grant(3, None, Pr, Block::Value(2), 1), wanted, "granted as {mode}");
    }
    let (mut tale, _) = Tale::written();
    tale.new_lock(2, Pw);
    tale.history.new_number();
    tale.history.converting(tale.now_us, key(2), vec![Pw, Pr], Some(maybe), false);
    assert!(tale.grant(3, None, Pr, Block::Value(1), 1).is_empty() && tale.grant(4, None, Pr, Block::Value(2), 1).is_empty(), "either");
}

/// One client that leaves an EX lock behind, seen by its daemon.
fn left(is_at_something: bool) -> Tale {
    let mut tale = Tale::default();
    assert!(tale.new_lock(1, Ex).is_empty());
    tale.history.persists(key(1), true);
    let asked = [Unanswered { resource: 0, may_stay: is_at_something, is_adopting: false }];
    tale.history.left_behind(tale.now_us, 1, 0, &asked[..usize::from(is_at_something)]);
    tale.history.end_seen(tale.now_us, 1);
    tale
}

fn purge(client: Option<Pid>) -> Purge {
    Purge { machines: vec![0], client, resources: 0..1 }
}

#[test]
fn an_orphan_excludes_until_its_purge_is_sent_or_its_daemon_is_gone() {
    assert_eq!(left(false).new_lock(2, Pr), ["S2"]);
    assert!(left(false).new_lock(2, Nl).is_empty());
    for (meant, wanted) in [(None, vec![]), (Some(1), vec![]), (Some(7), vec!["S2"])] {
        let mut tale = left(false);
        tale.history.purging((5, 1), purge(meant));
        assert_eq!(tale.new_lock(2, Pr), wanted, "{meant:?}");
    }
    let mut tale = left(false);
    tale.history.daemon_ended(1);
    assert_eq!(tale.new_lock(2, Pr), ["S2"], "of another machine");
    tale.history.daemon_ended(0);
    assert!(tale.new_lock(3, Ex).contains(&"S2") && tale.history.holds(2) && !tale.history.holds(1));
    let mut tale = left(false);
    tale.end(1);
    assert!(tale.new_lock(2, Ex).is_empty(), "not persistent any more, or cut off");
    let mut tale = Tale::default();
    tale.history.purging((5, 1), purge(None));
    tale.new_lock(1, Ex);
    tale.history.persists(key(1), true);
    tale.history.left_behind(tale.now_us, 1, 0, &[]);
    assert!(tale.new_lock(2, Ex).is_empty(), "a purge is on its way");
}

#[test]
fn an_orphan_is_adopted_once_and_in_its_mode() {
    let adopt = |tale: &mut Tale, client: Pid, mode: Mode| names(&tale.history.adopted(tale.now_us, key(client), (0, 1), 0, mode));
    let mut tale = left(false);
    assert!(adopt(&mut tale, 2, Ex).is_empty());
    assert_eq!(adopt(&mut tale, 3, Pr), ["S9", "S2"], "it is no orphan any more");
    assert_eq!(adopt(&mut left(false), 2, Pr), ["S9"], "another mode");
    assert!(adopt(&mut left(true), 2, Pr).is_empty(), "its client was at something with it");
    for is_answered in [false, true] {
        let mut tale = left(false);
        tale.history.purging((5, 1), purge(None));
        if is_answered {
            tale.history.purged((5, 1));
        }
        assert_eq!(adopt(&mut tale, 2, Ex).is_empty(), !is_answered);
    }
}

#[test]
fn an_orphan_that_is_there_is_not_refused() {
    let refused = |tale: &Tale, mode: Mode, status: LockStatus| tale.history.not_adopted(0, (0, mode), 1000, status).is_some();
    let tale = left(false);
    assert!(refused(&tale, Ex, LockStatus::Again) && refused(&tale, Pr, LockStatus::NotFound));
    assert!(!refused(&tale, Pr, LockStatus::Again));
    assert!(!refused(&left(true), Ex, LockStatus::NotFound), "it was being taken back");
    assert!(tale.history.not_adopted(0, (0, Ex), 5, LockStatus::NotFound).is_none(), "asked before");
    assert!(tale.history.not_adopted(1, (0, Ex), 1000, LockStatus::NotFound).is_none(), "of another machine");
    let mut tale = left(false);
    tale.history.purging((5, 1), purge(None));
    assert!(!refused(&tale, Ex, LockStatus::NotFound));
}
