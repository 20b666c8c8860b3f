//! What: how much memory of the machine locks take, and whether it grows with their number and no faster.
//! Owns: the process that is measured: a fresh one for each figure, so that nothing freed before is counted as given.
//! Invariants: resident memory (VmRSS), before and after; divided by what was added.
//! Does not: count allocations.
//! Called by: the measurements of the service; the process itself, by its worker.

use super::solo::Solo;
use crate::{
    clock::time_each,
    floors::{TABLE_MEMORY, table},
    locks::Scale,
    memory::{available, own_resident},
    names::name,
    sheet::{Case, Measured, Reach, Row},
    worker::{Order, Worker},
};
use anyhow::Result;
use deadbolt_dlm_core::Mode;
use serde::{Deserialize, Serialize};
use std::ops::Range;

const LOCK: &str = "core: resident memory per granted lock at 1 M";
const HOLDER: &str = "core: resident memory per further holder at 1 M";
const WAITER: &str = "core: resident memory per waiter at 1 M";
const LOCK_MANY: &str = "core: resident memory per granted lock at 10 M";
const TIME: &str = "core: time per lock while 1 M are taken";
const TIME_MANY: &str = "core: time per lock while 10 M are taken";

/// More than this the measurement of 10 M does not take.
const MANY_SECONDS_MAX: f64 = 60.0;

/// What a process of its own measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Part {
    /// Memory of an entry of a bare hash table.
    Table,
    /// Memory of a granted lock, of a further holder, of a waiter.
    Locks,
    /// Memory and time of a lock among as many as asked for, and among ten times as many.
    Many,
}

pub(super) fn cases(scale: &Scale) -> Vec<Case> {
    let entries = scale.entries;
    let locks = vec![
        Row::new(LOCK, "B").over(&[TABLE_MEMORY]).reach(Reach::Value(96.0)),
        Row::new(HOLDER, "B").reach(Reach::Value(40.0)),
        Row::new(WAITER, "B").reach(Reach::Value(40.0)),
    ];
    let many = vec![
        Row::new(TIME, "ns"),
        Row::new(TIME_MANY, "ns").over(&[TIME]).reach(Reach::Ratio(1.5)),
        Row::new(LOCK_MANY, "B").over(&[LOCK]).reach(Reach::Ratio(1.1)),
    ];
    vec![Case::new(locks, move || measure_apart(Part::Locks, entries)), Case::new(many, move || measure_apart(Part::Many, entries)).once()]
}

/// Has a fresh process measure it.
pub(crate) fn measure_apart(part: Part, entries: u64) -> Result<Measured> {
    Worker::start(&Order::Memory { part, entries })?.answer()
}

/// Measures it in this process, which does nothing else before and after.
pub(crate) fn measure(part: Part, entries: u64) -> Result<Measured> {
    match part {
        Part::Table => measure_table(entries),
        Part::Locks => measure_locks(entries),
        Part::Many => measure_many(entries),
    }
}

fn each(bytes: u64, count: u64) -> f64 {
    bytes as f64 / count as f64
}

fn measure_table(entries: u64) -> Result<Measured> {
    let before = own_resident()?;
    let table = table::filled(entries);
    let bytes = own_resident()?.saturating_sub(before);
    Ok(Measured::Values(vec![each(bytes, table.len() as u64)]))
}

fn measure_locks(entries: u64) -> Result<Measured> {
    let mut solo = Solo::new()?;
    let mut last = own_resident()?;
    let mut grown = || -> Result<f64> {
        let now = own_resident()?;
        Ok(each(now.saturating_sub(std::mem::replace(&mut last, now)), entries))
    };
    for number in 0..entries {
        solo.keep(&name(number), Mode::Pr)?;
    }
    let lock = grown()?;
    solo.open()?;
    for number in 0..entries {
        solo.keep(&name(number), Mode::Pr)?;
    }
    let holder = grown()?;
    solo.open()?;
    for number in 0..entries {
        solo.wait(&name(number), Mode::Ex)?;
    }
    let waiter = grown()?;
    Ok(Measured::Values(vec![lock, holder, waiter]))
}

/// Nanoseconds for each lock of these names.
fn take(solo: &mut Solo, numbers: Range<u64>) -> Result<f64> {
    let count = numbers.end - numbers.start;
    time_each(count, || {
        for number in numbers {
            solo.keep(&name(number), Mode::Ex)?;
        }
        Ok(())
    })
}

fn measure_many(entries: u64) -> Result<Measured> {
    let many = 10 * entries;
    let before = own_resident()?;
    let mut solo = Solo::new()?;
    let first = take(&mut solo, 0..entries)?;
    let grown = own_resident()?.saturating_sub(before);
    let seconds = first * many as f64 / 1e9;
    if seconds > MANY_SECONDS_MAX {
        return Ok(Measured::Skipped(format!("{many} locks would take {seconds:.0} s")));
    }
    // A table that grows stands twice for a moment.
    let (wanted, left) = (grown * 13, available()?);
    if wanted > left {
        return Ok(Measured::Skipped(format!("{many} locks may take {} MiB, {} MiB are left", wanted >> 20, left >> 20)));
    }
    let rest = take(&mut solo, entries..many)?;
    let bytes = own_resident()?.saturating_sub(before);
    Ok(Measured::Values(vec![first, (first + 9.0 * rest) / 10.0, each(bytes, many)]))
}
