//! What: clients with rings that scribble, die, fork, idle and flood, beside honest ones.
//! Owns: the processes it starts.
//! Invariants: bounded in time; nothing is left behind.
//! Does not: use a cluster.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{
    Node, anybody,
    raw::{REQUEST_TAIL, REQUEST_WORDS, Raw},
};
use deadbolt_dlm::{
    Flags, Mode, ResultFlags, Transport,
    blocking::{Client, ClientError, Lockspace, Protection, Wishes},
    client,
};
use deadbolt_dlm_core::client::{ClientRequest, frame};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::{
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

fn join(client: &Client) -> Lockspace {
    client.join(b"test").unwrap()
}

fn in_time() -> Wishes {
    Wishes { timeout: Some(Duration::from_secs(10)), ..Wishes::default() }
}

#[test]
fn clients_by_ring_and_by_socket_exclude_each_other() {
    let node = Node::start(anybody());
    let counter = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (node, counter) = (&node, &counter);
            scope.spawn(move || {
                let client = if number % 2 == 0 { node.connect() } else { node.connect_by_socket() };
                assert_eq!(client.has_ring(), number % 2 == 0);
                let space = join(&client);
                for _ in 0..100 {
                    let _guard = space.lock(b"counter", Mode::Ex, &Wishes::default()).unwrap();
                    let read = counter.load(Ordering::SeqCst);
                    std::thread::yield_now();
                    counter.store(read + 1, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(counter.load(Ordering::SeqCst), 800);
}

#[test]
fn threads_of_one_session_take_their_own_answers() {
    let node = Node::start(anybody());
    let space = join(&node.connect());
    std::thread::scope(|scope| {
        for thread in 0..8_u32 {
            let space = &space;
            scope.spawn(move || {
                for turn in 0..300 {
                    let own = space.lock(&thread.to_le_bytes(), Mode::Ex, &Wishes::default()).unwrap();
                    if turn % 10 == 0 {
                        drop(space.lock(b"all", Mode::Ex, &Wishes::default()).unwrap());
                    }
                    drop(own);
                }
            });
        }
    });
}

/// More requests and replies than rings and sockets hold, with nobody waiting for any of them.
#[test]
fn a_flood_of_requests_fills_every_ring_and_loses_nothing() {
    const MANY: u32 = 20_000;
    let node = Node::start(anybody());
    for client in [node.connect(), node.connect_by_socket()] {
        let space = join(&client);
        let pending: Vec<_> = (0..MANY).map(|name| space.begin(&name.to_le_bytes(), Mode::Ex, &Wishes::default()).unwrap()).collect();
        let guards: Vec<_> = pending.into_iter().map(|pending| pending.wait().unwrap()).collect();
        assert_eq!(guards.len(), 20_000);
    }
}

#[test]
fn what_was_posted_before_the_end_is_done() {
    let node = Node::start(anybody());
    let space = join(&node.connect());
    let _kept = space.lock(b"r", Mode::Nl, &Wishes::default()).unwrap();
    for turn in 0..200_u8 {
        // The reader waits at once: the node tells the writer so, who may be gone.
        let client = if turn % 2 == 0 { node.connect() } else { node.connect_by_socket() };
        let guard = join(&client).lock(b"r", Mode::Ex, &Wishes::with_value()).unwrap();
        // Were the session closed first, the value would be old and in doubt.
        guard.post_unlock(Flags::VALBLK, Some([turn; 32])).unwrap();
        drop(client);
        let read = space.lock(b"r", Mode::Pr, &Wishes::with_value()).unwrap();
        assert_eq!(read.completion().lvb, Some([turn; 32]));
        assert!(!read.completion().flags.has(ResultFlags::VALNOTVALID));
    }
}

#[test]
fn a_client_that_scribbles_over_its_ring_loses_its_session_and_nobody_else() {
    let node = Node::start(anybody());
    let space = join(&node.connect());
    let _held = space.lock(b"held", Mode::Ex, &Wishes::default()).unwrap();
    let cases: [(&str, &[(u64, u64)]); 5] = [
        ("words between its ends", &[(REQUEST_TAIL, 5000)]),
        ("words between its ends", &[(REQUEST_TAIL, u64::MAX)]),
        ("a frame of", &[(REQUEST_TAIL, 2), (REQUEST_WORDS, 5000)]),
        ("a frame of", &[(REQUEST_TAIL, 2), (REQUEST_WORDS, 100)]),
        ("unknown message kind", &[(REQUEST_WORDS, 1), (REQUEST_WORDS + 8, 77), (REQUEST_TAIL, 2)]),
    ];
    for (expected, words) in cases {
        let mut raw = Raw::new(&node.path());
        words.iter().for_each(|(at, value)| raw.word(*at, *value));
        raw.ring();
        let reason = raw.reason();
        assert!(reason.contains(expected), "{reason}");
        drop(space.lock(b"other", Mode::Ex, &Wishes::default()).unwrap());
    }
    // Garbage in the daemon's own words does nothing but keep this client waiting.
    let mut raw = Raw::new(&node.path());
    for at in (128..320).step_by(8) {
        raw.word(at, 0xdead_beef_dead_beef);
    }
    raw.ring();
    drop(space.lock(b"other", Mode::Ex, &Wishes::default()).unwrap());
    // A second ring, and a request beside the ring.
    for body in [vec![64], ClientRequest::JoinLockspace { serial: 1, name: b"test".to_vec() }.encode()] {
        let mut raw = Raw::new(&node.path());
        raw.socket.write_all(&frame(&body)).unwrap();
        assert!(raw.reason().contains("ring"));
    }
    drop(space.lock(b"other", Mode::Ex, &Wishes::default()).unwrap());
}

const PLACE: &str = "DEADBOLT_TEST_NODE";

/// Not a test of its own: what the killed processes do.
#[test]
fn child_locks_until_it_is_killed() {
    let Some(path) = std::env::var_os(PLACE) else { return };
    let space = Client::connect(path, Protection::default()).unwrap().join(b"test").unwrap();
    loop {
        drop(space.lock(b"shared", Mode::Ex, &Wishes::default()).unwrap());
    }
}

#[test]
fn a_client_killed_at_any_moment_leaves_nothing_locked() {
    let node = Node::start(anybody());
    let space = join(&node.connect());
    for round in 0..6_u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_locks_until_it_is_killed"])
            .env(PLACE, node.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Its locks are seen before it is killed.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(10) && space.try_lock(b"shared", Mode::Ex).unwrap().is_some() {}
        std::thread::sleep(Duration::from_micros(317 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        drop(space.lock(b"shared", Mode::Ex, &in_time()).unwrap());
    }
}

#[test]
fn a_forked_child_gets_a_clear_error_and_its_parent_keeps_its_lock() {
    let node = Node::start(anybody());
    for client in [node.connect(), node.connect_by_socket()] {
        let space = join(&client);
        let guard = space.lock(b"r", Mode::Ex, &Wishes::default()).unwrap();
        // SAFETY: the child takes no lock and no memory before it ends.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let is_refused = matches!(space.lock(b"other", Mode::Ex, &Wishes::default()), Err(ClientError::Forked { .. }));
                drop(guard);
                // SAFETY: ends the child without running what belongs to the parent.
                unsafe { libc::_exit(if is_refused { 0 } else { 1 }) };
            }
            nix::unistd::ForkResult::Parent { child } => {
                let ended = nix::sys::wait::waitpid(child, None).unwrap();
                assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
        assert!(join(&node.connect()).try_lock(b"r", Mode::Ex).unwrap().is_none(), "the child's guard gave nothing back");
        drop(guard);
        drop(space.lock(b"r", Mode::Ex, &Wishes::default()).unwrap());
    }
}

fn status_kib(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Time of a pair of one client: the best of several measurements, for the others tell on which processors the threads ran.
fn pairs(node: &Node) -> Duration {
    let space = join(&node.connect_by_socket());
    let measure = |_| {
        let begin = Instant::now();
        (0..20).for_each(|_| space.lock(b"own", Mode::Ex, &Wishes::default()).unwrap().unlock(Flags::NONE, None).unwrap());
        begin.elapsed() / 20
    };
    (0..30).map(measure).min().unwrap()
}

#[test]
fn two_thousand_idle_clients_cost_memory_only_and_little_of_it() {
    const CLIENTS: usize = 2000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < 16_000 || setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
        println!("skipped: needs 16,000 descriptors, {hard} are allowed");
        return;
    }
    let node = Node::start(anybody());
    let alone = pairs(&node);
    let before = status_kib("VmRSS");
    let clients: Vec<Client> = (0..CLIENTS).map(|_| node.connect()).collect();
    let rings = clients.iter().filter(|client| client.has_ring()).count();
    assert_eq!(rings, deadbolt_dlm::server::RINGS_MAX);
    // One lock each, so that every ring has been used.
    let spaces: Vec<Lockspace> = clients.iter().map(join).collect();
    let guards: Vec<_> = spaces.iter().map(|space| space.lock(b"shared", Mode::Pr, &Wishes::default()).unwrap()).collect();
    let each = (status_kib("VmRSS") - before) / u64::try_from(CLIENTS).unwrap();
    println!("{each} KiB each, both sides together, {rings} of {CLIENTS} with a ring");
    assert!(each < 100, "{each} KiB each");
    let among = pairs(&node);
    println!("a pair takes {among:?} among them, {alone:?} alone");
    assert!(among < alone * 5 + Duration::from_micros(100), "{among:?} instead of {alone:?}");
    drop(guards);
    drop((spaces, clients));
    let space = join(&node.connect());
    drop(space.lock(b"shared", Mode::Ex, &in_time()).unwrap());
    assert!(node.connect().has_ring(), "rings came back with their sessions");
}

#[test]
fn a_caller_that_sleeps_learns_of_the_end_of_the_node() {
    for is_ring in [true, false] {
        let mut node = Node::start(anybody());
        let holder = join(&node.connect());
        let _held = holder.lock(b"r", Mode::Ex, &Wishes::default()).unwrap();
        let client = if is_ring { node.connect() } else { node.connect_by_socket() };
        let space = join(&client);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| space.lock(b"r", Mode::Ex, &Wishes::default()).map(drop));
            let following = scope.spawn(|| space.lock(b"r", Mode::Pr, &Wishes::default()).map(drop));
            std::thread::sleep(Duration::from_millis(30));
            node.end();
            assert!(matches!(waiting.join().unwrap(), Err(ClientError::Lost { .. })));
            assert!(matches!(following.join().unwrap(), Err(ClientError::Lost { .. })));
        });
        assert!(client.lost().is_some());
    }
}

/// The session of a request that is dropped may never be used again, and nobody else has its lock.
#[test]
fn a_dropped_request_gives_its_lock_back_though_nobody_calls_again() {
    let node = Node::start(anybody());
    for transport in [Transport::Ring, Transport::Socket] {
        let other = join(&node.connect());
        for turn in 0..50_u64 {
            let client = Client::connect_over(node.path(), Protection::default(), transport).unwrap();
            let space = join(&client);
            let pending = space.begin(b"r", Mode::Ex, &Wishes::default()).unwrap();
            // Dropped before the grant came, or behind it.
            std::thread::sleep(Duration::from_micros(turn % 10 * 100));
            drop(pending);
            drop(other.lock(b"r", Mode::Ex, &in_time()).unwrap());
            assert!(client.lost().is_none());
        }
    }
}

/// A thread that waits takes the grants of the requests that others dropped, and may wait for one of these very locks.
#[test]
fn a_dropped_request_is_given_back_by_the_thread_that_waits_for_its_lock() {
    let node = Node::start(anybody());
    for transport in [Transport::Ring, Transport::Socket] {
        let client = Client::connect_over(node.path(), Protection::default(), transport).unwrap();
        let space = join(&client);
        for _ in 0..200 {
            let pending = space.begin(b"r", Mode::Ex, &Wishes::default()).unwrap();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| drop(space.lock(b"r", Mode::Ex, &in_time()).unwrap()));
                drop(pending);
                waiting.join().unwrap();
            });
        }
    }
}

/// Futures are dropped at every moment of their life while another client takes and gives the lock: nothing stays locked.
#[test]
fn dropped_futures_leave_nothing_locked() {
    let node = Node::start(anybody());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let space = join(&node.connect());
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                drop(space.lock(b"r", Mode::Ex, &Wishes::default()).unwrap());
            }
        });
        runtime.block_on(async {
            for transport in [Transport::Ring, Transport::Socket] {
                let client = client::Client::connect_over(node.path(), Protection::default(), transport).await.unwrap();
                let space = client.join(b"test").await.unwrap();
                let mut granted = 0_u32;
                for turn in 0..400_u64 {
                    let wishes = Wishes::default();
                    let patience = Duration::from_micros(turn % 40 * 20);
                    let got = tokio::time::timeout(patience, space.lock(b"r", Mode::Ex, &wishes)).await;
                    if let Ok(guard) = got {
                        granted += 1;
                        let mut guard = guard.unwrap();
                        let _ = tokio::time::timeout(patience, guard.convert(Mode::Pr, Flags::NONE, None)).await;
                        let _ = tokio::time::timeout(patience, guard.convert(Mode::Ex, Flags::NONE, None)).await;
                    }
                }
                println!("{granted} of 400 were granted before they were dropped");
                // The session stands, and its end frees nothing: it must have given everything back by itself.
                let other = join(&node.connect());
                let free = tokio::task::spawn_blocking(move || other.lock(b"r", Mode::Ex, &in_time()).map(drop)).await.unwrap();
                is_over.store(free.is_err(), Ordering::Relaxed);
                free.unwrap();
                assert!(client.lost().is_none());
            }
        });
        is_over.store(true, Ordering::Relaxed);
    });
    drop(space.lock(b"r", Mode::Ex, &in_time()).unwrap());
}
