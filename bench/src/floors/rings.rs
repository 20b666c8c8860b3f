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
use std::time::Instant;

const NO_SECOND_CORE: &str = "this process may use one core only";
/// Requests of the client that are not answered yet.
const WINDOW: u64 = 64;
const INSERT: u64 = 1;
const REMOVE: u64 = 2;

pub(super) fn cases(scale: Scale) -> Vec<Case> {
    let entries = scale.entries;
    let mut table = None;
    let plain = Case::new(vec![Row::new(RING, "ns")], move || match Places::two_cores()? {
        Some(places) => Ok(Measured::Values(vec![one_way(places, entries * 4)?])),
        None => Ok(Measured::Skipped(NO_SECOND_CORE.into())),
    });
    let with_table = Case::new(vec![Row::new(RING_TABLE, "ns")], move || match Places::two_cores()? {
        Some(places) => Ok(Measured::Values(vec![pairs(places, table.get_or_insert_with(|| filled(entries)), entries)?])),
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

fn one_way(places: Places, count: u64) -> Result<f64> {
    let ring = Shared::<Ring>::new()?;
    let _pinned = Pinned::to(places.near)?;
    let work = || {
        let mut writer = Writer::new(&ring);
        for number in 0..count {
            if !write(&mut writer, &[number; 8]) {
                return;
            }
        }
    };
    // SAFETY: the work touches the shared ring and reads the clock, nothing else.
    let partner = unsafe { Partner::fork(places.far, work) }?;
    let mut reader = Reader::new(&ring);
    let begin = Instant::now();
    for number in 0..count {
        if read(&mut reader) != Some([number; 8]) {
            bail!("record {number} did not come");
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
fn ask(rings: &RingPair, first: u64, count: u64) {
    let (mut requests, mut answers) = (Writer::new(&rings.there), Reader::new(&rings.back));
    let (mut asked, mut ended) = (0, 0);
    let mut spin = Spin::new();
    while ended < count {
        if let Some(answer) = answers.read() {
            ended += 1;
            spin = Spin::new();
            if !write(&mut requests, &request(REMOVE, answer[1])) {
                return;
            }
        } else if asked < count && asked - ended < WINDOW {
            if !write(&mut requests, &request(INSERT, first + asked)) {
                return;
            }
            asked += 1;
        } else if !spin.turn() {
            return;
        }
    }
}

fn pairs(places: Places, table: &mut Table, count: u64) -> Result<f64> {
    let rings = Shared::<RingPair>::new()?;
    let first = table.len() as u64;
    let _pinned = Pinned::to(places.near)?;
    let work = || ask(&rings, first, count);
    // SAFETY: the work touches the shared rings and reads the clock, nothing else.
    let partner = unsafe { Partner::fork(places.far, work) }?;
    let (mut requests, mut answers) = (Reader::new(&rings.there), Writer::new(&rings.back));
    let begin = Instant::now();
    let mut removed = 0;
    while removed < count {
        let Some([kind, number, name @ ..]) = read(&mut requests) else { bail!("the client asks no more after {removed} pairs") };
        let mut key = [0; NAME_BYTES];
        for (place, word) in key.as_chunks_mut::<8>().0.iter_mut().zip(name) {
            *place = word.to_le_bytes();
        }
        if kind == INSERT {
            table.insert(key, number);
            if !write(&mut answers, &[INSERT, number, 0, 0, 0, 0, 0, 0]) {
                bail!("the client takes no answers");
            }
        } else if table.remove(&key).is_none() {
            bail!("the table lost a name");
        } else {
            removed += 1;
        }
    }
    let each = nanoseconds_each(begin, count);
    partner.finish()?;
    Ok(each)
}
