//! What: what a lock and its posted unlock cost a local client, beside a futex round trip between the same two processors.
//! Owns: the processes it starts.
//! Invariants: every row is measured in the same rounds as its floor.
//! Does not: use a cluster: one lock service on one node.
//! Called by: people: `cargo run --release -p deadbolt-dlm --example pairs`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "an example that measures")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Node, anybody};
use deadbolt_dlm::{
    Mode,
    blocking::{Client, Lockspace, Wishes},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use std::{
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

fn ns_each(count: u32, work: impl FnOnce()) -> Cost {
    let (began, was_busy) = (Instant::now(), busy());
    work();
    let each = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(count);
    Cost { wall: each(began.elapsed()), busy: each(busy() - was_busy) }
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
    let each = ns_each(TURNS, || (0..TURNS).for_each(|_| pass(&word, 0)));
    thread.join().unwrap();
    each
}

fn futex(word: &AtomicU32, operation: i32, value: u32) {
    // SAFETY: the word outlives the call; there is no time limit.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, std::ptr::null::<libc::timespec>()) };
}

fn pairs(space: &Lockspace) -> Cost {
    ns_each(TURNS, || {
        for _ in 0..TURNS {
            drop(space.lock(b"a-name-of-24-bytes-here.", Mode::Ex, &Wishes::default()).unwrap());
        }
    })
}

/// Sixteen requests are on their way at any time.
fn pipelined(space: &Lockspace) -> Cost {
    let mut pending = std::collections::VecDeque::new();
    ns_each(10 * TURNS, || {
        for turn in 0..10 * TURNS {
            pending.push_back(space.begin(&turn.to_le_bytes(), Mode::Ex, &Wishes::default()).unwrap());
            if pending.len() == 64 {
                pending.drain(..32).for_each(|pending| drop(pending.wait().unwrap()));
            }
        }
        pending.drain(..).for_each(|pending| drop(pending.wait().unwrap()));
    })
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

fn main() {
    let processors = std::thread::available_parallelism().unwrap().get();
    for node_processor in 0..processors.min(2) {
        // The node's thread inherits where it runs.
        pin(node_processor);
        let node = Node::start(anybody());
        pin(0);
        let is_same = node_processor == 0;
        let (ring, socket) = (joined(&node.connect()), joined(&node.connect_by_socket()));
        let mut rows = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (row, value) in rows.iter_mut().zip([ping_pong(node_processor, is_same), pairs(&ring), pairs(&socket), pipelined(&ring)]) {
                row.push(value);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("{}", if is_same { "one processor, sleeping" } else { "two processors, watching" });
        for (name, row) in
            ["floor: one word to and fro", "pair by ring", "pair by socket", "pair by ring, 32 to 64 on way"].iter().zip(&rows)
        {
            say(name, row, &rows[0]);
        }
    }
}
