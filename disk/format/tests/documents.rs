//! What: the tables of `docs/formats`, compared with the code.
//! Owns: the list of all field tables.
//! Invariants: each table of the code stands on exactly one page, row for row; the layout page shows what `Layout::new` plans.
//! Does not: judge the prose.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no interface")]

use deadbolt_disk_format::head::Field;
use deadbolt_disk_format::{Layout, beat, head, node_record, records, register, sbd, superblock, view};
use std::collections::BTreeMap;
use std::path::PathBuf;

const TABLES: &[(&str, &[Field])] = &[
    ("head_fields", head::head_fields::FIELDS),
    ("superblock_fields", superblock::superblock_fields::FIELDS),
    ("beat_fields", beat::beat_fields::FIELDS),
    ("daemon_fields", beat::daemon_fields::FIELDS),
    ("vouch_fields", beat::vouch_fields::FIELDS),
    ("vote_fields", register::vote_fields::FIELDS),
    ("record_fields", register::record_fields::FIELDS),
    ("body_fields", view::body_fields::FIELDS),
    ("value_fields", view::value_fields::FIELDS),
    ("requests_fields", records::requests_fields::FIELDS),
    ("request_fields", records::request_fields::FIELDS),
    ("journal_fields", records::journal_fields::FIELDS),
    ("tool_fields", records::tool_fields::FIELDS),
    ("header_fields", sbd::header_fields::FIELDS),
    ("node_fields", sbd::node_fields::FIELDS),
    ("node_record_fields", node_record::node_record_fields::FIELDS),
    ("mailbox_fields", sbd::mailbox_fields::FIELDS),
];

fn pages() -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(&path).unwrap()))
        .collect()
}

/// Cells of the table behind a marker line, without its two head lines.
fn rows_after<'a>(page: &'a str, marker: &str) -> Option<Vec<Vec<&'a str>>> {
    let mut lines = page.lines().skip_while(|line| *line != marker);
    lines.next()?;
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    Some(rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect())
}

#[test]
fn every_field_stands_in_its_table() {
    let pages = pages();
    for (name, fields) in TABLES {
        let marker = format!("<!-- fields: {name} -->");
        let tables: Vec<_> = pages.iter().filter_map(|(_, page)| rows_after(page, &marker)).collect();
        assert_eq!(tables.len(), 1, "{name} stands on {} pages", tables.len());
        let found: Vec<String> = tables[0].iter().map(|row| row[..3].join(" ")).collect();
        let expected: Vec<String> =
            fields.iter().map(|field| format!("{} {} `{}`", field.offset, field.size, field.name.to_lowercase())).collect();
        assert_eq!(found, expected, "{name}");
        for (row, field) in tables[0].iter().zip(*fields) {
            let is_number = matches!(field.size, 2 | 4 | 8) && !matches!(row[3], "bytes" | "-");
            assert!(!is_number || matches!(row[3], "little" | "big"), "{name}: {} has no byte order", field.name);
            assert!(!row[4].is_empty(), "{name}: {} has no meaning", field.name);
            assert_eq!(field.name.starts_with("RESERVED"), row[4] == "zero, checked", "{name}: {}", field.name);
        }
    }
    let markers: usize = pages.iter().map(|(_, page)| page.matches("<!-- fields: ").count()).sum();
    assert_eq!(markers, TABLES.len(), "a page has a table that the code does not know");
}

#[test]
fn every_page_has_a_history_and_is_named_in_the_index() {
    let pages: BTreeMap<_, _> = pages().into_iter().collect();
    for (name, page) in &pages {
        // The client protocol is a conversation, not a record; its own package keeps it.
        if !page.contains("<!-- fields: ") {
            continue;
        }
        assert!(page.contains("## History"), "{name} has no history");
        assert!(pages["README.md"].contains(&format!("({name})")), "{name} is not in the index");
    }
}

#[test]
fn the_layout_page_shows_the_default_device() {
    let pages: BTreeMap<_, _> = pages().into_iter().collect();
    let rows = rows_after(&pages["layout.md"], "<!-- layout: 16777216 512 32 -->").unwrap();
    let found: Vec<String> = rows.iter().map(|row| row[..3].join(" ")).collect();
    let layout = Layout::new(16 << 20, 512, 32).unwrap();
    let mut expected = vec![String::from("sbd 0 2097152")];
    expected.extend(layout.areas().iter().map(|(area, offset, bytes)| format!("{area} {} {bytes}", offset.0)));
    assert_eq!(found, expected);
    let smallest = 11_337_728;
    assert!(Layout::new(smallest, 512, 32).is_ok() && Layout::new(smallest - 1, 512, 32).is_err());
}
