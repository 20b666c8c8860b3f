//! What: the benchmarks as a user runs them: that they run, what they print, and that they leave nothing.
//! Owns: nothing beyond the benchmark's own directory.
//! Invariants: judges no figure: this machine builds and tests meanwhile.
//! Does not: look into the benchmarks.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

mod common;

use common::{deadbolt, directory, run};
use serde_json::Value;

fn bench(arguments: &[&str]) -> (Option<i32>, String, String) {
    let place = directory();
    let output = run(deadbolt().args(["bench", "locks"]).args(arguments).env("TMPDIR", place.path()));
    let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("deadbolt-bench")), "{left:?}");
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Rows with figures, and rows without.
fn rows(text: &str) -> (Vec<Value>, Vec<Value>) {
    let object: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(object["failed"].as_array().unwrap(), &Vec::<Value>::new(), "{text}");
    (object["rows"].as_array().unwrap().clone(), object["skipped"].as_array().unwrap().clone())
}

#[test]
fn floors_are_measured_or_skipped_with_a_reason() {
    let (code, text, said) = bench(&["--quick", "--json", "--only", "floor:"]);
    assert_eq!(code, Some(0), "{said}");
    let (measured, skipped) = rows(&text);
    assert!(measured.len() >= 5 && measured.len() + skipped.len() >= 12, "{text}");
    for row in &measured {
        assert!(row["value"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["unit"].is_string() && row["floor"].is_null() && row["met"].is_null(), "{row}");
    }
    assert!(skipped.iter().all(|row| !row["why"].as_str().unwrap().is_empty()), "{text}");
}

#[test]
fn a_row_stands_beside_its_floor() {
    let (code, text, said) = bench(&["--quick", "--json", "--only", "core: EX lock"]);
    assert_eq!(code, Some(0), "{said}");
    let (measured, _) = rows(&text);
    let row = measured.last().unwrap();
    let number = |field: &str| row[field].as_f64().unwrap_or_else(|| panic!("{field}: {row}"));
    assert!(number("ratio") > 0.0 && number("floor") > 0.0, "{row}");
    assert_eq!(row["met"].as_bool(), Some(number("ratio") <= number("reach")), "{row}");
}

#[test]
fn nodes_are_started_measured_and_ended() {
    let (code, text, said) = bench(&["--quick", "--json", "--only", "between two processes"]);
    assert_eq!(code, Some(0), "{said}");
    let (measured, _) = rows(&text);
    assert!(measured.last().unwrap()["value"].as_f64().unwrap() > 0.0, "{text}");
}

#[test]
fn a_name_that_no_row_has_is_refused_with_the_names_there_are() {
    let (code, text, said) = bench(&["--only", "no such row"]);
    assert_eq!(code, Some(1));
    assert!(text.is_empty() && said.contains("no row's name contains") && said.contains("floor: CAS pair"), "{said}");
}
