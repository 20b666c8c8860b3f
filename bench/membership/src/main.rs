//! What: `bench-membership`: how soon a view is decided, how soon the others grant again after a cut or a death, what a node takes at rest.
//! Owns: the order of the cases, the form of the output, the exit code.
//! Invariants: exit 0 only if everything that can be measured here was; whatever ends a run, nothing of it runs on.
//! Does not: ship: it needs the helpers of the tests.
//! Called by: `cargo xtask bench membership`; by itself under other words: its nodes run this very program as the front door.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a person's terminal")]

mod bridge;
mod contend;
mod cut;
mod rest;

use anyhow::Result;
use clap::Parser;
use deadbolt_bench::sheet;
use std::{ffi::OsString, path::PathBuf, process::ExitCode};

/// Beginning of the directories' names; the next run sweeps what was left.
const PREFIX: &str = "deadbolt-bench-membership-";
/// Its name, by which it is the benchmark and not the front door.
const NAME: &str = "bench-membership";
/// Rounds of a measurement that counts.
const ROUNDS: usize = 20;

#[derive(Debug, Parser)]
#[command(about = "Views, partitions, deaths, nodes at rest; corosync with the quorum disk")]
struct Arguments {
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// One small round, to see that everything runs; not for figures
    #[arg(long)]
    quick: bool,
    /// Only rows whose names contain this, and their floors
    #[arg(long)]
    only: Option<String>,
    /// The folder of the separate programs
    #[arg(long)]
    programs: PathBuf,
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if cfg!(debug_assertions) {
        eprintln!("{NAME}: built without optimisation: these are no figures; use --release");
    }
    let programs = std::fs::canonicalize(&arguments.programs)?;
    let rounds = if arguments.quick { 1 } else { ROUNDS };
    let mut cases = vec![rest::case(&programs, arguments.quick)];
    cases.extend(contend::cases(arguments.quick));
    cases.extend(cut::cases(&programs));
    cases.push(bridge::case(&programs));
    let sheet = sheet::measure(cases, &sheet::Wishes { rounds, only: arguments.only }, |round, case| eprintln!("round {round}: {case}"))?;
    println!("{}", sheet.text(arguments.json));
    Ok(if sheet.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A verb, or another program's name.
fn is_front_door(arguments: &[OsString]) -> bool {
    let name = arguments.first().map(PathBuf::from).and_then(|path| path.file_name().map(OsString::from));
    let is_verb = arguments.get(1).is_some_and(|word| !word.to_string_lossy().starts_with('-'));
    is_verb || name.is_some_and(|name| name != NAME)
}

fn main() -> ExitCode {
    deadbolt_tests::qdevice::observe_if_asked();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if is_front_door(&arguments) {
        return ExitCode::from(deadbolt::main_from(arguments));
    }
    run(Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("{NAME}: {error:#}");
        ExitCode::FAILURE
    })
}
