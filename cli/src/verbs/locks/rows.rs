//! What: names, people, bytes and waits as words of a line, and lines as columns.
//! Owns: these words.
//! Invariants: nothing that comes from outside harms a terminal; a word is one word.
//! Does not: know which words a verb prints.
//! Called by: `deadbolt locks`, `deadbolt lockspaces`.

use crate::verbs::{printable, seconds};
use deadbolt_cluster::lock_documents::{BytesColumns, InTheWayRow, LocksAnswer, ResourceColumns, WhoColumns};

/// A name; in quotes where it has spaces.
pub(in crate::verbs) fn quoted(name: &str) -> String {
    let name = printable(name);
    if name.is_empty() || name.contains([' ', '"', '/']) { format!("\"{name}\"") } else { name }
}

/// Lockspace and resource.
pub(super) fn place(on: &ResourceColumns) -> String {
    format!("{}/{}", quoted(&on.lockspace), quoted(&on.resource))
}

/// Whose: node and process, and the number that tells apart those who share them.
pub(super) fn whose(who: &WhoColumns, range_owner: u64) -> String {
    let mut text = format!("{}:{}", printable(&who.node), who.pid);
    if who.orphan {
        text += " (orphan)";
    }
    if let Some(owner) = who.owner {
        text += &format!(" owner {owner}");
    }
    if range_owner != 0 {
        text += &format!(" range owner {range_owner}");
    }
    text
}

/// Kind, first and last byte.
pub(super) fn bytes(bytes: &BytesColumns) -> String {
    let end = bytes.end.map_or_else(String::new, |end| end.to_string());
    format!("{} {}-{end}", printable(&bytes.kind), bytes.start)
}

/// A time where it is known.
pub(super) fn since(since_ms: Option<u64>) -> String {
    since_ms.map_or_else(|| "-".into(), seconds)
}

/// Lines of words, each column as wide as its longest word.
pub(in crate::verbs) fn columns(lines: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = Vec::new();
    for line in lines {
        widths.resize(widths.len().max(line.len()), 0);
        for (width, word) in widths.iter_mut().zip(line) {
            *width = (*width).max(word.chars().count());
        }
    }
    let pad = |line: &Vec<String>| {
        let words = line.iter().zip(&widths).map(|(word, width)| format!("{word:<width$}"));
        words.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(pad).collect()
}

/// A lock or a range that waits.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    pub(super) on: &'a ResourceColumns,
    pub(super) who: &'a WhoColumns,
    /// Number of the range's owner, else 0.
    pub(super) part: u64,
    pub(super) wants: String,
    pub(super) has: Option<String>,
    pub(super) since_ms: Option<u64>,
    pub(super) waits_for: Option<&'a [InTheWayRow]>,
    pub(super) left_out: usize,
}

impl Wait<'_> {
    pub(super) fn whose(&self) -> String {
        whose(self.who, self.part)
    }
}

/// All that wait, by resource.
pub(super) fn waits(answer: &LocksAnswer) -> Vec<Wait<'_>> {
    let locks = answer.locks.iter().filter_map(|row| {
        Some(Wait {
            on: &row.on,
            who: &row.who,
            part: 0,
            wants: printable(row.requested.as_deref()?),
            has: row.granted.as_deref().map(printable),
            since_ms: Some(row.since_ms),
            waits_for: row.waits_for.as_deref(),
            left_out: row.waits_for_left_out,
        })
    });
    let ranges = answer.ranges.iter().filter(|row| row.state != "granted").map(|row| Wait {
        on: &row.on,
        who: &row.who,
        part: row.bytes.range_owner,
        wants: bytes(&row.bytes),
        has: None,
        since_ms: row.since_ms,
        waits_for: row.waits_for.as_deref(),
        left_out: row.waits_for_left_out,
    });
    let mut waits: Vec<Wait<'_>> = locks.chain(ranges).collect();
    waits.sort_by_key(|wait| (&wait.on.lockspace, &wait.on.resource));
    waits
}

/// What somebody has, or waits for, that is in the way.
pub(super) fn claim(row: &InTheWayRow) -> String {
    match (&row.mode, &row.bytes) {
        (Some(mode), _) => printable(mode),
        (None, Some(had)) => bytes(had),
        (None, None) => "-".into(),
    }
}

/// Number of the owner of the range in the way, else 0.
pub(super) fn part(row: &InTheWayRow) -> u64 {
    row.bytes.as_ref().map_or(0, |bytes| bytes.range_owner)
}
