//! The transcripts in tests/scenarios are what the program says now, and every row of docs/failures.md has one or names the test that shows it.
//! DEADBOLT_REWRITE=1 writes them anew; the difference is the review.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use deadbolt_simulator::script::replay;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn transcripts() -> BTreeMap<PathBuf, String> {
    let files = fs::read_dir(root().join("tests/scenarios")).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn transcripts_are_what_the_program_says() {
    let mut stale = Vec::new();
    for (path, text) in transcripts() {
        let now = replay(&text);
        if std::env::var_os("DEADBOLT_REWRITE").is_some() {
            fs::write(&path, &now).unwrap();
        } else if now != text {
            let line = now.lines().zip(text.lines()).position(|(now, then)| now != then).unwrap_or(0);
            let found = now.lines().nth(line).unwrap_or_default();
            stale.push(format!("{} line {}: now {found:?}", path.display(), line + 1));
        }
    }
    assert!(
        stale.is_empty(),
        "DEADBOLT_REWRITE=1 cargo test -p deadbolt-simulator --test transcripts, then read git diff:\n{}",
        stale.join("\n")
    );
}

/// Rows that no simulated cluster can show: they are about real files, real sockets or stock programs.
const SHOWN_ELSEWHERE: &[(&str, &str)] = &[
    ("the same, where all nodes have registered with their disks (reservations; watchdog device)", "cluster/core/src/membership/tests.rs"),
    ("its supervisor is killed", "tests/process/lifecycle.rs"),
    ("a command under `deadbolt lock` loses its lock", "tests/process/lifecycle.rs"),
    ("a pill for an earlier boot of it", "sbd/core/tests/lifeline/mailbox.rs"),
    ("an unsigned or forged pill of our form", "sbd/core/src/mailbox.rs"),
    ("its guest is paused, snapshotted or migrated by a hypervisor", "tests/simulator/tests/unfair.rs"),
    ("a copy of it starts (cloned disk or directory)", "tests/simulator/tests/unfair.rs"),
    (
        "only datagrams or only connections pass between two nodes for longer than the detection time",
        "cluster/core/src/membership/tests.rs",
    ),
    ("a stranger sends anything", "tests/process/links.rs"),
    ("one of two networks is cut, or loses one direction", "tests/process/links.rs"),
    ("a network passes small packets and no large ones (MTU)", "tests/process/links.rs"),
    ("an interface or its address vanishes (`ip link set down`, `ip addr del`, DHCP)", "tests/process/links.rs"),
    ("packets get lost on a link", "tests/process/links.rs"),
    ("one of three devices shows less than was completed on it", "sbd/core/tests/lifeline/own_place.rs"),
    ("one of three devices has lost the newest view or its body when a node starts", "cluster/src/look.rs"),
    ("a node's reads come late, its writes do not", "cluster/core/src/membership/tests.rs"),
    ("the only device shows less than was completed, or what nobody here wrote", "sbd/core/tests/lifeline/own_place.rs"),
    ("stock `sbd create` over a live device", "tests/process/real_faults.rs"),
    ("`deadbolt format` over a live device", "tests/process/bad_input.rs"),
    ("format interrupted", "tests/parsers/tests"),
    ("wall clocks jump", "tests/simulator/tests"),
];

#[test]
fn every_row_of_the_failure_table_is_shown() {
    let page = fs::read_to_string(root().join("docs/failures.md")).unwrap();
    let table = page.split("## A fence by sbd").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what happens"));
    let rows: BTreeSet<&str> = rows.filter_map(|line| line.split(" | ").next()).map(|cell| cell.trim_start_matches("| ")).collect();
    let texts = transcripts();
    let shown: BTreeSet<&str> =
        texts.values().filter_map(|text| text.lines().next()).map(|line| line.trim_start_matches("# row: ")).collect();
    for row in &shown {
        assert!(rows.contains(row), "a transcript shows a row that docs/failures.md has not: {row}");
    }
    for (row, place) in SHOWN_ELSEWHERE {
        assert!(rows.contains(row), "docs/failures.md has no row {row}");
        assert!(root().join(place).exists(), "{place} is not there");
    }
    let missing: Vec<&&str> =
        rows.iter().filter(|row| !shown.contains(**row) && !SHOWN_ELSEWHERE.iter().any(|(known, _)| known == *row)).collect();
    assert!(missing.is_empty(), "no transcript and no test for: {missing:#?}");
}

#[test]
fn every_row_about_fences_and_under_corosync_names_a_test_that_is_there() {
    let page = fs::read_to_string(root().join("docs/failures.md")).unwrap();
    for (section, least) in [("## A fence by sbd", 20), ("## The quorum disk under corosync", 8)] {
        let table = page.split(section).nth(1).unwrap().split("\n## ").next().unwrap();
        let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what goes wrong")).collect();
        assert!(rows.len() > least, "{section}");
        for row in rows {
            let names: Vec<&str> = row.rsplit(" | ").next().unwrap().split('`').collect();
            let [_, file, _, test, _] = names[..] else { panic!("{row}") };
            let text = fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(text.contains(&format!("fn {test}()")), "{file} has no test {test}");
        }
    }
}
