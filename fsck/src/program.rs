//! What: the command line of `fsck-deadbolt`.
//! Owns: options, exit codes, what goes to which stream.
//! Invariants: exit codes are those of fsck(8): 0 clean, 4 errors left, 8 operational error, 16 usage.
//! Does not: check; see the library.
//! Called by: the program, and the front door under its `fsck` verb.

use crate::codes::CODES;
use crate::{CheckOptions, Source, check, code};
use clap::Parser;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

/// Something stopped the check.
const EXIT_OPERATIONAL: u8 = 8;
/// The command line was wrong.
const EXIT_USAGE: u8 = 16;

/// Check a Deadbolt device or an image of one; nothing is ever written.
#[derive(Debug, Parser)]
#[command(
    name = "fsck-deadbolt",
    version,
    after_help = "Exit codes: 0 clean, 4 errors found, 8 the device could not be checked, 16 wrong usage.\n\
                  A running cluster may be checked: what its nodes are writing is read three times.\n\
                  Example: fsck-deadbolt --json /dev/disk/by-id/wwn-0x5000"
)]
struct Arguments {
    /// Block device or image file.
    #[arg(required_unless_present = "explain")]
    device: Option<PathBuf>,
    /// One JSON object instead of lines.
    #[arg(long)]
    json: bool,
    /// Say what a finding means, or list all ("all").
    #[arg(long, value_name = "CODE", conflicts_with = "device")]
    explain: Option<String>,
    /// Change nothing; it never does. Taken for fsck(8).
    #[arg(short = 'n')]
    read_only: bool,
    /// Check even if it looks clean; it always does. Taken for fsck(8).
    #[arg(short = 'f')]
    force: bool,
    /// Check at boot: the same check. Taken for fsck(8).
    #[arg(short = 'a', short_alias = 'p')]
    automatic: bool,
}

/// Runs the program with the arguments behind its name; returns its exit code.
pub fn main_from<I, T>(arguments: I) -> u8
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let name = std::iter::once(OsString::from("fsck-deadbolt"));
    match Arguments::try_parse_from(name.chain(arguments.into_iter().map(Into::into))) {
        Ok(arguments) => run(&arguments),
        Err(error) => {
            let is_question = !error.use_stderr();
            // Nowhere to complain when even this cannot be printed.
            let _ = error.print();
            if is_question { 0 } else { EXIT_USAGE }
        }
    }
}

fn run(arguments: &Arguments) -> u8 {
    if let Some(wanted) = &arguments.explain {
        return explain(wanted);
    }
    let Some(path) = &arguments.device else { return EXIT_USAGE };
    let source = match Source::open(path) {
        Ok(source) => source,
        Err(error) => {
            if arguments.json {
                let object = serde_json::json!({ "device": path.display().to_string(), "verdict": "unreadable",
                    "exit": EXIT_OPERATIONAL, "error": error.to_string(), "findings": [] });
                show(&object.to_string());
            }
            complain(&format!("fsck-deadbolt: {error}"));
            return EXIT_OPERATIONAL;
        }
    };
    let report = check(&source, CheckOptions::default());
    let text = if arguments.json { report.json().to_string() } else { report.to_string() };
    if show(&text) { report.exit_code() } else { EXIT_OPERATIONAL }
}

fn explain(wanted: &str) -> u8 {
    if wanted.eq_ignore_ascii_case("all") {
        let lines: Vec<String> = CODES.iter().map(|code| format!("{}  {}", code.code, code.title)).collect();
        return if show(&lines.join("\n")) { 0 } else { EXIT_OPERATIONAL };
    }
    match code(wanted) {
        Some(code) => {
            let text = format!("{}: {} ({:?})\nTo do: {}", code.code, code.title, code.severity, code.advice);
            if show(&text) { 0 } else { EXIT_OPERATIONAL }
        }
        None => {
            complain(&format!("fsck-deadbolt: there is no finding {wanted:?}; --explain all lists them"));
            EXIT_USAGE
        }
    }
}

fn show(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}
fn complain(text: &str) {
    // Nowhere to complain when even this cannot be printed.
    let _ = writeln!(std::io::stderr(), "{text}");
}
