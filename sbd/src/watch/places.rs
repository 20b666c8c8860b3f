//! What: the devices of a watcher before its life: opened, judged by their headers, each with a slot for this node.
//! Owns: which devices count.
//! Invariants: a device whose times differ from the first one's does not count.
//! Does not: write anything but the name into a free slot.
//! Called by: the watcher.

use std::path::Path;
use std::time::{Duration, Instant};

use deadbolt_disk::Access;
use deadbolt_disk_format::DeviceUuid;
use deadbolt_disk_format::sbd::SbdHeader;
use deadbolt_sbd_core::watch_quorum;

use super::{SbdTimes, WatchError};
use crate::area::Area;
use crate::life::LifeDevice;
use crate::options::StockOptions;
use crate::placement::Placement;
use crate::slots::allocate_slot;

/// How long all devices are waited for once enough are there. Chosen: time for the paths of one boot to come up.
const GRACE: Duration = Duration::from_secs(10);
/// How often devices that cannot be opened are tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// The devices that count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) devices: Vec<LifeDevice>,
    /// What is looked at for the sake of senders: area, own place, slots up to the last one in use.
    pub(crate) samples: Vec<(DeviceUuid, Placement, u16)>,
    /// Why the others do not, one line each.
    pub(crate) missing: Vec<String>,
    header: Option<SbdHeader>,
}

impl Found {
    pub(crate) fn times(&self) -> Option<SbdTimes> {
        self.header.as_ref().map(SbdTimes::of)
    }

    pub(crate) fn msgwait_s(&self) -> Option<u32> {
        self.header.as_ref().map(|header| header.msgwait_s)
    }
}

/// Opens the devices, again and again until enough are there or the start time is over.
pub(crate) fn open_all(options: &StockOptions, node: &str) -> Result<Found, WatchError> {
    let count = options.devices.len();
    let needed = watch_quorum(u32::try_from(count).unwrap_or(u32::MAX));
    let began = Instant::now();
    let limit = Duration::from_secs(u64::from(options.startup_s));
    loop {
        let (opened, reasons) = try_all(options);
        let found = opened.len();
        let is_enough = u32::try_from(found).unwrap_or(u32::MAX) >= needed;
        // Who is there in a moment is waited for; who is not counts as lost.
        if found == count || (is_enough && began.elapsed() >= GRACE.min(limit)) {
            return take(options, node, opened, reasons);
        }
        if began.elapsed() >= limit {
            return Err(WatchError::Devices { found, count, needed, waited_s: limit.as_secs(), reasons: reasons.join("; ") });
        }
        std::thread::sleep(AGAIN);
    }
}

type Opened = (String, Area, SbdHeader);

fn try_all(options: &StockOptions) -> (Vec<Opened>, Vec<String>) {
    let (mut areas, mut reasons) = (Vec::new(), Vec::new());
    for device in &options.devices {
        let limit = Duration::from_secs(u64::from(options.io_s.max(1)));
        let opened =
            Area::open(Path::new(device), Access::ReadWrite, limit).and_then(|area| area.plausible_header().map(|header| (area, header)));
        match opened {
            Ok((area, header)) => areas.push((device.clone(), area, header)),
            Err(error) => reasons.push(format!("{device}: {error}")),
        }
    }
    (areas, reasons)
}

/// Takes the devices whose times are the first one's, with a slot on each.
fn take(options: &StockOptions, node: &str, opened: Vec<Opened>, mut missing: Vec<String>) -> Result<Found, WatchError> {
    let mut found = Found::default();
    for (device, area, header) in opened {
        let first = found.header.get_or_insert_with(|| header.clone());
        let is_known = found.samples.iter().any(|(area, ..)| *area == DeviceUuid(header.uuid) && header.uuid != [0; 16]);
        if is_known {
            missing.push(format!("{device} is another path to a device that was named before it"));
            continue;
        }
        let times = |header: &SbdHeader| [header.watchdog_s, header.allocate_s, header.loop_s, header.msgwait_s];
        if times(first) != times(&header) {
            missing.push(format!("{device} has other times than the first device"));
            continue;
        }
        let slot = allocate_slot(&area, node, |_| ()).map_err(|source| WatchError::Slot { device: device.clone(), source })?;
        let placement = area.placement(slot, &header);
        let end = area
            .slots()
            .map_err(|source| WatchError::Slot { device: device.clone(), source: source.into() })?
            .last()
            .map_or(0, |slot| slot.index.0 + 1);
        found.samples.push((DeviceUuid(header.uuid), placement, end));
        found.devices.push(LifeDevice { device: area.into_device(), placement, name: device });
    }
    found.missing = missing;
    let count = u32::try_from(options.devices.len()).unwrap_or(u32::MAX);
    if u32::try_from(found.devices.len()).unwrap_or(0) < watch_quorum(count) {
        let (count, usable) = (options.devices.len(), found.devices.len());
        let reasons = found.missing.join("; ");
        return Err(WatchError::Devices {
            found: usable,
            count,
            needed: watch_quorum(u32::try_from(count).unwrap_or(u32::MAX)),
            waited_s: 0,
            reasons,
        });
    }
    Ok(found)
}
