//! What: `deadbolt bench`: how fast this is here, beside what the machine itself takes.
//! Owns: the form of the output, the exit code.
//! Invariants: exit 0 only if everything that can be measured here was.
//! Does not: measure.
//! Called by: the verbs.

use super::{EXIT_FAILED, EXIT_OK};
use anyhow::Result;
use clap::{Args, Subcommand};
use deadbolt_bench::{Choice, locks, sheet::Sheet, work};
use std::path::PathBuf;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArguments {
    #[command(subcommand)]
    what: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// The lock manager: floors, the service alone, nodes and their clients
    Locks(LocksArguments),
}

#[derive(Debug, Args)]
struct LocksArguments {
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// A tenth of the size in two rounds, to see that everything runs; not for figures
    #[arg(long)]
    quick: bool,
    /// Only rows whose names contain this, and their floors
    #[arg(long)]
    only: Option<String>,
    /// Nodes run the separate programs of this folder, as packages install them, instead of this program
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// Arguments of the hidden verb that is a process of a benchmark.
#[derive(Debug, Args)]
pub(super) struct BenchWorkerArguments {
    order: String,
}

impl BenchArguments {
    /// The answer was asked for as one JSON object.
    #[must_use]
    pub(super) fn wants_json(&self) -> bool {
        match &self.what {
            Benchmark::Locks(arguments) => arguments.json,
        }
    }
}

/// Runs a benchmark.
///
/// # Errors
/// No row has the wanted name.
pub(super) fn run(arguments: BenchArguments) -> Result<u8> {
    let wants_json = arguments.wants_json();
    let Benchmark::Locks(arguments) = arguments.what;
    if cfg!(debug_assertions) {
        eprintln!("deadbolt: built without optimisation: these are no figures; use --release");
    }
    let choice = Choice { is_quick: arguments.quick, only: arguments.only, programs: arguments.programs };
    let sheet = locks(choice, |round, case| eprintln!("round {round}: {case}"))?;
    Ok(show(&sheet, wants_json))
}

fn show(sheet: &Sheet, wants_json: bool) -> u8 {
    say!("{}", sheet.text(wants_json));
    if sheet.failed.is_empty() { EXIT_OK } else { EXIT_FAILED }
}

/// Does what the benchmark that started this process wants.
///
/// # Errors
/// It could not be measured.
pub(super) fn run_worker(arguments: &BenchWorkerArguments) -> Result<u8> {
    say!("{}", work(&arguments.order)?);
    Ok(EXIT_OK)
}
