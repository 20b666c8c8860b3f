//! What: what speaks against a path as a shared device, before anything is written to it.
//! Owns: the list of findings and their wording.
//! Invariants: changes nothing; a path that hangs yields a finding, not a wait without end.
//! Does not: look at the content (signatures are disk/format's), or decide; the caller refuses or asks.
//! Called by: cli (format, init, join, start), cluster.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use crate::device::{Access, Device, DeviceKind, sysfs_of};
use crate::engine::STACK_BYTES;
use crate::error::OpenError;

/// How long a path may take to answer. Chosen: the default stall tolerance.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// To be told; the device can be used.
    Note,
    /// The device must not be used as it is.
    Refuse,
}

/// Something that speaks against a path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Finding {
    /// It cannot be opened as a device at all: missing, hung, without direct I/O, of a wrong sector size.
    #[error("{0}")]
    CannotOpen(OpenError),
    /// A loop device that goes through the page cache.
    #[error("{} is a loop device without direct I/O: what other nodes write would not be seen; attach it with `deadbolt attach loop FILE`, or losetup --direct-io=on", path.display())]
    LoopWithoutDirectIo {
        /// The path as given.
        path: PathBuf,
    },
    /// Writes are refused.
    #[error("{} is read-only: a node could not write its beat; make it writable (blockdev --setrw, or the file's mode)", path.display())]
    ReadOnly {
        /// The path as given.
        path: PathBuf,
    },
    /// It, a partition of it or a loop device over it is mounted.
    #[error("{} is mounted (at {at}): writing to it would destroy that file system; unmount it, or choose another device", path.display())]
    Mounted {
        /// The path as given.
        path: PathBuf,
        /// Where.
        at: String,
    },
    /// The kernel uses it for something else: LVM, md, multipath, dm-crypt.
    #[error("{} is held by {by}: it is part of another device; use that device, or release this one", path.display())]
    Held {
        /// The path as given.
        path: PathBuf,
        /// Names of the holders.
        by: String,
    },
    /// It is swap space in use.
    #[error("{} is swap space in use; swapoff it, or choose another device", path.display())]
    Swap {
        /// The path as given.
        path: PathBuf,
    },
    /// Somebody has claimed it for himself alone.
    #[error("{} is claimed exclusively by another program or by the kernel; find it with fuser or lsblk, or choose another device", path.display())]
    Busy {
        /// The path as given.
        path: PathBuf,
    },
    /// A file whose writes may land after the process that issued them has ended.
    #[error("{} lies on {file_system}: a write there can land after its process has ended, so a restarted node could not know that the old one is over; use a block device, or a file on ext4 or xfs", path.display())]
    WritesOutlive {
        /// The path as given.
        path: PathBuf,
        /// The file system.
        file_system: &'static str,
    },
    /// A file that is attached to loop devices.
    #[error("{} is attached to {loops}: use the same path on every node of this machine", path.display())]
    Attached {
        /// The path as given.
        path: PathBuf,
        /// The loop devices.
        loops: String,
    },
    /// Two paths lead to one and the same storage.
    #[error("{} and {} are the same storage ({by}): they fail together and must not be counted as two devices; give one path (the multipath device) of each LUN", first.display(), second.display())]
    SameStorage {
        /// One path.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// What they have in common.
        by: String,
    },
}

impl Finding {
    /// How much it weighs.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::Attached { .. } => Severity::Note,
            _ => Severity::Refuse,
        }
    }
}

/// Everything that speaks against `path` as a device to be written to.
#[must_use]
pub fn preflight(path: impl AsRef<Path>) -> Vec<Finding> {
    preflight_within(path, PATIENCE)
}

/// [`preflight`] with a limit of the caller's for a path that hangs.
#[must_use]
pub fn preflight_within(path: impl AsRef<Path>, limit: Duration) -> Vec<Finding> {
    let path = path.as_ref();
    let device = match Device::open_within(path, Access::Read, limit) {
        Ok(device) => device,
        Err(error) => return vec![Finding::CannotOpen(error)],
    };
    let mut findings = Vec::new();
    let identity = device.geometry().identity;
    match device.geometry().kind {
        DeviceKind::Block { loop_direct_io, read_only, .. } => {
            if !loop_direct_io {
                findings.push(Finding::LoopWithoutDirectIo { path: path.into() });
            }
            if read_only {
                findings.push(Finding::ReadOnly { path: path.into() });
            }
        }
        DeviceKind::File | DeviceKind::Memory => {
            if let Some(file_system) = outliving_file_system(path) {
                findings.push(Finding::WritesOutlive { path: path.into(), file_system });
            }
            if nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_err() {
                findings.push(Finding::ReadOnly { path: path.into() });
            }
        }
    }
    drop(device);
    let storage = Storage { path, block: identity.block, file: (identity.file_system, identity.inode) };
    findings.extend(check_use(&storage));
    findings
}

/// File systems on which killing a process does not end its synchronous write.
fn outliving_file_system(path: &Path) -> Option<&'static str> {
    let status = nix::sys::statfs::statfs(path).ok()?;
    match status.filesystem_type().0 {
        0x6573_5546 => Some("FUSE"),
        0x6969 => Some("NFS"),
        0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x0102_1997 => Some("9p"),
        0x00c3_6400 => Some("Ceph"),
        _ => None,
    }
}

/// What is looked for in the kernel's tables.
struct Storage<'a> {
    path: &'a Path,
    /// Device number; 0 for a file.
    block: u64,
    /// File system and inode.
    file: (u64, u64),
}

impl Storage<'_> {
    /// The device numbers under which its bytes can be reached: itself, its partitions, loop devices over it.
    fn numbers(&self, loops: &[(PathBuf, u64)]) -> Vec<u64> {
        let mut numbers: Vec<u64> = loops.iter().map(|(_, number)| *number).collect();
        if self.block != 0 {
            numbers.push(self.block);
        }
        let partitions: Vec<u64> = numbers.iter().flat_map(|number| partitions_of(*number)).collect();
        numbers.extend(partitions);
        numbers
    }
}

fn check_use(storage: &Storage<'_>) -> Vec<Finding> {
    let path = storage.path.to_path_buf();
    let loops = loops_over(storage);
    let numbers = storage.numbers(&loops);
    let mut findings = Vec::new();
    let mounts = mounts_of(&numbers);
    if !mounts.is_empty() {
        findings.push(Finding::Mounted { path: path.clone(), at: mounts.join(", ") });
    }
    let holders: Vec<String> = numbers.iter().flat_map(|number| entries_of(*number, "holders")).collect();
    if !holders.is_empty() {
        findings.push(Finding::Held { path: path.clone(), by: holders.join(", ") });
    }
    if is_swap(storage, &numbers) {
        findings.push(Finding::Swap { path: path.clone() });
    }
    if findings.is_empty() && storage.block != 0 && is_claimed(storage.path) {
        findings.push(Finding::Busy { path: path.clone() });
    }
    if !loops.is_empty() {
        let names: Vec<String> = loops.iter().map(|(node, _)| node.display().to_string()).collect();
        findings.push(Finding::Attached { path, loops: names.join(", ") });
    }
    findings
}

/// Asks something that a hung file system could hold up.
fn within<T: Send + 'static>(limit: Duration, ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, answered) = mpsc::channel();
    std::thread::Builder::new().name("deadbolt-ask".into()).stack_size(STACK_BYTES).spawn(move || answer.send(ask())).ok()?;
    answered.recv_timeout(limit).ok()
}

/// Every loop device with a file: its node, number and the file's path.
fn attached_loops() -> Vec<(PathBuf, u64, PathBuf)> {
    let Ok(folder) = std::fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let names = folder.flatten().map(|entry| entry.path());
    names
        .filter_map(|block| {
            let file = std::fs::read_to_string(block.join("loop/backing_file")).ok()?;
            let number = device_number(&std::fs::read_to_string(block.join("dev")).ok()?)?;
            let node = Path::new("/dev").join(block.file_name()?);
            Some((node, number, PathBuf::from(file.trim_end_matches('\n'))))
        })
        .collect()
}

/// "7:3" as a device number.
fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn loops_over(storage: &Storage<'_>) -> Vec<(PathBuf, u64)> {
    let real = std::fs::canonicalize(storage.path).unwrap_or_else(|_| storage.path.into());
    let mut loops = attached_loops();
    loops.retain(|(_, _, file)| *file == real || status_within(file) == Some((storage.block, storage.file)));
    loops.into_iter().map(|(node, number, _)| (node, number)).collect()
}

/// Block number (0 for a file), file system and inode of a path, if it answers.
fn status_within(path: &Path) -> Option<(u64, (u64, u64))> {
    let path = path.to_path_buf();
    let metadata = within(Duration::from_secs(1), move || std::fs::metadata(path).ok())??;
    let block = if metadata.file_type().is_block_device() { metadata.rdev() } else { 0 };
    Some((block, (metadata.dev(), metadata.ino())))
}

/// Device numbers of a disk's partitions.
fn partitions_of(number: u64) -> Vec<u64> {
    let Some(Ok(folder)) = sysfs_of(number).map(std::fs::read_dir) else {
        return Vec::new();
    };
    let parts = folder.flatten().map(|entry| entry.path()).filter(|path| path.join("partition").exists());
    parts.filter_map(|part| device_number(&std::fs::read_to_string(part.join("dev")).ok()?)).collect()
}

/// Names in a folder of a block device in sysfs.
fn entries_of(number: u64, folder: &str) -> Vec<String> {
    let Some(Ok(entries)) = sysfs_of(number).map(|path| std::fs::read_dir(path.join(folder))) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn mounts_of(numbers: &[u64]) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| mount_of(line, numbers)).collect()
}

/// The mount point in a line of mountinfo, if it is of one of these devices. btrfs shows a number of its own, so the
/// source is compared too.
fn mount_of(line: &str, numbers: &[u64]) -> Option<String> {
    let mut fields = line.split(' ');
    let number = device_number(fields.nth(2)?)?;
    let point = fields.nth(1)?;
    let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1));
    let is_source = || {
        let source = source.filter(|source| source.starts_with("/dev/"))?;
        std::fs::metadata(source).ok().map(|metadata| numbers.contains(&metadata.rdev()))
    };
    (numbers.contains(&number) || is_source() == Some(true)).then(|| point.to_string())
}

fn is_swap(storage: &Storage<'_>, numbers: &[u64]) -> bool {
    let table = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let paths = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    paths
        .map(PathBuf::from)
        .filter_map(|path| status_within(&path))
        .any(|(block, file)| if block == 0 { file == storage.file } else { numbers.contains(&block) })
}

/// Only the kernel's users and careful tools claim; a claim ends with our descriptor, at once.
fn is_claimed(path: &Path) -> bool {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(path);
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

/// Pairs of paths that lead to one storage: one device number, one file behind two loop devices, one LUN.
#[must_use]
pub fn same_storage<P: AsRef<Path>>(paths: &[P]) -> Vec<Finding> {
    let marks: Vec<Vec<String>> = paths.iter().map(|path| storage_marks(path.as_ref())).collect();
    let mut findings = Vec::new();
    for (index, first) in marks.iter().enumerate() {
        for (other, second) in marks.iter().enumerate().skip(index + 1) {
            if let Some(common) = first.iter().find(|mark| second.contains(mark)) {
                findings.push(Finding::SameStorage {
                    first: paths[index].as_ref().into(),
                    second: paths[other].as_ref().into(),
                    by: common.clone(),
                });
            }
        }
    }
    findings
}

/// Everything by which this storage would be recognised under another path.
fn storage_marks(path: &Path) -> Vec<String> {
    let Some((block, file)) = status_within(path) else {
        return vec![format!("path {}", path.display())];
    };
    if block == 0 {
        return vec![format!("file {} of file system {}", file.1, file.0)];
    }
    let mut marks = vec![format!("device {}:{}", libc::major(block), libc::minor(block))];
    let Some(folder) = sysfs_of(block) else {
        return marks;
    };
    // Partitions of one disk fail together: they are marked by their disk.
    let disk = if folder.join("partition").exists() { folder.parent().map_or_else(|| folder.clone(), Path::to_path_buf) } else { folder };
    if let Ok(number) = std::fs::read_to_string(disk.join("dev")) {
        marks.push(format!("device {}", number.trim()));
    }
    for name in ["device/wwid", "wwid", "dm/uuid"] {
        let text = std::fs::read_to_string(disk.join(name)).unwrap_or_default();
        let text = text.trim();
        // A multipath device is named after the LUN: "mpath-" and a type digit before the same number.
        if !text.is_empty() {
            marks.push(format!("identity {}", wwid_of(text)));
        }
    }
    let backing = std::fs::read_to_string(disk.join("loop/backing_file")).unwrap_or_default();
    if !backing.is_empty() {
        let backing = PathBuf::from(backing.trim_end_matches('\n'));
        marks.push(format!("path {}", backing.display()));
        if let Some((_, file)) = status_within(&backing) {
            marks.push(format!("file {} of file system {}", file.1, file.0));
        }
    }
    marks
}

/// By what other machines know this whole disk, too; none for what only this one knows.
#[must_use]
pub fn shared_identity(path: &Path) -> Option<String> {
    let (block, _) = status_within(path).filter(|(block, _)| *block != 0)?;
    let folder = sysfs_of(block).filter(|folder| !folder.join("partition").exists())?;
    let names = ["device/wwid", "wwid", "dm/uuid"].map(|name| std::fs::read_to_string(folder.join(name)).unwrap_or_default());
    names.iter().map(|text| text.trim()).find(|text| !text.is_empty()).map(wwid_of)
}

/// The number inside "naa.6001...", "mpath-36001..." and the like.
fn wwid_of(text: &str) -> String {
    let bare = text.strip_prefix("mpath-3").or_else(|| text.strip_prefix("naa."));
    bare.unwrap_or(text).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::{device_number, mount_of, wwid_of};

    #[test]
    fn reads_mountinfo() {
        let numbers = [libc::makedev(7, 3)];
        let line = "36 35 7:3 / /mnt/a rw,noatime shared:1 - ext4 /dev/loop3 rw";
        assert_eq!(mount_of(line, &numbers).as_deref(), Some("/mnt/a"));
        let other = "36 35 7:4 / /mnt/a rw,noatime - ext4 /dev/no-such-device rw";
        assert_eq!(mount_of(other, &numbers), None);
        for broken in ["", "1", "1 2 3", "1 2 x:y / /m", "1 2 7:3"] {
            assert_eq!(mount_of(broken, &numbers), None);
        }
    }

    #[test]
    fn one_lun_has_one_identity_under_its_names() {
        assert_eq!(wwid_of("naa.6001405AB"), wwid_of("mpath-36001405ab"));
        assert_ne!(wwid_of("naa.6001405ab"), wwid_of("naa.6001405ac"));
        assert_eq!(device_number("7:300\n"), Some(libc::makedev(7, 300)));
    }
}
