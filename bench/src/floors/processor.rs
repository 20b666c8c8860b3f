//! What: the floors of processor and kernel alone: a word taken and given back, two processes that wake or watch each other.
//! Owns: nothing beyond its measurements.
//! Invariants: both sides are pinned, so that the regime is the one that the row names.
//! Does not: move data.
//! Called by: the floors.

use super::{CAS, FUTEX, FUTEX_APART, SPIN};
use crate::{
    clock::time_each,
    locks::Scale,
    pair::{Partner, Pinned, Places, Shared, Waiting, futex_wake, wait_while},
    sheet::{Case, Measured, Row},
};
use anyhow::{Result, bail};
use std::{
    hint::black_box,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

pub(super) fn cases(scale: &Scale) -> Vec<Case> {
    let pairs = scale.entries * 10;
    vec![
        Case::one(Row::new(CAS, "ns"), move || cas_pair(pairs)),
        round_trips(FUTEX, Waiting::Sleeping, true, scale.window),
        round_trips(FUTEX_APART, Waiting::Sleeping, false, scale.window),
        round_trips(SPIN, Waiting::Spinning, false, scale.window),
    ]
}

fn cas_pair(pairs: u64) -> Result<f64> {
    let word = AtomicU64::new(0);
    time_each(pairs, || {
        for _ in 0..pairs {
            let word = black_box(&word);
            let is_taken = word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
            let is_given = word.compare_exchange(1, 0, Ordering::Release, Ordering::Relaxed).is_ok();
            if !(is_taken && is_given) {
                bail!("a word that nobody shares was changed by another");
            }
        }
        Ok(())
    })
}

/// Nanoseconds for each of what was done since `begin`.
pub(super) fn nanoseconds_each(begin: Instant, count: u64) -> f64 {
    begin.elapsed().as_secs_f64() * 1e9 / count as f64
}

fn round_trips(name: &'static str, waiting: Waiting, is_one_core: bool, window: Duration) -> Case {
    Case::new(vec![Row::new(name, "ns")], move || {
        let places = if is_one_core { Some(Places::one_core()?) } else { Places::two_cores()? };
        match places {
            Some(places) => Ok(Measured::Values(vec![ping_pong(places, waiting, window)?])),
            None => Ok(Measured::Skipped("this process may use one core only".into())),
        }
    })
}

/// Whose turn it is; and nobody's any more.
const NEAR: u32 = 0;
const FAR: u32 = 1;
const OVER: u32 = 2;

/// Says whose turn it is, and wakes whom that concerns.
fn say(turn: &AtomicU32, next: u32, waiting: Waiting) {
    turn.store(next, Ordering::Release);
    if waiting == Waiting::Sleeping {
        futex_wake(turn);
    }
}

fn ping_pong(places: Places, waiting: Waiting, window: Duration) -> Result<f64> {
    let turn = Shared::<[AtomicU32; 1]>::new()?;
    let turn = &turn[0];
    let _pinned = Pinned::to(places.near)?;
    let work = || {
        while wait_while(turn, NEAR, waiting) && turn.load(Ordering::Relaxed) != OVER {
            say(turn, NEAR, waiting);
        }
    };
    // SAFETY: the work touches the shared word and calls the kernel, nothing else.
    let partner = unsafe { Partner::fork(places.far, work) }?;
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < window {
        say(turn, FAR, waiting);
        if !wait_while(turn, FAR, waiting) {
            bail!("the second process did not answer");
        }
        count += 1;
    }
    let each = nanoseconds_each(begin, count);
    say(turn, OVER, waiting);
    partner.finish()?;
    Ok(each)
}
