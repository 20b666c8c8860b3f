//! What: the quorum disk as the quorum device of an existing corosync 3 cluster.
//! Owns: the command line, the exit codes, the words that people read.
//! Invariants: settings under which two sides could have quorum are refused before anything is registered or written.
//! Does not: decide who gets the votes; the machine in `core/` does.
//! Called by: the program `deadbolt-qdevice`, and `deadbolt` under that name.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a service manager's log and a person's terminal")]

mod configuration;
mod guard;
mod run;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use configuration::Configured;
use deadbolt_corosync::{CallFailed, Corosync};
use deadbolt_disk::Access;
use deadbolt_disk_format::{NodeState, SlotIndex, WatchdogKind};
use deadbolt_qdevice_core::settings::Refusal;
use deadbolt_qdisk::devices::{self, ClusterDevice, DevicesError};

pub use deadbolt_qdevice_core as core;

/// docs/exit-codes.md.
const EXIT_OK: u8 = 0;
const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_REFUSED: u8 = 3;

/// The quorum device of a corosync cluster on a shared disk.
#[derive(Parser, Debug)]
#[command(name = "deadbolt-qdevice", version)]
struct Options {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Be the quorum device of this node, until TERM (the default)
    Run,
    /// Say whether corosync's settings and the device fit together; changes nothing
    Check,
}

/// Why the program does not run, or not on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// corosync's libraries are not here.
    #[error("{0}")]
    Libraries(String),
    /// corosync does not answer, or no longer.
    #[error("corosync cannot be asked: {0}")]
    Corosync(#[from] CallFailed),
    /// A setting is missing or cannot be read.
    #[error("corosync's {key}: {what}")]
    Setting {
        /// Which.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// The settings do not fit together.
    #[error("refused: {}", list(.0))]
    Refused(Vec<Refusal>),
    /// The device does not fit.
    #[error(transparent)]
    Device(#[from] DevicesError),
    /// The device is another cluster's.
    #[error("{path} belongs to cluster {found:?}, corosync's totem.cluster_name is {expected:?}: format it with `--cluster {expected}`")]
    AnotherCluster {
        /// The path.
        path: String,
        /// On the device.
        found: String,
        /// In corosync.
        expected: String,
    },
    /// Another program of ours has beaten there, and would take a beat in its slot for a copy of itself.
    #[error(
        "{path} is used by a node of Deadbolt or `sbd watch` (slot {slot}): give the quorum device a disk of its own, or format this one again"
    )]
    InUse {
        /// The path.
        path: String,
        /// Where.
        slot: SlotIndex,
    },
    /// A node has no slot.
    #[error("node {node} has no slot on the device: node ids must be from 1 to {slots}")]
    NoSlot {
        /// corosync's node id.
        node: u32,
        /// Slots of the device.
        slots: u16,
    },
    /// Another process is this node's device.
    #[error("another deadbolt-qdevice runs on this node: {0}")]
    Second(std::io::Error),
    /// Something that the operating system gives was refused.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The register never goes on.
    #[error("{0}")]
    Halted(String),
    /// A clean stop did not come to its end in time.
    #[error("stopped without recording *left*: corosync or the device did not answer in time")]
    NotLeft,
}

fn list(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl BridgeError {
    fn code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::AnotherCluster { .. } | Self::InUse { .. } | Self::NoSlot { .. } | Self::Setting { .. } => {
                EXIT_REFUSED
            }
            Self::Libraries(_)
            | Self::Corosync(_)
            | Self::Device(_)
            | Self::Second(_)
            | Self::System { .. }
            | Self::Halted(_)
            | Self::NotLeft => EXIT_FAILED,
        }
    }
}

/// Runs the program; answers its exit code.
#[must_use]
pub fn main_from(arguments: Vec<OsString>) -> u8 {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { EXIT_USAGE } else { EXIT_OK };
        }
    };
    let done = match options.verb.unwrap_or(Verb::Run) {
        Verb::Run => run(),
        Verb::Check => check(),
    };
    match done {
        Ok(()) => EXIT_OK,
        Err(error) => {
            eprintln!("deadbolt-qdevice: {error}");
            error.code()
        }
    }
}

/// Nodes have a watchdog, and a watcher has no daemon.
fn is_of_a_quorum_device(watchdog: WatchdogKind, state: NodeState) -> bool {
    watchdog == WatchdogKind::None && state != NodeState::None
}

/// The device that corosync's configuration names.
fn open(configured: &Configured, access: Access) -> Result<ClusterDevice, BridgeError> {
    let mut devices = devices::open(&[PathBuf::from(&configured.path)], access)?;
    let Some(device) = devices.pop() else { unreachable!("one path gives one device or an error") };
    let (found, expected) = (device.superblock.name.clone(), configured.cluster.clone());
    if found != expected {
        return Err(BridgeError::AnotherCluster { path: configured.path.clone(), found, expected });
    }
    if let Some(beat) = device.beats()?.into_iter().find(|beat| !is_of_a_quorum_device(beat.watchdog, beat.daemon.state)) {
        return Err(BridgeError::InUse { path: configured.path.clone(), slot: beat.slot });
    }
    let slots = device.superblock.slots;
    match configured.nodes.iter().find(|node| node.number == 0 || node.number > u32::from(slots)) {
        Some(node) => Err(BridgeError::NoSlot { node: node.number, slots }),
        None => Ok(device),
    }
}

fn run() -> Result<(), BridgeError> {
    let calls = Corosync::load().map_err(BridgeError::Libraries)?;
    let configured = configuration::await_corosync(calls)?;
    let device = open(&configured, Access::ReadWrite)?;
    let rules = configured.found.rules(&device.superblock.timings).map_err(BridgeError::Refused)?;
    configured.found.remarks().iter().for_each(|remark| eprintln!("deadbolt-qdevice: {remark}"));
    run::run(calls, &configured, &device, rules)
}

fn check() -> Result<(), BridgeError> {
    let configured = configuration::read(Corosync::load().map_err(BridgeError::Libraries)?)?;
    let found = &configured.found;
    println!("token {} ms, consensus {} ms", found.token_ms, found.consensus_ms);
    println!("quorum.device.timeout {} ms, sync_timeout {} ms", found.timeout(), found.sync_timeout());
    println!("quorum.device.disk.interval {} ms, lease {} ms", found.interval(), found.lease());
    let device = open(&configured, Access::Read)?;
    println!("{}: cluster {}, lease {} ms", configured.path, device.superblock.name, device.superblock.timings.lease_ms);
    let rules = found.rules(&device.superblock.timings).map_err(BridgeError::Refused)?;
    println!("a silent node's votes are over {} ms after its last beat", rules.lease_ms + rules.outlive_ms);
    found.remarks().iter().for_each(|remark| println!("note: {remark}"));
    println!("the settings fit");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_with_beats_of_nodes_is_refused() {
        assert!(is_of_a_quorum_device(WatchdogKind::None, NodeState::Left));
        assert!(!is_of_a_quorum_device(WatchdogKind::Process, NodeState::Member));
        assert!(!is_of_a_quorum_device(WatchdogKind::Device, NodeState::None));
        assert!(!is_of_a_quorum_device(WatchdogKind::None, NodeState::None));
    }
}
