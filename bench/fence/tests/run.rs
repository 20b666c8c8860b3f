//! What: the benchmark of fences as a user runs it: that it runs, what it prints, and that it leaves nothing.
//! Owns: nothing beyond the benchmark's own directory.
//! Invariants: judges no figure: this machine builds and tests meanwhile.
//! Does not: end a node; the tests of sbd do.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, reason = "a test program")]

use std::{
    path::Path,
    process::{Command, Output},
};

fn bench(only: &str) -> Output {
    let place = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_bench-fence"));
    let mut command = Command::new(program);
    // Where cargo has put the sbd of ours, if it was built.
    command.args(["--quick", "--json", "--only", only, "--programs"]).arg(program.parent().unwrap());
    let output = command.env("TMPDIR", place.path()).output().unwrap();
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "{output:?}");
    output
}

#[test]
fn floors_are_measured_or_skipped_with_a_reason() {
    let output = bench("floor: ");
    assert!(output.status.success(), "{output:?}");
    let sheet: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |name: &str| sheet[name].as_array().unwrap().clone();
    assert!(list("failed").is_empty() && list("rows").len() + list("skipped").len() >= 4, "{sheet}");
    assert!(list("rows").iter().all(|row| row["value"].as_f64().unwrap() > 0.0), "{sheet}");
    assert!(list("skipped").iter().all(|row| !row["why"].as_str().unwrap().is_empty()), "{sheet}");
}

#[test]
fn a_name_that_no_row_has_is_refused_with_the_names_there_are() {
    let output = bench("no such row");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(said.contains("no row's name contains") && said.contains("long dead: `message reset` returns, ours"), "{said}");
}
