//! What: `deadbolt attach loop FILE` and `deadbolt detach DEVICE`.
//! Owns: their arguments.
//! Invariants: the device is printed only after direct I/O was verified.
//! Does not: know the loop ioctls (the disk package does).
//! Called by: the verbs.

use super::EXIT_OK;
use anyhow::Result;
use clap::{Args, ValueEnum};
use deadbolt_disk::{Detached, LoopOptions, attach_loop, detach_loop};
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// A file through the kernel's loop driver
    Loop,
}

#[derive(Debug, Args)]
pub(super) struct AttachArguments {
    /// What kind of device
    kind: Kind,
    /// The file
    file: PathBuf,
    /// Sector size to present
    #[arg(long, default_value_t = 512)]
    sector_bytes: u32,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
}

#[derive(Debug, Args)]
pub(super) struct DetachArguments {
    /// The device
    device: PathBuf,
}

pub(super) fn attach(arguments: &AttachArguments) -> Result<u8> {
    let Kind::Loop = arguments.kind;
    let options = LoopOptions { read_only: arguments.read_only, sector_bytes: arguments.sector_bytes, autoclear: false };
    let device = attach_loop(&arguments.file, options)?;
    say!("{}", device.path().display());
    Ok(EXIT_OK)
}

pub(super) fn detach(arguments: &DetachArguments) -> Result<u8> {
    match detach_loop(&arguments.device)? {
        Detached::Now => say!("{}: detached", arguments.device.display()),
        Detached::WhenClosed => say!("{}: still in use, detached with its last user", arguments.device.display()),
    }
    Ok(EXIT_OK)
}
