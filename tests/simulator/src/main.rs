//! What: the program `deadbolt-sim`.
//! Owns: nothing.
//! Invariants: none.
//! Does not: simulate; the library does.
//! Called by: people.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(deadbolt_simulator::program::main_from(std::env::args_os().skip(1)))
}
