//! What: the pieces of an answer put together, of one node and of several.
//! Owns: which row stands where two nodes tell of one lock.
//! Invariants: a lock is there once, by its master's word where that is known; not more rows than were asked for of each node.
//! Does not: print.
//! Called by: `deadbolt locks`.

use anyhow::{Context, Result};
use deadbolt_cluster::{
    ask::ask,
    config::NodeDirectory,
    lock_documents::{LockRow, LocksAnswer, LocksRequest, RangeRow, ResourceColumns},
};
use std::{collections::BTreeMap, fs::File, io::Read, path::Path, time::Duration};

/// Longest answer of another node that is read, in bytes (chosen: some hundred thousand locks).
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// All pieces of this node's answer.
pub(super) fn gather(directory: &NodeDirectory, request: &LocksRequest, limit: usize) -> Result<LocksAnswer> {
    let mut whole: Option<LocksAnswer> = None;
    let mut next = Some(0);
    while let Some(from) = next {
        let shown = whole.as_ref().map_or(0, |answer| answer.locks.len() + answer.ranges.len());
        let request = LocksRequest { from, limit: Some(limit.saturating_sub(shown)), ..request.clone() };
        let said = ask(directory, &serde_json::to_value(&request)?, Duration::from_secs(5))?;
        let piece: LocksAnswer = serde_json::from_value(said).context("the daemon's answer is of another version of deadbolt")?;
        next = piece.next;
        match &mut whole {
            None => whole = Some(piece),
            Some(answer) => merge(answer, piece),
        }
    }
    let mut answer = whole.unwrap_or_default();
    answer.next = None;
    Ok(answer)
}

/// What another node's `deadbolt locks --json` printed.
pub(super) fn read(path: &Path) -> Result<LocksAnswer> {
    let name = path.display();
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("--with {name}"))?)
    };
    let mut text = String::new();
    let length = input.take(ANSWER_BYTES_MAX).read_to_string(&mut text).with_context(|| format!("--with {name}"))?;
    anyhow::ensure!(
        u64::try_from(length)? < ANSWER_BYTES_MAX,
        "--with {name}: longer than {ANSWER_BYTES_MAX} bytes; let that node filter, or lower its --limit"
    );
    serde_json::from_str(&text).with_context(|| format!("--with {name}: not what `deadbolt locks --json` prints"))
}

/// Adds what `other` says.
pub(super) fn merge(answer: &mut LocksAnswer, other: LocksAnswer) {
    for (names, more) in [(&mut answer.nodes, other.nodes), (&mut answer.members, other.members)] {
        for name in more {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    answer.left_out += other.left_out;
    add(&mut answer.locks, other.locks, |row: &LockRow| (place(&row.on), row.who.node.clone(), row.who.lock), |row| row.on.by_master);
    let key = |row: &RangeRow| (place(&row.on), row.who.node.clone(), row.who.lock, row.bytes.clone(), row.state.clone());
    add(&mut answer.ranges, other.ranges, key, |row| row.on.by_master);
}

fn place(on: &ResourceColumns) -> (String, String) {
    (on.lockspace.clone(), on.resource.clone())
}

fn add<T, K: Ord>(rows: &mut Vec<T>, more: Vec<T>, key: impl Fn(&T) -> K, is_by_master: impl Fn(&T) -> bool) {
    if more.is_empty() {
        return;
    }
    let mut known: BTreeMap<K, usize> = rows.iter().enumerate().map(|(index, row)| (key(row), index)).collect();
    for row in more {
        match known.get(&key(&row)).and_then(|index| rows.get_mut(*index)) {
            Some(place) if is_by_master(&row) => *place = row,
            Some(_) => {}
            None => {
                known.insert(key(&row), rows.len());
                rows.push(row);
            }
        }
    }
}

/// By name; what is of one resource stays in its order.
pub(super) fn sort(answer: &mut LocksAnswer) {
    answer.locks.sort_by_cached_key(|row| place(&row.on));
    answer.ranges.sort_by_cached_key(|row| (place(&row.on), row.state != "granted", row.bytes.start));
}
