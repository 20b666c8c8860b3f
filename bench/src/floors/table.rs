//! What: the floors of the lock tables: a bare hash table with names as keys, its memory, and filling it from a socket.
//! Owns: the table that counts as bare: the standard one with its own hash function and a number per name.
//! Invariants: names and their order are the same as in the rows that are compared with it.
//! Does not: reserve: tables grow as those of a daemon do.
//! Called by: the floors; the process that measures memory.

use super::{SOCKET, TABLE, TABLE_MEMORY};
use crate::{
    clock::{time_each, used},
    locks::Scale,
    names::{NAME_BYTES, Name, name, names},
    pair::{Partner, Places},
    service::memory::{Part, measure_apart},
    sheet::{Case, Row},
};
use anyhow::{Context, Result, bail};
use hashbrown::HashMap;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

/// The bare table.
pub(crate) type Table = HashMap<Name, u64>;

/// Bytes of a record on the socket: the name and as much again as a lock's place, owner, mode and token take.
const RECORD_BYTES: usize = 56;
/// One write of the sender.
const FRAME_RECORDS: usize = 1024;

pub(super) fn cases(scale: &Scale) -> Vec<Case> {
    let entries = scale.entries;
    let mut table = None;
    vec![
        Case::one(Row::new(TABLE, "ns"), move || insert_remove(table.get_or_insert_with(|| filled(entries)), entries)),
        Case::new(vec![Row::new(TABLE_MEMORY, "B")], move || measure_apart(Part::Table, entries)),
        Case::one(Row::new(SOCKET, "ms"), move || from_socket(entries)),
    ]
}

/// A table with the first `entries` names.
pub(crate) fn filled(entries: u64) -> Table {
    let mut table = Table::new();
    for number in 0..entries {
        table.insert(name(number), number);
    }
    table
}

/// Fresh names among those that are there, each inserted and removed at once.
fn insert_remove(table: &mut Table, entries: u64) -> Result<f64> {
    let fresh = names(entries, entries);
    time_each(entries, || {
        for name in &fresh {
            table.insert(*name, 1);
            if table.remove(name).is_none() {
                bail!("the table lost a name");
            }
        }
        Ok(())
    })
}

fn record(number: u64) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    let (head, rest) = record.split_at_mut(NAME_BYTES);
    head.copy_from_slice(&name(number));
    if let Some(place) = rest.first_chunk_mut() {
        *place = number.to_le_bytes();
    }
    record
}

fn take(table: &mut Table, record: &[u8]) {
    if let Some((name, rest)) = record.split_first_chunk::<NAME_BYTES>()
        && let Some(value) = rest.first_chunk()
    {
        table.insert(*name, u64::from_le_bytes(*value));
    }
}

/// Milliseconds that reading and inserting takes; the sender is another process.
fn from_socket(entries: u64) -> Result<f64> {
    let (mut near, mut far) = UnixStream::pair().context("a pair of sockets")?;
    near.set_read_timeout(Some(Duration::from_secs(10)))?;
    let records: Vec<u8> = (0..entries).flat_map(record).collect();
    let core = Places::two_cores()?.map_or(Places::one_core()?.far, |places| places.far);
    let work = || {
        for frame in records.chunks(RECORD_BYTES * FRAME_RECORDS) {
            if far.write_all(frame).is_err() {
                return;
            }
        }
    };
    // SAFETY: writing to a socket is a system call; the records stand in memory already.
    let partner = unsafe { Partner::fork(core, work) }?;
    drop(far);
    let before = used()?;
    let mut table = Table::new();
    let mut frame = vec![0; RECORD_BYTES * FRAME_RECORDS];
    let mut held = 0;
    loop {
        let length = near.read(frame.get_mut(held..).unwrap_or_default()).context("reading records")?;
        held += length;
        let whole = held - held % RECORD_BYTES;
        for record in frame.get(..whole).unwrap_or_default().chunks_exact(RECORD_BYTES) {
            take(&mut table, record);
        }
        frame.copy_within(whole..held, 0);
        held -= whole;
        if length == 0 {
            break;
        }
    }
    let time = used()?.saturating_sub(before);
    partner.finish()?;
    if table.len() as u64 != entries {
        bail!("{} of {entries} records came", table.len());
    }
    Ok(time.as_secs_f64() * 1e3)
}
