//! What: a real cluster of three nodes under kill -9, with many client processes, and the judgement of what they wrote down.
//! Owns: the run's processes and files; docs/torture.md says what is checked.
//! Invariants: "held" is said only if every client ended as it was told, the device was found clean and no history proves a violation.
//! Does not: reach into a node: it kills processes, cuts a network and uses the front door's verbs.
//! Called by: the hidden verb `deadbolt torture`, which `cargo xtask torture` and a test start.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what a program for a person's terminal is for")]

mod area;
mod check;
mod client;
mod cluster;
mod crew;
mod faults;
mod history;
mod locks;
mod run;
mod work;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Arguments of `torture`.
#[derive(Debug, Args)]
pub struct TortureArguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// A whole run
    Run(run::RunArguments),
    /// Judge again what a run kept
    Check(run::CheckArguments),
    /// The clients of one node; started by the run
    Crew(crew::CrewArguments),
    /// One client; started by its crew
    Client(client::ClientArguments),
}

/// Runs one part; returns the exit code.
///
/// # Errors
/// What failed, where nothing could be judged.
pub fn torture(arguments: TortureArguments) -> Result<u8> {
    match arguments.part {
        Part::Run(arguments) => run::run(&arguments),
        Part::Check(arguments) => run::check(&arguments),
        Part::Crew(arguments) => crew::run(arguments),
        Part::Client(arguments) => client::run(&arguments).map(|()| 0),
    }
}
