//! What: `deadbolt attach loop FILE`, `deadbolt attach iscsi://HOST/TARGET`, and `deadbolt detach DEVICE`.
//! Owns: their arguments.
//! Invariants: the device is printed only after direct I/O was verified.
//! Does not: know the loop ioctls or the initiator's tool (the disk package does).
//! Called by: the verbs.

use super::EXIT_OK;
use anyhow::Result;
use anyhow::bail;
use clap::Args;
use deadbolt_disk::{Detached, IscsiAddress, LoopOptions, attach_iscsi, attach_loop, detach_iscsi, detach_loop, is_iscsi};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct AttachArguments {
    /// `loop` for a file through the kernel's loop driver, or iscsi://HOST[:PORT]/TARGET[/LUN]
    #[arg(value_name = "loop|iscsi://...")]
    what: String,
    /// The file, for loop
    file: Option<PathBuf>,
    /// Sector size to present, for loop
    #[arg(long, default_value_t = 512)]
    sector_bytes: u32,
    /// Refuse writes, for loop
    #[arg(long)]
    read_only: bool,
}

#[derive(Debug, Args)]
pub(super) struct DetachArguments {
    /// The device
    device: PathBuf,
}

pub(super) fn attach(arguments: &AttachArguments) -> Result<u8> {
    let path = match (arguments.what.as_str(), &arguments.file) {
        ("loop", Some(file)) => {
            let options = LoopOptions { read_only: arguments.read_only, sector_bytes: arguments.sector_bytes, autoclear: false };
            attach_loop(file, options)?.path().to_path_buf()
        }
        ("loop", None) => bail!("attach loop: name the file"),
        (_, Some(file)) => {
            bail!("attach: {:?} needs no file, and {} was named; a file is attached by `attach loop`", arguments.what, file.display())
        }
        (address, None) => attach_iscsi(&address.parse::<IscsiAddress>()?)?,
    };
    say!("{}", path.display());
    Ok(EXIT_OK)
}

pub(super) fn detach(arguments: &DetachArguments) -> Result<u8> {
    if is_iscsi(&arguments.device) {
        let target = detach_iscsi(&arguments.device)?;
        say!("{}: detached, with every disk of the session with {target}", arguments.device.display());
        return Ok(EXIT_OK);
    }
    match detach_loop(&arguments.device)? {
        Detached::Now => say!("{}: detached", arguments.device.display()),
        Detached::WhenClosed => say!("{}: still in use, detached with its last user", arguments.device.display()),
    }
    Ok(EXIT_OK)
}
