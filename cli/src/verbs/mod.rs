//! What: the verbs of `deadbolt` and their arguments.
//! Owns: the command line's shape, the exit codes.
//! Invariants: one verb, one module.
//! Does not: hold logic of its own.
//! Called by: `main_from`.

mod attach;
mod bench;
mod change;
mod fence;
mod format;
mod init;
mod join;
mod lock;
mod locks;
mod lockspaces;
mod node;
mod status;
mod timing;
mod why;

use crate::demo;
use clap::{Args, Parser, Subcommand};
use deadbolt_cluster::config::{DEFAULT_DIRECTORY, NodeDirectory};
use deadbolt_cluster_core::timing::{Wishes, driver};
use deadbolt_dlm::Mode;
use std::{ffi::OsString, path::PathBuf};

/// Success.
pub const EXIT_OK: u8 = 0;
/// It did not work; the reason is on standard error.
pub const EXIT_FAILED: u8 = 1;
/// `status`: no daemon answers.
pub const EXIT_NO_DAEMON: u8 = 2;
/// `lock`: not granted.
pub const EXIT_NOT_GRANTED: u8 = 121;
/// `lock`: the lock was lost and the command ended.
pub const EXIT_LOST: u8 = 122;
/// `lock`: no quorum or no daemon.
pub const EXIT_NO_QUORUM: u8 = 123;
/// `lock`: the command was not well; it was ended and the lock given back.
pub const EXIT_UNWELL: u8 = 124;
/// Wrong usage.
pub const EXIT_USAGE: u8 = 125;
/// `lock`: the command cannot be run.
pub const EXIT_CANNOT_RUN: u8 = 126;
/// `lock`: the command was not found.
pub const EXIT_NOT_FOUND: u8 = 127;

/// Share one disk safely between a few machines.
#[derive(Debug, Parser)]
#[command(name = "deadbolt", version, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write an empty cluster onto a device
    Format(format::FormatArguments),
    /// Begin a cluster: format if needed, add this node as the first member, print the key
    Init(init::InitArguments),
    /// Add this node to a cluster
    Join(join::JoinArguments),
    /// Start this node
    Start(node::StartArguments),
    /// Leave the view and stop this node
    Stop(node::StopArguments),
    /// Stop this node and give up its place in the cluster
    Leave(node::LeaveArguments),
    /// Take a node that is gone for good out of the configuration
    Remove(node::RemoveArguments),
    /// Give a node another name, other votes or addresses, or the disk other votes, while the cluster runs
    Change(change::ChangeArguments),
    /// Show the cluster as this node sees it; exit 0 quorate, 1 not, 2 no daemon
    Status(status::StatusArguments),
    /// Show the last views and fences with their evidence, from the disk alone
    Why(why::WhyArguments),
    /// Run a command while holding a lock
    Lock(lock::LockArguments),
    /// List locks: who holds, who waits, since when, for whom
    Locks(locks::LocksArguments),
    /// List lockspaces: who uses them, how much of them is here, what stops them
    Lockspaces(lockspaces::LockspacesArguments),
    /// End a node; success only with evidence
    Fence(fence::FenceArguments),
    /// Show every time of the cluster and where it comes from
    Timing(timing::TimingArguments),
    /// Attach a file or a disk over iSCSI as a block device
    Attach(attach::AttachArguments),
    /// Detach a device that `attach` made
    Detach(attach::DetachArguments),
    /// Check a device (also installed as fsck.deadbolt)
    Fsck(PassedOn),
    /// Watch three nodes share a disk, lose their network and a node, and lose no update; exit 0 only if everything held
    Demo(demo::DemoArguments),
    /// Measure how fast this is here, beside what the machine itself takes
    Bench(bench::BenchArguments),
    /// Simulate whole clusters under faults, by seeds (the program deadbolt-sim); touches no disk and no network
    Sim(PassedOn),
    #[command(hide = true)]
    BenchWorker(bench::BenchWorkerArguments),
    #[command(hide = true)]
    DemoWorker(demo::worker::WorkerArguments),
    #[command(hide = true)]
    DemoRelay(deadbolt_trial::relay::RelayArguments),
    #[command(hide = true)]
    Torture(deadbolt_torture::TortureArguments),
}

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
struct PassedOn {
    /// Arguments of that program; --help lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Which node.
#[derive(Clone, Debug, Args)]
pub struct NodeArguments {
    /// Directory of the node
    #[arg(long, default_value = DEFAULT_DIRECTORY)]
    pub dir: PathBuf,
}

impl NodeArguments {
    /// The node's directory.
    #[must_use]
    pub fn directory(&self) -> NodeDirectory {
        NodeDirectory(std::path::absolute(&self.dir).unwrap_or_else(|_| self.dir.clone()))
    }
}

/// The times an administrator may set.
#[derive(Clone, Debug, Args)]
pub struct TimingWishes {
    /// How long a storage stall to tolerate; everything else follows [default: 5s]
    #[arg(long, value_parser = parse_time)]
    pub stall: Option<u32>,
    /// Interval of beats [default: a tenth of the stall, at most 250ms]
    #[arg(long, value_parser = parse_time)]
    pub poll: Option<u32>,
    /// Time to ask of the watchdog [default: 2s, 1s below a stall of 2s]
    #[arg(long, value_parser = parse_time)]
    pub watchdog_time: Option<u32>,
    /// D: how long a command may still act at the storage after its node's reset [default: 500ms]
    #[arg(long, value_parser = parse_time)]
    pub storage_delay: Option<u32>,
    /// F: how long all nodes together may outlive the loss of the disk; 0 turns it off [default: 60s]
    #[arg(long, value_parser = parse_time)]
    pub freeze: Option<u32>,
    /// Watchdog driver whose lateness is assumed: process, softdog, i6300esb, iTCO_wdt; others count as 1 s late [default: process]
    #[arg(long)]
    pub driver: Option<String>,
}

impl TimingWishes {
    /// Was nothing said?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let times = [self.stall, self.poll, self.watchdog_time, self.storage_delay, self.freeze];
        times.iter().all(Option::is_none) && self.driver.is_none()
    }

    /// As the derivation wants them.
    #[must_use]
    pub fn wishes(&self) -> Wishes {
        Wishes {
            stall_ms: self.stall.unwrap_or(5000),
            poll_ms: self.poll,
            watchdog_ms: self.watchdog_time,
            storage_delay_ms: self.storage_delay,
            freeze_ms: self.freeze,
            driver: driver(self.driver.as_deref().unwrap_or("process")),
        }
    }
}

/// Reads a time such as `500ms`, `5s` or `2m`; returns ms.
///
/// # Errors
/// What is wrong with it.
pub fn parse_time(text: &str) -> Result<u32, String> {
    let digits = text.len() - text.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().map_err(|_| format!("{text:?} is not a time; write for example 500ms, 5s or 2m"))?;
    let factor = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        _ => return Err(format!("{text:?} has the unit {unit:?}; use ms, s or m")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too long"))
}

/// Reads a mode by its name.
fn parse_mode(text: &str) -> Result<Mode, String> {
    let mut known = deadbolt_dlm::MODES.into_iter();
    known.find(|mode| mode.name().eq_ignore_ascii_case(text)).ok_or_else(|| format!("{text:?} is not a mode; use NL, CR, CW, PR, PW or EX"))
}

/// Runs a verb; prints what failed.
#[must_use]
pub fn run(arguments: Arguments) -> u8 {
    let wants_json = arguments.verb.wants_json();
    let result = match arguments.verb {
        Verb::Format(arguments) => format::run(&arguments),
        Verb::Init(arguments) => init::run(&arguments),
        Verb::Join(arguments) => join::run(&arguments),
        Verb::Start(arguments) => node::start(&arguments),
        Verb::Stop(arguments) => node::stop(&arguments),
        Verb::Leave(arguments) => node::leave(&arguments),
        Verb::Remove(arguments) => node::remove(&arguments),
        Verb::Change(arguments) => change::run(&arguments),
        Verb::Status(arguments) => Ok(status::run(&arguments)),
        Verb::Why(arguments) => why::run(&arguments),
        Verb::Lock(arguments) => Ok(lock::run(&arguments)),
        Verb::Locks(arguments) => locks::run(&arguments),
        Verb::Lockspaces(arguments) => lockspaces::run(&arguments),
        Verb::Fence(arguments) => fence::run(&arguments),
        Verb::Timing(arguments) => timing::run(&arguments),
        Verb::Attach(arguments) => attach::attach(&arguments),
        Verb::Detach(arguments) => attach::detach(&arguments),
        Verb::Fsck(arguments) => return deadbolt_fsck::main_from(arguments.arguments),
        Verb::Sim(arguments) => return deadbolt_simulator::program::main_from(arguments.arguments),
        Verb::Bench(arguments) => bench::run(arguments),
        Verb::BenchWorker(arguments) => bench::run_worker(&arguments),
        Verb::Demo(arguments) => return demo::run(&arguments),
        Verb::DemoWorker(arguments) => demo::worker::run(&arguments),
        Verb::DemoRelay(arguments) => deadbolt_trial::relay::run(&arguments).map(|()| EXIT_OK),
        Verb::Torture(arguments) => deadbolt_torture::torture(arguments),
    };
    result.unwrap_or_else(|error| {
        let text = deadbolt_cluster::program::explain(&error);
        if wants_json {
            say!("{}", serde_json::json!({ "ok": false, "error": text }));
        } else {
            eprintln!("deadbolt: {text}");
        }
        EXIT_FAILED
    })
}

/// Text from outside as one line that does nothing to a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|letter| if letter.is_control() { letter.escape_default().collect::<Vec<char>>() } else { vec![letter] })
        .collect()
}

impl Verb {
    /// Verbs whose answer was asked for as one JSON object also fail as one.
    fn wants_json(&self) -> bool {
        match self {
            Self::Why(arguments) => arguments.json,
            Self::Locks(arguments) => arguments.json,
            Self::Lockspaces(arguments) => arguments.json,
            Self::Fence(arguments) => arguments.json,
            Self::Bench(arguments) => arguments.wants_json(),
            _ => false,
        }
    }
}

/// Milliseconds as people read them.
#[must_use]
pub fn seconds(time_ms: u64) -> String {
    if time_ms < 1000 { format!("{time_ms} ms") } else { format!("{}.{} s", time_ms / 1000, time_ms % 1000 / 100) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(printable("a\tb\u{1b}[31m"), "a\\tb\\u{1b}[31m");
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("250ms"), Ok(250));
        assert_eq!(parse_time("5s"), Ok(5000));
        assert_eq!(parse_time("2m"), Ok(120_000));
        assert_eq!(parse_time("7"), Ok(7000));
        for bad in ["", "s", "5h", "-1s", "99999999999s", "4294967295s"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
