//! The server half and both client libraries around one real lock service on one node.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Node, anybody};
use deadbolt_dlm::{
    Flags, LockStatus, Mode,
    blocking::{Client, ClientError, Protection, Wishes},
    client,
};
use deadbolt_dlm_core::client::{CLIENT_VERSION, ClientReply, ClientRequest, ResourceName, frame, split_frame};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    sync::mpsc,
    time::Duration,
};

#[test]
fn sixteen_clients_lose_no_update_under_an_exclusive_lock() {
    let node = Node::start(anybody());
    // Two halves that only agree if nobody interleaves: a read and a later write, not an atomic addition.
    let counter = AtomicU64::new(0);
    let last_token = std::sync::Mutex::new(deadbolt_dlm::Token::default());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let space = node.connect().join(b"test").unwrap();
                for _ in 0..50 {
                    let guard = space.lock(b"counter", Mode::Ex, &Wishes::default()).unwrap();
                    let read = counter.load(Ordering::SeqCst);
                    std::thread::yield_now();
                    counter.store(read + 1, Ordering::SeqCst);
                    let mut last = last_token.lock().unwrap();
                    assert!(guard.token() > *last, "tokens only grow");
                    *last = guard.token();
                }
            });
        }
    });
    assert_eq!(counter.load(Ordering::SeqCst), 800);
}

#[test]
fn a_wait_ends_in_time_and_a_try_at_once() {
    let node = Node::start(anybody());
    let holder = node.connect().join(b"test").unwrap();
    let held = holder.lock(b"r", Mode::Ex, &Wishes::default()).unwrap();
    let other = node.connect().join(b"test").unwrap();
    let in_time = Wishes { timeout: Some(Duration::from_millis(50)), ..Wishes::default() };
    assert!(matches!(other.lock(b"r", Mode::Pr, &in_time), Err(ClientError::NotGranted(LockStatus::TimedOut))));
    let at_once = Wishes { flags: Flags::NOQUEUE, ..Wishes::default() };
    assert!(matches!(other.lock(b"r", Mode::Pr, &at_once), Err(ClientError::NotGranted(LockStatus::Again))));
    held.unlock(Flags::NONE, None).unwrap();
    other.lock(b"r", Mode::Pr, &at_once).unwrap();
}

#[test]
fn a_holder_is_told_who_is_blocked_and_may_convert() {
    let node = Node::start(anybody());
    let holder = node.connect().join(b"test").unwrap();
    let mut held = holder.lock(b"r", Mode::Ex, &Wishes::default()).unwrap();
    let blocked = held.take_blocked();
    std::thread::scope(|scope| {
        let waiter =
            scope.spawn(|| node.connect().join(b"test").unwrap().lock(b"r", Mode::Pr, &Wishes::default()).map(|guard| guard.token()));
        assert_eq!(blocked.recv().unwrap(), Mode::Pr);
        held.convert(Mode::Pr, Flags::NONE, None).unwrap();
        waiter.join().unwrap().unwrap();
    });
}

#[test]
fn a_value_block_travels_with_the_lock() {
    let node = Node::start(anybody());
    let space = node.connect().join(b"test").unwrap();
    let mut writer = space.lock(b"r", Mode::Ex, &Wishes::with_value()).unwrap();
    writer.convert(Mode::Nl, Flags::VALBLK, Some([7; 32])).unwrap();
    let reader = space.lock(b"r", Mode::Pr, &Wishes::with_value()).unwrap();
    assert_eq!(reader.completion().lvb, Some([7; 32]));
}

/// A client without our library: sends these requests and reads until one reply satisfies `is_last`.
fn raw_client(path: &Path, requests: &[ClientRequest], is_last: impl Fn(&ClientReply) -> bool) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    for request in requests {
        stream.write_all(&frame(&request.encode())).unwrap();
    }
    let mut buffer = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk).unwrap();
        assert!(length > 0, "the node closed the connection");
        buffer.extend_from_slice(&chunk[..length]);
        while let Some((bytes, used)) = split_frame(&buffer).unwrap() {
            let reply = ClientReply::decode(bytes).unwrap();
            buffer.drain(..used);
            if is_last(&reply) {
                return stream;
            }
        }
    }
}

#[test]
fn a_lock_ends_with_its_client() {
    let node = Node::start(anybody());
    let space = node.connect().join(b"test").unwrap();
    let hello = ClientRequest::Hello { version: CLIENT_VERSION, is_unprotected: false };
    let join = ClientRequest::JoinLockspace { serial: 1, name: b"test".to_vec() };
    let joined = std::cell::Cell::new(0);
    drop(raw_client(&node.path(), &[hello.clone(), join.clone()], |reply| {
        if let ClientReply::Joined { lockspace, .. } = reply {
            joined.set(*lockspace);
        }
        joined.get() != 0
    }));
    let number = joined.get();
    let lock = ClientRequest::Lock {
        serial: 2,
        lockspace: number,
        resource: ResourceName::new(b"r").unwrap(),
        mode: Mode::Ex,
        flags: Flags::NONE,
        owner: 0,
        timeout_ms: 0,
        lvb: None,
    };
    let holder =
        raw_client(&node.path(), &[hello, join, lock], |reply| matches!(reply, ClientReply::Completed { mode: Some(Mode::Ex), .. }));
    let at_once = Wishes { flags: Flags::NOQUEUE, ..Wishes::default() };
    assert!(matches!(space.lock(b"r", Mode::Ex, &at_once), Err(ClientError::NotGranted(LockStatus::Again))));
    // As a death does: the connection goes, nothing is unlocked.
    drop(holder);
    space.lock(b"r", Mode::Ex, &Wishes::default()).unwrap();
}

#[test]
fn the_end_of_the_node_is_the_end_of_every_lock() {
    let mut node = Node::start(anybody());
    let space = node.connect().join(b"test").unwrap();
    let mut guard = space.lock(b"r", Mode::Ex, &Wishes::default()).unwrap();
    let blocked = guard.take_blocked();
    node.end();
    assert!(blocked.recv().is_err(), "the stream of hints ends with the session");
    assert!(matches!(guard.convert(Mode::Nl, Flags::NONE, None), Err(ClientError::Lost { .. })));
}

#[test]
fn garbage_closes_its_own_connection_only() {
    let node = Node::start(anybody());
    let space = node.connect().join(b"test").unwrap();
    let _held = space.lock(b"r", Mode::Ex, &Wishes::default()).unwrap();
    for garbage in [vec![0xff; 5000], vec![0; 5000], b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![4, 0, 0, 0, 9, 9, 9, 9]] {
        let mut stream = UnixStream::connect(node.path()).unwrap();
        let _ = stream.write_all(&garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    space.lock(b"other", Mode::Ex, &Wishes::default()).unwrap();
}

#[test]
fn the_hook_decides_who_comes_in() {
    let node = Node::start(Box::new(|peer, is_unprotected| {
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        if is_unprotected { Ok(()) } else { Err("not part of the tree".into()) }
    }));
    let refused = Client::connect(node.path(), Protection::default()).unwrap_err();
    assert_eq!(refused.to_string(), "not part of the tree");
    Client::connect(node.path(), Protection { is_unprotected: true }).unwrap();
}

#[test]
fn the_async_client_does_the_same_and_a_dropped_future_gives_its_lock_back() {
    let node = Node::start(anybody());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let space = client::Client::connect(node.path(), Protection::default()).await.unwrap().join(b"test").await.unwrap();
        let other = client::Client::connect(node.path(), Protection::default()).await.unwrap().join(b"test").await.unwrap();
        let mut held = space.lock(b"r", Mode::Ex, &Wishes::default()).await.unwrap();
        {
            let wishes = Wishes::default();
            let waiting = other.lock(b"r", Mode::Ex, &wishes);
            tokio::pin!(waiting);
            tokio::select! {
                _ = &mut waiting => panic!("granted twice"),
                mode = held.blocked() => assert_eq!(mode, Some(Mode::Ex)),
            }
        }
        held.unlock(Flags::NONE, None).await.unwrap();
        let again = space.lock(b"r", Mode::Ex, &Wishes::default()).await.unwrap();
        assert_eq!(again.completion().status, LockStatus::Success);
    });
}

#[test]
fn strangers_that_never_say_hello_are_counted_and_keep_no_client_out_for_long() {
    let node = Node::start(anybody());
    let mut strangers: Vec<UnixStream> = (0..256).map(|_| UnixStream::connect(node.path()).unwrap()).collect();
    let (sender, is_in) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| sender.send(node.connect().join(b"test").is_ok()).unwrap());
        assert!(is_in.recv_timeout(Duration::from_millis(300)).is_err(), "no connection beyond the limit is served");
        strangers.pop();
        assert_eq!(is_in.recv_timeout(Duration::from_secs(5)), Ok(true));
    });
}

#[test]
fn several_locks_come_together_or_not_at_all() {
    let node = Node::start(anybody());
    let (space, other) = (node.connect().join(b"test").unwrap(), node.connect().join(b"test").unwrap());
    let items: [(&[u8], Mode); 3] = [(b"c", Mode::Ex), (b"a", Mode::Pr), (b"b", Mode::Ex)];
    let guards = space.lock_many(&items, &Wishes::default()).unwrap();
    assert_eq!(guards.iter().map(|guard| guard.completion().mode).collect::<Vec<_>>(), [Some(Mode::Ex), Some(Mode::Pr), Some(Mode::Ex)]);
    let refused = other.lock_many(&items, &Wishes::at_once()).unwrap_err();
    assert!(matches!(refused, ClientError::NoneGranted { status: LockStatus::Again, .. }), "{refused}");
    let in_time = Wishes { timeout: Some(Duration::from_millis(20)), ..Wishes::default() };
    assert!(matches!(other.lock_many(&items, &in_time), Err(ClientError::NoneGranted { status: LockStatus::TimedOut, .. })));
    drop(guards);
    assert_eq!(other.lock_many(&items, &Wishes::default()).unwrap().len(), 3);
    drop(space.lock(b"a", Mode::Ex, &Wishes::default()).unwrap());
    assert!(space.lock_many(&[], &Wishes::default()).is_err());
    assert!(space.lock_many(&[(&[7; 65], Mode::Ex)], &Wishes::default()).is_err());
}

#[test]
fn holders_and_orphans_are_listed_and_purged() {
    let node = Node::start(anybody());
    let space = node.connect().join(b"test").unwrap();
    let guard = space.lock(b"r", Mode::Pr, &Wishes::default()).unwrap();
    let listed = guard.query().unwrap();
    assert_eq!(listed.locks.iter().map(|lock| (lock.lock, lock.granted)).collect::<Vec<_>>(), [(guard.completion().lock, Some(Mode::Pr))]);
    let persistent = Wishes { flags: Flags::PERSISTENT, ..Wishes::default() };
    node.connect().join(b"test").unwrap().lock(b"r", Mode::Pr, &persistent).unwrap().leave();
    let adopting = Wishes { flags: Flags::ORPHAN, ..Wishes::default() };
    // The end of a session is seen a moment later.
    let adopted = loop {
        match space.lock(b"r", Mode::Pr, &adopting) {
            Err(ClientError::NotGranted(LockStatus::NotFound | LockStatus::Busy)) => {}
            adopted => break adopted.unwrap(),
        }
    };
    assert_eq!(space.query(b"r").unwrap().locks.len(), 2);
    drop(adopted);
    space.purge(deadbolt_dlm::ALL_SLOTS, 0).unwrap();
    assert_eq!(space.query(b"r").unwrap().locks.len(), 1);
}

#[test]
fn the_async_client_posts_asks_leaves_and_purges_as_the_blocking_one() {
    let node = Node::start(anybody());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connect = || client::Client::connect(node.path(), Protection::default());
        let space = connect().await.unwrap().join(b"test").await.unwrap();
        let kept = space.lock(b"r", Mode::Nl, &Wishes::default()).await.unwrap();
        let writer = space.lock(b"r", Mode::Ex, &Wishes::with_value()).await.unwrap();
        writer.post_unlock(Flags::VALBLK, Some([7; 32])).unwrap();
        let reader = space.lock(b"r", Mode::Pr, &Wishes::with_value()).await.unwrap();
        assert_eq!(reader.completion().lvb, Some([7; 32]));
        assert_eq!(kept.query().await.unwrap().locks.len(), 2);
        drop(reader);
        let persistent = Wishes { flags: Flags::PERSISTENT, ..Wishes::default() };
        connect().await.unwrap().join(b"test").await.unwrap().lock(b"r", Mode::Pr, &persistent).await.unwrap().leave();
        // The orphan stays until it is purged; its session's end is seen a moment later.
        assert!(space.try_lock(b"r", Mode::Ex).await.unwrap().is_none());
        while space.query(b"r").await.unwrap().locks.len() > 1 {
            space.purge(deadbolt_dlm::ALL_SLOTS, 0).await.unwrap();
        }
        space.try_lock(b"r", Mode::Ex).await.unwrap().unwrap().unlock_writing([8; 32]).await.unwrap();
        let reader = space.lock(b"r", Mode::Pr, &Wishes::with_value()).await.unwrap();
        assert_eq!(reader.completion().lvb, Some([8; 32]));
    });
}
