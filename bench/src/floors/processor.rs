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
    time::Instant,
};

pub(super) fn cases(scale: Scale) -> Vec<Case> {
    let pairs = scale.entries * 10;
    let (sleeps, spins) = (scale.entries / 50, scale.entries / 5);
    vec![
        Case::one(Row::new(CAS, "ns"), move || cas_pair(pairs)),
        round_trips(FUTEX, Waiting::Sleeping, true, sleeps),
        round_trips(FUTEX_APART, Waiting::Sleeping, false, sleeps / 4),
        round_trips(SPIN, Waiting::Spinning, false, spins),
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

/// Time since `begin`, divided.
pub(super) fn nanoseconds_each(begin: Instant, count: u64) -> f64 {
    begin.elapsed().as_secs_f64() * 1e9 / count as f64
}

fn round_trips(name: &'static str, waiting: Waiting, is_one_core: bool, count: u64) -> Case {
    Case::new(vec![Row::new(name, "ns")], move || {
        let places = if is_one_core { Some(Places::one_core()?) } else { Places::two_cores()? };
        match places {
            Some(places) => Ok(Measured::Values(vec![ping_pong(places, waiting, count)?])),
            None => Ok(Measured::Skipped("this process may use one core only".into())),
        }
    })
}

/// Here it is this process's turn, and the other waits.
const NEAR: u32 = 0;
const FAR: u32 = 1;

/// Gives the turn to the other side and waits until it is back.
fn pass(turn: &AtomicU32, mine: u32, waiting: Waiting) -> bool {
    turn.store(1 - mine, Ordering::Release);
    if waiting == Waiting::Sleeping {
        futex_wake(turn);
    }
    wait_while(turn, 1 - mine, waiting)
}

fn ping_pong(places: Places, waiting: Waiting, count: u64) -> Result<f64> {
    let turn = Shared::<[AtomicU32; 1]>::new()?;
    let _pinned = Pinned::to(places.near)?;
    let work = || {
        let mut is_good = wait_while(&turn[0], NEAR, waiting);
        for _ in 1..count {
            is_good = is_good && pass(&turn[0], FAR, waiting);
        }
        turn[0].store(NEAR, Ordering::Release);
        futex_wake(&turn[0]);
    };
    // SAFETY: the work touches the shared word and calls the kernel, nothing else.
    let partner = unsafe { Partner::fork(places.far, work) }?;
    let begin = Instant::now();
    for _ in 0..count {
        if !pass(&turn[0], NEAR, waiting) {
            bail!("the second process did not answer");
        }
    }
    let each = nanoseconds_each(begin, count);
    partner.finish()?;
    Ok(each)
}
