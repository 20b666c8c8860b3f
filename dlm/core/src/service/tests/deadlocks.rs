//! What: deadlocks across resources, on one node and between nodes, with all that may happen meanwhile.
//! Owns: one scene each.
//! Invariants: none of its own.
//! Does not: search cycles in pictures; `waits` does.
//! Called by: `cargo test`.

use super::timed::Timed;
use super::*;
use crate::client::RangeKind;

const EX: Mode = Mode::Ex;

/// Each of `parties` has a resource and then wants the next one's; the requests, in this order.
fn ring(timed: &mut Timed, parties: &[(u16, u64)]) -> Vec<u64> {
    let resource = |index: usize| std::format!("r{}", index % parties.len()).into_bytes();
    for (index, (slot, session)) in parties.iter().enumerate() {
        timed.take(*slot, *session, &resource(index), EX);
    }
    let mut requests = Vec::new();
    for (index, (slot, session)) in parties.iter().enumerate() {
        requests.push(timed.lock(*slot, *session, &resource(index + 1), EX, Flags::NONE));
        timed.pass(10);
    }
    requests
}

fn ends(timed: &Timed, requests: &[u64]) -> Vec<Option<LockStatus>> {
    requests.iter().map(|request| timed.status(*request)).collect()
}

#[test]
fn on_one_node_and_between_nodes_the_youngest_wait_fails_within_a_second_and_hears_why() {
    for parties in [&[(0, 1), (0, 2)][..], &[(0, 1), (1, 1), (2, 1)], &[(2, 2), (1, 1), (2, 1), (0, 3)]] {
        let mut timed = Timed::new(3);
        let requests = ring(&mut timed, parties);
        timed.pass(1000);
        let (last, first) = requests.split_last().unwrap();
        assert_eq!(timed.status(*last), Some(LockStatus::Deadlock), "{parties:?}");
        assert_eq!(ends(&timed, first), vec![None; first.len()], "one is enough");
        let text = timed.cycle(*last).unwrap();
        let (slot, session) = parties.last().unwrap();
        let begin = std::format!("process {} of slot {slot} waits for EX on s/r0, on which process ", u64::from(*slot) * 100 + session);
        assert!(text.starts_with(&begin), "{text}");
        assert_eq!(text.matches(" waits for EX on s/r").count(), parties.len(), "{text}");
        assert_eq!(timed.logs.iter().filter(|line| line.contains(&text)).count(), 1, "the operator is told once");
        // The reason comes before the failure.
        let place = |is_it: &dyn Fn(&ClientReply) -> bool| timed.replies.iter().position(|(_, reply)| is_it(reply)).unwrap();
        let told = place(&|reply| matches!(reply, ClientReply::DeadlockCycle { .. }));
        let failed = place(&|reply| matches!(reply, ClientReply::Completed { status: LockStatus::Deadlock, .. }));
        assert!(told < failed);
    }
}

#[test]
fn nobody_fails_who_only_waits_long() {
    let mut timed = Timed::new(3);
    timed.take(0, 1, b"a", EX);
    let waits: Vec<u64> =
        (0..3).flat_map(|slot| [(slot, 2), (slot, 3)]).map(|(slot, who)| timed.lock(slot, who, b"a", EX, Flags::NONE)).collect();
    timed.take(1, 1, b"b", EX);
    let behind = timed.lock(1, 1, b"a", EX, Flags::NONE);
    timed.pass(10_000);
    assert_eq!(ends(&timed, &waits), vec![None; 6]);
    assert_eq!(timed.status(behind), None);
    // And once all is told, nobody asks any more.
    let rounds: Vec<u64> = timed.nodes.values().map(|node| node.deadlocks.round()).collect();
    timed.pass(10_000);
    assert_eq!(timed.nodes.values().map(|node| node.deadlocks.round()).collect::<Vec<_>>(), rounds);
}

#[test]
fn two_rings_at_once_each_lose_one() {
    let mut timed = Timed::new(3);
    let one = ring(&mut timed, &[(0, 1), (1, 1)]);
    let held: Vec<u32> =
        [(1, 2, &b"x"[..]), (2, 2, b"y"), (0, 2, b"z")].into_iter().map(|(slot, who, what)| timed.take(slot, who, what, EX)).collect();
    assert_eq!(held.len(), 3);
    let other: Vec<u64> = [(1, 2, &b"y"[..]), (2, 2, b"z"), (0, 2, b"x")]
        .into_iter()
        .map(|(slot, who, what)| timed.lock(slot, who, what, EX, Flags::NONE))
        .collect();
    timed.pass(1000);
    for requests in [&one, &other] {
        let failed = ends(&timed, requests).into_iter().filter(|end| *end == Some(LockStatus::Deadlock)).count();
        assert_eq!(failed, 1, "{:?}", ends(&timed, requests));
    }
}

#[test]
fn a_request_marked_so_never_fails() {
    let mut timed = Timed::new(2);
    timed.take(0, 1, b"a", EX);
    timed.take(1, 1, b"b", EX);
    let older = timed.lock(0, 1, b"b", EX, Flags::NONE);
    timed.pass(50);
    let younger = timed.lock(1, 1, b"a", EX, Flags::NODLCKWT);
    timed.pass(1000);
    assert_eq!(ends(&timed, &[older, younger]), [Some(LockStatus::Deadlock), None]);
}

#[test]
fn a_view_change_in_the_middle_begins_anew_and_loses_nothing() {
    for at in [0, 150, 250, 300, 310, 400] {
        let mut timed = Timed::new(3);
        timed.take(2, 2, b"other", EX);
        let requests = ring(&mut timed, &[(0, 1), (1, 1)]);
        timed.pass(at);
        timed.nodes.remove(&2);
        timed.view(2, &[2]);
        timed.pass(2000);
        let is_closed = ends(&timed, &requests);
        timed.view(3, &[]);
        timed.pass(1000);
        let failed = ends(&timed, &requests).into_iter().filter(|end| *end == Some(LockStatus::Deadlock)).count();
        assert_eq!(failed, 1, "view after {at} ms: {is_closed:?}, then {:?}", ends(&timed, &requests));
    }
}

#[test]
fn the_death_of_the_searcher_is_survived() {
    let mut timed = Timed::new(3);
    let requests = ring(&mut timed, &[(1, 1), (2, 1)]);
    timed.pass(100);
    timed.nodes.remove(&0);
    timed.view(2, &[]);
    timed.pass(1000);
    assert_eq!(ends(&timed, &requests), [None, Some(LockStatus::Deadlock)]);
}

#[test]
fn conversions_and_locks_wait_for_each_other() {
    let mut timed = Timed::new(2);
    let shared = timed.take(0, 1, b"a", Mode::Pr);
    timed.take(1, 1, b"a", Mode::Pr);
    timed.take(0, 1, b"b", EX);
    let behind = timed.lock(1, 1, b"b", Mode::Pr, Flags::NONE);
    timed.pass(20);
    let (mode, flags, owner, timeout_ms, lvb) = (EX, Flags::NONE, 0, 0, None);
    let convert = timed.ask(0, 1, |serial| ClientRequest::Convert { serial, lock: shared, mode, flags, owner, timeout_ms, lvb });
    timed.pass(1000);
    assert_eq!(ends(&timed, &[behind, convert]), [None, Some(LockStatus::Deadlock)]);
}

#[test]
fn ranges_take_part() {
    let mut timed = Timed::new(2);
    let (mine, other) = (timed.take(0, 1, b"file", Mode::Nl), timed.take(1, 1, b"file", Mode::Nl));
    let first = timed.range((0, 1, mine), 5, RangeKind::Write, (0, 9));
    let second = timed.range((1, 1, other), 6, RangeKind::Write, (10, 19));
    assert_eq!(ends(&timed, &[first, second]), [Some(LockStatus::Success); 2]);
    let older = timed.range((0, 1, mine), 5, RangeKind::Write, (15, 15));
    timed.pass(30);
    let younger = timed.range((1, 1, other), 6, RangeKind::Read, (0, 0));
    timed.pass(1000);
    assert_eq!(ends(&timed, &[older, younger]), [None, Some(LockStatus::Deadlock)]);
    let text = "process 101 of slot 1 (owner 6) waits for bytes 0..=0 for read on s/file, of which process 1 of slot 0 (owner 5) has bytes 0..=9 for write; \
                process 1 of slot 0 (owner 5) waits for bytes 15..=15 for write on s/file, of which process 101 of slot 1 (owner 6) has bytes 10..=19 for write";
    assert_eq!(timed.cycle(younger).as_deref(), Some(text));
}
