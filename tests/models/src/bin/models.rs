//! What: runs every model to its full horizon and prints one line per case.
//! Owns: nothing; the cases belong to their modules.
//! Invariants: exit 0 only when every verdict is the expected one.
//! Does not: write files.
//! Called by: `cargo xtask models [FILTER]`.

#![allow(clippy::print_stdout, clippy::print_stderr)] // A program for a person's terminal.

use std::io::Write;
use std::process::ExitCode;

use deadbolt_models::{Case, Scale, all_cases};

fn main() -> ExitCode {
    let mut scale = Scale::Full;
    let mut filter = String::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--full" => scale = Scale::Full,
            "--quick" => scale = Scale::Quick,
            "--help" | "-h" => {
                println!("usage: models [--full | --quick] [FILTER]");
                return ExitCode::SUCCESS;
            }
            other if other.starts_with('-') => {
                eprintln!("models: unknown option {other}; try --help");
                return ExitCode::from(2);
            }
            other => other.clone_into(&mut filter),
        }
    }
    run(&all_cases(), scale, &filter)
}

/// A closed pipe (`| head`) ends the text, not the searches: the exit code still counts.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn run(cases: &[Case], scale: Scale, filter: &str) -> ExitCode {
    let mut wrong = 0usize;
    let mut ran = 0usize;
    for case in cases.iter().filter(|case| case.name.contains(filter)) {
        ran += 1;
        match case.judge(scale) {
            Ok(line) => say(&format!("ok    {line}")),
            Err(why) => {
                wrong += 1;
                say(&format!("WRONG {why}"));
            }
        }
    }
    say(&format!("{ran} cases, {wrong} wrong"));
    if wrong == 0 && ran > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
