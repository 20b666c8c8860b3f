//! What: `bench-fence`: how soon a node is dead, how soon its sender knows, and what a watcher takes at rest; ours beside stock sbd.
//! Owns: the order of the cases, the form of the output, the exit code.
//! Invariants: exit 0 only if everything that can be measured here was; whatever ends a run, nothing of it runs on.
//! Does not: ship: it needs the helpers of the tests.
//! Called by: `cargo xtask bench fence`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a person's terminal")]

mod dead;
mod floors;
mod hung;
mod lab;
mod live;
mod rest;

use anyhow::Result;
use clap::Parser;
use deadbolt_bench::sheet::{self, Wishes};
use lab::{Bench, Whose};
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// Rounds of a measurement that counts.
const ROUNDS: usize = 5;

#[derive(Debug, Parser)]
#[command(about = "Fences and watchers of ours beside those of stock sbd")]
struct Arguments {
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// One round, to see that everything runs; not for figures
    #[arg(long)]
    quick: bool,
    /// Only rows whose names contain this, and their floors
    #[arg(long)]
    only: Option<String>,
    /// The folder of the separate sbd of ours
    #[arg(long)]
    programs: PathBuf,
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if cfg!(debug_assertions) {
        eprintln!("bench-fence: built without optimisation: these are no figures; use --release");
    }
    let (rounds, rest) = if arguments.quick { (1, Duration::from_secs(3)) } else { (ROUNDS, Duration::from_secs(20)) };
    let bench = Bench::prepare(&arguments.programs);
    // What rests is measured while nothing else runs, what sleeps side by side.
    let mut cases = vec![rest::case(&bench, Whose::Ours, rest), rest::case(&bench, Whose::Stock, rest)];
    cases.extend(floors::cases(&bench));
    for measure in [dead::case, live::case, hung::case] {
        cases.extend([Whose::Stock, Whose::Ours].map(|whose| measure(&bench, whose)));
    }
    let sheet = sheet::measure(cases, &Wishes { rounds, only: arguments.only }, |round, case| eprintln!("round {round}: {case}"))?;
    println!("{}", sheet.text(arguments.json));
    Ok(if sheet.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn main() -> ExitCode {
    deadbolt_tests::hung_disk::serve_if_asked();
    run(Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("bench-fence: {error:#}");
        ExitCode::FAILURE
    })
}
