//! What: clients of a node, each a loop over the blocking library.
//! Owns: the loops.
//! Invariants: every lock asked for is granted; a client speaks through a ring.
//! Does not: start nodes, or judge figures.
//! Called by: the measurements of nodes, in their own process and in workers.

use super::{CLIENTS, NAMES};
use crate::{clock::time_each, names::name, pair::Pinned, worker::wait_for_begin};
use anyhow::{Context, Result, bail};
use deadbolt_dlm::{
    Mode,
    blocking::{Client, Guard, Lockspace, Pending, Protection, Wishes},
    cache::CachedLockspace,
};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    hint::black_box,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

/// Requests of a pipelined client that are in flight.
const WINDOW: usize = 64;
/// Locks taken to be kept between two looks at the clock.
const KEEP_BATCH: usize = 1000;
/// How long locks are taken to be kept.
const KEEP: Duration = Duration::from_secs(1);

/// Since the machine started: the same clock for every process.
fn now() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the clock")?))
}

/// When a worker works, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Shift {
    pub(super) socket: PathBuf,
    pub(super) core: usize,
    pub(super) time: Duration,
}

impl Shift {
    /// Waits for its begin; returns its end.
    fn begin(&self) -> Result<Duration> {
        wait_for_begin()?;
        Ok(now()? + self.time)
    }
}

/// Take this lock and give it back, again and again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Contend {
    pub(super) shift: Shift,
    pub(super) resource: String,
}

/// A grant: when, and its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Turn {
    pub(super) token: (u64, u64),
    pub(super) at: Duration,
}

/// Lock and unlock names from this one on, a share of those that are worked on locally.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pairs {
    pub(super) shift: Shift,
    pub(super) first: u64,
}

/// A session with a node of which this process is no part, and the lockspace of the benchmark.
pub(super) fn join(socket: &Path) -> Result<Lockspace> {
    let client = Client::connect(socket, Protection { is_unprotected: true })?;
    if !client.has_ring() {
        bail!("the node gave this client no ring");
    }
    Ok(client.join(b"bench")?)
}

/// One after the other.
pub(super) fn pairs(space: &Lockspace, numbers: Range<u64>) -> Result<()> {
    for number in numbers {
        drop(space.lock(&name(number), Mode::Ex, &Wishes::default())?);
    }
    Ok(())
}

/// Asks for many locks without waiting for each; hands every guard on.
fn pipeline(space: &Lockspace, numbers: Range<u64>, mode: Mode, mut take: impl FnMut(Guard)) -> Result<()> {
    let mut asked: VecDeque<Pending> = VecDeque::with_capacity(WINDOW);
    for number in numbers {
        if asked.len() == WINDOW {
            // Half of the window at once: waiting for each alone would be one wake-up each.
            for pending in asked.drain(..WINDOW / 2) {
                take(pending.wait()?);
            }
        }
        asked.push_back(space.begin(&name(number), mode, &Wishes::default())?);
    }
    for pending in asked {
        take(pending.wait()?);
    }
    Ok(())
}

/// Many in flight.
pub(super) fn pipelined_pairs(space: &Lockspace, numbers: Range<u64>) -> Result<()> {
    pipeline(space, numbers, Mode::Ex, drop)
}

/// Nanoseconds for each pair that the client's cache answers alone.
pub(super) fn cached_pairs(socket: &Path, count: u64) -> Result<f64> {
    let cache = CachedLockspace::new(join(socket)?, 1)?;
    let resource = cache.resource(&name(0))?;
    drop(resource.exclusive()?);
    time_each(count, || {
        for _ in 0..count {
            drop(black_box(&resource).exclusive()?);
        }
        Ok(())
    })
}

/// Takes up to `count` locks that nobody else minds, for at most [`KEEP`], and keeps them: whoever is first is master.
pub(super) fn keep(space: &Lockspace, count: u64) -> Result<Vec<Guard>> {
    let (begin, mut guards) = (now()?, Vec::new());
    for first in (0..count).step_by(KEEP_BATCH) {
        pipeline(space, first..count.min(first + KEEP_BATCH as u64), Mode::Nl, |guard| guards.push(guard))?;
        if now()?.saturating_sub(begin) > KEEP {
            break;
        }
    }
    Ok(guards)
}

pub(crate) fn contend(order: &Contend) -> Result<Vec<Turn>> {
    let _pinned = Pinned::to(order.shift.core)?;
    let space = join(&order.shift.socket)?;
    let end = order.shift.begin()?;
    let mut turns = Vec::new();
    loop {
        let guard = space.lock(order.resource.as_bytes(), Mode::Ex, &Wishes::default())?;
        let (token, at) = (guard.token(), now()?);
        drop(guard);
        turns.push(Turn { token: (token.view, token.counter), at });
        if at > end {
            return Ok(turns);
        }
    }
}

/// Answers with the number of pairs, and when the last one ended.
pub(crate) fn count_pairs(order: &Pairs) -> Result<u64> {
    let _pinned = Pinned::to(order.shift.core)?;
    let space = join(&order.shift.socket)?;
    let names = NAMES / CLIENTS;
    pairs(&space, order.first..order.first + names)?;
    let end = order.shift.begin()?;
    let mut count = 0;
    while now()? < end {
        let number = order.first + count % names;
        pairs(&space, number..number + 1)?;
        count += 1;
    }
    Ok(count)
}
