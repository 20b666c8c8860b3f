//! What: what the victim of a deadlock is told, by both client libraries.
//! Owns: nothing.
//! Invariants: bounded in time.
//! Does not: use a cluster.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Node, anybody};
use deadbolt_dlm::{
    Claim, Cycle, CycleParty, Flags, Mode, RangeMode,
    blocking::{ClientError, Protection, Wishes},
    client,
};
use std::time::Duration;

fn of(owner: u64) -> Wishes {
    Wishes { owner, ..Wishes::default() }
}

/// For the one who is not to fail, and must not hang where the other is not told to.
fn patient(owner: u64) -> Wishes {
    Wishes { timeout: Some(Duration::from_secs(10)), ..of(owner) }
}

fn cycle<T>(result: Result<T, ClientError>) -> Cycle {
    match result {
        Err(ClientError::Deadlock { cycle: Some(cycle) }) => cycle,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("granted"),
    }
}

/// One has "a" and waits for "b", whose holder is the caller and asks for "a" by `ask`, a moment later.
fn against_one_who_waits<T: Send>(node: &Node, ask: impl FnOnce() -> Result<T, ClientError> + Send) -> Cycle {
    let space = node.connect().join(b"test").unwrap();
    let _first = space.lock(b"a", Mode::Ex, &of(5)).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| space.lock(b"b", Mode::Pr, &patient(5)).map(drop));
        while space.query(b"b").unwrap().locks.len() < 2 {}
        std::thread::sleep(Duration::from_millis(5));
        let found = cycle(ask());
        waiter.join().unwrap().unwrap();
        found
    })
}

#[test]
fn the_victim_learns_who_waits_for_whom() {
    let node = Node::start(anybody());
    let space = node.connect().join(b"test").unwrap();
    let held = space.lock(b"b", Mode::Ex, &of(6)).unwrap();
    let found = against_one_who_waits(&node, || {
        let failed = space.lock(b"a", Mode::Cw, &of(6)).map(drop);
        drop(held);
        failed
    });
    let pid = std::process::id();
    let party = |owner| CycleParty { slot: 0, pid, owner };
    let told: Vec<_> =
        found.steps.iter().map(|step| (step.waiter, step.wanted, step.resource.as_bytes(), step.blocker, step.claim)).collect();
    let expected = [
        (party(6), Claim::Mode(Mode::Cw), &b"a"[..], party(5), Claim::Mode(Mode::Ex)),
        (party(5), Claim::Mode(Mode::Pr), b"b", party(6), Claim::Mode(Mode::Ex)),
    ];
    assert_eq!(told, expected);
    assert!(found.left_out == 0 && found.steps.iter().all(|step| step.is_held && step.lockspace == b"test"));
    let words = ClientError::Deadlock { cycle: Some(found) }.to_string();
    let begin = format!("not granted: it would wait for ever: process {pid} of slot 0 (owner 6) waits for CW on test/a, on which process ");
    assert!(words.starts_with(&begin), "{words}");
}

#[test]
fn so_does_who_asks_for_many() {
    let node = Node::start(anybody());
    let space = node.connect().join(b"test").unwrap();
    let held = space.lock(b"b", Mode::Ex, &Wishes::default()).unwrap();
    let items: [(&[u8], Mode); 2] = [(b"0", Mode::Ex), (b"a", Mode::Ex)];
    let found = against_one_who_waits(&node, || {
        let failed = space.lock_many(&items, &Wishes::default()).map(drop);
        drop(held);
        failed
    });
    assert_eq!(found.steps[0].resource.as_bytes(), b"a");
    drop(space.lock(b"0", Mode::Ex, &Wishes::at_once()).unwrap());
}

#[test]
fn so_does_an_async_task() {
    let node = Node::start(anybody());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = node.path();
    let (held, space) = runtime.block_on(async {
        let client = client::Client::connect(path, Protection::default()).await.unwrap();
        let space = client.join(b"test").await.unwrap();
        (space.lock(b"b", Mode::Ex, &Wishes::default()).await.unwrap(), space)
    });
    let found = against_one_who_waits(&node, || {
        runtime.block_on(async {
            let failed = space.lock(b"a", Mode::Ex, &Wishes::default()).await.map(drop);
            held.unlock(Flags::NONE, None).await.unwrap();
            failed
        })
    });
    assert_eq!(found.steps.len(), 2);
}

#[test]
fn ranges_and_conversions_say_it_too() {
    let node = Node::start(anybody());
    let (one, other) = (node.connect().join(b"test").unwrap(), node.connect_by_socket().join(b"test").unwrap());
    let (mine, theirs) =
        (one.lock(b"file", Mode::Nl, &Wishes::default()).unwrap(), other.lock(b"file", Mode::Nl, &Wishes::default()).unwrap());
    mine.lock_range(RangeMode::Write, 0..10, &of(1)).unwrap();
    theirs.lock_range(RangeMode::Write, 10..20, &of(2)).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| theirs.lock_range(RangeMode::Write, 0..1, &patient(2)));
        std::thread::sleep(Duration::from_millis(30));
        let found = cycle(mine.lock_range(RangeMode::Read, 19.., &of(1)));
        assert_eq!(found.steps[0].wanted.to_string(), "bytes 19.. for read");
        assert_eq!(found.steps[0].blocker.owner, 2);
        mine.unlock_range(.., 1).unwrap();
        waiter.join().unwrap().unwrap();
    });
    // Two conversions of one resource: known at once, and no search is needed.
    let (mut first, mut second) = (one.lock(b"r", Mode::Pr, &of(0)).unwrap(), other.lock(b"r", Mode::Pr, &of(0)).unwrap());
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || first.convert_within(Mode::Ex, &patient(0)).copied());
        while one.query(b"r").unwrap().locks.iter().all(|lock| lock.wanted.is_none()) {}
        let error = second.convert(Mode::Ex, Flags::NONE, None).unwrap_err();
        assert!(matches!(error, ClientError::Deadlock { cycle: None }));
        assert!(error.to_string().contains("another conversion of this resource"), "{error}");
        drop(second);
        waiter.join().unwrap().unwrap();
    });
}
