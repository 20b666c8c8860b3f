//! What: `sbd run`: the lifeline of one node of a Deadbolt cluster.
//! Owns: its options, and every check before the first beat.
//! Invariants: nothing is written before the devices were found to be this cluster's, and nothing is armed before a majority answered.
//! Does not: decide anything after the start; see `life` and sbd core.
//! Called by: `main_from`, started by the node's supervisor.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use deadbolt_disk::{Access, AlignedBuf, BackendChoice, Device, DeviceKind, IoError, OpenError};
use deadbolt_disk_format::sbd::{SbdNode, node_offset};
use deadbolt_disk_format::{
    BootId, ByteOffset, DEVICES_MAX, Incarnation, Permission, SlotIndex, Superblock, SuperblockChoice, UNIT_BYTES, ViewNumber,
    WatchdogKind, choose_superblock, read_superblocks,
};
use deadbolt_sbd_core::{LegacyPills, LifelineConfig, Regime};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::area::is_same_name;
use crate::feeder::FeederConfig;
use crate::life::{LifeDevice, LifeEnd, LifeSetup, live};
use crate::log::Log;
use crate::page::{Page, PageDescriptors};
use crate::pill::PillKey;
use crate::placement::Placement;
use crate::protect::{Protection, end_with_parent, lock_memory, use_ordinary_time, use_real_time};
use crate::reset::{MachineReset, ResetAction, TreeReset};
use crate::say::say_refusal;
use crate::views::{newest_timings, say_differences};
use crate::watchdog::{DeviceWatchdog, NoWatchdog, ProcessWatchdog, Watchdog};

/// Exit codes of `sbd run`.
const STOPPED: u8 = 0;
const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// How long a device may take to be opened.
const OPEN: Duration = Duration::from_secs(10);
/// How long the last lines may take before the process ends without them. Chosen: a busy machine's moment; nothing hangs on it.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Shortest time of a process watchdog, ms: several turns of the supervisor's loop.
const PROCESS_SHORTEST_MS: u32 = 200;
/// How long sbd beats on without a daemon, ms. Chosen: time for several restarts of a daemon, short enough that nobody forgets it.
const ABSENCE_MS: u32 = 60_000;

/// What `sbd run --version` answers: whoever starts `sbd run` sees by it that a file is neither the stock sbd nor another version.
pub const NAME_AND_VERSION: &str = concat!("sbd run ", env!("CARGO_PKG_VERSION"));

/// Keep a node of a Deadbolt cluster alive, or end it. Started by the node's supervisor.
#[derive(Parser, Debug)]
#[command(name = "sbd run", version, no_binary_name = true)]
struct Options {
    /// Shared device; once per device of the cluster.
    #[arg(long = "device", required = true, value_name = "PATH")]
    devices: Vec<PathBuf>,
    /// The node's slot.
    #[arg(long)]
    slot: u16,
    /// The boot of the machine or of the process tree, 32 hexadecimal digits.
    #[arg(long, value_parser = parse_boot)]
    boot: BootId,
    /// The node's name, as stock tools shall see it.
    #[arg(long)]
    name: String,
    /// A name before a view gave it that one, which the slot may still carry; may be repeated.
    #[arg(long = "former-name", value_name = "NAME")]
    former_names: Vec<String>,
    /// A watchdog device, or `process` (the supervisor), or `none` with --allow-unprotected.
    #[arg(long, value_name = "process|none|PATH")]
    watchdog: String,
    /// What a reset does.
    #[arg(long, value_parser = ["reboot", "tree"])]
    reset: String,
    /// Descriptors of the shared page; without it, `DEADBOLT_PAGE_FD`, else a page that nobody shares.
    #[arg(long, value_name = "N,N,N")]
    page_fd: Option<String>,
    /// The cluster's key; without it pills of our own tools are obeyed unproved.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Several nodes of this machine use the device: drive it by threads.
    #[arg(long)]
    shared_device: bool,
    /// Go on without a watchdog, locked memory or real-time priority, and with a process watchdog on a real block device.
    #[arg(long)]
    allow_unprotected: bool,
    /// Obey only pills of our own tools.
    #[arg(long)]
    refuse_legacy: bool,
    /// How late this node's watchdog may fire, ms; the cluster's value when not given.
    #[arg(long, value_name = "MS")]
    lateness: Option<u32>,
}

fn parse_boot(text: &str) -> Result<BootId, String> {
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    let is_plain = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let value = u128::from_str_radix(&digits, 16).ok().filter(|_| is_plain);
    value
        .filter(|value| *value != 0)
        .map(|value| BootId(value.to_be_bytes()))
        .ok_or_else(|| "not 32 hexadecimal digits, or all zero".to_owned())
}

/// Why `sbd run` does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A device cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A device cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What failed.
        source: IoError,
    },
    /// No usable superblock.
    #[error("{}: {found}; give the devices of the cluster, or run `deadbolt fsck` on it", path.display())]
    NoSuperblock {
        /// Which.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// The devices are not one cluster's.
    #[error("{} is not a further device of this cluster: {found}; give each device of the cluster once", path.display())]
    OtherDevice {
        /// Which.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// The sector size is not the one of the format.
    #[error("{} has sectors of {found} bytes here and was formatted with {expected}: the SBD area would lie elsewhere; use the same path type on all nodes", path.display())]
    Sector {
        /// Which.
        path: PathBuf,
        /// Here.
        found: u32,
        /// At format.
        expected: u32,
    },
    /// No such slot.
    #[error("slot {slot} does not exist: the cluster has slots 0 to {}", slots.saturating_sub(1))]
    Slot {
        /// Asked for.
        slot: u16,
        /// There are.
        slots: u16,
    },
    /// The slot's SBD name is another node's.
    #[error("{}: slot {slot} belongs to {found:?}, this node is {name:?}; give the node its own slot, or its old name", path.display())]
    Name {
        /// Which device.
        path: PathBuf,
        /// The slot.
        slot: u16,
        /// Name on the device.
        found: String,
        /// This node's.
        name: String,
    },
    /// Something that protects the others from this node is missing.
    #[error("{what}; a real node does not run like this (--allow-unprotected for trials)")]
    Unprotected {
        /// What.
        what: String,
    },
    /// The times leave no room for the watchdog.
    #[error("the cluster's lease of {lease_ms} ms has no room for twice the watchdog's {reset_ms} ms; format with other times")]
    Times {
        /// L.
        lease_ms: u32,
        /// T.
        reset_ms: u32,
    },
    /// The cluster decided other times than those in the superblock.
    #[error(
        "view {view} has other times than the superblock ({found}): the others would judge this node by the view's while it lives by the superblock's; decide the superblock's times again, or stop every node and format with the new ones"
    )]
    ViewTimes {
        /// The newest view.
        view: ViewNumber,
        /// What differs.
        found: String,
    },
    /// The parent has ended.
    #[error("the supervisor has ended; start the node again with `deadbolt start`")]
    Orphan,
    /// Anything that carries its own explanation.
    #[error(transparent)]
    Page(#[from] crate::page::PageError),
    /// The key.
    #[error(transparent)]
    Key(#[from] crate::pill::KeyFileError),
    /// The engines.
    #[error(transparent)]
    Life(#[from] crate::life::LifeError),
    /// A system call.
    #[error("{call} failed: {source}")]
    System {
        /// Which.
        call: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// `sbd run`, with the arguments behind the verb.
pub(crate) fn run(arguments: Vec<OsString>) -> u8 {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { USAGE } else { STOPPED };
        }
    };
    // Before any thread: one that does not block them would be ended by them, and the process with it.
    let stop = block_signals();
    let log = Log::to_standard_error(&format!("sbd[{}]: ", options.name));
    let end = stop.and_then(|stop| begin(&options, &log, stop)).and_then(|setup| Ok(live(setup)?));
    let code = match end {
        Ok(LifeEnd::Stopped { is_recorded: true }) => {
            log.say("stopped cleanly");
            STOPPED
        }
        Ok(LifeEnd::Stopped { is_recorded: false }) => {
            log.say("stopped and disarmed, but the last beat could not be written: others will see silence");
            FAILED
        }
        Ok(LifeEnd::Refused(reason)) => {
            log.say(&say_refusal(&reason));
            USAGE
        }
        Ok(LifeEnd::Reset(_) | LifeEnd::Ready { .. }) => FAILED,
        Err(error) => {
            log.say(&error.to_string());
            USAGE
        }
    };
    log.finish(LAST_LINES);
    code
}

fn begin(options: &Options, log: &Log, stop: OwnedFd) -> Result<LifeSetup, RunError> {
    let protection = protect(options, log)?;
    let page = open_page(options)?;
    let (devices, first) = open_devices(options, log)?;
    let timings = first.timings;
    if u64::from(timings.lease_ms) <= 2 * u64::from(timings.reset_ms) || timings.poll_ms == 0 || timings.feed_ms == 0 {
        return Err(RunError::Times { lease_ms: timings.lease_ms, reset_ms: timings.reset_ms });
    }
    let key = options.key_file.as_deref().map(PillKey::read).transpose()?;
    if key.is_none() {
        log.say("no cluster key was given: pills of our own tools are obeyed unproved");
    }
    let mut writer = Incarnation::NONE;
    getrandom::fill(&mut writer.0)
        .map_err(|error| RunError::System { call: "getrandom", source: std::io::Error::other(error.to_string()) })?;
    let (watchdog, kind) = choose_watchdog(options, &page, log)?;
    let reset: Box<dyn ResetAction> = if options.reset == "tree" { Box::new(TreeReset::new(page.feed())) } else { Box::new(MachineReset) };
    Ok(LifeSetup {
        node: options.name.clone(),
        config: LifelineConfig {
            slot: SlotIndex(options.slot),
            boot: options.boot,
            writer,
            devices: devices.len(),
            timings,
            watchdog: kind,
            legacy: if options.refuse_legacy { LegacyPills::Refuse } else { LegacyPills::Accept },
            regime: Regime::Node { absence_ms: ABSENCE_MS },
        },
        devices,
        backend: if options.shared_device { BackendChoice::Threads } else { BackendChoice::Auto },
        key,
        watchdog,
        feeder: FeederConfig {
            watchdog_ms: timings.watchdog_ms,
            lateness_ms: options.lateness.unwrap_or(timings.lateness_ms),
            drift_ppm: timings.drift_ppm,
            reset_ms_max: timings.reset_ms,
            feed_ms: timings.feed_ms,
            protection,
        },
        reset,
        page,
        log: log.clone(),
        stop,
        watch: None,
    })
}

/// Names each missing permission in one line; refuses unless told.
fn protect(options: &Options, log: &Log) -> Result<Protection, RunError> {
    let mut protection = Protection::RealTime;
    let mut missing = Vec::new();
    if let Err(found) = lock_memory() {
        missing.push(found);
    }
    match use_real_time() {
        Ok(()) => use_ordinary_time(),
        Err(found) => {
            protection = Protection::None;
            missing.push(found);
        }
    }
    for found in &missing {
        log.say(&found.to_string());
    }
    match missing.first() {
        Some(found) if !options.allow_unprotected => Err(RunError::Unprotected { what: found.to_string() }),
        _ => Ok(protection),
    }
}

/// TERM and INT become readable instead of ending this process: sbd ends only when that is safe.
fn block_signals() -> Result<OwnedFd, RunError> {
    let system = |call: &'static str| move |errno: nix::Error| RunError::System { call, source: errno.into() };
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().map_err(system("sigprocmask"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&signals, flags).map(OwnedFd::from).map_err(system("signalfd"))
}

fn open_page(options: &Options) -> Result<Page, RunError> {
    let text = options.page_fd.clone().or_else(|| std::env::var(crate::page::PAGE_VARIABLE).ok());
    let Some(text) = text else {
        return Ok(Page::create()?.0);
    };
    let page = Page::map(&PageDescriptors::inherited(&text)?)?;
    if !end_with_parent() {
        return Err(RunError::Orphan);
    }
    Ok(page)
}

fn choose_watchdog(options: &Options, page: &Page, log: &Log) -> Result<(Box<dyn Watchdog>, WatchdogKind), RunError> {
    match options.watchdog.as_str() {
        "process" => Ok((Box::new(ProcessWatchdog::new(page.feed(), PROCESS_SHORTEST_MS)), WatchdogKind::Process)),
        "none" | "/dev/null" => {
            let what = "there is no watchdog: nothing ends this node when sbd can not".to_owned();
            log.say(&what);
            if options.allow_unprotected { Ok((Box::new(NoWatchdog), WatchdogKind::Device)) } else { Err(RunError::Unprotected { what }) }
        }
        path => Ok((Box::new(DeviceWatchdog::new(Path::new(path))), WatchdogKind::Device)),
    }
}

fn open_devices(options: &Options, log: &Log) -> Result<(Vec<LifeDevice>, Superblock), RunError> {
    let mut opened: Vec<(PathBuf, Device, Superblock)> = Vec::new();
    for path in &options.devices {
        let device = Device::open_within(path, Access::ReadWrite, OPEN)?;
        let superblock = read_superblock(path, &device)?;
        check_device(options, path, &device, &superblock)?;
        if let Some((_, _, first)) = opened.first()
            && (superblock.cluster != first.cluster || superblock.slots != first.slots)
        {
            let found = format!("it belongs to cluster {:?} ({})", superblock.name, superblock.cluster);
            return Err(RunError::OtherDevice { path: path.clone(), found });
        }
        if let Some((other, ..)) = opened.iter().find(|(_, _, other)| other.device == superblock.device) {
            return Err(RunError::OtherDevice { path: path.clone(), found: format!("it is the same device as {}", other.display()) });
        }
        opened.push((path.clone(), device, superblock));
    }
    opened.sort_by_key(|(_, _, superblock)| superblock.device_number);
    let count = opened.first().map_or(0, |(_, _, superblock)| usize::from(superblock.device_count));
    if opened.len() != count || opened.len() > DEVICES_MAX {
        let path = options.devices.first().cloned().unwrap_or_default();
        return Err(RunError::OtherDevice { path, found: format!("the cluster has {count} devices, {} were given", opened.len()) });
    }
    check_times(&opened, log)?;
    for (path, device, superblock) in &opened {
        claim_name(options, path, device, superblock)?;
    }
    let first = opened.first().map(|(_, _, superblock)| superblock.clone());
    let first = first.ok_or(RunError::Slot { slot: options.slot, slots: 0 })?;
    let slot = SlotIndex(options.slot);
    let one = |(path, device, superblock): (PathBuf, Device, Superblock)| LifeDevice {
        device: Arc::new(device),
        placement: Placement::ours(superblock.cluster, superblock.layout, slot),
        name: path.display().to_string(),
    };
    Ok((opened.into_iter().map(one).collect(), first))
}

fn read_superblock(path: &Path, device: &Device) -> Result<Superblock, RunError> {
    let copies = read_superblocks(device.geometry().size_bytes, |offset| {
        let mut buffer = AlignedBuf::zeroed(UNIT_BYTES);
        device.read_at(offset, &mut buffer).ok().map(|()| buffer.to_vec())
    });
    let none = |found: &str| Err(RunError::NoSuperblock { path: path.to_path_buf(), found: found.to_owned() });
    let superblock = match choose_superblock(&copies) {
        SuperblockChoice::Agreed { superblock, .. } => superblock,
        SuperblockChoice::Absent => return none("not formatted by Deadbolt"),
        SuperblockChoice::Unfinished { .. } => return none("a format was begun and has not ended"),
        SuperblockChoice::Alone { .. } => return none("only one superblock copy is good"),
        _ => return none("its superblock is damaged or contradicts itself"),
    };
    match superblock.permission() {
        Permission::ReadWrite => Ok(superblock),
        _ => none("it was written by a newer program"),
    }
}

fn check_device(options: &Options, path: &Path, device: &Device, superblock: &Superblock) -> Result<(), RunError> {
    let geometry = device.geometry();
    let (slot, slots) = (options.slot, superblock.slots);
    if slot >= slots {
        return Err(RunError::Slot { slot, slots });
    }
    let (found, expected) = (geometry.logical_sector_bytes, superblock.sector_bytes);
    // A file takes larger pieces than it must.
    let is_larger = geometry.kind == DeviceKind::File && expected > found;
    if found != expected && !is_larger {
        return Err(RunError::Sector { path: path.to_path_buf(), found, expected });
    }
    let is_real = matches!(geometry.kind, DeviceKind::Block { is_loop: false, .. });
    if is_real && options.watchdog == "process" && !options.allow_unprotected {
        let what = format!("{} is a real block device and the watchdog is only a process", path.display());
        return Err(RunError::Unprotected { what });
    }
    Ok(())
}

/// sbd lives by the superblock's times and follows no view: where the two differ, others could count this node gone too early.
fn check_times(opened: &[(PathBuf, Device, Superblock)], log: &Log) -> Result<(), RunError> {
    let Some((_, _, first)) = opened.first() else { return Ok(()) };
    match newest_timings(opened)? {
        Some((view, Some(timings))) => match say_differences(&first.timings, &timings) {
            Some(found) => Err(RunError::ViewTimes { view, found }),
            None => Ok(()),
        },
        Some((view, None)) => {
            log.say(&format!("no body of view {view} can be read: its times are not compared with the superblock's; run fsck-deadbolt"));
            Ok(())
        }
        None => Ok(()),
    }
}

/// Stock tools find this node by its name in the SBD area.
fn claim_name(options: &Options, path: &Path, device: &Device, superblock: &Superblock) -> Result<(), RunError> {
    let io = |source| RunError::Io { path: path.to_path_buf(), source };
    let sector_bytes = superblock.sector_bytes;
    let offset = ByteOffset(node_offset(SlotIndex(options.slot), sector_bytes));
    let mut buffer = AlignedBuf::zeroed(usize::try_from(sector_bytes).unwrap_or(UNIT_BYTES));
    device.read_at(offset, &mut buffer).map_err(io)?;
    match SbdNode::decode(&buffer) {
        Ok(node) if node.is_in_use && is_same_name(&node.name, &options.name) => Ok(()),
        Ok(node) if node.is_in_use && !options.former_names.iter().any(|former| is_same_name(&node.name, former)) => {
            Err(RunError::Name { path: path.to_path_buf(), slot: options.slot, found: node.name, name: options.name.clone() })
        }
        Ok(_) | Err(_) => {
            let node = SbdNode { is_in_use: true, name: options.name.clone() };
            device.write_at(offset, &AlignedBuf::copy_of(&node.encode(sector_bytes))).map_err(io)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_starters_ask_for() {
        let version = Options::try_parse_from(["--version"]).unwrap_err();
        assert!(!version.use_stderr());
        assert_eq!(version.to_string().trim_end(), NAME_AND_VERSION);
    }

    #[test]
    fn boots_are_read_in_both_spellings() {
        let boot = parse_boot("000102030405060708090a0b0c0d0e0f").unwrap();
        assert_eq!(boot.0[15], 15);
        assert_eq!(parse_boot(&boot.to_string()), Ok(boot));
        for text in ["", "1", "00000000000000000000000000000000", "+00102030405060708090a0b0c0d0e0f", "zz0102030405060708090a0b0c0d0e0f"] {
            assert!(parse_boot(text).is_err(), "{text}");
        }
    }
}
