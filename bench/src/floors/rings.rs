//! What: the floors of a pipelined lock client: records through a ring, and pairs through two rings to a table.
//! Owns: the form of the pair: a request, its answer, and a posted request that ends it.
//! Invariants: the client is another process, on another core; both sides spin.
//! Does not: wake anybody.
//! Called by: the floors.

use super::{
    RING, RING_TABLE,
    processor::nanoseconds_each,
    table::{Table, filled},
};
use crate::{
    locks::Scale,
    names::{NAME_BYTES, name},
    pair::{Partner, Pinned, Places, Shared, Spin},
    ring::{Reader, Record, Ring, RingPair, Writer},
    sheet::{Case, Measured, Row},
};
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

const NO_SECOND_CORE: &str = "this process may use one core only";
/// Requests of the client that are not answered yet.
const WINDOW: u64 = 64;
const INSERT: u64 = 1;
const REMOVE: u64 = 2;
/// No more records follow.
const END: u64 = u64::MAX;

pub(super) fn cases(scale: &Scale) -> Vec<Case> {
    let (entries, window) = (scale.entries, scale.window);
    let mut table = None;
    let plain = Case::new(vec![Row::new(RING, "ns")], move || match Places::two_cores()? {
        Some(places) => Ok(Measured::Values(vec![one_way(places, window)?])),
        None => Ok(Measured::Skipped(NO_SECOND_CORE.into())),
    });
    let with_table = Case::new(vec![Row::new(RING_TABLE, "ns")], move || match Places::two_cores()? {
        Some(places) => Ok(Measured::Values(vec![pairs(places, table.get_or_insert_with(|| filled(entries)), window)?])),
        None => Ok(Measured::Skipped(NO_SECOND_CORE.into())),
    });
    vec![plain, with_table]
}

/// Writes, waiting for room; false when it took too long.
fn write(writer: &mut Writer<'_>, record: &Record) -> bool {
    let mut spin = Spin::new();
    while !writer.write(record) {
        if !spin.turn() {
            return false;
        }
    }
    true
}

/// Reads, waiting for a record.
fn read(reader: &mut Reader<'_>) -> Option<Record> {
    let mut spin = Spin::new();
    loop {
        match reader.read() {
            None if spin.turn() => {}
            read => return read,
        }
    }
}

fn one_way(places: Places, window: Duration) -> Result<f64> {
    let ring = Shared::<Ring>::new()?;
    let _pinned = Pinned::to(places.near)?;
    let work = || {
        let mut writer = Writer::new(&ring);
        let begin = Instant::now();
        let mut number = 0;
        // The clock is looked at once for many records.
        while number % WINDOW != 0 || begin.elapsed() < window {
            if !write(&mut writer, &[number; 8]) {
                return;
            }
            number += 1;
        }
        write(&mut writer, &[END; 8]);
    };
    // SAFETY: the work touches the shared ring and reads the clock, nothing else.
    let partner = unsafe { Partner::fork(places.far, work) }?;
    let mut reader = Reader::new(&ring);
    let begin = Instant::now();
    let mut count = 0;
    loop {
        match read(&mut reader) {
            Some(record) if record == [count; 8] => count += 1,
            Some([END, ..]) => break,
            _ => bail!("record {count} did not come"),
        }
    }
    let each = nanoseconds_each(begin, count);
    partner.finish()?;
    Ok(each)
}

fn request(kind: u64, number: u64) -> Record {
    let name = name(number);
    let mut record = [kind, number, 0, 0, 0, 0, 0, 0];
    for (word, bytes) in record.iter_mut().skip(2).zip(name.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    record
}

/// The client: keeps `WINDOW` inserts in flight; each answer is followed by its remove, which nobody answers.
fn ask(rings: &RingPair, first: u64, window: Duration) {
    let (mut requests, mut answers) = (Writer::new(&rings.there), Reader::new(&rings.back));
    let (mut asked, mut ended, mut is_over) = (0, 0, false);
    let (mut spin, begin) = (Spin::new(), Instant::now());
    while !is_over || ended < asked {
        let is_written = if let Some(answer) = answers.read() {
            ended += 1;
            spin = Spin::new();
            write(&mut requests, &request(REMOVE, answer[1]))
        } else if !is_over && asked - ended < WINDOW {
            asked += 1;
            is_over = asked % WINDOW == 0 && begin.elapsed() > window;
            write(&mut requests, &request(INSERT, first + asked))
        } else {
            spin.turn()
        };
        if !is_written {
            return;
        }
    }
    write(&mut requests, &[END; 8]);
}

fn pairs(places: Places, table: &mut Table, window: Duration) -> Result<f64> {
    let rings = Shared::<RingPair>::new()?;
    let first = table.len() as u64;
    let _pinned = Pinned::to(places.near)?;
    let work = || ask(&rings, first, window);
    // SAFETY: the work touches the shared rings and reads the clock, nothing else.
    let partner = unsafe { Partner::fork(places.far, work) }?;
    let (mut requests, mut answers) = (Reader::new(&rings.there), Writer::new(&rings.back));
    let begin = Instant::now();
    let mut removed = 0;
    while let Some([kind, number, name @ ..]) = read(&mut requests) {
        let mut key = [0; NAME_BYTES];
        for (place, word) in key.as_chunks_mut::<8>().0.iter_mut().zip(name) {
            *place = word.to_le_bytes();
        }
        match kind {
            INSERT => {
                table.insert(key, number);
                if !write(&mut answers, &[INSERT, number, 0, 0, 0, 0, 0, 0]) {
                    bail!("the client takes no answers");
                }
            }
            REMOVE if table.remove(&key).is_some() => removed += 1,
            REMOVE => bail!("the table lost a name"),
            _ => {
                let each = nanoseconds_each(begin, removed);
                partner.finish()?;
                return Ok(each);
            }
        }
    }
    bail!("the client asks no more after {removed} pairs")
}
