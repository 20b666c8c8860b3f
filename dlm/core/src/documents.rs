//! What: the tables of docs/formats/client-protocol.md and lock-messages.md, compared with the code.
//! Owns: the reader of the tables.
//! Invariants: a kind, a name, a field's size or its place that differs is a failed test.
//! Does not: run outside tests.
//! Called by: `cargo test`.

use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, println};

/// The bytes that a field of a type takes in the samples: names have 5 bytes, value blocks and operations are present, lists have 3.
fn size_of(kind: &str) -> usize {
    match kind {
        "u8" | "bool" | "mode" | "status" | "range" => 1,
        "u16" => 2,
        "u32" | "flags" => 4,
        "u64" => 8,
        "name" => 6,
        "lvb" => 33,
        "text" => 7,
        "key" => 10,
        "life" => 34,
        "token" => 16,
        "copy" => 42,
        "parts" => 1 + 1 + 34 + 1 + 34,
        "resource" => 7,
        "items" => 1 + 3 * (6 + 1),
        "grants" => 1 + 3 * (4 + 16),
        "locks" => 2 + 3 * 28,
        "conflict" => 1 + 31,
        "party" => 9,
        "report" => 10 + 16 + 9 + 1 + 16 + 42 + 1 + (1 + 4 + 1 + 33),
        "span" => 17,
        "rangereport" => 10 + 4 + 8 + 8 + 17 + 4 + 1,
        "cycle" => 4 + 1 + (14 + 18 + 6 + 6 + 14 + 18 + 1),
        "waitid" => 34 + 4 + 8 + 1,
        "wait" => 47 + 51 + 4 + 18 + 6 + 6 + 8 + 1 + 4 + (51 + 34 + 4 + 4 + 18 + 1 + 8),
        other => panic!("the page uses a type that it does not explain: {other}"),
    }
}

/// Kind, name, size with the kind byte, of every row whose third column lists fields.
pub(crate) fn rows(page: &str) -> Vec<(u8, String, usize)> {
    let mut rows = Vec::new();
    let mut is_table = false;
    for line in page.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if cells.starts_with(&["kind", "name", "fields"]) {
            is_table = true;
        } else if !line.starts_with('|') {
            is_table = false;
        } else if let (true, Some(kind)) = (is_table, cells.first().and_then(|cell| cell.parse().ok())) {
            let fields = cells[2].split(", ").filter(|field| *field != "-");
            let size = fields.map(|field| size_of(field.split(' ').next_back().unwrap())).sum::<usize>();
            rows.push((kind, cells[1].to_string(), 1 + size));
        }
    }
    rows
}

/// Each sample must agree with its row, and each row must have a sample.
pub(crate) fn compare(page: &str, samples: &[(String, Vec<u8>)]) {
    let rows = rows(page);
    println!("{} rows", rows.len());
    for (debug, bytes) in samples {
        let name = debug.split([' ', '(', '{']).next().unwrap();
        let row = rows.iter().find(|row| row.1 == name).unwrap_or_else(|| panic!("{name} is not on the page"));
        assert_eq!((row.0, row.2), (bytes[0], bytes.len()), "kind and size of {name}");
    }
    for row in &rows {
        assert!(samples.iter().any(|(_, bytes)| bytes[0] == row.0), "{}", format!("no sample of {}", row.1));
    }
}
