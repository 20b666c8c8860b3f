//! What: loop devices: attach a file, with direct I/O proved, and detach.
//! Owns: the loop driver's control calls and their structures.
//! Invariants: a device is handed out only if the kernel says that it bypasses the page cache; else it is detached again.
//! Does not: create device nodes, or find out who else has the file open.
//! Called by: cli (attach, detach), demo, tests.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::device::{read_number, sysfs_of};

/// How often a free device is asked for when others take it first. Chosen: far above any real contention.
const TRIES: u32 = 64;
/// How long a detached device may take to go (udev looks at devices for a moment). Chosen, no strong reason.
const DETACH_PATIENCE: Duration = Duration::from_millis(500);

/// How a file is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopOptions {
    /// Writes are refused by the kernel.
    pub read_only: bool,
    /// Logical sector: 512 or 4096.
    pub sector_bytes: u32,
    /// The device goes with its last user, which is at the latest the [`LoopDevice`] itself.
    pub autoclear: bool,
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self { read_only: false, sector_bytes: 512, autoclear: false }
    }
}

/// An attached loop device. With autoclear it is detached when this and every other user has closed it.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _held: File,
}

impl LoopDevice {
    /// The device's path, `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Detaches it.
    ///
    /// # Errors
    /// [`LoopError::Detach`].
    pub fn detach(self) -> Result<Detached, LoopError> {
        let path = self.path.clone();
        drop(self);
        match detach_loop(&path) {
            // With autoclear, closing it above was enough.
            Err(LoopError::NotAttached { .. }) => Ok(Detached::Now),
            result => result,
        }
    }
}

/// What came of a detach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// The device is free.
    Now,
    /// Somebody has it open; it goes when the last one closes it.
    WhenClosed,
}

/// Why a loop device cannot be attached or detached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoopError {
    /// No access to the loop driver.
    #[error("/dev/loop-control cannot be opened: {source}; loop devices need root and, in a container, the device nodes")]
    NoControl {
        /// What the kernel said.
        source: io::Error,
    },
    /// The file cannot be opened.
    #[error("{} cannot be opened: {source}", path.display())]
    Backing {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel named a device for which there is no node.
    #[error("{} cannot be opened: {source}; the kernel has the loop device but its node is missing or closed to us", path.display())]
    NoNode {
        /// The node.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A sector size that the format does not fit.
    #[error("sectors of {found} bytes are not supported; choose 512 or 4096")]
    SectorSize {
        /// Size asked for.
        found: u32,
    },
    /// The file is not a whole number of sectors.
    #[error("{} has {size_bytes} bytes, which is not a whole, positive number of {sector_bytes} byte sectors; extend it (truncate --size)", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// Sector asked for.
        sector_bytes: u32,
    },
    /// The kernel refused to configure the device.
    #[error("{} cannot be attached to {}: {source}", file.display(), device.display())]
    Configure {
        /// The file.
        file: PathBuf,
        /// The loop device.
        device: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Others took every free device first.
    #[error("no free loop device in {tries} tries: others take them as fast as the kernel names them")]
    Contended {
        /// Tries made.
        tries: u32,
    },
    /// The kernel attached the file without what was asked for; it is detached again.
    #[error("{} cannot be driven with {what} (wanted {wanted}, the kernel gives {found}): its file system does not support direct I/O with {sector_bytes} byte sectors; use ext4 or xfs, or sectors of 4096", file.display())]
    NotAsAsked {
        /// The file.
        file: PathBuf,
        /// Which property.
        what: &'static str,
        /// Value asked for.
        wanted: u64,
        /// Value found.
        found: u64,
        /// Sector asked for.
        sector_bytes: u32,
    },
    /// A path that is no loop device; nothing was done.
    #[error("{} is not a loop device; nothing was detached", path.display())]
    NotALoop {
        /// The path as given.
        path: PathBuf,
    },
    /// A loop device without a file; nothing was done.
    #[error("{} has no file attached", path.display())]
    NotAttached {
        /// The path as given.
        path: PathBuf,
    },
    /// The kernel refused to detach.
    #[error("{} cannot be detached: {source}", path.display())]
    Detach {
        /// The loop device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// `struct loop_info64` of the kernel's interface.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of the kernel's interface.
#[repr(C)]
struct LoopConfig {
    descriptor: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

const FLAG_READ_ONLY: u32 = 1;
const FLAG_AUTOCLEAR: u32 = 4;
const FLAG_DIRECT_IO: u32 = 16;

mod ioctls {
    nix::ioctl_none_bad!(control_get_free, 0x4c82);
    nix::ioctl_write_ptr_bad!(configure, 0x4c0a, super::LoopConfig);
    nix::ioctl_none_bad!(clear, 0x4c01);
}

/// Attaches `file` to a free loop device, with direct I/O.
///
/// # Errors
/// [`LoopError`]: nothing stays attached.
pub fn attach_loop(file: impl AsRef<Path>, options: LoopOptions) -> Result<LoopDevice, LoopError> {
    let path = file.as_ref();
    let backing = open_backing(path, options)?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").map_err(|source| LoopError::NoControl { source })?;
    for _ in 0..TRIES {
        // SAFETY: the call takes no argument; the descriptor is open.
        let number =
            unsafe { ioctls::control_get_free(control.as_raw_fd()) }.map_err(|errno| LoopError::NoControl { source: errno.into() })?;
        let node = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .open(&node)
            .map_err(|source| LoopError::NoNode { path: node.clone(), source })?;
        match configure(&device, &backing, path, options) {
            Ok(()) => return proved(path, node, device, options),
            Err(Errno::EBUSY) => {}
            Err(errno) => {
                return Err(LoopError::Configure { file: path.into(), device: node, source: errno.into() });
            }
        }
    }
    Err(LoopError::Contended { tries: TRIES })
}

fn open_backing(path: &Path, options: LoopOptions) -> Result<File, LoopError> {
    let sector_bytes = options.sector_bytes;
    if !matches!(sector_bytes, 512 | 4096) {
        return Err(LoopError::SectorSize { found: sector_bytes });
    }
    let failed = |source| LoopError::Backing { path: path.into(), source };
    let backing = OpenOptions::new().read(true).write(!options.read_only).open(path).map_err(failed)?;
    let metadata = backing.metadata().map_err(failed)?;
    let size_bytes = metadata.len();
    if metadata.is_file() && (size_bytes == 0 || !size_bytes.is_multiple_of(u64::from(sector_bytes))) {
        return Err(LoopError::Size { path: path.into(), size_bytes, sector_bytes });
    }
    Ok(backing)
}

fn configure(device: &File, backing: &File, path: &Path, options: LoopOptions) -> nix::Result<()> {
    let mut flags = FLAG_DIRECT_IO;
    if options.read_only {
        flags |= FLAG_READ_ONLY;
    }
    if options.autoclear {
        flags |= FLAG_AUTOCLEAR;
    }
    let mut file_name = [0; 64];
    // For people only (losetup); the last byte stays zero.
    let name = path.as_os_str().as_encoded_bytes();
    let bytes = name.len().min(file_name.len() - 1);
    file_name[..bytes].copy_from_slice(&name[..bytes]);
    let config = LoopConfig {
        descriptor: u32::try_from(backing.as_raw_fd()).map_err(|_| Errno::EBADF)?,
        block_size: options.sector_bytes,
        info: LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the structure has the kernel's layout (sizes proved above) and lives through the call, which only reads it.
    unsafe { ioctls::configure(device.as_raw_fd(), &raw const config) }.map(drop)
}

/// The kernel takes a wish for direct I/O that it cannot fulfil without a word, so it is read back.
fn proved(file: &Path, node: PathBuf, device: File, options: LoopOptions) -> Result<LoopDevice, LoopError> {
    let folder = device.metadata().ok().and_then(|metadata| sysfs_of(metadata.rdev()));
    let read = |name: &str| folder.as_ref().and_then(|folder| read_number(&folder.join(name)));
    let sector = u64::from(options.sector_bytes);
    let read_only = u64::from(options.read_only);
    for (what, name, wanted) in
        [("direct I/O", "loop/dio", 1), ("this sector size", "queue/logical_block_size", sector), ("this read-only flag", "ro", read_only)]
    {
        let found = read(name).unwrap_or(0);
        if found != wanted {
            // SAFETY: the call takes no argument; the descriptor is open. We attached the file a moment ago.
            let _ = unsafe { ioctls::clear(device.as_raw_fd()) };
            let sector_bytes = options.sector_bytes;
            return Err(LoopError::NotAsAsked { file: file.into(), what, wanted, found, sector_bytes });
        }
    }
    Ok(LoopDevice { path: node, _held: device })
}

/// Detaches the loop device at `path`.
///
/// # Errors
/// [`LoopError`]: nothing was done.
pub fn detach_loop(path: impl AsRef<Path>) -> Result<Detached, LoopError> {
    let path = path.as_ref();
    let failed = |source| LoopError::Detach { path: path.into(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.file_type().is_block_device() || libc::major(metadata.rdev()) != 7 {
        return Err(LoopError::NotALoop { path: path.into() });
    }
    let folder = sysfs_of(metadata.rdev());
    let is_attached = || folder.as_ref().is_some_and(|folder| folder.join("loop/backing_file").exists());
    let end = Instant::now() + DETACH_PATIENCE;
    if !is_attached() {
        return Err(LoopError::NotAttached { path: path.into() });
    }
    let device = File::open(path).map_err(failed)?;
    // SAFETY: the call takes no argument; the descriptor is open.
    match unsafe { ioctls::clear(device.as_raw_fd()) } {
        Ok(_) => {}
        Err(Errno::ENXIO) => return Err(LoopError::NotAttached { path: path.into() }),
        Err(errno) => return Err(failed(errno.into())),
    }
    drop(device);
    while is_attached() {
        if Instant::now() >= end {
            return Ok(Detached::WhenClosed);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(Detached::Now)
}
