//! The corners of the semantics, one file each in `transcripts`, as the product and the reference both do them.
//! `DEADBOLT_REWRITE=1` writes them anew; the difference is the review.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod lockstep;
mod node;
mod reference;

use deadbolt_dlm_core::Mode;
use deadbolt_dlm_core::mode::MODES;
use lockstep::Lockstep;
use lockstep::text::{read_step, write_queues, write_step, write_told};
use reference::tables;
use std::{fs, path::Path};

/// The lines that are not indented are what happens; those that are, what follows from it.
fn replay(text: &str) -> Result<String, String> {
    let (mut lockstep, mut now) = (Lockstep::new(), String::new());
    for line in text.lines().filter(|line| !line.starts_with(' ')) {
        if line.is_empty() || line.starts_with('#') {
            now += &format!("{line}\n");
            continue;
        }
        if let Some(name) = line.strip_prefix("show ") {
            now += &format!("{line}\n    {}\n", write_queues(lockstep.reference(), name.as_bytes()[0]));
            continue;
        }
        let step = read_step(line).ok_or(format!("this is no step: {line}"))?;
        now += &format!("{}\n", write_step(&step));
        let told = lockstep.take(&step).map_err(|error| format!("{line}\n{error}"))?;
        for told in &told {
            now += &format!("    {}\n", write_told(told));
        }
    }
    Ok(now)
}

#[test]
fn transcripts_are_what_both_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 20, "only {} transcripts", paths.len());
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let now = replay(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if std::env::var_os("DEADBOLT_REWRITE").is_some() {
            fs::write(&path, &now).unwrap();
        } else {
            let line = now.lines().zip(text.lines()).find(|(now, then)| now != then);
            assert!(now == text, "{}: {line:?}\nDEADBOLT_REWRITE=1, then read the difference", path.display());
        }
    }
}

#[test]
fn the_page_has_the_table_of_value_blocks() {
    let page = include_str!("../../../docs/locks.md");
    for before in [None].into_iter().chain(MODES.map(Some)) {
        let cells = MODES.map(|mode| match (tables::is_read(before, mode), tables::is_write(before, mode)) {
            (true, _) => "R",
            (_, true) => "W",
            _ => "-",
        });
        let row = format!("| {} | {} |", before.map_or("no lock", Mode::name), cells.join(" | "));
        assert!(page.contains(&row), "{row}");
    }
}
