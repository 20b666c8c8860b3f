//! The program `fsck-deadbolt`.
use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(deadbolt_fsck::main_from(std::env::args_os().skip(1)))
}
