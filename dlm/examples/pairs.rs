//! What: what a lock and its posted unlock cost a local client, beside a futex round trip between the same two processors.
//! Owns: the processes it starts.
//! Invariants: every row is measured in the same rounds as its floor.
//! Does not: use a cluster: one lock service on one node.
//! Called by: people: `cargo run --release -p deadbolt-dlm --example pairs`; with the path of a node's `lock.sock` and the processor that its
//!   daemon is bound to (`taskset -apc`), that node is measured.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "an example that measures")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Node, anybody};
use deadbolt_dlm::{
    Mode, Transport,
    blocking::{Client, Lockspace, Protection, Wishes},
    cache::{CachedLock, CachedLockspace},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

const ROUNDS: usize = 5;
const TURNS: u32 = 20_000;

fn pin(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

/// Time of the clock on the wall and of this process on its processors, in ns.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    busy: f64,
}

fn busy() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}

/// The median turn, and the busy time of an average one: what else runs on the machine disturbs the first least.
fn ns_each(count: u32, mut turn: impl FnMut(u32)) -> Cost {
    let was_busy = busy();
    let mut turns = Vec::new();
    let mut began = Instant::now();
    for number in 0..count {
        turn(number);
        let ended = Instant::now();
        turns.push((ended - began).as_secs_f64() * 1e9);
        began = ended;
    }
    Cost { wall: median(turns), busy: (busy() - was_busy).as_secs_f64() * 1e9 / f64::from(count) }
}

/// One word goes to and fro between two threads: sleeping on it, or watching it.
fn ping_pong(other: usize, is_sleeping: bool) -> Cost {
    let word = Arc::new(AtomicU32::new(0));
    let pass = move |word: &AtomicU32, from: u32| {
        while word.load(Ordering::Acquire) != from {
            if is_sleeping {
                futex(word, libc::FUTEX_WAIT, 1 - from);
            } else {
                std::hint::spin_loop();
            }
        }
        word.store(1 - from, Ordering::Release);
        if is_sleeping {
            futex(word, libc::FUTEX_WAKE, 1);
        }
    };
    let answering = word.clone();
    let thread = std::thread::spawn(move || {
        pin(other);
        (0..TURNS).for_each(|_| pass(&answering, 1));
    });
    let each = ns_each(TURNS, |_| pass(&word, 0));
    thread.join().unwrap();
    each
}

fn futex(word: &AtomicU32, operation: i32, value: u32) {
    // SAFETY: the word outlives the call; there is no time limit.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, std::ptr::null::<libc::timespec>()) };
}

fn pairs(space: &Lockspace) -> Cost {
    ns_each(TURNS, |_| drop(space.lock(b"a-name-of-24-bytes-here.", Mode::Ex, &Wishes::default()).unwrap()))
}

/// Thirty-two to sixty-four requests are on their way at any time; a turn is thirty-two of them.
fn pipelined(space: &Lockspace) -> Cost {
    let mut pending = VecDeque::new();
    let cost = ns_each(TURNS / 10, |turn| {
        for number in 0..32 {
            pending.push_back(space.begin(&(32 * turn + number).to_le_bytes(), Mode::Ex, &Wishes::default()).unwrap());
        }
        pending.drain(..pending.len() - 32).for_each(|pending| drop(pending.wait().unwrap()));
    });
    Cost { wall: cost.wall / 32.0, busy: cost.busy / 32.0 }
}

fn kept(lock: &CachedLock) -> Cost {
    let cost = ns_each(TURNS / 10, |_| (0..100).for_each(|_| drop(lock.exclusive().unwrap())));
    Cost { wall: cost.wall / 100.0, busy: cost.busy / 100.0 }
}

fn joined(client: &Client) -> Lockspace {
    client.join(b"measured").unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn say(name: &str, costs: &[Cost], floor: &[Cost]) {
    let wall = |costs: &[Cost]| median(costs.iter().map(|cost| cost.wall).collect());
    let busy = |costs: &[Cost]| median(costs.iter().map(|cost| cost.busy).collect());
    println!(
        "  {name:28} {:8.0} ns = {:5.2} of the floor; on the processors {:8.0} ns = {:5.2}",
        wall(costs),
        wall(costs) / wall(floor),
        busy(costs),
        busy(costs) / busy(floor)
    );
}

/// Measures the node behind a socket; its loop runs on `processor` as far as that is known.
fn measure(path: &Path, processor: usize) {
    pin(0);
    let is_same = processor == 0;
    let connect = |transport| Client::connect_over(path, Protection { is_unprotected: true }, transport).unwrap();
    let (ring, socket) = (joined(&connect(Transport::Ring)), joined(&connect(Transport::Socket)));
    // One lock stays, so that the node need not say on its device with each pair that it holds something, and nothing again.
    let _held = ring.lock(b"held", Mode::Pr, &Wishes::default()).unwrap();
    let cached = CachedLockspace::new(ring.clone(), 10).unwrap().resource(b"a-name-kept-by-the-cache").unwrap();
    let mut rows: [Vec<Cost>; 5] = Default::default();
    for _ in 0..ROUNDS {
        let costs = [ping_pong(processor, is_same), pairs(&ring), pairs(&socket), pipelined(&ring), kept(&cached)];
        rows.iter_mut().zip(costs).for_each(|(row, cost)| row.push(cost));
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{}", if is_same { "one processor, sleeping" } else { "two processors, watching" });
    let names = ["floor: one word to and fro", "pair by ring", "pair by socket", "pair by ring, 32 to 64 on way", "pair kept by the cache"];
    names.iter().zip(&rows).for_each(|(name, row)| say(name, row, &rows[0]));
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    if let Some(path) = arguments.next() {
        let processor = arguments.next().map_or(0, |number| number.parse().unwrap());
        return measure(Path::new(&path), processor);
    }
    for processor in 0..std::thread::available_parallelism().unwrap().get().min(2) {
        // The node's thread inherits where it runs.
        pin(processor);
        let node = Node::start(anybody());
        measure(&node.path(), processor);
    }
}
