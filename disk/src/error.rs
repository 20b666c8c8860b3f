//! What: what can go wrong with a device.
//! Owns: the wording of each error: what was found, why it is refused, what to do.
//! Invariants: every error carries the values that it speaks of.
//! Does not: decide whether to try again.
//! Called by: everybody who opens or drives a device.

use std::fmt;
use std::path::PathBuf;

/// Which way an operation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the device.
    Read,
    /// To the device.
    Write,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// Why one operation on a device failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The kernel or the device refused.
    #[error("{direction} of {bytes} bytes at offset {offset} failed: {}; check the path to the device", std::io::Error::from_raw_os_error(*errno))]
    Os {
        /// Read or write.
        direction: Direction,
        /// Byte offset on the device.
        offset: u64,
        /// Length of the operation.
        bytes: usize,
        /// The kernel's error number.
        errno: i32,
    },
    /// Fewer bytes were moved than asked for: the device is shorter than it was when it was opened.
    #[error("{direction} at offset {offset} moved {moved} of {bytes} bytes; the device has shrunk or been replaced: open it again")]
    Short {
        /// Read or write.
        direction: Direction,
        /// Byte offset on the device.
        offset: u64,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes moved.
        moved: usize,
    },
    /// Not on sector boundaries; nothing was issued.
    #[error("{direction} of {bytes} bytes at offset {offset} is not a whole number of {sector_bytes} byte sectors; nothing was done")]
    Misaligned {
        /// Read or write.
        direction: Direction,
        /// Byte offset on the device.
        offset: u64,
        /// Length of the operation.
        bytes: usize,
        /// Logical sector of the device.
        sector_bytes: u32,
    },
    /// Past the end of the device; nothing was issued.
    #[error("{direction} of {bytes} bytes at offset {offset} lies beyond the device's {size_bytes} bytes; nothing was done")]
    OutOfRange {
        /// Read or write.
        direction: Direction,
        /// Byte offset on the device.
        offset: u64,
        /// Length of the operation.
        bytes: usize,
        /// Size of the device.
        size_bytes: u64,
    },
    /// A write to a device that was opened for reading, or is read-only; nothing was issued.
    #[error("write at offset {offset} refused: the device is read-only or was opened for reading")]
    ReadOnly {
        /// Byte offset on the device.
        offset: u64,
    },
    /// The device does not return what it was given; nothing was issued.
    #[error("{outstanding} operations have not come back from the device, no more are taken; the device hangs, or is far too slow")]
    TooMany {
        /// Operations that have not come back.
        outstanding: usize,
    },
    /// The engine itself has failed; nothing was issued.
    #[error("the I/O engine has failed ({reason}), nothing was issued; open the device again")]
    EngineFailed {
        /// What the kernel said.
        reason: String,
    },
}

/// Why a device cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The system call failed.
    #[error("{} cannot be opened: {source}", path.display())]
    Open {
        /// The path as given.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Neither a block device nor a regular file.
    #[error("{} is a {found}, not a block device or a regular file; give the path of the shared disk", path.display())]
    NotADevice {
        /// The path as given.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The file system cannot do direct I/O.
    #[error("{} lies on a file system ({file_system}) without direct I/O: what other nodes write would not be seen; use a block device, or a file on ext4 or xfs", path.display())]
    NoDirectIo {
        /// The path as given.
        path: PathBuf,
        /// Name or magic of the file system.
        file_system: String,
    },
    /// Sectors of a size that the format does not fit.
    #[error("{} has logical sectors of {found} bytes; only 512 and 4096 are supported", path.display())]
    SectorSize {
        /// The path as given.
        path: PathBuf,
        /// Size found.
        found: u64,
    },
    /// Writing was asked for and the device is read-only.
    #[error("{} is read-only; make it writable (blockdev --setrw), or open it for checking only", path.display())]
    ReadOnly {
        /// The path as given.
        path: PathBuf,
    },
    /// No bytes at all.
    #[error("{} is empty (0 bytes): no medium, a detached loop device, or a file that was never given a size", path.display())]
    Empty {
        /// The path as given.
        path: PathBuf,
    },
    /// A probing system call failed.
    #[error("{}: probing {what} failed: {source}", path.display())]
    Probe {
        /// The path as given.
        path: PathBuf,
        /// Which property.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The device did not answer in the time given.
    #[error("{} did not answer within {waited_ms} ms: the path to the device hangs", path.display())]
    NoAnswer {
        /// The path as given.
        path: PathBuf,
        /// How long it was waited for.
        waited_ms: u64,
    },
}

/// Why an engine cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No thread could be made.
    #[error("no thread for the I/O engine: {source}; raise the limit of processes (ulimit -u)")]
    Thread {
        /// What the kernel said.
        source: std::io::Error,
    },
    /// io_uring was demanded and cannot be used.
    #[error("io_uring cannot be used here: {reason}; choose the thread back end")]
    IoUringRefused {
        /// Why.
        reason: String,
    },
}
