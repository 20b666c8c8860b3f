//! What: one shared device, opened for direct, durable I/O and probed once.
//! Owns: the descriptor, and the geometry as found at open.
//! Invariants: nothing is issued that is not on sector boundaries and inside the device; a write returns only when durable.
//! Does not: retry, cache, map, or write anything by itself.
//! Called by: the engine's back ends; tools directly.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use deadbolt_disk_format::ByteOffset;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::uio::{pread, pwrite};

use crate::buffer::AlignedBuf;
use crate::engine::STACK_BYTES;
use crate::error::{Direction, IoError, OpenError};

/// What a device is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only; every write is refused.
    Read,
    /// Reads and writes.
    ReadWrite,
}

/// What kind of thing lies under a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A block device.
    Block {
        /// Made by the loop driver.
        is_loop: bool,
        /// For a loop device: it bypasses the page cache. Otherwise true.
        loop_direct_io: bool,
        /// The kernel refuses writes.
        read_only: bool,
    },
    /// A regular file.
    File,
    /// Memory of this process, in tests and simulations.
    Memory,
}

/// Numbers by which two paths of one device are recognised on one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Device number of the file system that holds the path (st_dev).
    pub file_system: u64,
    /// Device number of the block device (st_rdev); 0 for a file.
    pub block: u64,
    /// Inode number of the path.
    pub inode: u64,
}

/// A device's measures, as found when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Smallest unit of I/O: 512 or 4096.
    pub logical_sector_bytes: u32,
    /// Unit that the medium writes at once.
    pub physical_sector_bytes: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// What it is.
    pub kind: DeviceKind,
    /// Who it is, on this machine.
    pub identity: Identity,
}

/// A device that an [`crate::Engine`] can drive.
pub trait RawDevice: Send + Sync {
    /// The measures found at open.
    fn geometry(&self) -> &Geometry;
    /// Are writes possible at all?
    fn is_writable(&self) -> bool;
    /// Fills the whole buffer from `offset`; returns when done, however long it takes.
    ///
    /// # Errors
    /// [`IoError`]: the buffer's content is then unspecified.
    fn read_at(&self, offset: ByteOffset, buffer: &mut AlignedBuf) -> Result<(), IoError>;
    /// Writes the whole buffer to `offset`; returns when durable, however long it takes.
    ///
    /// # Errors
    /// [`IoError`]: any part may have been written, unless the error says that nothing was issued.
    fn write_at(&self, offset: ByteOffset, buffer: &AlignedBuf) -> Result<(), IoError>;
    /// The descriptor for io_uring, where there is one.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Is this operation one that may be issued?
    ///
    /// # Errors
    /// [`IoError`] that says why not.
    fn check(&self, direction: Direction, offset: ByteOffset, bytes: usize) -> Result<(), IoError> {
        let geometry = self.geometry();
        let ByteOffset(offset) = offset;
        let sector_bytes = geometry.logical_sector_bytes;
        let length = u64::try_from(bytes).unwrap_or(u64::MAX);
        let sector = u64::from(sector_bytes);
        if bytes == 0 || !length.is_multiple_of(sector) || !offset.is_multiple_of(sector) {
            return Err(IoError::Misaligned { direction, offset, bytes, sector_bytes });
        }
        let size_bytes = geometry.size_bytes;
        if offset.checked_add(length).is_none_or(|end| end > size_bytes) {
            return Err(IoError::OutOfRange { direction, offset, bytes, size_bytes });
        }
        if direction == Direction::Write && !self.is_writable() {
            return Err(IoError::ReadOnly { offset });
        }
        Ok(())
    }
}

/// A block device or a regular file, opened with O_DIRECT and O_DSYNC.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    file: File,
    access: Access,
    geometry: Geometry,
}

mod ioctls {
    nix::ioctl_read_bad!(logical_sector, libc::BLKSSZGET, libc::c_int);
    nix::ioctl_read_bad!(physical_sector, libc::BLKPBSZGET, libc::c_uint);
    nix::ioctl_read_bad!(read_only, 0x125e, libc::c_int); // BLKROGET, _IO(0x12, 94)
    nix::ioctl_read!(size_bytes, 0x12, 114, usize); // BLKGETSIZE64 is declared with size_t and fills 64 bits
}
const _: () = assert!(size_of::<usize>() == 8, "BLKGETSIZE64 is encoded with the size of size_t");

impl Device {
    /// Opens and probes `path`. May block for as long as the device hangs; see [`Device::open_within`].
    ///
    /// # Errors
    /// [`OpenError`]: nothing was written.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self, OpenError> {
        let path = path.as_ref();
        check_file_type(path)?;
        let file = open_direct(path, access)?;
        let geometry = probe(path, &file)?;
        let read_only = matches!(geometry.kind, DeviceKind::Block { read_only: true, .. });
        if read_only && access == Access::ReadWrite {
            return Err(OpenError::ReadOnly { path: path.into() });
        }
        Ok(Self { path: path.into(), file, access, geometry })
    }

    /// [`Device::open`] on a thread of its own, given up after `limit`: for paths that may hang.
    ///
    /// # Errors
    /// [`OpenError::NoAnswer`] when the time is over; the thread stays with the kernel.
    pub fn open_within(path: impl AsRef<Path>, access: Access, limit: Duration) -> Result<Self, OpenError> {
        let path = path.as_ref().to_path_buf();
        let (answer, answered) = mpsc::channel();
        let asked = path.clone();
        std::thread::Builder::new()
            .name("deadbolt-open".into())
            .stack_size(STACK_BYTES)
            .spawn(move || answer.send(Self::open(asked, access)))
            .map_err(|source| OpenError::Open { path: path.clone(), source })?;
        let waited_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        match answered.recv_timeout(limit) {
            Ok(result) => result,
            Err(_) => Err(OpenError::NoAnswer { path, waited_ms }),
        }
    }

    /// The path as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The measures found at open.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Fills the whole buffer from `offset`. For tools: blocks as long as the device hangs.
    ///
    /// # Errors
    /// [`IoError`].
    pub fn read_at(&self, offset: ByteOffset, buffer: &mut AlignedBuf) -> Result<(), IoError> {
        RawDevice::read_at(self, offset, buffer)
    }

    /// Writes the whole buffer to `offset`, durably. For tools: blocks as long as the device hangs.
    ///
    /// # Errors
    /// [`IoError`].
    pub fn write_at(&self, offset: ByteOffset, buffer: &AlignedBuf) -> Result<(), IoError> {
        RawDevice::write_at(self, offset, buffer)
    }
}

impl RawDevice for Device {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn is_writable(&self) -> bool {
        self.access == Access::ReadWrite
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut AlignedBuf) -> Result<(), IoError> {
        let bytes = buffer.len();
        self.check(Direction::Read, offset, bytes)?;
        let start = system_offset(Direction::Read, offset, bytes)?;
        let moved = again_if_interrupted(|| pread(&self.file, buffer, start));
        judge(Direction::Read, offset, bytes, moved)
    }

    fn write_at(&self, offset: ByteOffset, buffer: &AlignedBuf) -> Result<(), IoError> {
        let bytes = buffer.len();
        self.check(Direction::Write, offset, bytes)?;
        let start = system_offset(Direction::Write, offset, bytes)?;
        let moved = again_if_interrupted(|| pwrite(&self.file, buffer, start));
        judge(Direction::Write, offset, bytes, moved)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

fn system_offset(direction: Direction, offset: ByteOffset, bytes: usize) -> Result<i64, IoError> {
    i64::try_from(offset.0).map_err(|_| IoError::Os { direction, offset: offset.0, bytes, errno: libc::EOVERFLOW })
}

fn again_if_interrupted(mut call: impl FnMut() -> nix::Result<usize>) -> nix::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// What a finished read or write means: all of it, or an error.
pub(crate) fn judge(direction: Direction, ByteOffset(offset): ByteOffset, bytes: usize, moved: nix::Result<usize>) -> Result<(), IoError> {
    match moved {
        Ok(moved) if moved == bytes => Ok(()),
        Ok(moved) => Err(IoError::Short { direction, offset, bytes, moved }),
        Err(errno) => Err(IoError::Os { direction, offset, bytes, errno: errno as i32 }),
    }
}

/// Opening a fifo or a terminal could block or have an effect, so the type is looked at first.
fn check_file_type(path: &Path) -> Result<(), OpenError> {
    let metadata = std::fs::metadata(path).map_err(|source| OpenError::Open { path: path.into(), source })?;
    let file_type = metadata.file_type();
    let found = if file_type.is_block_device() || file_type.is_file() {
        return Ok(());
    } else if file_type.is_dir() {
        "directory"
    } else if file_type.is_char_device() {
        "character device"
    } else if file_type.is_fifo() {
        "fifo"
    } else {
        "socket"
    };
    Err(OpenError::NotADevice { path: path.into(), found })
}

fn open_direct(path: &Path, access: Access) -> Result<File, OpenError> {
    let mode = if access == Access::ReadWrite { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    // The C library's own open: test beds of distributions stand in for it.
    let opened = nix::fcntl::open(path, mode | OFlag::O_DIRECT | OFlag::O_DSYNC | OFlag::O_CLOEXEC, Mode::empty());
    let opened = opened.map(File::from).map_err(io::Error::from);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => OpenError::NoDirectIo { path: path.into(), file_system: crate::device::file_system_of(path) },
        Some(libc::EROFS) => OpenError::ReadOnly { path: path.into() },
        // A read-only block device answers EACCES or EPERM even to root.
        Some(libc::EACCES | libc::EPERM) if access == Access::ReadWrite && is_read_only_block(path) => {
            OpenError::ReadOnly { path: path.into() }
        }
        _ => OpenError::Open { path: path.into(), source },
    })
}

fn is_read_only_block(path: &Path) -> bool {
    let Ok(metadata) = std::fs::metadata(path) else {
        return false;
    };
    sysfs_of(metadata.rdev()).is_some_and(|folder| read_number(&folder.join("ro")) == Some(1))
}

/// The sysfs folder of a block device.
pub(crate) fn sysfs_of(device_number: u64) -> Option<PathBuf> {
    if device_number == 0 {
        return None;
    }
    let (major, minor) = (libc::major(device_number), libc::minor(device_number));
    std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

/// A number in a file of sysfs.
pub(crate) fn read_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The name of the file system that holds `path`, or its magic number.
pub(crate) fn file_system_of(path: &Path) -> String {
    let Ok(status) = nix::sys::statfs::statfs(path) else {
        return "unknown".into();
    };
    match status.filesystem_type().0 {
        0x8584_58f6 => "ramfs".into(),
        0x0102_1994 => "tmpfs".into(),
        0x794c_7630 => "overlayfs".into(),
        magic => format!("magic {magic:#x}"),
    }
}

fn probe(path: &Path, file: &File) -> Result<Geometry, OpenError> {
    let failed = |what, source| OpenError::Probe { path: path.into(), what, source };
    let metadata = file.metadata().map_err(|source| failed("the file's status", source))?;
    let identity = Identity { file_system: metadata.dev(), block: metadata.rdev(), inode: metadata.ino() };
    let geometry = if metadata.file_type().is_block_device() {
        probe_block(path, file, identity)?
    } else {
        let logical = probe_file_sector(path, file, metadata.len())?;
        Geometry {
            logical_sector_bytes: logical,
            physical_sector_bytes: logical,
            size_bytes: metadata.len(),
            kind: DeviceKind::File,
            identity: Identity { block: 0, ..identity },
        }
    };
    if geometry.size_bytes == 0 {
        return Err(OpenError::Empty { path: path.into() });
    }
    Ok(geometry)
}

fn probe_block(path: &Path, file: &File, identity: Identity) -> Result<Geometry, OpenError> {
    let failed = |what, errno: Errno| OpenError::Probe { path: path.into(), what, source: io::Error::from(errno) };
    let (mut logical, mut physical, mut read_only, mut size) = (0, 0, 0, 0_usize);
    let descriptor = file.as_raw_fd();
    // SAFETY: the descriptor is open for the call, the pointer is to a live local of the type that the request fills.
    unsafe { ioctls::logical_sector(descriptor, &raw mut logical) }.map_err(|errno| failed("the logical sector", errno))?;
    // SAFETY: as above.
    unsafe { ioctls::physical_sector(descriptor, &raw mut physical) }.map_err(|errno| failed("the physical sector", errno))?;
    // SAFETY: as above.
    unsafe { ioctls::read_only(descriptor, &raw mut read_only) }.map_err(|errno| failed("the read-only flag", errno))?;
    // SAFETY: as above; the kernel stores 64 bits, which usize has (proved above).
    unsafe { ioctls::size_bytes(descriptor, &raw mut size) }.map_err(|errno| failed("the size", errno))?;
    let logical_sector_bytes = match logical {
        512 | 4096 => logical.unsigned_abs(),
        found => {
            return Err(OpenError::SectorSize { path: path.into(), found: u64::from(found.unsigned_abs()) });
        }
    };
    let loop_folder = sysfs_of(identity.block).map(|folder| folder.join("loop"));
    let is_loop = libc::major(identity.block) == 7;
    let loop_direct_io = !is_loop || loop_folder.is_some_and(|folder| read_number(&folder.join("dio")) == Some(1));
    Ok(Geometry {
        logical_sector_bytes,
        physical_sector_bytes: physical,
        size_bytes: u64::try_from(size).unwrap_or(u64::MAX),
        kind: DeviceKind::Block { is_loop, loop_direct_io, read_only: read_only != 0 },
        identity,
    })
}

/// A file answers no ioctl for its sector, unless a test bed answers in its place: the smallest read that direct I/O takes tells it.
fn probe_file_sector(path: &Path, file: &File, size_bytes: u64) -> Result<u32, OpenError> {
    let mut logical = 0;
    // SAFETY: the descriptor is open for the call, the pointer is to a live local of the type that the request fills.
    let answered = unsafe { ioctls::logical_sector(file.as_raw_fd(), &raw mut logical) };
    if let (Ok(_), Ok(sector @ (512 | 4096))) = (answered, u32::try_from(logical)) {
        return Ok(sector);
    }
    for sector in [512_u32, 4096] {
        if size_bytes < u64::from(sector) {
            return Err(OpenError::Empty { path: path.into() });
        }
        // Aligned to the sector and not to the page: else a stricter file system is not found out.
        let mut buffer = AlignedBuf::zeroed(8192);
        let step = usize::try_from(sector).unwrap_or(512);
        match again_if_interrupted(|| pread(file, &mut buffer[step..2 * step], 0)) {
            Ok(_) => return Ok(sector),
            Err(Errno::EINVAL) => {}
            Err(errno) => {
                let source = io::Error::from(errno);
                return Err(OpenError::Probe { path: path.into(), what: "the first sector", source });
            }
        }
    }
    Err(OpenError::NoDirectIo { path: path.into(), file_system: file_system_of(path) })
}
