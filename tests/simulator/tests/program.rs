//! The built program: exit codes, and that its replay line replays.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

/// Exit code and standard output of a command line.
fn ran(line: &str) -> (i32, String) {
    let mut words = line.split('#').next().unwrap().split_whitespace();
    assert_eq!(words.next(), Some("deadbolt-sim"));
    let output = Command::new(env!("CARGO_BIN_EXE_deadbolt-sim")).args(words).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

fn after<'a>(text: &'a str, word: &str) -> &'a str {
    text.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_else(|| panic!("no {word:?} in {text}"))
}

#[test]
fn the_replay_line_of_a_run_replays_it() {
    let (code, text) = ran("deadbolt-sim --seed 3 --calm --set safety_s=5 --set fault_gap_ms=500 --set crash=1 --faults 2");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("fault 2: ") && !text.contains("fault 1: "), "{text}");
    let line = after(&text, "replay: ");
    assert!(line.contains("--faults 2"), "{line}");
    let (_, again) = ran(line);
    assert_eq!(after(&text, "hash "), after(&again, "hash "));
}

#[test]
fn many_seeds_are_summed_up_as_text_and_as_json() {
    let line = "deadbolt-sim --seeds 3 --calm --set safety_s=2 --twice";
    let (code, text) = ran(line);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("3 runs, 0 broke a promise") && text.contains("events per second"), "{text}");
    let (code, text) = ran(&format!("{line} --json"));
    let object: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &object["runs"], &object["held"]), (0, &3.into(), &true.into()));
    assert_eq!(object["failing"].as_array().unwrap().len(), 0);
}

#[test]
fn wrong_usage_is_told_from_a_broken_promise() {
    assert_eq!(ran("deadbolt-sim").0, 2);
    assert_eq!(ran("deadbolt-sim --seed 1 --set nodes=99").0, 2);
    let (code, text) = ran("deadbolt-sim --list-options");
    assert_eq!(code, 0);
    assert!(text.contains("fault_gap_ms"), "{text}");
}
