//! What: disks for tests: image files, loop devices over them, one disk that machines reach by two paths.
//! Owns: everything that it makes; a dropped value leaves nothing behind.
//! Invariants: a file of a test is on a file system with direct I/O if its folder is.
//! Does not: write to a disk.
//! Called by: tests and benchmarks of programs that use real block devices. Loop devices are for root.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use deadbolt_disk::{LoopDevice, LoopError, LoopOptions, attach_loop};
use tempfile::{NamedTempFile, TempPath};

use crate::hung_disk::HungDisk;

/// Size of a disk: the areas of a cluster and some.
pub const DISK_BYTES: u64 = 16 << 20;
/// How long others may have all loop devices.
const PATIENCE: Duration = Duration::from_secs(60);

/// An image file, removed on drop.
///
/// # Errors
/// The folder takes no file.
pub fn image(folder: &Path) -> io::Result<TempPath> {
    let file = NamedTempFile::new_in(folder)?;
    file.as_file().set_len(DISK_BYTES)?;
    Ok(file.into_temp_path())
}

/// A loop device over a file.
///
/// # Errors
/// No root, or no loop driver.
pub fn attach(file: &Path, sector_bytes: u32) -> Result<LoopDevice, LoopError> {
    let options = LoopOptions { sector_bytes, autoclear: true, ..LoopOptions::default() };
    let end = Instant::now() + PATIENCE;
    loop {
        match attach_loop(file, options) {
            // A machine has nodes for a few, and others have them for a while.
            Err(LoopError::NoNode { .. }) if Instant::now() < end => std::thread::sleep(Duration::from_millis(100)),
            result => return result,
        }
    }
}

/// One disk, two paths to it: its senders', and its victims', which can be made to hang or to fail.
#[derive(Debug)]
pub struct TwoPaths {
    /// The senders'.
    pub sender: LoopDevice,
    /// The victims'.
    pub victim: LoopDevice,
    /// What makes it hang.
    pub hung: HungDisk,
    _image: TempPath,
}

impl TwoPaths {
    /// A disk whose image is in this folder.
    ///
    /// # Errors
    /// No root, no FUSE, no loop driver.
    pub fn new_in(folder: &Path, sector_bytes: u32) -> io::Result<Self> {
        let image = image(folder)?;
        let hung = HungDisk::start(&image)?;
        let sender = attach(hung.other_path(), sector_bytes).map_err(io::Error::other)?;
        let victim = attach(hung.path(), sector_bytes).map_err(io::Error::other)?;
        Ok(Self { sender, victim, hung, _image: image })
    }
}
