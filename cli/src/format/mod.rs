//! What: `deadbolt format`: one to three devices become an empty cluster.
//! Owns: the refusals, the order of reading and writing, the report.
//! Invariants: nothing is written before every device has passed every check; a device is valid only with its very last unit.
//! Does not: add members (`init` does), derive times, or ask questions.
//! Called by: the `format` and `init` verbs.

mod examine;
mod write;

#[cfg(test)]
mod tests;

use deadbolt_disk::{Access, Device, DeviceKind, Finding, IoError, OpenError, RawDevice, Severity, preflight, same_storage};
use deadbolt_disk_format::fresh::{Fresh, sbd_header_of};
use deadbolt_disk_format::layout::{LayoutError, SLOTS_DEFAULT};
use deadbolt_disk_format::signatures::Signature;
use deadbolt_disk_format::{ByteOffset, ClusterUuid, DEVICES_MAX, DeviceUuid, EncodeError, Layout, SlotIndex, Superblock, Timings, view};
use examine::Examined;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What to make of which devices.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// One to three paths.
    pub devices: Vec<PathBuf>,
    /// Name of the cluster.
    pub cluster: String,
    /// How many nodes are planned; at most `slots`.
    pub nodes: u16,
    /// Slots to reserve.
    pub slots: u16,
    /// All times, derived elsewhere.
    pub timings: Timings,
    /// Check everything, write nothing.
    pub is_dry_run: bool,
    /// Overwrite what is recognised on the devices.
    pub is_forced: bool,
    /// Uuid of a cluster that may be overwritten although its nodes live.
    pub force_live: Option<String>,
}

impl FormatOptions {
    /// One device, the default number of slots, nothing forced.
    #[must_use]
    pub fn new(device: impl Into<PathBuf>, cluster: &str, nodes: u16, timings: Timings) -> Self {
        Self {
            devices: vec![device.into()],
            cluster: cluster.into(),
            nodes,
            slots: SLOTS_DEFAULT,
            timings,
            is_dry_run: false,
            is_forced: false,
            force_live: None,
        }
    }
}

/// What was made, or would be.
#[derive(Clone, Debug)]
pub struct FormatReport {
    /// The new cluster.
    pub cluster: ClusterUuid,
    /// Its name.
    pub name: String,
    /// Slots reserved.
    pub slots: u16,
    /// Nothing was written.
    pub is_dry_run: bool,
    /// In the order of the options.
    pub devices: Vec<DeviceReport>,
}

/// One device of a [`FormatReport`].
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// Its path.
    pub path: PathBuf,
    /// Its new identity.
    pub device: DeviceUuid,
    /// Its size.
    pub size_bytes: u64,
    /// Its logical sector.
    pub sector_bytes: u32,
    /// How much of it is used.
    pub used_bytes: u64,
    /// What was (or would be) lost.
    pub lost: Vec<Signature>,
    /// Slots whose beats advanced while it was watched.
    pub live: Vec<SlotIndex>,
}

impl fmt::Display for FormatReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.is_dry_run { "would be formatted" } else { "formatted" };
        for device in &self.devices {
            let mib = device.size_bytes / (1 << 20);
            write!(f, "{}: {mib} MiB, sectors of {} bytes, ", device.path.display(), device.sector_bytes)?;
            writeln!(f, "{} KiB used, device {}: {verb}", device.used_bytes / 1024, device.device)?;
            for signature in &device.lost {
                let tense = if self.is_dry_run { "would be lost" } else { "lost" };
                writeln!(f, "  {tense}: {} ({} at byte {})", signature.description, signature.name, signature.offset)?;
            }
        }
        if self.devices.len() == 2 {
            writeln!(f, "note: of two devices both are needed; three survive the loss of one")?;
        }
        let slots = self.slots;
        if self.is_dry_run {
            write!(f, "cluster {}: {slots} slots would be reserved; nothing was written", self.name)
        } else {
            write!(f, "cluster {} ({}): {slots} slots reserved, no members yet", self.name, self.cluster)
        }
    }
}

/// Why devices are not formatted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// None or too many.
    #[error("{found} devices given; a cluster has one device, or three that fail independently")]
    DeviceCount {
        /// Given.
        found: usize,
    },
    /// A name that a cluster cannot have.
    #[error("the cluster name {name:?} is empty, longer than 63 bytes, or has spaces; choose another")]
    Name {
        /// Given.
        name: String,
    },
    /// More nodes than slots, or none.
    #[error("{nodes} nodes do not fit {slots} slots; ask for 1 to 255 slots and at most as many nodes")]
    Nodes {
        /// Given.
        nodes: u16,
        /// Given.
        slots: u16,
    },
    /// Times were not derived.
    #[error("the times are empty (field {field}); derive them from the stall tolerance first")]
    Timings {
        /// The field that is zero.
        field: &'static str,
    },
    /// Mounted, held, swap, read-only, busy, or no device at all.
    #[error("{}", list(.0))]
    Unusable(Vec<Finding>),
    /// The device cannot be opened for writing.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Somebody claimed it in between.
    #[error("{} is in use by another program or by the kernel ({reason}); find it with fuser or lsblk", path.display())]
    Busy {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        reason: std::io::Error,
    },
    /// Too small, or a sector size that is not supported.
    #[error("{}: {reason}", path.display())]
    Layout {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: LayoutError,
    },
    /// Something is on it.
    #[error("{} carries {}; it would be lost. Choose another device, or say --force", path.display(), names(found))]
    Occupied {
        /// Which.
        path: PathBuf,
        /// What.
        found: Vec<Signature>,
    },
    /// Nodes live on it.
    #[error("{} belongs to the cluster {name} ({cluster}), and {} beating now: it is in use. Stop its nodes; or give --force-live {cluster}", path.display(), slots_of(slots))]
    Live {
        /// Which.
        path: PathBuf,
        /// Name of that cluster.
        name: String,
        /// Its uuid, to be typed.
        cluster: ClusterUuid,
        /// Whose beats advanced.
        slots: Vec<SlotIndex>,
    },
    /// The uuid given is not that of the cluster found.
    #[error("--force-live {given} was given, but {} belongs to the cluster {cluster}; nothing was written", path.display())]
    ForceLive {
        /// Which.
        path: PathBuf,
        /// Typed.
        given: String,
        /// Found.
        cluster: ClusterUuid,
    },
    /// Two paths lead to one device, found by writing and reading.
    #[error("{} and {} are the same storage: what was written to one is read from the other. They would fail together; give one path of each device. Nothing was changed", first.display(), second.display())]
    SameDevice {
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A read or a write failed.
    #[error("{}: {reason}; {}", path.display(), if *.is_begun { "the format has not ended, the device is marked so: run it again" } else { "nothing was written" })]
    Io {
        /// Which device.
        path: PathBuf,
        /// What failed.
        reason: IoError,
        /// The mark may be on the device.
        is_begun: bool,
    },
    /// What was written is not what is read.
    #[error("{}: byte {} does not read back as written; the device loses or misdirects writes: do not use it. It is marked as not formatted", path.display(), .offset.0)]
    NotReadBack {
        /// Which device.
        path: PathBuf,
        /// Where.
        offset: ByteOffset,
    },
    /// A value that a superblock cannot carry.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// No random numbers.
    #[error("no random numbers for the uuids: {0}")]
    Random(getrandom::Error),
}

fn list(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
fn names(found: &[Signature]) -> String {
    let each = |signature: &Signature| format!("{} ({} at byte {})", signature.description, signature.name, signature.offset);
    found.iter().map(each).collect::<Vec<_>>().join(", ")
}
fn slots_of(slots: &[SlotIndex]) -> String {
    let numbers: Vec<String> = slots.iter().map(ToString::to_string).collect();
    let noun = if slots.len() == 1 { "slot" } else { "slots" };
    let verb = if slots.len() == 1 { "is" } else { "are" };
    format!("{noun} {} {verb}", numbers.join(", "))
}

/// A device that has passed the checks from outside.
struct Target {
    path: PathBuf,
    device: Box<dyn RawDevice>,
    /// Keeps the kernel and careful tools away while we write.
    _claim: Option<File>,
}

impl Target {
    fn io(&self, is_begun: bool) -> impl Fn(IoError) -> FormatError + '_ {
        move |reason| FormatError::Io { path: self.path.clone(), reason, is_begun }
    }
    fn size_bytes(&self) -> u64 {
        self.device.geometry().size_bytes
    }
}

/// Formats. May take seconds where a device carries beats that have to be watched.
///
/// # Errors
/// [`FormatError`]; unless it says otherwise, nothing was written.
pub fn format(options: &FormatOptions) -> Result<FormatReport, FormatError> {
    check_options(options)?;
    let targets = open_targets(options)?;
    format_targets(options, &targets)
}

/// The part behind opening: the same for files, block devices and memory.
fn format_targets(options: &FormatOptions, targets: &[Target]) -> Result<FormatReport, FormatError> {
    let mut layouts = Vec::new();
    for target in targets {
        let sector_bytes = target.device.geometry().logical_sector_bytes;
        let layout = Layout::new(target.size_bytes(), sector_bytes, options.slots)
            .map_err(|reason| FormatError::Layout { path: target.path.clone(), reason })?;
        layouts.push(layout);
    }
    let mut examined = Vec::new();
    for target in targets {
        let found = examine::examine(target)?;
        judge(options, &target.path, &found)?;
        examined.push(found);
    }
    let cluster = ClusterUuid(random_uuid()?);
    let count = u16::try_from(targets.len()).unwrap_or(u16::MAX);
    let wall_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut plans = Vec::new();
    for ((number, target), (layout, found)) in (0..count).zip(targets).zip(layouts.iter().zip(&examined)) {
        let superblock = Superblock {
            cluster,
            device: DeviceUuid(random_uuid()?),
            device_number: number,
            device_count: count,
            name: options.cluster.clone(),
            generation: 1,
            features_incompatible: 0,
            features_read_only: 0,
            features_compatible: 0,
            sector_bytes: layout.sector_bytes,
            slots: options.slots,
            device_bytes: target.size_bytes(),
            timings: options.timings,
            layout: *layout,
            formatted_wall_ms: u64::try_from(wall_ms).unwrap_or(0),
        };
        let header = sbd_header_of(&superblock);
        plans.push(Fresh::new(superblock, &header, found.wipe(target.size_bytes()), cut(&host, 63))?);
    }
    if !options.is_dry_run {
        write::write_all(targets, &plans)?;
    }
    Ok(report(options, cluster, targets, &plans, examined))
}

fn report(options: &FormatOptions, cluster: ClusterUuid, targets: &[Target], plans: &[Fresh], examined: Vec<Examined>) -> FormatReport {
    let devices = targets.iter().zip(plans).zip(examined).map(|((target, plan), found)| DeviceReport {
        path: target.path.clone(),
        device: plan.superblock().device,
        size_bytes: target.size_bytes(),
        sector_bytes: plan.superblock().sector_bytes,
        used_bytes: plan.superblock().layout.end.0,
        lost: found.lost(),
        live: found.live,
    });
    let devices = devices.collect();
    FormatReport { cluster, name: options.cluster.clone(), slots: options.slots, is_dry_run: options.is_dry_run, devices }
}

fn check_options(options: &FormatOptions) -> Result<(), FormatError> {
    let found = options.devices.len();
    if found == 0 || found > DEVICES_MAX {
        return Err(FormatError::DeviceCount { found });
    }
    if !view::is_name(&options.cluster) {
        return Err(FormatError::Name { name: options.cluster.clone() });
    }
    if options.nodes == 0 || options.nodes > options.slots {
        return Err(FormatError::Nodes { nodes: options.nodes, slots: options.slots });
    }
    let timings = &options.timings;
    let needed = [
        ("stall_ms", timings.stall_ms),
        ("poll_ms", timings.poll_ms),
        ("watchdog_ms", timings.watchdog_ms),
        ("lease_ms", timings.lease_ms),
        ("expiry_ms", timings.expiry_ms),
    ];
    match needed.into_iter().find(|(_, value)| *value == 0) {
        Some((field, _)) => Err(FormatError::Timings { field }),
        None => Ok(()),
    }
}

fn open_targets(options: &FormatOptions) -> Result<Vec<Target>, FormatError> {
    let mut findings = same_storage(&options.devices);
    for path in &options.devices {
        let is_serious = |finding: &Finding| match finding {
            // Formatting through the page cache is harmless; running on it is not, and is refused there.
            Finding::LoopWithoutDirectIo { .. } => !options.is_forced,
            other => other.severity() == Severity::Refuse,
        };
        findings.extend(preflight(path).into_iter().filter(is_serious));
    }
    if !findings.is_empty() {
        return Err(FormatError::Unusable(findings));
    }
    let access = if options.is_dry_run { Access::Read } else { Access::ReadWrite };
    options.devices.iter().map(|path| open_target(path, access)).collect()
}

fn open_target(path: &Path, access: Access) -> Result<Target, FormatError> {
    let device = Device::open(path, access)?;
    let claim = match device.geometry().kind {
        DeviceKind::Block { .. } => {
            let opened = File::options().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(path);
            Some(opened.map_err(|reason| FormatError::Busy { path: path.into(), reason })?)
        }
        DeviceKind::File | DeviceKind::Memory => None,
    };
    Ok(Target { path: path.into(), device: Box::new(device), _claim: claim })
}

/// May what was found be overwritten?
fn judge(options: &FormatOptions, path: &Path, found: &Examined) -> Result<(), FormatError> {
    let path = path.to_path_buf();
    let mut is_allowed = options.is_forced;
    if let (Some(given), Some(owner)) = (&options.force_live, &found.superblock) {
        if !given.trim().eq_ignore_ascii_case(&owner.cluster.to_string()) {
            return Err(FormatError::ForceLive { path, given: given.clone(), cluster: owner.cluster });
        }
        is_allowed = true;
    } else if let (Some(owner), false) = (&found.superblock, found.live.is_empty()) {
        return Err(FormatError::Live { path, name: owner.name.clone(), cluster: owner.cluster, slots: found.live.clone() });
    }
    if !is_allowed && !found.signatures.is_empty() {
        return Err(FormatError::Occupied { path, found: found.lost() });
    }
    Ok(())
}

/// A random uuid, version 4.
fn random_uuid() -> Result<[u8; 16], FormatError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(FormatError::Random)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}

fn cut(text: &str, most: usize) -> &str {
    let mut length = text.len().min(most);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    text.get(..length).unwrap_or_default()
}
