//! What: the list of locks: what is told of whom, what a filter picks, and that a piece stays small.
//! Owns: one scene each.
//! Invariants: none of its own.
//! Does not: format text.
//! Called by: `cargo test`.

use super::timed::Timed;
use super::*;
use crate::client::RangeKind;
use crate::cycle::Claim;
use crate::pattern::Pattern;
use crate::ranges::{RangeMode, Span};

/// Holder on slot 0, who waits on slot 1 for EX, and behind that one on slot 2; the resource's master is slot 0.
fn line() -> Timed {
    let mut timed = Timed::new(3);
    timed.take(0, 1, b"r", Mode::Pr);
    timed.pass(10);
    timed.lock(1, 1, b"r", Mode::Ex, Flags::NONE);
    timed.pass(10);
    timed.lock(2, 2, b"r", Mode::Pr, Flags::NONE);
    timed
}

fn all(service: &LockService, filter: &Filter) -> Vec<ResourceSnapshot> {
    let page = service.list(filter, 0, usize::MAX);
    assert_eq!((page.left_out, page.next), (0, None));
    page.resources
}

fn waiting() -> Filter {
    Filter { is_waiting: true, ..Filter::default() }
}

/// Processes that wait, as a filter picks them.
fn pids(timed: &Timed, filter: &Filter) -> Vec<u32> {
    all(&timed.nodes[&0], filter).iter().flat_map(|resource| &resource.locks).map(|lock| lock.who.pid).collect()
}

#[test]
fn the_master_tells_who_waits_for_whom_and_others_their_own() {
    let timed = line();
    let found = all(&timed.nodes[&0], &waiting());
    let [resource] = &found[..] else { panic!("{found:?}") };
    assert!(resource.is_masters_word && resource.lockspace == b"s" && resource.resource == b"r");
    let [first, second] = &resource.locks[..] else { panic!("{resource:?}") };
    assert_eq!((first.who.pid, first.wanted, timed.now - first.since_ms), (101, Some(Mode::Ex), 10));
    let in_the_way = |lock: &LockSnapshot| {
        let waits_for = lock.waits_for.clone().unwrap();
        waits_for.first.iter().map(|it| (it.who.pid, it.claim, it.is_held)).collect::<Vec<_>>()
    };
    assert_eq!(in_the_way(first), [(1, Claim::Mode(Mode::Pr), true)]);
    assert_eq!(in_the_way(second), [(101, Claim::Mode(Mode::Ex), false)]);
    // The waiter's node knows its own wait and where to ask.
    let own = all(&timed.nodes[&1], &waiting());
    assert_eq!((own[0].is_masters_word, own[0].master.map(|life| life.slot.0), own[0].locks.len()), (false, Some(0), 1));
    assert_eq!((own[0].locks[0].who.pid, &own[0].locks[0].waits_for), (101, &None));
}

#[test]
fn a_filter_picks_and_a_wait_fits_by_either_side() {
    let mut timed = line();
    timed.take(0, 3, b"other", Mode::Cr);
    let base = Filter::default();
    let name = |text: &str| Some(Pattern::new(text).unwrap());
    assert_eq!(pids(&timed, &base), [1, 101, 202, 3]);
    for (filter, wanted) in [
        (Filter { resource: name("o*"), ..base.clone() }, &[3][..]),
        (Filter { lockspace: name("t*"), ..base.clone() }, &[]),
        (Filter { lockspace: name("?"), pid: Some(202), ..base.clone() }, &[202]),
        (Filter { slot: Some(SlotIndex(0)), ..base.clone() }, &[1, 3]),
        (Filter { mode: Some(Mode::Ex), ..base.clone() }, &[101]),
        (Filter { mode: Some(Mode::Pr), slot: Some(SlotIndex(2)), ..base.clone() }, &[202]),
        (Filter { owner: Some(7), ..base.clone() }, &[]),
        // Whoever waits for process 1, and what process 101 takes part in.
        (Filter { pid: Some(1), ..waiting() }, &[101]),
        (Filter { pid: Some(101), ..waiting() }, &[101, 202]),
        (Filter { slot: Some(SlotIndex(0)), mode: Some(Mode::Ex), ..waiting() }, &[]),
    ] {
        assert_eq!(pids(&timed, &filter), wanted, "{filter:?}");
    }
}

#[test]
fn ranges_are_told_with_their_owners_and_who_is_in_the_way() {
    let mut timed = Timed::new(2);
    let files = [0, 1].map(|slot| (slot, 1, timed.take(slot, 1, b"file", Mode::Nl)));
    timed.range(files[0], 5, RangeKind::Write, (0, 99));
    timed.range(files[1], 6, RangeKind::Read, (50, u64::MAX));
    let bytes = |start, end, kind| Span { start, end, kind };
    let found = all(&timed.nodes[&0], &Filter::default());
    let [held, wanted] = &found[0].ranges[..] else { panic!("{found:?}") };
    assert_eq!((held.part, held.bytes, held.is_held), (5, bytes(0, 99, RangeMode::Write), true));
    assert_eq!((wanted.part, wanted.bytes, wanted.is_held), (6, bytes(50, u64::MAX, RangeMode::Read), false));
    assert_eq!((wanted.who.pid, wanted.since_ms), (101, Some(timed.now)));
    let waits_for = wanted.waits_for.clone().unwrap().first;
    assert_eq!((waits_for[0].part, waits_for[0].claim), (5, Claim::Range(bytes(0, 99, RangeMode::Write))));
    // Its own node knows the wait, not for whom; by owner, and only what waits.
    let own = all(&timed.nodes[&1], &Filter { owner: Some(6), ..waiting() });
    assert_eq!((own[0].ranges.len(), own[0].ranges[0].bytes.start, &own[0].ranges[0].waits_for), (1, 50, &None));
    assert!(own[0].locks.is_empty());
    assert!(all(&timed.nodes[&0], &Filter { owner: Some(4), ..waiting() }).is_empty());
}

#[test]
fn a_long_list_comes_in_pieces_and_what_is_left_out_is_counted() {
    let mut timed = Timed::new(1);
    let count = 10_000_u32;
    for number in 0..count {
        timed.take(0, 1, &number.to_be_bytes(), Mode::Pr);
        timed.replies.clear();
    }
    let service = &timed.nodes[&0];
    let walk = |most: usize| {
        let (mut names, mut left_out, mut pieces, mut next) = (BTreeSet::new(), 0, 0, Some(0));
        while let Some(from) = next {
            let page = service.list(&Filter::default(), from, most - names.len());
            assert!(page.resources.len() <= 4096, "a piece of {}", page.resources.len());
            names.extend(page.resources.into_iter().map(|resource| resource.resource));
            (left_out, pieces, next) = (left_out + page.left_out, pieces + 1, page.next);
        }
        (names.len(), left_out, pieces)
    };
    assert_eq!(walk(20_000), (10_000, 0, 3));
    assert_eq!(walk(5000), (5000, 5000, 2));
    assert_eq!(service.snapshot().len(), 10_000);
    // Places that do not stand are no reason to stop.
    assert_eq!(service.list(&Filter::default(), u64::MAX, 5), Page::default());

    let (mut locks, mut resources, mut next) = (0, 0, Some(0));
    while let Some(from) = next {
        let page = service.list_lockspaces(None, from);
        locks += page.lockspaces.iter().map(|it| it.locks).sum::<usize>();
        resources += page.lockspaces.iter().map(|it| it.resources).sum::<usize>();
        next = page.next;
    }
    assert_eq!((locks, resources), (10_000, 10_000));
}

#[test]
fn many_in_the_way_of_one_are_counted() {
    let mut timed = Timed::new(1);
    for _ in 0..100 {
        timed.take(0, 1, b"r", Mode::Pr);
    }
    timed.lock(0, 2, b"r", Mode::Ex, Flags::NONE);
    let found = all(&timed.nodes[&0], &waiting());
    let waits_for = found[0].locks[0].waits_for.clone().unwrap();
    assert_eq!((waits_for.first.len(), waits_for.left_out), (32, 68));
}

#[test]
fn lockspaces_tell_who_uses_them_and_what_is_here() {
    let mut timed = line();
    timed.take(0, 3, b"other", Mode::Cr);
    let page = timed.nodes[&0].list_lockspaces(None, 0);
    let [space] = &page.lockspaces[..] else { panic!("{page:?}") };
    assert_eq!((&space.lockspace[..], space.number, space.sessions, space.locks, space.waiting), (&b"s"[..], timed.space, 4, 2, 0));
    assert_eq!((space.members.len(), &space.gated_by), (3, &Vec::new()));
    assert_eq!(timed.nodes[&1].list_lockspaces(None, 0).lockspaces[0].waiting, 1);
    let none = Pattern::new("x*").unwrap();
    assert!(timed.nodes[&0].list_lockspaces(Some(&none), 0).lockspaces.is_empty());
    let end = LockspacePage { may_grant: true, ..LockspacePage::default() };
    assert_eq!(timed.nodes[&0].list_lockspaces(None, u64::MAX), end);
}
