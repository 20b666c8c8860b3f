//! What: the front door: one command, all verbs.
//! Owns: the command line, the texts that people read, the exit codes of docs/exit-codes.md.
//! Invariants: success is printed only after its effect was seen.
//! Does not: decide anything about membership or locks.
//! Called by: the program `deadbolt`, which also runs every other program under its name.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what a command line is for")]

#[macro_use]
pub mod say;
pub mod demo;
pub mod format;
pub mod verbs;

use clap::Parser;
use std::{ffi::OsString, path::Path};

/// Runs `deadbolt`, or the program whose name it was started under; returns the exit code.
#[must_use]
pub fn main_from(arguments: Vec<OsString>) -> u8 {
    let name = arguments.first().map(|argument| Path::new(argument).file_name().unwrap_or_default().to_os_string()).unwrap_or_default();
    match name.to_str() {
        Some("deadboltd") => return deadbolt_cluster::program::main_from(arguments),
        Some("sbd") => return deadbolt_sbd::main_from(arguments),
        Some("deadbolt-qdevice") => return deadbolt_qdevice::main_from(arguments),
        Some("fence_deadbolt") => return deadbolt_sbd::agent::main_from(arguments),
        Some("fsck-deadbolt" | "fsck.deadbolt") => return deadbolt_fsck::main_from(arguments.into_iter().skip(1)),
        Some("deadbolt-sim") => return deadbolt_simulator::program::main_from(arguments.into_iter().skip(1)),
        _ => {}
    }
    end_with_the_reader();
    match verbs::Arguments::try_parse_from(arguments) {
        Ok(arguments) => verbs::run(arguments),
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() { verbs::EXIT_USAGE } else { 0 }
        }
    }
}

/// `deadbolt why | head` ends quietly, as other commands do.
fn end_with_the_reader() {
    // SAFETY: the default action of a signal runs no code of ours.
    let _ = unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGPIPE, nix::sys::signal::SigHandler::SigDfl) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_programs_run_under_their_names_and_verbs() {
        // Wrong usage: 125 of the front door, 2 of the simulator, 16 of the checker, 2 of the quorum device, 1 of the fence agent.
        for (line, code) in [
            ("deadbolt nothing", 125),
            ("deadbolt sim", 2),
            ("/usr/bin/deadbolt-sim", 2),
            ("deadbolt sim --list-options", 0),
            ("deadbolt sim --help", 0),
            ("deadbolt fsck", 16),
            ("/sbin/fsck.deadbolt", 16),
            ("/usr/sbin/deadbolt-qdevice nothing", 2),
            ("/usr/sbin/fence_deadbolt -o metadata", 0),
            ("/usr/sbin/fence_deadbolt -o nothing", 1),
        ] {
            assert_eq!(main_from(line.split(' ').map(OsString::from).collect()), code, "{line}");
        }
    }
}
