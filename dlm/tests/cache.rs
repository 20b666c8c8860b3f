//! What: the cache of locks: what it keeps, what it gives up, and that it excludes as plain locks do.
//! Owns: nothing.
//! Invariants: bounded in time.
//! Does not: use a cluster.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Node, anybody};
use deadbolt_dlm::{
    Mode,
    blocking::{ClientError, Lockspace, Wishes},
    cache::CachedLockspace,
};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

fn space(node: &Node) -> Lockspace {
    node.connect().join(b"test").unwrap()
}

fn cache(node: &Node, capacity: usize) -> CachedLockspace {
    CachedLockspace::new(space(node), capacity).unwrap()
}

fn in_time() -> Wishes {
    Wishes { timeout: Some(Duration::from_secs(5)), ..Wishes::default() }
}

#[test]
fn a_lock_stays_until_another_wants_it() {
    let node = Node::start(anybody());
    let (cache, other) = (cache(&node, 10), space(&node));
    let file = cache.resource(b"file").unwrap();
    let first = file.exclusive().unwrap().token();
    assert_eq!(file.exclusive().unwrap().token(), first);
    assert_eq!(file.shared().unwrap().token(), first, "EX serves readers as well");
    assert!(other.try_lock(b"file", Mode::Pr).unwrap().is_none(), "what is kept is held");
    let theirs = other.lock(b"file", Mode::Ex, &in_time()).unwrap();
    assert!(theirs.token() > first);
    assert_eq!(cache.kept(), 0);
    drop(theirs);
    assert!(file.shared().unwrap().token() > first);
    drop(other.lock(b"file", Mode::Pr, &in_time()).unwrap());
    assert_eq!(cache.kept(), 1, "readers do not disturb each other");
    cache.clear();
    assert_eq!(cache.kept(), 0);
    drop(other.lock(b"file", Mode::Ex, &in_time()).unwrap());
}

#[test]
fn what_is_in_use_is_given_up_when_it_is_free() {
    let node = Node::start(anybody());
    let (cache, other) = (cache(&node, 10), space(&node));
    let file = cache.resource(b"file").unwrap();
    let held = file.exclusive().unwrap();
    let is_free = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            drop(other.lock(b"file", Mode::Ex, &in_time()).unwrap());
            assert!(is_free.load(Ordering::SeqCst), "taken while it was in use");
        });
        std::thread::sleep(Duration::from_millis(60));
        is_free.store(true, Ordering::SeqCst);
        drop(held);
        waiting.join().unwrap();
    });
}

/// Several caches, each with several threads: writers add one in two halves, readers look at both.
#[test]
fn caches_and_threads_exclude_each_other_as_the_modes_say() {
    let node = Node::start(anybody());
    let (first, second) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let cache = cache(&node, 10);
            for thread in 0..3 {
                let (file, first, second) = (cache.resource(b"file").unwrap(), &first, &second);
                scope.spawn(move || {
                    for turn in 0..600 {
                        if (turn + thread) % 3 == 0 {
                            let _reading = file.shared().unwrap();
                            assert_eq!(first.load(Ordering::SeqCst), second.load(Ordering::SeqCst));
                        } else {
                            let _writing = file.exclusive().unwrap();
                            let read = first.load(Ordering::SeqCst);
                            first.store(read + 1, Ordering::SeqCst);
                            std::thread::yield_now();
                            second.store(read + 1, Ordering::SeqCst);
                        }
                    }
                });
            }
        }
    });
    assert_eq!(first.load(Ordering::SeqCst), 9 * 400);
}

#[test]
fn a_busy_cache_lets_others_in_and_a_waiting_writer_passes_readers() {
    let node = Node::start(anybody());
    let (cache, other) = (cache(&node, 10), space(&node));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let file = cache.resource(b"file").unwrap();
            scope.spawn(|| {
                let file = file;
                while !is_over.load(Ordering::Relaxed) {
                    drop(file.shared().unwrap());
                }
            });
        }
        let file = cache.resource(b"file").unwrap();
        for _ in 0..10 {
            let began = Instant::now();
            drop(other.lock(b"file", Mode::Ex, &in_time()).unwrap());
            drop(file.exclusive().unwrap());
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn no_more_are_kept_than_allowed() {
    let node = Node::start(anybody());
    let (cache, other) = (cache(&node, 10), space(&node));
    for name in 0..500_u32 {
        drop(cache.resource(&name.to_le_bytes()).unwrap().exclusive().unwrap());
        assert!(cache.kept() <= 10);
    }
    assert!(cache.kept() > 5);
    // What is in use stays, whatever it is.
    let resources: Vec<_> = (0..30_u32).map(|name| cache.resource(&name.to_le_bytes()).unwrap()).collect();
    let used: Vec<_> = resources.iter().map(|resource| resource.exclusive().unwrap()).collect();
    assert_eq!(cache.kept(), 30);
    drop(used);
    drop(cache.resource(b"one more").unwrap().exclusive().unwrap());
    assert!(cache.kept() <= 10);
    drop((resources, cache));
    for name in 0..500_u32 {
        drop(other.lock(&name.to_le_bytes(), Mode::Ex, &in_time()).unwrap());
    }
}

#[test]
fn a_cache_ends_with_its_session_and_a_forked_child_has_none() {
    let mut node = Node::start(anybody());
    let cache = cache(&node, 10);
    let file = cache.resource(b"file").unwrap();
    drop(file.exclusive().unwrap());
    assert!(matches!(cache.resource(&[7; 65]), Err(ClientError::Refused { .. })));
    // SAFETY: the child takes no lock and no memory before it ends.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let is_refused = matches!(file.exclusive(), Err(ClientError::Forked { .. }));
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(i32::from(!is_refused)) };
        }
        nix::unistd::ForkResult::Parent { child } => {
            let ended = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
        }
    }
    node.end();
    let began = Instant::now();
    while file.exclusive().is_ok() {
        assert!(began.elapsed() < Duration::from_secs(5), "the end of the node was not seen");
    }
    assert!(matches!(file.exclusive(), Err(ClientError::Lost { .. })));
    assert!(cache.lost().is_some());
}
