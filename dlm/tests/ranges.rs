//! What: byte ranges and bounded waits through both client libraries.
//! Owns: nothing.
//! Invariants: bounded in time; nothing is left behind.
//! Does not: use a cluster.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Node, anybody};
use deadbolt_dlm::{
    Flags, LockStatus, Mode, RangeHolder, RangeKind,
    RangeMode::{self, Read, Write},
    Transport,
    blocking::{ClientError, Guard, Protection, Wishes},
    client,
};
use std::{
    ops::Bound,
    time::{Duration, Instant},
};

fn of(owner: u64) -> Wishes {
    Wishes { owner, ..Wishes::default() }
}

fn within(ms: u64) -> Wishes {
    Wishes { timeout: Some(Duration::from_millis(ms)), ..Wishes::default() }
}

/// Two processes with the same file.
fn two(node: &Node) -> (Guard, Guard) {
    let open = |client: deadbolt_dlm::blocking::Client| client.join(b"test").unwrap().lock(b"file", Mode::Nl, &Wishes::default()).unwrap();
    (open(node.connect()), open(node.connect_by_socket()))
}

fn refused(result: Result<(), ClientError>) -> String {
    match result {
        Err(ClientError::Refused { status: LockStatus::Invalid, reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_owners_ranges_split_merge_and_are_its_own() {
    let node = Node::start(anybody());
    let (file, other) = two(&node);
    file.lock_range(Write, 0..100, &of(1)).unwrap();
    assert!(!other.try_lock_range(Read, 99..=99, 2).unwrap());
    // The same process, another owner; and the same number in another process.
    assert!(!file.try_lock_range(Read, ..10, 2).unwrap());
    assert!(!other.try_lock_range(Read, ..10, 1).unwrap());
    let found = other.range_conflict(Write, 50.., 1).unwrap().unwrap();
    let pid = std::process::id();
    assert_eq!(found, RangeHolder { owner: 1, kind: RangeKind::Write, start: 0, end: 99, slot: 0, pid });
    assert_eq!(other.range_conflict(Write, 100.., 1).unwrap(), None);
    // A part given back, a part weakened: three pieces.
    file.unlock_range(40..50, 1).unwrap();
    file.lock_range(Read, 50..100, &of(1)).unwrap();
    assert!(other.try_lock_range(Write, 40..50, 2).unwrap());
    assert!(other.try_lock_range(Read, 50..=60, 2).unwrap());
    assert!(!other.try_lock_range(Write, 50..=60, 2).unwrap());
    assert!(!other.try_lock_range(Read, 39..40, 2).unwrap());
    // The other's part stands in the way of the whole.
    assert!(!file.try_lock_range(Write, 0..100, 1).unwrap());
    other.unlock_range(.., 2).unwrap();
    assert!(file.try_lock_range(Write, 0..100, 1).unwrap());
    let pieces = other.range_conflict(Read, .., 2).unwrap().unwrap();
    assert_eq!((pieces.start, pieces.end), (0, 99), "merged");
    drop(file);
    other.lock_range(Write, .., &of(2)).unwrap();
}

#[test]
fn bytes_that_are_none_and_flags_that_do_not_fit_are_refused() {
    let node = Node::start(anybody());
    let (file, _) = two(&node);
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    let reversed = 9..3;
    for bytes in [0..0, 7..7, reversed] {
        assert!(refused(file.lock_range(Read, bytes, &of(0))).contains("at least one byte"));
    }
    assert!(refused(file.unlock_range((Bound::Excluded(u64::MAX), Bound::Unbounded), 0)).contains("at least one byte"));
    file.lock_range(Read, u64::MAX.., &of(0)).unwrap();
    let wrong = Wishes { flags: Flags::HEADQUE, ..Wishes::default() };
    let error = file.lock_range(Read, .., &wrong).unwrap_err();
    assert!(matches!(error, ClientError::NotGranted(LockStatus::Invalid)));
    assert!(error.to_string().contains("docs/locks.md"), "{error}");
}

#[test]
fn a_range_is_waited_for_in_order_and_within_time() {
    let node = Node::start(anybody());
    let (file, other) = two(&node);
    file.lock_range(Write, 0..10, &of(0)).unwrap();
    let begin = Instant::now();
    assert!(matches!(other.lock_range(Read, 5..6, &within(40)), Err(ClientError::NotGranted(LockStatus::TimedOut))));
    let waited = begin.elapsed();
    assert!((40..1000).contains(&waited.as_millis()), "{waited:?}");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| other.lock_range(Write, 5..15, &within(10_000)));
        while !waiter.is_finished()
            && file.range_conflict(Write, 12..13, 9).unwrap().is_none()
            && begin.elapsed() < Duration::from_millis(100)
        {}
        file.unlock_range(.., 0).unwrap();
        waiter.join().unwrap().unwrap();
    });
    assert!(!file.try_lock_range(Read, 14..15, 0).unwrap());
}

/// The node ends the wait, on its own clock: never early, and a tick late at the most where the machine is idle.
#[test]
fn waits_below_a_second_end_in_time() {
    let node = Node::start(anybody());
    let space = node.connect().join(b"test").unwrap();
    let mut held = space.lock(b"r", Mode::Pr, &Wishes::default()).unwrap();
    let other = node.connect().join(b"test").unwrap();
    let mut shared = other.lock(b"r", Mode::Pr, &Wishes::default()).unwrap();
    let mut latest = Duration::ZERO;
    for micros in [0, 1, 1500, 7000, 25_000, 80_000] {
        let timeout = Duration::from_micros(micros);
        let wishes = Wishes { timeout: Some(timeout), ..Wishes::default() };
        for turn in 0..3 {
            let begin = Instant::now();
            let error = match turn {
                0 => other.lock(b"r", Mode::Ex, &wishes).map(drop).unwrap_err(),
                1 => other.begin(b"r", Mode::Ex, &wishes).unwrap().wait().map(drop).unwrap_err(),
                _ => shared.convert_within(Mode::Ex, &wishes).map(drop).unwrap_err(),
            };
            let waited = begin.elapsed();
            assert!(matches!(error, ClientError::NotGranted(LockStatus::TimedOut)), "{error}");
            // The node counts whole milliseconds of its own.
            assert!(waited + Duration::from_millis(1) >= timeout, "{waited:?} instead of {timeout:?}");
            latest = latest.max(waited.saturating_sub(timeout));
        }
    }
    println!("at most {latest:?} late");
    assert!(latest < Duration::from_millis(500), "{latest:?} late");
    // Longer than can be said is long, and not zero.
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| other.lock(b"s", Mode::Ex, &Wishes { timeout: Some(Duration::MAX), ..Wishes::default() }).map(drop));
        waiter.join().unwrap().unwrap();
    });
    held.convert(Mode::Nl, Flags::NONE, None).unwrap();
}

#[test]
fn the_async_client_has_ranges_and_a_dropped_future_gives_them_back_with_its_lock() {
    let node = Node::start(anybody());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (file, _) = two(&node);
    file.lock_range(Write, 0..10, &of(0)).unwrap();
    runtime.block_on(async {
        for transport in [Transport::Ring, Transport::Socket] {
            let client = client::Client::connect_over(node.path(), Protection::default(), transport).await.unwrap();
            let space = client.join(b"test").await.unwrap();
            let mine = space.lock(b"file", Mode::Nl, &Wishes::default()).await.unwrap();
            assert!(!mine.try_lock_range(Read, 9..20, 1).await.unwrap());
            mine.lock_range(Write, 10..20, &of(1)).await.unwrap();
            assert_eq!(mine.range_conflict(RangeMode::Write, .., 1).await.unwrap().map(|holder| holder.end), Some(9));
            assert!(matches!(mine.lock_range(Read, .., &within(20)).await, Err(ClientError::NotGranted(LockStatus::TimedOut))));
            mine.unlock_range(15.., 1).await.unwrap();
            let wishes = of(1);
            let dropped = tokio::time::timeout(Duration::from_millis(20), mine.lock_range(Write, .., &wishes)).await;
            assert!(dropped.is_err(), "the other has the first bytes");
            // A wait that was dropped holds nobody up, the guard neither.
            file.lock_range(Write, 15..20, &Wishes { owner: 9, ..within(5000) }).unwrap();
            file.unlock_range(.., 9).unwrap();
            let wishes = of(2);
            drop(tokio::time::timeout(Duration::from_millis(5), mine.lock_range(Write, .., &wishes)).await);
            drop(mine);
            file.lock_range(Write, .., &within(5000)).unwrap();
            file.unlock_range(10.., 0).unwrap();
        }
    });
}
