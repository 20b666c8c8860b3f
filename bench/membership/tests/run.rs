//! What: the benchmark of membership as a user runs it: that it runs, what it prints, and that it leaves nothing.
//! Owns: nothing beyond the benchmark's own directory.
//! Invariants: judges no figure: this machine builds and tests meanwhile.
//! Does not: start nodes; the tests of the front door do.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, reason = "a test program")]

use std::{
    path::Path,
    process::{Command, Output},
};

fn bench(only: &str) -> Output {
    let place = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_bench-membership"));
    let mut command = Command::new(program);
    command.args(["--quick", "--json", "--only", only, "--programs"]).arg(program.parent().unwrap());
    let output = command.env("TMPDIR", place.path()).output().unwrap();
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "{output:?}");
    output
}

#[test]
fn views_are_decided_and_stand_beside_their_floor() {
    let output = bench("2 nodes contend");
    assert!(output.status.success(), "{output:?}");
    let sheet: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = sheet["rows"].as_array().unwrap();
    assert_eq!((rows.len(), sheet["failed"].as_array().unwrap().len()), (4, 0), "{sheet}");
    assert!(rows.iter().all(|row| row["value"].as_f64().unwrap() > 0.0), "{sheet}");
    assert!(rows[1]["floor"].is_number() && rows[1]["met"].is_boolean(), "{sheet}");
}

#[test]
fn a_name_that_no_row_has_is_refused_with_the_names_there_are() {
    let output = bench("no such row");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(said.contains("no row's name contains") && said.contains("corosync, token 300 ms"), "{said}");
}

#[test]
fn under_a_verb_it_is_the_front_door() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench-membership")).arg("nothing").output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
}
