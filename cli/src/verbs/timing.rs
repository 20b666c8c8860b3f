//! What: `deadbolt timing`.
//! Owns: the printed budget.
//! Invariants: the numbers are those of the one derivation, or of the device.
//! Does not: derive.
//! Called by: the verbs.

use super::{EXIT_OK, TimingWishes, seconds};
use anyhow::Result;
use clap::Args;
use deadbolt_cluster::{devices, look::newest_view_on};
use deadbolt_cluster_core::timing::{Budget, budget_crash, budget_partition, derive};
use deadbolt_disk::Access;
use deadbolt_disk_format::{Timings, ViewNumber};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct TimingArguments {
    /// Show the times of this device instead of those that would be derived
    #[arg(long)]
    device: Option<PathBuf>,
    #[command(flatten)]
    times: TimingWishes,
}

pub(super) fn run(arguments: &TimingArguments) -> Result<u8> {
    let timings = match &arguments.device {
        Some(_) if !arguments.times.is_empty() => {
            anyhow::bail!("--device shows the times of a device as they are; without it they are derived from --stall and the others")
        }
        Some(path) => of_device(path)?,
        None => derive(&arguments.times.wishes())?,
    };
    print(&timings);
    Ok(EXIT_OK)
}

fn of_device(path: &PathBuf) -> Result<Timings> {
    let devices = devices::open(std::slice::from_ref(path), Access::Read)?;
    let Some(device) = devices.first() else { anyhow::bail!("no device") };
    let view = newest_view_on(&devices)?;
    Ok(if view.view > ViewNumber(0) { view.configuration.timings } else { device.superblock.timings })
}

fn print(timings: &Timings) {
    let rows: [(&str, u32, String); 12] = [
        ("stall", timings.stall_ms, "set by you (--stall): a storage stall that harms nobody".into()),
        ("poll", timings.poll_ms, "min(250 ms, stall / 10)".into()),
        ("feed", timings.feed_ms, "interval of the feeding thread".into()),
        ("watchdog", timings.watchdog_ms, "2 s; 1 s below a stall of 2 s".into()),
        ("T", timings.reset_ms, format!("watchdog + lateness {} ms + drift", timings.lateness_ms)),
        ("L lease", timings.lease_ms, "stall + poll + 3 cycles + feed + 2 T - Tmin".into()),
        ("W expiry", timings.expiry_ms, "(L (1 + rho) + tick) / (1 - rho)".into()),
        ("D storage", timings.storage_delay_ms, "assumed (--storage-delay): how long a dead node's command may act".into()),
        ("F freeze", timings.freeze_ms, "set (--freeze): all lose the disk together".into()),
        ("detect", timings.detect_ms, "network silence after which an edge is gone".into()),
        ("cycle", timings.cycle_ms, "expected time of one beat and mailbox read".into()),
        ("rho", timings.drift_ppm, "bound of clock rate error, parts per million".into()),
    ];
    for (name, value, source) in rows {
        let value = if name == "rho" { format!("{value} ppm") } else { seconds(u64::from(value)) };
        say!("{name:<10} {value:>10}   {source}");
    }
    print_budget(&budget_crash(timings));
    print_budget(&budget_partition(timings));
}

fn print_budget(budget: &Budget) {
    say!("\nfailover when {}: {}", budget.case, seconds(budget.total_ms()));
    for line in &budget.lines {
        say!("  {:<16} {:>8}   {}", line.name, seconds(line.time_ms), line.source);
    }
}
