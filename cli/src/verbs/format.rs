//! What: `deadbolt format`.
//! Owns: its arguments and its report.
//! Invariants: what would be lost is named before anything is written.
//! Does not: judge the device (the library does).
//! Called by: the verbs.

use super::{EXIT_OK, TimingWishes};
use crate::format::{FormatOptions, FormatReport, format};
use anyhow::Result;
use clap::Args;
use deadbolt_cluster_core::timing::derive;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct FormatArguments {
    /// One device, or three that vote by majority
    #[arg(required = true, num_args = 1..=3)]
    devices: Vec<PathBuf>,
    /// Name of the cluster
    #[arg(long)]
    cluster: String,
    /// How many nodes the cluster will have
    #[arg(long, default_value_t = 2)]
    nodes: u16,
    /// Places for nodes reserved on the device
    #[arg(long, default_value_t = 32)]
    slots: u16,
    #[command(flatten)]
    times: TimingWishes,
    /// Say what would happen and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Overwrite what the device carries
    #[arg(long)]
    force: bool,
    /// Overwrite a cluster that lives: its uuid, typed
    #[arg(long, value_name = "UUID")]
    force_live: Option<String>,
}

pub(super) fn run(arguments: &FormatArguments) -> Result<u8> {
    let timings = derive(&arguments.times.wishes())?;
    let report = format(&FormatOptions {
        devices: arguments.devices.clone(),
        cluster: arguments.cluster.clone(),
        nodes: arguments.nodes,
        slots: arguments.slots,
        timings,
        is_dry_run: arguments.dry_run,
        is_forced: arguments.force,
        force_live: arguments.force_live.clone(),
    })?;
    print_report(&report);
    Ok(EXIT_OK)
}

pub(super) fn print_report(report: &FormatReport) {
    let verb = if report.is_dry_run { "would write" } else { "wrote" };
    for device in &report.devices {
        for lost in &device.lost {
            say!("{}: {} {}", device.path.display(), if report.is_dry_run { "would be lost:" } else { "lost:" }, lost.description);
        }
        say!(
            "{}: {verb} cluster {} ({}), {} slots, {} KiB of {} KiB, sectors of {} bytes",
            device.path.display(),
            report.name,
            report.cluster,
            report.slots,
            device.used_bytes / 1024,
            device.size_bytes / 1024,
            device.sector_bytes
        );
    }
}
